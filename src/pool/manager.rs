//! [`ResourcePool`], and [`StaticPoolManager`] as its kind with a fixed number of workers.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use pool_provider::{SharedProvider, WorkerProvider};

use super::desk::{Desk, Given};
use super::hold::{Hold, Patience};
use super::providers::Providers;
use super::vitals::Prober;
use super::{Effort, PoolError, Reconciler, Secrets, StaticPoolState, Unseen, observe};
use crate::apply::{Leased, Observer, PoolOutcome};
use crate::clock::Clock;
use crate::config::{LoadedPool, StaticPoolConfig};
use crate::lease::{Ask, LeaseId, Outcome, Selector};
use crate::plan::{Listed, Plan, PlanOptions};
use crate::probe::Probed;
use crate::state::{Store, WorkerKey};
use crate::worker::{Address, PoolId, Slot, WorkerName};

/// What a pool's methods return: boxed, so that pools of several kinds can stand in one list.
pub type PoolFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, PoolError>> + Send + 'a>>;

/// A pool of workers, of whatever kind.
pub trait ResourcePool: Send + Sync {
    /// Returns the pool's id.
    fn id(&self) -> &PoolId;

    /// Asks the provider what exists.
    fn observe(&self) -> PoolFuture<'_, Listed>;

    /// Says what reconciling would do.
    fn plan(&self) -> PoolFuture<'_, Plan>;

    /// Makes the pool what it should be, as far as that goes in one run.
    ///
    /// # Errors
    /// [`PoolError::Refused`] when a guard forbids it; failures of single workers are in the outcome.
    fn reconcile(&self) -> PoolFuture<'_, Vec<PoolOutcome>>;

    /// Says how the pool is recorded.
    fn status(&self) -> PoolFuture<'_, StaticPoolState>;

    /// Leases workers of this pool to a job, waiting for them at most `wait`. Each is verified: its last
    /// good probe is fresh, or it is probed now.
    ///
    /// # Errors
    /// [`PoolError::Acquire`] with the reason when none is given.
    fn acquire(&self, ask: Ask, wait: Duration) -> PoolFuture<'_, Given>;

    /// Gives a lease back; one that ended before stays ended.
    fn release(&self, lease: LeaseId, outcome: Outcome) -> PoolFuture<'_, ()>;

    /// Probes a worker now. One that fails is leased to nobody until it passes.
    ///
    /// # Errors
    /// [`PoolError::UnknownWorker`] when there is no such worker.
    fn verify(&self, worker: WorkerKey) -> PoolFuture<'_, Probed>;

    /// Puts another worker in this one's place, by the same path as [`ResourcePool::reconcile`]. One that
    /// is leased is not touched before its lease ends.
    fn replace(&self, worker: WorkerKey) -> PoolFuture<'_, Vec<PoolOutcome>>;
}

/// A pool with a fixed number of workers.
#[derive(Debug, Clone)]
pub struct StaticPoolManager<T>
where
    T: WorkerProvider,
{
    config: StaticPoolConfig,
    workers: Arc<RwLock<Option<StaticPoolState>>>,
    worker_provider: T,
    store: Store,
    secrets: Secrets,
    clock: Clock,
    desk: Arc<OnceLock<Arc<Desk>>>,
}

impl<T: WorkerProvider + Clone> StaticPoolManager<T> {
    /// Builds the manager of one pool; touches nothing yet.
    pub fn new(
        config: StaticPoolConfig,
        worker_provider: T,
        store: Store,
        secrets: Secrets,
        clock: Clock,
    ) -> Self {
        let workers = Arc::new(RwLock::new(None));
        Self { config, workers, worker_provider, store, secrets, clock, desk: Arc::default() }
    }

    /// Leases workers at `desk`, with everybody else there. Without this, the pool opens a desk of its own
    /// at the first lease.
    #[must_use]
    pub fn with_desk(self, desk: Arc<Desk>) -> Self {
        Self { desk: Arc::new(OnceLock::from(desk)), ..self }
    }

    fn shared(&self) -> SharedProvider {
        SharedProvider::new(self.worker_provider.clone()).called(self.config.provider_name())
    }

    fn desk(&self) -> &Arc<Desk> {
        self.desk.get_or_init(|| {
            let name = self.config.provider_name().to_owned();
            let shared = self.shared();
            let providers = Providers::given(BTreeMap::from([(name, shared)]));
            let prober = Prober::new(self.store.clone(), providers, self.clock.clone());
            Desk::open(self.store.clone(), self.clock.clone(), prober)
        })
    }

    /// Returns the config.
    pub fn config(&self) -> &StaticPoolConfig {
        &self.config
    }

