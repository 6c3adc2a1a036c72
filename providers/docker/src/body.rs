//! A worker's spec as the engine takes it: one body of a create call, with everything in it.
//!
//! Input: the request. Output: what the engine makes a container from. Asks nothing of the engine, and decides
//! nothing about names: see `labels`.

use std::collections::HashMap;

use bollard::models::{
    ContainerCreateBody, HostConfig, PortBinding, RestartPolicy, RestartPolicyNameEnum,
};
use pool_provider::{CreateRequest, ProviderError};

use crate::config::{Port, WorkerAttributes};
use crate::labels;

/// Where a container finds the engine's socket that may use it.
const SOCKET: &str = "/var/run/docker.sock";

/// Builds the body of the create call. `socket` is where the engine's own host has its socket.
///
/// # Errors
/// When the spec can never become a container.
pub(crate) fn body(
    request: &CreateRequest,
    provider: &str,
    socket: Option<&str>,
    of_reset: bool,
) -> Result<ContainerCreateBody, ProviderError> {
    let spec = &request.spec;
    let attributes: WorkerAttributes = serde_json::from_value(spec.attributes.clone().into())
        .map_err(|error| ProviderError::InvalidSpec(format!("worker_config.docker: {error}")))?;
    let (exposed, bindings) = ports(&attributes, request.name.slot.0)?;
    let mut binds = attributes.volumes;
    if spec.docker_enabled {
        binds.push(format!("{}:{SOCKET}", socket.unwrap_or(SOCKET)));
    }
    let memory = i64::from(spec.memory_mb) * 1024 * 1024;
    let environment = spec.environment.iter().map(|(key, value)| format!("{key}={value}"));
    Ok(ContainerCreateBody {
        image: Some(spec.image.clone()),
        cmd: (!spec.command.is_empty()).then(|| spec.command.clone()),
        env: Some(environment.chain(own_environment(request)).collect()),
        labels: Some(labels::write(request, provider, of_reset)),
        exposed_ports: Some(exposed),
        host_config: Some(HostConfig {
            nano_cpus: Some(i64::from(spec.cpu_cores) * 1_000_000_000),
            memory: Some(memory),
            // The same: without it a container may swap as much again.
            memory_swap: Some(memory),
            binds: Some(binds),
            network_mode: spec.network.clone(),
            port_bindings: Some(bindings),
            // What dies is the reconciler's to replace.
            restart_policy: Some(RestartPolicy {
                name: Some(RestartPolicyNameEnum::NO),
                maximum_retry_count: None,
            }),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    })
}

/// What every worker finds of itself in its environment.
fn own_environment(request: &CreateRequest) -> [String; 4] {
    let CreateRequest { owner, name, .. } = request;
    [
        format!("POOL_DEPLOYMENT={owner}"),
        format!("POOL_ID={}", name.pool),
        format!("POOL_WORKER={name}"),
        format!("POOL_SLOT={}", name.slot),
    ]
}

type Bindings = HashMap<String, Option<Vec<PortBinding>>>;

fn ports(
    attributes: &WorkerAttributes,
    slot: u32,
) -> Result<(Vec<String>, Bindings), ProviderError> {
    let mut bindings = Bindings::new();
    for text in &attributes.ports {
        let Port { ip, host, container } = Port::read(text).map_err(ProviderError::InvalidSpec)?;
        let host_port = match host {
            None => None,
            Some(first) => {
                let port = u32::from(first) + slot;
                let port = u16::try_from(port).map_err(|_| {
                    ProviderError::InvalidSpec(format!("slot {slot} has no host port for `{text}`"))
                })?;
                Some(port.to_string())
            }
        };
        let binding = PortBinding { host_ip: ip, host_port };
        let all = bindings.entry(container).or_insert_with(|| Some(Vec::new()));
        all.get_or_insert_default().push(binding);
    }
    Ok((bindings.keys().cloned().collect(), bindings))
}
