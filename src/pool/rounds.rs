//! Carries out a plan in rounds. A run that only waits for jobs holds no lock meanwhile: whatever breaks
//! is healed. When a job gave its worker back, the run plans what is left anew, and no more than that.
//!
//! What others did in between (a server replaces a worker that was retired at its lease's end) counts as
//! done. An apply by somebody else in between ends the run: what was approved may no longer be meant.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::sleep;

use super::hold::Hold;
use super::reconcile::as_desired;
use super::{PoolError, Reconciler};
use crate::apply::{ApplyEvent, ApplyEventKind, Leased, Observer, PoolOutcome, worker_of};
use crate::clock::Stopwatch;
use crate::config::StaticPoolConfig;
use crate::desired::DesiredPool;
use crate::lease::terms::RESPITE;
use crate::plan::{Plan, PlanOptions, PoolPlan, Reason, RecordedPool, Step};
use crate::state::{StateError, WorkerKey};
use crate::worker::{Address, Generation, PoolId, Slot};

/// How often it is looked whether a job gave its worker back.
const LOOK: Duration = Duration::from_millis(100);
/// How long a round lasts at least: each lists the providers' workers.
const ROUND: Duration = Duration::from_millis(500);

/// What is left to do in a pool.
struct Rest<'a> {
    plan: &'a PoolPlan,
    steps: Vec<&'a Step>,
    outcome: PoolOutcome,
    /// What is applied, as far as this run knows.
    applied: Option<StaticPoolConfig>,
}

impl Reconciler {
    /// Carries out a plan as [`Reconciler::apply`] does, and waits for the jobs that have workers which are to
    /// go, at most for each pool's `update.drain_timeout`; where it waits, it holds no lock.
    ///
    /// # Errors
    /// When the plan breaks its own promises; nothing was done then. What fails on the way is in the
    /// outcomes.
    pub async fn apply_in_rounds(
        &self,
        plan: &Plan,
        hold: &Hold,
        observer: Observer,
    ) -> Result<Vec<PoolOutcome>, PoolError> {
        let mut outcomes = self.apply(plan, &hold.locks(), observer.clone()).await?;
        if self.leased == Leased::Leave {
            return Ok(outcomes);
        }
        let since = Stopwatch::start();
        let (waiting, over): (Vec<_>, Vec<_>) =
            outcomes.drain(..).partition(PoolOutcome::waits_for_jobs);
        outcomes = over;
        let mut rests: BTreeMap<PoolId, Rest<'_>> = BTreeMap::new();
        for outcome in waiting {
            let pool = outcome.pool.clone();
            // What a second listing found left over is told as well.
            let troubled = outcomes.iter().any(|other| other.pool == pool && !other.is_complete());
            let planned = plan.pools.iter().find(|planned| planned.pool == pool);
            match planned.filter(|_| !troubled) {
                Some(plan) => {
                    let left = plan.steps.iter().filter(|s| outcome.unfinished.contains(&s.slot));
                    let (steps, applied) = (left.collect(), None);
                    rests.insert(pool, Rest { plan, steps, outcome, applied });
                }
                None => outcomes.push(outcome),
            }
        }
        while let Some(ended) = self.round(plan, hold, &mut rests, since, &observer).await {
            outcomes.extend(ended);
        }
        Ok(outcomes)
    }

    /// Waits for a job and goes on; returns what became of the pools that are over now, and `None` when
    /// none is left.
    async fn round(
        &self,
        plan: &Plan,
        hold: &Hold,
        rests: &mut BTreeMap<PoolId, Rest<'_>>,
        since: Stopwatch,
        observer: &Observer,
    ) -> Option<Vec<PoolOutcome>> {
        if rests.is_empty() {
            return None;
        }
        let began = Stopwatch::start();
        let mut ended = Vec::new();
        if let Err(error) = self.wait(hold, rests, since).await {
            for (_, mut rest) in std::mem::take(rests) {
                rest.outcome.stopped_by = Some(error.clone());
                ended.push(rest.outcome);
            }
            return Some(ended);
        }
        let expired: Vec<PoolId> = rests
            .iter()
            .filter(|(_, rest)| since.elapsed() >= rest.plan.drain_timeout)
            .map(|(pool, _)| pool.clone())
            .collect();
        for rest in expired.iter().filter_map(|pool| rests.remove(pool)) {
            rest.tell_held(observer, since.elapsed());
            ended.push(rest.outcome);
        }
        if rests.is_empty() {
            return Some(ended);
        }
        self.go_on(plan, hold, rests, observer, &mut ended).await;
        sleep(ROUND.saturating_sub(began.elapsed())).await;
        Some(ended)
    }

