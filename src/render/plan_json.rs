//! A plan for machines: Terraform's plan JSON, field for field, so that tools that read that read this.
//!
//! What Terraform has no field for is under the extra top-level key `pool`, which its version rule
//! allows: a minor step adds keys, readers ignore those that they do not know.

use serde_json::{Map, Value, json};

use crate::desired::Spec;
use crate::plan::{
    Action, Effects, FieldChange, KeptWorker, Plan, PoolPlan, Reason, ReplaceOrder, Step, Summary,
};
use crate::worker::{Slot, WorkerName};

/// The version of the document, in Terraform's numbering.
pub const FORMAT_VERSION: &str = "1.2";

/// Shows a plan to a machine.
pub fn plan_json(plan: &Plan, effects: &Effects) -> Value {
    let changes: Vec<Value> = plan
        .pools
        .iter()
        .flat_map(|pool| {
            let steps = pool.steps.iter().map(move |step| resource_change(pool, step));
            steps.chain(pool.unchanged.iter().map(move |kept| no_op(pool, *kept)))
        })
        .collect();
    let drift: Vec<Value> = plan.pools.iter().flat_map(resource_drift).collect();
    let planned: Vec<Value> = changes.iter().filter_map(planned_value).collect();
    json!({
        "format_version": FORMAT_VERSION,
        "terraform_version": "1.11.0",
        "planned_values": { "root_module": { "resources": planned } },
        "configuration": configuration(plan),
        "resource_changes": changes,
        "resource_drift": drift,
        "output_changes": {},
        "timestamp": plan.created_at.to_string(),
        "errored": false,
        "applyable": plan.is_applyable(),
        "complete": plan.complete,
        "pool": {
            "version": env!("CARGO_PKG_VERSION"),
            "deployment": plan.deployment,
            "mode": plan.mode,
            "observed": plan.observed,
            "changes": change_summary_json(plan.summary(), "plan"),
            "refusals": plan.refusals,
            "effect_digest": effects.digest(),
            "pools": plan.pools.iter().map(pool_json).collect::<Vec<_>>(),
        },
    })
}

/// What a resource will be, out of what becomes of it; nothing for those that go.
fn planned_value(change: &Value) -> Option<Value> {
    let after = change["change"]["after"].as_object()?;
    let mut planned = change.clone();
    let fields = planned.as_object_mut()?;
    fields.retain(|key, _| {
        ["address", "mode", "type", "name", "index", "provider_name"].contains(&key.as_str())
    });
    fields.insert("schema_version".to_owned(), json!(0));
    fields.insert("values".to_owned(), Value::Object(after.clone()));
    fields.insert("sensitive_values".to_owned(), change["change"]["after_sensitive"].clone());
    Some(planned)
}

/// What the files say, in the form in which Terraform tells its own: a pool is a resource with a count.
fn configuration(plan: &Plan) -> Value {
    let asked =
        plan.pools.iter().filter_map(|pool| Some((pool, pool.config.as_ref()?, pool.spec()?)));
    let resources: Vec<Value> = asked
        .map(|(pool, config, spec)| {
            let worker = serde_json::to_value(&spec.worker).unwrap_or_default();
            let constant =
                |(key, value): (&String, &Value)| (key.clone(), json!({ "constant_value": value }));
            let expressions: Map<String, Value> =
                worker.as_object().into_iter().flatten().map(constant).collect();
            json!({
                "address": format!("pool_worker.{}", pool.pool),
                "mode": "managed",
                "type": "pool_worker",
                "name": pool.pool,
                "provider_config_key": pool.provider,
                "expressions": expressions,
                "schema_version": 0,
                "count_expression": { "constant_value": config.fixed_size },
            })
        })
        .collect();
    let providers: Map<String, Value> = plan
        .pools
        .iter()
        .map(|pool| (pool.provider.clone(), json!({ "name": pool.provider })))
        .filter(|(name, _)| !name.is_empty())
        .collect();
    json!({ "provider_config": providers, "root_module": { "resources": resources } })
}

/// Terraform's `changes` object of a `change_summary` event.
pub(super) fn change_summary_json(summary: Summary, operation: &str) -> Value {
    let Summary { add, change, destroy } = summary;
    json!({ "add": add, "change": change, "import": 0, "remove": destroy, "operation": operation })
}

fn pool_json(pool: &PoolPlan) -> Value {
    json!({
        "pool": pool.pool,
        "provider": pool.provider,
        "serial": pool.serial,
        "removed": pool.config.is_none(),
        "place": pool.place,
        "overridden": pool.overridden,
        "settings": pool.settings.iter().map(field_json).collect::<Vec<_>>(),
        "unchanged": pool.unchanged.len(),
        "waiting": pool.waiting,
        "locked_by": pool.locked_by,
        "budget": pool.budget,
    })
}

