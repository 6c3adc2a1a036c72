//! What an acquire comes to: workers, or why there are none.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::MOST_WAITING;
use crate::config::HumanDuration;
use crate::lease::{LeaseId, Requirement};
use crate::state::{Lease, StateError};
use crate::worker::PoolId;

/// Why no workers were given.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum AcquireError {
    /// The state.
    #[error(transparent)]
    State(#[from] StateError),
    /// There is no such pool.
    #[error("there is no pool `{0}`")]
    UnknownPool(PoolId),
    /// No worker could ever do.
    #[error("no worker could ever meet this request")]
    Unsatisfiable(Vec<Requirement>),
    /// A lease of that pool cannot be so long.
    #[error("a lease of pool `{pool}` lasts at most {}", HumanDuration::from_secs(most.as_secs()))]
    TtlTooLong {
        /// The pool.
        pool: PoolId,
        /// Its longest lease.
        most: Duration,
    },
    /// Not enough workers became free in time.
    #[error("no worker is free")]
    NoneFree {
        /// How many would do, and could not be found well in time: their probes get no answer, or took too long.
        unsure: usize,
        /// When it may be worth asking again.
        retry_after: Duration,
    },
    /// Too many wait already.
    #[error("{MOST_WAITING} requests wait already")]
    LineFull,
    /// The key was used for another request.
    #[error("the idempotency key was used for another request")]
    KeyConflict,
    /// The leases that the key was answered with have ended.
    #[error("the leases of this idempotency key have ended")]
    KeyGone,
    /// The desk closes.
    #[error("the server is stopping")]
    Closing,
}

/// Workers that were given. Dropped before [`Given::accept`], they are given back, unless the request can
/// be repeated.
#[derive(Debug)]
pub struct Given {
    pub(super) leases: Vec<Lease>,
    /// Whether the request was answered before.
    pub replay: bool,
    /// How long it waited.
    pub waited: Duration,
    pub(super) back: Option<mpsc::UnboundedSender<Abandoned>>,
}

/// What the desk takes back.
#[derive(Debug)]
pub(super) enum Abandoned {
    /// One lease.
    Lease(LeaseId),
    /// Nothing; it is told when everything before is taken back.
    All(oneshot::Sender<()>),
}

impl Given {
    /// Returns the leases.
    pub fn leases(&self) -> &[Lease] {
        &self.leases
    }

    /// Takes the leases: from here on they are the holder's.
    pub fn accept(mut self) -> Vec<Lease> {
        self.back = None;
        std::mem::take(&mut self.leases)
    }
}

impl Drop for Given {
    fn drop(&mut self) {
        if let Some(back) = &self.back {
            for lease in &self.leases {
                // A desk that is gone leaves them to expire.
                let _expires = back.send(Abandoned::Lease(lease.id)).is_err();
            }
        }
    }
}
