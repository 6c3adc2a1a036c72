//! What health checks find, and what a server does about it, as far as the record is concerned.
//!
//! These changes need no lock on the pool: each is conditional on the phase that it leaves, and none makes
//! a provider call. Replacing workers does, and needs the lock.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use pool_provider::ObservedWorker;
use rusqlite::{Connection, OptionalExtension as _};

use super::Store;
use super::error::StateError;
use super::event::{self, NewEvent};
use super::load::{from_ms, to_ms};
use super::lock::{self, PoolLock};
use super::moves::{self, Move};
use super::watch::{WATCHED, Watched, watched};
use super::writer::JobError;
use crate::config::RecycleConfig;
use crate::desired::Spec;
use crate::lease::Retirement;
use crate::plan::remedy::Tried;
use crate::worker::{Generation, Phase, PoolId, Slot};

/// What health checks say of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// It is well again.
    Well,
    /// It failed often enough.
    Unhealthy,
    /// It is no longer there.
    Lost,
}

impl Health {
    fn leads(self) -> (&'static [Phase], Phase) {
        match self {
            Self::Well => (&[Phase::Unhealthy], Phase::Ready),
            Self::Unhealthy => (&[Phase::Ready], Phase::Unhealthy),
            // One that is being cleaned may be gone for a moment: whoever cleans it finds out.
            Self::Lost => (&[Phase::Ready, Phase::Unhealthy], Phase::Lost),
        }
    }
}

/// A worker that is to be cleaned.
#[derive(Debug, Clone)]
pub struct Used {
    /// The worker.
    pub worker: Watched,
    /// What it is made from.
    pub spec: Arc<Spec>,
    /// How its pool says that it is cleaned.
    pub recycle: Option<RecycleConfig>,
}

/// How the pools stand: what moves when something happens to a worker, and what moves with the config.
pub type PoolVersions = BTreeMap<PoolId, (i64, i64)>;

impl Store {
    /// Returns what moves whenever something happens to a pool's workers, leases and probes apart.
    pub async fn versions(&self) -> Result<PoolVersions, StateError> {
        self.read(|connection| {
            let sql = "SELECT id, changes, config_version FROM pool";
            let mut statement = connection.prepare_cached(sql)?;
            let mut rows = statement.query([])?;
            let mut versions = BTreeMap::new();
            while let Some(row) = rows.next()? {
                let pool: String = row.get(0)?;
                let pool = pool.parse().map_err(|e| StateError::Conflict(format!("{e}")))?;
                versions.insert(pool, (row.get(1)?, row.get(2)?));
            }
            Ok(versions)
        })
        .await
    }

    /// Returns the workers of a pool whose health is watched.
    pub async fn watched_of(&self, pool: &PoolId) -> Result<Vec<Watched>, StateError> {
        let sql = format!("{WATCHED} WHERE pool = ?1 AND phase IN ('ready', 'unhealthy')");
        let pool = pool.clone();
        self.read(move |connection| list(connection, &sql, Some(&pool))).await
    }

    /// Returns the workers that are to be cleaned, and how.
    pub async fn recycling(&self) -> Result<Vec<Used>, StateError> {
        let offers = Arc::clone(&self.offers);
        self.read(move |connection| {
            let sql = format!("{WATCHED} WHERE phase = 'recycling'");
            let workers = list(connection, &sql, None)?;
            let with_config = |worker: Watched| {
                let offer = offers.of_pool(connection, &worker.name.pool)?;
                let recycle = offer.and_then(|offer| offer.config.leases.recycle.clone());
                let sql = "SELECT spec FROM worker WHERE id = ?1";
                let spec =
                    connection.prepare_cached(sql)?.query_row([worker.row], |row| row.get(0))?;
                Ok(Used { worker, spec: offers.spec(connection, spec)?, recycle })
            };
            workers.into_iter().map(with_config).collect()
        })
        .await
    }

