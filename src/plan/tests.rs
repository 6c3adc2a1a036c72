//! Decisions of the planner as tables: what is desired, recorded and observed, and the steps.
//!
//! A recorded worker is `slot.generation phase image [gone] [open:create|update|delete] [failure:code]
//! [as:image] [leased] [drained] [retired:why] [until:time]`; it is observed unless it is `gone`, as another image when it is `as:image`. `stray slot.generation image` is observed and not recorded.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pool_provider::{
    About, Consistency, Description, Idempotency, InPlaceField, ObservedStatus, ObservedWorker,
    Probes,
};
use proptest::prelude::*;

use super::*;
use crate::config::{
    CountOrPercent, HealthCheckKind, LoadedPool, ProviderConfig, StaticPoolConfig,
};
use crate::desired::Spec;
use crate::worker::{Generation, Phase, Slot, WorkerName};

const NOW: &str = "2026-01-01T12:00:00Z";

pub(super) struct Case {
    pub(super) size: u32,
    pub(super) image: &'static str,
    pub(super) config: fn(&mut StaticPoolConfig),
    pub(super) description: fn(&mut Description),
    pub(super) options: PlanOptions,
    pub(super) complete: bool,
    pub(super) refresh: bool,
}

impl Default for Case {
    fn default() -> Self {
        Self {
            size: 3,
            image: "a",
            config: |_| {},
            description: |_| {},
            options: PlanOptions::default(),
            complete: true,
            refresh: true,
        }
    }
}

fn config(size: u32, image: &str) -> StaticPoolConfig {
    let text = serde_json::json!({
        "pool_id": "ci", "worker_type": "vm", "provider": "sim", "fixed_size": size,
        "worker_config": { "image": image, "cpu_cores": 1, "memory_mb": 1 },
    });
    serde_json::from_value(text).unwrap()
}

fn spec(image: &str) -> Spec {
    let config = config(0, image);
    Spec::of(&config, None)
}

fn description() -> Description {
    Description {
        kind: "sim".into(),
        worker_types: vec!["vm".into()],
        idempotency: Idempotency::Token,
        consistency: Consistency::Strong,
        settle: Duration::ZERO,
        slowest_delete: Duration::ZERO,
        slowest_look: Duration::ZERO,
        in_place: vec![InPlaceField::Labels, InPlaceField::Tags],
        one_host: false,
        tells_ends: false,
        probes: Probes::Worker,
        resets: false,
        capacity: None,
        about: About::default(),
    }
}

fn numbers(text: &str) -> (Slot, Generation) {
    let (slot, generation) = text.split_once('.').unwrap();
    (Slot(slot.parse().unwrap()), Generation(generation.parse().unwrap()))
}

fn observed(slot: Slot, generation: Generation, image: &str) -> ObservedWorker {
    ObservedWorker {
        provider_id: format!("id-{slot}-{generation}"),
        name: WorkerName::new("ci".parse().unwrap(), slot, generation),
        attempt: 1,
        operation: 1,
        spec_hash: spec(image).hash(),
        status: ObservedStatus::Running,
        labels: BTreeMap::new(),
        tags: Vec::new(),
        addresses: Vec::new(),
        attributes: BTreeMap::new(),
    }
}

fn recorded(line: &str) -> (RecordedWorker, bool) {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (slot, generation) = numbers(words[0]);
    let value = |key: &str| words.iter().find_map(|word| word.strip_prefix(key));
    let recorded = RecordedSpec {
        spec: spec(words[2]),
        hash: spec(words[2]).hash(),
        secrets: BTreeMap::new(),
    };
    let operation = value("open:").map(|kind| OpenOperation {
        id: 1,
        kind: match kind {
            "create" => OperationKind::Create,
            "update" => OperationKind::Update,
            _ => OperationKind::Delete,
        },
        state: OperationState::Unknown,
        attempt: 1,
        sent_at: NOW.parse().unwrap(),
    });
    let worker = RecordedWorker {
        slot,
        generation,
        phase: words[1].parse::<Phase>().unwrap(),
        phase_since: "2026-01-01T00:00:00Z".parse().unwrap(),
        provider: "sim".into(),
        provider_id: Some(format!("id-{slot}-{generation}")),
        attempt: 1,
        spec: Arc::new(recorded),
        addresses: Vec::new(),
        attributes: BTreeMap::new(),
        failure: value("failure:").map(|code| Failure { code: code.into(), message: "m".into() }),
        operation,
        standing: Standing {
            lease: words.contains(&"leased").then(|| RecordedLease {
                id: "1-00000000".parse().unwrap(),
                holder: "h".into(),
                expires_at: NOW.parse().unwrap(),
            }),
            retired: value("retired:").map(str::to_owned),
            cordoned: words.contains(&"drained"),
            draining: words.contains(&"drained"),
            drained_by_update: words.contains(&"drained"),
            deadline: value("until:").map(|at| at.parse().unwrap()),
            ..Standing::default()
        },
    };
    (worker, !words.contains(&"gone"))
}

