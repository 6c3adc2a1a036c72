//! The plan: an immutable list of steps, each with who, what, why and when. It is also the plan file.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::input::PlanMode;
use crate::config::{HealthCheckConfig, ProviderConfig, ProvisioningConfig, StaticPoolConfig};
use crate::desired::{SecretHashes, Spec};
use crate::worker::{DeploymentId, Generation, PoolId, Slot, WorkerName};

/// The version of the plan file. A minor step adds fields; a major step refuses older readers.
pub(super) const FORMAT_VERSION: &str = "1.0";

/// What to do, made for one past.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The version of this format.
    pub format_version: String,
    /// The state that it was made for; `None` when there was none yet.
    pub deployment: Option<DeploymentId>,
    /// When it was made.
    pub created_at: Timestamp,
    /// What kind of plan it is. `apply` does not look at it: the steps say everything.
    pub mode: PlanMode,
    /// Whether the providers were asked.
    pub observed: bool,
    /// Whether nothing is left to find out.
    pub complete: bool,
    /// The pools, by name.
    pub pools: Vec<PoolPlan>,
    /// Guards that were lifted when it was made, by name.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub overridden_guards: BTreeSet<String>,
    /// Why it must not be applied; empty when it may.
    pub refusals: Vec<Refusal>,
}

/// What to do to one pool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PoolPlan {
    /// The pool.
    pub pool: PoolId,
    /// The name of the provider that new workers come from.
    pub provider: String,
    /// How that provider is reached, to be recorded; `None` when whoever embeds the pool brings its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider_config: Option<ProviderConfig>,
    /// The pool's serial that the plan was made for; `None` when the state does not know the pool.
    pub serial: Option<u64>,
    /// The config to record; `None` when the pool goes.
    pub config: Option<StaticPoolConfig>,
    /// Where the config stands.
    pub place: String,
    /// Values that an environment variable decided, by dotted path.
    pub overridden: BTreeMap<String, String>,
    /// Settings that change without touching a worker.
    pub settings: Vec<FieldChange>,
    /// Everything in which what is asked for is not what is recorded, whether steps tell it or not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changed: Vec<FieldChange>,
    /// Whether the config is to be recorded: a run that is narrowed to slots does not.
    pub records_config: bool,
    /// Whether the run is narrowed to some of the pool's slots.
    pub narrowed: bool,
    /// The distinct specs of the workers before; steps refer to them by number.
    pub specs_before: Vec<Spec>,
    /// The steps, in order of wave and slot.
    pub steps: Vec<Step>,
    /// The workers that stay as they are: [`Reason::NoOpBecauseCurrent`].
    pub unchanged: Vec<KeptWorker>,
    /// Where recorded and observed differ.
    pub drift: Vec<Drift>,
    /// What cannot be decided yet.
    pub waiting: Vec<Waiting>,
    /// The hashes of the secrets that the plan was made with; `None` where one could not be read.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: SecretHashes,
    /// The secrets that could not be read, and why: without them no worker can be created.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub unreadable: BTreeMap<String, String>,
    /// Who else works on the pool, in words.
    pub locked_by: Option<String>,
    /// What every moment of the run keeps to.
    pub budget: Budget,
    /// How provider calls are made: as the files say, or as was recorded when the pool goes.
    pub provisioning: ProvisioningConfig,
    /// How new workers prove that they are well.
    pub health_check: HealthCheckConfig,
    /// How long the run waits for jobs that have workers which are to go.
    #[serde(default)]
    pub drain_timeout: Duration,
}

/// The bounds that hold at every moment of a run; checked again when an operation is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Budget {
    /// At most so many workers exist.
    pub max_total: u32,
    /// No step makes fewer workers ready than this.
    pub min_ready: u32,
}

