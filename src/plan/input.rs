//! The inputs of a plan: what is recorded, what is observed, and what was asked on the command line.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use pool_provider::{Description, ObservedWorker};
use serde::{Deserialize, Serialize};

use crate::config::{ProviderConfig, StaticPoolConfig};
use crate::desired::{DesiredPool, SecretHashes, Spec};
use crate::lease::LeaseId;
use crate::worker::{Address, DeploymentId, Generation, Phase, PoolId, Slot};

/// Everything that a plan is made from.
#[derive(Debug)]
pub struct PlanInput<'a> {
    /// Whose plan it is; `None` when there is no state yet.
    pub deployment: Option<&'a DeploymentId>,
    /// What the files ask for.
    pub desired: &'a [DesiredPool],
    /// What the state says.
    pub recorded: &'a [RecordedPool],
    /// What each provider reports, by its name.
    pub observed: &'a BTreeMap<String, Observation>,
    /// What was asked on the command line.
    pub options: &'a PlanOptions,
    /// The time of the plan.
    pub now: Timestamp,
}

/// What was asked on the command line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PlanOptions {
    /// Converge, or destroy.
    pub mode: PlanMode,
    /// In destroy mode: only these pools; all recorded ones when it is `None`.
    pub only_pools: Option<BTreeSet<PoolId>>,
    /// Only these pools and slots; everything when empty.
    pub targets: Vec<Address>,
    /// Replace the workers of these pools and slots, whether they changed or not.
    pub replace: Vec<Address>,
    /// Whether an empty desired set may delete everything.
    pub allow_empty: bool,
    /// Guards that are lifted for this run, by name.
    pub override_guards: BTreeSet<String>,
}

/// What kind of plan is wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlanMode {
    /// Make everything as the files say.
    #[default]
    Converge,
    /// Delete what is recorded.
    Destroy,
}

/// What a provider reports of the deployment's workers.
#[derive(Debug, Clone)]
pub enum Observation {
    /// It was asked.
    Listed(Listed),
    /// It was not asked: what is recorded is taken for real.
    NotAsked(Description),
}

/// A whole listing.
#[derive(Debug, Clone)]
pub struct Listed {
    /// What the provider can do.
    pub description: Description,
    /// Every worker in it.
    pub workers: Vec<ObservedWorker>,
    /// Whether it shows everything: if not, absence proves nothing.
    pub complete: bool,
}

impl Observation {
    /// Returns what the provider can do.
    pub fn description(&self) -> &Description {
        match self {
            Self::Listed(listed) => &listed.description,
            Self::NotAsked(description) => description,
        }
    }

    /// Returns whether the provider was asked.
    pub fn was_asked(&self) -> bool {
        matches!(self, Self::Listed(_))
    }

    /// Returns whether absence from it proves something.
    pub fn is_complete(&self) -> bool {
        match self {
            Self::Listed(listed) => listed.complete,
            Self::NotAsked(_) => true,
        }
    }

    /// Returns the workers that it shows.
    pub fn workers(&self) -> &[ObservedWorker] {
        match self {
            Self::Listed(listed) => &listed.workers,
            Self::NotAsked(_) => &[],
        }
    }
}

/// One pool as the state has it.
#[derive(Debug, Clone, PartialEq)]
pub struct RecordedPool {
    /// The pool.
    pub id: PoolId,
    /// Moved by every change of the pool's inventory.
    pub serial: u64,
    /// The config as last applied.
    pub applied: Option<AppliedConfig>,
    /// Its workers, tombstones left out, in order of slot and generation.
    pub workers: Vec<RecordedWorker>,
    /// The last generation of each slot that ever had a worker.
    pub last_generations: BTreeMap<Slot, Generation>,
    /// The latest deleted worker of each slot, and since when it is gone.
    pub tombstones: BTreeMap<Slot, (Generation, Timestamp)>,
    /// Who works on it now, in words, when that is somebody else who is alive.
    pub locked_by: Option<String>,
}

impl RecordedPool {
    /// Returns whether nothing is left of the pool but the generations of its slots.
    pub fn is_gone(&self) -> bool {
        self.applied.is_none() && self.workers.is_empty()
    }
}

/// A config as it was applied.
#[derive(Debug, Clone, PartialEq)]
pub struct AppliedConfig {
    /// The config.
    pub config: StaticPoolConfig,
    /// How its provider is reached, where that is recorded.
    pub provider: Option<ProviderConfig>,
    /// When it was applied.
    pub at: Timestamp,
    /// Where it came from: `file:line:column`.
    pub origin: String,
}

