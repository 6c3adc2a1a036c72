//! Decides what of a plan a server may do by itself: it heals, and does not make things worse.
//!
//! | steps                                          | are done                                          |
//! |------------------------------------------------|---------------------------------------------------|
//! | of what broke: unhealthy, missing, failed       | a few at a time, each slot after its back-off; none when too much broke at once |
//! | that would take a worker from a job              | when its lease has ended                          |
//! | that undo what a narrowed run tries out          | when the whole pool is applied                    |
//! | all others                                      | as planned                                        |
//!
//! Pure: reads no clock and no state. What it holds back is in the answer, with the reason.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;

use super::types::{PoolPlan, Reason, Step};
use crate::config::RemediationConfig;
use crate::worker::{Generation, Slot};

/// The longest pause between two replacements of a slot.
const LONGEST: Duration = Duration::from_secs(300);
/// After so long without a replacement a slot begins anew.
const REST: Duration = Duration::from_secs(600);

/// The replacements of a slot so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tried {
    /// How many, since the latest rest.
    pub tries: u32,
    /// When the latest one began.
    pub at: Timestamp,
}

impl Tried {
    /// Returns how many replacements count at `now`.
    pub fn count(self, now: Timestamp) -> u32 {
        let rested = now.duration_since(self.at)
            >= jiff::SignedDuration::try_from(REST).unwrap_or(jiff::SignedDuration::MAX);
        if rested { 0 } else { self.tries }
    }

    /// Returns when the slot may be replaced again.
    fn again_at(self, backoff: Duration, now: Timestamp) -> Timestamp {
        let count = self.count(now);
        if count == 0 {
            return now;
        }
        let longest = LONGEST.max(backoff);
        let pause = backoff.saturating_mul(1 << (count - 1).min(20)).min(longest);
        self.at.checked_add(pause).unwrap_or(Timestamp::MAX)
    }
}

/// What may be done now.
#[derive(Debug, Clone, PartialEq)]
pub struct Remedy {
    /// The plan without what is held back.
    pub plan: PoolPlan,
    /// The slots whose broken workers are replaced by it.
    pub begun: Vec<Slot>,
    /// How many are broken, and how many may be: set when that is why none is replaced.
    pub stopped: Option<(u32, u32)>,
    /// When something that is held back may be done.
    pub again_at: Option<Timestamp>,
}

/// Narrows a plan to what a server may do now; workers that are tried out stay what they are.
pub fn remedy(
    plan: &PoolPlan,
    config: &RemediationConfig,
    size: u32,
    tried: &BTreeMap<Slot, Tried>,
    tried_out: &BTreeSet<(Slot, Generation)>,
    now: Timestamp,
) -> Remedy {
    let broken = plan.steps.iter().filter(|step| is_broken(step.reason)).count();
    let broken = u32::try_from(broken).unwrap_or(u32::MAX);
    let limit = config.max_unhealthy.of_rounded_down(size).max(1);
    let stopped = (broken > limit).then_some((broken, limit));
    let mut begun = Vec::new();
    let mut again_at: Option<Timestamp> = None;
    let mut steps = Vec::new();
    for step in &plan.steps {
        if takes_from_a_job(step) || undoes_a_trial(step, tried_out) {
            continue;
        }
        if is_broken(step.reason) {
            let again =
                tried.get(&step.slot).map(|tried| tried.again_at(config.backoff.get(), now));
            let waits = again.filter(|again| *again > now);
            if let Some(again) = waits {
                again_at = Some(again_at.map_or(again, |earliest| earliest.min(again)));
            }
            let full = begun.len() >= config.max_in_flight as usize;
            if stopped.is_some() || waits.is_some() || full {
                continue;
            }
            begun.push(step.slot);
        }
        steps.push(step.clone());
    }
    // The config that it keeps to is the one that is recorded.
    let records_config = plan.records_config && plan.config.is_none();
    Remedy { plan: PoolPlan { records_config, steps, ..plan.clone() }, begun, stopped, again_at }
}

/// Returns whether a step replaces a worker that broke.
fn is_broken(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::CreateBecauseMissing
            | Reason::CreateBecauseFailed
            | Reason::ReplaceBecauseUnhealthy
            | Reason::ReplaceBecauseFailed
            | Reason::ReplaceBecauseDrift
    )
}

/// Returns whether nothing is wrong with a step's worker but that it is another one, and it is that on purpose.
fn undoes_a_trial(step: &Step, tried_out: &BTreeSet<(Slot, Generation)>) -> bool {
    let is_change =
        matches!(step.reason, Reason::ReplaceBecauseSpecChanged | Reason::UpdateBecauseChanged);
    let mut old = step.update.iter().chain(&step.delete);
    is_change && old.any(|old| tried_out.contains(&(step.slot, old.generation)))
}

fn takes_from_a_job(step: &Step) -> bool {
    step.reap.iter().chain(&step.delete).any(|old| old.leased)
}

#[cfg(test)]
mod tests {
    use super::super::tests::Case;
    use super::*;

    const NOW: &str = "2026-01-01T12:00:00Z";