/// One entry of a plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Steps of one wave run together; a wave begins when the one before is through.
    pub wave: u32,
    /// Whether the waves after this one wait for its success: it is part of a rolling replacement.
    pub gates: bool,
    /// Whether nothing of it may begin while a job has the worker that goes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub after_job: bool,
    /// The slot.
    pub slot: Slot,
    /// What is done.
    pub action: Action,
    /// Why.
    pub reason: Reason,
    /// The worker that comes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub create: Option<NewWorker>,
    /// The worker that changes in place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update: Option<OldWorker>,
    /// Workers that do not serve and go before anything else: the slot must be free of open creates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reap: Vec<OldWorker>,
    /// The workers that go, before or after the new one comes, as the action says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub delete: Vec<OldWorker>,
    /// Which fields differ.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<FieldChange>,
    /// The spec of the worker before, as a number into [`PoolPlan::specs_before`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<usize>,
}

/// What a step does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// A worker comes.
    Create,
    /// A worker changes and stays.
    Update,
    /// A worker comes and another goes.
    Replace(ReplaceOrder),
    /// A worker goes.
    Delete,
    /// A worker that exists is recorded as ours.
    Adopt,
}

/// Which comes first in a replacement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplaceOrder {
    /// The new worker is ready before the old one goes.
    CreateFirst,
    /// The old worker is gone before the new one comes.
    DestroyFirst,
}

/// Why a step is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The worker is what the files ask for.
    NoOpBecauseCurrent,
    /// The slot has no worker yet.
    CreateBecauseEmpty,
    /// The slot's worker is recorded and no longer observed.
    CreateBecauseMissing,
    /// An earlier attempt to create the worker failed and left nothing.
    CreateBecauseFailed,
    /// A run was interrupted while it created the worker.
    CreateBecauseInterrupted,
    /// Labels or tags changed in the files.
    UpdateBecauseChanged,
    /// Labels or tags changed at the provider.
    UpdateBecauseDrift,
    /// The spec changed in a way that needs a new worker.
    ReplaceBecauseSpecChanged,
    /// The worker is no longer what was created.
    ReplaceBecauseDrift,
    /// The worker is unhealthy.
    ReplaceBecauseUnhealthy,
    /// The worker's creation failed and left something.
    ReplaceBecauseFailed,
    /// The worker is used up: its lease's end said so, or it could not be cleaned.
    ReplaceBecauseRetired,
    /// A run was interrupted while it replaced the worker.
    ReplaceBecauseInterrupted,
    /// `--replace` asks for it.
    ReplaceByRequest,
    /// The pool became smaller.
    DeleteBecauseScaleIn,
    /// The files no longer name the pool.
    DeleteBecausePoolRemoved,
    /// The worker bears our tag and is not recorded.
    DeleteBecauseOrphan,
    /// The worker bears our tag, and this state never meant to create it: the state may be older than
    /// the worker.
    DeleteBecauseUnknown,
    /// A newer worker of the slot has taken its place.
    DeleteBecauseSuperseded,
    /// A run was interrupted while it deleted the worker.
    DeleteBecauseInterrupted,
    /// `destroy` asks for it.
    DeleteByRequest,
    /// A run was interrupted after the worker was created.
    AdoptInterrupted,
    /// The worker bears our tag, is not recorded, and is what the slot needs.
    AdoptOrphan,
}

impl Reason {
    /// Returns the reason's stable name.
    pub fn name(self) -> String {
        let name = serde_json::to_value(self).ok();
        name.and_then(|name| name.as_str().map(str::to_owned)).unwrap_or_default()
    }

    /// Returns whether the step only finishes what an interrupted run left behind.
    pub fn is_left_behind(self) -> bool {
        matches!(
            self,
            Self::CreateBecauseInterrupted
                | Self::ReplaceBecauseInterrupted
                | Self::DeleteBecauseOrphan
                | Self::DeleteBecauseSuperseded
                | Self::DeleteBecauseInterrupted
                | Self::AdoptInterrupted
                | Self::AdoptOrphan
        )
    }
}

/// A worker that stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptWorker {
    /// Its slot.
    pub slot: Slot,
    /// Its generation.
    pub generation: Generation,
}

/// A worker that comes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewWorker {
    /// Its generation.
    pub generation: Generation,
    /// How it comes.
    pub origin: NewWorkerOrigin,
    /// The provider's id, when it exists already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider_id: Option<String>,
}

/// How a new worker comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NewWorkerOrigin {
    /// It is created.
    Fresh,
    /// Its create call is sent again, with the same token.
    Resend,
    /// It exists, and its create call's answer was not recorded.
    Interrupted,
    /// It is recorded, and has yet to pass its health check.
    Unverified,
    /// It exists, and nothing of it is recorded.
    Orphan,
}

