//! The knobs of the simulated cloud, and the seeded draw behind every fault.

use std::collections::BTreeMap;

use pool_provider::{Consistency, Idempotency};
use serde::{Deserialize, Serialize};

use crate::cloud::Call;

/// How the simulated cloud misbehaves; the default is a perfect, instant cloud without limits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where every draw starts from.
    pub seed: u64,
    /// How long create, update and delete take, in milliseconds; the effect comes half-way.
    pub latency_ms: u64,
    /// How many workers fit in the whole cloud.
    pub capacity: Option<u32>,
    /// How many workers one deployment may have.
    pub quota: Option<u32>,
    /// How many calls are let through.
    pub rate_limit: Option<RateLimit>,
    /// Faults by kind of call.
    pub faults: BTreeMap<Call, CallFaults>,
    /// How long an effect stays out of listings, in milliseconds.
    pub listing_delay_ms: u64,
    /// How many workers a page of a listing holds.
    pub page_size: usize,
    /// What share of listings says that it is not complete, and leaves its last worker out.
    pub incomplete_listings: f64,
    /// What makes a repeated create safe.
    pub idempotency: Idempotency,
    /// Images whose workers never become healthy.
    pub unhealthy_images: Vec<String>,
}

/// A limit on calls of every kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    /// So many calls …
    pub calls: usize,
    /// … in so many milliseconds.
    pub per_ms: u64,
}

/// What share of the calls of one kind goes wrong, from 0 to 1, and how.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CallFaults {
    /// Fails before the effect, with `transient`.
    pub fail_before: f64,
    /// Has the effect and loses the answer: `unknown outcome`.
    pub lose_answer: f64,
    /// Answers `unknown outcome` at once and has the effect `late_ms` later.
    pub late: f64,
    /// How late a late effect is, in milliseconds.
    pub late_ms: u64,
}

/// What one draw decided for a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Fine,
    FailBefore,
    LoseAnswer,
    Late { after_ms: u64 },
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            seed: 0,
            latency_ms: 0,
            capacity: None,
            quota: None,
            rate_limit: None,
            faults: BTreeMap::new(),
            listing_delay_ms: 0,
            page_size: 1000,
            incomplete_listings: 0.0,
            idempotency: Idempotency::Token,
            unhealthy_images: Vec::new(),
        }
    }
}

impl Settings {
    /// Returns what the `nth` call of this kind will meet.
    pub(crate) fn fate(&self, call: Call, nth: u64) -> Fate {
        let Some(faults) = self.faults.get(&call) else { return Fate::Fine };
        let drawn = draw(self.seed, call as u64, nth);
        let late = faults.fail_before + faults.lose_answer + faults.late;
        if drawn < faults.fail_before {
            Fate::FailBefore
        } else if drawn < faults.fail_before + faults.lose_answer {
            Fate::LoseAnswer
        } else if drawn < late {
            Fate::Late { after_ms: faults.late_ms }
        } else {
            Fate::Fine
        }
    }

    /// Returns whether the `nth` listing is incomplete.
    pub(crate) fn listing_is_incomplete(&self, nth: u64) -> bool {
        draw(self.seed, u64::MAX, nth) < self.incomplete_listings
    }

    /// Returns how long an effect may take to show, in milliseconds.
    pub(crate) fn settle_ms(&self) -> u64 {
        let late = self.faults.values().filter(|faults| faults.late > 0.0);
        let latest = late.map(|faults| faults.late_ms).max().unwrap_or(0);
        self.listing_delay_ms + latest + self.latency_ms
    }

    pub(crate) fn consistency(&self) -> Consistency {
        if self.settle_ms() == 0 { Consistency::Strong } else { Consistency::Eventual }
    }
}

/// Draws from [0, 1): SplitMix64 (Steele, Lea, Flood 2014) of the three inputs.
fn draw(seed: u64, stream: u64, nth: u64) -> f64 {
    let mut state = seed ^ stream.wrapping_mul(0xD6E8_FEB8_6659_FD93) ^ nth.rotate_left(32);
    let mut mixed = 0;
    for _ in 0..2 {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^= mixed >> 31;
        state ^= mixed;
    }
    let thirty_two_bits = u32::try_from(mixed >> 32).unwrap_or(u32::MAX);
    f64::from(thirty_two_bits) / (f64::from(u32::MAX) + 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_settings_nothing_goes_wrong() {
        let settings: Settings = serde_json::from_str("{}").unwrap();
        assert_eq!(settings, Settings::default());
        assert!((0..1000).all(|nth| settings.fate(Call::Create, nth) == Fate::Fine));
        assert!(serde_json::from_str::<Settings>(r#"{"latencyms": 3}"#).is_err());
    }

    #[test]
    fn draws_are_repeatable_and_hit_the_stated_share() {
        let faults = CallFaults { fail_before: 0.2, lose_answer: 0.1, ..CallFaults::default() };
        let settings = Settings {
            seed: 7,
            faults: BTreeMap::from([(Call::Create, faults)]),
            ..Settings::default()
        };
        let fates: Vec<Fate> = (0..10_000).map(|n| settings.fate(Call::Create, n)).collect();
        let again: Vec<Fate> = (0..10_000).map(|n| settings.fate(Call::Create, n)).collect();
        assert_eq!(fates, again);
        let failed = fates.iter().filter(|fate| **fate == Fate::FailBefore).count();
        let lost = fates.iter().filter(|fate| **fate == Fate::LoseAnswer).count();
        assert!((1800..2200).contains(&failed), "{failed}");
        assert!((850..1150).contains(&lost), "{lost}");
    }
}
