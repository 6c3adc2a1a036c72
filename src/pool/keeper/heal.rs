//! The loop that keeps pools as they should be: observe, plan, apply what a server may do by itself.
//!
//! A wake-up carries no data: it only says "look again". A restart, a timer, a worker that broke and a
//! file that changed all lead here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::{Keeper, Looked, Mode};
use crate::apply::{ApplyEvent, ApplyEventKind, Observer, PoolOutcome};
use crate::clock::Stopwatch;
use crate::config::LoadedPool;
use crate::desired::DesiredPool;
use crate::plan::remedy::{Remedy, remedy};
use crate::plan::{Plan, PlanOptions, PoolPlan, RecordedPool};
use crate::pool::hold::{Hold, Patience};
use crate::pool::{PoolError, Reconciler};
use crate::state::{Retention, StateError};
use crate::worker::{Address, PoolId};

/// How often the pools are looked at although nothing was heard of them: orphans and drift make no noise.
const LOOK: Duration = Duration::from_secs(30);
/// How long at least between two looks.
const PAUSE: Duration = Duration::from_millis(50);
/// How many times as long as a look took nothing is looked at after it.
const REST: u32 = 3;
const LONGEST_REST: Duration = Duration::from_secs(2);
/// How often what is old is forgotten.
const FORGET: Duration = Duration::from_secs(60);
/// How many provider calls may be under way in all pools together.
const PARALLELISM: usize = 100;
/// How long things are remembered; keys as long as they are promised.
const KEEP: Retention = Retention {
    events: Duration::from_secs(30 * 86_400),
    leases: Duration::from_secs(7 * 86_400),
    keys: Duration::from_secs(86_400),
};

/// Looks after the pools until the keeper closes.
pub(super) async fn heal(keeper: Keeper) {
    let chores = keeper.desk.chores();
    loop {
        let since = Stopwatch::start();
        let again = look(&keeper).await;
        // A look at a large state takes its time: most of it is left to others, whoever calls.
        let rest = PAUSE.max(since.elapsed() * REST).min(LONGEST_REST);
        let pause = again.unwrap_or(LOOK).clamp(rest, LOOK);
        tokio::select! {
            () = keeper.closed() => return,
            _ = timeout(pause, chores.notified()) => {}
        }
        sleep(rest).await;
    }
}

/// Looks once, and has repaired what may be repaired; returns when to look again at the latest, when
/// something waits for that. Pools are repaired side by side: a slow one keeps no other waiting.
async fn look(keeper: &Keeper) -> Option<Duration> {
    if keeper.mode() == Mode::Off {
        return observe_only(keeper).await;
    }
    let plan = match plan(keeper).await {
        Ok(plan) => plan,
        Err(error) => {
            tracing::warn!(%error, "the pools cannot be looked at");
            keeper.note_all(&error.to_string()).await;
            return Some(LOOK / 6);
        }
    };
    let mut again: Option<Duration> = None;
    for pool in plan.pools {
        // Something in this process works on it already, and looks again when it is done.
        if keeper.store.has_locked(&pool.pool) {
            continue;
        }
        // What may not be done now needs neither lock nor second look.
        let narrowed = narrow(keeper, &pool).await;
        let until = match narrowed {
            Ok(remedy) if remedy.plan.is_empty() => finish(keeper, &remedy, &[]).await,
            Ok(_) => {
                let keeper = keeper.clone();
                tokio::spawn(async move { repair_aside(&keeper, &pool.pool).await });
                None
            }
            Err(error) => {
                keeper.note(&pool.pool, Some(error.to_string()));
                Some(LOOK / 6)
            }
        };
        again = [again, until].into_iter().flatten().min();
    }
    again
}

/// Repairs one pool, and has it looked at again when there may be more to do.
async fn repair_aside(keeper: &Keeper, pool: &PoolId) {
    let again = tokio::select! {
        () = keeper.closed() => return,
        again = repair(keeper, pool) => again,
    };
    if let Some(pause) = again {
        tokio::select! {
            () = keeper.closed() => return,
            () = sleep(pause) => {}
        }
        keeper.look_again();
    }
}

/// Forgets what is old, until the keeper closes.
pub(super) async fn forget(keeper: Keeper) {
    loop {
        while let Ok(true) = keeper.store.forget_old(KEEP).await {}
        tokio::select! {
            () = keeper.closed() => return,
            () = sleep(FORGET) => {}
        }
    }
}