impl Case {
    pub(super) fn plan(&self, lines: &str) -> Plan {
        self.plan_with(lines, &self.config, &self.description)
    }

    fn plan_with(
        &self,
        lines: &str,
        edit_config: &dyn Fn(&mut StaticPoolConfig),
        edit_description: &dyn Fn(&mut Description),
    ) -> Plan {
        let mut workers = Vec::new();
        let mut seen = Vec::new();
        let lines = lines.lines().map(str::trim).filter(|line| !line.is_empty());
        for line in lines {
            if let Some(stray) = line.strip_prefix("stray ") {
                let (name, image) = stray.split_once(' ').unwrap();
                let (slot, generation) = numbers(name);
                let provider_id = format!("stray-{}", seen.len());
                seen.push(ObservedWorker { provider_id, ..observed(slot, generation, image) });
                continue;
            }
            let (worker, is_there) = recorded(line);
            if is_there {
                let rebuilt = line.split_whitespace().find_map(|word| word.strip_prefix("as:"));
                let image = worker.spec.spec.worker.image.clone();
                seen.push(observed(worker.slot, worker.generation, rebuilt.unwrap_or(&image)));
            }
            workers.push(worker);
        }
        workers.sort_by_key(|worker| (worker.slot, worker.generation));
        let mut config = config(self.size, self.image);
        edit_config(&mut config);
        let applied = AppliedConfig {
            config: config.clone(),
            provider: None,
            at: NOW.parse().unwrap(),
            origin: "f".into(),
        };
        let pool = RecordedPool {
            id: "ci".parse().unwrap(),
            serial: 7,
            applied: Some(applied),
            last_generations: workers.iter().map(|w| (w.slot, w.generation)).collect(),
            workers,
            tombstones: BTreeMap::new(),
            locked_by: None,
        };
        let desired = LoadedPool {
            config,
            provider: ProviderConfig::implicit("sim"),
            place: "f:1:1".into(),
            origins: BTreeMap::new(),
        };
        let desired = DesiredPool::new(&desired, BTreeMap::new());
        let mut description = description();
        edit_description(&mut description);
        let observation = if self.refresh {
            Observation::Listed(Listed { description, workers: seen, complete: self.complete })
        } else {
            Observation::NotAsked(description)
        };
        let plan = plan(&PlanInput {
            deployment: None,
            desired: &[desired],
            recorded: &[pool],
            observed: &BTreeMap::from([("sim".to_owned(), observation)]),
            options: &self.options,
            now: NOW.parse().unwrap(),
        });
        assert_eq!(check::check(&plan), [], "the plan keeps its own promises");
        plan
    }

    /// Plans, and compares the steps: `wave action slot reason [+new] [x reaped] [-old]`.
    #[track_caller]
    fn check(&self, recorded: &str, expected: &str) {
        let plan = self.plan(recorded);
        let mut lines = Vec::new();
        for step in plan.pools.iter().flat_map(|pool| &pool.steps) {
            lines.push(line(step));
        }
        for waiting in plan.pools.iter().flat_map(|pool| &pool.waiting) {
            lines.push(format!("waiting {}", waiting.worker));
        }
        let expected: Vec<&str> =
            expected.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        assert_eq!(lines, expected);
    }
}

