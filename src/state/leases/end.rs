//! The end of a lease, and what becomes of its worker.

use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Row};

use super::Ended;
use crate::config::Pick;
use crate::lease::{After, Ending, LeaseId, Outcome, Retirement, Usage, terms};
use crate::state::error::StateError;
use crate::state::event::{self, NewEvent};
use crate::state::load::{from_ms, to_ms};
use crate::state::moves::{self, Move};
use crate::state::offers::{Offer, Offers};
use crate::state::writer::JobError;
use crate::worker::{Generation, Phase, PoolId, Slot, WorkerName};

/// What ending a lease needs to know of it.
pub(crate) struct OpenLease {
    pub(crate) id: LeaseId,
    pub(crate) worker: i64,
    pub(crate) pool: String,
    pub(crate) slot: u32,
    pub(crate) generation: u32,
    pub(crate) holder: String,
}

impl OpenLease {
    pub(super) fn of(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: LeaseId { number: row.get(0)?, nonce: row.get(1)? },
            worker: row.get(2)?,
            pool: row.get(3)?,
            slot: row.get(4)?,
            generation: row.get(5)?,
            holder: row.get(6)?,
        })
    }
}

pub(super) fn open_lease(
    connection: &Connection,
    id: LeaseId,
) -> Result<Option<OpenLease>, JobError> {
    let sql = "SELECT id, nonce, worker, pool, slot, generation, holder FROM lease
               WHERE id = ?1 AND nonce = ?2 AND ended_at IS NULL";
    let mut statement = connection.prepare_cached(sql)?;
    Ok(statement.query_row((id.number, id.nonce), OpenLease::of).optional()?)
}

/// The worker whose lease ends.
struct LeasedWorker {
    phase: Phase,
    draining: bool,
    retired: bool,
    /// Another one than the config asks for on purpose; no longer, once an update wants it gone.
    tried_out: bool,
    uses: u32,
    blames: u32,
    created_at: Timestamp,
    spec_hash: String,
}

fn leased_worker(connection: &Connection, row: i64) -> Result<Option<LeasedWorker>, JobError> {
    let sql = "SELECT phase, draining, uses, blames, created_at, spec.hash,
                   retired IS NOT NULL, tried_out = 1 AND draining <> 2
               FROM worker JOIN spec ON spec.id = worker.spec WHERE worker.id = ?1";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query([row])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let phase: String = row.get(0)?;
    Ok(Some(LeasedWorker {
        phase: phase.parse().map_err(|error| StateError::Conflict(format!("{error}")))?,
        draining: row.get::<_, u8>(1)? > 0,
        uses: row.get(2)?,
        blames: row.get(3)?,
        created_at: from_ms(row.get(4)?),
        spec_hash: row.get(5)?,
        retired: row.get(6)?,
        tried_out: row.get(7)?,
    }))
}

/// Ends an open lease, and decides what becomes of its worker. Everything is read before anything is
/// written.
pub(crate) fn end(
    connection: &Connection,
    offers: &Offers,
    open: &OpenLease,
    ending: Ending,
    now: Timestamp,
) -> Result<Ended, JobError> {
    let pool: PoolId =
        open.pool.parse().map_err(|error| StateError::Conflict(format!("{error}")))?;
    let worker = leased_worker(connection, open.worker)?;
    // A config that this version cannot read keeps no lease open.
    let offer = match offers.of_pool(connection, &pool) {
        Err(JobError::State(_)) => None,
        offer => offer?,
    };
    let after =
        worker.as_ref().map_or(After::Ready, |worker| after(worker, offer.as_deref(), ending, now));
    connection
        .prepare_cached("UPDATE lease SET ended_at = ?2, ending = ?3 WHERE id = ?1")?
        .execute((open.id.number, to_ms(now), ending.as_str()))?;
    if let Some(worker) = &worker {
        settle(connection, offer.as_deref(), open, worker, (ending, after), now)?;
    }
    let key = (Slot(open.slot), Generation(open.generation));
    event::write(
        connection,
        &NewEvent {
            at: now,
            pool: &open.pool,
            worker: Some(key),
            kind: "lease_ended",
            who: &open.holder,
            why: &format!("lease {}: {}", open.id, ending.as_str()),
            phases: (None, None),
        },
    )?;
    let name = WorkerName::new(pool, key.0, key.1);
    Ok(Ended { name, worker: open.worker, ending, after })
}

