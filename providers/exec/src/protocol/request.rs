//! What an executable is asked for, and the secrets that go with it.

use std::collections::{BTreeMap, BTreeSet};

use pool_provider::{CreateRequest, DeploymentId, Mask, WorkerName, WorkerRef, WorkerSpec};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// What an executable reads on its standard input.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Request {
    /// The version of the protocol: 1.
    pub protocol: u32,
    /// What the provider is called in pool files.
    pub provider: String,
    /// The provider's `config` as the pool file has it.
    pub config: Map<String, Value>,
    /// How long this call may take, in milliseconds. Then the executable's process group is sent SIGTERM, and a grace
    /// later SIGKILL. The same happens when the caller is gone.
    pub deadline_ms: u64,
    /// What is asked for.
    #[serde(flatten)]
    pub method: Method,
}

/// What is asked for: `method`, and its `params`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "method", content = "params", rename_all = "snake_case")]
pub enum Method {
    /// Say what this provider can do. The answer is a `Described`. Asked before anything else in each run.
    Describe {},
    /// Create a worker. The answer is a `Worker`, running or starting. A repeat of the same attempt (same
    /// `token`) must not make a second worker.
    Create(Box<Create>),
    /// List the workers of one owner. The answer is a `Listed`.
    List(List),
    /// Look at one worker. The answer is a `Worker`, or the error `not_found`. Without this method, `list` serves.
    Get(Named),
    /// Set labels and tags to exactly these. The answer is a `Worker`.
    Update(Update),
    /// Delete a worker, with all that it started. The answer has no `result`. What is gone already is a success.
    Delete(Delete),
    /// Ask whether a worker is well. The answer is a `Probed`. Without this method, `get` serves.
    Probe(Named),
    /// End what a worker runs and start it anew, under its id. The answer is a `Worker`.
    Reset(Box<Reset>),
}

/// One worker, as it is named in requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Named {
    /// The deployment that owns it: 32 hex digits. Another owner's workers are not to be touched, nor shown.
    #[schemars(with = "String")]
    pub owner: DeploymentId,
    /// Its name within the deployment: `<pool>-<slot>-<generation>`.
    pub name: String,
    /// Its name between deployments too: fit for the name of an object.
    pub object_name: String,
    /// The pool.
    pub pool: String,
    /// The position in the pool, from 0.
    pub slot: u32,
    /// The nth worker of that slot, from 1.
    pub generation: u32,
    /// The id that the executable gave it, where it is known. Without one, every object of that name is meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider_id: Option<String>,
}

impl From<&WorkerRef> for Named {
    fn from(worker: &WorkerRef) -> Self {
        let provider_id = worker.provider_id.clone();
        Self { provider_id, ..Self::new(&worker.owner, &worker.name) }
    }
}

impl Named {
    fn new(owner: &DeploymentId, name: &WorkerName) -> Self {
        Self {
            owner: owner.clone(),
            name: name.to_string(),
            object_name: name.object_name(owner),
            pool: name.pool.to_string(),
            slot: name.slot.0,
            generation: name.generation.0,
            provider_id: None,
        }
    }
}

/// The worker that is to be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Create {
    /// Who it will be.
    #[serde(flatten)]
    pub worker: Named,
    /// Which attempt this is; it grows only on proof that the one before left nothing behind.
    pub attempt: u32,
    /// The operation that asks.
    pub operation: i64,
    /// Equal for repeats of one attempt, different otherwise: for engines that know idempotency tokens.
    pub token: String,
    /// To be kept with the worker, and shown by `list`.
    pub spec_hash: String,
    /// What it should be.
    pub spec: Spec,
}

/// What a worker should be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Spec {
    /// What to run.
    pub image: String,
    /// Arguments of the program; empty means the image's own default.
    pub command: Vec<String>,
    /// Processor cores.
    pub cpu_cores: u32,
    /// Memory in MiB.
    pub memory_mb: u32,
    /// Whether the worker may use a Docker engine.
    pub docker_enabled: bool,
    /// Labels; `list` shows them.
    pub labels: BTreeMap<String, String>,
    /// Tags; `list` shows them.
    pub tags: Vec<String>,
    /// The worker's environment without what is secret in it.
    pub environment: BTreeMap<String, String>,
    /// Variables of the worker's environment that are secret: their values are read from `POOL_SECRETS_FD`.
    pub secret_environment: BTreeSet<String>,
    /// The worker's `attributes` as the pool file has them.
    pub attributes: Map<String, Value>,
}

