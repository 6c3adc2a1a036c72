//! Who did what, when, why, from where to where. Rows are only ever added.

use rusqlite::{Connection, Row};
use serde::Serialize;

use super::load::{from_ms, to_ms};
use super::writer::JobError;
use crate::worker::{Generation, Phase, PoolId, Slot};

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Event {
    /// Its number; later events have larger ones.
    pub seq: i64,
    /// When.
    pub at: jiff::Timestamp,
    /// In which pool.
    pub pool: String,
    /// In which slot; `None` for the pool as a whole.
    pub slot: Option<Slot>,
    /// To which of the slot's workers.
    pub generation: Option<Generation>,
    /// What happened: a stable name.
    pub kind: String,
    /// Who did it.
    pub who: String,
    /// Why.
    pub why: String,
    /// The worker's phase before.
    pub from_phase: Option<String>,
    /// The worker's phase after.
    pub to_phase: Option<String>,
}

/// What can happen, and what that means: every name that [`Event::kind`] has.
pub const EVENT_KINDS: [(&str, &str); 19] = [
    ("config_applied", "A pool's config was recorded as applied; `why` says where it comes from."),
    ("pool_going", "The removal of a pool began."),
    ("pool_removed", "A pool is gone, with all its workers."),
    ("phase", "A worker went from `from_phase` to `to_phase`; a new one has no phase before."),
    (
        "outcome_unknown",
        "A provider call was answered with nothing that counts; what became of it is looked into.",
    ),
    ("updated", "A worker was changed in place."),
    ("update_failed", "A worker could not be changed in place."),
    ("stray_deleted", "An object that bore our tag and stood in no record was deleted."),
    ("probe_failed", "A worker's probe failed after one that passed: it gets no lease."),
    ("probe_passed", "A worker's probe passed after one that failed."),
    ("cordon", "Somebody decided that a worker gets no new lease."),
    ("uncordon", "A worker may be leased again."),
    ("drain", "A worker gets no new lease and is wanted without one."),
    ("quarantine", "A worker was taken out of service and is kept for diagnosis."),
    ("replace", "Somebody decided that another worker takes this one's place."),
    ("lease_granted", "A job got a worker; `who` is the holder."),
    (
        "lease_ended",
        "A job's lease ended; `why` ends with `ok`, `job_failed`, `infra_failed`, `expired` or `abandoned`.",
    ),
    (
        "remediation_stopped",
        "More workers are broken than `remediation.max_unhealthy`: none is replaced.",
    ),
    ("remediation_resumed", "Workers are replaced again."),
];

/// Which events are wanted.
#[derive(Debug, Clone, Default)]
pub struct EventFilter {
    /// Of this pool only.
    pub pool: Option<PoolId>,
    /// Of this slot only.
    pub slot: Option<Slot>,
    /// The latest so many; all when it is `None`.
    pub last: Option<u32>,
}

/// An event to be written.
pub(super) struct NewEvent<'a> {
    pub(super) at: jiff::Timestamp,
    pub(super) pool: &'a str,
    pub(super) worker: Option<(Slot, Generation)>,
    pub(super) kind: &'a str,
    pub(super) who: &'a str,
    pub(super) why: &'a str,
    pub(super) phases: (Option<Phase>, Option<Phase>),
}

pub(super) fn write(connection: &Connection, event: &NewEvent<'_>) -> Result<(), JobError> {
    let (from, to) = event.phases;
    let is_known = EVENT_KINDS.iter().any(|(kind, _)| *kind == event.kind);
    debug_assert!(is_known, "an event that nobody was told of: {}", event.kind);
    connection
        .prepare_cached(
            "INSERT INTO event (at, pool, slot, generation, kind, who, why, from_phase, to_phase)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        )?
        .execute((
            to_ms(event.at),
            event.pool,
            event.worker.map(|(slot, _)| slot.0),
            event.worker.map(|(_, generation)| generation.0),
            event.kind,
            event.who,
            event.why,
            from.map(Phase::as_str),
            to.map(Phase::as_str),
        ))?;
    Ok(())
}

/// Among how many of the latest events those of leases are looked for when a slot is asked about.
const RECENT: i64 = 20_000;

/// Returns the events that are wanted, oldest first.
pub(super) fn read(connection: &Connection, filter: &EventFilter) -> Result<Vec<Event>, JobError> {
    match (&filter.pool, filter.slot) {
        (Some(pool), Some(slot)) => of_slot(connection, pool, slot, filter.last),
        (pool, _) => {
            let sql = "SELECT * FROM (
                           SELECT seq, at, pool, slot, generation, kind, who, why, from_phase, to_phase
                           FROM event WHERE (?1 IS NULL OR pool = ?1) ORDER BY seq DESC LIMIT ?2)
                       ORDER BY seq";
            let mut statement = connection.prepare_cached(sql)?;
            let last = filter.last.map_or(-1, i64::from);
            let rows = statement.query_map((pool.as_ref().map(PoolId::as_str), last), of)?;
            rows.collect::<Result<_, _>>().map_err(JobError::from)
        }
    }
}

/// Returns a slot's events: all that changed its workers, and those of leases that are recent.
fn of_slot(
    connection: &Connection,
    pool: &PoolId,
    slot: Slot,
    last: Option<u32>,
) -> Result<Vec<Event>, JobError> {
    let columns = "seq, at, pool, slot, generation, kind, who, why, from_phase, to_phase";
    let mut statement = connection.prepare_cached(&format!(
        "SELECT * FROM (
             SELECT {columns} FROM event
             WHERE pool = ?1 AND slot = ?2 AND kind <> 'lease_granted' AND kind <> 'lease_ended'
             UNION ALL
             SELECT {columns} FROM event
             WHERE seq > (SELECT max(seq) FROM event) - {RECENT}
                 AND kind IN ('lease_granted', 'lease_ended') AND +pool = ?1 AND slot = ?2)
         ORDER BY seq DESC LIMIT ?3"
    ))?;
    let last = last.map_or(-1, i64::from);
    let rows = statement.query_map((pool.as_str(), slot.0, last), of)?;
    let mut events: Vec<Event> = rows.collect::<Result<_, _>>()?;
    events.reverse();
    Ok(events)
}

/// Returns the events after one of them, at most so many.
pub(super) fn after(
    connection: &Connection,
    after: i64,
    most: u32,
) -> Result<Vec<Event>, JobError> {
    let mut statement = connection.prepare_cached(
        "SELECT seq, at, pool, slot, generation, kind, who, why, from_phase, to_phase
         FROM event WHERE seq > ?1 ORDER BY seq LIMIT ?2",
    )?;
    let rows = statement.query_map((after, most), of)?;
    rows.collect::<Result<_, _>>().map_err(JobError::from)
}

fn of(row: &Row<'_>) -> rusqlite::Result<Event> {
    Ok(Event {
        seq: row.get(0)?,
        at: from_ms(row.get(1)?),
        pool: row.get(2)?,
        slot: row.get::<_, Option<u32>>(3)?.map(Slot),
        generation: row.get::<_, Option<u32>>(4)?.map(Generation),
        kind: row.get(5)?,
        who: row.get(6)?,
        why: row.get(7)?,
        from_phase: row.get(8)?,
        to_phase: row.get(9)?,
    })
}
