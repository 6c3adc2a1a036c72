//! Pools as things that can be observed, planned, reconciled and asked for their status.
//!
//! [`ResourcePool`] is the seam behind which another kind of pool can stand without the server, the CLI
//! or the store noticing; [`StaticPoolManager`] is the kind with a fixed number of workers. Both doors,
//! this and the CLI, lead to the same [`Reconciler`]. Knows nothing of HTTP, flags or terminals.
//!
//! | module        | holds                                             |
//! |---------------|---------------------------------------------------|
//! | [`desk`]      | where leases are asked for and given back             |
//! | [`vitals`]    | when workers were last known to be well               |
//! | [`hold`]      | the locks on pools while a run lasts                   |
//! | `keeper`      | looks after all pools of a state                       |
//! | `reconcile`   | observe → plan → check → apply → look again          |
//! | `rounds`      | carrying out a plan that waits for jobs                |
//! | `waiting`     | the mark that a run waits for jobs                     |
//! | `fit`         | whether pools fit what their providers say             |
//! | `registry`    | provider names to providers                         |
//! | `providers`   | the providers at hand                                 |
//! | `limiter`     | how much is asked of a provider                        |
//! | `secrets`     | where secrets are read                              |
//! | `status`      | what a pool looks like from outside                  |

pub mod desk;
mod fit;
pub mod hold;
mod keeper;
mod limiter;
mod manager;
mod providers;
mod reconcile;
mod registry;
mod rounds;
mod secrets;
mod status;
pub mod vitals;
mod waiting;
mod watcher;

pub use desk::{AcquireError, Desk, Given};
pub use fit::verify_pool;
pub use hold::{Hold, Patience};
pub use keeper::{Files, Habits, Keeper, Looked, Mode};
pub use manager::{PoolFuture, ResourcePool, StaticPoolManager};
pub use providers::{Dress, Providers};
pub use reconcile::{Effort, Planned, Reconciler, Unseen, observe};
pub use registry::ProviderSettings;
pub use secrets::Secrets;
pub use status::{LeaseStatus, StaticPoolState, WorkerStatus};
pub use watcher::{Unwatched, Watcher};

use crate::config::Misfit;
use crate::state::StateError;

fn in_lines(misfits: &[Misfit]) -> String {
    misfits.iter().map(Misfit::to_string).collect::<Vec<_>>().join("\n")
}

/// Why a run could not be made at all.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PoolError {
    /// The state.
    #[error(transparent)]
    State(#[from] StateError),
    /// A provider that is neither there by itself nor declared.
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
    /// Pools, and providers' configs, that ask for what the providers do not have.
    #[error("{}", in_lines(.0))]
    Misfits(Vec<Misfit>),
    /// A plan that breaks its own promises.
    #[error("the plan breaks its own promises: {0}")]
    BrokenPlan(String),
    /// No worker was given.
    #[error(transparent)]
    Acquire(#[from] AcquireError),
    /// There is no such worker.
    #[error("there is no worker `{0}`")]
    UnknownWorker(String),
    /// A plan that a guard refuses.
    #[error("a guard refuses the plan")]
    Refused(Vec<crate::plan::Refusal>),
}
