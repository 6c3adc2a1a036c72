//! Carries out a plan in rounds. A run that only waits for jobs holds no lock meanwhile: whatever breaks
//! is healed. When a job gave its worker back, the run plans what is left anew, and does no more than that.
//!
//! What others did in between (a server replaces a worker that was retired at its lease's end) counts as
//! done. An apply by somebody else in between ends the run: what was approved may no longer be meant.
//! A mark in the state says that somebody waits, so that no server lifts the drain meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::sleep;

use super::hold::Hold;
use super::reconcile::as_desired;
use super::waiting::Waiting;
use super::{PoolError, Reconciler};
use crate::apply::{ApplyEvent, ApplyEventKind, Leased, Observer, PoolOutcome, worker_of};
use crate::clock::Stopwatch;
use crate::config::StaticPoolConfig;
use crate::desired::DesiredPool;
use crate::lease::terms::RESPITE;
use crate::plan::{Action, Plan, PlanOptions, PoolPlan, Reason, RecordedPool, Step, Summary};
use crate::state::{StateError, WorkerKey, holder};
use crate::worker::{Address, Generation, Phase, PoolId, Slot};

/// How often it is looked whether a job gave its worker back.
const LOOK: Duration = Duration::from_millis(100);
/// How often it is looked whether somebody else applied.
const COMPARE: Duration = Duration::from_secs(1);
/// How long the locks are free at least between two rounds: each lists the providers' workers.
const ROUND: Duration = Duration::from_millis(500);

impl Reconciler {
    /// Carries out a plan as [`Reconciler::apply`] does, and waits for the jobs that have workers which are to
    /// go, at most for each pool's `update.drain_timeout`. While it waits, it holds no lock at all.
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
        let (seen, again) = (Mutex::default(), AtomicBool::new(false));
        let told = Arc::new(Told { observer, seen, again });
        let telling = Arc::clone(&told);
        let observer: Observer = Arc::new(move |event| telling.tell(event));
        let first = self.apply(plan, &hold.locks(), observer.clone()).await?;
        if self.leased == Leased::Leave {
            return Ok(first);
        }
        told.again.store(true, Ordering::SeqCst);
        let (since, rests, ended) = (Stopwatch::start(), BTreeMap::new(), Vec::new());
        let mut rounds =
            Rounds { reconciler: self, plan, hold, observer, told, since, rests, ended };
        rounds.begin(first).await?;
        while !rounds.rests.is_empty() {
            if let Err(error) = rounds.round().await {
                rounds.give_up(&error);
            }
        }
        Ok(rounds.ended)
    }
}

/// A run that waits for jobs.
struct Rounds<'a> {
    reconciler: &'a Reconciler,
    plan: &'a Plan,
    hold: &'a Hold,
    observer: Observer,
    told: Arc<Told>,
    since: Stopwatch,
    rests: BTreeMap<PoolId, Rest<'a>>,
    ended: Vec<PoolOutcome>,
}

/// What is left to do in a pool.
struct Rest<'a> {
    plan: &'a PoolPlan,
    steps: Vec<&'a Step>,
    /// How many other steps are not begun.
    given_up: u32,
    outcome: PoolOutcome,
    /// What was applied when the first round was over: somebody else's apply shows in a difference.
    applied: Option<StaticPoolConfig>,
    /// Whether its time is over, and this round is the last one.
    is_last: bool,
}

