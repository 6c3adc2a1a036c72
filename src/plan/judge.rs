//! Decides what state of life a recorded worker is in, from its phase, its open operation and what its
//! provider reports.
//!
//! Absence counts only when the listing is complete and old enough to show the worker: a provider says
//! how long an effect takes to show (`settle`). A create whose answer was lost is sent again only when
//! its token makes that safe, or when it has provably left nothing; until then the worker waits.

use std::time::Duration;

use jiff::Timestamp;
use pool_provider::{Idempotency, ObservedStatus, ObservedWorker};

use super::input::{Observation, OpenOperation, OperationKind, RecordedWorker};
use crate::worker::Phase;

/// What state of life a worker is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// It exists and passed its health check.
    Serving,
    /// It exists, and its create call's answer was not recorded.
    Found,
    /// It exists, is recorded, and has yet to pass its health check.
    Unverified,
    /// Its create call may be sent again.
    Resendable,
    /// Its create call may still have an effect that does not show.
    Waiting(Option<Timestamp>),
    /// It is unhealthy.
    Unhealthy,
    /// Its creation failed.
    Failed,
    /// It is recorded and no longer there.
    Missing,
    /// Its deletion has begun.
    Leaving,
}

impl Condition {
    /// Returns whether the worker is on its way to being ready.
    pub fn is_unfinished(self) -> bool {
        matches!(self, Self::Found | Self::Unverified | Self::Resendable)
    }
}

/// Judges `worker`, which its provider reports as `seen`, or not at all.
pub fn judge(
    worker: &RecordedWorker,
    seen: Option<&ObservedWorker>,
    observation: Option<&Observation>,
    now: Timestamp,
) -> Condition {
    let open = worker.operation.as_ref();
    let deleting = open.is_some_and(|operation| operation.kind == OperationKind::Delete);
    // What is on its way out at the provider never runs again.
    let stopping = seen.is_some_and(|seen| seen.status == ObservedStatus::Stopping);
    if deleting || stopping || worker.phase == Phase::Deleting {
        return Condition::Leaving;
    }
    if worker.phase == Phase::Failed {
        return Condition::Failed;
    }
    if let Some(operation) = open.filter(|open| open.kind == OperationKind::Create) {
        if seen.is_some() {
            return Condition::Found;
        }
        return unanswered_create(operation.sent_at, observation, now);
    }
    let present = seen.is_some() || may_be_hidden(worker, observation, now);
    let in_time = worker.standing.deadline.is_some_and(|deadline| now < deadline);
    match worker.phase {
        // A reset may take it out of a listing for a moment: whoever cleans it finds out what became of it.
        Phase::Recycling if in_time => Condition::Serving,
        _ if !present => Condition::Missing,
        Phase::Pending | Phase::Provisioning => Condition::Resendable,
        Phase::Verifying => Condition::Unverified,
        // Whoever serves the state cleans it; one that nobody cleaned in time is not ready.
        Phase::Recycling if worker.standing.deadline.is_some_and(|deadline| now >= deadline) => {
            Condition::Leaving
        }
        Phase::Ready | Phase::Recycling | Phase::Quarantined => Condition::Serving,
        Phase::Unhealthy | Phase::Lost => Condition::Unhealthy,
        Phase::Deleting | Phase::Deleted | Phase::Failed => Condition::Leaving,
    }
}

/// Whether a create call may still have an effect that does not show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Landing {
    /// It cannot: it shows already, or it never will.
    Over,
    /// It may, until then.
    Until(Timestamp),
    /// It may, until a complete listing says otherwise.
    Unseen,
}

/// Says whether the worker's create call may still have an effect that does not show. Whoever deletes
/// such a worker would miss it.
pub fn may_land(
    worker: &RecordedWorker,
    seen: Option<&ObservedWorker>,
    observation: Option<&Observation>,
    now: Timestamp,
) -> Landing {
    let creates = |operation: &&OpenOperation| operation.kind == OperationKind::Create;
    let Some(open) = worker.operation.as_ref().filter(creates).filter(|_| seen.is_none()) else {
        return Landing::Over;
    };
    let Some(observation) = observation.filter(|observation| observation.was_asked()) else {
        return Landing::Unseen;
    };
    let settled = later(open.sent_at, observation.description().settle);
    if now < settled {
        Landing::Until(settled)
    } else if observation.is_complete() {
        Landing::Over
    } else {
        Landing::Unseen
    }
}

fn unanswered_create(
    sent_at: Timestamp,
    observation: Option<&Observation>,
    now: Timestamp,
) -> Condition {
    let Some(observation) = observation.filter(|observation| observation.was_asked()) else {
        return Condition::Waiting(None);
    };
    let description = observation.description();
    if description.idempotency == Idempotency::Token {
        return Condition::Resendable;
    }
    let settled = later(sent_at, description.settle);
    if now < settled {
        Condition::Waiting(Some(settled))
    } else if observation.is_complete() {
        Condition::Resendable
    } else {
        Condition::Waiting(None)
    }
}

/// Returns whether the worker's absence from the listing proves nothing.
fn may_be_hidden(
    worker: &RecordedWorker,
    observation: Option<&Observation>,
    now: Timestamp,
) -> bool {
    match observation {
        None => true,
        Some(observation) if !observation.was_asked() || !observation.is_complete() => true,
        Some(observation) => now < later(worker.phase_since, observation.description().lag()),
    }
}

fn later(time: Timestamp, duration: Duration) -> Timestamp {
    time.checked_add(duration).unwrap_or(Timestamp::MAX)
}
