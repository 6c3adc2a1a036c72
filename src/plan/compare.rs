//! Decides which differences there are between what a worker is and what it should be, and what each
//! of them means for the worker.
//!
//! | field                                          | action                          | because |
//! |------------------------------------------------|---------------------------------|---------|
//! | `labels`, `tags`                               | update, where the provider can  | nothing that runs depends on them |
//! | `image`, `command`, `cpu_cores`, `memory_mb`,  | replace                         | a running worker keeps what it was started with |
//! | `docker_enabled`, `environment`, `docker`,     |                                 | |
//! | `ec2`, `attributes`,                           |                                 | |
//! | `worker_type`, `network`                       |                                 | |
//! | `provider`                                     | replace                         | a worker cannot move |
//! | a secret's value, by keyed hash                | replace                         | as for the environment |
//! | a secret that cannot be read                   | nothing                         | unknown is not changed |
//!
//! Every other field of a pool's config is a setting: recorded, and no worker is touched. Invariant:
//! every field of `StaticPoolConfig` is in one of the two groups; a test compares them with the type.
//! Does not look at phases or at what a provider reports; see [`super::judge`].

use std::collections::{BTreeMap, BTreeSet};

use pool_provider::{Description, InPlaceField};
use serde_json::Value;

use super::input::{AppliedConfig, RecordedSpec};
use super::types::FieldChange;
use crate::config::{ProviderConfig, StaticPoolConfig};
use crate::desired::{DesiredPool, SecretHashes};

/// The fields of a pool whose change touches its workers, and is told by their steps.
const WORKER_FIELDS: [&str; 4] = ["worker_type", "worker_config", "provider", "network"];

/// How well a worker fits what is desired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fit {
    /// It is what it should be.
    Current,
    /// It can be changed in place.
    InPlace(Vec<FieldChange>),
    /// It must be replaced.
    Outdated(Vec<FieldChange>),
}

/// Compares a worker's spec and provider with what is desired.
pub fn fit(
    desired: &DesiredPool,
    spec: &RecordedSpec,
    provider: &str,
    description: Option<&Description>,
) -> Fit {
    let mut changes = spec_changes(desired, spec, description);
    if provider != desired.provider {
        let change = FieldChange {
            path: "provider".to_owned(),
            before: Some(provider.to_owned()),
            after: Some(desired.provider.clone()),
            forces_replacement: true,
        };
        changes.insert(0, change);
    }
    if changes.is_empty() {
        Fit::Current
    } else if changes.iter().any(|change| change.forces_replacement) {
        Fit::Outdated(changes)
    } else {
        Fit::InPlace(changes)
    }
}

fn spec_changes(
    desired: &DesiredPool,
    recorded: &RecordedSpec,
    description: Option<&Description>,
) -> Vec<FieldChange> {
    let can = |field| description.is_some_and(|description| description.can_update(field));
    let forces = |path: &str| {
        if path.starts_with("worker_config.labels") {
            !can(InPlaceField::Labels)
        } else if path.starts_with("worker_config.tags") {
            !can(InPlaceField::Tags)
        } else {
            true
        }
    };
    let mut changes = Vec::new();
    if recorded.spec.worker != desired.spec.worker {
        let before = serde_json::to_value(&recorded.spec.worker).unwrap_or_default();
        let after = serde_json::to_value(&desired.spec.worker).unwrap_or_default();
        differences("worker_config", &before, &after, &mut changes);
        for change in &mut changes {
            change.forces_replacement = forces(&change.path);
        }
    }
    if recorded.spec.worker_type != desired.spec.worker_type {
        changes.push(FieldChange {
            path: "worker_type".to_owned(),
            before: Some(recorded.spec.worker_type.to_string()),
            after: Some(desired.spec.worker_type.to_string()),
            forces_replacement: true,
        });
    }
    if recorded.spec.network != desired.spec.network {
        changes.push(FieldChange {
            path: "network".to_owned(),
            before: recorded.spec.network.clone(),
            after: desired.spec.network.clone(),
            forces_replacement: true,
        });
    }
    for name in changed_secrets(&recorded.secrets, &desired.secrets) {
        changes.push(FieldChange {
            path: format!("worker_config.environment.{name}"),
            before: Some("(secret)".to_owned()),
            after: Some("(another secret)".to_owned()),
            forces_replacement: true,
        });
    }
    changes
}

/// Returns the secrets whose value is known to have changed: known on both sides, and different.
fn changed_secrets<'a>(before: &SecretHashes, after: &'a SecretHashes) -> Vec<&'a str> {
    after
        .iter()
        .filter(|(name, hash)| {
            matches!((before.get(*name), hash), (Some(Some(old)), Some(new)) if old != new)
        })
        .map(|(name, _)| name.as_str())
        .collect()
}

/// Returns what differs between two configs of a pool and is not told by steps: its settings, and when
/// there are no steps everything, because it has to be recorded all the same.
pub fn config_changes(
    before: &StaticPoolConfig,
    after: &StaticPoolConfig,
    steps_tell_the_rest: bool,
) -> Vec<FieldChange> {
    let mut changes = Vec::new();
    let value = |config| serde_json::to_value(config).unwrap_or_default();
    differences("", &value(before), &value(after), &mut changes);
    let is_told = |change: &FieldChange| {
        let field = change.path.split('.').next().unwrap_or_default();
        steps_tell_the_rest && WORKER_FIELDS.contains(&field)
    };
    changes.retain(|change| !is_told(change));
    changes
}