    /// Gives the locks back until a job gave its worker back, or somebody's time is over.
    async fn wait(
        &self,
        hold: &Hold,
        rests: &mut BTreeMap<PoolId, Rest<'_>>,
        since: Stopwatch,
    ) -> Result<(), StateError> {
        let pools: BTreeSet<PoolId> = rests.keys().cloned().collect();
        for (pool, rest) in rests.iter_mut() {
            rest.applied = self.store.applied_config(pool).await?;
        }
        hold.give(&pools).await;
        let held = |rests: &BTreeMap<PoolId, Rest<'_>>, leased: &BTreeSet<(PoolId, WorkerKey)>| {
            let old = rests.iter().flat_map(|(pool, rest)| rest.old(pool));
            old.filter(|old| leased.contains(old)).count()
        };
        let before = held(rests, &self.store.leased().await?);
        let nearest = rests.values().map(|rest| rest.plan.drain_timeout).min().unwrap_or_default();
        while since.elapsed() < nearest {
            let now = held(rests, &self.store.leased().await?);
            if now < before || now == 0 {
                break;
            }
            // Where no server is there to end leases that are over, the run does; as late as a server that
            // was just started would.
            if !self.store.is_served().await? {
                self.store.expire_leases(self.store.now(), Timestamp::MIN, RESPITE).await?;
            }
            sleep(LOOK).await;
        }
        hold.add(&pools).await
    }

    /// Plans what is left, and does it.
    async fn go_on(
        &self,
        plan: &Plan,
        hold: &Hold,
        rests: &mut BTreeMap<PoolId, Rest<'_>>,
        observer: &Observer,
        ended: &mut Vec<PoolOutcome>,
    ) {
        let (next, mut outcomes) = match self.next(plan, hold, rests, observer).await {
            Ok(went) => went,
            Err(error) => {
                for (_, mut rest) in std::mem::take(rests) {
                    rest.outcome.unsure = Some(format!("looking for what is left to do: {error}"));
                    ended.push(rest.outcome);
                }
                return;
            }
        };
        let pools: Vec<PoolId> = rests.keys().cloned().collect();
        for pool in pools {
            let Some(mut rest) = rests.remove(&pool) else { continue };
            let open = next.pools.iter().filter(|next| next.pool == pool);
            let undecided: BTreeSet<Slot> =
                open.flat_map(|next| &next.waiting).map(|waiting| waiting.worker.slot).collect();
            let (own, others) = outcomes.drain(..).partition(|outcome| outcome.pool == pool);
            outcomes = others;
            rest.settle(own, &undecided);
            if rest.outcome.waits_for_jobs() {
                rests.insert(pool, rest);
            } else {
                ended.push(rest.outcome);
            }
        }
    }

    /// Plans and applies what is left in the pools that nobody else applied to.
    async fn next(
        &self,
        plan: &Plan,
        hold: &Hold,
        rests: &BTreeMap<PoolId, Rest<'_>>,
        observer: &Observer,
    ) -> Result<(Plan, Vec<PoolOutcome>), PoolError> {
        let recorded = self.store.load().await?;
        let options = PlanOptions {
            mode: plan.mode,
            only_pools: Some(rests.keys().cloned().collect()),
            targets: rests.iter().flat_map(|(pool, rest)| rest.addresses(pool)).collect(),
            replace: rests
                .iter()
                .flat_map(|(pool, rest)| rest.requested(recorded.iter().find(|r| r.id == *pool)))
                .collect(),
            allow_empty: true,
            override_guards: plan.overridden_guards.clone(),
        };
        let desired = rests.values().filter_map(|rest| {
            let secrets = rest.plan.secrets.clone();
            Some(DesiredPool { secrets, ..as_desired(rest.plan)? })
        });
        let desired: Vec<DesiredPool> = desired.collect();
        // What is refused was approved already.
        let mut next = self.plan_settled(&desired, &options, true).await?.plan;
        let mut moved = Vec::new();
        for (pool, rest) in rests {
            if self.store.applied_config(pool).await? != rest.applied {
                let what = "somebody else applied to it while this run waited".to_owned();
                let error = StateError::Moved { pool: pool.clone(), what };
                let skipped = u32::try_from(rest.steps.len()).unwrap_or(u32::MAX);
                let unfinished = rest.outcome.unfinished.clone();
                let stopped =
                    PoolOutcome { skipped, unfinished, ..PoolOutcome::nothing(rest.plan) };
                moved.push(PoolOutcome { stopped_by: Some(error), ..stopped });
            }
        }
        next.pools.retain_mut(|next| {
            let Some(rest) = rests.get(&next.pool) else { return false };
            next.narrowed = rest.plan.narrowed;
            next.records_config = false;
            next.settings.clear();
            !moved.iter().any(|moved| moved.pool == next.pool)
        });
        let mut outcomes = self.apply(&next, &hold.locks(), observer.clone()).await?;
        outcomes.extend(moved);
        Ok((next, outcomes))
    }
}

