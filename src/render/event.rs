//! What happens during an apply: lines and counts for people, Terraform's UI events for machines.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::plan_json::change_summary_json;
use super::{Look, action_verb};
use crate::apply::{ApplyEvent, ApplyEventKind};
use crate::plan::{Action, Plan, PlanMode, Summary};
use crate::worker::{Address, PoolId, Slot};

/// Shows an event to a person; `None` for those that the counts tell already.
pub fn event_text(event: &ApplyEvent, look: Look) -> Option<String> {
    let address = Address::of_slot(event.pool.clone(), event.worker.slot);
    match &event.kind {
        ApplyEventKind::Started => None,
        ApplyEventKind::Retrying { attempt, why, delay } => {
            let when =
                if delay.is_zero() { "at once".to_owned() } else { format!("in {delay:.1?}") };
            let told = match attempt {
                Some(attempt) => format!("{address}: attempt {attempt} failed, next {when}: {why}"),
                None => format!("{address}: next try {when}: {why}"),
            };
            Some(look.changed(&told))
        }
        ApplyEventKind::Found { why } => Some(look.changed(&format!(
            "{address}: {} is there, though its create had no answer that counts: {why}",
            event.worker
        ))),
        ApplyEventKind::Progress(what) => Some(format!("{address}: {what}")),
        ApplyEventKind::Draining { holder, until } => {
            Some(format!("{address}: waiting for {holder}, whose lease lasts until {until:.0}"))
        }
        ApplyEventKind::Completed { elapsed, .. } => Some(format!(
            "{address}: {} {} after {elapsed:.1?}",
            event.worker,
            action_verb(event.action)
        )),
        ApplyEventKind::Failed { why, .. } => {
            Some(look.removed(&format!("{address}: failed: {why}")))
        }
    }
}

/// Shows an event to a machine, as one line of Terraform's `apply -json`.
pub fn event_json(event: &ApplyEvent, at: Timestamp) -> Value {
    let (kind, extra, message) = match &event.kind {
        ApplyEventKind::Started => ("apply_start", json!({}), "begins".to_owned()),
        ApplyEventKind::Retrying { attempt, why, delay } => (
            "apply_progress",
            json!({ "attempt": attempt, "error": why, "retry_in_seconds": delay.as_secs_f64() }),
            attempt.map_or_else(
                || format!("tried again: {why}"),
                |attempt| format!("attempt {attempt} failed: {why}"),
            ),
        ),
        ApplyEventKind::Found { why } => (
            "apply_progress",
            json!({ "error": why, "found": true }),
            format!("is there, though its create had no answer that counts: {why}"),
        ),
        ApplyEventKind::Progress(what) => ("apply_progress", json!({}), what.clone()),
        ApplyEventKind::Draining { holder, until } => (
            "apply_progress",
            json!({ "waits_for": "lease", "holder": holder, "until": until.to_string() }),
            format!("waits for the lease of {holder} until {until:.0}"),
        ),
        ApplyEventKind::Completed { elapsed, provider_id } => (
            "apply_complete",
            json!({
                "id_key": "provider_id",
                "id_value": provider_id,
                "elapsed_seconds": elapsed.as_secs_f64(),
            }),
            "is done".to_owned(),
        ),
        ApplyEventKind::Failed { elapsed, why } => (
            "apply_errored",
            json!({ "elapsed_seconds": elapsed.as_secs_f64(), "error": why }),
            format!("failed: {why}"),
        ),
    };
    let address = Address::of_slot(event.pool.clone(), event.worker.slot);
    let mut hook = json!({
        "resource": resource(&event.pool, event.worker.slot),
        "action": action_name(event.action),
        "reason": event.reason.name(),
        "worker": event.worker.to_string(),
    });
    if let (Some(hook), Some(extra)) = (hook.as_object_mut(), extra.as_object()) {
        hook.extend(extra.clone());
    }
    let level = if kind == "apply_errored" { "error" } else { "info" };
    let mut event = line(kind, level, &format!("{address}: {} {message}", event.worker), at);
    event["hook"] = hook;
    event
}