impl From<&WorkerSpec> for Spec {
    fn from(spec: &WorkerSpec) -> Self {
        let plain = spec.environment.iter().filter(|(name, _)| !spec.secrets.contains(*name));
        Self {
            image: spec.image.clone(),
            command: spec.command.clone(),
            cpu_cores: spec.cpu_cores,
            memory_mb: spec.memory_mb,
            docker_enabled: spec.docker_enabled,
            labels: spec.labels.clone(),
            tags: spec.tags.clone(),
            environment: plain.map(|(name, value)| (name.clone(), value.clone())).collect(),
            secret_environment: spec.secrets.clone(),
            attributes: spec.attributes.clone(),
        }
    }
}

/// Whose workers are listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct List {
    /// The deployment.
    #[schemars(with = "String")]
    pub owner: DeploymentId,
    /// Where the listing goes on: the `next` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page: Option<String>,
}

/// A worker's new labels and tags.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Update {
    /// Which worker.
    #[serde(flatten)]
    pub worker: Named,
    /// All labels that it should have.
    pub labels: BTreeMap<String, String>,
    /// All tags that it should have.
    pub tags: Vec<String>,
}

/// The worker that is to go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Delete {
    /// Which worker.
    #[serde(flatten)]
    pub worker: Named,
    /// The latest attempt that is meant; later ones of the same name are to be left alone.
    pub attempt: u32,
}

/// The worker that is to be as new.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Reset {
    /// Which worker.
    #[serde(flatten)]
    pub worker: Named,
    /// What it is made from.
    pub spec: Spec,
}

/// What is read from the file descriptor that `POOL_SECRETS_FD` names: one JSON object, up to its end.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct SecretValues {
    /// The provider's own `secrets`.
    pub provider: BTreeMap<String, String>,
    /// The values of the worker's `secret_environment`.
    pub worker: BTreeMap<String, String>,
}

impl SecretValues {
    /// Returns what keeps these values out of what is told and kept.
    pub(crate) fn mask(&self) -> Mask {
        Mask::new(self.provider.values().chain(self.worker.values()).map(String::as_str))
    }
}

impl Method {
    /// Builds a create.
    pub(crate) fn create(request: &CreateRequest) -> Self {
        Self::Create(Box::new(Create {
            worker: Named::new(&request.owner, &request.name),
            attempt: request.attempt,
            operation: request.operation,
            token: request.token.clone(),
            spec_hash: request.spec_hash.clone(),
            spec: (&request.spec).into(),
        }))
    }

    /// Returns the method's name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Describe {} => "describe",
            Self::Create(_) => "create",
            Self::List(_) => "list",
            Self::Get(_) => "get",
            Self::Update(_) => "update",
            Self::Delete(_) => "delete",
            Self::Probe(_) => "probe",
            Self::Reset(_) => "reset",
        }
    }

    /// Returns whether the call may change something: without an answer its outcome is unknown then.
    pub(crate) fn changes(&self) -> bool {
        match self {
            Self::Create(_) | Self::Update(_) | Self::Delete(_) | Self::Reset(_) => true,
            Self::Describe {} | Self::List(_) | Self::Get(_) | Self::Probe(_) => false,
        }
    }

    /// Returns the worker that it is about.
    pub(crate) fn worker(&self) -> Option<&Named> {
        match self {
            Self::Describe {} | Self::List(_) => None,
            Self::Create(create) => Some(&create.worker),
            Self::Get(worker) | Self::Probe(worker) => Some(worker),
            Self::Update(update) => Some(&update.worker),
            Self::Delete(delete) => Some(&delete.worker),
            Self::Reset(reset) => Some(&reset.worker),
        }
    }
}