/// Nothing is repaired, but what is there is known.
async fn observe_only(keeper: &Keeper) -> Option<Duration> {
    match plan(keeper).await {
        Err(error) => keeper.note_all(&error.to_string()).await,
        Ok(plan) => plan.pools.iter().for_each(|pool| keeper.note(&pool.pool, None)),
    }
    None
}

/// Plans for all pools as they were last applied.
async fn plan(keeper: &Keeper) -> Result<Plan, PoolError> {
    let recorded = keeper.store.load().await?;
    let (reconciler, desired) = reconciler(keeper, &recorded).await?;
    // One that goes has workers and no config: what is left of it is deleted.
    let targets: Vec<Address> = recorded
        .iter()
        .filter(|pool| !pool.is_gone())
        .map(|pool| Address { pool: pool.id.clone(), slot: None })
        .collect();
    if targets.is_empty() {
        let options = PlanOptions { allow_empty: true, ..PlanOptions::default() };
        let mut planned = reconciler.plan(&[], &options, false).await?;
        planned.plan.pools.clear();
        return Ok(planned.plan);
    }
    let options = PlanOptions { targets, allow_empty: true, ..PlanOptions::default() };
    let (planned, failed, blind) = reconciler.plan_what_is_seen(&desired, &options).await?;
    keeper.set_unseen(failed);
    for (pool, why) in blind {
        tracing::warn!(%pool, why, "a pool cannot be looked at");
        keeper.note_unseen(&pool, why);
    }
    Ok(planned.plan)
}

/// What was applied is what is desired.
async fn reconciler(
    keeper: &Keeper,
    recorded: &[RecordedPool],
) -> Result<(Reconciler, Vec<DesiredPool>), PoolError> {
    let pools: Vec<LoadedPool> = recorded
        .iter()
        .filter_map(|pool| pool.applied.as_ref())
        .map(|applied| LoadedPool {
            config: applied.config.clone(),
            provider: applied.provider.clone(),
            place: applied.origin.clone(),
            origins: BTreeMap::new(),
        })
        .collect();
    let reconciler = keeper.reconciler(&pools, PARALLELISM, keeper.unseen()).await?;
    let desired = reconciler.desired(&pools);
    Ok((reconciler, desired))
}

/// Repairs one pool as far as that may be done now; returns how long until more may be.
async fn repair(keeper: &Keeper, pool: &PoolId) -> Option<Duration> {
    match try_repair(keeper, pool).await {
        Ok(again) => again,
        // A run that is under way has the lock.
        Err(PoolError::State(error @ StateError::Locked { .. })) => {
            if !keeper.store.has_locked(pool) {
                keeper.note(pool, Some(error.to_string()));
            }
            Some(Duration::from_secs(1))
        }
        Err(error) => {
            tracing::warn!(%error, %pool, "a pool was not repaired");
            keeper.note(pool, Some(error.to_string()));
            Some(LOOK / 6)
        }
    }
}

async fn try_repair(keeper: &Keeper, pool: &PoolId) -> Result<Option<Duration>, PoolError> {
    let own = BTreeSet::from([pool.clone()]);
    let hold = Hold::take(&keeper.store, &own, Patience::none()).await?;
    let outcome = under_lock(keeper, pool, &hold).await;
    hold.give_back().await;
    let (remedy, outcomes) = outcome?;
    Ok(finish(keeper, &remedy, &outcomes).await)
}

