//! [`ResourcePool`], and [`StaticPoolManager`] as its kind with a fixed number of workers.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};

use pool_provider::{SharedProvider, WorkerProvider};

use super::{PoolError, Reconciler, Secrets, StaticPoolState, observe};
use crate::apply::{Observer, PoolOutcome};
use crate::clock::Clock;
use crate::config::{LoadedPool, StaticPoolConfig};
use crate::plan::{Listed, Plan, PlanOptions};
use crate::state::{StateError, Store, holder};
use crate::worker::PoolId;

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
        Self { config, workers, worker_provider, store, secrets, clock }
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
        let shared = SharedProvider::new(self.worker_provider.clone());
        Reconciler {
            store: self.store.clone(),
            providers: BTreeMap::from([(self.config.provider_name().to_owned(), shared)]),
            secrets: self.secrets.clone(),
            clock: self.clock.clone(),
            parallelism: self.config.provisioning.concurrency() as usize,
        }
    }

    fn options(&self) -> PlanOptions {
        let target = crate::worker::Address { pool: self.config.pool_id.clone(), slot: None };
        PlanOptions { targets: vec![target], ..PlanOptions::default() }
    }

    fn loaded(&self) -> LoadedPool {
        LoadedPool {
            config: self.config.clone(),
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
            observe(&self.worker_provider, self.store.deployment()).await.map_err(|error| {
                let name = self.config.provider_name().to_owned();
                PoolError::Provider { name, reason: error.to_string() }
            })
        })
    }

    fn plan(&self) -> PoolFuture<'_, Plan> {
        Box::pin(async {
            let reconciler = self.reconciler();
            let desired = reconciler.desired(&[self.loaded()]);
            Ok(reconciler.plan(&desired, &self.options(), true).await?.plan)
        })
    }

    fn reconcile(&self) -> PoolFuture<'_, Vec<PoolOutcome>> {
        Box::pin(async {
            let reconciler = self.reconciler();
            let desired = reconciler.desired(&[self.loaded()]);
            let lock = self.store.lock(&self.config.pool_id).await?;
            let locks = BTreeMap::from([(self.config.pool_id.clone(), lock.clone())]);
            let run = async {
                let plan = reconciler.plan_settled(&desired, &self.options(), true).await?.plan;
                if !plan.refusals.is_empty() {
                    return Err(PoolError::Refused(plan.refusals));
                }
                let observer: Observer = Arc::new(|_| {});
                reconciler.apply(&plan, &locks, observer).await
            };
            // The lock must outlive a run that takes longer than a lock without heartbeat.
            let beat = async {
                loop {
                    tokio::time::sleep(holder::HEARTBEAT).await;
                    let _taken_over = self.store.heartbeat(&lock).await.is_err();
                }
            };
            let outcome = tokio::select! {
                outcome = run => outcome,
                () = beat => Err(PoolError::State(StateError::Closed)),
            };
            self.store.unlock(&lock).await?;
            self.read_status().await?;
            outcome
        })
    }

    fn status(&self) -> PoolFuture<'_, StaticPoolState> {
        Box::pin(self.read_status())
    }
}
