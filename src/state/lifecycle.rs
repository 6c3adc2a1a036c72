//! The intent before each provider call, and the result after it.
//!
//! Every function here is one transaction under the pool's lock. Invariants, held by unique indexes and
//! checked again here: at most one open operation a worker, at most one open create a slot, phases only
//! along the transition table, and the run's [`Budget`] at the moment an operation opens.

use std::sync::Arc;
use std::time::Duration;

use pool_provider::ObservedWorker;

use super::Store;
use super::change::Change;
use super::error::StateError;
use super::load::to_ms;
use super::lock::{self, PoolLock};
use super::writer::JobError;
use crate::config::{ProviderConfig, StaticPoolConfig};
use crate::plan::{Budget, Failure, RecordedSpec};
use crate::worker::{Generation, Phase, Slot};

/// One worker of the locked pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct WorkerKey {
    /// Its slot.
    pub slot: Slot,
    /// Which of the slot's workers it is.
    pub generation: Generation,
}

/// A worker that is about to be created.
#[derive(Debug, Clone)]
pub struct NewCreate {
    /// Who it will be.
    pub key: WorkerKey,
    /// The name of its provider.
    pub provider: String,
    /// What it is made from.
    pub spec: Arc<RecordedSpec>,
    /// When the caller gives up on the call.
    pub timeout: Duration,
    /// What the run keeps to.
    pub budget: Budget,
    /// Why it comes.
    pub why: String,
    /// Whether it is tried out: its run is narrowed to its slot, and does not apply the config.
    pub tried_out: bool,
}

/// An operation that may now be carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenedOperation {
    /// Its number; a tag on the object.
    pub id: i64,
    /// Grows only on proof that the attempt before left nothing.
    pub attempt: u32,
    /// How many attempts before this one found no capacity; the same for repeats of one attempt.
    pub passed_over: u32,
    /// The idempotency token: the same for repeats of one attempt.
    pub token: String,
}

impl Store {
    pub(super) async fn change<T: Send + 'static>(
        &self,
        lock: &PoolLock,
        work: impl FnOnce(&Change<'_>) -> Result<T, JobError> + Send + 'static,
    ) -> Result<T, StateError> {
        let (lock, holder, now) = (lock.clone(), Arc::clone(&self.holder), self.now());
        self.writer
            .run(move |connection| {
                lock::verify(connection, &lock, &holder)?;
                work(&Change { connection, lock, holder, now })
            })
            .await
    }

    /// Checks that the pool is as it was when a plan was made: at `serial`, or unknown.
    ///
    /// # Errors
    /// [`StateError::Moved`] when it is not, saying what moved.
    pub async fn verify_serial(
        &self,
        lock: &PoolLock,
        serial: Option<u64>,
    ) -> Result<(), StateError> {
        self.change(lock, move |change| change.verify_serial(serial)).await
    }

    /// Records the config that is being applied, and how its provider is reached.
    pub async fn record_config(
        &self,
        lock: &PoolLock,
        config: &StaticPoolConfig,
        provider: Option<&ProviderConfig>,
        origin: &str,
    ) -> Result<(), StateError> {
        let (config, provider, origin) = (config.clone(), provider.cloned(), origin.to_owned());
        self.change(lock, move |change| change.record_config(&config, provider.as_ref(), &origin))
            .await
    }

    /// Records that the pool goes: nothing is desired of it any more.
    pub async fn record_going(&self, lock: &PoolLock) -> Result<(), StateError> {
        self.change(lock, |change| {
            let sql = "UPDATE pool SET config = NULL, serial = serial + 1,
                           config_version = config_version + 1
                       WHERE id = ?1 AND config IS NOT NULL";
            if change.execute(sql, [change.pool()])? > 0 {
                change.event(None, "pool_going", "", (None, None))?;
            }
            Ok(())
        })
        .await
    }

    /// Records that the pool is gone, once no worker of it is left.
    pub async fn forget_pool(&self, lock: &PoolLock) -> Result<(), StateError> {
        self.change(lock, |change| {
            let sql = "UPDATE pool SET serial = serial + 1 WHERE id = ?1 AND live = 0";
            if change.execute(sql, [change.pool()])? > 0 {
                change.event(None, "pool_removed", "", (None, None))?;
            }
            Ok(())
        })
        .await
    }

    /// Opens the first or the next attempt to create a worker.
    ///
    /// # Errors
    /// [`StateError::Budget`] when the run would have too many workers then.
    pub async fn open_create(
        &self,
        lock: &PoolLock,
        create: NewCreate,
    ) -> Result<OpenedOperation, StateError> {
        let deployment = self.deployment.clone();
        self.change(lock, move |change| change.open_create(&deployment, &create)).await
    }

    /// Takes over the create operation that an earlier run left open, to send its call again.
    pub async fn reopen_create(
        &self,
        lock: &PoolLock,
        key: WorkerKey,
    ) -> Result<OpenedOperation, StateError> {
        self.change(lock, move |change| change.reopen(key)).await
    }

