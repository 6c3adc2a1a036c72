//! Words of the domain: who a worker is, how people address it, and which phases it goes through.
//!
//! Identity types come from the provider contract and are re-exported here. The phases are one enum
//! with one transition table ([`Phase::may_become`]); nothing else decides what may follow what.
//! *Leased* is not a phase, and neither are *cordoned* and *draining*.

use std::time::Duration;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use pool_provider::{DeploymentId, Generation, InvalidIdentity, PoolId, Slot, WorkerName};

/// Where a worker is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Decided and recorded; no provider call was made.
    Pending,
    /// A create call may be under way.
    Provisioning,
    /// It exists and has yet to pass its health check.
    Verifying,
    /// It passed its health check; jobs may have it.
    Ready,
    /// It is being cleaned between two jobs.
    Recycling,
    /// It failed its health check often enough.
    Unhealthy,
    /// Out of service, kept for diagnosis.
    Quarantined,
    /// A delete call may be under way.
    Deleting,
    /// Gone, confirmed; the row is a tombstone.
    Deleted,
    /// Its creation failed for good; something of it may be left.
    Failed,
    /// Recorded, and no longer observed.
    Lost,
}

impl Phase {
    /// All phases, in order of life.
    pub const ALL: [Self; 11] = [
        Self::Pending,
        Self::Provisioning,
        Self::Verifying,
        Self::Ready,
        Self::Recycling,
        Self::Unhealthy,
        Self::Quarantined,
        Self::Deleting,
        Self::Deleted,
        Self::Failed,
        Self::Lost,
    ];

    /// Returns the phase's stable name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Provisioning => "provisioning",
            Self::Verifying => "verifying",
            Self::Ready => "ready",
            Self::Recycling => "recycling",
            Self::Unhealthy => "unhealthy",
            Self::Quarantined => "quarantined",
            Self::Deleting => "deleting",
            Self::Deleted => "deleted",
            Self::Failed => "failed",
            Self::Lost => "lost",
        }
    }

    /// Returns how long a worker may be in this phase before it is overdue, where nothing else sets a limit;
    /// `None` where it may stay.
    pub fn patience(self) -> Option<Duration> {
        match self {
            Self::Ready | Self::Quarantined | Self::Deleted => None,
            Self::Pending
            | Self::Provisioning
            | Self::Verifying
            | Self::Recycling
            | Self::Unhealthy
            | Self::Deleting
            | Self::Failed
            | Self::Lost => Some(Duration::from_secs(600)),
        }
    }

    /// The transition table: returns whether a worker in this phase may go to `next`.
    pub fn may_become(self, next: Self) -> bool {
        use Phase::{
            Deleted, Deleting, Failed, Lost, Pending, Provisioning, Quarantined, Ready, Recycling,
            Unhealthy, Verifying,
        };
        let next_phases: &[Self] = match self {
            Pending => &[Provisioning, Deleting, Deleted],
            Provisioning => &[Verifying, Failed, Deleting, Lost],
            Verifying => &[Ready, Unhealthy, Failed, Deleting, Lost, Provisioning],
            Ready => &[Verifying, Recycling, Unhealthy, Quarantined, Deleting, Lost],
            Recycling => &[Ready, Verifying, Failed, Quarantined, Deleting, Lost],
            Unhealthy => &[Verifying, Ready, Recycling, Quarantined, Deleting, Lost],
            Quarantined => &[Verifying, Deleting, Lost],
            Deleting => &[Deleted],
            Deleted => &[],
            Failed => &[Provisioning, Deleting, Deleted],
            Lost => &[Verifying, Deleting, Deleted],
        };
        next_phases.contains(&next)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Phase {
    type Err = UnknownPhase;

    fn from_str(text: &str) -> Result<Self, UnknownPhase> {
        let found = Self::ALL.into_iter().find(|phase| phase.as_str() == text);
        found.ok_or_else(|| UnknownPhase(text.to_owned()))
    }
}

/// A text that names no phase.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a phase of a worker")]
pub struct UnknownPhase(String);

/// How people point at a pool or at a slot of it: `ci-linux`, `ci-linux[3]`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// The pool.
    pub pool: PoolId,
    /// The slot; `None` means the whole pool.
    pub slot: Option<Slot>,
}

impl Address {
    /// Returns the address of one slot.
    pub fn of_slot(pool: PoolId, slot: Slot) -> Self {
        Self { pool, slot: Some(slot) }
    }

    /// Returns whether the address covers this slot.
    pub fn covers(&self, pool: &PoolId, slot: Slot) -> bool {
        self.pool == *pool && self.slot.is_none_or(|own| own == slot)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.slot {
            None => self.pool.fmt(f),
            Some(slot) => write!(f, "{}[{slot}]", self.pool),
        }
    }
}

/// A text that is not an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an address: write a pool (`ci-linux`) or a slot of one (`ci-linux[3]`)")]
pub struct InvalidAddress(String);

impl FromStr for Address {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let invalid = || InvalidAddress(text.to_owned());
        // The plan's JSON writes addresses with the resource type in front, as Terraform does.
        let bare = text.strip_prefix("pool_worker.").unwrap_or(text);
        let (pool, slot) = match bare.strip_suffix(']') {
            None => (bare, None),
            Some(open) => {
                let (pool, slot) = open.split_once('[').ok_or_else(invalid)?;
                (pool, Some(Slot(slot.parse().map_err(|_| invalid())?)))
            }
        };
        Ok(Self { pool: pool.parse().map_err(|_| invalid())?, slot })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows are "from", columns are "to", in the order of [`Phase::ALL`].
    const TABLE: [&str; 11] = [
        ".x.....xx..", // pending
        "..x....x.xx", // provisioning
        ".x.x.x.x.xx", // verifying
        "..x.xxxx..x", // ready
        "..xx..xx.xx", // recycling
        "..xxx.xx..x", // unhealthy
        "..x....x..x", // quarantined
        "........x..", // deleting
        "...........", // deleted
        ".x.....xx..", // failed
        "..x....xx..", // lost
    ];

    #[test]
    fn transitions_are_exactly_those_of_the_table() {
        for (from, row) in Phase::ALL.into_iter().zip(TABLE) {
            for (to, cell) in Phase::ALL.into_iter().zip(row.chars()) {
                assert_eq!(from.may_become(to), cell == 'x', "{from} -> {to}");
            }
        }
    }

    #[test]
    fn every_phase_leads_to_deletion() {
        for from in Phase::ALL.into_iter().filter(|phase| *phase != Phase::Deleted) {
            let direct = from.may_become(Phase::Deleted);
            assert!(direct || from.may_become(Phase::Deleting), "{from} can never be deleted");
        }
    }

    #[test]
    fn names_round_trip() {
        for phase in Phase::ALL {
            assert_eq!(phase.as_str().parse(), Ok(phase));
        }
        assert!("leased".parse::<Phase>().is_err());
    }

    #[test]
    fn addresses_name_pools_and_slots() {
        let slot: Address = "ci-linux[3]".parse().unwrap();
        assert_eq!(slot.slot, Some(Slot(3)));
        assert_eq!(slot.to_string(), "ci-linux[3]");
        assert_eq!("pool_worker.ci-linux[3]".parse::<Address>().unwrap(), slot);
        assert_eq!("ci".parse::<Address>().unwrap().slot, None);
        for bad in ["", "ci[", "ci[]", "ci[x]", "ci[1]]", "ci[-1]", "CI", "ci[1][2]"] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }
}
