//! What a pool file says, as types: the user story's names and fields, with ours beside them.
//!
//! Field documentation is user documentation: it becomes the JSON Schema's descriptions, which editors
//! show. Invariant: a value that came through [`crate::config::load`] satisfies every stated bound.
//! Does not hold how a value got here; see [`crate::config::Origin`].

use std::collections::BTreeMap;
use std::fmt;

use pool_provider::SecretSource;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::leases::LeasesConfig;
use super::policy::{
    GuardsConfig, HealthCheckConfig, ProvisioningConfig, RemediationConfig, UpdateConfig,
};
use super::providers::NAME_PATTERN;
use crate::worker::PoolId;

/// A pool with a fixed number of workers that are always ready.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Static pool")]
pub struct StaticPoolConfig {
    /// Names the pool. It is part of every worker's name; a pool cannot be renamed in place.
    #[schemars(with = "String", regex(pattern = PoolId::PATTERN), example = &"ci-linux")]
    pub pool_id: PoolId,
    /// What kind of thing a worker is.
    #[schemars(example = &"process")]
    pub worker_type: WorkerType,
    /// How many workers the pool keeps.
    #[schemars(range(min = 0, max = 100_000), example = 3)]
    pub fixed_size: u32,
    /// What each worker is. A change of anything but labels and tags replaces the workers.
    pub worker_config: StaticWorkerConfig,
    /// Which provider creates the workers. By default `process` workers come from `local`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", regex(pattern = NAME_PATTERN), example = &"local")]
    pub provider: Option<String>,
    /// The network that workers join: a name that the engine knows, `none` for no network, `host` for the host's.
    /// By default the provider's `network`. Only containers have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(min = 1, max = 255), example = &"none")]
    pub network: Option<String>,
    /// How workers are created.
    #[serde(default)]
    pub provisioning: ProvisioningConfig,
    /// How a worker's health is measured.
    #[serde(default)]
    pub health_check: HealthCheckConfig,
    /// How workers are replaced when their configuration changes.
    #[serde(default)]
    pub update: UpdateConfig,
    /// How a server replaces workers that broke.
    #[serde(default)]
    pub remediation: RemediationConfig,
    /// How workers are leased to jobs.
    #[serde(default)]
    pub leases: LeasesConfig,
    /// What a run must not do to this pool.
    #[serde(default)]
    pub guards: GuardsConfig,
    /// Refuses every run that would leave the pool without workers. Recorded in the state, so that neither
    /// removing the pool from the files nor `protect: false` in the same change takes it off: apply
    /// `protect: false` first.
    #[serde(default)]
    #[schemars(example = true)]
    pub protect: bool,
}

impl StaticPoolConfig {
    /// Returns the name of the pool's provider: the one that is named, or its worker type's default.
    pub fn provider_name(&self) -> &str {
        self.provider.as_deref().unwrap_or(self.worker_type.default_provider())
    }
}

/// What kind of thing a worker is.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum WorkerType {
    /// A process on a machine that is there already.
    Process,
    /// A container.
    Container,
    /// A virtual machine.
    Vm,
    /// A machine of its own.
    Host,
}

impl WorkerType {
    /// Returns the type's name as it is written in files.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Container => "container",
            Self::Vm => "vm",
            Self::Host => "host",
        }
    }

    /// Returns the provider of pools that name none.
    pub fn default_provider(self) -> &'static str {
        match self {
            Self::Process => "local",
            Self::Container => "docker",
            Self::Vm => "ec2",
            Self::Host => "ssh",
        }
    }
}

impl fmt::Display for WorkerType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What each worker of a pool is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Worker")]
pub struct StaticWorkerConfig {
    /// What to run: for a process the program, for a container its image, for a VM its machine image.
    #[schemars(length(min = 1, max = 1024), example = "/bin/sleep")]
    pub image: String,
    /// Arguments of the program. Empty means the image's own default.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(example = ["infinity"])]
    pub command: Vec<String>,
    /// Processor cores of each worker.
    #[schemars(range(min = 1, max = 1024), example = 1)]
    pub cpu_cores: u32,
    /// Memory of each worker in MiB.
    #[schemars(range(min = 1, max = 16_777_216), example = 512)]
    pub memory_mb: u32,
    /// Lets workers use the Docker engine that runs them, through its socket: with it, a worker can do everything
    /// that the engine can, on its host as well.
    #[serde(default)]
    #[schemars(example = false)]
    pub docker_enabled: bool,
    /// Labels that jobs can select workers by. Changed in place where the provider can.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(example = serde_json::json!({ "os": "linux" }))]
    pub labels: BTreeMap<String, String>,
    /// Tags that jobs can select workers by. Changed in place where the provider can.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(example = ["ci"])]
    pub tags: Vec<String>,
    /// The worker's environment. A value is a text, or names where to read a secret:
    /// `{from_env: NAME}` or `{from_file: PATH}`, relative to where `pool` runs. Secrets are never stored
    /// or shown.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(example = serde_json::json!({ "STAGE": "ci", "TOKEN": { "from_env": "CI_TOKEN" } }))]
    pub environment: BTreeMap<String, EnvironmentValue>,
    /// What only workers of a provider of type `docker` have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "pool_docker::WorkerAttributes")]
    pub docker: Option<pool_docker::WorkerAttributes>,
    /// What only workers of a provider of type `ec2` have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "pool_ec2::WorkerAttributes")]
    pub ec2: Option<pool_ec2::WorkerAttributes>,
    /// What only workers of a provider of type `exec` have: whatever its executable understands. It is checked
    /// when planning, by what the executable says of itself.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    #[schemars(example = serde_json::json!({ "flavor": "m1.small" }))]
    pub attributes: Map<String, Value>,
}

/// The value of an environment variable: a text, or where to read a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum EnvironmentValue {
    /// The text itself.
    Plain(String),
    /// Where the secret is.
    Secret(SecretSource),
}

impl JsonSchema for EnvironmentValue {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "EnvironmentValue".into()
    }

    fn inline_schema() -> bool {
        true
    }

    // One schema without alternatives: validators then name the very key that is wrong.
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut schema = SecretSource::json_schema(generator);
        let what = "A text, or where to read a secret: {from_env: NAME} or {from_file: PATH}.";
        schema.insert("description".to_owned(), what.into());
        schema.insert("type".to_owned(), serde_json::json!(["string", "object"]));
        schema
    }
}
