//! What is looked at: listings and single containers, as far as they are needed, read tolerantly.
//!
//! Engines differ in the words for a container's state ("stopped" is podman's) and new ones come with new
//! versions. One unknown word must not make a whole listing unreadable: what is not known here is a text.

use std::collections::HashMap;

use jiff::Timestamp;
use pool_provider::ProviderError;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::engine::{Engine, Refusal};

/// A container in a listing.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Listed {
    pub(crate) id: String,
    #[serde(default)]
    pub(crate) names: Option<Vec<String>>,
    #[serde(default)]
    pub(crate) state: String,
    #[serde(default)]
    pub(crate) labels: Option<HashMap<String, String>>,
    #[serde(default)]
    pub(crate) ports: Option<Vec<Port>>,
    #[serde(default)]
    pub(crate) network_settings: Option<Networks>,
    #[serde(default)]
    pub(crate) host_config: Option<Host>,
}

/// How a container stands to its host.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Host {
    pub(crate) network_mode: String,
}

/// A port of a container.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Port {
    #[serde(default, rename = "IP")]
    pub(crate) ip: Option<String>,
    #[serde(rename = "PrivatePort")]
    pub(crate) inside: u16,
    #[serde(default, rename = "PublicPort")]
    pub(crate) outside: Option<u16>,
    #[serde(default, rename = "Type")]
    pub(crate) protocol: String,
}

/// The networks of a container.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Networks {
    #[serde(default)]
    pub(crate) networks: Option<std::collections::BTreeMap<String, Endpoint>>,
}

/// How a container is reached in a network.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Endpoint {
    #[serde(default, rename = "IPAddress")]
    pub(crate) ip: Option<String>,
    #[serde(default, rename = "GlobalIPv6Address")]
    pub(crate) ipv6: Option<String>,
}

/// A container by itself.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Inspected {
    pub(crate) id: String,
    pub(crate) state: State,
    #[serde(default)]
    pub(crate) config: Config,
}

/// How far a container is.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct State {
    pub(crate) status: String,
    pub(crate) exit_code: i64,
    #[serde(rename = "OOMKilled")]
    pub(crate) oom_killed: bool,
    pub(crate) health: Option<Health>,
}

/// What a container's own check says.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Health {
    pub(crate) status: String,
    pub(crate) log: Option<Vec<Check>>,
}

/// One run of a check.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Check {
    pub(crate) output: String,
}

/// What a container was made from.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Config {
    pub(crate) labels: Option<HashMap<String, String>>,
    pub(crate) env: Option<Vec<String>>,
    pub(crate) healthcheck: Option<Healthcheck>,
}

/// How a container is checked.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Healthcheck {
    pub(crate) test: Option<Vec<String>>,
}

/// What an engine says of itself.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Info {
    #[serde(default)]
    system_time: Option<String>,
}

/// What an engine says when it refuses.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Refused {
    message: String,
}

impl Engine {
    async fn look<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<T, Refusal> {
        let version = self.docker.client_version();
        let url = format!("{}/v{version}{path}", self.base);
        let lost = |error: reqwest::Error| Refusal::Lost(pool_provider::error::chain(&error));
        let answer = self.client.get(url).query(query).send().await.map_err(lost)?;
        let status = answer.status();
        let body = answer.bytes().await.map_err(lost)?;
        if !status.is_success() {
            let said = serde_json::from_slice::<Refused>(&body).unwrap_or_default().message;
            return Err(Refusal::Status(status.as_u16(), said));
        }
        serde_json::from_slice(&body)
            .map_err(|error| Refusal::Lost(format!("{path} answered what cannot be read: {error}")))
    }

    /// Lists the containers with all of these labels, in whatever state: one call.
    pub(crate) async fn containers(
        &self,
        labels: &[(&str, &str)],
    ) -> Result<Vec<Listed>, ProviderError> {
        let filters = serde_json::to_string(&crate::labels::filter(labels)).unwrap_or_default();
        let query = [("all", "true"), ("filters", filters.as_str())];
        self.look("/containers/json", &query).await.map_err(Refusal::of_look)
    }

    /// Looks at one container, by name or id.
    pub(crate) async fn inspect(&self, container: &str) -> Result<Inspected, Refusal> {
        self.look(&format!("/containers/{container}/json"), &[]).await
    }

    /// Returns whether the engine has an image.
    pub(crate) async fn has_image(&self, image: &str) -> bool {
        self.docker.inspect_image(image).await.is_ok()
    }

    /// Returns what time it is at the engine; `None` when it does not say.
    pub(crate) async fn time(&self) -> Result<Option<Timestamp>, Refusal> {
        let told = self.look::<Info>("/info", &[]).await?.system_time;
        Ok(told.and_then(|time| time.parse().ok()))
    }
}
