//! What a pool looks like from outside, from what is recorded.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;

use crate::config::StaticPoolConfig;
use crate::lease::LeaseId;
use crate::plan::{Failure, RecordedPool};
use crate::worker::{Generation, Phase, PoolId, Slot, WorkerName};

/// One pool as it is recorded.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StaticPoolState {
    /// The pool.
    pub pool: PoolId,
    /// The pool's serial.
    pub serial: u64,
    /// How many workers it should have; `None` once it is gone.
    pub fixed_size: Option<u32>,
    /// How many of them are ready.
    pub ready: u32,
    /// Ready workers as a share of the wanted ones, at most 1; 1 for a pool that wants none.
    pub availability: f64,
    /// How many workers are in each phase.
    pub phases: BTreeMap<Phase, u32>,
    /// When its config was last applied.
    pub applied_at: Option<Timestamp>,
    /// Where that config stood.
    pub origin: Option<String>,
    /// Who works on it now, in words.
    pub locked_by: Option<String>,
    /// Its workers.
    pub workers: Vec<WorkerStatus>,
}

/// One worker as it is recorded.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WorkerStatus {
    /// Its name.
    pub name: String,
    /// Its slot.
    pub slot: Slot,
    /// Which of the slot's workers it is.
    pub generation: Generation,
    /// Where it is in its life.
    pub phase: Phase,
    /// Since when.
    pub since: Timestamp,
    /// The name of its provider.
    pub provider: String,
    /// The provider's id.
    pub provider_id: Option<String>,
    /// Where it can be reached.
    pub addresses: Vec<String>,
    /// What else the provider says of it.
    pub attributes: BTreeMap<String, String>,
    /// What it runs.
    pub image: String,
    /// Why it failed, if it did.
    pub failure: Option<Failure>,
    /// Whether it gets no new lease.
    pub cordoned: bool,
    /// Whether it is wanted without a lease.
    pub draining: bool,
    /// Whether its latest probe failed.
    pub suspect: bool,
    /// Why it goes although nothing is wrong with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retired: Option<String>,
    /// How many leases it had.
    pub uses: u32,
    /// Its open lease.
    pub lease: Option<LeaseStatus>,
}

/// Who has a worker.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LeaseStatus {
    /// The lease.
    pub id: LeaseId,
    /// Its holder.
    pub holder: String,
    /// When it ends, unless it is renewed.
    pub expires_at: Timestamp,
}

impl StaticPoolState {
    /// Describes a pool that nothing is recorded of yet.
    pub fn empty(config: &StaticPoolConfig) -> Self {
        Self::of(&RecordedPool {
            id: config.pool_id.clone(),
            serial: 0,
            applied: None,
            workers: Vec::new(),
            last_generations: BTreeMap::new(),
            tombstones: BTreeMap::new(),
            locked_by: None,
        })
    }

    /// Describes a recorded pool.
    pub fn of(pool: &RecordedPool) -> Self {
        let mut phases: BTreeMap<Phase, u32> = BTreeMap::new();
        for worker in &pool.workers {
            *phases.entry(worker.phase).or_default() += 1;
        }
        let ready = phases.get(&Phase::Ready).copied().unwrap_or(0);
        let fixed_size = pool.applied.as_ref().map(|applied| applied.config.fixed_size);
        let wanted = fixed_size.unwrap_or(0);
        let share = f64::from(ready) / f64::from(wanted.max(1));
        Self {
            pool: pool.id.clone(),
            serial: pool.serial,
            fixed_size,
            ready,
            availability: if wanted == 0 { 1.0 } else { share.min(1.0) },
            phases,
            applied_at: pool.applied.as_ref().map(|applied| applied.at),
            origin: pool.applied.as_ref().map(|applied| applied.origin.clone()),
            locked_by: pool.locked_by.clone(),
            workers: pool.workers.iter().map(|worker| worker_status(pool, worker)).collect(),
        }
    }

    /// Returns whether exactly the wanted workers exist, and each is ready.
    pub fn is_converged(&self) -> bool {
        let all_ready = self.phases.keys().all(|phase| *phase == Phase::Ready);
        all_ready && self.fixed_size.unwrap_or(0) == self.ready
    }
}

fn worker_status(pool: &RecordedPool, worker: &crate::plan::RecordedWorker) -> WorkerStatus {
    let name = WorkerName::new(pool.id.clone(), worker.slot, worker.generation);
    WorkerStatus {
        name: name.to_string(),
        slot: worker.slot,
        generation: worker.generation,
        phase: worker.phase,
        since: worker.phase_since,
        provider: worker.provider.clone(),
        provider_id: worker.provider_id.clone(),
        addresses: worker.addresses.clone(),
        attributes: worker.attributes.clone(),
        image: worker.spec.spec.worker.image.clone(),
        failure: worker.failure.clone(),
        cordoned: worker.standing.cordoned,
        draining: worker.standing.draining,
        suspect: worker.standing.suspect,
        retired: worker.standing.retired.clone(),
        uses: worker.standing.uses,
        lease: worker.standing.lease.as_ref().map(|lease| LeaseStatus {
            id: lease.id,
            holder: lease.holder.clone(),
            expires_at: lease.expires_at,
        }),
    }
}