impl Rounds<'_> {
    /// Takes over what the first round came to, pool by pool.
    async fn begin(&mut self, outcomes: Vec<PoolOutcome>) -> Result<(), StateError> {
        let mut by_pool: BTreeMap<PoolId, PoolOutcome> = BTreeMap::new();
        for outcome in outcomes {
            match by_pool.get_mut(&outcome.pool) {
                // What a second listing found left over counts too, but is no step of the plan.
                Some(first) => first.add(outcome),
                None => drop(by_pool.insert(outcome.pool.clone(), outcome)),
            }
        }
        for (pool, outcome) in by_pool {
            let planned = self.plan.pools.iter().find(|planned| planned.pool == pool);
            // The locks are still held: this is what this run applied, or found.
            let applied = self.reconciler.store.applied_config(&pool).await?;
            match planned.and_then(|plan| Rest::of(plan, &outcome, applied)) {
                Some(rest) => drop(self.rests.insert(pool, rest)),
                None => self.ended.push(outcome),
            }
        }
        Ok(())
    }

    /// Waits for a job, and goes on.
    async fn round(&mut self) -> Result<(), StateError> {
        let store = &self.reconciler.store;
        // Whatever is through, or never waited, need not wait with the others.
        let mut waiting = Waiting::begin(store, self.rests.keys().cloned().collect()).await?;
        self.hold.give(&self.hold.locks().into_keys().collect()).await;
        sleep(ROUND).await;
        let leased = self.wait(&mut waiting).await?;
        let elapsed = self.since.elapsed();
        let mut over = Vec::new();
        for (pool, rest) in &mut self.rests {
            let is_over = elapsed >= rest.plan.drain_timeout;
            // What a job gave back at the last moment is still worth a round.
            if is_over && (rest.is_last || !rest.has_a_free_one(pool, &leased)) {
                over.push(pool.clone());
            }
            rest.is_last = is_over;
        }
        for pool in over {
            self.end(&pool);
        }
        if !self.rests.is_empty() {
            self.lock().await?;
            self.go_on().await?;
        }
        waiting.end().await
    }

    /// Returns once a job gave its worker back, or somebody's time is over: who has workers then.
    async fn wait(
        &mut self,
        waiting: &mut Waiting,
    ) -> Result<BTreeSet<(PoolId, WorkerKey)>, StateError> {
        let store = self.reconciler.store.clone();
        let (mut renewed, mut compared) = (Stopwatch::start(), Stopwatch::start());
        let mut expired = None;
        loop {
            if compared.elapsed() >= COMPARE {
                self.end_overtaken().await?;
                waiting.keep(self.rests.keys().cloned().collect()).await?;
                compared = Stopwatch::start();
            }
            // Where no server is there to end leases that are over, the run does; as late as a server that
            // was just started would.
            if expired.is_none_or(|at: Stopwatch| at.elapsed() >= COMPARE) {
                if !store.is_served().await? {
                    store.expire_leases(store.now(), Timestamp::MIN, RESPITE).await?;
                }
                expired = Some(Stopwatch::start());
            }
            let leased = store.leased().await?;
            let is_free = self.rests.iter().any(|(pool, rest)| rest.has_a_free_one(pool, &leased));
            if is_free || self.rests.is_empty() || self.since.elapsed() >= self.nearest() {
                return Ok(leased);
            }
            if renewed.elapsed() >= holder::HEARTBEAT {
                waiting.renew().await?;
                renewed = Stopwatch::start();
            }
            sleep(LOOK).await;
        }
    }

    /// Ends the run in pools that somebody else applied to: what was approved may no longer be meant.
    async fn end_overtaken(&mut self) -> Result<(), StateError> {
        let store = &self.reconciler.store;
        let mut overtaken = Vec::new();
        for (pool, rest) in &mut self.rests {
            if store.applied_config(pool).await? == rest.applied {
                continue;
            }
            let recorded = store.load_pool(pool).await?;
            let by = match recorded.and_then(|recorded| recorded.applied) {
                Some(applied) => format!("from {} at {:.0}", applied.origin, applied.at),
                None => "it is removed".to_owned(),
            };
            // Its steps are nobody's any more.
            rest.outcome.skipped += u32::try_from(rest.outcome.held.len()).unwrap_or(u32::MAX);
            rest.outcome.held.clear();
            rest.outcome.stopped_by = Some(StateError::Overtaken { pool: pool.clone(), by });
            overtaken.push(pool.clone());
        }
        for pool in overtaken {
            self.end(&pool);
        }
        Ok(())
    }

    fn nearest(&self) -> Duration {
        self.rests.values().map(|rest| rest.plan.drain_timeout).min().unwrap_or_default()
    }

    /// Takes the locks again. Who has them now (a server that heals) has them for a moment, and this run has
    /// time.
    async fn lock(&self) -> Result<(), StateError> {
        let pools: BTreeSet<PoolId> = self.rests.keys().cloned().collect();
        loop {
            match self.hold.add(&pools).await {
                Err(StateError::Locked { .. }) if self.since.elapsed() < self.nearest() => {
                    self.hold.give(&pools).await;
                    sleep(LOOK).await;
                }
                locked => return locked,
            }
        }
    }

    /// Plans what is left, and does it.
    async fn go_on(&mut self) -> Result<(), StateError> {
        let pools: Vec<PoolId> = self.rests.keys().cloned().collect();
        self.end_overtaken().await?;
        if self.rests.is_empty() {
            return Ok(());
        }
        let (next, mut outcomes) = match self.carry_out().await {
            Ok(went) => went,
            // It may be listed the next time.
            Err(PoolError::Provider { .. }) => return Ok(()),
            Err(PoolError::State(error)) => return Err(error),
            Err(error) => return Err(StateError::Other(error.to_string())),
        };
        for pool in pools {
            let Some(mut rest) = self.rests.remove(&pool) else { continue };
            let (own, others) = outcomes.drain(..).partition(|outcome| outcome.pool == pool);
            outcomes = others;
            let planned = next.pools.iter().find(|next| next.pool == pool);
            let recorded = self.reconciler.store.load_pool(&pool).await?;
            let done = rest.settle(own, planned, recorded.as_ref());
            for step in done {
                self.told.done(rest.plan, step, self.since.elapsed());
            }
            let goes_on = rest.goes_on();
            self.rests.insert(pool.clone(), rest);
            if !goes_on {
                self.end(&pool);
            }
        }
        Ok(())
    }

    /// Plans and applies what is left, and nothing else.
    async fn carry_out(&self) -> Result<(Plan, Vec<PoolOutcome>), PoolError> {
        let rests = &self.rests;
        let recorded = self.reconciler.store.load().await?;
        let options = PlanOptions {
            mode: self.plan.mode,
            only_pools: Some(rests.keys().cloned().collect()),
            targets: rests.iter().flat_map(|(pool, rest)| rest.addresses(pool)).collect(),
            replace: rests
                .iter()
                .flat_map(|(pool, rest)| rest.requested(recorded.iter().find(|r| r.id == *pool)))
                .collect(),
            allow_empty: true,
            override_guards: self.plan.overridden_guards.clone(),
        };
        let desired = rests.values().filter_map(|rest| {
            let secrets = rest.plan.secrets.clone();
            Some(DesiredPool { secrets, ..as_desired(rest.plan)? })
        });
        let desired: Vec<DesiredPool> = desired.collect();
        // What it would refuse was approved already, and what was not is left out.
        let mut next = self.reconciler.plan_settled(&desired, &options, true).await?.plan;
        next.pools.retain_mut(|next| {
            let Some(rest) = rests.get(&next.pool) else { return false };
            next.narrowed = rest.plan.narrowed;
            next.records_config = false;
            next.settings.clear();
            next.steps.retain(|step| rest.slots().contains(&step.slot));
            true
        });
        let observer = self.observer.clone();
        let outcomes = self.reconciler.apply(&next, &self.hold.locks(), observer).await?;
        Ok((next, outcomes))
    }

    /// Ends the run in one pool.
    fn end(&mut self, pool: &PoolId) {
        if let Some(rest) = self.rests.remove(pool) {
            self.told.held(&rest, self.since.elapsed());
            self.ended.push(rest.outcome);
        }
    }

    /// Ends the run in every pool, because the state does not let it go on.
    fn give_up(&mut self, error: &StateError) {
        let pools: Vec<PoolId> = self.rests.keys().cloned().collect();
        for pool in pools {
            if let Some(rest) = self.rests.get_mut(&pool) {
                rest.outcome.stopped_by = Some(error.clone());
            }
            self.end(&pool);
        }
    }
}

