//! Probe results and thresholds to a verdict. Pure.
//!
//! A verdict changes only after enough results in a row; a failed probe within the start period counts
//! for nothing. Does not probe, and does not know what a verdict leads to.

use std::time::Duration;

use crate::config::HealthCheckConfig;

/// Results in a row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    passed: u32,
    failed: u32,
}

/// What the results so far say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Enough probes passed in a row.
    Healthy,
    /// Enough probes failed in a row.
    Unhealthy,
    /// Neither yet.
    Undecided,
}

impl Tally {
    /// Counts one result of a worker of this age, and says what the results come to.
    #[must_use]
    pub fn count(self, passed: bool, age: Duration, check: &HealthCheckConfig) -> (Self, Verdict) {
        let next = match passed {
            true => Self { passed: self.passed.saturating_add(1), failed: 0 },
            false if age < check.start_period.get() => Self::default(),
            false => Self { passed: 0, failed: self.failed.saturating_add(1) },
        };
        let verdict = if next.passed >= check.healthy_threshold {
            Verdict::Healthy
        } else if next.failed >= check.unhealthy_threshold {
            Verdict::Unhealthy
        } else {
            Verdict::Undecided
        };
        (next, verdict)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::HumanDuration;

    /// One letter a result, a second apart: `p`assed or `f`ailed. Answers `H`, `U` or `.` for each.
    fn verdicts(results: &str, check: &HealthCheckConfig) -> String {
        let mut tally = Tally::default();
        let judge = |(second, result): (usize, char)| {
            let age = Duration::from_secs(second as u64);
            let (next, verdict) = tally.count(result == 'p', age, check);
            tally = next;
            match verdict {
                Verdict::Healthy => 'H',
                Verdict::Unhealthy => 'U',
                Verdict::Undecided => '.',
            }
        };
        results.chars().enumerate().map(judge).collect()
    }

    #[test]
    fn verdicts_follow_results_in_a_row() {
        let check = HealthCheckConfig { healthy_threshold: 2, ..HealthCheckConfig::default() };
        assert_eq!(verdicts("ppp", &check), ".HH");
        assert_eq!(verdicts("ffff", &check), "..UU");
        assert_eq!(verdicts("ffpffpf", &check), ".......");
        assert_eq!(verdicts("fffpp", &check), "..U.H");
    }

    #[test]
    fn failures_in_the_start_period_do_not_count_and_passes_do() {
        let start_period = HumanDuration::from_secs(3);
        let check = HealthCheckConfig { start_period, ..HealthCheckConfig::default() };
        assert_eq!(verdicts("ffffff", &check), ".....U");
        assert_eq!(verdicts("fp", &check), ".H");
    }
}
