//! What a container is as a worker.
//!
//! Input: what a listing says. Output: the workers that `pool` knows of. Asks nobody, and deletes nothing.

use std::collections::BTreeMap;

use pool_provider::{Mask, ObservedStatus, ObservedWorker};

use crate::health;
use crate::labels::Identity;
use crate::look::Listed;

/// Cuts what a container wrote to what can be shown and recorded: no control characters, not too much, and
/// nothing of its environment, where secrets are.
pub(crate) fn told<'v>(said: &str, environment: impl Iterator<Item = &'v str>) -> String {
    health::printable(&Mask::new(environment).text(said))
}

pub(crate) fn is_named(container: &Listed, name: &str) -> bool {
    let names = container.names.as_deref().unwrap_or_default();
    names.iter().any(|found| found.trim_start_matches('/') == name)
}

/// Returns the workers that containers are: one for each id. A container that was never started is one only
/// when it is about to take the place of another one that is gone.
pub(crate) fn workers(containers: Vec<(Identity, Listed)>) -> Vec<ObservedWorker> {
    let mut workers: BTreeMap<String, ObservedWorker> = BTreeMap::new();
    for (identity, container) in containers {
        let status = match container.state.as_str() {
            "running" | "paused" => ObservedStatus::Running,
            "restarting" | "initialized" => ObservedStatus::Starting,
            "created" | "configured" if identity.is_of_reset => ObservedStatus::Starting,
            "removing" | "stopping" => ObservedStatus::Stopping,
            "created" | "configured" | "exited" | "dead" | "stopped" => continue,
            // What is not known is taken for alive: it is not replaced for a word.
            _ => ObservedStatus::Running,
        };
        let worker = observed(identity, &container, status);
        match workers.get(&worker.provider_id) {
            Some(known) if known.status == ObservedStatus::Running => {}
            Some(_) | None => drop(workers.insert(worker.provider_id.clone(), worker)),
        }
    }
    workers.into_values().collect()
}

fn observed(identity: Identity, container: &Listed, status: ObservedStatus) -> ObservedWorker {
    let Identity { id, name, attempt, operation, spec_hash, labels, tags, .. } = identity;
    let networks = container.network_settings.clone().and_then(|found| found.networks);
    let addresses = networks.unwrap_or_default().into_values();
    let addresses = addresses.flat_map(|end| [end.ip, end.ipv6].into_iter().flatten());
    // On the host's own network it is reached where the host is.
    let mode = container.host_config.as_ref().map(|config| config.network_mode.as_str());
    let host = (mode == Some("host")).then(|| "127.0.0.1".to_owned());
    let short = container.id.chars().take(12).collect();
    let mut attributes = BTreeMap::from([("container_id".to_owned(), short)]);
    for port in container.ports.iter().flatten() {
        if let Some(public) = port.outside {
            let ip = port.ip.as_deref().filter(|ip| !ip.is_empty()).unwrap_or("0.0.0.0");
            let key = format!("port.{}/{}", port.inside, port.protocol);
            // A port is published on IPv6 once more: the first one says it.
            attributes.entry(key).or_insert_with(|| format!("{ip}:{public}"));
        }
    }
    ObservedWorker {
        provider_id: id,
        name,
        attempt,
        operation,
        spec_hash,
        status,
        labels,
        tags,
        addresses: addresses.filter(|address| !address.is_empty()).chain(host).collect(),
        attributes,
    }
}
