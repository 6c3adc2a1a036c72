//! Decides which slots a pool keeps, and in which waves its steps run.
//!
//! Scale-in gives up failed slots first, then unready ones, then idle ones; among equals outdated ones,
//! then the highest. The lowest free slots are filled. Waves, empty ones left out:
//!
//! 1. what interrupted runs left behind is deleted;
//! 2. workers are created, adopted and updated, and those that do not serve are replaced;
//! 3. slots that the pool gives up are deleted;
//! 4. and on: workers that serve, those that are leased last, are replaced in batches of `max_surge` create-first and
//!    `max_unavailable` destroy-first. Where the provider has no room for a surge, one at a time is
//!    replaced destroy-first: better than never (Karpenter's static pools wait for ever there,
//!    karpenter-provider-aws#8873). No more than `max_surge` workers stand beside predecessors that jobs still have:
//!    further ones come when the job has ended;
//! 5. what is given up and leased is deleted, when its lease has ended.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pool_provider::Description;

use super::compare::{self, Fit};
use super::input::{
    ObservedSlots, PlanInput, PlanMode, RecordedPool, RecordedSpec, RecordedWorker, Seen,
};
use super::judge::{self, Condition};
use super::slot::{self, Decision, Need, Occupant, SlotInput, Stray};
use super::types::{
    Action, Budget, Drift, FieldChange, KeptWorker, PoolPlan, Reason, ReplaceOrder, Step, Waiting,
};
use crate::config::{StaticPoolConfig, UpdateConfig};
use crate::desired::{DesiredPool, Spec};
use crate::worker::{Generation, Phase, PoolId, Slot, WorkerName};

/// One pool's part of the plan's input.
pub(super) struct PoolInput<'a> {
    pub(super) id: &'a PoolId,
    /// `None` when the pool goes.
    pub(super) desired: Option<&'a DesiredPool>,
    pub(super) recorded: Option<&'a RecordedPool>,
    pub(super) observed: &'a ObservedSlots<'a>,
    pub(super) input: &'a PlanInput<'a>,
}

/// Every slot that is recorded, observed or needed.
struct Slots<'a> {
    by_number: BTreeMap<Slot, SlotInput<'a>>,
    /// Which of them the pool keeps.
    kept: BTreeSet<Slot>,
}

/// Plans one pool.
pub(super) fn plan_pool(pool: &PoolInput<'_>) -> PoolPlan {
    let slots = pool.slots();
    let mut waiting = Vec::new();
    let mut needs = Vec::new();
    let mut unchanged = Vec::new();
    for slot in slots.by_number.values() {
        let decision = pool.decide(slot, slots.kept.contains(&slot.slot));
        let kept = |generation| KeptWorker { slot: slot.slot, generation };
        unchanged.extend(decision.stays.map(kept));
        waiting.extend(decision.waiting.iter().map(|(generation, until)| Waiting {
            worker: WorkerName::new(pool.id.clone(), slot.slot, *generation),
            until: *until,
        }));
        needs.extend(decision.needs);
    }
    needs.retain(|need| pool.input.targets_slot(pool.id, need.slot));
    unchanged.retain(|kept: &KeptWorker| pool.input.targets_slot(pool.id, kept.slot));
    let batches = pool.batches(&slots);
    let mut specs_before: Vec<Spec> = Vec::new();
    let steps = waves(needs, batches, &mut specs_before);
    let desired = pool.desired;
    let config = pool.config();
    PoolPlan {
        pool: pool.id.clone(),
        provider: pool.provider().to_owned(),
        provider_config: desired.and_then(|desired| desired.provider_config.clone()),
        serial: pool.recorded.map(|recorded| recorded.serial),
        config: desired.map(|desired| desired.config.clone()),
        place: desired.map(|desired| desired.place.clone()).unwrap_or_default(),
        overridden: desired.map(|desired| desired.overridden.clone()).unwrap_or_default(),
        settings: [pool.settings(!steps.is_empty()), pool.undrained(&unchanged)].concat(),
        changed: pool.changed(false),
        records_config: pool.records_config(),
        narrowed: pool.input.is_narrowed_within(pool.id),
        secrets: desired.map(|desired| desired.secrets.clone()).unwrap_or_default(),
        unreadable: desired.map(|desired| desired.unreadable.clone()).unwrap_or_default(),
        specs_before,
        budget: pool.budget(&slots, batches),
        steps,
        unchanged,
        drift: pool.drift(&slots),
        waiting,
        locked_by: pool.recorded.and_then(|recorded| recorded.locked_by.clone()),
        provisioning: config.map(|config| config.provisioning.clone()).unwrap_or_default(),
        health_check: config.map(|config| config.health_check.clone()).unwrap_or_default(),
        drain_timeout: config
            .map_or_else(UpdateConfig::default, |c| c.update.clone())
            .drain_timeout
            .get(),
    }
}

