//! What a plan comes to: what is approved in a review, apart from when, in which order and for which past it was made.
//!
//! Input: a plan. Output: its effects, their digest, and how two of them differ. Two plans have the same digest when
//! they do the same to the same slots with the same configs. Leases do not count (nor workers that they used up), nor
//! times, generations, reasons and the files that asked for it: all these may be others by the time a change is merged.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::types::{Action, Plan, PoolPlan, Reason, Step};
use crate::worker::{PoolId, Slot};

/// What digests of this version begin with: a later one may count other things.
const VERSION: &str = "e1-";
/// How much of the hash is kept, in bytes.
const LENGTH: usize = 16;

/// What a plan does, by pool; pools to which it does nothing are left out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Effects(BTreeMap<PoolId, PoolEffects>);

/// What is done to one pool.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct PoolEffects {
    /// By the action's name, the slots that it is done to.
    slots: BTreeMap<String, BTreeSet<Slot>>,
    /// Whether the config is recorded: a run that is narrowed to slots does not.
    records: bool,
    /// Where new workers come from, and how that is reached.
    provider: Value,
    /// The config that is recorded, and that new workers are made by; null when the pool goes.
    config: Value,
}

/// One thing that is not as it was approved.
#[derive(Debug, Clone, PartialEq)]
pub enum Difference {
    /// Other slots.
    Slots {
        /// The pool.
        pool: PoolId,
        /// What is done to them.
        action: String,
        /// Those that were approved.
        approved: BTreeSet<Slot>,
        /// Those of the plan that would be carried out now.
        now: BTreeSet<Slot>,
    },
    /// Another value of the config, or of the provider's.
    Value {
        /// The pool.
        pool: PoolId,
        /// Where in it, dotted.
        path: String,
        /// What was approved.
        approved: Value,
        /// What it is now.
        now: Value,
    },
}

impl Effects {
    /// Returns the effects of a plan that is made `here`: folders below that are told from there.
    pub fn of(plan: &Plan, here: &Path) -> Self {
        let pools = plan.pools.iter().map(|pool| (pool.pool.clone(), PoolEffects::of(pool, here)));
        Self(pools.filter_map(|(pool, effects)| Some((pool, effects?))).collect())
    }

    /// Returns whether nothing is done.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns what to approve.
    pub fn digest(&self) -> String {
        // Maps are sorted and numbers are whole: there is one text of it.
        let hash = Sha256::digest(sorted(to_value(&self.0)).to_string());
        let hex: String = hash[..LENGTH].iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{VERSION}{hex}")
    }

    /// Returns how `now` differs from these, which were approved.
    pub fn differences(&self, now: &Self) -> Vec<Difference> {
        let pools: BTreeSet<&PoolId> = self.0.keys().chain(now.0.keys()).collect();
        let mut differences = Vec::new();
        let nothing = PoolEffects::default();
        for pool in pools {
            let (approved, now) = (self.0.get(pool), now.0.get(pool));
            let both = approved.is_some() && now.is_some();
            let (approved, now) = (approved.unwrap_or(&nothing), now.unwrap_or(&nothing));
            let actions: BTreeSet<&String> =
                approved.slots.keys().chain(now.slots.keys()).collect();
            for action in actions {
                let of = |effects: &PoolEffects| effects.slots.get(action).cloned();
                let (approved, now) =
                    (of(approved).unwrap_or_default(), of(now).unwrap_or_default());
                if approved != now {
                    let (pool, action) = (pool.clone(), action.clone());
                    differences.push(Difference::Slots { pool, action, approved, now });
                }
            }
            // What is not there at all has no config to differ; only settings may change, too.
            if both || (approved.slots.is_empty() && now.slots.is_empty()) {
                let mut tell = |path: &str, approved: &Value, now: &Value| {
                    differences.push(Difference::Value {
                        pool: pool.clone(),
                        path: path.to_owned(),
                        approved: approved.clone(),
                        now: now.clone(),
                    });
                };
                compare("(recorded)", &approved.records.into(), &now.records.into(), &mut tell);
                compare("", &approved.config, &now.config, &mut tell);
                compare("provider", &approved.provider, &now.provider, &mut tell);
            }
        }
        differences
    }
}

