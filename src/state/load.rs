//! Rows to the plain data that plans are made from.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Row};

use super::error::StateError;
use super::holder::Holder;
use super::lifecycle::WorkerKey;
use super::lock;
use super::open::translate;
use super::writer::JobError;
use crate::config::{ProviderConfig, StaticPoolConfig};
use crate::lease::LeaseId;
use crate::plan::{
    AppliedConfig, Failure, OpenOperation, OperationKind, OperationState, RecordedLease,
    RecordedPool, RecordedSpec, RecordedWorker, Standing,
};
use crate::worker::{DeploymentId, Generation, Phase, PoolId, Slot};

/// Stored times are whole milliseconds, rounded down.
pub(super) fn to_ms(time: Timestamp) -> i64 {
    time.as_millisecond()
}

pub(super) fn from_ms(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(ms).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// Returns whose state it is, and its key.
pub(super) fn identity(
    connection: &Connection,
    path: &Path,
) -> Result<(DeploymentId, Vec<u8>), StateError> {
    let get = |key: &str| -> Result<Vec<u8>, StateError> {
        let sql = "SELECT value FROM meta WHERE key = ?1";
        connection.query_row(sql, [key], |row| row.get(0)).map_err(|error| translate(&error, path))
    };
    let damaged = |reason: String| StateError::Damaged { path: path.to_owned(), reason };
    let text = String::from_utf8(get("deployment")?)
        .map_err(|_| damaged("its deployment id is not text".to_owned()))?;
    let deployment = text.parse().map_err(|error| damaged(format!("{error}")))?;
    Ok((deployment, get("secret_key")?))
}

/// Returns a text that is kept about the state as a whole.
pub(super) fn meta(connection: &Connection, key: &str) -> Result<Option<String>, JobError> {
    let sql = "SELECT CAST(value AS TEXT) FROM meta WHERE key = ?1";
    Ok(connection.prepare_cached(sql)?.query_row([key], |row| row.get(0)).optional()?)
}

/// Returns every pool.
pub(super) fn pools(
    connection: &Connection,
    own: &Holder,
    now: Timestamp,
) -> Result<Vec<RecordedPool>, JobError> {
    some(connection, None, own, now)
}

/// Returns every pool, or only one.
pub(super) fn some(
    connection: &Connection,
    only: Option<&PoolId>,
    own: &Holder,
    now: Timestamp,
) -> Result<Vec<RecordedPool>, JobError> {
    let specs = specs(connection)?;
    let only = Only(only);
    let mut workers = workers(connection, &specs, only)?;
    let mut generations = last_generations(connection, only)?;
    let mut tombstones = tombstones(connection, only)?;
    let mut statement = connection.prepare_cached(&format!(
        "SELECT id, serial, config, applied_at, origin, provider FROM pool WHERE {} ORDER BY id",
        only.condition("id")
    ))?;
    let mut rows = statement.query(only.parameters())?;
    let mut pools = Vec::new();
    while let Some(row) = rows.next()? {
        let id: String = row.get(0)?;
        let serial: i64 = row.get(1)?;
        let config: Option<String> = row.get(2)?;
        let applied = match config {
            None => None,
            Some(config) => {
                let config: StaticPoolConfig = parse(&config, &id)?;
                let provider: Option<String> = row.get(5)?;
                let provider = provider.map(|provider| parse(&provider, &id)).transpose()?;
                Some(AppliedConfig {
                    provider: provider.or_else(|| ProviderConfig::implicit(config.provider_name())),
                    config,
                    at: from_ms(row.get::<_, Option<i64>>(3)?.unwrap_or(0)),
                    origin: row.get::<_, Option<String>>(4)?.unwrap_or_default(),
                })
            }
        };
        pools.push(RecordedPool {
            serial: serial.unsigned_abs(),
            applied,
            workers: workers.remove(&id).unwrap_or_default(),
            last_generations: generations.remove(&id).unwrap_or_default(),
            tombstones: tombstones.remove(&id).unwrap_or_default(),
            locked_by: lock::held_by(connection, &id, own, now)?.map(|holder| holder.describe()),
            id: pool_id(&id)?,
        });
    }
    Ok(pools)
}

/// Narrows a read to one pool, in a way that an index can serve.
#[derive(Clone, Copy)]
struct Only<'a>(Option<&'a PoolId>);

impl<'a> Only<'a> {
    fn condition(self, column: &str) -> String {
        if self.0.is_some() { format!("{column} = ?1") } else { "true".to_owned() }
    }

