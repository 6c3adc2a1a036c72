//! When workers were last known to be well, and looking whether one is well now.
//!
//! In memory only: passed probes are not stored. After a restart a worker is as well as it was when it
//! became ready, which is soon too long ago: then it is probed before it is leased.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use jiff::Timestamp;
use pool_provider::{SharedProvider, WorkerRef};

use super::PoolError;
use super::providers::Providers;
use crate::clock::Clock;
use crate::config::HealthCheckConfig;
use crate::probe::{self, Probed};
use crate::state::{Store, Vouch, Watched};

/// When workers last passed a probe, by row.
#[derive(Debug, Default)]
pub struct Vitals(RwLock<HashMap<i64, Timestamp>>);

impl Vitals {
    /// Notes that a worker is well.
    pub fn passed(&self, row: i64, at: Timestamp) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(row, at);
    }

    /// Forgets what was known of a worker.
    pub fn forget(&self, row: i64) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(&row);
    }
}

impl Vouch for Vitals {
    fn verified_at(&self, worker: i64) -> Option<Timestamp> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&worker).copied()
    }
}

/// Probes workers, and keeps what it finds.
#[derive(Debug, Clone)]
pub struct Prober {
    store: Store,
    providers: Providers,
    clock: Clock,
    vitals: Arc<Vitals>,
    under_way: Arc<Mutex<HashSet<i64>>>,
}

impl Prober {
    /// Builds the prober of a state's workers.
    pub fn new(store: Store, providers: Providers, clock: Clock) -> Self {
        let (vitals, under_way) = (Arc::default(), Arc::default());
        Self { store, providers, clock, vitals, under_way }
    }

    /// Returns when workers were last well.
    pub fn vitals(&self) -> &Arc<Vitals> {
        &self.vitals
    }

    /// Probes the worker of this row, and records when that changes whether it may be leased; `None` when
    /// there is no such worker.
    ///
    /// # Errors
    /// When the state cannot be read or written, or the provider is not there.
    pub async fn verify(&self, row: i64) -> Result<Option<(Watched, Probed)>, PoolError> {
        let Some(worker) = self.store.watched(row).await? else {
            self.vitals.forget(row);
            return Ok(None);
        };
        let check = self.store.health_check(&worker.name.pool).await?.unwrap_or_default();
        let probed = self.probe(&worker, &check).await?;
        match &probed {
            Probed::Passed => {
                if worker.suspect {
                    self.store.mark_suspect(&worker, None).await?;
                }
            }
            Probed::Failed(why) | Probed::Gone(why) => {
                self.store.mark_suspect(&worker, Some(why.clone())).await?;
            }
            Probed::Unasked(_) => {}
        }
        Ok(Some((worker, probed)))
    }

    /// Opens the provider of a worker.
    pub(super) async fn open(&self, worker: &Watched) -> Result<SharedProvider, PoolError> {
        self.providers.get_there(&worker.provider).await
    }

    /// Probes a worker, and notes in memory what was found.
    pub(super) async fn probe(
        &self,
        worker: &Watched,
        check: &HealthCheckConfig,
    ) -> Result<Probed, PoolError> {
        let provider = self.open(worker).await?;
        let reference = WorkerRef {
            owner: self.store.deployment().clone(),
            name: worker.name.clone(),
            provider_id: worker.provider_id.clone(),
        };
        // What vouches for it is the moment before it was asked.
        let asked_at = self.clock.now();
        let probed = probe::probe(check, (&provider, None), &reference, &worker.addresses).await;
        match &probed {
            Probed::Passed => self.vitals.passed(worker.row, asked_at),
            Probed::Failed(_) | Probed::Gone(_) => self.vitals.forget(worker.row),
            // It is vouched for as long as it was.
            Probed::Unasked(_) => {}
        }
        Ok(probed)
    }

    /// Says that this worker is about to be verified; false when that is under way already.
    pub(super) fn begin(&self, row: i64) -> bool {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner).insert(row)
    }

    pub(super) fn finish(&self, row: i64) {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&row);
    }
}
