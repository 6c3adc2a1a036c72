//! What a job asks for, which workers meet it, and why none does.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::WorkerType;
use crate::desired::Spec;
use crate::worker::PoolId;

/// Which workers would do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Selector {
    /// Of this pool only.
    pub pool: Option<PoolId>,
    /// Of this kind only.
    pub worker_type: Option<WorkerType>,
    /// With all of these labels.
    pub labels: BTreeMap<String, String>,
    /// With all of these tags.
    pub tags: BTreeSet<String>,
    /// With at least so many processor cores.
    pub min_cpu_cores: Option<u32>,
    /// With at least so much memory, in MiB.
    pub min_memory_mb: Option<u32>,
    /// With a Docker engine, or without.
    pub docker: Option<bool>,
}

/// One thing that a selector requires of a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Requirement {
    /// The worker's kind.
    WorkerType(WorkerType),
    /// A label and its value.
    Label(String, String),
    /// A tag.
    Tag(String),
    /// The least number of processor cores.
    MinCpuCores(u32),
    /// The least memory in MiB.
    MinMemoryMb(u32),
    /// With or without a Docker engine.
    Docker(bool),
}

impl Requirement {
    fn is_met_by(&self, spec: &Spec) -> bool {
        let worker = &spec.worker;
        match self {
            Self::WorkerType(kind) => spec.worker_type == *kind,
            Self::Label(name, value) => worker.labels.get(name) == Some(value),
            Self::Tag(tag) => worker.tags.contains(tag),
            Self::MinCpuCores(least) => worker.cpu_cores >= *least,
            Self::MinMemoryMb(least) => worker.memory_mb >= *least,
            Self::Docker(wanted) => worker.docker_enabled == *wanted,
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WorkerType(kind) => write!(f, "worker_type = {kind}"),
            Self::Label(name, value) => write!(f, "labels.{name} = {value}"),
            Self::Tag(tag) => write!(f, "tags include {tag}"),
            Self::MinCpuCores(least) => write!(f, "cpu_cores >= {least}"),
            Self::MinMemoryMb(least) => write!(f, "memory_mb >= {least}"),
            Self::Docker(wanted) => write!(f, "docker_enabled = {wanted}"),
        }
    }
}

impl Selector {
    /// Selects every worker of one pool.
    pub fn of_pool(pool: PoolId) -> Self {
        Self { pool: Some(pool), ..Self::default() }
    }

    /// Returns whether workers of this pool come into question at all.
    pub fn covers(&self, pool: &PoolId) -> bool {
        self.pool.as_ref().is_none_or(|only| only == pool)
    }

    /// Returns whether every worker of the pool would do.
    pub fn takes_any(&self) -> bool {
        let Self { pool: _, worker_type, labels, tags, min_cpu_cores, min_memory_mb, docker } =
            self;
        worker_type.is_none()
            && labels.is_empty()
            && tags.is_empty()
            && min_cpu_cores.is_none()
            && min_memory_mb.is_none()
            && docker.is_none()
    }

    /// Returns whether a worker that is made from `spec` meets everything that is required.
    pub fn is_met_by(&self, spec: &Spec) -> bool {
        self.requirements().iter().all(|requirement| requirement.is_met_by(spec))
    }

    /// Returns what is required beside the pool.
    pub fn requirements(&self) -> Vec<Requirement> {
        let mut required = Vec::new();
        required.extend(self.worker_type.map(Requirement::WorkerType));
        let labels = self.labels.iter();
        required
            .extend(labels.map(|(name, value)| Requirement::Label(name.clone(), value.clone())));
        required.extend(self.tags.iter().cloned().map(Requirement::Tag));
        required.extend(self.min_cpu_cores.map(Requirement::MinCpuCores));
        required.extend(self.min_memory_mb.map(Requirement::MinMemoryMb));
        required.extend(self.docker.map(Requirement::Docker));
        required
    }

