//! Who a worker is: deployment, pool, slot, generation.
//!
//! Identity holds no randomness beyond the deployment id, so that a repeated create names the same
//! worker. Invariant: every value of these types is valid; the constructors check, and serde goes
//! through them. Does not say what a worker looks like; see [`crate::spec`].

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest pool id; keeps object names under the 63 characters that DNS labels allow.
pub const MAX_POOL_ID: usize = 40;

/// A text that is not a valid identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{value}` is not a valid {what}: {rule}")]
pub struct InvalidIdentity {
    what: &'static str,
    value: String,
    rule: &'static str,
}

/// Names a pool: `[a-z][a-z0-9-]{0,39}`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PoolId(String);

impl PoolId {
    /// The rule as a regular expression, for schemas.
    pub const PATTERN: &'static str = "^[a-z][a-z0-9-]{0,39}$";

    /// Returns the id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for PoolId {
    type Error = InvalidIdentity;

    fn try_from(value: String) -> Result<Self, InvalidIdentity> {
        let valid = value.len() <= MAX_POOL_ID
            && value.starts_with(|c: char| c.is_ascii_lowercase())
            && value.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        if valid {
            Ok(Self(value))
        } else {
            Err(InvalidIdentity {
                what: "pool id",
                value,
                rule: "it starts with a lower-case letter and has at most 40 lower-case letters, \
                       digits and dashes",
            })
        }
    }
}

impl FromStr for PoolId {
    type Err = InvalidIdentity;

    fn from_str(text: &str) -> Result<Self, InvalidIdentity> {
        Self::try_from(text.to_owned())
    }
}

impl From<PoolId> for String {
    fn from(id: PoolId) -> Self {
        id.0
    }
}

impl fmt::Display for PoolId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The random id of one state; tags every object that the state owns (Terraform's lineage).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DeploymentId(String);

impl DeploymentId {
    /// Builds an id from 16 random bytes.
    pub fn from_random(bytes: [u8; 16]) -> Self {
        use fmt::Write as _;
        let mut text = String::with_capacity(32);
        for byte in bytes {
            let _ = write!(text, "{byte:02x}");
        }
        Self(text)
    }

    /// Returns the id as 32 hex digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the six hex digits that end the name of every object of this deployment.
    pub fn suffix(&self) -> &str {
        &self.0[..6]
    }
}

impl TryFrom<String> for DeploymentId {
    type Error = InvalidIdentity;

    fn try_from(value: String) -> Result<Self, InvalidIdentity> {
        let hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
        if value.len() == 32 && value.chars().all(hex) {
            Ok(Self(value))
        } else {
            Err(InvalidIdentity { what: "deployment id", value, rule: "it is 32 hex digits" })
        }
    }
}

impl FromStr for DeploymentId {
    type Err = InvalidIdentity;

    fn from_str(text: &str) -> Result<Self, InvalidIdentity> {
        Self::try_from(text.to_owned())
    }
}

impl From<DeploymentId> for String {
    fn from(id: DeploymentId) -> Self {
        id.0
    }
}

impl fmt::Display for DeploymentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A position in a fixed-size pool, from 0.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
#[serde(transparent)]
pub struct Slot(pub u32);

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The nth worker that has lived in a slot, from 1.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
#[serde(transparent)]
pub struct Generation(pub u32);

impl Generation {
    /// Returns the generation after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One worker within a deployment, shown as `<pool>-<slot>-<generation>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WorkerName {
    /// The pool that the worker belongs to.
    pub pool: PoolId,
    /// The slot that it lives in.
    pub slot: Slot,
    /// Which of the slot's workers it is.
    pub generation: Generation,
}

impl WorkerName {
    /// Puts the three parts together.
    pub fn new(pool: PoolId, slot: Slot, generation: Generation) -> Self {
        Self { pool, slot, generation }
    }

    /// Returns the name of the worker's object at the provider: unique between deployments too.
    pub fn object_name(&self, deployment: &DeploymentId) -> String {
        format!("{self}-{}", deployment.suffix())
    }
}

impl fmt::Display for WorkerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.pool, self.slot, self.generation)
    }
}

impl FromStr for WorkerName {
    type Err = InvalidIdentity;

    fn from_str(text: &str) -> Result<Self, InvalidIdentity> {
        let invalid = || InvalidIdentity {
            what: "worker name",
            value: text.to_owned(),
            rule: "it is <pool>-<slot>-<generation>",
        };
        let (rest, generation) = text.rsplit_once('-').ok_or_else(invalid)?;
        let (pool, slot) = rest.rsplit_once('-').ok_or_else(invalid)?;
        Ok(Self {
            pool: pool.parse().map_err(|_| invalid())?,
            slot: Slot(slot.parse().map_err(|_| invalid())?),
            generation: Generation(generation.parse().map_err(|_| invalid())?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_id_is_a_dns_like_word() {
        for good in ["a", "ci-linux", "x9-", &"a".repeat(40)] {
            assert!(good.parse::<PoolId>().is_ok(), "{good}");
        }
        for bad in ["", "9a", "-a", "A", "a_b", "a/b", "../etc", "a\0", &"a".repeat(41)] {
            assert!(bad.parse::<PoolId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_worker_name_round_trips_even_with_dashes_in_the_pool() {
        let name = WorkerName::new("ci-linux-2".parse().unwrap(), Slot(3), Generation(14));
        assert_eq!(name.to_string(), "ci-linux-2-3-14");
        assert_eq!(name.to_string().parse::<WorkerName>().unwrap(), name);
        assert!("ci".parse::<WorkerName>().is_err());
    }

    #[test]
    fn two_deployments_never_share_an_object_name() {
        let name = WorkerName::new("ci".parse().unwrap(), Slot(0), Generation(1));
        let one = DeploymentId::from_random([1; 16]);
        let two = DeploymentId::from_random([2; 16]);
        assert_eq!(name.object_name(&one), "ci-0-1-010101");
        assert_ne!(name.object_name(&one), name.object_name(&two));
    }
}
