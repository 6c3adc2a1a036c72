//! A lock on a pool for as long as a run lasts: renewed meanwhile, given back at its end, however it ends.

use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::state::{PoolLock, StateError, Store, holder};
use crate::worker::PoolId;

/// A pool that this process works on.
#[derive(Debug)]
pub(super) struct Hold {
    store: Store,
    lock: PoolLock,
    beat: JoinHandle<()>,
    given_back: bool,
}

impl Hold {
    /// Takes the lock.
    ///
    /// # Errors
    /// [`StateError::Locked`] when somebody else has it.
    pub(super) async fn take(store: &Store, pool: &PoolId) -> Result<Self, StateError> {
        let lock = store.lock(pool).await?;
        let (renewed, renewing) = (lock.clone(), store.clone());
        let beat = tokio::spawn(async move {
            loop {
                sleep(holder::HEARTBEAT).await;
                // One that was taken over is noticed by the next change, which the fence refuses.
                let _taken_over = renewing.heartbeat(&renewed).await.is_err();
            }
        });
        Ok(Self { store: store.clone(), lock, beat, given_back: false })
    }

    pub(super) fn lock(&self) -> &PoolLock {
        &self.lock
    }

    /// Gives the lock back.
    pub(super) async fn give_back(mut self) -> Result<(), StateError> {
        self.given_back = true;
        self.beat.abort();
        self.store.unlock(&self.lock).await
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.beat.abort();
        if !self.given_back
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let (store, lock) = (self.store.clone(), self.lock.clone());
            // A lock that stays is that of a process that ends.
            runtime.spawn(async move { store.unlock(&lock).await.is_ok() });
        }
    }
}