/// Plans again, now that nobody else works on the pool, and does what may be done.
async fn under_lock(
    keeper: &Keeper,
    pool: &PoolId,
    hold: &Hold,
) -> Result<(Remedy, Vec<PoolOutcome>), PoolError> {
    let Some(now) = keeper.store.load_pool(pool).await? else {
        return Err(StateError::Conflict(format!("pool {pool} is gone")).into());
    };
    let (reconciler, mut desired) = reconciler(keeper, std::slice::from_ref(&now)).await?;
    if keeper.mode() != Mode::Full {
        // What was applied was applied by somebody else, whose secrets may be newer than those of this process: another
        // value alone is no reason to replace a worker.
        for hash in desired.iter_mut().flat_map(|pool| pool.secrets.values_mut()) {
            *hash = None;
        }
    }
    let target = Address { pool: pool.clone(), slot: None };
    let options =
        PlanOptions { targets: vec![target], allow_empty: true, ..PlanOptions::default() };
    let planned = reconciler.plan(&desired, &options, true).await?;
    let Some(own) = planned.plan.pools.iter().find(|plan| plan.pool == *pool) else {
        let why = match reconciler.unseen.iter().next() {
            Some((provider, _)) => format!("the provider {provider} cannot be listed"),
            None => "it is gone".to_owned(),
        };
        return Err(StateError::Conflict(format!("pool {pool}: {why}")).into());
    };
    let mut remedy = narrow(keeper, own).await?;
    // A run that waits for jobs drains their workers: that is not ours to lift.
    if keeper.store.somebody_waits(pool).await? {
        remedy.plan.settings.clear();
        remedy.plan.unchanged.clear();
    }
    if !planned.plan.refusals.is_empty() {
        return Err(PoolError::Refused(planned.plan.refusals));
    }
    if remedy.plan.is_empty() {
        return Ok((remedy, Vec::new()));
    }
    let locks = hold.locks();
    if let Some(lock) = locks.get(pool) {
        keeper.store.record_tries(lock, remedy.begun.clone()).await?;
    }
    let narrowed = Plan { pools: vec![remedy.plan.clone()], ..planned.plan };
    let outcomes = reconciler.apply(&narrowed, &locks, observer(keeper)).await?;
    Ok((remedy, outcomes))
}

async fn narrow(keeper: &Keeper, plan: &PoolPlan) -> Result<Remedy, PoolError> {
    let tried = keeper.store.tried(&plan.pool).await?;
    let config = plan.config.clone().map(|config| (config.remediation, config.fixed_size));
    let (remediation, size) = config.unwrap_or_default();
    let tried_out = keeper.store.tried_out(&plan.pool).await?;
    if !tried_out.is_empty() {
        tracing::debug!(pool = %plan.pool, ?tried_out, "workers that are tried out stay what they are");
    }
    Ok(remedy(plan, &remediation, size, &tried, &tried_out, keeper.clock.now()))
}

/// Says how it went, and when to look again.
async fn finish(keeper: &Keeper, remedy: &Remedy, outcomes: &[PoolOutcome]) -> Option<Duration> {
    let pool = &remedy.plan.pool;
    keeper.set_stopped(pool, remedy.stopped).await;
    let failures: Vec<String> = outcomes
        .iter()
        .flat_map(|outcome| &outcome.failures)
        .map(|(worker, why)| format!("{worker}: {why}"))
        .chain(
            outcomes
                .iter()
                .filter_map(|outcome| outcome.stopped_by.as_ref())
                .map(ToString::to_string),
        )
        .collect();
    let stopped = remedy.stopped.map(|(broken, limit)| {
        format!(
            "{broken} workers are broken, more than max_unhealthy ({limit}): none is replaced; mend what broke \
             them, or have `pool apply` replace them all the same"
        )
    });
    let error = failures.first().cloned().or(stopped);
    if let Some(error) = &error {
        tracing::warn!(%pool, error, "a pool is not as it should be");
    }
    // What failed is not mended by waiting for the next try.
    let waits = outcomes.is_empty() && remedy.again_at.is_some();
    let error = error.or_else(|| waits.then(|| keeper.repair_error(pool)).flatten());
    keeper.note_as(pool, error, true);
    keeper.desk.glance();
    let now = keeper.clock.now();
    let until =
        remedy.again_at.map(|at| Duration::try_from(at.duration_since(now)).unwrap_or_default());
    // What was done may have made room for more.
    let held = outcomes.iter().any(|outcome| !outcome.held.is_empty());
    let more = (!outcomes.is_empty() && failures.is_empty() && !held).then_some(PAUSE);
    // What failed is tried again after its back-off, which began when it did.
    let backoff = remedy.plan.config.as_ref().map(|config| config.remediation.backoff.get());
    let retry = backoff.filter(|_| !failures.is_empty());
    [until, more, retry].into_iter().flatten().min()
}

