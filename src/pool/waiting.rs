//! The mark in the state that a run waits for jobs of some pools, for as long as it does. Locks nothing.

use std::collections::BTreeSet;

use crate::state::{StateError, Store};
use crate::worker::PoolId;

/// Says in the state that a run waits for jobs of these pools, for as long as it does.
pub(super) struct Waiting {
    store: Store,
    pools: BTreeSet<PoolId>,
}

impl Waiting {
    pub(super) async fn begin(store: &Store, pools: BTreeSet<PoolId>) -> Result<Self, StateError> {
        let waiting = Self { store: store.clone(), pools };
        waiting.renew().await?;
        Ok(waiting)
    }

    pub(super) async fn renew(&self) -> Result<(), StateError> {
        self.store.say_waiting(self.pools.clone()).await
    }

    /// Goes on for these alone: of others somebody else may say it by now.
    pub(super) async fn keep(&mut self, pools: BTreeSet<PoolId>) -> Result<(), StateError> {
        let gone: BTreeSet<PoolId> = self.pools.difference(&pools).cloned().collect();
        self.pools = pools;
        if gone.is_empty() { Ok(()) } else { self.store.say_not_waiting(gone).await }
    }

    pub(super) async fn end(mut self) -> Result<(), StateError> {
        self.store.say_not_waiting(std::mem::take(&mut self.pools)).await
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let (store, pools) = (self.store.clone(), std::mem::take(&mut self.pools));
        if let Ok(runtime) = tokio::runtime::Handle::try_current()
            && !pools.is_empty()
        {
            // A mark that stays is that of a process that ends.
            runtime.spawn(async move { store.say_not_waiting(pools).await.is_ok() });
        }
    }
}
