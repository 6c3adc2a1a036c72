//! The one path of every run: observe, plan, check, apply, look again. The CLI and `StaticPoolManager`
//! are two doors to it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use pool_provider::{DeploymentId, SharedProvider, WorkerProvider};
use tokio::time::sleep;

use super::PoolError;
use super::secrets::Secrets;
use crate::apply::{self, Applier, Observer, PoolOutcome};
use crate::clock::Clock;
use crate::config::LoadedPool;
use crate::desired::{DesiredPool, Spec};
use crate::plan::{self, Listed, Observation, Plan, PlanInput, PlanOptions, RecordedPool, Step};
use crate::state::{PoolLock, Store};
use crate::worker::PoolId;

/// How often a run waits for the outcome of interrupted creates before it leaves them to the next run.
const MAX_WAITS: u32 = 3;

/// Everything that a run needs.
#[derive(Clone)]
pub struct Reconciler {
    /// The state.
    pub store: Store,
    /// The providers that the run may need, by name.
    pub providers: BTreeMap<String, SharedProvider>,
    /// Reads secrets.
    pub secrets: Secrets,
    /// Tells the time.
    pub clock: Clock,
    /// How many provider calls may be under way in all pools together.
    pub parallelism: usize,
}

/// What a plan was made from, and the plan.
#[derive(Debug, Clone)]
pub struct Planned {
    /// The plan.
    pub plan: Plan,
    /// What was recorded when it was made.
    pub recorded: Vec<RecordedPool>,
}

impl Reconciler {
    /// Turns loaded pools into desired ones.
    pub fn desired(&self, pools: &[LoadedPool]) -> Vec<DesiredPool> {
        let desired = |pool: &LoadedPool| {
            let config = &pool.config;
            let worker = config.worker_config.clone();
            let spec = Spec { worker_type: config.worker_type, worker };
            DesiredPool::new(pool, self.secrets.hashes(&spec))
        };
        pools.iter().map(desired).collect()
    }

    /// Observes and plans. Without `refresh` the providers are not asked, unless an interrupted run left
    /// an operation open: only they can tell what became of it.
    ///
    /// # Errors
    /// When the state cannot be read or a provider cannot be listed.
    pub async fn plan(
        &self,
        desired: &[DesiredPool],
        options: &PlanOptions,
        refresh: bool,
    ) -> Result<Planned, PoolError> {
        let recorded = self.store.load().await?;
        let workers = || recorded.iter().flat_map(|pool| &pool.workers);
        let refresh = refresh || workers().any(|worker| worker.operation.is_some());
        let used: BTreeSet<&str> = desired
            .iter()
            .map(|pool| pool.provider.as_str())
            .chain(workers().map(|worker| worker.provider.as_str()))
            .collect();
        let mut observed = BTreeMap::new();
        for name in used {
            let provider = self
                .providers
                .get(name)
                .ok_or_else(|| PoolError::UnknownProvider(name.to_owned()))?;
            let observation = if refresh {
                let listed = observe(provider, self.store.deployment()).await;
                Observation::Listed(listed.map_err(|error| PoolError::Provider {
                    name: name.to_owned(),
                    reason: format!("listing its workers: {error}"),
                })?)
            } else {
                Observation::NotAsked(provider.describe())
            };
            observed.insert(name.to_owned(), observation);
        }
        let plan = plan::plan(&PlanInput {
            deployment: Some(self.store.deployment()).filter(|_| !self.store.is_ephemeral()),
            desired,
            recorded: &recorded,
            observed: &observed,
            options,
            now: self.clock.now(),
        });
        Ok(Planned { plan, recorded })
    }

