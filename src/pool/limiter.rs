//! Keeps to what may be asked of a provider, together with every other process of the state.
//!
//! The counting is the state's ([`Store::begin_call`], [`Store::reserve_call`]); this waits. A state that
//! cannot be written does not stop a call here: whoever calls finds out before anything is done.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use pool_provider::{Call, Gate, Turn};
use tokio::runtime::Handle;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;

use crate::config::LimitsConfig;
use crate::state::{StateError, Store};

/// How soon a call is asked for again that other processes leave no room for.
const AGAIN: Duration = Duration::from_millis(50);

/// The limits of one provider.
pub(super) struct Limiter {
    name: String,
    store: Store,
    /// How many calls may be under way, and the calls of this process, which need not ask the state in vain.
    under_way: Option<(u32, Arc<Semaphore>)>,
    /// How long after one call the next one may be made. One call of this process at a time waits for that.
    interval: Option<(Duration, Mutex<()>)>,
}

/// A call that counts until it is dropped.
struct Counted {
    store: Store,
    call: i64,
    permit: Option<OwnedSemaphorePermit>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        let (store, call, permit) = (self.store.clone(), self.call, self.permit.take());
        // Where nothing runs any more this process ends, and its calls count no longer.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move {
                // It would count for as long as this process lives.
                while let Err(error) = store.end_call(call).await {
                    if error == StateError::Closed {
                        break;
                    }
                    sleep(Duration::from_secs(1)).await;
                }
                // Not before the state has room: the next one would find it full.
                drop(permit);
            });
        }
    }
}

impl Limiter {
    /// Returns what keeps to these limits; `None` when there are none.
    pub(super) fn new(name: &str, limits: &LimitsConfig, store: Store) -> Option<Self> {
        let under_way =
            limits.max_concurrency.map(|most| (most, Arc::new(Semaphore::new(most as usize))));
        let interval =
            limits.rate_limit.map(|limit| (limit.per.get() / limit.calls.max(1), Mutex::default()));
        let is_limited = under_way.is_some() || interval.is_some();
        is_limited.then(|| Self { name: name.to_owned(), store, under_way, interval })
    }

    async fn begin(&self, most: u32, own: &Arc<Semaphore>) -> Turn {
        let Ok(permit) = Arc::clone(own).acquire_owned().await else { return Turn::free() };
        let (store, name) = (self.store.clone(), self.name.clone());
        // By a task of its own: whoever waits may be dropped at any moment, and a call that was counted must not
        // be forgotten then.
        let counting = tokio::spawn(async move {
            loop {
                match store.begin_call(&name, most).await {
                    Ok(Some(call)) => {
                        let permit = Some(permit);
                        return Turn::counted(Counted { store, call, permit });
                    }
                    Ok(None) => sleep(AGAIN).await,
                    Err(_) => return Turn::counted(permit),
                }
            }
        });
        counting.await.unwrap_or_else(|_| Turn::free())
    }
}

impl Gate for Limiter {
    fn pass(&self, call: Call) -> Pin<Box<dyn Future<Output = Turn> + Send + '_>> {
        Box::pin(async move {
            let turn = match &self.under_way {
                Some((most, own)) if call == Call::Change => self.begin(*most, own).await,
                Some(_) | None => Turn::free(),
            };
            if let Some((interval, queue)) = &self.interval {
                let _first = queue.lock().await;
                if let Ok(wait) = self.store.reserve_call(&self.name, *interval).await {
                    sleep(wait).await;
                }
            }
            turn
        })
    }
}