fn resource_change(pool: &PoolPlan, step: &Step) -> Value {
    let before = step.before.and_then(|number| pool.specs_before.get(number));
    let old = step.update.as_ref().or(step.delete.first());
    let before = match (step.action, old) {
        (Action::Create | Action::Adopt, _) | (_, None) => Value::Null,
        (_, Some(old)) => values(before, &pool.worker(step.slot, old.generation)),
    };
    let spec = pool.spec();
    let after = match (step.action, &step.create, &step.update) {
        (Action::Delete, _, _) => Value::Null,
        (_, Some(new), _) => values(spec.as_ref(), &pool.worker(step.slot, new.generation)),
        (_, None, Some(old)) => values(spec.as_ref(), &pool.worker(step.slot, old.generation)),
        (_, None, None) => Value::Null,
    };
    let replace_paths: Vec<Value> = step
        .changes
        .iter()
        .filter(|change| change.forces_replacement)
        .map(|change| json!(path(&change.path)))
        .collect();
    let mut change = json!({
        "actions": actions(step.action),
        "before": before,
        "after": after,
        "after_unknown": if step.create.is_some() {
            json!({ "addresses": true, "provider_id": true })
        } else {
            json!({})
        },
        "before_sensitive": {},
        "after_sensitive": sensitive(spec.as_ref()),
    });
    if !replace_paths.is_empty() {
        change["replace_paths"] = Value::Array(replace_paths);
    }
    if let (Action::Adopt, Some(new)) = (step.action, &step.create) {
        change["importing"] = json!({ "id": new.provider_id });
    }
    let mut resource = address(pool, step.slot);
    resource["change"] = change;
    resource["action_reason"] = json!(step.reason.name());
    resource["pool"] = json!({ "wave": step.wave, "create": step.create, "reap": step.reap, "delete": step.delete });
    resource
}

/// A worker that stays: Terraform lists it too.
fn no_op(pool: &PoolPlan, kept: KeptWorker) -> Value {
    let spec = pool.spec();
    let as_it_is = values(spec.as_ref(), &pool.worker(kept.slot, kept.generation));
    let mut resource = address(pool, kept.slot);
    resource["change"] = json!({
        "actions": ["no-op"],
        "before": as_it_is,
        "after": as_it_is,
        "after_unknown": {},
        "before_sensitive": sensitive(spec.as_ref()),
        "after_sensitive": sensitive(spec.as_ref()),
    });
    resource["action_reason"] = json!(Reason::NoOpBecauseCurrent.name());
    resource
}

fn resource_drift(pool: &PoolPlan) -> Vec<Value> {
    let drift = |drift: &crate::plan::Drift| {
        let mut resource = address(pool, drift.worker.slot);
        let gone = drift.changes.is_empty();
        resource["change"] = json!({
            "actions": if gone { ["delete"] } else { ["update"] },
            "before": { "worker": drift.worker.to_string() },
            "after": if gone { Value::Null } else { json!({
                "worker": drift.worker.to_string(),
                "changed": drift.changes.iter().map(field_json).collect::<Vec<_>>(),
            }) },
        });
        resource
    };
    pool.drift.iter().map(drift).collect()
}

fn address(pool: &PoolPlan, slot: Slot) -> Value {
    json!({
        "address": format!("pool_worker.{}[{slot}]", pool.pool),
        "mode": "managed",
        "type": "pool_worker",
        "name": pool.pool,
        "index": slot,
        "provider_name": pool.provider,
    })
}

/// Terraform's names: a replacement is two actions, in order.
fn actions(action: Action) -> &'static [&'static str] {
    match action {
        Action::Create => &["create"],
        Action::Update => &["update"],
        Action::Replace(ReplaceOrder::DestroyFirst) => &["delete", "create"],
        Action::Replace(ReplaceOrder::CreateFirst) => &["create", "delete"],
        Action::Delete => &["delete"],
        Action::Adopt => &["no-op"],
    }
}

/// A worker's values: those of the files, and its name.
fn values(spec: Option<&Spec>, name: &WorkerName) -> Value {
    let worker = spec.and_then(|spec| serde_json::to_value(&spec.worker).ok());
    let mut values: Map<String, Value> =
        worker.and_then(|worker| worker.as_object().cloned()).unwrap_or_default();
    if let Some(spec) = spec {
        values.insert("worker_type".to_owned(), json!(spec.worker_type));
    }
    values.insert("worker".to_owned(), json!(name.to_string()));
    Value::Object(values)
}

/// Marks the variables that are secrets; their values are references anyway.
fn sensitive(spec: Option<&Spec>) -> Value {
    let names = spec.map(Spec::secrets).unwrap_or_default();
    if names.is_empty() {
        return json!({});
    }
    let marks: Map<String, Value> =
        names.keys().map(|name| ((*name).to_owned(), Value::Bool(true))).collect();
    json!({ "environment": marks })
}

/// The path of a field within a worker's values, as Terraform writes paths.
fn path(dotted: &str) -> Vec<&str> {
    dotted.strip_prefix("worker_config.").unwrap_or(dotted).split('.').collect()
}

fn field_json(change: &FieldChange) -> Value {
    json!({ "path": change.path, "before": change.before, "after": change.after })
}
