//! What can go wrong with the state, and what to do about each. No SQLite type appears here.

use std::path::PathBuf;

use crate::worker::PoolId;

/// Why the state could not be read or changed. Nothing was changed by the call that returns it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// There is no state where one was required.
    #[error("there is no state at {}", .0.display())]
    Missing(PathBuf),
    /// The file cannot be opened.
    #[error("cannot open the state {}: {reason}", path.display())]
    Unopenable {
        /// The database file.
        path: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// The file is something else.
    #[error("{} is not a state of pool", .0.display())]
    Foreign(PathBuf),
    /// The file is damaged.
    #[error("the state {} is damaged: {reason}", path.display())]
    Damaged {
        /// The database file.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// A newer version of pool wrote it.
    #[error("the state {} has schema version {found}; this pool knows up to {known}", path.display())]
    Newer {
        /// The database file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The newest version known here.
        known: u32,
    },
    /// It cannot be written.
    #[error("the state {} is read-only", .0.display())]
    ReadOnly(PathBuf),
    /// The disk is full.
    #[error("no space is left to write the state {}", .0.display())]
    Full(PathBuf),
    /// Another process keeps the whole database locked.
    #[error("another process keeps the state {} locked", .0.display())]
    Busy(PathBuf),
    /// Somebody else works on the pool.
    #[error("the pool {pool} is locked by {holder}")]
    Locked {
        /// The pool.
        pool: PoolId,
        /// Who holds it, in words.
        holder: String,
    },
    /// A provider that is somewhere else now, with workers left where it was.
    #[error(
        "the provider {name} was {before} and is {after} now, and has workers left where it was"
    )]
    ProviderMoved {
        /// Its name.
        name: String,
        /// Where it was.
        before: String,
        /// Where it is.
        after: String,
    },
    /// Somebody else took the pool over.
    #[error("the lock on the pool {0} was taken over by another process")]
    Fenced(PoolId),
    /// The pool is not as it was when the plan was made.
    #[error("the pool {pool} has moved since the plan was made: {what}")]
    Moved {
        /// The pool.
        pool: PoolId,
        /// What moved, in words.
        what: String,
    },
    /// Somebody else applied to the pool while a run waited for jobs.
    #[error("somebody else applied to the pool {pool} while this run waited ({by})")]
    Overtaken {
        /// The pool.
        pool: PoolId,
        /// What was applied, in words.
        by: String,
    },
    /// The operation would break a bound of the run.
    #[error("the pool {pool} must keep {bound}")]
    Budget {
        /// The pool.
        pool: PoolId,
        /// The bound, in words.
        bound: String,
    },
    /// A job has the worker.
    #[error("worker {0} is leased")]
    Leased(String),
    /// Another server serves the state.
    #[error("the state is served by {holder} already")]
    Served {
        /// Who serves it, in words.
        holder: String,
    },
    /// The record does not allow it: a bug of ours, or two processes at odds.
    #[error("the state does not allow this: {0}")]
    Conflict(String),
    /// The writer has stopped.
    #[error("the state is closed")]
    Closed,
    /// Anything else that SQLite says.
    #[error("the state database: {0}")]
    Other(String),
}

impl StateError {
    /// Returns what a person can do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Missing(_) => {
                "`pool apply` creates one; for one that exists, go to its folder or use -C or --state"
                    .to_owned()
            }
            Self::Unopenable { .. } => {
                "check that the folder exists and belongs to this user".to_owned()
            }
            Self::Foreign(_) => "use --state to name another file".to_owned(),
            Self::Damaged { path, .. } => format!(
                "nothing was changed; restore a backup ({}.v*.bak) or move the file away: workers \
                 that exist are found again by their tags only with their deployment id",
                path.display()
            ),
            Self::Newer { .. } => "use the newer version of pool".to_owned(),
            Self::ReadOnly(_) => "check the permissions of the file and its folder".to_owned(),
            Self::Full(_) => "free some space and run again; nothing was started".to_owned(),
            Self::Busy(_) => "run again; transactions are short, something holds one open".to_owned(),
            Self::Locked { .. } => {
                "wait for it, or give --lock-timeout; a dead holder never blocks".to_owned()
            }
            Self::Fenced(_) => "run again to see where things stand".to_owned(),
            Self::Moved { .. } => "make a new plan".to_owned(),
            Self::ProviderMoved { .. } => {
                "reach it as before (the same region, endpoint, credentials), or declare the new \
                 place under another name: workers of pools that use that one move there"
                    .to_owned()
            }
            Self::Overtaken { .. } => {
                "make a new plan; running this one again would undo theirs".to_owned()
            }
            Self::Budget { .. } => "run again once the pool's workers are ready".to_owned(),
            Self::Leased(_) => "run again once its lease has ended".to_owned(),
            Self::Served { .. } => {
                "one server serves a state; use that one, or stop it first".to_owned()
            }
            Self::Conflict(_) | Self::Closed | Self::Other(_) => return None,
        })
    }
}