    /// Records what health checks say of a worker; false when it is not in a phase that this changes, or not
    /// in the one that it was probed in (it was cleaned meanwhile). A lease of it goes on, and tells of it.
    pub async fn record_health(
        &self,
        probed: &Watched,
        health: Health,
        why: String,
    ) -> Result<bool, StateError> {
        let (now, who) = (self.now(), self.holder.describe());
        let (row, since) = (probed.row, to_ms(probed.phase_since));
        self.writer
            .run(move |connection| {
                let (from, to) = health.leads();
                if !is_since(connection, row, since)? {
                    return Ok(false);
                }
                if !move_row(connection, row, (from, to), (&who, &why), now)? {
                    return Ok(false);
                }
                let well = health == Health::Well;
                connection
                    .prepare_cached("UPDATE worker SET suspect = ?2 WHERE id = ?1")?
                    .execute((row, !well))?;
                connection
                    .prepare_cached(
                        "UPDATE lease SET trouble = ?2 WHERE worker = ?1 AND ended_at IS NULL",
                    )?
                    .execute((row, Some(format!("{to}: {why}")).filter(|_| !well)))?;
                Ok(true)
            })
            .await
    }

    /// Records that a worker was cleaned and is well. A reset may have changed where it can be reached.
    pub async fn record_recycled(
        &self,
        used: &Watched,
        reset: Option<ObservedWorker>,
    ) -> Result<bool, StateError> {
        let (now, who) = (self.now(), self.holder.describe());
        let (row, since) = (used.row, to_ms(used.phase_since));
        self.writer
            .run(move |connection| {
                let leads = (&[Phase::Recycling][..], Phase::Ready);
                if !is_since(connection, row, since)?
                    || !move_row(connection, row, leads, (&who, "clean"), now)?
                {
                    return Ok(false);
                }
                connection
                    .prepare_cached("UPDATE worker SET suspect = 0 WHERE id = ?1")?
                    .execute([row])?;
                if let Some(ObservedWorker { addresses, attributes, .. }) = reset {
                    let addresses = serde_json::to_string(&addresses).unwrap_or_default();
                    let attributes = serde_json::to_string(&attributes).unwrap_or_default();
                    connection
                        .prepare_cached(
                            "UPDATE worker SET addresses = ?2, attributes = ?3 WHERE id = ?1",
                        )?
                        .execute((row, addresses, attributes))?;
                }
                Ok(true)
            })
            .await
    }

    /// Records that a worker could not be cleaned: another one takes its place.
    pub async fn record_not_recycled(
        &self,
        used: &Watched,
        why: String,
    ) -> Result<bool, StateError> {
        let (now, who) = (self.now(), self.holder.describe());
        let (row, since) = (used.row, to_ms(used.phase_since));
        self.writer
            .run(move |connection| {
                let leads = (&[Phase::Recycling][..], Phase::Deleting);
                if !is_since(connection, row, since)?
                    || !move_row(connection, row, leads, (&who, &why), now)?
                {
                    return Ok(false);
                }
                let sql =
                    "UPDATE worker SET retired = ?2, cordoned = 1, draining = 1 WHERE id = ?1";
                let reason = Retirement::NotRecycled.as_str();
                connection.prepare_cached(sql)?.execute((row, reason))?;
                Ok(true)
            })
            .await
    }

    /// Returns the replacements that servers made by themselves in a pool.
    pub async fn tried(&self, pool: &PoolId) -> Result<BTreeMap<Slot, Tried>, StateError> {
        let pool = pool.clone();
        self.read(move |connection| {
            let sql = "SELECT slot, tries, at FROM remedy WHERE pool = ?1";
            let mut statement = connection.prepare_cached(sql)?;
            let rows = statement.query_map([pool.as_str()], |row| {
                let tried = Tried { tries: row.get(1)?, at: from_ms(row.get(2)?) };
                Ok((Slot(row.get(0)?), tried))
            })?;
            rows.collect::<Result<_, _>>().map_err(JobError::from)
        })
        .await
    }

    /// Records that replacements begin, before they do: the pause before the next one outlives us.
    pub async fn record_tries(&self, lock: &PoolLock, slots: Vec<Slot>) -> Result<(), StateError> {
        let (lock, own, now) = (lock.clone(), Arc::clone(&self.holder), self.now());
        self.writer
            .run(move |connection| {
                lock::verify(connection, &lock, &own)?;
                for slot in slots {
                    let sql = "SELECT tries, at FROM remedy WHERE pool = ?1 AND slot = ?2";
                    let before: Option<Tried> = connection
                        .prepare_cached(sql)?
                        .query_row((lock.pool.as_str(), slot.0), |row| {
                            Ok(Tried { tries: row.get(0)?, at: from_ms(row.get(1)?) })
                        })
                        .optional()?;
                    let tries = before.map_or(0, |tried| tried.count(now)) + 1;
                    let sql = "INSERT INTO remedy (pool, slot, tries, at) VALUES (?1, ?2, ?3, ?4)
                               ON CONFLICT (pool, slot) DO UPDATE
                               SET tries = excluded.tries, at = excluded.at";
                    let parameters = (lock.pool.as_str(), slot.0, tries, to_ms(now));
                    connection.prepare_cached(sql)?.execute(parameters)?;
                }
                Ok(())
            })
            .await
    }