/// What the pool's terms say, and what the worker's own state adds to them.
fn after(worker: &LeasedWorker, offer: Option<&Offer>, ending: Ending, now: Timestamp) -> After {
    let goes_already = !matches!(worker.phase, Phase::Ready | Phase::Unhealthy);
    if goes_already {
        return After::Heal;
    }
    if worker.retired {
        return After::Retire(Retirement::Requested);
    }
    let Some(offer) = offer else { return After::Heal };
    let age = Duration::try_from(now.duration_since(worker.created_at)).unwrap_or_default();
    let differs = offer.spec_hash.as_ref().is_some_and(|hash| *hash != worker.spec_hash);
    let outdated = differs && !worker.tried_out;
    let usage = Usage { uses: worker.uses, age, blames: worker.blames, outdated };
    match terms::after(ending, usage, &offer.config.leases) {
        // One that failed meanwhile, or that is wanted without a lease, is not ready for the next one.
        After::Ready if worker.phase != Phase::Ready || worker.draining => After::Heal,
        after => after,
    }
}

/// Moves a worker whose lease ended to where its pool's terms want it.
fn settle(
    connection: &Connection,
    offer: Option<&Offer>,
    open: &OpenLease,
    worker: &LeasedWorker,
    (ending, after): (Ending, After),
    now: Timestamp,
) -> Result<(), JobError> {
    let blames = match ending {
        Ending::Released(Outcome::InfraFailed) => worker.blames + 1,
        Ending::Released(Outcome::Ok) => 0,
        _ => worker.blames,
    };
    let leases = offer.map(|offer| &offer.config.leases);
    let least_recent = leases.is_some_and(|leases| leases.pick == Pick::LeastRecentlyUsed);
    let rank = if least_recent { to_ms(now) } else { i64::from(open.slot) };
    // Who was blamed is probed before anybody else gets it.
    let suspect = ending == Ending::Released(Outcome::InfraFailed) && after == After::Ready;
    connection
        .prepare_cached(
            "UPDATE worker SET lease = NULL, rank = ?2, blames = ?3, suspect = suspect OR ?4
             WHERE id = ?1",
        )?
        .execute((open.worker, rank, blames, suspect))?;
    let from = worker.phase;
    match after {
        After::Ready | After::Heal => Ok(()),
        After::Recycle => {
            let recycle = leases.and_then(|leases| leases.recycle.as_ref());
            let limit = recycle.map_or(Duration::ZERO, |recycle| recycle.timeout.get());
            let deadline = now.checked_add(limit * RECYCLE_ATTEMPTS).unwrap_or(Timestamp::MAX);
            let to = (from, Phase::Recycling);
            move_worker(connection, open, to, Some(deadline), ending.as_str(), now)
        }
        After::Retire(why) => {
            connection
                .prepare_cached(
                    "UPDATE worker SET retired = coalesce(retired, ?2), cordoned = 1, draining = 1
                     WHERE id = ?1",
                )?
                .execute((open.worker, why.as_str()))?;
            move_worker(connection, open, (from, Phase::Deleting), None, why.as_str(), now)
        }
        After::Quarantine => {
            let why = "blamed by its holders";
            move_worker(connection, open, (from, Phase::Quarantined), None, why, now)
        }
    }
}

/// How often a worker is cleaned in vain before it is replaced.
pub const RECYCLE_ATTEMPTS: u32 = 3;

fn move_worker(
    connection: &Connection,
    open: &OpenLease,
    phases: (Phase, Phase),
    deadline: Option<Timestamp>,
    why: &str,
    now: Timestamp,
) -> Result<(), JobError> {
    let (pool, worker) = (&open.pool, (Slot(open.slot), Generation(open.generation)));
    let who = &open.holder;
    let step = Move { row: open.worker, pool, worker, phases, deadline, kind: "phase", who, why };
    moves::carry_out(connection, &step, now)
}
