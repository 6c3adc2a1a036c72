//! The rows of provider calls: opened before a call leaves, closed when its result is recorded.
//!
//! A worker has at most one that is open, which the table's indexes see to. A repeat is the same row again: its attempt,
//! its token and what it has passed over are those of before.

use std::time::Duration;

use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use super::change::Change;
use super::lifecycle::{OpenedOperation, WorkerKey};
use super::load::to_ms;
use super::writer::JobError;
use crate::worker::{DeploymentId, PoolId};

impl Change<'_> {
    /// Opens an operation, whose call may then be made.
    pub(super) fn open(
        &self,
        key: WorkerKey,
        kind: &str,
        timeout: Duration,
        token: String,
    ) -> Result<OpenedOperation, JobError> {
        let row = self.known_worker(key)?;
        let holder = self.holder_row()?;
        let deadline = self.now.checked_add(timeout).unwrap_or(Timestamp::MAX);
        self.execute(
            "INSERT INTO operation (worker, pool, slot, kind, state, attempt, token, sent_at, deadline,
                 fence, holder)
             VALUES (?1, ?2, ?3, ?4, 'intended', ?5, ?6, ?7, ?8, ?9, ?10)",
            (
                row.id,
                self.pool(),
                key.slot.0,
                kind,
                row.attempt,
                &token,
                to_ms(self.now),
                to_ms(deadline),
                self.lock.fence,
                holder,
            ),
        )?;
        let id = self.connection.last_insert_rowid();
        // A first attempt comes after none.
        let passed_over = if row.attempt > 1 { self.passed_over(row.id, id)? } else { 0 };
        Ok(OpenedOperation { id, attempt: row.attempt, passed_over, token })
    }

    /// Counts the creates of a worker that found no capacity before `operation`: those are over, so that the same
    /// operation always has the same number.
    fn passed_over(&self, worker: i64, operation: i64) -> Result<u32, JobError> {
        let sql = "SELECT count(*) FROM operation WHERE worker = ?1 AND id < ?2 AND kind = 'create'
                   AND error GLOB 'out_of_capacity: *'";
        let mut statement = self.connection.prepare_cached(sql)?;
        Ok(statement.query_row([worker, operation], |row| row.get(0))?)
    }

    /// Takes over a create that was left open.
    pub(super) fn reopen(&self, key: WorkerKey) -> Result<OpenedOperation, JobError> {
        let row = self.known_worker(key)?;
        let holder = self.holder_row()?;
        let changed = self.execute(
            "UPDATE operation SET state = 'intended', sent_at = ?2, fence = ?3, holder = ?4
             WHERE worker = ?1 AND kind = 'create' AND state IN ('intended', 'unknown')",
            (row.id, to_ms(self.now), self.lock.fence, holder),
        )?;
        if changed == 0 {
            return self.conflict(key, "it has no open create operation");
        }
        let sql = "SELECT id, attempt, token FROM operation
                   WHERE worker = ?1 AND state = 'intended'";
        let (id, attempt, token) = self
            .connection
            .prepare_cached(sql)?
            .query_row([row.id], |found| Ok((found.get(0)?, found.get(1)?, found.get(2)?)))?;
        Ok(OpenedOperation { id, attempt, passed_over: self.passed_over(row.id, id)?, token })
    }

    /// Closes whatever operation of a worker is open.
    pub(super) fn close_open(
        &self,
        key: WorkerKey,
        state: &str,
        error: Option<&str>,
    ) -> Result<(), JobError> {
        let row = self.known_worker(key)?;
        self.execute(
            "UPDATE operation SET state = ?2, finished_at = ?3, error = ?4
             WHERE worker = ?1 AND state IN ('intended', 'unknown')",
            (row.id, state, to_ms(self.now), error),
        )?;
        Ok(())
    }
}

/// The same attempt of the same worker always has the same token; another one never does.
pub(super) fn token(
    deployment: &DeploymentId,
    pool: &PoolId,
    key: WorkerKey,
    attempt: u32,
    spec_hash: &str,
) -> String {
    let WorkerKey { slot, generation } = key;
    let text = format!("{deployment}|{pool}|{slot}|{generation}|{attempt}|{spec_hash}");
    Sha256::digest(text)[..20].iter().map(|byte| format!("{byte:02x}")).collect()
}
