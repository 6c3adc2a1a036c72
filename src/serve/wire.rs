//! What goes over the wire: the bodies of `/v1`. Field documentation is the API's documentation: it
//! becomes the OpenAPI description.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::{HumanDuration, StaticPoolConfig, WorkerType};
use crate::lease::Outcome;

/// Asks for workers.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LeaseRequest {
    /// The pool whose workers will do. Either this or `selector`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub pool: Option<String>,
    /// Which workers will do, in whatever pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "SelectorBody")]
    pub selector: Option<SelectorBody>,
    /// How many workers; all or none.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 1000))]
    pub count: u32,
    /// For how long, unless it is renewed; the pool's `leases.default_ttl` by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "HumanDuration")]
    pub ttl: Option<HumanDuration>,
    /// How long to wait for workers that are not free now.
    #[serde(default = "no_time")]
    pub wait: HumanDuration,
    /// Requests that wait are served by priority, larger ones first, then by arrival.
    #[serde(default)]
    pub priority: i32,
    /// Who will hold the lease.
    #[schemars(length(min = 1, max = 256))]
    pub holder: String,
    /// What for, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(max = 1024))]
    pub purpose: Option<String>,
    /// Whatever else the holder wants to find on the lease.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub metadata: Map<String, Value>,
    /// Names of workers that will not do, because an earlier attempt failed there.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub avoid_workers: BTreeSet<String>,
}

fn one() -> u32 {
    1
}

fn no_time() -> HumanDuration {
    HumanDuration::from_secs(0)
}

/// Says which workers will do: those that meet everything that is given.
#[derive(Debug, Clone, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SelectorBody {
    /// Of this pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub pool: Option<String>,
    /// Of this kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "WorkerType")]
    pub worker_type: Option<WorkerType>,
    /// With all of these labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// With all of these tags.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub tags: BTreeSet<String>,
    /// With at least so many processor cores.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u32")]
    pub min_cpu_cores: Option<u32>,
    /// With at least so much memory, in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u32")]
    pub min_memory_mb: Option<u32>,
    /// With a Docker engine, or without.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "bool")]
    pub docker: Option<bool>,
}

/// The answer to a request for workers.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
pub struct LeaseAnswer {
    /// One lease a worker.
    pub leases: Vec<LeaseBody>,
    /// How long the request waited, in milliseconds.
    pub waited_ms: u64,
    /// Whether a request with this idempotency key was answered with these leases before.
    pub replay: bool,
}

/// The exclusive right to a worker, for a time.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
pub struct LeaseBody {
    /// Names the lease.
    pub id: String,
    /// Grows with every lease: whoever guards a resource refuses fences lower than the highest that it saw.
    pub fence: i64,
    /// The worker's pool.
    pub pool: String,
    /// The worker's slot in the pool.
    pub slot: u32,
    /// Which of the slot's workers it is.
    pub generation: u32,
    /// The worker.
    pub worker: LeasedWorker,
    /// Who holds the lease.
    pub holder: String,
    /// What for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub purpose: Option<String>,
    /// When it began.
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub granted_at: Timestamp,
    /// When it ends, unless it is renewed.
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub expires_at: Timestamp,
    /// When the worker was last known to be well, at the grant.
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub verified_at: Timestamp,
    /// What vouched for it: `provider`, `tcp`, `http` or `exec`.
    pub verified_by: String,
    /// How many leases the worker had, this one included.
    pub uses: u32,
    /// What the holder wanted to find here.
    pub metadata: Map<String, Value>,
    /// What became of the worker meanwhile, if something did. The lease goes on.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub trouble: Option<String>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub ended_at: Option<Timestamp>,
    /// How it ended: `ok`, `job_failed`, `infra_failed`, `expired`, `abandoned`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub ending: Option<String>,
}

/// A worker as its lease tells it.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
pub struct LeasedWorker {
    /// Its name: pool, slot, generation.
    pub name: String,
    /// Where it can be reached.
    pub addresses: Vec<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its tags.
    pub tags: Vec<String>,
    /// What else its provider says of it.
    pub attributes: BTreeMap<String, String>,
}

/// Makes a lease last for another while.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RenewRequest {
    /// The lease's fence.
    pub fence: i64,
    /// For how long from now; the pool's `leases.default_ttl` by default. A lease never gets shorter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "HumanDuration")]
    pub ttl: Option<HumanDuration>,
}

/// The open leases.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
pub struct LeaseList {
    /// Oldest first.
    pub leases: Vec<LeaseBody>,
}

/// Which leases are listed.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LeaseQuery {
    /// Of this pool only.
    pub pool: Option<String>,
    /// Of this holder only.
    pub holder: Option<String>,
}

/// How a job went.
#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReleaseQuery {
    /// `ok`, `job_failed`, or `infra_failed` when the worker is to blame.
    #[serde(default)]
    #[schemars(with = "String")]
    pub outcome: Outcome,
}

/// The pools.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct PoolList {
    /// By name.
    pub pools: Vec<PoolBody>,
}

/// One pool.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct PoolBody {
    /// Names the pool.
    pub id: String,
    /// Moved by every change of the inventory; not by leases, probes and cordons.
    pub serial: u64,
    /// The config as it was last applied; absent when the pool goes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "serde_json::Value")]
    pub config: Option<StaticPoolConfig>,
    /// When it was applied.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub applied_at: Option<Timestamp>,
    /// Where that config stood: `file:line:column`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub origin: Option<String>,
    /// How many workers it keeps.
    pub fixed_size: u32,
    /// How many workers are in each phase.
    pub phases: BTreeMap<String, u32>,
    /// How many are leased.
    pub leased: u32,
    /// How many could be leased now, freshness of their probes apart.
    pub free: u32,
    /// Ready workers as a share of `fixed_size`, at most 1.
    pub availability: f64,
    /// Who waits for workers.
    pub queue: QueueBody,
    /// The server's latest look at the pool; absent before the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "ReconcileBody")]
    pub last_reconcile: Option<ReconcileBody>,
    /// Why the server does not do as its files say, if it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub config_error: Option<String>,
}

/// Who waits for workers.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct QueueBody {
    /// How many requests.
    pub length: usize,
    /// For how long the first one has waited, in milliseconds.
    pub oldest_wait_ms: u64,
}

/// One look at a pool.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct ReconcileBody {
    /// When it ended.
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub at: Timestamp,
    /// What went wrong, if something did.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub error: Option<String>,
}

/// Which workers are listed.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WorkerQuery {
    /// Of this pool only.
    pub pool: Option<String>,
}

/// From where events are wanted.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EventQuery {
    /// Only events after this one; from now on when it is absent.
    pub after: Option<i64>,
}

/// How much is told.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
pub struct ReadyQuery {
    /// Present: every pool is told of.
    pub verbose: Option<String>,
}
