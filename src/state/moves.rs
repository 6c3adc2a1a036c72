//! How a worker moves from one phase to another, whoever moves it: the row and the event, in one place.
//!
//! Whether it may is the callers' to know; see [`Phase::may_become`].

use jiff::Timestamp;
use rusqlite::Connection;

use super::event::{self, NewEvent};
use super::load::to_ms;
use super::writer::JobError;
use crate::worker::{Generation, Phase, Slot};

/// One worker's move.
pub(super) struct Move<'a> {
    pub(super) row: i64,
    pub(super) pool: &'a str,
    pub(super) worker: (Slot, Generation),
    pub(super) phases: (Phase, Phase),
    /// When the new phase should be over; its patience by default.
    pub(super) deadline: Option<Timestamp>,
    /// What the event is called.
    pub(super) kind: &'a str,
    pub(super) who: &'a str,
    pub(super) why: &'a str,
}

/// Moves a worker, and says so in an event.
pub(super) fn carry_out(
    connection: &Connection,
    step: &Move<'_>,
    now: Timestamp,
) -> Result<(), JobError> {
    let (from, to) = step.phases;
    let patience = to.patience().and_then(|patience| now.checked_add(patience).ok());
    let deadline = step.deadline.or(patience).map(to_ms);
    connection
        .prepare_cached(
            "UPDATE worker SET phase = ?2, phase_since = ?3, phase_deadline = ?4
             WHERE id = ?1 AND phase = ?5",
        )?
        .execute((step.row, to.as_str(), to_ms(now), deadline, from.as_str()))?;
    event::write(
        connection,
        &NewEvent {
            at: now,
            pool: step.pool,
            worker: Some(step.worker),
            kind: step.kind,
            who: step.who,
            why: step.why,
            phases: (Some(from), Some(to)),
        },
    )
}