impl<'a> Rest<'a> {
    /// Returns what is left when another round may go on with it.
    fn of(
        plan: &'a PoolPlan,
        outcome: &PoolOutcome,
        applied: Option<StaticPoolConfig>,
    ) -> Option<Self> {
        let open = plan.steps.iter().enumerate();
        let open = open.filter(|(number, _)| outcome.unfinished.contains(number));
        let steps = open.map(|(_, step)| step).collect();
        let outcome = outcome.clone();
        let mut rest = Self { plan, steps, given_up: 0, outcome, applied, is_last: false };
        rest.leave_out_failures();
        rest.goes_on().then_some(rest)
    }

    /// Returns whether another round may do more.
    fn goes_on(&self) -> bool {
        self.outcome.waits_for_jobs() && !self.steps.is_empty()
    }

    /// What failed is not tried again, and what was not begun because of it is not begun later either.
    fn leave_out_failures(&mut self) {
        if self.outcome.failures.is_empty() {
            return;
        }
        let held: BTreeSet<Slot> =
            self.outcome.held.iter().map(|(worker, _)| worker.slot).collect();
        let fails_fast = self.plan.provisioning.fails_fast();
        self.steps.retain(|step| held.contains(&step.slot) && !fails_fast);
        self.given_up = self.outcome.skipped;
    }

    fn slots(&self) -> BTreeSet<Slot> {
        self.steps.iter().map(|step| step.slot).collect()
    }

    fn addresses<'r>(&'r self, pool: &'r PoolId) -> impl Iterator<Item = Address> + 'r {
        self.steps.iter().map(|step| Address { pool: pool.clone(), slot: Some(step.slot) })
    }

