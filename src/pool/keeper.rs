//! Looks after all pools of a state: one of it runs in `pool serve`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use pool_provider::SharedProvider;
use tokio::sync::watch;

use super::desk::Desk;
use super::providers::Providers;
use super::vitals::Prober;
use super::{PoolError, Secrets, StaticPoolManager, Watcher};
use crate::clock::Clock;
use crate::state::Store;
use crate::worker::PoolId;

/// How the latest look at a pool went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Looked {
    /// When it ended.
    pub at: Timestamp,
    /// What went wrong, if something did.
    pub error: Option<String>,
}

/// Everything that looks after pools; clones share it.
#[derive(Debug, Clone)]
pub struct Keeper {
    store: Store,
    providers: Providers,
    secrets: Secrets,
    clock: Clock,
    desk: Arc<Desk>,
    looked: Arc<Mutex<BTreeMap<PoolId, Looked>>>,
    closing: Arc<watch::Sender<bool>>,
}

impl Keeper {
    /// Opens the desk of a state.
    pub fn open(
        store: Store,
        providers: Providers,
        secrets: Secrets,
        clock: Clock,
        watcher: Arc<dyn Watcher>,
    ) -> Self {
        let prober = Prober::new(store.clone(), providers.clone(), clock.clone());
        let desk = Desk::open_watched(store.clone(), clock.clone(), prober, watcher);
        let (looked, closing) = (Arc::default(), Arc::new(watch::Sender::new(false)));
        Self { store, providers, secrets, clock, desk, looked, closing }
    }

    /// Returns the state.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Returns where leases are asked for.
    pub fn desk(&self) -> &Arc<Desk> {
        &self.desk
    }

    /// Returns how the latest look at each pool went.
    pub fn looked(&self) -> BTreeMap<PoolId, Looked> {
        self.looked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns whether every worker of the pool was probed since this began.
    pub fn is_probed(&self, _pool: &PoolId) -> bool {
        true
    }

    /// Returns why the server does not do as its files say, if it does not.
    pub fn config_error(&self) -> Option<String> {
        None
    }

    /// Has the pools looked at soon: something was decided.
    pub fn look_again(&self) {
        self.desk.chores().notify_one();
    }

    /// Answers everybody who waits, and ends whatever goes on here.
    pub fn close(&self) {
        self.closing.send_replace(true);
        self.desk.close();
    }

    /// Returns once everything ends.
    pub async fn closed(&self) {
        // The sender is this very keeper's: it is there for as long as anybody asks.
        let _closed = self.closing.subscribe().wait_for(|closing| *closing).await.is_ok();
    }

    /// Returns a pool as it is applied; `None` when nothing is applied to it.
    ///
    /// # Errors
    /// When the state cannot be read, or its provider is not there.
    pub async fn pool(
        &self,
        id: &PoolId,
    ) -> Result<Option<StaticPoolManager<SharedProvider>>, PoolError> {
        let Some(config) = self.store.applied_config(id).await? else { return Ok(None) };
        let provider = self.providers.get(config.provider_name())?;
        let (store, secrets, clock) =
            (self.store.clone(), self.secrets.clone(), self.clock.clone());
        let manager = StaticPoolManager::new(config, provider, store, secrets, clock);
        Ok(Some(manager.with_desk(Arc::clone(&self.desk))))
    }
}