/// Shows a plan as the first lines of Terraform's `apply -json`.
pub fn plan_events(plan: &Plan, at: Timestamp) -> Vec<Value> {
    let own = env!("CARGO_PKG_VERSION");
    let mut version = line("version", "info", &format!("pool {own}"), at);
    version["pool"] = json!(own);
    version["ui"] = json!(super::FORMAT_VERSION);
    let mut lines = vec![version];
    for pool in &plan.pools {
        for step in &pool.steps {
            let address = Address::of_slot(pool.pool.clone(), step.slot);
            let message = format!("{address}: Plan to {}", action_name(step.action));
            let mut planned = line("planned_change", "info", &message, at);
            planned["change"] = json!({
                "resource": resource(&pool.pool, step.slot),
                "action": action_name(step.action),
                "reason": step.reason.name(),
            });
            lines.push(planned);
        }
    }
    let mut summary = line("change_summary", "info", &super::summary_line(plan), at);
    summary["changes"] = change_summary_json(plan.summary(), "plan");
    lines.push(summary);
    lines
}

/// Shows what came of an apply as the last line of Terraform's `apply -json`.
pub fn apply_summary_json(done: Summary, complete: bool, mode: PlanMode, at: Timestamp) -> Value {
    let level = if complete { "info" } else { "error" };
    let mut event = line("change_summary", level, &apply_summary_text(done, complete, mode), at);
    let operation = if mode == PlanMode::Destroy { "destroy" } else { "apply" };
    event["changes"] = change_summary_json(done, operation);
    event
}

/// Says what came of an apply, in Terraform's words.
pub fn apply_summary_text(done: Summary, complete: bool, mode: PlanMode) -> String {
    let Summary { add, change, destroy } = done;
    let how = if complete { "complete!" } else { "incomplete." };
    match mode {
        PlanMode::Destroy => format!("Destroy {how} Resources: {destroy} destroyed."),
        PlanMode::Converge => {
            format!("Apply {how} Resources: {add} added, {change} changed, {destroy} destroyed.")
        }
    }
}

/// Shows errors as Terraform's diagnostic lines.
pub fn diagnostic_events(diagnostics: &[(String, String)], at: Timestamp) -> Vec<Value> {
    let event = |(summary, detail): &(String, String)| {
        let mut event = line("diagnostic", "error", &format!("Error: {summary}"), at);
        event["diagnostic"] = json!({ "severity": "error", "summary": summary, "detail": detail });
        event
    };
    diagnostics.iter().map(event).collect()
}

/// The lines of `apply --json` by their `type`, what each means, and what it has beside what all have.
pub const LINE_TYPES: [(&str, &str, &str); 8] = [
    ("version", "Who speaks; the first line.", "`pool`, `ui`"),
    (
        "planned_change",
        "A step of the plan.",
        "`change.resource`, `change.action`, `change.reason`",
    ),
    (
        "change_summary",
        "The plan in numbers, and in the end what came of it.",
        "`changes.add`, `changes.change`, `changes.remove`, `changes.operation`: `plan`, `apply` or `destroy`",
    ),
    (
        "apply_start",
        "A step begins.",
        "`hook.resource`, `hook.action`, `hook.reason`, `hook.worker`, as in all below",
    ),
    (
        "apply_progress",
        "How it goes: an attempt failed and another one follows, a job is waited for, or the provider says something.",
        "`hook.attempt`, `hook.error`, `hook.retry_in_seconds`; `hook.waits_for`, `hook.holder`, `hook.until`; `hook.found`",
    ),
    ("apply_complete", "A step is done.", "`hook.id_key`, `hook.id_value`, `hook.elapsed_seconds`"),
    ("apply_errored", "A step failed.", "`hook.error`, `hook.elapsed_seconds`"),
    (
        "diagnostic",
        "An error that is not a step's.",
        "`diagnostic.severity`, `diagnostic.summary`, `diagnostic.detail`",
    ),
];

fn line(kind: &str, level: &str, message: &str, at: Timestamp) -> Value {
    let is_known = LINE_TYPES.iter().any(|(known, ..)| *known == kind);
    debug_assert!(is_known, "a line that nobody was told of: {kind}");
    json!({
        "@level": level,
        "@message": message,
        "@module": "pool.ui",
        "@timestamp": at.to_string(),
        "type": kind,
    })
}

fn resource(pool: &PoolId, slot: Slot) -> Value {
    let address = format!("pool_worker.{pool}[{slot}]");
    json!({
        "addr": address,
        "module": "",
        "resource": address,
        "implied_provider": "pool",
        "resource_type": "pool_worker",
        "resource_name": pool,
        "resource_key": slot,
    })
}

fn action_name(action: Action) -> &'static str {
    match action {
        Action::Create => "create",
        Action::Update => "update",
        Action::Replace(_) => "replace",
        Action::Delete => "delete",
        Action::Adopt => "adopt",
    }
}

/// How far an apply is, pool by pool.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    pools: BTreeMap<PoolId, Counts>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    total: usize,
    running: usize,
    waiting: usize,
    done: usize,
    failed: usize,
}

