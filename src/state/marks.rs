//! What people decide about single workers, and what pools come to in numbers.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _};

use super::Store;
use super::error::StateError;
use super::event::{self, Event, NewEvent};
use super::load::{from_ms, to_ms};
use super::moves::{self, Move};
use super::offers::Offers;
use super::writer::JobError;
use crate::config::StaticPoolConfig;
use crate::worker::{Phase, PoolId, WorkerName};

/// What somebody decides about a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// It gets no new lease.
    Cordon,
    /// It may be leased again. One that was quarantined is verified first.
    Uncordon,
    /// It gets no new lease, and is wanted without one.
    Drain,
    /// It is out of service and kept for diagnosis.
    Quarantine,
}

impl Mark {
    /// Returns the stable name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cordon => "cordon",
            Self::Uncordon => "uncordon",
            Self::Drain => "drain",
            Self::Quarantine => "quarantine",
        }
    }
}

/// What one pool comes to.
#[derive(Debug, Clone, PartialEq)]
pub struct PoolSummary {
    /// The pool.
    pub pool: PoolId,
    /// Moved by every change of the inventory.
    pub serial: u64,
    /// Moved by everything that happens to a worker, leases and probes apart.
    pub changes: i64,
    /// The config as it was last applied, when, and where it stood; `None` when the pool goes.
    pub applied: Option<(StaticPoolConfig, jiff::Timestamp, String)>,
    /// How many workers are in each phase.
    pub phases: BTreeMap<Phase, u32>,
    /// How many are leased.
    pub leased: u32,
    /// How many of those are in phase ready.
    pub leased_ready: u32,
    /// How many could be leased, freshness apart.
    pub free: u32,
    /// How many are ready and free, and get no lease because somebody or something keeps them from it.
    pub cordoned: u32,
    /// How many are ready and free, and get no lease before a probe passes.
    pub suspect: u32,
    /// How many are in their phase for longer than they should be.
    pub overdue: u32,
}

impl PoolSummary {
    /// Returns how many workers it keeps.
    pub fn fixed_size(&self) -> u32 {
        self.applied.as_ref().map_or(0, |(config, ..)| config.fixed_size)
    }

    /// Returns ready workers as a share of those it keeps, at most 1; 1 for a pool that keeps none.
    pub fn availability(&self) -> f64 {
        let ready = f64::from(self.phases.get(&Phase::Ready).copied().unwrap_or(0));
        match self.fixed_size() {
            0 => 1.0,
            size => (ready / f64::from(size)).min(1.0),
        }
    }
}

impl Store {
    /// Marks a worker. A lease is granted before or after, never meanwhile: both are one transaction.
    ///
    /// # Errors
    /// [`StateError::Conflict`] when the worker's phase does not allow it. `Ok(false)` when there is no such
    /// worker.
    pub async fn mark(&self, name: &WorkerName, mark: Mark, who: &str) -> Result<bool, StateError> {
        let (name, now, who) = (name.clone(), self.now(), who.to_owned());
        self.writer
            .run(move |connection| {
                let Some(found) = find(connection, &name)? else { return Ok(false) };
                let to = leads(&name, found.phase, mark)?;
                let (cordoned, draining) = match mark {
                    Mark::Cordon | Mark::Quarantine => (1, None),
                    Mark::Drain => (1, Some(1)),
                    Mark::Uncordon => (0, Some(0)),
                };
                connection
                    .prepare_cached(
                        "UPDATE worker SET cordoned = ?2, draining = coalesce(?3, draining),
                             blames = CASE WHEN ?4 THEN 0 ELSE blames END
                         WHERE id = ?1",
                    )?
                    .execute((found.row, cordoned, draining, to.is_some()))?;
                found.tell(connection, &name, to, (mark.as_str(), &who), now)?;
                Ok(true)
            })
            .await
    }

    /// Has another worker take this one's place: at once, or when its lease ends. `Ok(false)` when there is
    /// no such worker.
    ///
    /// # Errors
    /// [`StateError::Conflict`] when its phase does not allow it.
    pub async fn retire(&self, name: &WorkerName, who: &str) -> Result<bool, StateError> {
        let (name, now, who) = (name.clone(), self.now(), who.to_owned());
        self.writer
            .run(move |connection| {
                let Some(found) = find(connection, &name)? else { return Ok(false) };
                if found.phase == Phase::Deleting {
                    return Ok(true);
                }
                // What a run is bringing is that run's.
                let settled = [Phase::Ready, Phase::Unhealthy, Phase::Quarantined, Phase::Lost];
                if !settled.contains(&found.phase) {
                    return refuse(&name, found.phase, "it cannot be replaced now");
                }
                connection
                    .prepare_cached(
                        "UPDATE worker SET retired = 'requested', cordoned = 1, draining = 1
                         WHERE id = ?1",
                    )?
                    .execute([found.row])?;
                let to = (!found.leased).then_some(Phase::Deleting);
                found.tell(connection, &name, to, ("replace", &who), now)?;
                Ok(true)
            })
            .await
    }

    /// Returns what every pool comes to that is not gone, by name.
    pub async fn summaries(&self) -> Result<Vec<PoolSummary>, StateError> {
        let (offers, now) = (Arc::clone(&self.offers), self.now());
        self.read(move |connection| summaries(connection, &offers, now)).await
    }

    /// Returns the events after `after`, at most so many.
    pub async fn events_after(&self, after: i64, most: u32) -> Result<Vec<Event>, StateError> {
        self.read(move |connection| event::after(connection, after, most)).await
    }

