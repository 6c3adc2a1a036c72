//! Pools as things that can be observed, planned, reconciled and asked for their status.
//!
//! [`ResourcePool`] is the seam behind which another kind of pool can stand without the server, the CLI
//! or the store noticing; [`StaticPoolManager`] is the kind with a fixed number of workers. Both doors,
//! this and the CLI, lead to the same [`Reconciler`]. Knows nothing of HTTP, flags or terminals.
//!
//! | module        | holds                                             |
//! |---------------|---------------------------------------------------|
//! | `reconcile`   | observe → plan → check → apply → look again          |
//! | `registry`    | provider names to providers                         |
//! | `secrets`     | where secrets are read                              |
//! | `status`      | what a pool looks like from outside                  |

mod manager;
mod reconcile;
mod registry;
mod secrets;
mod status;

pub use manager::{PoolFuture, ResourcePool, StaticPoolManager};
pub use reconcile::{Planned, Reconciler, observe};
pub use registry::{ProviderSettings, known_providers, open_providers};
pub use secrets::Secrets;
pub use status::{StaticPoolState, WorkerStatus};

use crate::state::StateError;

/// Why a run could not be made at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// The state.
    #[error(transparent)]
    State(#[from] StateError),
    /// A provider that is not part of this version.
    #[error("there is no provider `{0}`")]
    UnknownProvider(String),
    /// A provider that cannot be used.
    #[error("the provider {name}: {reason}")]
    Provider {
        /// Its name.
        name: String,
        /// What it says.
        reason: String,
    },
    /// A plan that breaks its own promises.
    #[error("the plan breaks its own promises: {0}")]
    BrokenPlan(String),
    /// A plan that a guard refuses.
    #[error("a guard refuses the plan")]
    Refused(Vec<crate::plan::Refusal>),
}
