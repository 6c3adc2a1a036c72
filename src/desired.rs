//! What one pool should be: a checked config, ready to compare.
//!
//! Input: a loaded pool and the keyed hashes of its secrets. Output: a [`DesiredPool`]. Total and pure.
//! Knows nothing of what is recorded or observed, and no secret's value.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::config::{
    EnvironmentValue, LoadedPool, ProviderConfig, SecretSource, StaticPoolConfig,
    StaticWorkerConfig, WorkerType,
};
use crate::worker::PoolId;

/// What a worker is made from: everything whose change may touch the worker itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Spec {
    /// What kind of thing it is.
    pub worker_type: WorkerType,
    /// The network that it joins: the pool's, else the provider's; `None` leaves it to the engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// Everything else; secrets are references.
    pub worker: StaticWorkerConfig,
}

impl Spec {
    /// Returns what the workers of a pool are made from that this provider creates.
    pub fn of(config: &StaticPoolConfig, provider: Option<&ProviderConfig>) -> Self {
        let of_provider =
            || provider.and_then(|provider| provider.kind.network().map(str::to_owned));
        Self {
            worker_type: config.worker_type,
            network: config.network.clone().or_else(of_provider),
            worker: config.worker_config.clone(),
        }
    }

    /// Returns whether two workers of one slot cannot run side by side: both want the same ports of one host.
    pub fn claims_host_ports(&self) -> bool {
        let docker = self.worker.docker.as_ref();
        docker.is_some_and(|own| own.ports.iter().any(|port| pool_docker::names_host_port(port)))
    }

    /// Returns whether the workers have no network of their own.
    pub fn is_on_host_network(&self) -> bool {
        self.network.as_deref() == Some("host")
    }

    /// Returns the hash that objects carry: of all that a replacement would change, secrets left out.
    ///
    /// The version in front keeps a later change of this rule from looking like a change of the spec
    /// (Karpenter's `drift-hash-versioning`).
    pub fn hash(&self) -> String {
        let mut replaced = self.clone();
        replaced.worker.labels = BTreeMap::new();
        replaced.worker.tags = Vec::new();
        replaced.worker.environment.retain(|_, value| matches!(value, EnvironmentValue::Plain(_)));
        let canonical = serde_json::to_vec(&replaced).unwrap_or_default();
        let digest = Sha256::digest(&canonical);
        let hex: String = digest[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        format!("v1:{hex}")
    }

    /// Returns the secrets that the worker's environment refers to, by variable name.
    pub fn secrets(&self) -> BTreeMap<&str, &SecretSource> {
        self.worker
            .environment
            .iter()
            .filter_map(|(name, value)| match value {
                EnvironmentValue::Secret(source) => Some((name.as_str(), source)),
                EnvironmentValue::Plain(_) => None,
            })
            .collect()
    }
}

/// The keyed hashes of a spec's secrets by variable name; `None` where one could not be read.
pub type SecretHashes = BTreeMap<String, Option<String>>;

/// One pool as it should be.
#[derive(Debug, Clone, PartialEq)]
pub struct DesiredPool {
    /// The pool.
    pub id: PoolId,
    /// The name of its provider.
    pub provider: String,
    /// How that is reached; `None` when whoever embeds the pool brings its own.
    pub provider_config: Option<ProviderConfig>,
    /// How many workers it keeps.
    pub size: u32,
    /// What each worker is.
    pub spec: Spec,
    /// The hashes of the workers' secrets.
    pub secrets: SecretHashes,
    /// The secrets that cannot be read now, and why.
    pub unreadable: BTreeMap<String, String>,
    /// The whole config, as it will be recorded.
    pub config: StaticPoolConfig,
    /// Where it stands, as `file:line:column`.
    pub place: String,
    /// Values that an environment variable decided, by dotted path.
    pub overridden: BTreeMap<String, String>,
}

impl DesiredPool {
    /// Builds the pool from what was loaded.
    pub fn new(loaded: &LoadedPool, secrets: SecretHashes) -> Self {
        let config = loaded.config.clone();
        Self {
            id: config.pool_id.clone(),
            provider: config.provider_name().to_owned(),
            provider_config: loaded.provider.clone(),
            size: config.fixed_size,
            spec: Spec::of(&config, loaded.provider.as_ref()),
            secrets,
            unreadable: BTreeMap::new(),
            config,
            place: loaded.place.clone(),
            overridden: loaded.overridden(),
        }
    }
}