/// A worker that goes or changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OldWorker {
    /// Its generation.
    pub generation: Generation,
    /// The name of its provider.
    pub provider: String,
    /// The provider's id, when it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider_id: Option<String>,
    /// The latest attempt to create it.
    pub attempt: u32,
    /// Whether the state has it.
    pub recorded: bool,
    /// Whether the provider reports it.
    pub observed: bool,
    /// Whether a job had it when the plan was made: it is drained before it goes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub leased: bool,
}

/// One field that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldChange {
    /// The field, dotted, as in the files.
    pub path: String,
    /// What it was; `None` when it was not there.
    pub before: Option<String>,
    /// What it will be; `None` when it goes.
    pub after: Option<String>,
    /// Whether this needs a new worker.
    pub forces_replacement: bool,
}

/// A difference between recorded and observed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drift {
    /// The worker.
    pub worker: WorkerName,
    /// Fields that changed at the provider; empty when the worker is gone.
    pub changes: Vec<FieldChange>,
}

/// A slot that cannot be decided yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// The worker whose fate is open.
    pub worker: WorkerName,
    /// When it can be decided; `None` when only a complete listing helps.
    pub until: Option<Timestamp>,
}

/// Why a plan must not be applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "guard")]
pub enum Refusal {
    /// The pool is protected and would be deleted.
    Protect {
        /// The pool.
        pool: PoolId,
    },
    /// More workers would go than `guards.max_destroy` allows.
    MaxDestroy {
        /// The pool.
        pool: PoolId,
        /// How many would go without replacement.
        planned: u32,
        /// How many may.
        limit: u32,
    },
    /// The files ask for nothing, and something is recorded.
    Empty,
}

/// How many workers come, change and go; a replacement counts as one coming and one going.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Workers to add.
    pub add: u32,
    /// Workers to change in place, or to adopt.
    pub change: u32,
    /// Workers to destroy.
    pub destroy: u32,
}

impl Plan {
    /// Counts the plan's steps.
    pub fn summary(&self) -> Summary {
        self.pools.iter().flat_map(|pool| &pool.steps).map(Step::summary).sum()
    }

    /// Returns whether applying it would do nothing.
    pub fn is_empty(&self) -> bool {
        self.pools.iter().all(PoolPlan::is_empty)
    }

    /// Returns whether it may be applied.
    pub fn is_applyable(&self) -> bool {
        self.refusals.is_empty() && !self.is_empty()
    }
}

impl std::iter::Sum for Summary {
    fn sum<I: Iterator<Item = Self>>(parts: I) -> Self {
        parts.fold(Self::default(), |sum, part| Self {
            add: sum.add + part.add,
            change: sum.change + part.change,
            destroy: sum.destroy + part.destroy,
        })
    }
}

impl Step {
    /// Counts the workers that come, change and go. A replacement is at least one of each of the two; of
    /// leftovers only those count that are there.
    pub fn summary(&self) -> Summary {
        let there = self.reap.iter().chain(&self.delete).filter(|old| old.observed).count();
        let there = u32::try_from(there).unwrap_or(u32::MAX);
        match self.action {
            Action::Create => Summary { add: 1, change: 0, destroy: there },
            Action::Update | Action::Adopt => Summary { add: 0, change: 1, destroy: there },
            Action::Replace(_) => Summary { add: 1, change: 0, destroy: there.max(1) },
            Action::Delete => Summary { add: 0, change: 0, destroy: there.max(1) },
        }
    }
}

impl PoolPlan {
    /// Returns whether applying it would do nothing.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty() && self.settings.is_empty()
    }

    /// Returns the name of the pool's worker in `slot` of `generation`.
    pub fn worker(&self, slot: Slot, generation: Generation) -> WorkerName {
        WorkerName::new(self.pool.clone(), slot, generation)
    }

    /// Returns what new workers are made from; `None` when the pool goes.
    pub fn spec(&self) -> Option<Spec> {
        self.config.as_ref().map(|config| Spec::of(config, self.provider_config.as_ref()))
    }
}
