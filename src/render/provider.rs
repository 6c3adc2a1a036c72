//! Providers, and what became of their tests, as text and JSON.

use pool_provider::conformance::{Finding, Outcome};
use serde_json::{Value, json};

use super::look::Look;
use super::status::table;
use crate::config::{LimitsConfig, ProviderConfig};

/// One line of the list of providers.
#[derive(Debug)]
pub struct ProviderRow<'a> {
    /// Its name.
    pub name: &'a str,
    /// How it is reached.
    pub config: &'a ProviderConfig,
    /// Who says so.
    pub from: &'a str,
    /// How many workers it has.
    pub workers: usize,
}

/// Writes providers as a table.
pub fn provider_table(rows: &[ProviderRow<'_>], look: Look) -> String {
    let heads = ["NAME", "TYPE", "WORKERS", "LIMITS", "FROM"];
    let mut cells = vec![heads.map(str::to_owned).to_vec()];
    cells.extend(rows.iter().map(|row| {
        vec![
            row.name.to_owned(),
            row.config.kind.name().to_owned(),
            row.workers.to_string(),
            limits(&row.config.limits),
            row.from.to_owned(),
        ]
    }));
    table(&cells, look)
}

fn limits(limits: &LimitsConfig) -> String {
    let at_a_time = limits.max_concurrency.map(|most| format!("{most} at a time"));
    let rate = limits.rate_limit.map(|limit| format!("{} in {}", limit.calls, limit.per));
    let said: Vec<String> = at_a_time.into_iter().chain(rate).collect();
    if said.is_empty() { "none".to_owned() } else { said.join(", ") }
}

/// Writes what became of a rule.
pub fn finding_text(finding: &Finding, look: Look) -> String {
    match &finding.outcome {
        Outcome::Kept => format!("{} {}\n", look.added("kept      "), finding.rule),
        Outcome::NotTried => format!("{} {}\n", look.faint("not tried "), finding.rule),
        Outcome::Broken(how) => format!(
            "{} {}\n           {how}\n           {}\n",
            look.removed("BROKEN    "),
            finding.rule,
            finding.advice
        ),
    }
}

/// Writes what became of a rule as one JSON value.
pub fn finding_json(finding: &Finding) -> Value {
    let (outcome, how) = match &finding.outcome {
        Outcome::Kept => ("kept", None),
        Outcome::NotTried => ("not_tried", None),
        Outcome::Broken(how) => ("broken", Some(how)),
    };
    json!({ "rule": finding.rule, "outcome": outcome, "how": how, "advice": finding.advice })
}
