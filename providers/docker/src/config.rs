//! What a pool file says of a provider of type `docker`, and of its workers. Field documentation is user
//! documentation.

use pool_provider::HumanDuration;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where an engine listens unless somebody says otherwise.
pub const DEFAULT_HOST: &str = "unix:///var/run/docker.sock";

/// Containers of a Docker engine, or of podman's service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Config {
    /// Where the engine listens: `unix:///path` or `tcp://host:port`. By default `DOCKER_HOST`, and without
    /// that `unix:///var/run/docker.sock`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        with = "String",
        regex(pattern = r"^(unix:///|tcp://)[^\s]+$"),
        example = &"unix:///run/podman/podman.sock"
    )]
    pub host: Option<String>,
    /// The network that workers join which name none; `none` for no network, `host` for the host's. By default
    /// the engine's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(min = 1, max = 255), example = &"ci")]
    pub network: Option<String>,
    /// How long a container has between SIGTERM and SIGKILL.
    #[schemars(example = &"10s")]
    pub stop_grace: HumanDuration,
    /// When images are pulled. Credentials are those of `docker login`.
    #[schemars(example = &"missing")]
    pub pull: Pull,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            host: None,
            network: None,
            stop_grace: HumanDuration::from_secs(10),
            pull: Pull::Missing,
        }
    }
}

/// When images are pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Pull {
    /// When the engine does not have them.
    Missing,
    /// Before each container is created: a tag may mean another image by now.
    Always,
    /// Never: an image that is not there is an error.
    Never,
}

/// What only containers have.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(title = "Container")]
pub struct WorkerAttributes {
    /// Ports that are published on the engine's host: `[IP:][HOST_PORT:]PORT[/tcp|udp|sctp]`. Without a host
    /// port the engine chooses one; where it leads is in the lease, under `attributes`. With one, the worker
    /// of slot n gets `HOST_PORT + n`, and a slot's old worker goes before its new one comes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        inner(regex(
            pattern = r"^(([0-9]{1,3}\.){3}[0-9]{1,3}:)?([0-9]{1,5}:)?[0-9]{1,5}(/(tcp|udp|sctp))?$"
        )),
        example = ["127.0.0.1:8080", "18080:8080/tcp"]
    )]
    pub ports: Vec<String>,
    /// Volumes and folders of the engine's host: `NAME:/path` or `/host/path:/path`, with `:ro` for reading
    /// only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        inner(regex(pattern = r"^(/[^:]*|[a-zA-Z0-9][a-zA-Z0-9_.-]*):/[^:]*(:[a-zA-Z,]+)?$")),
        example = ["/var/cache/ci:/cache:ro"]
    )]
    pub volumes: Vec<String>,
}

/// One published port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Port {
    pub(crate) ip: Option<String>,
    /// On the host, for slot 0.
    pub(crate) host: Option<u16>,
    /// In the container, as the engine writes it: `8080/tcp`.
    pub(crate) container: String,
}

impl Port {
    /// Reads `[IP:][HOST_PORT:]PORT[/PROTOCOL]`.
    pub(crate) fn read(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not [IP:][HOST_PORT:]PORT[/tcp|udp|sctp]");
        let number =
            |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(wrong);
        let (numbers, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let parts: Vec<&str> = numbers.split(':').collect();
        let (ip, host, port) = match parts.as_slice() {
            [port] => (None, None, *port),
            [ip, port] if ip.contains('.') => (Some(*ip), None, *port),
            [host, port] => (None, Some(number(host)?), *port),
            [ip, host, port] if ip.contains('.') => (Some(*ip), Some(number(host)?), *port),
            _ => return Err(wrong()),
        };
        let container = format!("{}/{protocol}", number(port)?);
        Ok(Self { ip: ip.map(str::to_owned), host, container })
    }
}

/// Returns whether a published port names a port of the host: slot n takes that plus n.
pub fn names_host_port(port: &str) -> bool {
    Port::read(port).is_ok_and(|port| port.host.is_some())
}

/// Returns two published ports of a pool with slots up to `last` that meet on the host: a port of one slot is another
/// port of another slot.
pub fn meeting_ports(ports: &[String], last: u32) -> Option<(usize, usize)> {
    let read: Vec<Option<Port>> = ports.iter().map(|port| Port::read(port).ok()).collect();
    let protocol = |port: &Port| port.container.split_once('/').map(|(_, kind)| kind.to_owned());
    let meet = |one: &Port, other: &Port| {
        let (Some(a), Some(b)) = (one.host, other.host) else { return false };
        one.ip == other.ip && protocol(one) == protocol(other) && u32::from(a.abs_diff(b)) <= last
    };
    (0..read.len()).find_map(|first| {
        let one = read[first].as_ref()?;
        let mut later = (first + 1)..read.len();
        let second = later.find(|&n| read[n].as_ref().is_some_and(|other| meet(one, other)))?;
        Some((first, second))
    })
}

/// Returns what is wrong with a published port of a pool with slots up to `last`; `None` when nothing is.
pub fn wrong_port(port: &str, last: u32) -> Option<String> {
    match Port::read(port) {
        Err(why) => Some(why),
        Ok(Port { host: Some(first), .. }) if u32::from(first) + last > u32::from(u16::MAX) => {
            Some(format!("`{port}` leaves no port for slot {last}"))
        }
        Ok(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_as_docker_users_write_them() {
        let read = |text: &str| {
            let Port { ip, host, container } = Port::read(text).unwrap();
            (ip, host, container)
        };
        assert_eq!(read("8080"), (None, None, "8080/tcp".into()));
        assert_eq!(read("53/udp"), (None, None, "53/udp".into()));
        assert_eq!(read("18080:8080"), (None, Some(18080), "8080/tcp".into()));
        assert_eq!(read("127.0.0.1:80"), (Some("127.0.0.1".into()), None, "80/tcp".into()));
        assert_eq!(read("0.0.0.0:1:2/sctp"), (Some("0.0.0.0".into()), Some(1), "2/sctp".into()));
        for bad in ["0", "65536", "1:2:3", "1.2.3.4:x", "a:b:c:d"] {
            assert!(Port::read(bad).is_err(), "{bad}");
        }
    }
}