    /// Records that the outcome of a call is not known.
    pub async fn mark_unknown(
        &self,
        lock: &PoolLock,
        key: WorkerKey,
        operation: i64,
        why: String,
    ) -> Result<(), StateError> {
        self.change(lock, move |change| {
            let sql = "UPDATE operation SET state = 'unknown', error = ?2, sent_at = ?3
                       WHERE id = ?1 AND state IN ('intended', 'unknown')";
            change.execute(sql, (operation, &why, to_ms(change.now)))?;
            change.event(Some(key), "outcome_unknown", &why, (None, None))
        })
        .await
    }

    /// Records that a worker exists: created now, or found after an interrupted create.
    pub async fn record_created(
        &self,
        lock: &PoolLock,
        key: WorkerKey,
        observed: ObservedWorker,
        timeout: Duration,
    ) -> Result<(), StateError> {
        self.change(lock, move |change| change.created(key, &observed, timeout)).await
    }

    /// Records a worker that nothing was recorded of.
    pub async fn record_adopted(
        &self,
        lock: &PoolLock,
        create: NewCreate,
        observed: ObservedWorker,
    ) -> Result<(), StateError> {
        self.change(lock, move |change| change.adopted(&create, &observed)).await
    }

    /// Records that the create call failed and left nothing.
    pub async fn record_create_failed(
        &self,
        lock: &PoolLock,
        key: WorkerKey,
        failure: Failure,
    ) -> Result<(), StateError> {
        self.change(lock, move |change| {
            let error = format!("{}: {}", failure.code, failure.message);
            change.close_open(key, "failed", Some(&error))?;
            change.fail(key, &failure)
        })
        .await
    }

    /// Records that a worker that exists did not pass its health check in time.
    pub async fn record_unverified(
        &self,
        lock: &PoolLock,
        key: WorkerKey,
        failure: Failure,
    ) -> Result<(), StateError> {
        self.change(lock, move |change| change.fail(key, &failure)).await
    }

    /// Records that a worker passed its health check, and what is known of it by `now`, if that may be more.
    pub async fn record_ready(
        &self,
        lock: &PoolLock,
        key: WorkerKey,
        now: Option<ObservedWorker>,
    ) -> Result<(), StateError> {
        self.change(lock, move |change| {
            if let Some(now) = now {
                change.describe(key, &now)?;
            }
            change.move_to(key, Phase::Ready, None, "health_check")
        })
        .await
    }

    /// Opens an update of labels and tags; an open one is superseded: updates set, they do not add.
    pub async fn open_update(
        &self,
        lock: &PoolLock,
        key: WorkerKey,
        timeout: Duration,
    ) -> Result<OpenedOperation, StateError> {
        self.change(lock, move |change| {
            change.close_open(key, "failed", Some("superseded"))?;
            change.bump_serial()?;
            change.open(key, "update", timeout, String::new())
        })
        .await
    }

    /// Records what a worker is made from after an update; its secrets are those that it was made with.
    pub async fn record_updated(
        &self,
        lock: &PoolLock,
        key: WorkerKey,
        spec: Arc<RecordedSpec>,
        why: String,
        tried_out: bool,
    ) -> Result<(), StateError> {
        self.change(lock, move |change| {
            change.close_open(key, "done", None)?;
            let secrets = change.secrets_of(key)?;
            let spec = change.spec(&RecordedSpec { secrets, ..RecordedSpec::clone(&spec) })?;
            let sql = "UPDATE worker SET spec = ?4, tried_out = ?5
                 WHERE pool = ?1 AND slot = ?2 AND generation = ?3";
            let made = (change.pool(), key.slot.0, key.generation.0, spec, tried_out);
            change.execute(sql, made)?;
            change.event(Some(key), "updated", &why, (None, None))
        })
        .await
    }

    /// Records that an update failed and changed nothing.
    pub async fn record_update_failed(
        &self,
        lock: &PoolLock,
        key: WorkerKey,
        why: String,
    ) -> Result<(), StateError> {
        self.change(lock, move |change| {
            change.close_open(key, "failed", Some(&why))?;
            change.event(Some(key), "update_failed", &why, (None, None))
        })
        .await
    }

    /// Opens the deletion of a worker; from here on it takes no work.
    ///
    /// # Errors
    /// [`StateError::Budget`] when too few workers would be ready then, [`StateError::Leased`] when a job
    /// has it: a lease and a deletion exclude each other here.
    pub async fn open_delete(
        &self,
        lock: &PoolLock,
        key: WorkerKey,
        budget: Budget,
        timeout: Duration,
        why: String,
    ) -> Result<OpenedOperation, StateError> {
        self.change(lock, move |change| change.open_delete(key, budget, timeout, &why)).await
    }

    /// Records that a worker is gone.
    pub async fn record_deleted(&self, lock: &PoolLock, key: WorkerKey) -> Result<(), StateError> {
        self.change(lock, move |change| change.deleted(key)).await
    }

    /// Records that an object of ours that was not recorded is gone.
    pub async fn record_stray_deleted(
        &self,
        lock: &PoolLock,
        key: WorkerKey,
        why: String,
    ) -> Result<(), StateError> {
        self.change(lock, move |change| {
            change.remember_generation(key)?;
            change.event(Some(key), "stray_deleted", &why, (None, None))
        })
        .await
    }
}