    fn parameters(self) -> rusqlite::ParamsFromIter<Option<&'a str>> {
        rusqlite::params_from_iter(self.0.map(PoolId::as_str))
    }
}

/// Returns the pools that are recorded and not gone.
pub(super) fn pool_ids(connection: &Connection) -> Result<BTreeSet<PoolId>, JobError> {
    let sql = "SELECT id FROM pool WHERE config IS NOT NULL OR live > 0";
    let mut statement = connection.prepare_cached(sql)?;
    let ids = statement.query_map([], |row| row.get::<_, String>(0))?;
    ids.map(|id| pool_id(&id?)).collect()
}

/// Returns the names of the providers that workers ever came from; tombstones tell of the past.
pub(super) fn provider_names(connection: &Connection) -> Result<BTreeSet<String>, JobError> {
    let sql = "SELECT DISTINCT provider FROM worker";
    let mut statement = connection.prepare_cached(sql)?;
    let names = statement.query_map([], |row| row.get(0))?;
    names.collect::<Result<_, _>>().map_err(JobError::from)
}

fn parse<T: serde::de::DeserializeOwned>(text: &str, what: &str) -> Result<T, JobError> {
    serde_json::from_str(text)
        .map_err(|error| StateError::Conflict(format!("the record of {what}: {error}")).into())
}

fn pool_id(text: &str) -> Result<PoolId, JobError> {
    text.parse().map_err(|error| StateError::Conflict(format!("{error}")).into())
}

fn specs(connection: &Connection) -> Result<BTreeMap<i64, Arc<RecordedSpec>>, JobError> {
    let mut statement = connection.prepare_cached("SELECT id, hash, body, secrets FROM spec")?;
    let mut rows = statement.query([])?;
    let mut specs = BTreeMap::new();
    while let Some(row) = rows.next()? {
        let spec = RecordedSpec {
            hash: row.get(1)?,
            spec: parse(&row.get::<_, String>(2)?, "a spec")?,
            secrets: parse(&row.get::<_, String>(3)?, "a spec")?,
        };
        specs.insert(row.get(0)?, Arc::new(spec));
    }
    Ok(specs)
}

fn last_generations(
    connection: &Connection,
    only: Only<'_>,
) -> Result<BTreeMap<String, BTreeMap<Slot, Generation>>, JobError> {
    let sql =
        format!("SELECT pool, slot, last_generation FROM slot WHERE {}", only.condition("pool"));
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query(only.parameters())?;
    let mut generations: BTreeMap<String, BTreeMap<Slot, Generation>> = BTreeMap::new();
    while let Some(row) = rows.next()? {
        let slots = generations.entry(row.get(0)?).or_default();
        slots.insert(Slot(row.get(1)?), Generation(row.get(2)?));
    }
    Ok(generations)
}

type Tombstones = BTreeMap<Slot, (Generation, Timestamp)>;

fn tombstones(
    connection: &Connection,
    only: Only<'_>,
) -> Result<BTreeMap<String, Tombstones>, JobError> {
    let mut statement = connection.prepare_cached(&format!(
        "SELECT pool, slot, generation, phase_since FROM worker
         WHERE phase = 'deleted' AND {} ORDER BY generation",
        only.condition("pool")
    ))?;
    let mut rows = statement.query(only.parameters())?;
    let mut tombstones: BTreeMap<String, Tombstones> = BTreeMap::new();
    while let Some(row) = rows.next()? {
        let latest = (Generation(row.get(2)?), from_ms(row.get(3)?));
        tombstones.entry(row.get(0)?).or_default().insert(Slot(row.get(1)?), latest);
    }
    Ok(tombstones)
}

fn workers(
    connection: &Connection,
    specs: &BTreeMap<i64, Arc<RecordedSpec>>,
    only: Only<'_>,
) -> Result<BTreeMap<String, Vec<RecordedWorker>>, JobError> {
    let mut operations = open_operations(connection)?;
    let mut leases = open_leases(connection)?;
    let mut statement = connection.prepare_cached(&format!(
        "SELECT id, pool, slot, generation, phase, phase_since, provider, provider_id, spec,
                addresses, attributes, failure_code, failure_message, attempt, cordoned, draining,
                suspect, retired, phase_deadline, uses, lease
         FROM worker WHERE phase <> 'deleted' AND {} ORDER BY pool, slot, generation",
        only.condition("pool")
    ))?;
    let mut rows = statement.query(only.parameters())?;
    let mut workers: BTreeMap<String, Vec<RecordedWorker>> = BTreeMap::new();
    while let Some(row) = rows.next()? {
        let pool: String = row.get(1)?;
        let spec: i64 = row.get(8)?;
        let spec = specs
            .get(&spec)
            .ok_or_else(|| StateError::Conflict(format!("spec {spec} of {pool} is lost")))?;
        let id: i64 = row.get(0)?;
        let worker = worker(row, spec, operations.remove(&id), leases.remove(&id))?;
        workers.entry(pool).or_default().push(worker);
    }
    Ok(workers)
}

