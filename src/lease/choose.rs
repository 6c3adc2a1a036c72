//! Which of the free workers an ask gets: the first that will do, in the order of the pool's pick.
//!
//! A worker will do when nobody before in line has set it aside, the ask does not avoid it, it meets the
//! selector, and its last good probe is fresh. One that is only stale is remembered, to be probed.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;

/// How many stale workers are looked at before the search is given up: after a restart all are.
const MOST_STALE: usize = 64;

/// Gathers workers for one ask.
#[derive(Debug)]
pub struct Picker<'a> {
    wanted: usize,
    avoid: &'a BTreeSet<String>,
    set_aside: &'a BTreeSet<i64>,
    taken: Vec<i64>,
    stale: Vec<i64>,
}

/// One free worker.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// Its row.
    pub row: i64,
    /// Its name.
    pub name: &'a str,
    /// Whether it meets the selector.
    pub is_met: bool,
    /// Whether its last good probe vouches for it.
    pub is_fresh: bool,
}

impl<'a> Picker<'a> {
    /// Begins to gather `count` workers, but none of those that are avoided or set aside.
    pub fn new(count: u32, avoid: &'a BTreeSet<String>, set_aside: &'a BTreeSet<i64>) -> Self {
        let wanted = usize::try_from(count).unwrap_or(usize::MAX);
        Self { wanted, avoid, set_aside, taken: Vec::new(), stale: Vec::new() }
    }

    /// Looks at one worker; returns whether it was taken.
    pub fn consider(&mut self, candidate: &Candidate<'_>) -> bool {
        let comes_into_question = candidate.is_met
            && !self.set_aside.contains(&candidate.row)
            && !self.avoid.contains(candidate.name);
        if !comes_into_question || self.is_done() {
            return false;
        }
        let to = if candidate.is_fresh { &mut self.taken } else { &mut self.stale };
        to.push(candidate.row);
        candidate.is_fresh
    }

    /// Returns whether looking at more workers is of no use.
    pub fn is_done(&self) -> bool {
        self.is_complete() || self.stale.len() >= MOST_STALE
    }

    /// Returns whether there are as many as were asked for.
    pub fn is_complete(&self) -> bool {
        self.missing() == 0
    }

    /// Returns how many more are needed.
    pub fn missing(&self) -> usize {
        self.wanted.saturating_sub(self.taken.len())
    }

    /// Returns the workers that were taken, and those that are only stale.
    pub fn into_parts(self) -> (Vec<i64>, Vec<i64>) {
        (self.taken, self.stale)
    }
}

/// Returns whether a probe that passed at `verified_at` still vouches for the worker. One from the future
/// does not: the clock was set back since.
pub fn is_fresh(verified_at: Timestamp, now: Timestamp, freshness: Duration) -> bool {
    let age = now.duration_since(verified_at);
    // A probe may end while an acquire is under way that took its time before.
    let ahead = Duration::try_from(-age).is_ok_and(|ahead| ahead > freshness);
    !ahead && Duration::try_from(age).unwrap_or(Duration::ZERO) <= freshness
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One letter a worker, in order of pick: `f`resh, `s`tale, `x` does not meet the selector, `a`voided,
    /// `r`eserved. Answers the positions taken and stale.
    fn pick(count: u32, workers: &str) -> (Vec<i64>, Vec<i64>, bool) {
        let name = |row: usize| format!("ci-{row}-1");
        let number = |row: usize| i64::try_from(row).unwrap();
        let rows = |letter: char| workers.char_indices().filter(move |(_, c)| *c == letter);
        let avoid = rows('a').map(|(row, _)| name(row)).collect();
        let set_aside = rows('r').map(|(row, _)| number(row)).collect();
        let mut picker = Picker::new(count, &avoid, &set_aside);
        for (row, letter) in workers.char_indices() {
            let candidate = Candidate {
                row: number(row),
                name: &name(row),
                is_met: letter != 'x',
                is_fresh: letter != 's',
            };
            picker.consider(&candidate);
        }
        let complete = picker.is_complete();
        let (taken, stale) = picker.into_parts();
        (taken, stale, complete)
    }

    #[test]
    fn the_first_that_will_do_are_taken() {
        assert_eq!(pick(1, "fff"), (vec![0], vec![], true));
        assert_eq!(pick(1, "arxsf"), (vec![4], vec![3], true));
        assert_eq!(pick(2, "fsf"), (vec![0, 2], vec![1], true));
        assert_eq!(pick(2, "fss"), (vec![0], vec![1, 2], false));
        assert_eq!(pick(1, ""), (vec![], vec![], false));
    }

    #[test]
    fn the_search_ends_after_many_stale_ones() {
        let (taken, stale, complete) = pick(1, &("s".repeat(100) + "f"));
        assert_eq!((taken.len(), stale.len(), complete), (0, MOST_STALE, false));
    }

    #[test]
    fn freshness_has_an_end_and_does_not_trust_the_future() {
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        let ten = Duration::from_secs(10);
        assert!(is_fresh(at(100), at(110), ten));
        assert!(!is_fresh(at(100), at(111), ten));
        assert!(is_fresh(at(101), at(100), ten));
        assert!(!is_fresh(at(200), at(100), ten));
    }
}