/// How large the batches of a rolling replacement are.
#[derive(Debug, Clone, Copy)]
struct Batches {
    create_first: u32,
    destroy_first: u32,
}

impl<'a> PoolInput<'a> {
    /// Returns the config as the files have it, or as it was recorded when they do not.
    fn config(&self) -> Option<&'a StaticPoolConfig> {
        let applied = self.recorded.and_then(|recorded| recorded.applied.as_ref());
        let desired = self.desired.map(|desired| &desired.config);
        desired.or(applied.map(|applied| &applied.config))
    }

    fn provider(&self) -> &str {
        match (self.desired, self.recorded) {
            (Some(desired), _) => &desired.provider,
            (None, Some(recorded)) => {
                recorded.workers.first().map_or("", |worker| worker.provider.as_str())
            }
            (None, None) => {
                self.observed.values().flatten().next().map_or("", |seen| seen.provider)
            }
        }
    }

    /// A run that is narrowed to slots does not touch what was applied to the whole pool; a pool that
    /// nothing was applied to yet has to be known all the same.
    fn records_config(&self) -> bool {
        let known = self.recorded.is_some_and(|recorded| recorded.applied.is_some());
        !known || !self.input.is_narrowed_within(self.id)
    }

    /// Returns what has to be recorded and is not told by steps.
    fn settings(&self, has_steps: bool) -> Vec<FieldChange> {
        if self.records_config() { self.changed(has_steps) } else { Vec::new() }
    }

    /// Returns in what the config that is asked for is not the recorded one, less what steps tell.
    fn changed(&self, steps_tell_the_rest: bool) -> Vec<FieldChange> {
        let applied = self.recorded.and_then(|recorded| recorded.applied.as_ref());
        match (applied, self.desired) {
            (Some(applied), Some(desired)) => {
                let (before, after) = (&applied.config, &desired.config);
                let mut changes = compare::config_changes(before, after, steps_tell_the_rest);
                changes.extend(compare::provider_changes(applied, desired));
                changes
            }
            // A pool without a worker comes and goes by its config alone.
            (None, Some(desired)) if !steps_tell_the_rest => vec![named(None, Some(&desired.id))],
            (Some(_), None) if !steps_tell_the_rest => vec![named(Some(self.id), None)],
            (None, _) | (_, None) => Vec::new(),
        }
    }

    /// Returns the workers that an earlier run drained and that stay after all.
    fn undrained(&self, unchanged: &[KeptWorker]) -> Vec<FieldChange> {
        let workers = self.recorded.into_iter().flat_map(|recorded| &recorded.workers);
        let drained = workers.filter(|worker| worker.standing.drained_by_update);
        drained
            .filter(|worker| {
                let RecordedWorker { slot, generation, .. } = **worker;
                unchanged.contains(&KeptWorker { slot, generation })
            })
            .map(|worker| FieldChange {
                path: format!("{}[{}].draining", self.id, worker.slot),
                before: Some("true".to_owned()),
                after: Some("false".to_owned()),
                forces_replacement: false,
            })
            .collect()
    }

    /// Gathers every slot that is recorded or observed, or that the pool needs.
    fn slots(&self) -> Slots<'a> {
        let mut slots: BTreeMap<Slot, SlotInput<'a>> = BTreeMap::new();
        let empty = |slot: Slot| {
            let last = self.recorded.and_then(|recorded| recorded.last_generations.get(&slot));
            SlotInput {
                slot,
                occupants: Vec::new(),
                strays: Vec::new(),
                last_generation: last.copied().unwrap_or_default(),
            }
        };
        let mut known: BTreeSet<(Slot, Generation, &str)> = BTreeSet::new();
        let mut fits = Fits::default();
        for worker in self.recorded.into_iter().flat_map(|recorded| &recorded.workers) {
            let occupant = self.occupant(worker, &mut fits);
            if let Some(seen) = occupant.seen {
                known.insert((worker.slot, worker.generation, seen.provider_id.as_str()));
            }
            let slot = slots.entry(worker.slot).or_insert_with(|| empty(worker.slot));
            slot.occupants.insert(0, occupant);
        }
        for (number, seen) in self.observed {
            for seen in seen {
                let name = &seen.worker.name;
                let is_known =
                    known.contains(&(*number, name.generation, seen.worker.provider_id.as_str()));
                if !is_known && !self.is_ghost(seen) {
                    let stray = Stray { provider: seen.provider, worker: seen.worker };
                    slots.entry(*number).or_insert_with(|| empty(*number)).strays.push(stray);
                }
            }
        }
        let kept = self.kept(&mut slots, empty);
        Slots { by_number: slots, kept }
    }

    /// A listing may still show for a while what was deleted.
    fn is_ghost(&self, seen: &Seen<'_>) -> bool {
        let name = &seen.worker.name;
        let tombstone = self.recorded.and_then(|recorded| recorded.tombstones.get(&name.slot));
        let lag = self.input.observed.get(seen.provider).map(|o| o.description().lag());
        let (Some((generation, since)), Some(lag)) = (tombstone, lag) else { return false };
        let shown_until = since.checked_add(lag).unwrap_or(*since);
        name.generation <= *generation && self.input.now < shown_until
    }

    /// Chooses the slots that the pool keeps; adds those that it has yet to fill.
    fn kept(
        &self,
        slots: &mut BTreeMap<Slot, SlotInput<'a>>,
        empty: impl Fn(Slot) -> SlotInput<'a>,
    ) -> BTreeSet<Slot> {
        let size = self.desired.map_or(0, |desired| desired.size) as usize;
        // A slot with nothing but strays is free, unless one of them is what it needs.
        let is_occupied = |slot: &SlotInput<'a>| {
            !slot.occupants.is_empty()
                || self.desired.is_some_and(|desired| slot::has_adoptable(slot, desired))
        };
        let mut ranked: Vec<&SlotInput<'a>> =
            slots.values().filter(|slot| is_occupied(slot)).collect();
        ranked.sort_by_key(|slot| (worth(slot), std::cmp::Reverse(slot.slot)));
        let occupied: BTreeSet<Slot> = ranked.iter().map(|slot| slot.slot).collect();
        let surplus = ranked.len().saturating_sub(size);
        let mut kept: BTreeSet<Slot> =
            ranked.into_iter().skip(surplus).map(|slot| slot.slot).collect();
        let free = (0..u32::MAX).map(Slot).filter(|number| !occupied.contains(number));
        for number in free.take(size.saturating_sub(occupied.len())) {
            slots.entry(number).or_insert_with(|| empty(number));
            kept.insert(number);
        }
        kept
    }

    fn occupant(&self, worker: &'a RecordedWorker, fits: &mut Fits) -> Occupant<'a> {
        let observation = self.input.observed.get(&worker.provider);
        let same = self.observed.get(&worker.slot).into_iter().flatten().filter(|seen| {
            seen.provider == worker.provider && seen.worker.name.generation == worker.generation
        });
        // Two objects of one name can only come from a repeated create without a token: the one that
        // is recorded by its id is the worker, the other one is a stray.
        let seen = same
            .min_by_key(|seen| Some(&seen.worker.provider_id) != worker.provider_id.as_ref())
            .map(|seen| seen.worker);
        let description = observation.map(super::Observation::description);
        let fit =
            self.desired.map_or(Fit::Current, |desired| fits.of(desired, worker, description));
        Occupant {
            recorded: worker,
            seen,
            condition: judge::judge(worker, seen, observation, self.input.now),
            landing: judge::may_land(worker, seen, observation, self.input.now),
            fit,
            replacement_is_requested: self.input.replacement_is_requested(self.id, worker.slot),
        }
    }

    fn decide(&self, slot: &SlotInput<'a>, kept: bool) -> Decision<'a> {
        match self.desired {
            Some(desired) if kept => slot::keep(slot, desired),
            desired => {
                let reason = match (desired, self.input.options.mode) {
                    (Some(_), _) => Reason::DeleteBecauseScaleIn,
                    (None, PlanMode::Destroy) => Reason::DeleteByRequest,
                    (None, PlanMode::Converge) => Reason::DeleteBecausePoolRemoved,
                };
                slot::give_up(slot, reason)
            }
        }
    }

    fn batches(&self, slots: &Slots<'a>) -> Batches {
        let Some(desired) = self.desired else {
            return Batches { create_first: 0, destroy_first: 0 };
        };
        let update = &desired.config.update;
        let surge = update.max_surge.of_rounded_up(desired.size).min(self.room(slots));
        let unavailable = update.max_unavailable.of_rounded_down(desired.size);
        let stuck = surge == 0 && unavailable == 0;
        Batches { create_first: surge, destroy_first: if stuck { 1 } else { unavailable } }
    }

    /// Returns how many workers the provider has room for beyond those that exist.
    fn room(&self, slots: &Slots<'a>) -> u32 {
        let refused = slots.by_number.values().flat_map(|slot| &slot.occupants).any(|occupant| {
            let failure = occupant.recorded.failure.as_ref();
            failure.is_some_and(|failure| failure.code == "out_of_capacity")
        });
        let observation = self.input.observed.get(self.provider());
        // On one host a probe of the new worker's port would reach the old one.
        let probes_a_port =
            self.desired.is_some_and(|desired| desired.config.health_check.port.is_some());
        let on_host = self.desired.is_some_and(|desired| desired.spec.is_on_host_network());
        let one_host = on_host || observation.is_some_and(|o| o.description().one_host);
        let claims_ports = self.desired.is_some_and(|desired| desired.spec.claims_host_ports());
        if claims_ports || probes_a_port && one_host {
            return 0;
        }
        let capacity = observation.and_then(|observation| {
            let taken = u32::try_from(observation.workers().len()).unwrap_or(u32::MAX);
            observation.description().capacity.map(|capacity| capacity.saturating_sub(taken))
        });
        if refused { 0 } else { capacity.unwrap_or(u32::MAX) }
    }

    fn budget(&self, slots: &Slots<'a>, batches: Batches) -> Budget {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let live = count(
            slots.by_number.values().map(|slot| slot.occupants.len() + slot.strays.len()).sum(),
        );
        let size = self.desired.map_or(0, |desired| desired.size);
        // By slot, and only slots that stay: a second worker of a slot, or one of a slot that is given
        // up, may always go.
        let serves = |slot: &&SlotInput<'_>| {
            slots.kept.contains(&slot.slot)
                && slot.occupants.iter().any(|occupant| {
                    occupant.condition == Condition::Serving
                        && occupant.recorded.phase == Phase::Ready
                })
        };
        let serving = count(slots.by_number.values().filter(serves).count());
        Budget {
            max_total: live.max(size).saturating_add(batches.create_first),
            min_ready: size.saturating_sub(batches.destroy_first).min(serving),
        }
    }

    fn drift(&self, slots: &Slots<'a>) -> Vec<Drift> {
        let mut drift = Vec::new();
        for occupant in slots.by_number.values().flat_map(|slot| &slot.occupants) {
            let changes = match (occupant.condition, occupant.seen) {
                (Condition::Missing, _) => Vec::new(),
                (Condition::Serving, Some(seen)) if occupant.recorded.operation.is_none() => {
                    let spec = &occupant.recorded.spec;
                    let changes = compare::drifted(spec, &seen.labels, &seen.tags);
                    if changes.is_empty() {
                        continue;
                    }
                    changes
                }
                _ => continue,
            };
            let RecordedWorker { slot, generation, .. } = occupant.recorded;
            let worker = WorkerName::new(self.id.clone(), *slot, *generation);
            drift.push(Drift { worker, changes });
        }
        drift
    }
}

