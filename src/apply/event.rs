//! What `apply` tells while it works: data for whoever shows it.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::plan::{Action, Reason};
use crate::worker::{PoolId, WorkerName};

/// One thing that happened during an apply.
#[derive(Debug, Clone, PartialEq)]
pub struct ApplyEvent {
    /// In which pool.
    pub pool: PoolId,
    /// To which worker: the one that comes, else the one that changes or goes.
    pub worker: WorkerName,
    /// As part of what.
    pub action: Action,
    /// Why.
    pub reason: Reason,
    /// What.
    pub kind: ApplyEventKind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum ApplyEventKind {
    /// The step began.
    Started,
    /// Another attempt follows.
    Retrying {
        /// Which attempt failed, from 1; `None` when what was refused says nothing against it.
        attempt: Option<u32>,
        /// Why.
        why: String,
        /// How long until the next one.
        delay: Duration,
    },
    /// A create had no answer that counts, and its worker is there all the same.
    Found {
        /// What became of the answer.
        why: String,
    },
    /// The provider says how a create goes.
    Progress(String),
    /// A job has the worker that is to go, and is waited for.
    Draining {
        /// Who holds the lease.
        holder: String,
        /// When the lease ends, unless it is renewed.
        until: Timestamp,
    },
    /// The step is done.
    Completed {
        /// How long it took.
        elapsed: Duration,
        /// The provider's id of the worker that came or changed.
        provider_id: Option<String>,
    },
    /// The step failed.
    Failed {
        /// How long it took.
        elapsed: Duration,
        /// Why.
        why: String,
    },
}

/// Whoever wants to know what happens. It must not block.
pub type Observer = Arc<dyn Fn(ApplyEvent) + Send + Sync>;
