//! How fast calls are made once there were too many.
//!
//! EC2 counts each kind of call by itself, for all of an account's callers, and does not say how many are left. So calls
//! are made as they come until one is refused for being too many. From then on calls of that kind are spread, twice as
//! far apart with each refusal, and closer with each success: additive increase and multiplicative decrease (Chiu and
//! Jain 1989), turned into gaps. A limit that is known beforehand is `rate_limit` in a pool file, which all processes keep.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// The gap after the first refusal.
const FIRST: Duration = Duration::from_millis(250);
const WIDEST: Duration = Duration::from_secs(5);
/// What a success takes off a gap.
const CLOSER: Duration = Duration::from_millis(25);

/// The gaps between calls, by kind.
#[derive(Debug, Default)]
pub(crate) struct Pace(Mutex<BTreeMap<&'static str, Gap>>);

#[derive(Debug)]
struct Gap {
    between: Duration,
    /// When the next call may be made.
    next: Instant,
    /// When a refusal last counted: calls that were asked for before tell nothing new.
    widened: Option<Instant>,
}

impl Pace {
    fn gaps(&self) -> MutexGuard<'_, BTreeMap<&'static str, Gap>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a call of this kind may be made, and returns when that was asked for.
    ///
    /// # Errors
    /// How long it would have to wait, if that is longer than `patience`.
    pub(crate) async fn wait(
        &self,
        action: &'static str,
        patience: Duration,
    ) -> Result<Instant, Duration> {
        let now = Instant::now();
        let at = match self.gaps().get_mut(action) {
            Some(gap) => {
                let at = gap.next.max(now);
                if at > now + patience {
                    return Err(at - now);
                }
                gap.next = at + gap.between;
                at
            }
            None => now,
        };
        if at > now {
            sleep_until(at).await;
        }
        Ok(now)
    }

    /// A call that was asked for at `asked` was one too many. Returns how long the next one waits at least.
    pub(crate) fn refused(&self, action: &'static str, asked: Instant) -> Duration {
        let now = Instant::now();
        let mut gaps = self.gaps();
        let first = Gap { between: FIRST / 2, next: now, widened: None };
        let gap = gaps.entry(action).or_insert(first);
        // Calls that were under way together are refused together.
        if gap.widened.is_none_or(|widened| asked > widened) {
            gap.between = (gap.between * 2).min(WIDEST);
            gap.widened = Some(now);
            gap.next = gap.next.max(now + gap.between);
        }
        gap.next.saturating_duration_since(now)
    }

    /// A call was answered.
    pub(crate) fn passed(&self, action: &'static str) {
        let mut gaps = self.gaps();
        if let Some(gap) = gaps.get_mut(action) {
            gap.between = gap.between.saturating_sub(CLOSER);
            if gap.between.is_zero() {
                gaps.remove(action);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn gap(pace: &Pace) -> Duration {
        let before = Instant::now();
        pace.wait("Run", WIDEST).await.unwrap();
        Instant::now() - before
    }

    #[tokio::test(start_paused = true)]
    async fn calls_are_spread_once_one_was_too_many_and_close_up_again() {
        let pace = Pace::default();
        assert_eq!(gap(&pace).await, Duration::ZERO);
        // Five that were under way together count once.
        let made = Instant::now();
        for _ in 0..5 {
            pace.refused("Run", made);
        }
        assert_eq!(gap(&pace).await, FIRST);
        assert_eq!(gap(&pace).await, FIRST);
        // Another kind of call has limits of its own.
        let before = Instant::now();
        assert_eq!(pace.wait("Terminate", WIDEST).await, Ok(before));

        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(pace.refused("Run", Instant::now()), FIRST * 2);
        tokio::time::advance(Duration::from_secs(10)).await;
        for _ in 0..20 {
            pace.passed("Run");
        }
        assert_eq!(gap(&pace).await, Duration::ZERO);
        assert_eq!(gap(&pace).await, Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_longer_than_they_want_to_or_takes_a_turn_then() {
        let pace = Pace::default();
        pace.refused("Run", Instant::now());
        assert_eq!(pace.wait("Run", FIRST / 2).await, Err(FIRST));
        assert_eq!(pace.wait("Run", FIRST / 2).await, Err(FIRST));
        assert_eq!(gap(&pace).await, FIRST);
    }

    #[tokio::test(start_paused = true)]
    async fn calls_that_queued_before_a_refusal_do_not_count_as_another() {
        let pace = std::sync::Arc::new(Pace::default());
        pace.refused("Run", Instant::now());
        let queued = {
            let pace = std::sync::Arc::clone(&pace);
            tokio::spawn(async move { pace.wait("Run", WIDEST).await.unwrap() })
        };
        tokio::task::yield_now().await;
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(pace.refused("Run", Instant::now()), FIRST * 2);
        let queued = queued.await.unwrap();
        assert!(pace.refused("Run", queued) <= FIRST * 2, "it was asked for before");
    }

    #[tokio::test(start_paused = true)]
    async fn gaps_have_a_bound() {
        let pace = Pace::default();
        for _ in 0..20 {
            tokio::time::advance(Duration::from_secs(10)).await;
            pace.refused("Run", Instant::now());
        }
        tokio::time::advance(Duration::from_secs(10)).await;
        gap(&pace).await;
        assert_eq!(gap(&pace).await, WIDEST);
    }
}
