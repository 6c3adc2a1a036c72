//! The contract between `pool` and whatever creates its workers.
//!
//! A provider turns a [`CreateRequest`] into a real worker (a process, a container, a VM), lists the
//! workers of one deployment, changes in place what it can, and deletes. It knows nothing of pools as
//! a whole, of plans, of leases or of the state database: this crate is all that it sees of `pool`.
//!
//! | module          | holds                                                                  |
//! |-----------------|------------------------------------------------------------------------|
//! | [`identity`]    | deployment, pool, slot, generation: who a worker is                     |
//! | [`spec`]        | what a worker should be, and what was observed of it                    |
//! | [`duration`]    | durations as people write them                                           |
//! | [`secret`]      | where a secret is read                                                 |
//! | [`error`]       | the named errors: each tells the caller what to do next                 |
//! | [`provider`]    | the trait [`WorkerProvider`] and its requests; the contract in prose    |
//! | [`marks`]       | the keys of tags or labels that say who a worker is                    |
//! | [`mask`]        | keeps secrets out of what is told and kept                              |
//! | `http`          | HTTP clients, with the feature of that name                             |
//! | [`shared`]      | [`SharedProvider`]: one provider of any type behind one concrete type   |
//! | [`conformance`] | the suite that every provider passes; the contract as code              |

pub mod conformance;
pub mod duration;
pub mod error;
#[cfg(feature = "http")]
pub mod http;
pub mod identity;
pub mod marks;
pub mod mask;
pub mod provider;
pub mod secret;
pub mod shared;
pub mod spec;

pub use duration::{HumanDuration, InvalidDuration};
pub use error::ProviderError;
pub use identity::{DeploymentId, Generation, InvalidIdentity, PoolId, Slot, WorkerName};
pub use mask::{Mask, MaskedStream};
pub use provider::{
    About, Consistency, CreateRequest, DeleteRequest, Description, Heard, Idempotency,
    InPlaceField, Listing, PageToken, Probes, Progress, ResetRequest, UpdateRequest,
    WorkerProvider, WorkerRef,
};
pub use secret::SecretSource;
pub use shared::{Call, Gate, SharedProvider, Turn};
pub use spec::{ObservedStatus, ObservedWorker, ProbeOutcome, WorkerSpec};
