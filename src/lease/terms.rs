//! When a lease expires, and what its end does to the worker.
//!
//! | the lease ended by                | the worker                                                      |
//! |-----------------------------------|-----------------------------------------------------------------|
//! | a release                         | ready; recycled where the pool says how                           |
//! | a release that blames the worker  | the same; quarantined when it is the third in a row                 |
//! | expiry                            | recycled or replaced: its job may still run                         |
//! | a hang-up right after the grant    | ready: nobody ever knew of the lease                                |
//! | any end, of a worker that is used up (`one_shot`, `max_uses`, `max_age`) or outdated | replaced |

use std::time::Duration;

use jiff::{RoundMode, Timestamp, TimestampRound, Unit};
use serde::{Deserialize, Serialize};

use crate::config::{LeasesConfig, Reuse};

/// After how many `infra_failed` outcomes in a row a worker is quarantined.
pub const BLAMES: u32 = 3;

/// For how long after the server's start, or after the clock was set, no lease expires: holders could not
/// renew meanwhile, or do not know that it is late.
pub const RESPITE: Duration = Duration::from_secs(60);

/// How far the wall clock may move beside real time before it was set by somebody.
const CLOCK_JUMP: Duration = Duration::from_secs(5);

/// Decides from when on leases may expire at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Respite {
    length: Duration,
    last: Option<Timestamp>,
    not_before: Option<Timestamp>,
}

impl Default for Respite {
    fn default() -> Self {
        Self::of(RESPITE)
    }
}

impl Respite {
    /// Gives holders so long.
    pub fn of(length: Duration) -> Self {
        Self { length, last: None, not_before: None }
    }

    /// Looks at the wall clock; `elapsed` is the real time since the latest look. Returns from when on
    /// leases may expire: its length after the first look, and again whenever the clock was set forward.
    /// Set back, it makes leases last longer, which harms nobody.
    pub fn look(&mut self, now: Timestamp, elapsed: Duration) -> Timestamp {
        let moved = self.last.map(|last| now.duration_since(last));
        let moved = moved.and_then(|moved| Duration::try_from(moved).ok()).unwrap_or_default();
        let jumped = moved.saturating_sub(elapsed) > CLOCK_JUMP;
        if jumped || self.not_before.is_none() {
            self.not_before = now.checked_add(self.length).ok();
        }
        self.last = Some(now);
        self.not_before.unwrap_or(Timestamp::MAX)
    }
}

/// How a holder says that its job went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Well.
    #[default]
    Ok,
    /// The job failed, and the worker is not to blame.
    JobFailed,
    /// The worker is to blame.
    InfraFailed,
}

/// How a lease ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Its holder gave it back.
    Released(Outcome),
    /// Its time was over.
    Expired,
    /// Whoever asked hung up before the answer.
    Abandoned,
}

impl Ending {
    /// Returns the ending's stable name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Released(Outcome::Ok) => "ok",
            Self::Released(Outcome::JobFailed) => "job_failed",
            Self::Released(Outcome::InfraFailed) => "infra_failed",
            Self::Expired => "expired",
            Self::Abandoned => "abandoned",
        }
    }
}

/// What counts when a worker's lease ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// How many leases it had, the one that ends included.
    pub uses: u32,
    /// How old it is.
    pub age: Duration,
    /// How many holders in a row blamed it before.
    pub blames: u32,
    /// Whether the pool's config asks for another spec by now.
    pub outdated: bool,
}

/// Why a worker goes although nothing is wrong with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retirement {
    /// The pool's workers are used once.
    OneShot,
    /// It had as many leases as a worker may have.
    MaxUses,
    /// It is as old as a worker may become.
    MaxAge,
    /// The pool's config asks for another spec by now.
    Outdated,
    /// Its lease expired, and the pool does not say how to clean it.
    Expired,
    /// It could not be cleaned.
    NotRecycled,
    /// Somebody asked for another one.
    Requested,
}

impl Retirement {
    /// Returns the stable name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OneShot => "one_shot",
            Self::MaxUses => "max_uses",
            Self::MaxAge => "max_age",
            Self::Outdated => "outdated",
            Self::Expired => "lease_expired",
            Self::NotRecycled => "not_recycled",
            Self::Requested => "requested",
        }
    }
}

/// What becomes of a worker whose lease ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// It can be leased again.
    Ready,
    /// It is cleaned first.
    Recycle,
    /// Another one takes its place.
    Retire(Retirement),
    /// It is kept for diagnosis.
    Quarantine,
    /// It broke meanwhile, or it goes: whoever heals looks at it.
    Heal,
}

/// Says what becomes of a worker whose lease ended.
pub fn after(ending: Ending, usage: Usage, terms: &LeasesConfig) -> After {
    if ending == Ending::Abandoned && !usage.outdated {
        return After::Ready;
    }
    if ending == Ending::Released(Outcome::InfraFailed) && usage.blames + 1 >= BLAMES {
        return After::Quarantine;
    }
    if let Some(why) = used_up(usage, terms) {
        return After::Retire(why);
    }
    match (ending, &terms.recycle) {
        (_, Some(_)) => After::Recycle,
        (Ending::Expired, None) => After::Retire(Retirement::Expired),
        (Ending::Released(_) | Ending::Abandoned, None) => After::Ready,
    }
}

fn used_up(usage: Usage, terms: &LeasesConfig) -> Option<Retirement> {
    if usage.outdated {
        Some(Retirement::Outdated)
    } else if terms.reuse == Reuse::OneShot {
        Some(Retirement::OneShot)
    } else if terms.max_uses.is_some_and(|most| usage.uses >= most) {
        Some(Retirement::MaxUses)
    } else if terms.max_age.is_some_and(|most| usage.age >= most.get()) {
        Some(Retirement::MaxAge)
    } else {
        None
    }
}

