//! What a provider answered, in words for its author.

use std::fmt::Display;

use crate::error::ProviderError;
use crate::spec::ObservedWorker;

/// Says which workers these are.
pub(super) fn names(workers: &[ObservedWorker]) -> String {
    let named: Vec<String> = workers
        .iter()
        .map(|worker| format!("{} (provider_id {})", worker.name, worker.provider_id))
        .collect();
    if named.is_empty() { "none".to_owned() } else { named.join(", ") }
}

/// Says what was answered where a worker is.
pub(super) fn answer(answer: &Result<ObservedWorker, ProviderError>) -> String {
    match answer {
        Ok(worker) => names(std::slice::from_ref(worker)),
        Err(error) => format!("`{}` ({error})", error.code()),
    }
}

/// Says in what `found` is not as `expected`; addresses, attributes and the status may be others.
pub(super) fn differences(expected: &ObservedWorker, found: &ObservedWorker) -> Vec<String> {
    let mut differences = Vec::new();
    let mut compare = |what: &str, expected: &dyn Display, found: &dyn Display| {
        let (expected, found) = (expected.to_string(), found.to_string());
        if expected != found {
            differences.push(format!("`{what}` is {found}, not {expected}"));
        }
    };
    compare("name", &expected.name, &found.name);
    compare("provider_id", &expected.provider_id, &found.provider_id);
    compare("attempt", &expected.attempt, &found.attempt);
    compare("operation", &expected.operation, &found.operation);
    compare("spec_hash", &expected.spec_hash, &found.spec_hash);
    compare("labels", &json(&expected.labels), &json(&found.labels));
    compare("tags", &json(&expected.tags), &json(&found.tags));
    differences
}

pub(super) fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}