    /// Observes and plans; when interrupted creates may still have an effect that does not show, waits
    /// until they cannot, a few times at most.
    ///
    /// # Errors
    /// As [`Reconciler::plan`].
    pub async fn plan_settled(
        &self,
        desired: &[DesiredPool],
        options: &PlanOptions,
        refresh: bool,
    ) -> Result<Planned, PoolError> {
        let mut planned = self.plan(desired, options, refresh).await?;
        for _ in 0..MAX_WAITS {
            let open = planned.plan.pools.iter().flat_map(|pool| &pool.waiting);
            let Some(until) = open.filter_map(|waiting| waiting.until).max() else { break };
            let left = until.duration_since(self.clock.now());
            // Rounded up: a millisecond too early would find nothing decided.
            sleep(Duration::try_from(left).unwrap_or_default() + Duration::from_millis(1)).await;
            planned = self.plan(desired, options, true).await?;
        }
        Ok(planned)
    }

    /// Carries out a plan, then looks once more and deletes what calls that were still in flight brought
    /// after all.
    ///
    /// # Errors
    /// When the plan breaks its own promises; nothing was done then. What fails on the way is in the
    /// outcomes.
    pub async fn apply(
        &self,
        plan: &Plan,
        locks: &BTreeMap<PoolId, PoolLock>,
        observer: Observer,
    ) -> Result<Vec<PoolOutcome>, PoolError> {
        let broken = plan::check::check(plan);
        if let Some(first) = broken.first() {
            return Err(PoolError::BrokenPlan(first.to_string()));
        }
        let secrets = self.secrets.clone();
        let applier = Applier {
            store: self.store.clone(),
            providers: self.providers.clone(),
            resolver: Arc::new(move |spec| secrets.resolve(spec)),
            observer,
            parallelism: self.parallelism,
        };
        let outcomes = apply::apply(&applier, plan, locks).await;
        if outcomes.iter().all(|outcome| outcome.stopped_by.is_none()) {
            self.sweep(&applier, plan, locks).await?;
        }
        Ok(outcomes)
    }

    /// Deletes what is superseded and did not show before. Nothing else: a difference that is new since
    /// the plan was made needs a plan of its own.
    async fn sweep(
        &self,
        applier: &Applier,
        plan: &Plan,
        locks: &BTreeMap<PoolId, PoolLock>,
    ) -> Result<(), PoolError> {
        let options = PlanOptions { allow_empty: true, ..PlanOptions::default() };
        let desired: Vec<DesiredPool> = plan.pools.iter().filter_map(as_desired).collect();
        let mut again = self.plan(&desired, &options, true).await?.plan;
        let sweeps =
            |step: &Step| step.action == plan::Action::Delete && step.reason.is_left_behind();
        again.pools.retain_mut(|pool| {
            pool.steps.retain(sweeps);
            pool.records_config = false;
            pool.settings.clear();
            !pool.steps.is_empty() && locks.contains_key(&pool.pool)
        });
        if !again.pools.is_empty() {
            apply::apply(applier, &again, locks).await;
        }
        Ok(())
    }
}

/// The pool that a plan works towards, as an input of another plan.
fn as_desired(plan: &plan::PoolPlan) -> Option<DesiredPool> {
    Some(DesiredPool {
        id: plan.pool.clone(),
        provider: plan.provider.clone(),
        size: plan.config.as_ref()?.fixed_size,
        spec: plan.spec()?,
        secrets: BTreeMap::new(),
        config: plan.config.clone()?,
        place: plan.place.clone(),
        overridden: plan.overridden.clone(),
    })
}

/// Lists every worker of `owner`, page by page.
///
/// # Errors
/// What the provider says.
pub async fn observe(
    provider: &impl WorkerProvider,
    owner: &DeploymentId,
) -> Result<Listed, pool_provider::ProviderError> {
    let mut listed =
        Listed { description: provider.describe(), workers: Vec::new(), complete: true };
    let mut page = None;
    loop {
        let listing = provider.list(owner, page.as_ref()).await?;
        listed.complete &= listing.complete;
        listed.workers.extend(listing.workers);
        match listing.next {
            Some(next) if Some(&next) != page.as_ref() => page = Some(next),
            Some(_) | None => return Ok(listed),
        }
    }
}
