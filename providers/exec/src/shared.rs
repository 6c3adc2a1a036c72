//! One listing for all who want one at the same time: without `get`, every probe of every worker needs a whole one.
//!
//! Whoever comes while a listing is under way waits for the next one, which shows every effect of every call that has
//! answered by then; all who wait share it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex as StdMutex, PoisonError};

use pool_provider::{DeploymentId, ObservedWorker, ProviderError};
use tokio::sync::Mutex;

/// All pages of a listing.
#[derive(Debug)]
pub(crate) struct Whole {
    pub(crate) workers: Vec<ObservedWorker>,
    pub(crate) complete: bool,
}

/// A listing: which one it was, and whose.
type Latest = (u64, DeploymentId, Arc<Whole>);

/// Listings that are shared.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// How many were begun.
    begun: AtomicU64,
    one_at_a_time: Mutex<()>,
    latest: StdMutex<Option<Latest>>,
}

impl Shared {
    /// Returns a listing that was begun after this was called: somebody else's, or one of its own.
    pub(crate) async fn since_now(
        &self,
        owner: &DeploymentId,
        list: impl AsyncFnOnce() -> Result<Whole, ProviderError>,
    ) -> Result<Arc<Whole>, ProviderError> {
        let before = self.begun.load(Ordering::SeqCst);
        let _turn = self.one_at_a_time.lock().await;
        let known = self.latest.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((nth, whose, whole)) = known
            && nth > before
            && whose == *owner
        {
            return Ok(whole);
        }
        let nth = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
        let whole = Arc::new(list().await?);
        let latest = (nth, owner.clone(), Arc::clone(&whole));
        *self.latest.lock().unwrap_or_else(PoisonError::into_inner) = Some(latest);
        Ok(whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn all_who_wait_share_the_next_one_and_nobody_gets_an_earlier_one() {
        let shared = Shared::default();
        let owner = DeploymentId::from_random([1; 16]);
        let listed = AtomicU64::new(0);
        let list = async || {
            listed.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            Ok(Whole { workers: Vec::new(), complete: true })
        };
        let mut asked = Vec::new();
        for late in 0..20 {
            let (shared, owner, list) = (&shared, &owner, &list);
            asked.push(async move {
                // The first one is under way when the others come.
                tokio::time::sleep(std::time::Duration::from_millis(late * 10)).await;
                let before = shared.begun.load(Ordering::SeqCst);
                shared.since_now(owner, list).await.unwrap();
                let latest = shared.latest.lock().unwrap().as_ref().unwrap().0;
                assert!(latest > before, "it may not show what was done before it was asked for");
            });
        }
        futures_util::future::join_all(asked).await;
        assert_eq!(listed.load(Ordering::SeqCst), 2);
        shared.since_now(&owner, &list).await.unwrap();
        assert_eq!(listed.load(Ordering::SeqCst), 3, "what is over is not used again");
    }
}