/// Tells whoever measures what happens.
pub(super) fn observer(keeper: &Keeper) -> Observer {
    let (watcher, desk) = (Arc::clone(&keeper.watcher), Arc::clone(&keeper.desk));
    Arc::new(move |event: ApplyEvent| {
        use crate::plan::{Action, Reason};
        let brings = !matches!(event.action, Action::Delete | Action::Update);
        match &event.kind {
            ApplyEventKind::Started | ApplyEventKind::Retrying { .. } if brings => {
                watcher.provisioning(&event.pool, None);
            }
            ApplyEventKind::Completed { .. } if brings => {
                watcher.provisioning(&event.pool, Some(true));
                if !matches!(event.action, Action::Adopt)
                    && event.reason != Reason::CreateBecauseEmpty
                {
                    watcher.replaced(&event.pool, &event.reason.name());
                }
                desk.glance();
            }
            ApplyEventKind::Failed { .. } if brings => {
                watcher.provisioning(&event.pool, Some(false));
            }
            _ => {}
        }
        let worker = event.worker.to_string();
        match &event.kind {
            ApplyEventKind::Failed { why, .. } => {
                tracing::warn!(worker, reason = event.reason.name(), why, "a step failed");
            }
            ApplyEventKind::Completed { .. } => {
                tracing::info!(worker, reason = event.reason.name(), "a step is done");
            }
            ApplyEventKind::Found { why } => {
                tracing::warn!(worker, why, "a create had no answer, and its worker is there");
            }
            ApplyEventKind::Started
            | ApplyEventKind::Progress(_)
            | ApplyEventKind::Retrying { .. }
            | ApplyEventKind::Draining { .. } => {}
        }
    })
}

impl Keeper {
    pub(super) fn note(&self, pool: &PoolId, error: Option<String>) {
        self.note_as(pool, error, false);
    }

    fn note_as(&self, pool: &PoolId, error: Option<String>, of_repair: bool) {
        let looked = Looked { at: self.clock.now(), error, observed: true, of_repair };
        let mut all = self.looked.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        all.insert(pool.clone(), looked);
    }

    /// A look at a pool failed: what was seen before was seen.
    fn note_unseen(&self, pool: &PoolId, why: String) {
        let mut all = self.looked.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let observed = all.get(pool).is_some_and(|looked| looked.observed);
        let (at, error) = (self.clock.now(), Some(why));
        let looked = Looked { at, error, observed, of_repair: false };
        all.insert(pool.clone(), looked);
    }

    /// Returns what went wrong at the latest repair of a pool.
    fn repair_error(&self, pool: &PoolId) -> Option<String> {
        let all = self.looked.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        all.get(pool).filter(|looked| looked.of_repair)?.error.clone()
    }

    /// Returns the providers that could not be listed a moment ago, and why: nobody waits for them again so
    /// soon.
    pub(super) fn unseen(&self) -> BTreeMap<String, String> {
        let all = self.unseen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let recent = all.iter().filter(|(_, (since, _))| since.elapsed() < LOOK);
        recent.map(|(name, (_, why))| (name.clone(), why.clone())).collect()
    }

    pub(super) fn set_unseen(&self, failed: BTreeMap<String, String>) {
        let mut all = self.unseen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        all.retain(|_, (since, _)| since.elapsed() < LOOK);
        for (name, why) in failed {
            all.insert(name, (Stopwatch::start(), why));
        }
    }

    /// A look at all pools failed; those that were looked at before keep that, with the error.
    async fn note_all(&self, error: &str) {
        let Ok(pools) = self.store.pool_ids().await else { return };
        let mut all = self.looked.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for pool in pools {
            if let Some(looked) = all.get_mut(&pool) {
                looked.error = Some(error.to_owned());
            }
        }
    }

    /// Says once that replacing stopped, and once that it goes on.
    async fn set_stopped(&self, pool: &PoolId, stopped: Option<(u32, u32)>) {
        let changed = {
            let mut all = self.stopped.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            match stopped {
                Some(_) => all.insert(pool.clone()),
                None => all.remove(pool),
            }
        };
        if !changed {
            return;
        }
        self.watcher.remediation(pool, stopped.is_some());
        let (kind, why) = match stopped {
            Some((broken, limit)) => (
                "remediation_stopped",
                format!("{broken} workers are broken, more than max_unhealthy ({limit})"),
            ),
            None => ("remediation_resumed", String::new()),
        };
        tracing::warn!(%pool, kind, why);
        // The metric and the log say it as well.
        let _not_told = self.store.tell(pool, kind, &why).await.is_err();
    }
}
