//! Reads secrets where a config says they are: to hash them when planning, to use them when creating
//! or resetting a worker.
//!
//! A secret's value goes to the provider's call and nowhere else.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::sync::Arc;

use pool_provider::WorkerSpec;

use crate::apply::Resolved;
use crate::config::{EnvironmentValue, ProviderConfig, SecretSource, StaticPoolConfig};
use crate::desired::{SecretHashes, Spec};
use crate::state::SecretKey;

/// Where secrets can be read: the environment of this process, and files.
#[derive(Clone)]
pub struct Secrets {
    environment: Arc<BTreeMap<String, String>>,
    key: Option<SecretKey>,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets")
    }
}

impl Secrets {
    /// Reads from `environment` and from files, and hashes with `key`; without a key, nothing is known of
    /// any secret.
    pub fn new(environment: Arc<BTreeMap<String, String>>, key: Option<SecretKey>) -> Self {
        Self { environment, key }
    }

    /// Reads a secret.
    ///
    /// # Errors
    /// When it is not there, and why.
    pub(super) fn read(&self, source: &SecretSource) -> Result<String, String> {
        match source {
            SecretSource::FromEnv(name) => self
                .environment
                .get(name)
                .cloned()
                .ok_or_else(|| format!("the variable {name} is not set")),
            SecretSource::FromFile(path) => {
                let text = fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
                let line = text.strip_suffix('\n').unwrap_or(&text);
                Ok(line.strip_suffix('\r').unwrap_or(line).to_owned())
            }
        }
    }

    /// Returns the hashes of a spec's secrets; `None` for those that cannot be read now.
    pub fn hashes(&self, spec: &Spec) -> SecretHashes {
        let hash = |source| Some(self.key.as_ref()?.hash(&self.read(source).ok()?));
        spec.secrets().into_iter().map(|(name, source)| (name.to_owned(), hash(source))).collect()
    }

    /// Returns the secrets of a spec that cannot be read now, and why.
    pub fn unreadable(&self, spec: &Spec) -> BTreeMap<String, String> {
        let why = |(name, source): (&str, _)| Some((name.to_owned(), self.read(source).err()?));
        spec.secrets().into_iter().filter_map(why).collect()
    }

    /// Returns what the provider gets to create a pool's workers.
    ///
    /// # Errors
    /// As [`Secrets::resolve`].
    pub fn resolve_pool(
        &self,
        config: &StaticPoolConfig,
        provider: &ProviderConfig,
    ) -> Result<Resolved, String> {
        self.resolve(&Spec::of(config, Some(provider)))
    }

    /// Returns what the provider gets, secrets included.
    ///
    /// # Errors
    /// When a secret cannot be read: no worker may start without it.
    pub fn resolve(&self, spec: &Spec) -> Result<Resolved, String> {
        let mut environment = BTreeMap::new();
        for (name, value) in &spec.worker.environment {
            let value = match value {
                EnvironmentValue::Plain(text) => text.clone(),
                EnvironmentValue::Secret(source) => self.read(source).map_err(|why| {
                    format!(
                        "reading the secret {name} ({source}) of the worker's environment: {why}"
                    )
                })?,
            };
            environment.insert(name.clone(), value);
        }
        let worker = spec.worker.clone();
        Ok(Resolved {
            secrets: self.hashes(spec),
            spec: WorkerSpec {
                image: worker.image,
                command: worker.command,
                cpu_cores: worker.cpu_cores,
                memory_mb: worker.memory_mb,
                docker_enabled: worker.docker_enabled,
                labels: worker.labels,
                tags: worker.tags,
                environment,
                secrets: spec.secrets().into_keys().map(str::to_owned).collect(),
                network: spec.network.clone(),
                attributes: match (worker.docker, worker.ec2) {
                    (Some(docker), _) => attributes(docker),
                    (None, Some(ec2)) => attributes(ec2),
                    (None, None) => worker.attributes,
                },
            },
        })
    }
}

/// What only workers of one type have, as their provider reads it.
fn attributes(own: impl serde::Serialize) -> serde_json::Map<String, serde_json::Value> {
    let value = serde_json::to_value(own).ok();
    value.and_then(|value| value.as_object().cloned()).unwrap_or_default()
}