fn named(before: Option<&PoolId>, after: Option<&PoolId>) -> FieldChange {
    FieldChange {
        path: "pool_id".to_owned(),
        before: before.map(ToString::to_string),
        after: after.map(ToString::to_string),
        forces_replacement: false,
    }
}

/// What each distinct spec means, so that workers made alike are compared once.
#[derive(Default)]
struct Fits(Vec<(Arc<RecordedSpec>, String, Fit)>);

impl Fits {
    fn of(
        &mut self,
        desired: &DesiredPool,
        worker: &RecordedWorker,
        description: Option<&Description>,
    ) -> Fit {
        let known = self.0.iter().find(|(spec, provider, _)| {
            Arc::ptr_eq(spec, &worker.spec) && *provider == worker.provider
        });
        if let Some((_, _, fit)) = known {
            return fit.clone();
        }
        let fit = compare::fit(desired, &worker.spec, &worker.provider, description);
        self.0.push((Arc::clone(&worker.spec), worker.provider.clone(), fit.clone()));
        fit
    }
}

/// Ranks a slot by what would be lost with it: the lowest goes first.
fn worth(slot: &SlotInput<'_>) -> u8 {
    let of = |occupant: &Occupant<'_>| match occupant.condition {
        Condition::Failed | Condition::Missing | Condition::Leaving => 0,
        Condition::Unhealthy => 1,
        Condition::Waiting(_) | Condition::Resendable => 2,
        Condition::Found | Condition::Unverified => 3,
        Condition::Serving if matches!(occupant.fit, Fit::Outdated(_)) => 4,
        // It was given up already, and gets no new job: another choice would undo that.
        Condition::Serving if occupant.recorded.standing.drained_by_update => 4,
        Condition::Serving if occupant.recorded.standing.lease.is_none() => 5,
        // A job would have to be waited for.
        Condition::Serving => 6,
    };
    // An adoptable stray has yet to pass its health check, as a worker that is found has.
    slot.occupants.iter().map(of).max().unwrap_or(3)
}