/// One worker as the state has it.
#[derive(Debug, Clone, PartialEq)]
pub struct RecordedWorker {
    /// Where it lives.
    pub slot: Slot,
    /// Which of the slot's workers it is.
    pub generation: Generation,
    /// Where it is in its life.
    pub phase: Phase,
    /// Since when.
    pub phase_since: Timestamp,
    /// The name of its provider.
    pub provider: String,
    /// The provider's id, once it is known.
    pub provider_id: Option<String>,
    /// The latest attempt to create it.
    pub attempt: u32,
    /// What it was made from.
    pub spec: Arc<RecordedSpec>,
    /// Where it can be reached.
    pub addresses: Vec<String>,
    /// What else the provider says of it.
    pub attributes: BTreeMap<String, String>,
    /// Why it failed, if it did.
    pub failure: Option<Failure>,
    /// The operation on it whose outcome is open.
    pub operation: Option<OpenOperation>,
    /// How it stands with leases.
    pub standing: Standing,
}

/// How a worker stands with leases.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "the flags of a row, each by itself")]
pub struct Standing {
    /// Its row.
    pub row: i64,
    /// Whether it gets no new lease.
    pub cordoned: bool,
    /// Whether it is wanted without a lease.
    pub draining: bool,
    /// Whether an update wants that, and not a person.
    pub drained_by_update: bool,
    /// Whether its latest probe failed.
    pub suspect: bool,
    /// Why it goes although nothing is wrong with it.
    pub retired: Option<String>,
    /// Until when its phase may last.
    pub deadline: Option<Timestamp>,
    /// How many leases it had.
    pub uses: u32,
    /// Its open lease.
    pub lease: Option<RecordedLease>,
}

/// An open lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedLease {
    /// Its name.
    pub id: LeaseId,
    /// Who holds it.
    pub holder: String,
    /// Until when, unless it is renewed.
    pub expires_at: Timestamp,
}

/// What a recorded worker was made from.
#[derive(Debug, Clone, PartialEq)]
pub struct RecordedSpec {
    /// The spec.
    pub spec: Spec,
    /// Its hash, as the worker's object carries it.
    pub hash: String,
    /// The hashes of its secrets.
    pub secrets: SecretHashes,
}

/// Why a worker failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The error's stable name.
    pub code: String,
    /// What happened, for a person.
    pub message: String,
}

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names say it")]
pub enum OperationKind {
    Create,
    Update,
    Delete,
}

/// How far an open operation is known to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperationState {
    /// The call may have been sent.
    Intended,
    /// The call was sent and its answer lost.
    Unknown,
}

/// An operation whose outcome is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenOperation {
    /// Its number.
    pub id: i64,
    /// What it does.
    pub kind: OperationKind,
    /// How far it is known to be.
    pub state: OperationState,
    /// Which attempt it is.
    pub attempt: u32,
    /// When the call was last sent, or was about to be.
    pub sent_at: Timestamp,
}

impl PlanInput<'_> {
    /// Returns whether the plan may say anything of this pool.
    pub(super) fn is_in_scope(&self, pool: &PoolId) -> bool {
        let options = self.options;
        let chosen = match (&options.only_pools, options.mode) {
            (Some(only), PlanMode::Destroy) => only.contains(pool),
            (None, _) | (Some(_), PlanMode::Converge) => true,
        };
        let targets = &options.targets;
        chosen && (targets.is_empty() || targets.iter().any(|target| target.pool == *pool))
    }

    /// Returns whether the run is narrowed to this slot, or not narrowed at all.
    pub(super) fn targets_slot(&self, pool: &PoolId, slot: Slot) -> bool {
        let targets = &self.options.targets;
        targets.is_empty() || targets.iter().any(|target| target.covers(pool, slot))
    }

    /// Returns whether the run is narrowed to some slots of this pool.
    pub(super) fn is_narrowed_within(&self, pool: &PoolId) -> bool {
        let mut own = self.options.targets.iter().filter(|target| target.pool == *pool).peekable();
        own.peek().is_some() && own.all(|target| target.slot.is_some())
    }

    /// Returns whether a replacement of this slot was asked for.
    pub(super) fn replacement_is_requested(&self, pool: &PoolId, slot: Slot) -> bool {
        self.options.replace.iter().any(|address| address.covers(pool, slot))
    }

    /// Returns what is observed, by pool, then by slot and generation.
    pub(super) fn observed_by_pool(&self) -> BTreeMap<&PoolId, ObservedSlots<'_>> {
        let mut by_pool: BTreeMap<&PoolId, ObservedSlots<'_>> = BTreeMap::new();
        for (provider, observation) in self.observed {
            for worker in observation.workers() {
                by_pool
                    .entry(&worker.name.pool)
                    .or_default()
                    .entry(worker.name.slot)
                    .or_default()
                    .push(Seen { provider, worker });
            }
        }
        by_pool
    }
}

/// An observed worker with the provider that reports it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen<'a> {
    pub(super) provider: &'a str,
    pub(super) worker: &'a ObservedWorker,
}

/// What is observed in each slot of a pool.
pub(super) type ObservedSlots<'a> = BTreeMap<Slot, Vec<Seen<'a>>>;
