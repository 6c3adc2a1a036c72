//! How providers are reached, and how much is asked of them by all processes of a state together.
//!
//! Two limits: so many calls under way, counted in rows whose holder may die (its rows count no more then),
//! and so many calls in a time, by the moment when the next one may be made. Spreading calls evenly is the
//! virtual scheduling form of the GCRA without a burst (ITU-T I.371): of any two calls, the second one is
//! made no earlier than one interval after the first.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _};

use super::Store;
use super::error::StateError;
use super::holder::Holder;
use super::load::{from_ms, to_ms};
use super::writer::JobError;
use crate::config::ProviderConfig;
use crate::worker::PoolId;

/// How many intervals ahead the next call can be: one for each process that waits, and no more than a few
/// wait. Whatever is later was written before the clock was set back.
const LONGEST_QUEUE: i64 = 16;

/// How long a call is believed to be under way whose process cannot be looked at.
const LONGEST_CALL: Duration = Duration::from_secs(15 * 60);

/// Records how a provider is reached; returns that as it is recorded.
///
/// # Errors
/// [`StateError::ProviderMoved`] when it was somewhere else when it got the workers that it has: a plan may be
/// older than that.
pub(super) fn record(
    connection: &Connection,
    name: &str,
    config: &ProviderConfig,
    now: Timestamp,
) -> Result<String, JobError> {
    let before = configs(connection)?.remove(name).or_else(|| ProviderConfig::implicit(name));
    if let Some(before) = before.filter(|before| before.kind.is_elsewhere(&config.kind)) {
        let sql = "SELECT count(*) FROM worker WHERE provider = ?1 AND phase <> 'deleted'";
        let workers: i64 = connection.prepare_cached(sql)?.query_row([name], |row| row.get(0))?;
        if workers > 0 {
            let (before, after) = (before.kind.place(), config.kind.place());
            let name = name.to_owned();
            return Err(StateError::ProviderMoved { name, before, after }.into());
        }
    }
    let text = serde_json::to_string(config)
        .map_err(|error| StateError::Conflict(format!("the config of provider {name}: {error}")))?;
    let sql = "INSERT INTO provider (name, config, applied_at) VALUES (?1, ?2, ?3)
               ON CONFLICT (name) DO UPDATE SET config = excluded.config,
                   applied_at = excluded.applied_at
               WHERE config <> excluded.config";
    connection.prepare_cached(sql)?.execute((name, &text, to_ms(now)))?;
    Ok(text)
}

/// Returns how each provider is reached.
pub(super) fn configs(
    connection: &Connection,
) -> Result<BTreeMap<String, ProviderConfig>, JobError> {
    let mut statement = connection.prepare_cached("SELECT name, config FROM provider")?;
    let mut rows = statement.query([])?;
    let mut configs = BTreeMap::new();
    while let Some(row) = rows.next()? {
        let (name, text): (String, String) = (row.get(0)?, row.get(1)?);
        let config = serde_json::from_str(&text).map_err(|error| {
            StateError::Conflict(format!("the record of the provider {name}: {error}"))
        })?;
        configs.insert(name, config);
    }
    Ok(configs)
}

impl Store {
    /// Returns how the providers are reached that pools were applied with.
    pub async fn provider_configs(&self) -> Result<BTreeMap<String, ProviderConfig>, StateError> {
        self.read(configs).await
    }

    /// Returns how the provider of each pool was reached when it was applied, where that is recorded.
    pub async fn load_applied_providers(
        &self,
    ) -> Result<BTreeMap<PoolId, ProviderConfig>, StateError> {
        self.read(|connection| {
            let sql = "SELECT id, provider FROM pool WHERE provider IS NOT NULL";
            let mut statement = connection.prepare_cached(sql)?;
            let mut rows = statement.query([])?;
            let mut applied = BTreeMap::new();
            while let Some(row) = rows.next()? {
                let (id, text): (String, String) = (row.get(0)?, row.get(1)?);
                let broken = |error: &dyn std::fmt::Display| {
                    StateError::Conflict(format!("the record of {id}'s provider: {error}"))
                };
                let pool = id.parse().map_err(|error| broken(&error))?;
                applied.insert(pool, serde_json::from_str(&text).map_err(|error| broken(&error))?);
            }
            Ok(applied)
        })
        .await
    }

