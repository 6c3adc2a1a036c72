//! What people decide about single workers, and what pools come to in numbers.

use std::collections::BTreeMap;
use std::sync::Arc;

use rusqlite::OptionalExtension as _;

use super::Store;
use super::error::StateError;
use super::event::{self, Event, NewEvent};
use super::load::{from_ms, to_ms};
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
                let key = (name.pool.as_str(), name.slot.0, name.generation.0);
                let sql =
                    "SELECT phase FROM worker WHERE pool = ?1 AND slot = ?2 AND generation = ?3
                           AND phase <> 'deleted'";
                let phase: Option<String> =
                    connection.prepare_cached(sql)?.query_row(key, |row| row.get(0)).optional()?;
                let Some(phase) = phase else { return Ok(false) };
                let phase: Phase =
                    phase.parse().map_err(|error| StateError::Conflict(format!("{error}")))?;
                let refuse = |what: &str| {
                    JobError::from(StateError::Conflict(format!(
                        "worker {name} is {phase}: {what}"
                    )))
                };
                if phase == Phase::Deleting && mark == Mark::Uncordon {
                    return Err(refuse("it is on its way out and cannot be uncordoned"));
                }
                let to = match mark {
                    Mark::Quarantine if phase == Phase::Quarantined => None,
                    Mark::Quarantine if phase.may_become(Phase::Quarantined) => {
                        Some(Phase::Quarantined)
                    }
                    Mark::Quarantine => return Err(refuse("it cannot be quarantined now")),
                    Mark::Uncordon if phase == Phase::Quarantined => Some(Phase::Verifying),
                    Mark::Cordon | Mark::Uncordon | Mark::Drain => None,
                };
                let (cordoned, draining) = match mark {
                    Mark::Cordon | Mark::Quarantine => (1, None),
                    Mark::Drain => (1, Some(1)),
                    Mark::Uncordon => (0, Some(0)),
                };
                let (pool, slot, generation) = key;
                connection
                    .prepare_cached(
                        "UPDATE worker SET cordoned = ?4, draining = coalesce(?5, draining)
                         WHERE pool = ?1 AND slot = ?2 AND generation = ?3",
                    )?
                    .execute((pool, slot, generation, cordoned, draining))?;
                if let Some(to) = to {
                    connection
                        .prepare_cached(
                            "UPDATE worker SET phase = ?4, phase_since = ?5, phase_deadline = NULL,
                                 blames = 0
                             WHERE pool = ?1 AND slot = ?2 AND generation = ?3",
                        )?
                        .execute((pool, slot, generation, to.as_str(), to_ms(now)))?;
                }
                event::write(
                    connection,
                    &NewEvent {
                        at: now,
                        pool,
                        worker: Some((name.slot, name.generation)),
                        kind: mark.as_str(),
                        who: &who,
                        why: "asked for",
                        phases: (to.map(|_| phase), to),
                    },
                )?;
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
                let key = (name.pool.as_str(), name.slot.0, name.generation.0);
                let sql = "SELECT phase, lease IS NOT NULL FROM worker
                           WHERE pool = ?1 AND slot = ?2 AND generation = ?3 AND phase <> 'deleted'";
                let found: Option<(String, bool)> = connection
                    .prepare_cached(sql)?
                    .query_row(key, |row| Ok((row.get(0)?, row.get(1)?)))
                    .optional()?;
                let Some((phase, leased)) = found else { return Ok(false) };
                let phase: Phase =
                    phase.parse().map_err(|error| StateError::Conflict(format!("{error}")))?;
                if phase == Phase::Deleting {
                    return Ok(true);
                }
                // What a run is bringing is that run's.
                let settled = [Phase::Ready, Phase::Unhealthy, Phase::Quarantined, Phase::Lost];
                if !settled.contains(&phase) {
                    let what = format!("worker {name} is {phase} and cannot be replaced now");
                    return Err(StateError::Conflict(what).into());
                }
                let to = if leased { phase } else { Phase::Deleting };
                let (pool, slot, generation) = key;
                connection
                    .prepare_cached(
                        "UPDATE worker SET retired = 'requested', cordoned = 1, draining = 1,
                             phase = ?4, phase_since = CASE phase WHEN ?4 THEN phase_since ELSE ?5 END
                         WHERE pool = ?1 AND slot = ?2 AND generation = ?3",
                    )?
                    .execute((pool, slot, generation, to.as_str(), to_ms(now)))?;
                event::write(
                    connection,
                    &NewEvent {
                        at: now,
                        pool,
                        worker: Some((name.slot, name.generation)),
                        kind: "replace",
                        who: &who,
                        why: "asked for",
                        phases: (Some(phase).filter(|from| *from != to), Some(to).filter(|_| phase != to)),
                    },
                )?;
                Ok(true)
            })
            .await
    }

    /// Returns what every pool comes to that is not gone, by name.
    pub async fn summaries(&self) -> Result<Vec<PoolSummary>, StateError> {
        let offers = Arc::clone(&self.offers);
        self.read(move |connection| summaries(connection, &offers)).await
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

fn summaries(
    connection: &rusqlite::Connection,
    offers: &Offers,
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
        });
    }
    let sql = "SELECT pool, phase, count(*), count(lease),
                   sum(phase = 'ready' AND cordoned = 0 AND suspect = 0 AND lease IS NULL)
               FROM worker WHERE phase <> 'deleted' GROUP BY pool, phase";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query([])?;
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
        }
    }
    Ok(summaries)
}