    /// Writes an event of a whole pool.
    pub async fn tell(&self, pool: &PoolId, kind: &str, why: &str) -> Result<(), StateError> {
        let (now, who) = (self.now(), self.holder.describe());
        let (pool, kind, why) = (pool.clone(), kind.to_owned(), why.to_owned());
        self.writer
            .run(move |connection| {
                event::write(
                    connection,
                    &NewEvent {
                        at: now,
                        pool: pool.as_str(),
                        worker: None,
                        kind: &kind,
                        who: &who,
                        why: &why,
                        phases: (None, None),
                    },
                )
            })
            .await
    }

    /// Forgets what is older than it needs to be, a little at a time; returns whether more is left.
    pub async fn forget_old(&self, keep: Retention) -> Result<bool, StateError> {
        const AT_ONCE: i64 = 500;
        let now = self.now();
        self.writer
            .run(move |connection| {
                let before = |age: Duration| to_ms(now.checked_sub(age).unwrap_or(Timestamp::MIN));
                let mut most = 0;
                // Rows are in order of time: only the first ones are looked at, however many there are.
                for (sql, age) in [
                    (
                        "DELETE FROM event WHERE seq IN (SELECT seq FROM
                             (SELECT seq, at FROM event ORDER BY seq LIMIT ?2) WHERE at < ?1)",
                        keep.events,
                    ),
                    (
                        "DELETE FROM lease WHERE id IN (SELECT id FROM
                             (SELECT id, ended_at FROM lease ORDER BY id LIMIT ?2)
                             WHERE ended_at < ?1)",
                        keep.leases,
                    ),
                    (
                        "DELETE FROM request_key WHERE id IN (SELECT id FROM
                             (SELECT id, at FROM request_key ORDER BY id LIMIT ?2) WHERE at < ?1)",
                        keep.keys,
                    ),
                ] {
                    let gone = connection.prepare_cached(sql)?.execute((before(age), AT_ONCE))?;
                    most = most.max(gone);
                }
                Ok(i64::try_from(most).unwrap_or(0) >= AT_ONCE)
            })
            .await
    }
}

/// How long things are remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Events.
    pub events: Duration,
    /// Leases that have ended.
    pub leases: Duration,
    /// Idempotency keys.
    pub keys: Duration,
}

fn list(
    connection: &Connection,
    sql: &str,
    pool: Option<&PoolId>,
) -> Result<Vec<Watched>, JobError> {
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(rusqlite::params_from_iter(pool.map(PoolId::as_str)))?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(watched(row)?);
    }
    Ok(found)
}

/// Returns whether a worker is in its phase since then, and was in no other meanwhile.
fn is_since(connection: &Connection, row: i64, since: i64) -> Result<bool, JobError> {
    let sql = "SELECT phase_since FROM worker WHERE id = ?1";
    let found: Option<i64> =
        connection.prepare_cached(sql)?.query_row([row], |row| row.get(0)).optional()?;
    Ok(found == Some(since))
}

/// Moves a worker when it is in one of these phases; returns whether it was.
fn move_row(
    connection: &Connection,
    row: i64,
    (from, to): (&[Phase], Phase),
    (who, why): (&str, &str),
    now: Timestamp,
) -> Result<bool, JobError> {
    let sql = "SELECT phase, pool, slot, generation FROM worker WHERE id = ?1";
    let found: Option<(String, String, u32, u32)> = connection
        .prepare_cached(sql)?
        .query_row([row], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))
        .optional()?;
    let Some((phase, pool, slot, generation)) = found else { return Ok(false) };
    let phase: Phase = phase.parse().map_err(|error| StateError::Conflict(format!("{error}")))?;
    if !from.contains(&phase) || !phase.may_become(to) {
        return Ok(false);
    }
    let step = Move {
        row,
        pool: &pool,
        worker: (Slot(slot), Generation(generation)),
        phases: (phase, to),
        deadline: None,
        kind: "phase",
        who,
        why,
    };
    moves::carry_out(connection, &step, now)?;
    Ok(true)
}