    /// Reserves the next call of a provider that may be called once in every `interval`; returns how long to
    /// wait before it is made.
    pub async fn reserve_call(
        &self,
        provider: &str,
        interval: Duration,
    ) -> Result<Duration, StateError> {
        let (provider, now) = (provider.to_owned(), self.now().as_microsecond());
        let interval = i64::try_from(interval.as_micros()).unwrap_or(i64::MAX / 32);
        self.writer
            .run(move |connection| {
                let sql = "SELECT next_at FROM provider_pace WHERE name = ?1";
                let next: Option<i64> = connection
                    .prepare_cached(sql)?
                    .query_row([&provider], |row| row.get(0))
                    .optional()?;
                let latest = now.saturating_add(interval.saturating_mul(LONGEST_QUEUE));
                let at = next.unwrap_or(now).clamp(now, latest);
                let sql = "INSERT INTO provider_pace (name, next_at) VALUES (?1, ?2)
                           ON CONFLICT (name) DO UPDATE SET next_at = excluded.next_at";
                connection
                    .prepare_cached(sql)?
                    .execute((&provider, at.saturating_add(interval)))?;
                Ok(Duration::from_micros(u64::try_from(at - now).unwrap_or(0)))
            })
            .await
    }

    /// Counts a call that is about to be made, unless `limit` calls are under way at the provider; returns
    /// its number for [`Store::end_call`].
    pub async fn begin_call(&self, provider: &str, limit: u32) -> Result<Option<i64>, StateError> {
        let (own, now, provider) = (Arc::clone(&self.holder), self.now(), provider.to_owned());
        self.writer
            .run(move |connection| {
                if calls_under_way(connection, &provider, &own, now)? >= limit as usize {
                    return Ok(None);
                }
                let body = serde_json::to_string(&*own).unwrap_or_default();
                let sql = "INSERT INTO provider_call (name, holder, since) VALUES (?1, ?2, ?3)";
                connection.prepare_cached(sql)?.execute((&provider, body, to_ms(now)))?;
                Ok(Some(connection.last_insert_rowid()))
            })
            .await
    }

    /// Counts a call no more.
    pub async fn end_call(&self, call: i64) -> Result<(), StateError> {
        self.writer
            .run(move |connection| {
                let sql = "DELETE FROM provider_call WHERE id = ?1";
                connection.prepare_cached(sql)?.execute([call])?;
                Ok(())
            })
            .await
    }
}

/// Counts the calls under way; those whose process is dead are forgotten.
fn calls_under_way(
    connection: &Connection,
    provider: &str,
    own: &Holder,
    now: Timestamp,
) -> Result<usize, JobError> {
    let sql = "SELECT id, holder, since FROM provider_call WHERE name = ?1";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query([provider])?;
    let mut under_way = 0;
    let mut over = Vec::new();
    while let Some(row) = rows.next()? {
        let (id, holder, since): (i64, String, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let holder: Option<Holder> = serde_json::from_str(&holder).ok();
        // A process that cannot be seen says nothing while it calls: its call is believed for longer.
        let heard = from_ms(since).checked_add(LONGEST_CALL).unwrap_or(now);
        match holder {
            Some(holder) if holder.is_in_force(own, heard, now) => under_way += 1,
            Some(_) | None => over.push(id),
        }
    }
    for id in over {
        connection.prepare_cached("DELETE FROM provider_call WHERE id = ?1")?.execute([id])?;
    }
    Ok(under_way)
}
