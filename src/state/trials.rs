//! Workers that are tried out: a run that was narrowed to their slots made or changed them, and did not apply the config.
//! They stay what they are until the whole pool is applied.

use std::collections::BTreeSet;

use super::Store;
use super::change::Change;
use super::error::StateError;
use super::lock::PoolLock;
use super::providers;
use super::writer::JobError;
use crate::config::ProviderConfig;
use crate::worker::{Generation, PoolId, Slot};

impl Store {
    /// Returns the workers that serve and are tried out; not those that an update wants gone.
    pub async fn tried_out(
        &self,
        pool: &PoolId,
    ) -> Result<BTreeSet<(Slot, Generation)>, StateError> {
        let pool = pool.clone();
        self.read(move |connection| {
            let sql = "SELECT slot, generation FROM worker
                       WHERE pool = ?1 AND tried_out = 1 AND draining <> 2
                         AND phase IN ('ready', 'recycling', 'quarantined')";
            let mut statement = connection.prepare_cached(sql)?;
            let rows = statement.query_map([pool.as_str()], |row| {
                Ok((Slot(row.get(0)?), Generation(row.get(1)?)))
            })?;
            rows.collect::<Result<_, _>>().map_err(JobError::from)
        })
        .await
    }

    /// Records how a provider is reached that is tried out: its workers have to be found without any files.
    pub async fn record_provider(
        &self,
        lock: &PoolLock,
        name: &str,
        provider: &ProviderConfig,
    ) -> Result<(), StateError> {
        let (name, provider) = (name.to_owned(), provider.clone());
        self.change(lock, move |change| {
            providers::record(change.connection, &name, &provider, change.now).map(drop)
        })
        .await
    }
}

impl Change<'_> {
    /// Ends what was tried out in the pool: from here on its workers are to be what its config asks for.
    pub(super) fn end_trials(&self) -> Result<(), JobError> {
        self.execute(
            "UPDATE worker SET tried_out = 0 WHERE pool = ?1 AND tried_out = 1",
            [self.pool()],
        )?;
        Ok(())
    }
}
