//! Workers that are tried out: other ones than the applied config asks for, because a run made them that was narrowed to
//! their slots, and did not apply the config. They stay what they are until the whole pool is applied.

use std::collections::BTreeSet;

use super::Store;
use super::change::Change;
use super::error::StateError;
use super::lifecycle::WorkerKey;
use super::lock::PoolLock;
use super::writer::JobError;
use crate::plan::RecordedSpec;
use crate::worker::{Generation, PoolId, Slot};

impl Store {
    /// Returns the workers that a run made which was narrowed to their slots; those left out that an update wants gone.
    pub async fn tried_out(
        &self,
        pool: &PoolId,
    ) -> Result<BTreeSet<(Slot, Generation)>, StateError> {
        let pool = pool.clone();
        self.read(move |connection| {
            let sql = "SELECT slot, generation FROM worker
                       WHERE pool = ?1 AND tried_out = 1 AND phase <> 'deleted' AND draining <> 2";
            let mut statement = connection.prepare_cached(sql)?;
            let rows = statement.query_map([pool.as_str()], |row| {
                Ok((Slot(row.get(0)?), Generation(row.get(1)?)))
            })?;
            rows.collect::<Result<_, _>>().map_err(JobError::from)
        })
        .await
    }

    /// Ends what was tried out in a pool: from here on its workers are to be what its config asks for.
    pub async fn end_trials(&self, lock: &PoolLock) -> Result<(), StateError> {
        self.change(lock, |change| {
            change.end_trials()?;
            Ok(())
        })
        .await
    }
}

impl Change<'_> {
    /// Notes whether a worker that was just made or changed is another one than the applied config asks for. That is on
    /// purpose: a run that does what the config says has recorded it before.
    pub(super) fn note_trial(&self, key: WorkerKey, spec: &RecordedSpec) -> Result<(), JobError> {
        let worker = &spec.spec.worker;
        let labels = serde_json::to_string(&worker.labels).unwrap_or_default();
        let tags = serde_json::to_string(&worker.tags).unwrap_or_default();
        self.execute(
            "UPDATE worker SET tried_out = coalesce((
                 SELECT spec_hash <> ?4
                     OR coalesce(json_extract(config, '$.worker_config.labels'), '{}') <> ?5
                     OR coalesce(json_extract(config, '$.worker_config.tags'), '[]') <> ?6
                 FROM pool WHERE id = ?1), 0)
             WHERE pool = ?1 AND slot = ?2 AND generation = ?3",
            (self.pool(), key.slot.0, key.generation.0, &spec.hash, labels, tags),
        )?;
        Ok(())
    }

    pub(super) fn end_trials(&self) -> Result<(), JobError> {
        self.execute(
            "UPDATE worker SET tried_out = 0 WHERE pool = ?1 AND tried_out = 1",
            [self.pool()],
        )?;
        Ok(())
    }
}
