//! The named errors of a provider call. The name decides what the caller does next; the message is
//! for a person.
//!
//! | error            | the caller                                                            |
//! |------------------|-----------------------------------------------------------------------|
//! | not found        | of a delete: done; of a get: it does not exist now                     |
//! | already exists   | lists and adopts                                                      |
//! | out of capacity  | retries elsewhere at once, or later; replaces destroy-first           |
//! | quota            | reports; a retry does not help                                        |
//! | rate limited     | waits as told and repeats; that is no failed attempt                  |
//! | unauthenticated  | reports; a retry does not help                                        |
//! | spent            | makes the next attempt, after a repeat too                            |
//! | invalid spec     | reports; a retry does not help                                        |
//! | transient        | repeats: nothing happened                                             |
//! | unknown outcome  | never takes it for a failure: finds out, or repeats with the same token |

use std::time::Duration;

/// Why a provider call did not succeed. All but [`ProviderError::UnknownOutcome`] promise that the
/// call had no effect.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProviderError {
    /// There is no such worker.
    #[error("not found: {0}")]
    NotFound(String),
    /// The name is taken by something that this call did not create.
    #[error("already exists: {0}")]
    AlreadyExists(String),
    /// The provider has no room now.
    #[error("out of capacity: {message}")]
    OutOfCapacity {
        /// What the provider said.
        message: String,
        /// Whether the next attempt goes somewhere else, because more is passed over by then
        /// ([`crate::CreateRequest::passed_over`]): it is made at once.
        elsewhere: bool,
    },
    /// A limit of the account is reached.
    #[error("quota exceeded: {0}")]
    Quota(String),
    /// Too many calls.
    #[error("rate limited: {message}")]
    RateLimited {
        /// What the provider said.
        message: String,
        /// How long it asks to wait.
        retry_after: Option<Duration>,
    },
    /// The credentials are missing or refused.
    #[error("unauthenticated: {0}")]
    Unauthenticated(String),
    /// What the attempt brought is gone for good, whichever of its calls brought it, and none brings anything any
    /// more: its token is used up.
    #[error("attempt is over: {0}")]
    Spent(String),
    /// The request can never succeed as it is.
    #[error("invalid spec: {0}")]
    InvalidSpec(String),
    /// A passing trouble; nothing happened.
    #[error("transient failure: {0}")]
    Transient(String),
    /// The call may have had its effect: a timeout, a lost answer.
    #[error("outcome unknown: {0}")]
    UnknownOutcome(String),
}

impl ProviderError {
    /// Returns the error's stable name, for state and events.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotFound(_) => "not_found",
            Self::AlreadyExists(_) => "already_exists",
            Self::OutOfCapacity { .. } => "out_of_capacity",
            Self::Quota(_) => "quota",
            Self::RateLimited { .. } => "rate_limited",
            Self::Unauthenticated(_) => "unauthenticated",
            Self::Spent(_) => "spent",
            Self::InvalidSpec(_) => "invalid_spec",
            Self::Transient(_) => "transient",
            Self::UnknownOutcome(_) => "unknown_outcome",
        }
    }

    /// Returns whether the same call may succeed when it is repeated soon.
    pub fn is_worth_a_retry(&self) -> bool {
        match self {
            Self::OutOfCapacity { .. }
            | Self::Spent(_)
            | Self::RateLimited { .. }
            | Self::Transient(_)
            | Self::UnknownOutcome(_) => true,
            Self::NotFound(_)
            | Self::AlreadyExists(_)
            | Self::Quota(_)
            | Self::Unauthenticated(_)
            | Self::InvalidSpec(_) => false,
        }
    }

    /// Returns whether it says nothing against the request: there was no room in one of several places, or
    /// there were too many calls.
    pub fn is_no_failure(&self) -> bool {
        matches!(self, Self::RateLimited { .. } | Self::OutOfCapacity { elsewhere: true, .. })
    }

    /// Returns whether the call may have had its effect.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::UnknownOutcome(_))
    }
}

/// Says what went wrong and why, cause by cause: clients of networks tell what happened in the causes only.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(&format!(": {cause_text}"));
        }
        source = cause.source();
    }
    text
}