fn worker(
    row: &Row<'_>,
    spec: &Arc<RecordedSpec>,
    operation: Option<OpenOperation>,
    lease: Option<RecordedLease>,
) -> Result<RecordedWorker, JobError> {
    let phase: String = row.get(4)?;
    let json = |column: usize| -> Result<String, JobError> { Ok(row.get(column)?) };
    let failure: Option<String> = row.get(11)?;
    Ok(RecordedWorker {
        slot: Slot(row.get(2)?),
        generation: Generation(row.get(3)?),
        phase: phase.parse::<Phase>().map_err(|error| StateError::Conflict(error.to_string()))?,
        phase_since: from_ms(row.get(5)?),
        provider: row.get(6)?,
        provider_id: row.get(7)?,
        attempt: row.get(13)?,
        spec: Arc::clone(spec),
        addresses: parse(&json(9)?, "a worker")?,
        attributes: parse(&json(10)?, "a worker")?,
        failure: match failure {
            None => None,
            Some(code) => Some(Failure {
                code,
                message: row.get::<_, Option<String>>(12)?.unwrap_or_default(),
            }),
        },
        operation,
        standing: Standing {
            row: row.get(0)?,
            cordoned: row.get::<_, u8>(14)? > 0,
            draining: row.get::<_, u8>(15)? > 0,
            drained_by_update: row.get::<_, u8>(15)? == 2,
            suspect: row.get(16)?,
            retired: row.get(17)?,
            deadline: row.get::<_, Option<i64>>(18)?.map(from_ms),
            uses: row.get(19)?,
            lease,
        },
    })
}

/// Returns the open lease of a worker.
pub(super) fn lease_of(
    connection: &Connection,
    pool: &PoolId,
    key: WorkerKey,
) -> Result<Option<RecordedLease>, JobError> {
    let sql = "SELECT lease.id, lease.nonce, lease.holder, lease.expires_at
               FROM worker JOIN lease ON lease.id = worker.lease
               WHERE worker.pool = ?1 AND worker.slot = ?2 AND worker.generation = ?3";
    let mut statement = connection.prepare_cached(sql)?;
    let found = statement.query_row((pool.as_str(), key.slot.0, key.generation.0), |row| {
        Ok(RecordedLease {
            id: LeaseId { number: row.get(0)?, nonce: row.get(1)? },
            holder: row.get(2)?,
            expires_at: from_ms(row.get(3)?),
        })
    });
    Ok(found.optional()?)
}

fn open_leases(connection: &Connection) -> Result<BTreeMap<i64, RecordedLease>, JobError> {
    let mut statement = connection.prepare_cached(
        "SELECT worker, id, nonce, holder, expires_at FROM lease WHERE ended_at IS NULL",
    )?;
    let mut rows = statement.query([])?;
    let mut leases = BTreeMap::new();
    while let Some(row) = rows.next()? {
        let lease = RecordedLease {
            id: LeaseId { number: row.get(1)?, nonce: row.get(2)? },
            holder: row.get(3)?,
            expires_at: from_ms(row.get(4)?),
        };
        leases.insert(row.get(0)?, lease);
    }
    Ok(leases)
}

fn open_operations(connection: &Connection) -> Result<BTreeMap<i64, OpenOperation>, JobError> {
    let mut statement = connection.prepare_cached(
        "SELECT worker, id, kind, state, attempt, sent_at FROM operation
         WHERE state IN ('intended', 'unknown')",
    )?;
    let mut rows = statement.query([])?;
    let mut operations = BTreeMap::new();
    while let Some(row) = rows.next()? {
        let kind: String = row.get(2)?;
        let state: String = row.get(3)?;
        let operation = OpenOperation {
            id: row.get(1)?,
            kind: match kind.as_str() {
                "create" => OperationKind::Create,
                "update" => OperationKind::Update,
                _ => OperationKind::Delete,
            },
            state: match state.as_str() {
                "unknown" => OperationState::Unknown,
                _ => OperationState::Intended,
            },
            attempt: row.get(4)?,
            sent_at: from_ms(row.get(5)?),
        };
        operations.insert(row.get(0)?, operation);
    }
    Ok(operations)
}
