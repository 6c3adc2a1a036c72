//! What whoever probes workers needs to know of them, and what it found.

use std::sync::Arc;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Row};

use super::Store;
use super::error::StateError;
use super::event::{self, NewEvent};
use super::load::{from_ms, to_ms};
use super::writer::JobError;
use crate::config::{HealthCheckConfig, StaticPoolConfig};
use crate::worker::{Generation, Phase, PoolId, Slot, WorkerName};

/// A worker that can be probed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watched {
    /// Its row.
    pub row: i64,
    /// Who it is.
    pub name: WorkerName,
    /// Where it is in its life.
    pub phase: Phase,
    /// The name of its provider.
    pub provider: String,
    /// The provider's id.
    pub provider_id: Option<String>,
    /// Where it can be reached.
    pub addresses: Vec<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// Since when it is in its phase.
    pub phase_since: Timestamp,
    /// Whether its latest probe failed.
    pub suspect: bool,
    /// Whether a job has it.
    pub leased: bool,
}

pub(super) const WATCHED: &str =
    "SELECT id, pool, slot, generation, phase, provider, provider_id, addresses, created_at,
            phase_since, suspect, lease IS NOT NULL
     FROM worker";

pub(super) fn watched(row: &Row<'_>) -> Result<Watched, JobError> {
    let bad = |error: &dyn std::fmt::Display| StateError::Conflict(error.to_string());
    let pool: PoolId = row.get::<_, String>(1)?.parse().map_err(|e| bad(&e))?;
    let phase: String = row.get(4)?;
    let addresses: String = row.get(7)?;
    Ok(Watched {
        row: row.get(0)?,
        name: WorkerName::new(pool, Slot(row.get(2)?), Generation(row.get(3)?)),
        phase: phase.parse().map_err(|error| bad(&error))?,
        provider: row.get(5)?,
        provider_id: row.get(6)?,
        addresses: serde_json::from_str(&addresses).unwrap_or_default(),
        created_at: from_ms(row.get(8)?),
        phase_since: from_ms(row.get(9)?),
        suspect: row.get(10)?,
        leased: row.get(11)?,
    })
}

impl Store {
    /// Returns one worker, to probe it.
    pub async fn watched(&self, row: i64) -> Result<Option<Watched>, StateError> {
        self.read(move |connection| {
            let sql = format!("{WATCHED} WHERE id = ?1 AND phase <> 'deleted'");
            let mut statement = connection.prepare_cached(&sql)?;
            let mut rows = statement.query([row])?;
            rows.next()?.map(watched).transpose()
        })
        .await
    }

    /// Returns the row of a worker that is not gone.
    pub async fn row_of(&self, name: &WorkerName) -> Result<Option<i64>, StateError> {
        let name = name.clone();
        self.read(move |connection| {
            let sql = "SELECT id FROM worker WHERE pool = ?1 AND slot = ?2 AND generation = ?3
                       AND phase <> 'deleted'";
            let mut statement = connection.prepare_cached(sql)?;
            let key = (name.pool.as_str(), name.slot.0, name.generation.0);
            Ok(statement.query_row(key, |row| row.get(0)).optional()?)
        })
        .await
    }

    /// Returns how the workers of a pool are probed; `None` for a pool that nothing is applied to.
    pub async fn health_check(
        &self,
        pool: &PoolId,
    ) -> Result<Option<HealthCheckConfig>, StateError> {
        let (pool, offers) = (pool.clone(), Arc::clone(&self.offers));
        self.read(move |connection| {
            let offer = offers.of_pool(connection, &pool)?;
            Ok(offer.map(|offer| offer.config.health_check.clone()))
        })
        .await
    }

    /// Returns the config of a pool as it was last applied; `None` when nothing is.
    pub async fn applied_config(
        &self,
        pool: &PoolId,
    ) -> Result<Option<StaticPoolConfig>, StateError> {
        let (pool, offers) = (pool.clone(), Arc::clone(&self.offers));
        self.read(move |connection| {
            Ok(offers.of_pool(connection, &pool)?.map(|offer| offer.config.clone()))
        })
        .await
    }

    /// Records that a worker's latest probe failed, or passed again: it is not leased until one passes.
    /// Nothing is recorded of one that is in another phase by now than when it was probed: it was cleaned.
    pub async fn mark_suspect(
        &self,
        probed: &Watched,
        why: Option<String>,
    ) -> Result<bool, StateError> {
        let (now, who) = (self.now(), self.holder.describe());
        let (row, since) = (probed.row, to_ms(probed.phase_since));
        self.writer
            .run(move |connection| {
                let sql = "UPDATE worker SET suspect = ?2 WHERE id = ?1 AND suspect <> ?2
                           AND phase <> 'deleted' AND phase_since = ?3";
                let suspect = why.is_some();
                let changed = connection.prepare_cached(sql)?.execute((row, suspect, since))? > 0;
                if changed {
                    let kind = if suspect { "probe_failed" } else { "probe_passed" };
                    tell(connection, row, kind, &who, why.as_deref().unwrap_or(""), now)?;
                }
                Ok(changed)
            })
            .await
    }
}

/// Writes an event of the worker of this row.
pub(super) fn tell(
    connection: &Connection,
    row: i64,
    kind: &str,
    who: &str,
    why: &str,
    now: Timestamp,
) -> Result<(), JobError> {
    let sql = "SELECT pool, slot, generation FROM worker WHERE id = ?1";
    let place: Option<(String, u32, u32)> = connection
        .prepare_cached(sql)?
        .query_row([row], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()?;
    let Some((pool, slot, generation)) = place else { return Ok(()) };
    let worker = Some((Slot(slot), Generation(generation)));
    let phases = (None, None);
    event::write(connection, &NewEvent { at: now, pool: &pool, worker, kind, who, why, phases })
}