/// Returns the lease's time: the one that was asked for, or the pool's default.
///
/// # Errors
/// The most that the pool allows, when it was more.
pub fn ttl(asked: Option<Duration>, terms: &LeasesConfig) -> Result<Duration, Duration> {
    let most = terms.max_ttl.get();
    match asked {
        Some(asked) if asked > most => Err(most),
        Some(asked) => Ok(asked),
        None => Ok(terms.default_ttl.get().min(most)),
    }
}

/// Returns when a lease that begins now ends: in whole milliseconds, rounded up. Rounded down, a lease
/// would end for us while it lasts for its holder.
pub fn expires_at(now: Timestamp, ttl: Duration) -> Timestamp {
    let exact = now.checked_add(ttl).unwrap_or(Timestamp::MAX);
    let round = TimestampRound::new().smallest(Unit::Millisecond).mode(RoundMode::Ceil);
    exact.round(round).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::HumanDuration;

    fn usage() -> Usage {
        Usage { uses: 1, age: Duration::from_secs(60), blames: 0, outdated: false }
    }

    fn with_recycle() -> LeasesConfig {
        serde_json::from_str(r#"{"recycle": {"command": ["/bin/true"]}}"#).unwrap()
    }

    #[test]
    fn a_release_leaves_the_worker_ready_or_has_it_cleaned() {
        let terms = LeasesConfig::default();
        for outcome in [Outcome::Ok, Outcome::JobFailed, Outcome::InfraFailed] {
            assert_eq!(after(Ending::Released(outcome), usage(), &terms), After::Ready);
            let cleaned = after(Ending::Released(outcome), usage(), &with_recycle());
            assert_eq!(cleaned, After::Recycle);
        }
    }

    #[test]
    fn an_expired_lease_never_leaves_its_worker_ready() {
        let terms = LeasesConfig::default();
        let expired = after(Ending::Expired, usage(), &terms);
        assert_eq!(expired, After::Retire(Retirement::Expired));
        assert_eq!(after(Ending::Expired, usage(), &with_recycle()), After::Recycle);
    }

    #[test]
    fn a_worker_that_is_used_up_is_replaced_however_its_lease_ended() {
        let ended = Ending::Released(Outcome::Ok);
        let one_shot = LeasesConfig { reuse: Reuse::OneShot, ..with_recycle() };
        assert_eq!(after(ended, usage(), &one_shot), After::Retire(Retirement::OneShot));
        let uses = LeasesConfig { max_uses: Some(1), ..with_recycle() };
        assert_eq!(after(ended, usage(), &uses), After::Retire(Retirement::MaxUses));
        let age =
            LeasesConfig { max_age: Some(HumanDuration::from_secs(60)), ..LeasesConfig::default() };
        assert_eq!(after(Ending::Expired, usage(), &age), After::Retire(Retirement::MaxAge));
        let outdated = Usage { outdated: true, ..usage() };
        for ending in [ended, Ending::Expired, Ending::Abandoned] {
            let next = after(ending, outdated, &with_recycle());
            assert_eq!(next, After::Retire(Retirement::Outdated));
        }
    }

    #[test]
    fn the_third_blame_in_a_row_quarantines() {
        let blamed = |blames| {
            let usage = Usage { blames, ..usage() };
            after(Ending::Released(Outcome::InfraFailed), usage, &LeasesConfig::default())
        };
        assert_eq!(
            (blamed(0), blamed(1), blamed(2)),
            (After::Ready, After::Ready, After::Quarantine)
        );
    }

    #[test]
    fn a_hang_up_before_the_answer_costs_nothing() {
        let one_shot = LeasesConfig { reuse: Reuse::OneShot, ..with_recycle() };
        assert_eq!(after(Ending::Abandoned, usage(), &one_shot), After::Ready);
    }

    #[test]
    fn no_lease_expires_within_a_minute_of_a_start_or_of_a_clock_that_was_set_forward() {
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        let seconds = Duration::from_secs;
        let mut respite = Respite::default();
        assert_eq!(respite.look(at(1000), seconds(0)), at(1060), "the start");
        assert_eq!(respite.look(at(1001), seconds(1)), at(1060), "time goes on");
        assert_eq!(respite.look(at(1005), seconds(1)), at(1060), "the clock is adjusted a little");
        assert_eq!(respite.look(at(4600), seconds(1)), at(4660), "it was set forward");
        assert_eq!(respite.look(at(4000), seconds(1)), at(4660), "set back, leases last longer");
        assert_eq!(respite.look(at(4100), seconds(100)), at(4660), "a busy machine is no jump");
    }

    #[test]
    fn times_are_bounded_and_rounded_up() {
        let terms = LeasesConfig::default();
        assert_eq!(ttl(None, &terms), Ok(Duration::from_secs(600)));
        assert_eq!(ttl(Some(Duration::from_secs(5)), &terms), Ok(Duration::from_secs(5)));
        assert_eq!(
            ttl(Some(Duration::from_secs(86_401)), &terms),
            Err(Duration::from_secs(86_400))
        );
        let now = Timestamp::from_nanosecond(1_000_000_001).unwrap();
        assert_eq!(expires_at(now, Duration::from_secs(1)).as_nanosecond(), 2_001_000_000);
        let whole = Timestamp::from_second(1).unwrap();
        assert_eq!(expires_at(whole, Duration::from_secs(1)).as_nanosecond(), 2_000_000_000);
    }
}