impl Counts {
    /// A step that ends was running, or waiting; which of them it was makes no difference to the counts.
    fn end_one(&mut self) {
        if self.running > 0 {
            self.running -= 1;
        } else {
            self.waiting = self.waiting.saturating_sub(1);
        }
    }
}

impl Progress {
    /// Starts with all that a plan has to do.
    pub fn of(plan: &Plan) -> Self {
        let counts = |total| Counts { total, ..Counts::default() };
        let pools = plan.pools.iter().filter(|pool| !pool.steps.is_empty());
        Self { pools: pools.map(|pool| (pool.pool.clone(), counts(pool.steps.len()))).collect() }
    }

    /// Counts an event.
    pub fn count(&mut self, event: &ApplyEvent) {
        let counts = self.pools.entry(event.pool.clone()).or_default();
        match event.kind {
            ApplyEventKind::Started => counts.running += 1,
            ApplyEventKind::Retrying { .. }
            | ApplyEventKind::Found { .. }
            | ApplyEventKind::Progress(_) => {}
            ApplyEventKind::Draining { .. } => {
                counts.running = counts.running.saturating_sub(1);
                counts.waiting += 1;
            }
            ApplyEventKind::Completed { .. } => {
                counts.end_one();
                counts.done += 1;
            }
            ApplyEventKind::Failed { .. } => {
                counts.end_one();
                counts.failed += 1;
            }
        }
    }

    /// Says how far it is, after `elapsed`; with an estimate once some steps are through.
    pub fn text(&self, elapsed: Duration) -> String {
        let pools: Vec<String> = self
            .pools
            .iter()
            .map(|(pool, counts)| {
                let Counts { total, running, waiting, done, failed } = counts;
                let failed = if *failed > 0 { format!(", {failed} failed") } else { String::new() };
                let waits = match waiting {
                    0 => String::new(),
                    n => format!(", {n} waiting for a lease to end"),
                };
                format!("{pool} {done}/{total} ({running} running{waits}{failed})")
            })
            .collect();
        let total: usize = self.pools.values().map(|counts| counts.total).sum();
        let through: usize = self.pools.values().map(|counts| counts.done + counts.failed).sum();
        // Nobody knows when a job gives its worker back.
        let waits = self.pools.values().any(|counts| counts.waiting > 0);
        let estimate = if waits || through == 0 || through >= total {
            String::new()
        } else {
            let per_step = elapsed.as_secs_f64() / count(through);
            let left = Duration::from_secs_f64(per_step * count(total - through));
            format!(", about {left:.0?} left")
        };
        format!("{} [{elapsed:.0?} elapsed{estimate}]", pools.join(", "))
    }
}

fn count(number: usize) -> f64 {
    f64::from(u32::try_from(number).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Reason;
    use crate::worker::{Generation, WorkerName};

    fn event(kind: ApplyEventKind) -> ApplyEvent {
        let pool: PoolId = "ci".parse().unwrap();
        let worker = WorkerName::new(pool.clone(), Slot(3), Generation(1));
        ApplyEvent {
            pool,
            worker,
            action: Action::Create,
            reason: Reason::CreateBecauseEmpty,
            kind,
        }
    }

    #[test]
    fn progress_counts_and_estimates() {
        let mut progress = Progress::default();
        progress.pools.insert("ci".parse().unwrap(), Counts { total: 4, ..Counts::default() });
        progress.count(&event(ApplyEventKind::Started));
        assert_eq!(progress.text(Duration::from_secs(1)), "ci 0/4 (1 running) [1s elapsed]");
        let elapsed = Duration::from_secs(2);
        progress.count(&event(ApplyEventKind::Completed { elapsed, provider_id: None }));
        assert_eq!(
            progress.text(Duration::from_secs(2)),
            "ci 1/4 (0 running) [2s elapsed, about 6s left]"
        );
    }

    #[test]
    fn events_have_terraforms_names() {
        let elapsed = Duration::from_millis(1500);
        let done = event(ApplyEventKind::Completed { elapsed, provider_id: Some("x".into()) });
        let json = event_json(&done, jiff::Timestamp::UNIX_EPOCH);
        assert_eq!(json["type"], "apply_complete");
        assert_eq!(json["hook"]["resource"]["addr"], "pool_worker.ci[3]");
        assert_eq!(json["hook"]["action"], "create");
        assert_eq!(json["hook"]["id_value"], "x");
        assert_eq!(json["hook"]["elapsed_seconds"], 1.5);
    }
}
