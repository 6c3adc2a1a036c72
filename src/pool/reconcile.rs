//! The one path of every run: observe, plan, check, apply, look again. The CLI and `StaticPoolManager`
//! are two doors to it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use pool_provider::{Call, DeploymentId, ProviderError, SharedProvider, WorkerProvider};
use tokio::time::{sleep, timeout};

use super::secrets::Secrets;
use super::{PoolError, fit};
use crate::apply::{self, Applier, Leased, Observer, PoolOutcome};
use crate::clock::Clock;
use crate::config::LoadedPool;
use crate::desired::{DesiredPool, Spec};
use crate::plan::{self, Listed, Observation, Plan, PlanInput, PlanOptions, RecordedPool, Step};
use crate::state::{PoolLock, Store};
use crate::worker::{PoolId, Slot};

/// How hard a listing is tried.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    attempts: u32,
    /// How long each page may take.
    pub(super) timeout: Duration,
}

impl Effort {
    /// A run needs all listings.
    pub const PATIENT: Self = Self { attempts: 3, timeout: Duration::from_secs(60) };
    /// A server looks again soon, and has other pools to look after.
    pub const BRIEF: Self = Self { attempts: 1, timeout: Duration::from_secs(15) };
}

/// How long the first pause between two tries is.
const LISTING_PAUSE: Duration = Duration::from_millis(500);

/// How often a run waits for the outcome of interrupted creates before it leaves them to the next run.
const MAX_WAITS: u32 = 3;

/// Everything that a run needs.
#[derive(Clone)]
pub struct Reconciler {
    /// The state.
    pub store: Store,
    /// The providers that the run may need, by name.
    pub providers: BTreeMap<String, SharedProvider>,
    /// Those that could not be opened, and why: whether that matters is the plan's to say.
    pub absent: Unseen,
    /// Reads secrets.
    pub secrets: Secrets,
    /// Tells the time.
    pub clock: Clock,
    /// How many provider calls may be under way in all pools together.
    pub parallelism: usize,
    /// What a run does about workers that jobs have.
    pub leased: Leased,
    /// Providers that are not asked: their pools are left alone.
    pub unseen: Unseen,
    /// How hard a listing is tried.
    pub effort: Effort,
}

/// Providers that cannot be listed, and why.
pub type Unseen = BTreeMap<String, String>;

/// What a plan is made from.
struct Input {
    desired: Vec<DesiredPool>,
    options: PlanOptions,
    recorded: Vec<RecordedPool>,
    observed: BTreeMap<String, Observation>,
}

impl Input {
    /// Leaves out every pool that has, had or wants workers of a provider that is not seen; returns them, and
    /// why.
    fn leave_out(&mut self, unseen: &Unseen) -> BTreeMap<PoolId, String> {
        if unseen.is_empty() {
            return BTreeMap::new();
        }
        let recorded = self.recorded.iter().flat_map(|pool| {
            pool.workers.iter().map(move |worker| (&pool.id, worker.provider.as_str()))
        });
        let desired = self.desired.iter().map(|pool| (&pool.id, pool.provider.as_str()));
        let blind: BTreeMap<PoolId, String> = recorded
            .chain(desired)
            .filter_map(|(pool, provider)| {
                let why = unseen.get(provider)?;
                Some((pool.clone(), format!("the provider {provider}: {why}")))
            })
            .collect();
        self.desired.retain(|pool| !blind.contains_key(&pool.id));
        self.recorded.retain(|pool| !blind.contains_key(&pool.id));
        self.options.targets.retain(|target| !blind.contains_key(&target.pool));
        blind
    }
}

/// What a plan was made from, and the plan.
#[derive(Debug, Clone)]
pub struct Planned {
    /// The plan.
    pub plan: Plan,
    /// What was recorded when it was made.
    pub recorded: Vec<RecordedPool>,
    /// Providers that had workers once and cannot be listed now, and why: what calls of then may still bring is
    /// not looked for there.
    pub gone: Unseen,
}

