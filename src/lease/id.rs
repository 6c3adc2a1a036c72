//! How a lease is named: its number, which is its fence too, and a random part.
//!
//! The number alone would do within one state. With the random part, a name that comes from another
//! state, or from before a backup was restored, names nothing instead of somebody else's lease.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The name of a lease: `1042-9c3b51d0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct LeaseId {
    /// Larger than that of every lease before: the fence.
    pub number: i64,
    /// Random.
    pub nonce: u32,
}

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:08x}", self.number, self.nonce)
    }
}

/// A text that names no lease.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the id of a lease: one looks like `1042-9c3b51d0`")]
pub struct InvalidLeaseId(String);

impl FromStr for LeaseId {
    type Err = InvalidLeaseId;

    fn from_str(text: &str) -> Result<Self, InvalidLeaseId> {
        let invalid = || InvalidLeaseId(text.to_owned());
        let (number, nonce) = text.split_once('-').ok_or_else(invalid)?;
        let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_hexdigit());
        if nonce.len() != 8 || !digits(nonce) || !digits(number) {
            return Err(invalid());
        }
        let number = number.parse().map_err(|_| invalid())?;
        let nonce = u32::from_str_radix(nonce, 16).map_err(|_| invalid())?;
        Ok(Self { number, nonce })
    }
}

impl From<LeaseId> for String {
    fn from(id: LeaseId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for LeaseId {
    type Error = InvalidLeaseId;

    fn try_from(text: String) -> Result<Self, InvalidLeaseId> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_round_trip_and_nothing_else_is_one() {
        let id = LeaseId { number: 1042, nonce: 0x9c3b_51d0 };
        assert_eq!(id.to_string(), "1042-9c3b51d0");
        assert_eq!("1042-9c3b51d0".parse(), Ok(id));
        for bad in [
            "",
            "1042",
            "1042-9c3b51d",
            "-9c3b51d0",
            "1042-9c3b51d0-1",
            "+1-9c3b51d0",
            "a-9c3b51d0",
        ] {
            assert!(bad.parse::<LeaseId>().is_err(), "{bad}");
        }
    }
}