    /// Narrows the plan for a pool of `size`; `tried` is `slot:tries:seconds ago`. Answers what is begun,
    /// what else is done, whether all stopped, and in how many seconds to look again.
    fn narrow(size: u32, recorded: &str, tried: &str, config: &RemediationConfig) -> String {
        let plan = Case { size, ..Case::default() }.plan(recorded);
        let now: Timestamp = NOW.parse().unwrap();
        let tried = tried
            .split_whitespace()
            .map(|text| {
                let numbers: Vec<u32> = text.split(':').map(|n| n.parse().unwrap()).collect();
                let ago = jiff::SignedDuration::from_secs(i64::from(numbers[2]));
                (Slot(numbers[0]), Tried { tries: numbers[1], at: now - ago })
            })
            .collect();
        let tried_out = BTreeSet::from([(Slot(5), Generation(2))]);
        let remedy = remedy(&plan.pools[0], config, size, &tried, &tried_out, now);
        let slots = |slots: &mut dyn Iterator<Item = Slot>| {
            slots.map(|slot| slot.to_string()).collect::<Vec<_>>().join(",")
        };
        let begun = slots(&mut remedy.begun.iter().copied());
        let others = remedy.plan.steps.iter().map(|step| step.slot);
        let others = slots(&mut others.filter(|slot| !remedy.begun.contains(slot)));
        let stopped =
            remedy.stopped.map_or(String::new(), |(n, most)| format!(" stopped {n}>{most}"));
        let again = remedy
            .again_at
            .map_or(String::new(), |at| format!(" again {}", at.duration_since(now).as_secs()));
        format!("begun [{begun}] others [{others}]{stopped}{again}")
    }

    #[track_caller]
    fn check(size: u32, recorded: &str, tried: &str, expected: &str) {
        assert_eq!(narrow(size, recorded, tried, &RemediationConfig::default()), expected);
    }

    const TEN: &str = "0.1 ready a \n 1.1 ready a \n 2.1 ready a \n 3.1 ready a \n 4.1 ready a \n
        5.1 ready a \n 6.1 ready a";

    #[test]
    fn what_broke_is_replaced_one_at_a_time() {
        let broken = "7.1 unhealthy a \n 8.1 ready a gone \n 9.1 failed a failure:x";
        check(10, &format!("{TEN}\n{broken}"), "", "begun [7] others []");
        let two = RemediationConfig { max_in_flight: 2, ..RemediationConfig::default() };
        let answer = narrow(10, &format!("{TEN}\n{broken}"), "", &two);
        assert_eq!(answer, "begun [7,8] others []");
    }

    #[test]
    fn nothing_that_broke_is_replaced_when_too_much_did() {
        let five =
            "0.1 ready a \n 1.1 ready a \n 2.1 unhealthy a \n 3.1 unhealthy a \n 4.1 unhealthy a";
        check(5, five, "", "begun [] others [] stopped 3>2");
        let two = "0.1 ready a \n 1.1 ready a \n 2.1 ready a \n 3.1 unhealthy a \n 4.1 unhealthy a";
        check(5, two, "", "begun [3] others []");
        check(1, "0.1 unhealthy a", "", "begun [0] others []");
        check(2, "0.1 unhealthy a \n 1.1 unhealthy a", "", "begun [] others [] stopped 2>1");
    }

    #[test]
    fn workers_that_are_used_up_or_were_never_there_are_not_what_broke() {
        let used = "0.1 deleting a retired:one_shot \n 1.1 deleting a retired:max_uses";
        check(3, used, "", "begun [] others [0,1,2]");
        // One that nobody cleaned in time is used up, too; one that is being cleaned stays.
        let recycling = format!(
            "0.1 recycling a until:{NOW} \n 1.1 recycling a until:2026-01-01T12:00:01Z \n 2.1 ready a"
        );
        check(3, &recycling, "", "begun [] others [0]");
    }

    #[test]
    fn what_is_tried_out_is_not_undone_and_healed_all_the_same() {
        let six = "0.1 ready a \n 1.1 ready a \n 2.1 ready a \n 3.1 ready a";
        check(6, &format!("{six} \n 4.1 ready b \n 5.2 ready b"), "", "begun [] others [4]");
        check(6, &format!("{six} \n 4.1 ready a \n 5.2 unhealthy b"), "", "begun [5] others []");
        // Another worker of that slot is just outdated.
        check(6, &format!("{six} \n 4.1 ready a \n 5.1 ready b"), "", "begun [] others [5]");
    }

    #[test]
    fn a_slot_that_was_replaced_waits_twice_as_long_each_time() {
        let broken = "0.1 unhealthy a \n 1.1 ready a \n 2.1 ready a";
        check(3, broken, "0:1:9", "begun [] others [] again 1");
        check(3, broken, "0:1:10", "begun [0] others []");
        check(3, broken, "0:3:10", "begun [] others [] again 30");
        check(3, broken, "0:99:10", "begun [] others [] again 290");
        check(3, broken, "0:99:600", "begun [0] others []");
        check(3, broken, "1:99:0", "begun [0] others []");
    }

    #[test]
    fn a_job_keeps_its_worker_whatever_is_wrong_with_it() {
        let unhealthy = "0.1 unhealthy a leased \n 1.1 ready a \n 2.1 ready a";
        check(3, unhealthy, "", "begun [] others []");
        let gone = "0.1 ready a gone leased \n 1.1 ready a \n 2.1 ready a";
        check(3, gone, "", "begun [] others []");
        let outdated = "0.1 ready b leased \n 1.1 ready b \n 2.1 ready a";
        check(3, outdated, "", "begun [] others [1]");
    }
}