fn line(step: &Step) -> String {
    let action = match step.action {
        Action::Create => "create",
        Action::Update => "update",
        Action::Replace(ReplaceOrder::CreateFirst) => "replace+-",
        Action::Replace(ReplaceOrder::DestroyFirst) => "replace-+",
        Action::Delete => "delete",
        Action::Adopt => "adopt",
    };
    let reason = serde_json::to_value(step.reason).unwrap();
    let mut line = format!("{} {action} {} {}", step.wave, step.slot, reason.as_str().unwrap());
    if let Some(new) = &step.create {
        line.push_str(&format!(" +{}", new.generation));
        if new.origin != NewWorkerOrigin::Fresh {
            let origin = serde_json::to_value(new.origin).unwrap();
            line.push_str(&format!("({})", origin.as_str().unwrap()));
        }
    }
    for old in &step.reap {
        line.push_str(&format!(" x{}", old.generation));
    }
    for old in &step.delete {
        line.push_str(&format!(" -{}", old.generation));
    }
    if step.after_job {
        line.push_str(" after its job");
    }
    line
}

#[test]
fn an_empty_pool_is_filled_from_slot_0_in_one_wave() {
    Case::default().check(
        "",
        "1 create 0 create_because_empty +1
         1 create 1 create_because_empty +1
         1 create 2 create_because_empty +1",
    );
}

#[test]
fn a_pool_as_it_should_be_needs_nothing() {
    let plan = Case::default().plan("0.1 ready a\n1.1 ready a\n2.4 ready a");
    assert!(plan.is_empty() && plan.complete);
    let kept =
        |slot, generation| KeptWorker { slot: Slot(slot), generation: Generation(generation) };
    assert_eq!(plan.pools[0].unchanged, [kept(0, 1), kept(1, 1), kept(2, 4)]);
}

#[test]
fn gaps_are_filled_lowest_first_and_generations_go_on() {
    Case { size: 4, ..Case::default() }.check(
        "1.3 ready a\n5.1 ready a",
        "1 create 0 create_because_empty +1
         1 create 2 create_because_empty +1",
    );
}

#[test]
fn a_missing_worker_is_created_anew_and_its_record_goes() {
    Case::default().check(
        "0.1 ready a\n1.1 ready a gone\n2.1 ready a",
        "1 create 1 create_because_missing +2 -1",
    );
}

#[test]
fn absence_from_an_incomplete_listing_proves_nothing() {
    Case { complete: false, ..Case::default() }
        .check("0.1 ready a\n1.1 ready a gone\n2.1 ready a", "");
}

#[test]
fn without_a_listing_what_is_recorded_is_taken_for_real() {
    Case { refresh: false, ..Case::default() }.check(
        "0.1 ready a\n1.1 ready a gone\n2.1 ready b",
        "1 replace+- 2 replace_because_spec_changed +2 -1",
    );
}

#[test]
fn a_young_worker_may_be_hidden_from_an_eventual_listing() {
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    let description =
        |d: &mut Description| (d.consistency, d.settle) = (Consistency::Eventual, DAY);
    let eventual = Case { description, ..Case::default() };
    eventual.check("0.1 ready a\n1.1 ready a gone\n2.1 ready a", "");
    // A strong listing shows every call that has answered, however long one that has not may take.
    let strong = Case { description: |d| d.settle = DAY, ..Case::default() };
    strong.check(
        "0.1 ready a\n1.1 ready a gone\n2.1 ready a",
        "1 create 1 create_because_missing +2 -1",
    );
}

#[test]
fn a_worker_that_is_being_cleaned_is_not_missing_before_its_time_is_over() {
    let case = Case { size: 1, ..Case::default() };
    case.check("0.1 recycling a gone until:2026-01-01T12:01:00Z", "");
    let over = "0.1 recycling a gone until:2026-01-01T11:59:00Z";
    case.check(over, "1 create 0 create_because_missing +2 -1");
}

#[test]
fn a_changed_image_replaces_one_at_a_time_new_before_old() {
    Case { image: "b", ..Case::default() }.check(
        "0.1 ready a\n1.1 ready a\n2.1 ready b",
        "1 replace+- 0 replace_because_spec_changed +2 -1
         2 replace+- 1 replace_because_spec_changed +2 -1",
    );
}

#[test]
fn batches_take_max_surge_and_max_unavailable_together() {
    let case = Case {
        size: 5,
        image: "b",
        config: |config| {
            config.update.max_surge = CountOrPercent::Count(2);
            config.update.max_unavailable = CountOrPercent::Count(1);
        },
        ..Case::default()
    };
    case.check(
        "0.1 ready a\n1.1 ready a\n2.1 ready a\n3.1 ready a\n4.1 ready a",
        "1 replace+- 0 replace_because_spec_changed +2 -1
         1 replace+- 1 replace_because_spec_changed +2 -1
         1 replace-+ 2 replace_because_spec_changed +2 -1
         2 replace+- 3 replace_because_spec_changed +2 -1
         2 replace+- 4 replace_because_spec_changed +2 -1",
    );
}