/// Returns whether a step has to wait for a job.
fn waits(need: &Need<'_>) -> bool {
    need.reap.iter().chain(&need.delete).any(|old| old.leased)
}

/// Puts what is needed into waves.
fn waves(mut needs: Vec<Need<'_>>, batches: Batches, specs_before: &mut Vec<Spec>) -> Vec<Step> {
    // Those who have to wait for a job come last: nobody waits behind them.
    let rank = |need: &Need<'_>| match need.action {
        Action::Delete if waits(need) => 4,
        Action::Delete if need.reason.is_left_behind() => 0,
        Action::Delete => 2,
        _ if need.replaces_serving => 3,
        Action::Create | Action::Adopt | Action::Update | Action::Replace(_) => 1,
    };
    needs.sort_by_key(|need| (rank(need), waits(need), need.slot));
    let size = (batches.create_first.saturating_add(batches.destroy_first)).max(1);
    let mut steps = Vec::new();
    let (mut wave, mut last_rank, mut in_wave) = (0, None, 0);
    // What earlier runs brought, and whose predecessor a job still has, counts: repeated runs bring no more.
    let still_leased = |need: &&Need<'_>| {
        need.action == Action::Delete && need.reason.is_left_behind() && waits(need)
    };
    let mut beside_jobs =
        u32::try_from(needs.iter().filter(still_leased).count()).unwrap_or(u32::MAX);
    for mut need in needs {
        let rank = rank(&need);
        let full = rank == 3 && in_wave >= size;
        if last_rank != Some(rank) || full {
            wave += 1;
            in_wave = 0;
            last_rank = Some(rank);
        }
        if rank == 3 {
            // A successor that exists already cannot come second any more.
            let exists = need.reason == Reason::ReplaceBecauseInterrupted;
            if in_wave >= batches.create_first && !exists {
                need.action = Action::Replace(ReplaceOrder::DestroyFirst);
            }
        }
        let beside_a_job =
            waits(&need) && need.action == Action::Replace(ReplaceOrder::CreateFirst);
        let after_job = beside_a_job && beside_jobs >= batches.create_first;
        beside_jobs += u32::from(beside_a_job && !after_job);
        in_wave += 1;
        let step = step(need, wave, rank == 3, specs_before);
        steps.push(Step { after_job, ..step });
    }
    steps
}

fn step(need: Need<'_>, wave: u32, gates: bool, specs_before: &mut Vec<Spec>) -> Step {
    let before = need.before.map(|worker| {
        let spec = &worker.spec.spec;
        specs_before.iter().position(|known| known == spec).unwrap_or_else(|| {
            specs_before.push(spec.clone());
            specs_before.len() - 1
        })
    });
    Step {
        wave,
        gates,
        after_job: false,
        slot: need.slot,
        action: need.action,
        reason: need.reason,
        create: need.create,
        update: need.update,
        reap: need.reap,
        delete: need.delete,
        changes: need.changes,
        before,
    }
}
