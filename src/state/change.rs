//! One transaction's view of a locked pool: the rows behind each intent and each result.
//!
//! Every function runs inside a transaction whose lock was verified. Phases move only along the
//! transition table, and every move writes its event. Which of these make up one operation is decided in
//! [`super::lifecycle`].

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use pool_provider::ObservedWorker;
use rusqlite::{Connection, OptionalExtension as _};
use sha2::{Digest as _, Sha256};

use super::error::StateError;
use super::event::{self, NewEvent};
use super::holder::Holder;
use super::lifecycle::{NewCreate, OpenedOperation, WorkerKey};
use super::load::{from_ms, to_ms};
use super::lock::PoolLock;
use super::operation::token;
use super::providers;
use super::writer::JobError;
use crate::config::{Pick, ProviderConfig, StaticPoolConfig};
use crate::desired::{SecretHashes, Spec};
use crate::plan::{Budget, Failure, RecordedSpec};
use crate::worker::{DeploymentId, Phase};

/// What every change has at hand: the connection, who changes, and when.
pub(super) struct Change<'c> {
    pub(super) connection: &'c Connection,
    pub(super) lock: PoolLock,
    pub(super) holder: Arc<Holder>,
    pub(super) now: Timestamp,
}

/// One worker's row, as far as changes need it.
pub(super) struct WorkerRow {
    pub(super) id: i64,
    pub(super) phase: Phase,
    pub(super) attempt: u32,
    /// Its open lease.
    pub(super) lease: Option<i64>,
}