    /// Says why none of `specs` meets the selector: what no one meets, or everything that is required when
    /// each thing is met by some and all together by none. Empty when one of them meets it.
    pub fn unmet(&self, specs: &[&Spec]) -> Vec<Requirement> {
        if specs.iter().any(|spec| self.is_met_by(spec)) {
            return Vec::new();
        }
        let required = self.requirements();
        let by_none: Vec<Requirement> = required
            .iter()
            .filter(|requirement| !specs.iter().any(|spec| requirement.is_met_by(spec)))
            .cloned()
            .collect();
        if by_none.is_empty() { required } else { by_none }
    }
}

/// A request for workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// Which workers would do.
    pub selector: Selector,
    /// How many; all or none.
    pub count: u32,
    /// For how long; the pool's default when it is `None`.
    pub ttl: Option<Duration>,
    /// Larger ones are served first.
    pub priority: i32,
    /// Who will hold the leases.
    pub holder: String,
    /// What for, for people.
    pub purpose: Option<String>,
    /// Whatever else the holder wants to find on the lease.
    pub metadata: Map<String, Value>,
    /// Workers that will not do, by name.
    pub avoid: BTreeSet<String>,
    /// Makes a repeat of the request safe.
    pub key: Option<AskKey>,
}

/// What tells a repeated request from another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AskKey {
    /// Names the caller and its key.
    pub key: [u8; 16],
    /// Stands for what was asked.
    pub body: [u8; 16],
}

impl Ask {
    /// Asks for one worker of a pool on the pool's own terms.
    pub fn of_pool(pool: PoolId, holder: &str) -> Self {
        Self {
            selector: Selector::of_pool(pool),
            count: 1,
            ttl: None,
            priority: 0,
            holder: holder.to_owned(),
            purpose: None,
            metadata: Map::new(),
            avoid: BTreeSet::new(),
            key: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> Spec {
        let mut words = text.split_whitespace();
        let mut next = || words.next().unwrap();
        let number = |text: &str| text.parse::<u32>().unwrap();
        let (cpu, memory, label) = (number(next()), number(next()), next());
        serde_json::from_value(serde_json::json!({
            "worker_type": "vm",
            "worker": {
                "image": "a", "cpu_cores": cpu, "memory_mb": memory, "docker_enabled": false,
                "labels": { "os": label }, "tags": ["ci"],
            },
        }))
        .unwrap()
    }

    fn check(selector: &serde_json::Value, specs: &[&str], expected: &[&str]) {
        let empty = serde_json::to_value(Selector::default()).unwrap();
        let mut whole = empty.as_object().unwrap().clone();
        whole.extend(selector.as_object().unwrap().clone());
        let selector: Selector = serde_json::from_value(whole.into()).unwrap();
        let specs: Vec<Spec> = specs.iter().map(|text| spec(text)).collect();
        let unmet: Vec<String> = selector
            .unmet(&specs.iter().collect::<Vec<_>>())
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(unmet, expected);
    }

    #[test]
    fn what_no_worker_meets_is_named() {
        let specs = ["2 512 linux", "4 256 bsd"];
        check(&serde_json::json!({}), &specs, &[]);
        check(&serde_json::json!({"min_cpu_cores": 4}), &specs, &[]);
        check(&serde_json::json!({"min_cpu_cores": 8}), &specs, &["cpu_cores >= 8"]);
        check(
            &serde_json::json!({"labels": {"os": "mac"}, "tags": ["ci", "gpu"], "docker": true}),
            &specs,
            &["labels.os = mac", "tags include gpu", "docker_enabled = true"],
        );
        check(&serde_json::json!({"worker_type": "host"}), &specs, &["worker_type = host"]);
    }

    #[test]
    fn what_no_worker_meets_together_is_named_together() {
        let both = serde_json::json!({"min_cpu_cores": 4, "min_memory_mb": 512});
        check(&both, &["2 512 linux", "4 256 bsd"], &["cpu_cores >= 4", "memory_mb >= 512"]);
    }
}
