//! Locks on pools for as long as a run lasts: waited for, renewed meanwhile, given back at its end, however
//! it ends.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::clock::Stopwatch;
use crate::state::{PoolLock, StateError, Store, holder};
use crate::worker::PoolId;

/// How often a lock that somebody has is tried again.
const RETRY: Duration = Duration::from_millis(100);
/// After how long it is said that it is waited for.
const MENTION: Duration = Duration::from_millis(400);
/// How often giving a lock back is tried again: the disk may be full for a while.
const GIVE_AGAIN: Duration = Duration::from_secs(1);

/// How long locks are waited for.
#[derive(Clone)]
pub struct Patience {
    /// At most so long, for all of them together.
    pub limit: Duration,
    /// Is told once who is waited for.
    pub waiting: Arc<dyn Fn(&StateError) + Send + Sync>,
}

impl Patience {
    /// Waits for nobody.
    pub fn none() -> Self {
        Self { limit: Duration::ZERO, waiting: Arc::new(|_| {}) }
    }
}

impl fmt::Debug for Patience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Patience").field("limit", &self.limit).finish_non_exhaustive()
    }
}

/// The locks by pool, as the heartbeat sees them.
type Locks = Arc<Mutex<BTreeMap<PoolId, PoolLock>>>;

/// Pools that this run works on, and nobody else.
#[derive(Debug)]
pub struct Hold {
    store: Store,
    patience: Patience,
    locks: Locks,
    beat: Option<JoinHandle<()>>,
}

impl Hold {
    /// Takes the locks of these pools, in order of their names: all or none.
    ///
    /// # Errors
    /// [`StateError::Locked`] when somebody has one of them for longer than the patience lasts.
    pub async fn take(
        store: &Store,
        pools: &BTreeSet<PoolId>,
        patience: Patience,
    ) -> Result<Self, StateError> {
        let locks = Locks::default();
        let (renewed, renewing) = (Arc::clone(&locks), store.clone());
        let beat = tokio::spawn(async move {
            loop {
                sleep(holder::HEARTBEAT).await;
                let held: Vec<PoolLock> = locks_of(&renewed).values().cloned().collect();
                for held in held {
                    // One that was taken over is noticed by the next change, which the fence refuses.
                    let _taken_over = renewing.heartbeat(&held).await.is_err();
                }
            }
        });
        let hold = Self { store: store.clone(), patience, locks, beat: Some(beat) };
        match hold.add(pools).await {
            Ok(()) => Ok(hold),
            Err(error) => {
                hold.give_back().await;
                Err(error)
            }
        }
    }

    /// Takes the locks of more pools; those of some may be taken when it fails.
    ///
    /// # Errors
    /// As [`Hold::take`].
    pub async fn add(&self, pools: &BTreeSet<PoolId>) -> Result<(), StateError> {
        let watch = Stopwatch::start();
        let mut mentioned = false;
        for pool in pools {
            loop {
                match take_one(&self.store, &self.locks, pool).await {
                    Err(error @ StateError::Locked { .. }) => {
                        if watch.elapsed() >= self.patience.limit {
                            return Err(error);
                        }
                        if !mentioned && watch.elapsed() >= MENTION {
                            (self.patience.waiting)(&error);
                            mentioned = true;
                        }
                        sleep(RETRY).await;
                    }
                    taken => break taken?,
                }
            }
        }
        Ok(())
    }

    /// Returns the locks.
    pub fn locks(&self) -> BTreeMap<PoolId, PoolLock> {
        locks_of(&self.locks).clone()
    }

    /// Gives the locks of some pools back; goes on with that should nobody wait for it any more.
    pub async fn give(&self, pools: &BTreeSet<PoolId>) {
        let giving: Vec<JoinHandle<()>> = {
            let mut locks = locks_of(&self.locks);
            let given = pools.iter().filter_map(|pool| locks.remove(pool));
            given.map(|given| tokio::spawn(give_at_last(self.store.clone(), given))).collect()
        };
        for given in giving {
            // Where the state cannot be written, giving goes on behind our back: a process that lives on
            // would keep others out for ever.
            let _in_time = timeout(GIVE_AGAIN, given).await.is_ok();
        }
    }

    /// Gives all locks back, and holds the state no more: it is closed with its last user.
    pub async fn give_back(mut self) {
        let pools = locks_of(&self.locks).keys().cloned().collect();
        self.give(&pools).await;
        if let Some(beat) = self.beat.take() {
            beat.abort();
            let _aborted = beat.await.is_err();
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(beat) = &self.beat {
            beat.abort();
        }
        let left: Vec<PoolLock> =
            std::mem::take(&mut *locks_of(&self.locks)).into_values().collect();
        // Without a runtime the process ends: a lock that stays is that of a dead process.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            for left in left {
                runtime.spawn(give_at_last(self.store.clone(), left));
            }
        }
    }
}

fn locks_of(locks: &Locks) -> std::sync::MutexGuard<'_, BTreeMap<PoolId, PoolLock>> {
    locks.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A lock on its way to who wants it: given back when it does not arrive.
struct Taken {
    store: Store,
    lock: Option<PoolLock>,
}

impl Drop for Taken {
    fn drop(&mut self) {
        if let (Some(lock), Ok(runtime)) = (self.lock.take(), tokio::runtime::Handle::try_current())
        {
            runtime.spawn(give_at_last(self.store.clone(), lock));
        }
    }
}

/// Takes one lock; should nobody wait for it any more when it is there, it is given back.
async fn take_one(store: &Store, locks: &Locks, pool: &PoolId) -> Result<(), StateError> {
    let (told, answer) = oneshot::channel();
    let (store, pool) = (store.clone(), pool.clone());
    tokio::spawn(async move {
        let lock = store.lock(&pool).await;
        let taken = lock.map(|lock| Taken { store, lock: Some(lock) });
        let _given_back = told.send(taken).is_err();
    });
    let mut taken = answer.await.map_err(|_| StateError::Closed)??;
    if let Some(lock) = taken.lock.take() {
        locks_of(locks).insert(lock.pool.clone(), lock);
    }
    Ok(())
}

/// Gives a lock back, however long that takes.
async fn give_at_last(store: Store, given: PoolLock) {
    while let Err(error) = store.unlock(&given).await {
        if error == StateError::Closed {
            return;
        }
        sleep(GIVE_AGAIN).await;
    }
}
