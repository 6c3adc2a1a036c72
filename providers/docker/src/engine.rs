//! The connection to an engine, and what its refusals mean.
//!
//! Connects when it is first needed and speaks the newest API that both sides know, 1.41 or later. An answer
//! that did not come is told from a call that was never sent: only the first one may have had its effect.

use std::time::Duration;

use bollard::errors::Error;
use bollard::{API_DEFAULT_VERSION, Docker};
use pool_provider::error::chain;
use pool_provider::{ProviderError, http};
use tokio::sync::OnceCell;

/// The oldest API that knows all that is used here: dockerd 20.10, podman 4.
const OLDEST: (usize, usize) = (1, 41);

/// How long a call may take beyond the grace of a container that is stopped.
const PATIENCE: Duration = Duration::from_secs(120);

/// An engine that answers.
#[derive(Debug, Clone)]
pub(crate) struct Engine {
    pub(crate) docker: Docker,
    /// The same engine, for what is read tolerantly; see [`crate::look`].
    pub(crate) client: reqwest::Client,
    pub(crate) base: String,
    /// It is podman: its health checks run only where systemd runs them.
    pub(crate) is_podman: bool,
}

/// Where an engine is.
#[derive(Debug)]
pub(crate) struct Door {
    host: String,
    timeout: Duration,
    engine: OnceCell<Engine>,
}

/// Why an engine did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It says no.
    Status(u16, String),
    /// It was not reached.
    NotSent(String),
    /// Whether it did is not known.
    Lost(String),
}

impl Door {
    pub(crate) fn new(host: String, stop_grace: Duration) -> Self {
        Self { host, timeout: stop_grace + PATIENCE, engine: OnceCell::new() }
    }

    /// Returns the engine's socket on this host, where it has one.
    pub(crate) fn socket(&self) -> Option<&str> {
        self.host.strip_prefix("unix://")
    }

    /// Connects, or returns the connection that is there.
    pub(crate) async fn engine(&self) -> Result<&Engine, ProviderError> {
        self.engine.get_or_try_init(|| self.connect()).await
    }

    async fn connect(&self) -> Result<Engine, ProviderError> {
        if !self.host.starts_with("unix:///") && !self.host.starts_with("tcp://") {
            return Err(ProviderError::InvalidSpec(format!(
                "the engine's address {} is neither unix:///path nor tcp://host:port; ssh and TLS are not \
                 spoken",
                self.host
            )));
        }
        let seconds = self.timeout.as_secs();
        let connected = if self.host.starts_with("unix://") {
            Docker::connect_with_unix(&self.host, seconds, API_DEFAULT_VERSION)
        } else {
            Docker::connect_with_http(&self.host, seconds, API_DEFAULT_VERSION)
        };
        let unreached = |error: Error| self.unreached(&Refusal::from(error));
        let docker = connected.map_err(unreached)?.negotiate_version().await.map_err(unreached)?;
        let spoken = docker.client_version();
        if (spoken.major_version, spoken.minor_version) < OLDEST {
            return Err(ProviderError::InvalidSpec(format!(
                "the engine at {} speaks API {spoken}; 1.41 or later is needed (dockerd 20.10, podman 4)",
                self.host
            )));
        }
        let version = docker.version().await.map_err(unreached)?;
        let components = version.components.unwrap_or_default();
        let is_podman = components.iter().any(|part| part.name.contains("Podman"));
        let (client, base) = self.client().map_err(|error| {
            ProviderError::Transient(format!("preparing to call {}: {error}", self.host))
        })?;
        Ok(Engine { docker, client, base, is_podman })
    }

    fn client(&self) -> Result<(reqwest::Client, String), reqwest::Error> {
        let client = http::plain().timeout(self.timeout).no_proxy();
        match (self.socket(), self.host.strip_prefix("tcp://")) {
            (Some(socket), _) => {
                Ok((client.unix_socket(socket).build()?, "http://engine".to_owned()))
            }
            (None, Some(address)) => Ok((client.build()?, format!("http://{address}"))),
            (None, None) => Ok((client.build()?, self.host.clone())),
        }
    }