/// Returns what differs between how a pool's provider was reached and how it will be. Another provider is no
/// change of this one.
pub(super) fn provider_changes(applied: &AppliedConfig, desired: &DesiredPool) -> Vec<FieldChange> {
    let name = applied.config.provider_name();
    let mut changes = Vec::new();
    let before = applied.provider.clone().or_else(|| ProviderConfig::implicit(name));
    if let (Some(before), Some(after)) = (before, &desired.provider_config)
        && name == desired.provider
    {
        let value = |config: &ProviderConfig| serde_json::to_value(config).unwrap_or_default();
        differences(&format!("providers.{name}"), &value(&before), &value(after), &mut changes);
    }
    changes
}

/// Compares two mappings field by field; lists and scalars are compared whole.
pub(super) fn differences(
    path: &str,
    before: &Value,
    after: &Value,
    changes: &mut Vec<FieldChange>,
) {
    let empty = serde_json::Map::new();
    let is_secret =
        |value: &Value| value.get("from_env").is_some() || value.get("from_file").is_some();
    let both_map = before.is_object() && after.is_object();
    if both_map && !is_secret(before) && !is_secret(after) {
        let (old, new) =
            (before.as_object().unwrap_or(&empty), after.as_object().unwrap_or(&empty));
        let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        for key in keys {
            let inner = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            let get = |map: &serde_json::Map<String, Value>| map.get(key).cloned();
            let (before, after) = (get(old), get(new));
            let is_map = |value: &Option<Value>| value.as_ref().is_none_or(Value::is_object);
            // A mapping that comes or goes is told field by field too.
            let nested = is_map(&before) && is_map(&after) && (before.is_some() || after.is_some());
            if before == after {
                continue;
            }
            let secret =
                before.as_ref().is_some_and(is_secret) || after.as_ref().is_some_and(is_secret);
            if nested && !secret {
                let or_empty =
                    |value: Option<Value>| value.unwrap_or_else(|| Value::Object(empty.clone()));
                differences(&inner, &or_empty(before), &or_empty(after), changes);
            } else {
                changes.push(change(inner, before.as_ref(), after.as_ref()));
            }
        }
    } else if before != after {
        changes.push(change(path.to_owned(), Some(before), Some(after)));
    }
}

fn change(path: String, before: Option<&Value>, after: Option<&Value>) -> FieldChange {
    let shown = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    FieldChange {
        path,
        before: before.map(shown),
        after: after.map(shown),
        forces_replacement: false,
    }
}

/// Compares labels and tags as recorded with those that the provider reports.
pub(super) fn drifted(
    recorded: &RecordedSpec,
    labels: &BTreeMap<String, String>,
    tags: &[String],
) -> Vec<FieldChange> {
    let worker = &recorded.spec.worker;
    let mut changes = Vec::new();
    if worker.labels != *labels {
        let before = serde_json::to_value(&worker.labels).unwrap_or_default();
        let after = serde_json::to_value(labels).unwrap_or_default();
        differences("worker_config.labels", &before, &after, &mut changes);
    }
    if worker.tags != tags {
        let before = serde_json::to_value(&worker.tags).unwrap_or_default();
        let after = serde_json::to_value(tags).unwrap_or_default();
        differences("worker_config.tags", &before, &after, &mut changes);
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_of_a_pool_is_a_worker_field_or_a_setting() {
        let schema = crate::config::schema::schema();
        let properties = schema["else"]["properties"].as_object().unwrap();
        let settings = [
            "pool_id",
            "fixed_size",
            "provisioning",
            "health_check",
            "update",
            "leases",
            "remediation",
            "guards",
            "protect",
        ];
        for field in properties.keys().filter(|key| *key != "$schema") {
            let groups = [&WORKER_FIELDS[..], &settings[..]];
            let found = groups.iter().filter(|group| group.contains(&field.as_str())).count();
            assert_eq!(
                found, 1,
                "`{field}` must be in exactly one group: what does its change mean?"
            );
        }
    }

    #[test]
    fn maps_are_told_field_by_field_and_lists_as_a_whole() {
        let before = serde_json::json!({ "a": { "x": 1, "y": 2 }, "l": [1], "gone": "v" });
        let after =
            serde_json::json!({ "a": { "x": 1, "y": 3 }, "l": [1, 2], "new": { "k": "v" } });
        let mut changes = Vec::new();
        differences("", &before, &after, &mut changes);
        let told: Vec<String> = changes
            .iter()
            .map(|c| format!("{}: {:?} -> {:?}", c.path, c.before, c.after))
            .collect();
        assert_eq!(
            told,
            [
                r#"a.y: Some("2") -> Some("3")"#,
                r#"gone: Some("v") -> None"#,
                r#"l: Some("[1]") -> Some("[1,2]")"#,
                r#"new.k: None -> Some("v")"#,
            ]
        );
    }

    #[test]
    fn an_unreadable_secret_is_not_a_change() {
        let hashes =
            |hash: Option<&str>| BTreeMap::from([("T".to_owned(), hash.map(str::to_owned))]);
        assert_eq!(changed_secrets(&hashes(Some("a")), &hashes(Some("b"))), ["T"]);
        assert!(changed_secrets(&hashes(Some("a")), &hashes(None)).is_empty());
        assert!(changed_secrets(&hashes(None), &hashes(Some("b"))).is_empty());
        assert!(changed_secrets(&hashes(Some("a")), &hashes(Some("a"))).is_empty());
    }
}