impl Rest<'_> {
    /// The workers that are to go.
    fn old<'r>(&'r self, pool: &'r PoolId) -> impl Iterator<Item = (PoolId, WorkerKey)> + 'r {
        self.steps.iter().flat_map(move |step| {
            step.reap.iter().chain(&step.delete).map(move |old| {
                (pool.clone(), WorkerKey { slot: step.slot, generation: old.generation })
            })
        })
    }

    fn addresses<'r>(&'r self, pool: &'r PoolId) -> impl Iterator<Item = Address> + 'r {
        self.steps.iter().map(|step| Address { pool: pool.clone(), slot: Some(step.slot) })
    }

    /// The slots whose worker is to be replaced because somebody asked for it, and is not yet.
    fn requested(&self, recorded: Option<&RecordedPool>) -> Vec<Address> {
        let newest = |slot: Slot| -> Option<Generation> {
            let workers = recorded?.workers.iter().filter(|worker| worker.slot == slot);
            workers.map(|worker| worker.generation).max()
        };
        let is_there = |step: &&&Step| {
            let old = step.delete.iter().map(|old| old.generation).max();
            step.reason == Reason::ReplaceByRequest && old == newest(step.slot)
        };
        let address =
            |step: &&Step| Address { pool: self.plan.pool.clone(), slot: Some(step.slot) };
        self.steps.iter().filter(is_there).map(address).collect()
    }

    /// Takes over what became of a round. A step is done when nothing is left to do in its slot.
    fn settle(&mut self, outcomes: Vec<PoolOutcome>, undecided: &BTreeSet<Slot>) {
        let mut left = undecided.clone();
        let outcome = &mut self.outcome;
        (outcome.held, outcome.skipped) = (Vec::new(), 0);
        for next in outcomes {
            left.extend(next.unfinished);
            outcome.held.extend(next.held);
            outcome.failures.extend(next.failures);
            outcome.skipped += next.skipped;
            outcome.stopped_by = outcome.stopped_by.take().or(next.stopped_by);
            outcome.unsure = outcome.unsure.take().or(next.unsure);
        }
        if !undecided.is_empty() {
            let why = "what became of an interrupted create is not known yet";
            outcome.unsure.get_or_insert_with(|| why.to_owned());
        }
        let (open, done): (Vec<&Step>, _) =
            self.steps.drain(..).partition(|step| left.contains(&step.slot));
        let done = done.into_iter().map(Step::summary);
        outcome.done = done.chain([outcome.done]).sum();
        outcome.unfinished = left;
        self.steps = open;
    }

    /// Tells that the steps which still wait are given up.
    fn tell_held(&self, observer: &Observer, elapsed: Duration) {
        for (worker, why) in &self.outcome.held {
            let of = |step: &&&Step| worker_of(self.plan)(step) == *worker;
            let Some(step) = self.steps.iter().find(of) else { continue };
            observer(ApplyEvent {
                pool: self.plan.pool.clone(),
                worker: worker.clone(),
                action: step.action,
                reason: step.reason,
                kind: ApplyEventKind::Failed { elapsed, why: why.clone() },
            });
        }
    }
}