#[test]
fn a_full_provider_is_replaced_destroy_first_one_at_a_time() {
    let full = Case { image: "b", description: |d| d.capacity = Some(3), ..Case::default() };
    full.check(
        "0.1 ready a\n1.1 ready a\n2.1 ready b",
        "1 replace-+ 0 replace_because_spec_changed +2 -1
         2 replace-+ 1 replace_because_spec_changed +2 -1",
    );
}

#[test]
fn on_one_host_a_slots_port_is_free_before_its_new_worker_comes() {
    let on_one_host = Case {
        image: "b",
        config: |config| {
            config.health_check.kind = HealthCheckKind::Http;
            config.health_check.port = Some(80);
        },
        description: |d| d.one_host = true,
        ..Case::default()
    };
    on_one_host.check(
        "0.1 ready a\n1.1 ready a\n2.1 ready b",
        "1 replace-+ 0 replace_because_spec_changed +2 -1
         2 replace-+ 1 replace_because_spec_changed +2 -1",
    );
}

#[test]
fn a_provider_that_refused_for_capacity_is_replaced_destroy_first() {
    Case { size: 2, image: "b", ..Case::default() }.check(
        "0.1 ready a\n0.2 failed b gone failure:out_of_capacity\n1.1 ready b",
        "1 replace-+ 0 replace_because_spec_changed +3 x2 -1",
    );
}

#[test]
fn scale_in_takes_failed_then_unready_then_outdated_then_the_highest() {
    let workers =
        "0.1 ready a\n1.1 failed a\n2.1 unhealthy a\n3.1 ready b\n4.1 ready a\n5.1 ready a";
    let kept = |size| {
        let case = Case { size, ..Case::default() };
        let plan = case.plan(workers);
        let gone = plan.pools[0].steps.iter().filter(|step| step.action == Action::Delete);
        gone.map(|step| step.slot.0).collect::<Vec<_>>()
    };
    assert_eq!(kept(5), [1]);
    assert_eq!(kept(4), [1, 2]);
    assert_eq!(kept(3), [1, 2, 3]);
    assert_eq!(kept(2), [1, 2, 3, 5]);
    assert_eq!(kept(0), [0, 1, 2, 3, 4, 5]);
}

#[test]
fn scale_in_goes_on_with_those_that_were_given_up_already() {
    Case { size: 1, ..Case::default() }.check(
        "0.1 ready a \n 1.1 ready a leased drained \n 2.1 ready a drained",
        "1 delete 2 delete_because_scale_in -1
         2 delete 1 delete_because_scale_in -1",
    );
}

#[test]
fn a_surge_that_a_job_still_needs_is_not_made_again() {
    Case::default().check(
        "0.1 ready b leased \n 0.2 ready a \n 1.1 ready b leased \n 2.1 ready b leased",
        "1 replace+- 1 replace_because_spec_changed +2 -1 after its job
         2 replace+- 2 replace_because_spec_changed +2 -1 after its job
         3 delete 0 delete_because_superseded -1",
    );
}

#[test]
fn scale_in_comes_before_rolling_replacement() {
    Case { size: 1, image: "b", ..Case::default() }.check(
        "0.1 ready a\n1.1 ready a",
        "1 delete 1 delete_because_scale_in -1
         2 replace+- 0 replace_because_spec_changed +2 -1",
    );
}

#[test]
fn labels_and_tags_change_in_place_where_the_provider_can() {
    let labelled = |config: &mut StaticPoolConfig| {
        config.worker_config.labels.insert("os".into(), "linux".into());
    };
    let case = Case { size: 1, config: labelled, ..Case::default() };
    case.check("0.1 ready a", "1 update 0 update_because_changed");
    let cannot = Case { description: |d| d.in_place.clear(), ..case };
    cannot.check("0.1 ready a", "1 replace+- 0 replace_because_spec_changed +2 -1");
}