    /// Returns the number of the latest event; 0 before the first.
    pub async fn last_event(&self) -> Result<i64, StateError> {
        self.read(|connection| {
            let sql = "SELECT coalesce(max(seq), 0) FROM event";
            Ok(connection.prepare_cached(sql)?.query_row([], |row| row.get(0))?)
        })
        .await
    }
}

/// A worker that somebody decides about.
struct Found {
    row: i64,
    phase: Phase,
    leased: bool,
}

fn find(connection: &Connection, name: &WorkerName) -> Result<Option<Found>, JobError> {
    let sql = "SELECT id, phase, lease IS NOT NULL FROM worker
               WHERE pool = ?1 AND slot = ?2 AND generation = ?3 AND phase <> 'deleted'";
    let key = (name.pool.as_str(), name.slot.0, name.generation.0);
    let found: Option<(i64, String, bool)> = connection
        .prepare_cached(sql)?
        .query_row(key, |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()?;
    let Some((row, phase, leased)) = found else { return Ok(None) };
    let phase = phase.parse().map_err(|error| StateError::Conflict(format!("{error}")))?;
    Ok(Some(Found { row, phase, leased }))
}

impl Found {
    /// Moves it, where it moves, and writes the event of the decision.
    fn tell(
        &self,
        connection: &Connection,
        name: &WorkerName,
        to: Option<Phase>,
        (kind, who): (&str, &str),
        now: Timestamp,
    ) -> Result<(), JobError> {
        let (pool, worker, why) = (name.pool.as_str(), (name.slot, name.generation), "asked for");
        let Some(to) = to else {
            let (at, worker, phases) = (now, Some(worker), (None, None));
            return event::write(
                connection,
                &NewEvent { at, pool, worker, kind, who, why, phases },
            );
        };
        let (row, phases, deadline) = (self.row, (self.phase, to), None);
        let step = Move { row, pool, worker, phases, deadline, kind, who, why };
        moves::carry_out(connection, &step, now)
    }
}

/// Says where a mark leads a worker, where it leads anywhere.
fn leads(name: &WorkerName, phase: Phase, mark: Mark) -> Result<Option<Phase>, JobError> {
    match mark {
        Mark::Uncordon if phase == Phase::Deleting => {
            refuse(name, phase, "it is on its way out and cannot be uncordoned")
        }
        Mark::Uncordon if phase == Phase::Quarantined => Ok(Some(Phase::Verifying)),
        Mark::Quarantine if phase == Phase::Quarantined => Ok(None),
        Mark::Quarantine if phase.may_become(Phase::Quarantined) => Ok(Some(Phase::Quarantined)),
        Mark::Quarantine => refuse(name, phase, "it cannot be quarantined now"),
        Mark::Cordon | Mark::Uncordon | Mark::Drain => Ok(None),
    }
}

fn refuse<T>(name: &WorkerName, phase: Phase, what: &str) -> Result<T, JobError> {
    Err(StateError::Conflict(format!("worker {name} is {phase}: {what}")).into())
}

fn summaries(
    connection: &Connection,
    offers: &Offers,
    now: Timestamp,
) -> Result<Vec<PoolSummary>, JobError> {
    let sql = "SELECT id, serial, changes, applied_at, origin FROM pool
               WHERE config IS NOT NULL OR live > 0 ORDER BY id";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query([])?;
    let mut summaries = Vec::new();
    while let Some(row) = rows.next()? {
        let id: String = row.get(0)?;
        let pool: PoolId = id.parse().map_err(|error| StateError::Conflict(format!("{error}")))?;
        let at = from_ms(row.get::<_, Option<i64>>(3)?.unwrap_or(0));
        let origin = row.get::<_, Option<String>>(4)?.unwrap_or_default();
        let offer = offers.of_pool(connection, &pool)?;
        summaries.push(PoolSummary {
            serial: row.get::<_, i64>(1)?.unsigned_abs(),
            changes: row.get(2)?,
            applied: offer.map(|offer| (offer.config.clone(), at, origin)),
            pool,
            phases: BTreeMap::new(),
            leased: 0,
            leased_ready: 0,
            free: 0,
            cordoned: 0,
            suspect: 0,
            overdue: 0,
        });
    }
    let sql = "SELECT pool, phase, count(*), count(lease),
                   sum(phase = 'ready' AND cordoned = 0 AND suspect = 0 AND lease IS NULL),
                   sum(coalesce(phase_deadline < ?1, 0)),
                   sum(phase = 'ready' AND lease IS NULL AND cordoned <> 0),
                   sum(phase = 'ready' AND lease IS NULL AND cordoned = 0 AND suspect <> 0)
               FROM worker WHERE phase <> 'deleted' GROUP BY pool, phase";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query([to_ms(now)])?;
    while let Some(row) = rows.next()? {
        let pool: String = row.get(0)?;
        let phase: String = row.get(1)?;
        let phase: Phase =
            phase.parse().map_err(|error| StateError::Conflict(format!("{error}")))?;
        if let Some(summary) = summaries.iter_mut().find(|summary| summary.pool.as_str() == pool) {
            summary.phases.insert(phase, row.get(2)?);
            let leased: u32 = row.get(3)?;
            summary.leased += leased;
            if phase == Phase::Ready {
                summary.leased_ready += leased;
            }
            summary.free += row.get::<_, u32>(4)?;
            summary.overdue += row.get::<_, u32>(5)?;
            summary.cordoned += row.get::<_, u32>(6)?;
            summary.suspect += row.get::<_, u32>(7)?;
        }
    }
    Ok(summaries)
}