    /// Returns whether a step that waited for a job need not wait any more.
    fn has_a_free_one(&self, pool: &PoolId, leased: &BTreeSet<(PoolId, WorkerKey)>) -> bool {
        // Only of those that are to go: their successors may have got jobs, and keep them.
        let has_job = |step: &&&Step| {
            step.reap.iter().chain(&step.delete).any(|old| {
                let key = WorkerKey { slot: step.slot, generation: old.generation };
                leased.contains(&(pool.clone(), key))
            })
        };
        let busy: BTreeSet<Slot> =
            self.steps.iter().filter(has_job).map(|step| step.slot).collect();
        let held = self.outcome.held.iter().map(|(worker, _)| worker.slot);
        held.into_iter().any(|slot| !busy.contains(&slot))
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

    /// Takes over what became of a round; returns the steps that are done: nothing is left to do in their
    /// slot. One that deletes is done when its worker is gone; should it be wanted after all, it stays open.
    fn settle(
        &mut self,
        outcomes: Vec<PoolOutcome>,
        next: Option<&PoolPlan>,
        recorded: Option<&RecordedPool>,
    ) -> Vec<&'a Step> {
        let own = self.slots();
        let open = |outcome: &PoolOutcome| {
            let numbers = outcome.unfinished.iter();
            numbers.filter_map(|n| Some(next?.steps.get(*n)?.slot)).collect::<Vec<_>>()
        };
        let waiting = next.into_iter().flat_map(|next| &next.waiting);
        let undecided: BTreeSet<Slot> =
            waiting.map(|waiting| waiting.worker.slot).filter(|s| own.contains(s)).collect();
        let mut left = undecided.clone();
        let outcome = &mut self.outcome;
        (outcome.held, outcome.skipped) = (Vec::new(), self.given_up);
        for (number, next) in outcomes.into_iter().enumerate() {
            // Only the first one is about this plan's steps; see `Rounds::begin`.
            if number == 0 {
                left.extend(open(&next));
            }
            outcome.add(PoolOutcome { done: Summary::default(), ..next });
        }
        if !undecided.is_empty() {
            let why = "what became of an interrupted create is not known yet";
            outcome.unsure.get_or_insert_with(|| why.to_owned());
        }
        let is_there = |step: &Step, generation: Generation| {
            let workers = recorded.into_iter().flat_map(|pool| &pool.workers);
            let mut own = workers.filter(|w| w.slot == step.slot && w.generation == generation);
            own.any(|worker| worker.phase != Phase::Deleted)
        };
        let (open, done): (Vec<&Step>, Vec<&Step>) = self.steps.drain(..).partition(|step| {
            let stays = step.action == Action::Delete
                && step.delete.iter().any(|old| old.recorded && is_there(step, old.generation));
            left.contains(&step.slot) || stays
        });
        let stay = open.iter().filter(|step| !left.contains(&step.slot)).count();
        outcome.skipped += u32::try_from(stay).unwrap_or(u32::MAX);
        outcome.done = done.iter().map(|step| step.summary()).chain([outcome.done]).sum();
        self.steps = open;
        self.leave_out_failures();
        done
    }
}

/// What was told so far: in a later round nothing begins or waits for the first time.
struct Told {
    observer: Observer,
    seen: Mutex<BTreeSet<(PoolId, Slot, &'static str)>>,
    /// Whether the first round is over.
    again: AtomicBool,
}

impl Told {
    fn tell(&self, event: ApplyEvent) {
        let kind = match event.kind {
            ApplyEventKind::Started => "started",
            ApplyEventKind::Draining { .. } => "draining",
            ApplyEventKind::Completed { .. } => "over",
            ApplyEventKind::Failed { .. }
            | ApplyEventKind::Retrying { .. }
            | ApplyEventKind::Found { .. }
            | ApplyEventKind::Progress(_) => "",
        };
        let key = (event.pool.clone(), event.worker.slot, kind);
        let is_new = self.seen.lock().unwrap_or_else(PoisonError::into_inner).insert(key);
        if is_new || !self.again.load(Ordering::SeqCst) || matches!(kind, "" | "over") {
            (self.observer)(event);
        }
    }

    /// Tells of a step that somebody else did.
    fn done(&self, plan: &PoolPlan, step: &Step, elapsed: Duration) {
        let key = (plan.pool.clone(), step.slot, "over");
        if !self.seen.lock().unwrap_or_else(PoisonError::into_inner).contains(&key) {
            let kind = ApplyEventKind::Completed { elapsed, provider_id: None };
            self.tell(event(plan, step, kind));
        }
    }

    /// Tells that the steps which still wait are given up.
    fn held(&self, rest: &Rest<'_>, elapsed: Duration) {
        for (worker, why) in &rest.outcome.held {
            if let Some(step) = rest.steps.iter().find(|step| step.slot == worker.slot) {
                let kind = ApplyEventKind::Failed { elapsed, why: why.clone() };
                self.tell(event(rest.plan, step, kind));
            }
        }
    }
}

fn event(plan: &PoolPlan, step: &Step, kind: ApplyEventKind) -> ApplyEvent {
    let (pool, worker) = (plan.pool.clone(), worker_of(plan)(step));
    ApplyEvent { pool, worker, action: step.action, reason: step.reason, kind }
}