#[test]
fn interrupted_creates_are_finished_by_what_the_provider_shows() {
    let case = Case { size: 1, ..Case::default() };
    case.check("0.1 provisioning a open:create", "1 adopt 0 adopt_interrupted +1(interrupted)");
    case.check(
        "0.1 provisioning a gone open:create",
        "1 create 0 create_because_interrupted +1(resend)",
    );
    case.check("0.1 verifying a", "1 adopt 0 adopt_interrupted +1(unverified)");
}

#[test]
fn without_a_token_an_interrupted_create_waits_until_its_effect_must_show() {
    let no_token = |settle| Case { size: 1, description: settle, ..Case::default() };
    let late = no_token(|d| {
        d.idempotency = Idempotency::None;
        d.settle = Duration::from_secs(60);
    });
    late.check("0.1 provisioning a gone open:create", "waiting ci-0-1");
    let settled = no_token(|d| d.idempotency = Idempotency::None);
    settled.check(
        "0.1 provisioning a gone open:create",
        "1 create 0 create_because_interrupted +1(resend)",
    );
    let blind = Case { complete: false, ..settled };
    blind.check("0.1 provisioning a gone open:create", "waiting ci-0-1");
}

#[test]
fn an_interrupted_replacement_goes_on_where_it_stopped() {
    let case = Case { size: 1, image: "b", ..Case::default() };
    case.check(
        "0.1 ready a\n0.2 provisioning b open:create",
        "1 replace+- 0 replace_because_interrupted +2(interrupted) -1",
    );
    case.check("0.1 ready a\n0.2 ready b", "1 delete 0 delete_because_superseded -1");
    case.check(
        "0.1 deleting a open:delete\n0.2 ready b",
        "1 delete 0 delete_because_interrupted -1",
    );
    case.check("0.1 deleting a open:delete", "1 replace-+ 0 replace_because_interrupted +2 -1");
}

#[test]
fn a_create_that_is_no_longer_wanted_is_reaped_first() {
    Case { size: 1, image: "c", ..Case::default() }.check(
        "0.1 ready a\n0.2 provisioning b gone open:create",
        "1 replace+- 0 replace_because_spec_changed +3 x2 -1",
    );
}

#[test]
fn failed_and_unhealthy_workers_are_replaced_at_once_and_not_in_batches() {
    Case::default().check(
        "0.1 failed a\n1.1 unhealthy a\n2.1 failed a gone",
        "1 replace-+ 0 replace_because_failed +2 -1
         1 replace-+ 1 replace_because_unhealthy +2 -1
         1 create 2 create_because_failed +2 -1",
    );
}

#[test]
fn strays_are_adopted_when_they_fit_and_deleted_when_they_do_not() {
    let case = Case { size: 1, ..Case::default() };
    case.check("stray 0.1 a", "1 adopt 0 adopt_orphan +1(orphan)");
    case.check(
        "stray 0.1 b",
        "1 create 0 create_because_empty +2
         2 delete 0 delete_because_unknown -1",
    );
    case.check("0.2 ready a\nstray 0.1 a", "1 delete 0 delete_because_orphan -1");
    case.check("0.1 ready a\nstray 7.1 b", "1 delete 7 delete_because_unknown -1");
}

#[test]
fn no_stray_costs_a_worker_that_serves_its_place() {
    let case = Case { size: 1, ..Case::default() };
    case.check("3.1 ready a\nstray 0.1 a", "1 delete 0 delete_because_unknown -1");
    case.check("3.1 ready a\nstray 0.1 b", "1 delete 0 delete_because_unknown -1");
}

#[test]
fn workers_that_this_state_never_created_are_guarded_like_any_other() {
    let limited = |config: &mut StaticPoolConfig| {
        config.guards.max_destroy = Some(CountOrPercent::Count(1));
    };
    let case = Case { size: 1, config: limited, ..Case::default() };
    let old_state = case.plan("0.1 ready a\nstray 1.1 b\nstray 2.1 b\nstray 3.1 b");
    assert_eq!(old_state.refusals.len(), 1, "an old state must not delete a fleet");
    let left_behind = case.plan("0.2 ready a\nstray 0.1 a\nstray 0.1 b\nstray 0.2 a");
    assert_eq!(left_behind.refusals, []);
}

