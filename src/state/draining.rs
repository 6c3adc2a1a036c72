//! Workers that are to go while jobs have them: they get no new lease, and go when the lease has ended.
//!
//! A drained worker is marked, so that a run that keeps it after all can tell it from one that a person
//! cordoned.

use std::collections::BTreeSet;

use super::Store;
use super::change::Change;
use super::error::StateError;
use super::lifecycle::WorkerKey;
use super::load;
use super::lock::PoolLock;
use super::writer::JobError;
use crate::plan::RecordedLease;
use crate::worker::{Generation, PoolId, Slot};

impl Store {
    /// Keeps new leases from workers that are to go while jobs have them.
    pub async fn drain(&self, lock: &PoolLock, keys: Vec<WorkerKey>) -> Result<(), StateError> {
        self.change(lock, move |change| keys.iter().try_for_each(|key| change.drain(*key))).await
    }

    /// Lets workers be leased again that an earlier run meant to delete and that stay after all.
    pub async fn stop_draining(
        &self,
        lock: &PoolLock,
        stays: BTreeSet<WorkerKey>,
    ) -> Result<(), StateError> {
        self.change(lock, move |change| change.stop_draining(&stays)).await
    }

    /// Returns all workers that jobs have.
    pub async fn leased(&self) -> Result<BTreeSet<(PoolId, WorkerKey)>, StateError> {
        self.read(|connection| {
            let sql = "SELECT pool, slot, generation FROM lease INDEXED BY lease_open
                       WHERE ended_at IS NULL";
            let mut statement = connection.prepare_cached(sql)?;
            let mut rows = statement.query([])?;
            let mut leased = BTreeSet::new();
            while let Some(row) = rows.next()? {
                let pool: String = row.get(0)?;
                let pool = pool.parse().map_err(|e| StateError::Conflict(format!("{e}")))?;
                let (slot, generation) = (Slot(row.get(1)?), Generation(row.get(2)?));
                leased.insert((pool, WorkerKey { slot, generation }));
            }
            Ok(leased)
        })
        .await
    }

    /// Returns who has a worker; `None` when nobody has.
    pub async fn lease_of(
        &self,
        lock: &PoolLock,
        key: WorkerKey,
    ) -> Result<Option<RecordedLease>, StateError> {
        let pool = lock.pool.clone();
        self.read(move |connection| load::lease_of(connection, &pool, key)).await
    }
}

impl Change<'_> {
    fn drain(&self, key: WorkerKey) -> Result<(), JobError> {
        let changed = self.execute(
            "UPDATE worker SET cordoned = cordoned + 2, draining = 2
             WHERE pool = ?1 AND slot = ?2 AND generation = ?3 AND draining = 0
               AND lease IS NOT NULL",
            (self.pool(), key.slot.0, key.generation.0),
        )?;
        if changed > 0 {
            self.event(Some(key), "drain", "it is to go, and a job has it", (None, None))?;
        }
        Ok(())
    }

    fn stop_draining(&self, stays: &BTreeSet<WorkerKey>) -> Result<(), JobError> {
        let sql = "SELECT slot, generation FROM worker
                   WHERE pool = ?1 AND draining = 2 AND phase <> 'deleted'";
        let mut statement = self.connection.prepare_cached(sql)?;
        let draining = statement.query_map([self.pool()], |row| {
            Ok(WorkerKey { slot: Slot(row.get(0)?), generation: Generation(row.get(1)?) })
        })?;
        for key in draining.collect::<Result<Vec<_>, _>>()? {
            if stays.contains(&key) {
                // A person's own cordon stays.
                let sql = "UPDATE worker SET cordoned = cordoned & 1, draining = 0
                           WHERE pool = ?1 AND slot = ?2 AND generation = ?3";
                self.execute(sql, (self.pool(), key.slot.0, key.generation.0))?;
                self.event(Some(key), "uncordon", "it stays after all", (None, None))?;
            }
        }
        Ok(())
    }
}
