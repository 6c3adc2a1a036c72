//! Whether to try again, and when: the delay is a pure function of the attempt and the worker.

use std::time::Duration;

use pool_provider::ProviderError;
use sha2::{Digest as _, Sha256};

use super::PoolRun;
use super::step::{Listener, retry_after};
use crate::worker::WorkerName;

const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(30);

/// How often a call may still be made.
///
/// What says nothing against the request (no room in one of several places, too many calls) uses up no attempt,
/// but it does not go on for ever: for as long as one attempt may take.
pub(super) struct Tries {
    attempts: u32,
    failed: u32,
    passed: u32,
    /// How long those took that said nothing against the request, and the pauses after them.
    spent: Duration,
    limit: Duration,
}

impl Tries {
    /// Allows for `attempts` that fail, and for others within `limit`.
    pub(super) fn new(attempts: u32, limit: Duration) -> Self {
        Self { attempts, failed: 0, passed: 0, spent: Duration::ZERO, limit }
    }

    /// Counts an attempt that failed; returns how many have by now, and `None` when it was the last one.
    fn fail(&mut self) -> Option<u32> {
        self.failed += 1;
        self.passed = 0;
        (self.failed < self.attempts).then_some(self.failed)
    }

    /// Counts an attempt that says nothing against the request, and how long it took, without what it waited for its
    /// turn; returns how many did so in a row, and `None` when there is no time for more.
    fn pass(&mut self, took: Duration) -> Option<u32> {
        self.passed += 1;
        self.spent += took;
        (self.spent < self.limit).then_some(self.passed)
    }

    /// Counts a pause before the next one.
    fn wait(&mut self, pause: Duration) {
        self.spent += pause;
    }
}

/// When another attempt may be made, and whether the one before counts.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Next {
    /// The provider asks for as long a pause.
    after: Option<Duration>,
    /// It says nothing against the request.
    is_free: bool,
    /// It goes somewhere else.
    is_elsewhere: bool,
}

impl Next {
    pub(super) fn after(error: &ProviderError) -> Self {
        let is_elsewhere = matches!(error, ProviderError::OutOfCapacity { elsewhere: true, .. });
        Self { after: retry_after(error), is_free: error.is_no_failure(), is_elsewhere }
    }
}

impl PoolRun<'_> {
    /// Counts an attempt that did not succeed, tells why, and waits until the next one may be made; `took` is without what
    /// it waited for its turn. Returns false when there is none: too many failed, or the run was stopped.
    pub(super) async fn tries_again(
        &self,
        tries: &mut Tries,
        (worker, listener): (&WorkerName, &Listener),
        (why, next, took): (String, Next, Duration),
    ) -> bool {
        let more = if next.is_free { tries.pass(took) } else { tries.fail() };
        let Some(number) = more.filter(|_| !self.is_stopped()) else { return false };
        let pause =
            if next.is_elsewhere { Duration::ZERO } else { delay(number, worker, next.after) };
        (listener.retrying)((!next.is_free).then_some(number), why, pause);
        tries.wait(pause);
        self.sleep_unless_stopped(pause).await
    }
}

/// Returns how long to wait after the failed `attempt`, from 1: doubled each time, halved at most by
/// jitter, which comes from the worker's name so that workers do not march in step.
fn delay(attempt: u32, worker: &WorkerName, asked_for: Option<Duration>) -> Duration {
    let doubled = FIRST.saturating_mul(1 << attempt.saturating_sub(1).min(16)).min(LONGEST);
    let digest = Sha256::digest(format!("{worker}|{attempt}"));
    let jitter = doubled.mul_f64(0.5 * f64::from(digest[0]) / 255.0);
    // What the provider asks for is a minimum; the jitter spreads those who were all told the same.
    asked_for.map_or(doubled.saturating_sub(jitter), |least| least + jitter)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::{Generation, Slot};

    #[test]
    fn only_failures_use_up_attempts() {
        let second = Duration::from_secs(1);
        let mut tries = Tries::new(2, 6 * second);
        assert_eq!((tries.pass(second), tries.pass(second)), (Some(1), Some(2)));
        assert_eq!(tries.fail(), Some(1));
        assert_eq!(tries.pass(second), Some(1), "in a row");
        tries.wait(2 * second);
        assert_eq!(tries.pass(second), None, "its time is over");
        assert_eq!(tries.fail(), None);
    }

    #[test]
    fn delays_grow_to_a_bound_and_differ_between_workers() {
        let worker = |slot| WorkerName::new("ci".parse().unwrap(), Slot(slot), Generation(1));
        for attempt in 1..40 {
            let delay = delay(attempt, &worker(0), None);
            assert!(delay >= FIRST / 2 && delay <= LONGEST, "{attempt}: {delay:?}");
        }
        let spread: std::collections::BTreeSet<_> =
            (0..20).map(|slot| delay(3, &worker(slot), None)).collect();
        assert!(spread.len() > 10);
        let asked = Duration::from_secs(60);
        assert!(delay(1, &worker(0), Some(asked)) >= asked);
    }
}