    /// Returns the pool as the latest call of `status` or `reconcile` found it.
    pub fn last_known(&self) -> Option<StaticPoolState> {
        self.workers.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn reconciler(&self) -> Reconciler {
        let shared = self.shared();
        Reconciler {
            store: self.store.clone(),
            providers: BTreeMap::from([(self.config.provider_name().to_owned(), shared)]),
            secrets: self.secrets.clone(),
            clock: self.clock.clone(),
            parallelism: self.config.provisioning.concurrency() as usize,
            leased: Leased::Wait,
            absent: Unseen::new(),
            unseen: Unseen::new(),
            effort: Effort::PATIENT,
        }
    }

    /// Narrows a run to this pool, or to one slot of it, whose worker is replaced then.
    fn options(&self, replaced: Option<Slot>) -> PlanOptions {
        let target = Address { pool: self.config.pool_id.clone(), slot: replaced };
        let replace = if replaced.is_some() { vec![target.clone()] } else { Vec::new() };
        PlanOptions { targets: vec![target], replace, ..PlanOptions::default() }
    }

    async fn run(&self, options: PlanOptions) -> Result<Vec<PoolOutcome>, PoolError> {
        let reconciler = self.reconciler();
        let desired = reconciler.desired(&[self.loaded()]);
        let own = BTreeSet::from([self.config.pool_id.clone()]);
        let hold = Hold::take(&self.store, &own, Patience::none()).await?;
        let run = async {
            let plan = reconciler.plan_settled(&desired, &options, true).await?.plan;
            if !plan.refusals.is_empty() {
                return Err(PoolError::Refused(plan.refusals));
            }
            let observer: Observer = Arc::new(|_| {});
            reconciler.apply_in_rounds(&plan, &hold, observer).await
        };
        let outcome = run.await;
        hold.give_back().await;
        self.read_status().await?;
        outcome
    }

    fn loaded(&self) -> LoadedPool {
        LoadedPool {
            config: self.config.clone(),
            provider: None,
            place: "embedded".to_owned(),
            origins: BTreeMap::new(),
        }
    }

    async fn read_status(&self) -> Result<StaticPoolState, PoolError> {
        let recorded = self.store.load().await?;
        let own = recorded.iter().find(|pool| pool.id == self.config.pool_id);
        let status = own.map_or_else(|| StaticPoolState::empty(&self.config), StaticPoolState::of);
        *self.workers.write().unwrap_or_else(PoisonError::into_inner) = Some(status.clone());
        Ok(status)
    }
}

impl<T: WorkerProvider + Clone> ResourcePool for StaticPoolManager<T> {
    fn id(&self) -> &PoolId {
        &self.config.pool_id
    }

    fn observe(&self) -> PoolFuture<'_, Listed> {
        Box::pin(async {
            let shared = self.shared();
            let limit = Effort::PATIENT.timeout;
            observe(&shared, self.store.deployment(), limit).await.map_err(|error| {
                let name = self.config.provider_name().to_owned();
                PoolError::Provider { name, reason: error.to_string() }
            })
        })
    }

    fn plan(&self) -> PoolFuture<'_, Plan> {
        Box::pin(async {
            let reconciler = self.reconciler();
            let desired = reconciler.desired(&[self.loaded()]);
            Ok(reconciler.plan(&desired, &self.options(None), true).await?.plan)
        })
    }

    fn reconcile(&self) -> PoolFuture<'_, Vec<PoolOutcome>> {
        Box::pin(self.run(self.options(None)))
    }

    fn status(&self) -> PoolFuture<'_, StaticPoolState> {
        Box::pin(self.read_status())
    }

    fn acquire(&self, ask: Ask, wait: Duration) -> PoolFuture<'_, Given> {
        Box::pin(async move {
            let selector = Selector { pool: Some(self.config.pool_id.clone()), ..ask.selector };
            Ok(self.desk().acquire(Ask { selector, ..ask }, wait).await?)
        })
    }

    fn release(&self, lease: LeaseId, outcome: Outcome) -> PoolFuture<'_, ()> {
        Box::pin(async move {
            self.desk().release(lease, outcome).await?;
            Ok(())
        })
    }

    fn verify(&self, worker: WorkerKey) -> PoolFuture<'_, Probed> {
        Box::pin(async move {
            let name = WorkerName::new(self.config.pool_id.clone(), worker.slot, worker.generation);
            let row = self.store.row_of(&name).await?;
            let verified = match row {
                Some(row) => self.desk().prober().verify(row).await?,
                None => None,
            };
            let (_, probed) = verified.ok_or_else(|| PoolError::UnknownWorker(name.to_string()))?;
            Ok(probed)
        })
    }

    fn replace(&self, worker: WorkerKey) -> PoolFuture<'_, Vec<PoolOutcome>> {
        Box::pin(async move {
            let name = WorkerName::new(self.config.pool_id.clone(), worker.slot, worker.generation);
            if self.store.row_of(&name).await?.is_none() {
                return Err(PoolError::UnknownWorker(name.to_string()));
            }
            self.run(self.options(Some(worker.slot))).await
        })
    }
}