#[test]
fn what_may_still_land_is_not_deleted_before_it_has_or_cannot_any_more() {
    let late = |size| Case {
        size,
        image: "b",
        description: |d| d.settle = Duration::from_secs(60),
        ..Case::default()
    };
    late(0).check("0.1 provisioning a gone open:create", "waiting ci-0-1");
    late(1).check("0.1 provisioning a gone open:create", "waiting ci-0-1");
    late(1).check("0.1 ready a\n0.2 provisioning c gone open:create", "waiting ci-0-2");
    late(1).check(
        "0.1 provisioning b gone open:create",
        "1 create 0 create_because_interrupted +1(resend)",
    );
    let blind = Case { size: 0, complete: false, ..Case::default() };
    blind.check("0.1 provisioning a gone open:create", "waiting ci-0-1");
}

#[test]
fn a_worker_that_is_on_its_way_out_does_not_serve() {
    let mut workers = recorded("0.1 ready a").0;
    let mut seen = observed(Slot(0), Generation(1), "a");
    seen.status = ObservedStatus::Stopping;
    workers.operation = None;
    let now = NOW.parse().unwrap();
    assert_eq!(judge::judge(&workers, Some(&seen), None, now), judge::Condition::Leaving);
}

#[test]
fn a_replacement_can_be_asked_for() {
    let options = PlanOptions { replace: vec!["ci[1]".parse().unwrap()], ..PlanOptions::default() };
    Case { options, ..Case::default() }
        .check("0.1 ready a\n1.1 ready a\n2.1 ready a", "1 replace+- 1 replace_by_request +2 -1");
}

#[test]
fn a_target_narrows_the_run() {
    let targeted = |address: &str| Case {
        image: "b",
        options: PlanOptions { targets: vec![address.parse().unwrap()], ..PlanOptions::default() },
        ..Case::default()
    };
    let workers = "0.1 ready a\n1.1 ready a\n2.1 ready a";
    targeted("ci[2]").check(workers, "1 replace+- 2 replace_because_spec_changed +2 -1");
    assert!(!targeted("ci[2]").plan(workers).pools[0].records_config);
    assert_eq!(targeted("ci").plan(workers).pools[0].steps.len(), 3);
    assert!(targeted("other").plan(workers).pools.is_empty());
}

#[test]
fn a_worker_rebuilt_behind_our_back_is_replaced() {
    Case { size: 1, ..Case::default() }
        .check("0.1 ready a as:b", "1 replace+- 0 replace_because_drift +2 -1");
}

#[test]
fn of_two_objects_of_one_name_the_one_that_is_not_recorded_is_a_stray() {
    Case { size: 1, ..Case::default() }
        .check("0.1 ready a\nstray 0.1 a", "1 delete 0 delete_because_orphan -1");
}

fn destroy() -> PlanOptions {
    PlanOptions { mode: PlanMode::Destroy, ..PlanOptions::default() }
}

#[test]
fn a_protected_pool_is_neither_removed_nor_shrunk_to_nothing() {
    let refused = |size, options| {
        let protect = |config: &mut StaticPoolConfig| config.protect = true;
        let case = Case { size, config: protect, options, ..Case::default() };
        case.plan("0.1 ready a\n1.1 ready a").refusals
    };
    let protect = Refusal::Protect { pool: "ci".parse().unwrap() };
    assert_eq!(refused(3, destroy()), std::slice::from_ref(&protect));
    assert_eq!(refused(0, PlanOptions::default()), [protect]);
    assert_eq!(refused(1, PlanOptions::default()), []);
}

#[test]
fn max_destroy_counts_what_goes_for_good_and_not_what_a_run_left_behind() {
    let limited = |config: &mut StaticPoolConfig| {
        config.guards.max_destroy = Some(CountOrPercent::Count(1));
    };
    let refusals = |size, image, options: PlanOptions, workers: &str| {
        Case { size, image, config: limited, options, ..Case::default() }.plan(workers).refusals
    };
    let four = "0.1 ready a\n1.1 ready a\n2.1 ready a\n3.1 ready a";
    let two = Refusal::MaxDestroy { pool: "ci".parse().unwrap(), planned: 2, limit: 1 };
    assert_eq!(refusals(3, "a", PlanOptions::default(), four), []);
    assert_eq!(refusals(2, "a", PlanOptions::default(), four), [two]);
    assert_eq!(refusals(4, "b", PlanOptions::default(), four), [], "a replacement is no loss");
    let left = "0.1 ready a\n0.2 ready a\n1.1 ready a\n1.2 ready a";
    assert_eq!(refusals(2, "a", PlanOptions::default(), left), []);
    assert_eq!(refusals(3, "a", destroy(), four).len(), 1);
    let lifted = PlanOptions { override_guards: ["max_destroy".to_owned()].into(), ..destroy() };
    assert_eq!(refusals(3, "a", lifted, four), []);
}