    fn unreached(&self, refusal: &Refusal) -> ProviderError {
        let why = format!("no engine answers at {}: {}", self.host, refusal.text());
        if refusal.text().contains("ermission denied") {
            ProviderError::Unauthenticated(format!("{why}; may this user use its socket?"))
        } else {
            ProviderError::Transient(format!("{why}; does it run, and is DOCKER_HOST right?"))
        }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        match error {
            Error::DockerResponseServerError { status_code, message } => {
                Self::Status(status_code, message)
            }
            Error::HyperLegacyError { ref err } if err.is_connect() => Self::NotSent(chain(&error)),
            Error::SocketNotFoundError(_) => Self::NotSent(error.to_string()),
            error => Self::Lost(chain(&error)),
        }
    }
}

impl Refusal {
    pub(crate) fn text(&self) -> &str {
        match self {
            Self::Status(_, text) | Self::NotSent(text) | Self::Lost(text) => text,
        }
    }

    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Status(404, _))
    }

    /// podman answers 500 where dockerd answers 409.
    pub(crate) fn is_name_taken(&self) -> bool {
        matches!(self, Self::Status(409 | 500, text) if text.contains("already in use"))
    }

    /// It is being removed by somebody else.
    pub(crate) fn is_being_removed(&self) -> bool {
        matches!(self, Self::Status(409 | 500, text)
            if text.contains("already in progress") || text.contains("is being removed"))
    }

    /// What the refusal of a call means that only looks.
    pub(crate) fn of_look(self) -> ProviderError {
        match self {
            Self::Status(404, text) => ProviderError::NotFound(text),
            refusal => refusal.of_change("looking"),
        }
        .without_effect()
    }

    /// What the refusal of a call means that changes something.
    pub(crate) fn of_change(self, doing: &str) -> ProviderError {
        let text = format!("{doing}: {}", self.text());
        match self {
            Self::Lost(_) => ProviderError::UnknownOutcome(text),
            Self::NotSent(_) => ProviderError::Transient(text),
            Self::Status(401 | 403, _) => ProviderError::Unauthenticated(text),
            Self::Status(429, _) => ProviderError::RateLimited { message: text, retry_after: None },
            Self::Status(..) if is_out_of_room(&text) => {
                ProviderError::OutOfCapacity { message: text, elsewhere: false }
            }
            // Somebody else removed it meanwhile.
            Self::Status(404, _) if is_about_a_container(&text) => ProviderError::Transient(text),
            Self::Status(400 | 404, _) => ProviderError::InvalidSpec(text),
            Self::Status(..) if is_about_the_spec(&text) => ProviderError::InvalidSpec(text),
            Self::Status(..) => ProviderError::Transient(text),
        }
    }
}

/// A call that only looks has no effect, whatever became of its answer.
trait WithoutEffect {
    fn without_effect(self) -> Self;
}

impl WithoutEffect for ProviderError {
    fn without_effect(self) -> Self {
        match self {
            Self::UnknownOutcome(text) | Self::InvalidSpec(text) => Self::Transient(text),
            other => other,
        }
    }
}

/// Engines answer 500 to what can never work; these are runc's and the engines' own words for it.
fn is_about_the_spec(text: &str) -> bool {
    [
        "executable file not found",
        "no such file or directory",
        "permission denied",
        "not a directory",
        "exec format error",
        "unable to find network",
        "network not found",
        "invalid",
        "Minimum memory limit",
        "Range of CPUs",
    ]
    .iter()
    .any(|words| text.contains(words))
}

/// dockerd's words and podman's.
fn is_about_a_container(text: &str) -> bool {
    let text = text.to_lowercase();
    text.contains("no such container") || text.contains("no container with name or id")
}

fn is_out_of_room(text: &str) -> bool {
    [
        "no space left on device",
        "port is already allocated",
        "address already in use",
        "no available IP",
    ]
    .iter()
    .any(|words| text.contains(words))
}