impl Reconciler {
    /// Turns loaded pools into desired ones.
    pub fn desired(&self, pools: &[LoadedPool]) -> Vec<DesiredPool> {
        let desired = |pool: &LoadedPool| {
            let spec = Spec::of(&pool.config, pool.provider.as_ref());
            let mut desired = DesiredPool::new(pool, self.secrets.hashes(&spec));
            desired.unreadable = self.secrets.unreadable(&spec);
            if let Some(place) = fit::place(&self.providers, &desired.provider) {
                desired.provider_config =
                    desired.provider_config.map(|config| config.at(Some(&place)));
            }
            desired
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
        let known = self.store.provider_configs().await?;
        let desired = &fit::with_places(desired, &known);
        fit::verify_places(&known, desired, &recorded)?;
        if let Some(error) = fit::misplaced(&self.providers, &known, &recorded).into_values().next()
        {
            return Err(error.into());
        }
        let workers = || recorded.iter().flat_map(|pool| &pool.workers);
        let refresh = refresh || workers().any(|worker| worker.operation.is_some());
        let (observed, failed) = self.observe_all(desired, refresh).await?;
        // One that only ever had workers need not answer any more: it may be gone for good.
        let has_workers = |name: &String| workers().any(|worker| worker.provider == *name);
        let is_wanted = |name: &String| desired.iter().any(|pool| pool.provider == *name);
        let (needed, gone): (Unseen, Unseen) =
            failed.into_iter().partition(|(name, _)| has_workers(name) || is_wanted(name));
        if let Some((name, reason)) = needed.into_iter().next() {
            return Err(PoolError::Provider { name, reason });
        }
        let input =
            Input { desired: desired.clone(), options: options.clone(), recorded, observed };
        let planned = self.plan_from(input, &self.unseen).await?.0;
        fit::verify_plan(&self.providers, &planned.plan)?;
        Ok(Planned { gone, ..planned })
    }

    /// Observes and plans as far as the providers can be listed. Also
    /// returns the providers that could not be listed now and the pools that could not be looked at, and why.
    ///
    /// # Errors
    /// When the state cannot be read, or a provider is not there.
    pub async fn plan_what_is_seen(
        &self,
        desired: &[DesiredPool],
        options: &PlanOptions,
    ) -> Result<(Planned, Unseen, BTreeMap<PoolId, String>), PoolError> {
        let recorded = self.store.load().await?;
        let known = self.store.provider_configs().await?;
        let desired = fit::with_places(desired, &known);
        let (observed, failed) = self.observe_all(&desired, true).await?;
        let misplaced = fit::unseen(fit::misplaced(&self.providers, &known, &recorded));
        let unseen = self.unseen.clone().into_iter().chain(failed.clone()).chain(misplaced);
        let unseen: Unseen = unseen.collect();
        let input = Input { desired, options: options.clone(), recorded, observed };
        let (planned, blind) = self.plan_from(input, &unseen).await?;
        Ok((planned, failed, blind))
    }

    /// Lists every provider that is used or ever was, side by side; also returns which cannot be listed.
    async fn observe_all(
        &self,
        desired: &[DesiredPool],
        refresh: bool,
    ) -> Result<(BTreeMap<String, Observation>, BTreeMap<String, String>), PoolError> {
        let mut used = self.store.provider_names().await?;
        used.extend(desired.iter().map(|pool| pool.provider.clone()));
        let look = async |name: String| {
            if let Some(why) = self.absent.get(&name) {
                return Ok((name, Err(why.clone())));
            }
            let found = self.providers.get(&name);
            let provider = found.ok_or_else(|| PoolError::UnknownProvider(name.clone()))?;
            if !refresh {
                return Ok((name, Ok(Observation::NotAsked(provider.describe()))));
            }
            let listed = observe_patiently(provider, self.store.deployment(), self.effort).await;
            let listed = listed.map_err(|why| format!("listing its workers: {why}"));
            Ok::<_, PoolError>((name, listed.map(Observation::Listed)))
        };
        let asked = used.into_iter().filter(|name| !self.unseen.contains_key(name));
        let looks = futures_util::future::join_all(asked.map(look)).await;
        let (mut observed, mut unseen) = (BTreeMap::new(), BTreeMap::new());
        for looked in looks {
            match looked? {
                (name, Ok(observation)) => drop(observed.insert(name, observation)),
                (name, Err(why)) => drop(unseen.insert(name, why)),
            }
        }
        Ok((observed, unseen))
    }

    /// Plans for every pool of which all providers are seen; also returns the others, and why.
    async fn plan_from(
        &self,
        mut input: Input,
        unseen: &Unseen,
    ) -> Result<(Planned, BTreeMap<PoolId, String>), PoolError> {
        let is_narrowed = !input.options.targets.is_empty();
        let blind = input.leave_out(unseen);
        // Without targets a plan is about everything: that is not what is left of these.
        let nothing_left = is_narrowed && input.options.targets.is_empty();
        let deployment = self.store.deployment().clone();
        let deployment = Some(deployment).filter(|_| !self.store.is_ephemeral());
        let now = self.clock.now();
        // A plan of a large state takes its time: a server answers meanwhile.
        let planning = tokio::task::spawn_blocking(move || {
            let plan = plan::plan(&PlanInput {
                deployment: deployment.as_ref(),
                desired: &input.desired,
                recorded: &input.recorded,
                observed: &input.observed,
                options: &input.options,
                now,
            });
            Planned { plan, recorded: input.recorded, gone: Unseen::new() }
        });
        // It is total: it does not panic, and nobody aborts it.
        let planned = planning.await.map_err(|error| PoolError::BrokenPlan(error.to_string()));
        let mut planned = planned?;
        planned.plan.pools.retain(|pool| !nothing_left && !blind.contains_key(&pool.pool));
        Ok((planned, blind))
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
        fit::verify_plan(&self.providers, plan)?;
        // A saved plan was made with other credentials, perhaps.
        fit::verify_old(&self.providers, &self.store.provider_configs().await?, plan)?;
        let secrets = self.secrets.clone();
        let applier = Applier {
            store: self.store.clone(),
            providers: self.providers.clone(),
            resolver: Arc::new(move |spec| secrets.resolve(spec)),
            observer,
            parallelism: self.parallelism,
            leased: self.leased,
        };
        let mut outcomes = apply::apply(&applier, plan, locks).await;
        if outcomes.iter().all(|outcome| outcome.stopped_by.is_none()) {
            match self.sweep(&applier, plan, locks).await {
                Ok(swept) => {
                    outcomes.extend(swept.into_iter().filter(|swept| !swept.is_complete()));
                }
                // What was done is done, and is told; that nothing was left over is not known.
                Err(error) => {
                    if let Some(first) = outcomes.first_mut() {
                        first.unsure = Some(format!("looking for what is left over: {error}"));
                    }
                }
            }
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
    ) -> Result<Vec<PoolOutcome>, PoolError> {
        let options = PlanOptions { allow_empty: true, ..PlanOptions::default() };
        let desired: Vec<DesiredPool> = plan.pools.iter().filter_map(as_desired).collect();
        let mut again = self.plan(&desired, &options, true).await?.plan;
        let sweeps =
            |step: &Step| step.action == plan::Action::Delete && step.reason.is_left_behind();
        // What a job has was waited for already.
        let leased = |step: &Step| step.delete.iter().any(|old| old.leased);
        // A run that is narrowed to slots leaves the others alone here too.
        let narrowed: BTreeMap<&PoolId, BTreeSet<Slot>> = plan
            .pools
            .iter()
            .filter(|pool| pool.narrowed)
            .map(|pool| (&pool.pool, pool.steps.iter().map(|step| step.slot).collect()))
            .collect();
        again.pools.retain_mut(|pool| {
            pool.steps.retain(|step| sweeps(step) && !leased(step));
            if let Some(slots) = narrowed.get(&pool.pool) {
                pool.steps.retain(|step| slots.contains(&step.slot));
            }
            pool.records_config = false;
            pool.settings.clear();
            !pool.steps.is_empty() && locks.contains_key(&pool.pool)
        });
        Ok(apply::apply(applier, &again, locks).await)
    }
}

/// The pool that a plan works towards, as an input of another plan; of its secrets nothing is known.
pub(super) fn as_desired(plan: &plan::PoolPlan) -> Option<DesiredPool> {
    Some(DesiredPool {
        id: plan.pool.clone(),
        provider: plan.provider.clone(),
        provider_config: plan.provider_config.clone(),
        size: plan.config.as_ref()?.fixed_size,
        spec: plan.spec()?,
        secrets: BTreeMap::new(),
        unreadable: BTreeMap::new(),
        config: plan.config.clone()?,
        place: plan.place.clone(),
        overridden: plan.overridden.clone(),
    })
}

/// Lists like [`observe`], and again when that may help; a listing that never answers is given up.
async fn observe_patiently(
    provider: &SharedProvider,
    owner: &DeploymentId,
    effort: Effort,
) -> Result<Listed, String> {
    let mut attempt = 1;
    loop {
        let pause = match observe(provider, owner, effort.timeout).await {
            Ok(listed) => return Ok(listed),
            Err(error) if !error.is_worth_a_retry() || attempt == effort.attempts => {
                return Err(error.to_string());
            }
            Err(ProviderError::RateLimited { retry_after: Some(wait), .. }) => wait,
            Err(_) => LISTING_PAUSE * attempt,
        };
        sleep(pause).await;
        attempt += 1;
    }
}

/// Lists every worker of `owner`, page by page; each page has `limit` to come.
///
/// # Errors
/// What the provider says.
pub async fn observe(
    provider: &SharedProvider,
    owner: &DeploymentId,
    limit: Duration,
) -> Result<Listed, ProviderError> {
    let mut listed =
        Listed { description: provider.describe(), workers: Vec::new(), complete: true };
    let limit = limit.max(listed.description.slowest_look);
    let (mut page, mut seen) = (None, BTreeSet::new());
    loop {
        let turn = provider.turn(Call::Look).await;
        let listing =
            timeout(limit, provider.list(owner, page.as_ref())).await.unwrap_or_else(|_| {
                Err(ProviderError::Transient(format!("no answer within {limit:?}")))
            })?;
        drop(turn);
        listed.complete &= listing.complete;
        listed.workers.extend(listing.workers);
        match listing.next {
            Some(next) if seen.insert(next.0.clone()) => page = Some(next),
            // Providers are not trusted: what was left out would count as gone.
            Some(_) => {
                let why = "its pages lead back to an earlier one".to_owned();
                return Err(ProviderError::Transient(why));
            }
            None => return Ok(listed),
        }
    }
}