#[test]
fn the_same_inputs_give_the_same_plan() {
    let case = Case { size: 4, image: "b", ..Case::default() };
    let workers = "0.1 ready a\n1.1 failed a\n2.1 ready a gone\nstray 5.1 a";
    assert_eq!(case.plan(workers), case.plan(workers));
}

#[test]
fn an_edited_plan_is_caught() {
    let plan = Case { size: 2, image: "b", ..Case::default() }.plan("0.1 ready a\n1.1 ready a");
    let broken = |edit: fn(&mut Plan)| {
        let mut plan = plan.clone();
        edit(&mut plan);
        check::check(&plan).len()
    };
    assert_eq!(broken(|_| {}), 0);
    assert_eq!(broken(|plan| plan.pools[0].steps[0].delete.clear()), 1);
    assert_eq!(broken(|plan| plan.pools[0].steps[1].wave = 1), 1, "two surges in one batch");
    assert_eq!(broken(|plan| plan.pools[0].steps[1].wave = 0), 1);
    assert_eq!(broken(|plan| plan.pools[0].steps[1].slot = Slot(0)), 1, "two come to one slot");
    assert!(broken(|plan| plan.pools[0].config = None) >= 2);
}

/// Any slot's history, as lines: up to three workers of rising generation in any state of life.
fn any_slot() -> impl Strategy<Value = Vec<(String, String)>> {
    let phase = prop::sample::select(vec![
        "provisioning",
        "verifying",
        "ready",
        "unhealthy",
        "deleting",
        "failed",
        "lost",
    ]);
    let rest = prop::sample::select(vec![
        "",
        "gone",
        "open:create",
        "gone open:create",
        "open:delete",
        "gone open:delete",
        "open:update",
        "gone failure:out_of_capacity",
        "as:z",
    ]);
    let worker = (phase, prop::sample::select(vec!["a", "b", "c"]), rest)
        .prop_map(|(phase, image, rest)| (phase.to_owned(), format!("{image} {rest}")));
    prop::collection::vec(worker, 0..3)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn whatever_is_recorded_and_observed_the_plan_keeps_its_promises(
        slots in prop::collection::vec(any_slot(), 0..8),
        strays in prop::collection::vec((0_u32..9, 1_u32..5, "[abc]"), 0..3),
        size in 0_u32..8,
        surge in 0_u32..3,
        unavailable in 0_u32..3,
        idempotency in prop::sample::select(vec![
            Idempotency::Token, Idempotency::UniqueName, Idempotency::None,
        ]),
        complete: bool,
        refresh: bool,
    ) {
        let mut lines = String::new();
        for (slot, workers) in slots.iter().enumerate() {
            for (generation, (phase, rest)) in workers.iter().enumerate() {
                // Only one create can be open in a slot, and only on its newest worker.
                let newest = generation + 1 == workers.len();
                let rest = if newest { rest.clone() } else { rest.replace("open:create", "") };
                lines.push_str(&format!("{slot}.{} {phase} {rest}\n", generation + 1));
            }
        }
        for (slot, generation, image) in strays {
            lines.push_str(&format!("stray {slot}.{generation} {image}\n"));
        }
        let case = Case { size, complete, refresh, image: "b", ..Case::default() };
        let with_update = |config: &mut StaticPoolConfig| {
            config.update.max_surge = CountOrPercent::Count(surge.max(u32::from(unavailable == 0)));
            config.update.max_unavailable = CountOrPercent::Count(unavailable);
        };
        let plan = case.plan_with(&lines, &with_update, &|d| d.idempotency = idempotency);
        let pool = &plan.pools[0];
        let coming = pool.steps.iter().filter(|step| step.create.is_some()).count();
        prop_assert!(coming + pool.unchanged.len() <= size as usize);
        if complete && refresh && pool.waiting.is_empty() {
            let updated = pool.steps.iter().filter(|step| step.action == Action::Update).count();
            prop_assert_eq!(coming + updated + pool.unchanged.len(), size as usize);
        }
    }
}
