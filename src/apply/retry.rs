//! When to try again: a pure function of the attempt and the worker.

use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::worker::WorkerName;

const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(30);

/// Returns how long to wait after the failed `attempt`, from 1: doubled each time, halved at most by
/// jitter, which comes from the worker's name so that workers do not march in step.
pub(super) fn delay(attempt: u32, worker: &WorkerName, asked_for: Option<Duration>) -> Duration {
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
