//! What a worker should be ([`WorkerSpec`]) and what a provider saw of one ([`ObservedWorker`]).
//!
//! Plain data in both directions. A spec holds secrets in the clear, because the provider needs
//! them; its `Debug` leaves the environment's values out, and it is neither serialised nor stored.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::identity::WorkerName;

/// What a worker should be, as a provider gets it: complete, with secrets resolved.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct WorkerSpec {
    /// What to run: a program, a container image, a machine image.
    pub image: String,
    /// Arguments of the program; empty means the image's own default.
    pub command: Vec<String>,
    /// Processor cores.
    pub cpu_cores: u32,
    /// Memory in MiB.
    pub memory_mb: u32,
    /// Whether the worker may use a Docker engine.
    pub docker_enabled: bool,
    /// Key and value labels, returned by listings.
    pub labels: BTreeMap<String, String>,
    /// Plain tags, returned by listings.
    pub tags: Vec<String>,
    /// The environment, secrets included.
    pub environment: BTreeMap<String, String>,
    /// Which variables of the environment are secret.
    pub secrets: BTreeSet<String>,
    /// The network that it joins; `None` means the provider's own default.
    pub network: Option<String>,
    /// What only workers of this type of provider have.
    pub attributes: serde_json::Map<String, serde_json::Value>,
}

impl fmt::Debug for WorkerSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerSpec")
            .field("image", &self.image)
            .field("command", &self.command)
            .field("cpu_cores", &self.cpu_cores)
            .field("memory_mb", &self.memory_mb)
            .field("docker_enabled", &self.docker_enabled)
            .field("labels", &self.labels)
            .field("tags", &self.tags)
            .field("environment", &self.environment.keys().collect::<Vec<_>>())
            .field("secrets", &self.secrets)
            .field("network", &self.network)
            .field("attributes", &self.attributes)
            .finish()
    }
}

/// How far the provider says a worker is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ObservedStatus {
    /// It exists and is not running yet.
    Starting,
    /// It runs.
    Running,
    /// It is on its way out; it never runs again.
    Stopping,
}

/// One worker as a provider reports it. Dead and deleted workers are not reported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservedWorker {
    /// The provider's own id; unique within the provider, never used twice.
    pub provider_id: String,
    /// Who it is, read back from the object's tags.
    pub name: WorkerName,
    /// The attempt that created it, read back from the object's tags.
    pub attempt: u32,
    /// The operation that created it, read back from the object's tags.
    pub operation: i64,
    /// The hash of the spec it was created from, read back from the object's tags.
    pub spec_hash: String,
    /// How far it is.
    pub status: ObservedStatus,
    /// Its labels as they are now.
    pub labels: BTreeMap<String, String>,
    /// Its tags as they are now.
    pub tags: Vec<String>,
    /// Where it can be reached: host names or IP addresses, best first.
    pub addresses: Vec<String>,
    /// What else a holder may want to know: zone, process id, limits in force.
    pub attributes: BTreeMap<String, String>,
}

/// What one provider probe found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeOutcome {
    /// The provider vouches for the worker.
    Healthy,
    /// The provider knows that it is not well, and why; it may recover.
    Unhealthy(String),
    /// The worker is no longer there, and why; it never comes back.
    Gone(String),
}
