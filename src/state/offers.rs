//! What pools offer to whoever asks for a lease: their terms and specs, parsed once.
//!
//! Not a copy of the truth: a pool's entry is used only while its `config_version` is the one in the
//! transaction, and a spec's row never changes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension as _};

use super::error::StateError;
use super::writer::JobError;
use crate::config::{HealthCheckKind, StaticPoolConfig};
use crate::desired::Spec;
use crate::worker::PoolId;

/// What one pool offers.
#[derive(Debug)]
pub(super) struct Offer {
    pub(super) pool: PoolId,
    pub(super) config: StaticPoolConfig,
    /// What the applied config asks for.
    pub(super) spec: Arc<Spec>,
    pub(super) spec_hash: Option<String>,
    version: i64,
}

impl Offer {
    /// How long a good probe vouches for a worker.
    pub(super) fn freshness(&self) -> Duration {
        self.config.health_check.freshness()
    }

    pub(super) fn verified_by(&self) -> &'static str {
        match self.config.health_check.kind {
            HealthCheckKind::Provider => "provider",
            HealthCheckKind::Tcp => "tcp",
            HealthCheckKind::Http => "http",
            HealthCheckKind::Exec => "exec",
        }
    }
}

/// What was parsed so far.
#[derive(Debug, Default)]
pub(super) struct Offers(Mutex<Parsed>);

#[derive(Debug, Default)]
struct Parsed {
    pools: HashMap<String, Arc<Offer>>,
    specs: HashMap<i64, Arc<Spec>>,
}

/// When so many specs are known, all are forgotten: those in use are parsed again.
const MOST_SPECS: usize = 10_000;

impl Offers {
    fn parsed(&self) -> MutexGuard<'_, Parsed> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns what a pool offers; `None` for one that is not recorded, or that goes.
    pub(super) fn of_pool(
        &self,
        connection: &Connection,
        pool: &PoolId,
    ) -> Result<Option<Arc<Offer>>, JobError> {
        let sql = "SELECT config_version FROM pool WHERE id = ?1 AND config IS NOT NULL";
        let mut statement = connection.prepare_cached(sql)?;
        let version: Option<i64> =
            statement.query_row([pool.as_str()], |row| row.get(0)).optional()?;
        version.map(|version| self.parse(connection, pool.as_str(), version)).transpose()
    }

    /// Returns what all pools offer, in order of their ids.
    pub(super) fn of_all_pools(
        &self,
        connection: &Connection,
    ) -> Result<Vec<Arc<Offer>>, JobError> {
        let sql = "SELECT id, config_version FROM pool WHERE config IS NOT NULL ORDER BY id";
        let mut statement = connection.prepare_cached(sql)?;
        let mut rows = statement.query([])?;
        let mut offers = Vec::new();
        while let Some(row) = rows.next()? {
            let pool: String = row.get(0)?;
            offers.push(self.parse(connection, &pool, row.get(1)?)?);
        }
        Ok(offers)
    }

    fn parse(
        &self,
        connection: &Connection,
        pool: &str,
        version: i64,
    ) -> Result<Arc<Offer>, JobError> {
        if let Some(known) = self.parsed().pools.get(pool).filter(|known| known.version == version)
        {
            return Ok(Arc::clone(known));
        }
        let sql = "SELECT config, spec_hash FROM pool WHERE id = ?1";
        let (text, spec_hash): (String, Option<String>) = connection
            .prepare_cached(sql)?
            .query_row([pool], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let broken =
            |error: &dyn std::fmt::Display| StateError::Conflict(format!("pool {pool}: {error}"));
        let config: StaticPoolConfig = serde_json::from_str(&text).map_err(|e| broken(&e))?;
        let spec = Spec::of(&config, None);
        let id = pool.parse().map_err(|e| broken(&e))?;
        let offer = Arc::new(Offer { pool: id, config, spec: Arc::new(spec), spec_hash, version });
        self.parsed().pools.insert(pool.to_owned(), Arc::clone(&offer));
        Ok(offer)
    }

    /// Returns the specs of a pool's workers.
    pub(super) fn live_specs(
        &self,
        connection: &Connection,
        pool: &PoolId,
    ) -> Result<Vec<(i64, Arc<Spec>)>, JobError> {
        let mut specs = Vec::new();
        let mut last = -1;
        // One step a spec, not one a worker: SQLite does not skip equal keys by itself.
        loop {
            let sql = "SELECT min(spec) FROM worker INDEXED BY worker_by_spec
                       WHERE pool = ?1 AND spec > ?2 AND phase <> 'deleted'";
            let next: Option<i64> = connection
                .prepare_cached(sql)?
                .query_row((pool.as_str(), last), |row| row.get(0))?;
            let Some(next) = next else { return Ok(specs) };
            specs.push((next, self.spec(connection, next)?));
            last = next;
        }
    }

    /// Returns a spec.
    pub(super) fn spec(&self, connection: &Connection, id: i64) -> Result<Arc<Spec>, JobError> {
        if let Some(known) = self.parsed().specs.get(&id) {
            return Ok(Arc::clone(known));
        }
        let sql = "SELECT body FROM spec WHERE id = ?1";
        let text: String = connection.prepare_cached(sql)?.query_row([id], |row| row.get(0))?;
        let spec: Spec = serde_json::from_str(&text)
            .map_err(|error| StateError::Conflict(format!("spec {id}: {error}")))?;
        let spec = Arc::new(spec);
        let mut parsed = self.parsed();
        if parsed.specs.len() >= MOST_SPECS {
            parsed.specs.clear();
        }
        parsed.specs.insert(id, Arc::clone(&spec));
        Ok(spec)
    }
}
