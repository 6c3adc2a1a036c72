//! Durations as people write them: `120s`, `1h30m`, `250ms`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// A length of time from 1 ms to 365 days, or zero; written as a string with units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HumanDuration(Duration);

/// What the schema accepts: units from days to milliseconds, each at most once, in this order.
const PATTERN: &str = "^(?=[0-9])([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?$";
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

impl HumanDuration {
    /// Returns a duration of whole seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// Returns the duration.
    pub const fn get(self) -> Duration {
        self.0
    }
}

/// A text that is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a duration: write it with units, such as 120s, 1h30m or 250ms")]
pub struct InvalidDuration(String);

impl FromStr for HumanDuration {
    type Err = InvalidDuration;

    fn from_str(text: &str) -> Result<Self, InvalidDuration> {
        let invalid = || InvalidDuration(text.to_owned());
        let mut total = Duration::ZERO;
        let mut rest = text;
        let mut smallest = u64::MAX;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(invalid)?;
            let (number, tail) = rest.split_at(digits);
            let end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(end);
            let unit_ms: u64 = match unit {
                "d" => 86_400_000,
                "h" => 3_600_000,
                "m" => 60_000,
                "s" => 1_000,
                "ms" => 1,
                _ => return Err(invalid()),
            };
            if unit_ms >= smallest {
                return Err(invalid());
            }
            smallest = unit_ms;
            let number: u64 = number.parse().map_err(|_| invalid())?;
            let part = number.checked_mul(unit_ms).map(Duration::from_millis);
            total = part.and_then(|part| total.checked_add(part)).ok_or_else(invalid)?;
            rest = tail;
        }
        if text.is_empty() || total > LONGEST { Err(invalid()) } else { Ok(Self(total)) }
    }
}

impl TryFrom<String> for HumanDuration {
    type Error = InvalidDuration;

    fn try_from(text: String) -> Result<Self, InvalidDuration> {
        text.parse()
    }
}

impl From<HumanDuration> for String {
    fn from(duration: HumanDuration) -> Self {
        duration.to_string()
    }
}

impl From<Duration> for HumanDuration {
    fn from(duration: Duration) -> Self {
        Self(duration)
    }
}

/// Writes durations as people do, where a field is a plain [`Duration`].
pub(crate) mod written {
    use super::{Deserialize as _, Duration, HumanDuration};

    pub(crate) fn serialize<S: serde::Serializer>(
        duration: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&HumanDuration(*duration))
    }

    pub(crate) fn deserialize<'de, D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Duration, D::Error> {
        HumanDuration::deserialize(deserializer).map(HumanDuration::get)
    }
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The defaults read as the documentation writes them: 120s, not 2m.
        if self.0 < Duration::from_secs(600) && self.0.subsec_nanos() == 0 {
            return f.pad(&format!("{}s", self.0.as_secs()));
        }
        let mut text = String::new();
        let mut left = self.0.as_millis();
        for (unit, unit_ms) in
            [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)]
        {
            if left >= unit_ms {
                text.push_str(&format!("{}{unit}", left / unit_ms));
                left %= unit_ms;
            }
        }
        f.pad(&text)
    }
}

impl JsonSchema for HumanDuration {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Duration".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": PATTERN })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units_from_large_to_small() {
        for (text, ms) in [
            ("120s", 120_000),
            ("1h30m", 5_400_000),
            ("250ms", 250),
            ("0s", 0),
            ("2d", 172_800_000),
        ] {
            let duration: HumanDuration = text.parse().unwrap();
            assert_eq!(duration.get(), Duration::from_millis(ms), "{text}");
        }
        for bad in [
            "",
            "5",
            "s",
            "5x",
            "1m1h",
            "1s1s",
            "-5s",
            "1.5s",
            " 5s",
            "9999999999999999999d",
            "366d",
        ] {
            assert!(bad.parse::<HumanDuration>().is_err(), "{bad}");
        }
    }

    #[test]
    fn shown_as_a_person_would_write_it() {
        for (text, shown) in
            [("2m", "120s"), ("90m", "1h30m"), ("1500ms", "1s500ms"), ("0ms", "0s")]
        {
            assert_eq!(text.parse::<HumanDuration>().unwrap().to_string(), shown);
        }
    }

    #[test]
    fn the_schema_accepts_what_the_parser_accepts() {
        let pattern =
            jsonschema::validator_for(&serde_json::json!({ "pattern": PATTERN })).unwrap();
        for text in ["120s", "1h30m", "250ms", "0s", "", "5", "1m1h", "1.5s", "h", "1d1ms", "5x"] {
            let parsed = text.parse::<HumanDuration>().is_ok();
            assert_eq!(pattern.is_valid(&text.into()), parsed, "{text}");
        }
    }
}