impl PoolEffects {
    fn of(pool: &PoolPlan, here: &Path) -> Option<Self> {
        let mut slots: BTreeMap<String, BTreeSet<Slot>> = BTreeMap::new();
        for step in pool.steps.iter().filter(|step| counts(step)) {
            slots.entry(action(step).to_owned()).or_default().insert(step.slot);
        }
        let provider = pool.provider_config.as_ref().map(|config| {
            let mut config = to_value(config);
            from_here(&mut config, here);
            // Whose account it is, only some jobs can ask: the one that plans may have no way to STS.
            drop(config.as_object_mut().and_then(|config| config.remove("account")));
            serde_json::json!({ "name": pool.provider, "config": config })
        });
        // Where a checkout lies is no effect: a pipeline has another one for each job.
        let moved = format!("providers.{}.directory", pool.provider);
        let is_here = || provider.as_ref().is_some_and(|own| own["config"]["directory"].is_null());
        let account = format!("providers.{}.account", pool.provider);
        let asks = pool
            .changed
            .iter()
            .any(|change| change.path != account && (change.path != moved || !is_here()));
        let records = pool.records_config && asks;
        if slots.is_empty() && !records {
            return None;
        }
        let config = pool.config.as_ref().map(to_value);
        let (provider, config) = (provider.unwrap_or_default(), config.unwrap_or_default());
        Some(Self { slots, records, provider, config })
    }
}

/// Tells the folder of a provider's executable from `here`; `here` itself goes without saying.
fn from_here(config: &mut Value, here: &Path) {
    let Some(fields) = config.as_object_mut() else { return };
    let folder = fields.get("directory").and_then(Value::as_str).map(Path::new);
    let Some(inner) = folder.and_then(|folder| folder.strip_prefix(here).ok()) else { return };
    let inner = inner.display().to_string();
    if inner.is_empty() {
        fields.remove("directory");
    } else {
        fields.insert("directory".to_owned(), Value::from(inner));
    }
}

/// What a job's end made necessary was not in question, unless another worker comes than was there.
fn counts(step: &Step) -> bool {
    step.reason != Reason::ReplaceBecauseRetired || !step.changes.is_empty()
}

/// Configs and effects are maps, lists, texts and whole numbers.
fn to_value(value: &impl Serialize) -> Value {
    serde_json::to_value(value).expect("configs can be written as JSON")
}

fn action(step: &Step) -> &'static str {
    match step.action {
        Action::Create => "create",
        Action::Update => "update",
        Action::Replace(_) => "replace",
        Action::Delete => "delete",
        Action::Adopt => "adopt",
    }
}

/// Returns the value with the keys of every map in order: they keep the order of the file otherwise.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields: BTreeMap<String, Value> = fields.into_iter().collect();
            fields.into_iter().map(|(key, inner)| (key, sorted(inner))).collect()
        }
        Value::Array(items) => items.into_iter().map(sorted).collect(),
        other => other,
    }
}

/// Tells every place at which two values differ.
fn compare(path: &str, one: &Value, other: &Value, tell: &mut impl FnMut(&str, &Value, &Value)) {
    match (one, other) {
        (Value::Object(ours), Value::Object(theirs)) => {
            let keys: BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
            for key in keys {
                let inner = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                let of = |fields: &serde_json::Map<String, Value>| fields.get(key).cloned();
                compare(
                    &inner,
                    &of(ours).unwrap_or_default(),
                    &of(theirs).unwrap_or_default(),
                    tell,
                );
            }
        }
        _ if one != other => tell(path, one, other),
        _ => {}
    }
}