impl Change<'_> {
    pub(super) fn pool(&self) -> &str {
        self.lock.pool.as_str()
    }

    pub(super) fn execute(
        &self,
        sql: &str,
        parameters: impl rusqlite::Params,
    ) -> Result<usize, JobError> {
        Ok(self.connection.prepare_cached(sql)?.execute(parameters)?)
    }

    pub(super) fn conflict<T>(&self, key: WorkerKey, what: &str) -> Result<T, JobError> {
        let WorkerKey { slot, generation } = key;
        let name = format!("{}-{slot}-{generation}", self.pool());
        Err(StateError::Conflict(format!("worker {name}: {what}")).into())
    }

    pub(super) fn event(
        &self,
        key: Option<WorkerKey>,
        kind: &str,
        why: &str,
        phases: (Option<Phase>, Option<Phase>),
    ) -> Result<(), JobError> {
        event::write(
            self.connection,
            &NewEvent {
                at: self.now,
                pool: self.pool(),
                worker: key.map(|key| (key.slot, key.generation)),
                kind,
                who: &self.holder.describe(),
                why,
                phases,
            },
        )
    }

    pub(super) fn bump_serial(&self) -> Result<(), JobError> {
        self.execute("UPDATE pool SET serial = serial + 1 WHERE id = ?1", [self.pool()])?;
        Ok(())
    }

    pub(super) fn verify_serial(&self, expected: Option<u64>) -> Result<(), JobError> {
        let row: Option<(i64, Option<i64>)> = self
            .connection
            .prepare_cached("SELECT serial, applied_at FROM pool WHERE id = ?1")?
            .query_row([self.pool()], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let what = match (expected, row) {
            (None, None) => return Ok(()),
            (Some(serial), Some((found, _))) if found.unsigned_abs() == serial => return Ok(()),
            (None, Some(_)) => "it has been created".to_owned(),
            (Some(serial), None) => format!("it was at serial {serial} and is unknown now"),
            (Some(serial), Some((found, applied_at))) => format!(
                "its serial was {serial} and is {found}{}{}",
                applied_at.map_or(String::new(), |at| format!(", last applied {}", from_ms(at))),
                self.latest_event()?
            ),
        };
        Err(StateError::Moved { pool: self.lock.pool.clone(), what }.into())
    }

    pub(super) fn latest_event(&self) -> Result<String, JobError> {
        let sql = "SELECT kind, slot FROM event WHERE pool = ?1 ORDER BY seq DESC LIMIT 1";
        let latest: Option<(String, Option<u32>)> = self
            .connection
            .prepare_cached(sql)?
            .query_row([self.pool()], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        Ok(match latest {
            None => String::new(),
            Some((kind, None)) => format!(", latest event: {kind}"),
            Some((kind, Some(slot))) => format!(", latest event: {kind} in slot {slot}"),
        })
    }

    pub(super) fn record_config(
        &self,
        config: &StaticPoolConfig,
        provider: Option<&ProviderConfig>,
        origin: &str,
    ) -> Result<(), JobError> {
        let text = serde_json::to_string(config).map_err(|error| {
            StateError::Conflict(format!("the config of {}: {error}", self.pool()))
        })?;
        let spec_hash = Spec::of(config, provider).hash();
        let reached = match provider {
            Some(provider) => Some(providers::record(
                self.connection,
                config.provider_name(),
                provider,
                self.now,
            )?),
            None => None,
        };
        let changed = self.execute(
            "INSERT INTO pool
                 (id, serial, config, applied_at, origin, spec_hash, config_version, provider)
             VALUES (?1, 1, ?2, ?3, ?4, ?5, 1, ?6)
             ON CONFLICT (id) DO UPDATE SET serial = serial + 1, config = excluded.config,
                 applied_at = excluded.applied_at, origin = excluded.origin,
                 spec_hash = excluded.spec_hash, config_version = config_version + 1,
                 provider = excluded.provider
             WHERE config IS NOT excluded.config OR provider IS NOT excluded.provider",
            (self.pool(), text, to_ms(self.now), origin, spec_hash, reached),
        )?;
        if changed > 0 && config.leases.pick == Pick::LowestSlot {
            let sql = "UPDATE worker SET rank = slot WHERE pool = ?1 AND rank <> slot";
            self.execute(sql, [self.pool()])?;
        }
        // Whoever records a config applies it to the whole pool.
        self.end_trials()?;
        if changed > 0 {
            self.event(None, "config_applied", origin, (None, None))?;
        }
        Ok(())
    }

    pub(super) fn worker(&self, key: WorkerKey) -> Result<Option<WorkerRow>, JobError> {
        let sql = "SELECT id, phase, attempt, lease FROM worker
                   WHERE pool = ?1 AND slot = ?2 AND generation = ?3";
        let row: Option<(i64, String, u32, Option<i64>)> = self
            .connection
            .prepare_cached(sql)?
            .query_row((self.pool(), key.slot.0, key.generation.0), |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
            })
            .optional()?;
        let Some((id, phase, attempt, lease)) = row else { return Ok(None) };
        let phase = phase.parse().map_err(|error| StateError::Conflict(format!("{error}")))?;
        Ok(Some(WorkerRow { id, phase, attempt, lease }))
    }

    pub(super) fn known_worker(&self, key: WorkerKey) -> Result<WorkerRow, JobError> {
        match self.worker(key)? {
            Some(row) => Ok(row),
            None => self.conflict(key, "it is not recorded"),
        }
    }

    /// Moves a worker along the transition table, and says so in an event.
    pub(super) fn move_to(
        &self,
        key: WorkerKey,
        to: Phase,
        deadline: Option<Duration>,
        why: &str,
    ) -> Result<(), JobError> {
        let row = self.known_worker(key)?;
        if row.phase == to {
            return Ok(());
        }
        if !row.phase.may_become(to) {
            return self.conflict(key, &format!("it is {} and cannot become {to}", row.phase));
        }
        let limit = deadline.or(to.patience());
        let deadline = limit.and_then(|limit| self.now.checked_add(limit).ok()).map(to_ms);
        self.execute(
            "UPDATE worker SET phase = ?2, phase_since = ?3, phase_deadline = ?4 WHERE id = ?1",
            (row.id, to.as_str(), to_ms(self.now), deadline),
        )?;
        self.event(Some(key), "phase", why, (Some(row.phase), Some(to)))
    }

    /// Returns the row of this process, writing it when it is new.
    pub(super) fn holder_row(&self) -> Result<i64, JobError> {
        let body = serde_json::to_string(&*self.holder).unwrap_or_default();
        let sql = "INSERT INTO holder (body) VALUES (?1) ON CONFLICT (body) DO NOTHING";
        self.execute(sql, [&body])?;
        let sql = "SELECT id FROM holder WHERE body = ?1";
        Ok(self.connection.prepare_cached(sql)?.query_row([body], |row| row.get(0))?)
    }

    /// Returns the row of the spec, writing it when it is new.
    pub(super) fn spec(&self, spec: &RecordedSpec) -> Result<i64, JobError> {
        let body = serde_json::to_string(&spec.spec).unwrap_or_default();
        let secrets = serde_json::to_string(&spec.secrets).unwrap_or_default();
        let digest: String = Sha256::digest(format!("{body}\n{secrets}\n{}", spec.hash))
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        self.execute(
            "INSERT INTO spec (digest, hash, body, secrets) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (digest) DO NOTHING",
            (&digest, &spec.hash, body, secrets),
        )?;
        let sql = "SELECT id FROM spec WHERE digest = ?1";
        Ok(self.connection.prepare_cached(sql)?.query_row([digest], |row| row.get(0))?)
    }

    /// Returns what is known of the secrets that a worker was made with.
    pub(super) fn secrets_of(&self, key: WorkerKey) -> Result<SecretHashes, JobError> {
        let sql = "SELECT secrets FROM spec JOIN worker ON worker.spec = spec.id
                   WHERE pool = ?1 AND slot = ?2 AND generation = ?3";
        let text: String = self
            .connection
            .prepare_cached(sql)?
            .query_row((self.pool(), key.slot.0, key.generation.0), |row| row.get(0))?;
        Ok(serde_json::from_str(&text).unwrap_or_default())
    }

    pub(super) fn remember_generation(&self, key: WorkerKey) -> Result<(), JobError> {
        self.execute(
            "INSERT INTO slot (pool, slot, last_generation) VALUES (?1, ?2, ?3)
             ON CONFLICT (pool, slot) DO UPDATE
             SET last_generation = max(last_generation, excluded.last_generation)",
            (self.pool(), key.slot.0, key.generation.0),
        )?;
        Ok(())
    }

    pub(super) fn open_create(
        &self,
        deployment: &DeploymentId,
        create: &NewCreate,
    ) -> Result<OpenedOperation, JobError> {
        let key = create.key;
        match self.worker(key)? {
            None => self.insert_worker(create, Phase::Provisioning, None)?,
            Some(row) if row.phase == Phase::Deleted => {
                return self.conflict(key, "it was deleted, and a generation is never used twice");
            }
            Some(row) => {
                self.move_to(key, Phase::Provisioning, Some(create.timeout), &create.why)?;
                let spec = self.spec(&create.spec)?;
                self.execute(
                    "UPDATE worker SET attempt = attempt + 1, provider_id = NULL, spec = ?2,
                         failure_code = NULL, failure_message = NULL
                     WHERE id = ?1",
                    (row.id, spec),
                )?;
            }
        }
        self.bump_serial()?;
        let attempt = self.known_worker(key)?.attempt;
        let token = token(deployment, &self.lock.pool, key, attempt, &create.spec.hash);
        self.open(key, "create", create.timeout, token)
    }

    pub(super) fn insert_worker(
        &self,
        create: &NewCreate,
        phase: Phase,
        observed: Option<&ObservedWorker>,
    ) -> Result<(), JobError> {
        let sql = "SELECT live FROM pool WHERE id = ?1";
        let live: Option<u32> = self
            .connection
            .prepare_cached(sql)?
            .query_row([self.pool()], |row| row.get(0))
            .optional()?;
        if live.is_some_and(|live| live >= create.budget.max_total) && observed.is_none() {
            let bound = format!("at most {} workers", create.budget.max_total);
            return Err(StateError::Budget { pool: self.lock.pool.clone(), bound }.into());
        }
        let key = create.key;
        self.remember_generation(key)?;
        let spec = self.spec(&create.spec)?;
        let deadline = self.now.checked_add(create.timeout).ok().map(to_ms);
        let json = |value: Option<String>| value.unwrap_or_else(|| "[]".to_owned());
        let addresses = observed.and_then(|o| serde_json::to_string(&o.addresses).ok());
        let attributes = observed.and_then(|o| serde_json::to_string(&o.attributes).ok());
        self.execute(
            "INSERT INTO worker (pool, slot, generation, phase, phase_since, phase_deadline, provider,
                 provider_id, spec, attempt, addresses, attributes, created_at, rank, tried_out)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?5, ?2, ?13)",
            (
                self.pool(),
                key.slot.0,
                key.generation.0,
                phase.as_str(),
                to_ms(self.now),
                deadline,
                &create.provider,
                observed.map(|observed| &observed.provider_id),
                spec,
                observed.map_or(1, |observed| observed.attempt),
                json(addresses),
                attributes.unwrap_or_else(|| "{}".to_owned()),
                create.tried_out,
            ),
        )?;
        self.event(Some(key), "phase", &create.why, (None, Some(phase)))
    }

    pub(super) fn created(
        &self,
        key: WorkerKey,
        observed: &ObservedWorker,
        timeout: Duration,
    ) -> Result<(), JobError> {
        self.close_open(key, "done", None)?;
        self.bump_serial()?;
        self.describe(key, observed)?;
        self.move_to(key, Phase::Verifying, Some(timeout), "created")
    }

    /// Records what the provider says that a worker is, and how it is reached.
    pub(super) fn describe(
        &self,
        key: WorkerKey,
        observed: &ObservedWorker,
    ) -> Result<(), JobError> {
        self.execute(
            "UPDATE worker SET provider_id = ?2, addresses = ?3, attributes = ?4 WHERE id = ?1",
            (
                self.known_worker(key)?.id,
                &observed.provider_id,
                serde_json::to_string(&observed.addresses).unwrap_or_default(),
                serde_json::to_string(&observed.attributes).unwrap_or_default(),
            ),
        )?;
        Ok(())
    }

    pub(super) fn adopted(
        &self,
        create: &NewCreate,
        observed: &ObservedWorker,
    ) -> Result<(), JobError> {
        if self.worker(create.key)?.is_some() {
            return self.conflict(create.key, "it is recorded already");
        }
        self.bump_serial()?;
        self.insert_worker(create, Phase::Verifying, Some(observed))
    }

    pub(super) fn fail(&self, key: WorkerKey, failure: &Failure) -> Result<(), JobError> {
        let row = self.known_worker(key)?;
        self.execute(
            "UPDATE worker SET failure_code = ?2, failure_message = ?3 WHERE id = ?1",
            (row.id, &failure.code, &failure.message),
        )?;
        let why = format!("{}: {}", failure.code, failure.message);
        self.move_to(key, Phase::Failed, None, &why)
    }

    pub(super) fn open_delete(
        &self,
        key: WorkerKey,
        budget: Budget,
        timeout: Duration,
        why: &str,
    ) -> Result<OpenedOperation, JobError> {
        let row = self.known_worker(key)?;
        if row.lease.is_some() {
            return Err(StateError::Leased(format!(
                "{}-{}-{}",
                self.pool(),
                key.slot,
                key.generation
            ))
            .into());
        }
        if row.phase == Phase::Ready {
            let sql = "SELECT ready FROM pool WHERE id = ?1";
            let ready: u32 =
                self.connection.prepare_cached(sql)?.query_row([self.pool()], |row| row.get(0))?;
            if ready <= budget.min_ready {
                let bound = format!("at least {} ready workers", budget.min_ready);
                return Err(StateError::Budget { pool: self.lock.pool.clone(), bound }.into());
            }
        }
        self.close_open(key, "failed", Some("superseded by a delete"))?;
        self.move_to(key, Phase::Deleting, Some(timeout), why)?;
        self.bump_serial()?;
        self.open(key, "delete", timeout, String::new())
    }

    pub(super) fn deleted(&self, key: WorkerKey) -> Result<(), JobError> {
        self.close_open(key, "done", None)?;
        self.bump_serial()?;
        self.move_to(key, Phase::Deleted, None, "gone")?;
        // One tombstone a slot is enough: the slot's row keeps the last generation.
        let older = "SELECT id FROM worker
                     WHERE pool = ?1 AND slot = ?2 AND generation < ?3 AND phase = 'deleted'";
        let parameters = (self.pool(), key.slot.0, key.generation.0);
        self.execute(&format!("DELETE FROM operation WHERE worker IN ({older})"), parameters)?;
        self.execute(&format!("DELETE FROM worker WHERE id IN ({older})"), parameters)?;
        Ok(())
    }
}
