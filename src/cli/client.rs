//! Speaks to a server.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use serde::Deserialize;
use serde_json::Value;

use super::error::CliError;

/// How long a request may take beyond what it asked to wait.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Args)]
pub(super) struct ServerArgs {
    /// Where the server is
    #[arg(long, value_name = "URL", env = "POOL_SERVER", default_value = "http://127.0.0.1:7070")]
    server: String,
}

/// The way to one server.
#[derive(Debug, Clone)]
pub(super) struct Client {
    http: reqwest::Client,
    server: String,
}

/// What a server says is wrong.
#[derive(Debug, Clone, Deserialize, thiserror::Error)]
#[error("{detail}")]
pub(super) struct Refusal {
    #[serde(default)]
    pub status: u16,
    #[serde(default)]
    detail: String,
    #[serde(default)]
    phases: BTreeMap<String, u32>,
}

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    /// The server refuses.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The server did not answer.
    #[error("the server at {server} does not answer: {why}")]
    Silent {
        /// Where it was thought to be.
        server: String,
        /// What happened.
        why: String,
    },
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> Self {
        let hint = match &error {
            ClientError::Refused(refusal) if !refusal.phases.is_empty() => {
                let phases: Vec<String> = refusal
                    .phases
                    .iter()
                    .filter(|(_, count)| **count > 0)
                    .map(|(phase, count)| format!("{count} {phase}"))
                    .collect();
                format!("the workers are: {}", phases.join(", "))
            }
            ClientError::Refused(_) => String::new(),
            ClientError::Silent { .. } => {
                "start it with `pool serve`, or name another one with --server".to_owned()
            }
        };
        let hint = Some(hint).filter(|hint| !hint.is_empty());
        Self::Usage { message: error.to_string(), hint }
    }
}

impl Client {
    pub(super) fn new(arguments: &ServerArgs) -> Result<Self, CliError> {
        let server = arguments.server.trim_end_matches('/').to_owned();
        let known = ["http://"].iter().any(|scheme| server.starts_with(scheme));
        if !known {
            return Err(CliError::usage(
                format!("`{server}` is not the URL of a server"),
                "write it as http://127.0.0.1:7070",
            ));
        }
        let http = reqwest::Client::builder()
            .no_proxy()
            .connect_timeout(CONNECT_WITHIN)
            .build()
            .context("making an HTTP client")?;
        Ok(Self { http, server })
    }

    fn silent(&self, error: &reqwest::Error) -> ClientError {
        use std::error::Error as _;
        let mut why = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            why = cause.to_string();
            source = cause.source();
        }
        ClientError::Silent { server: self.server.clone(), why }
    }

    async fn answer(&self, request: reqwest::RequestBuilder) -> Result<Value, ClientError> {
        let response = request.send().await.map_err(|error| self.silent(&error))?;
        let status = response.status();
        let body = response.bytes().await.map_err(|error| self.silent(&error))?;
        if status.is_success() {
            return Ok(serde_json::from_slice(&body).unwrap_or(Value::Null));
        }
        let mut refusal: Refusal = serde_json::from_slice(&body).unwrap_or_else(|_| Refusal {
            status: 0,
            detail: String::from_utf8_lossy(&body).into_owned(),
            phases: BTreeMap::new(),
        });
        refusal.status = status.as_u16();
        Err(refusal.into())
    }

    pub(super) async fn acquire(
        &self,
        body: &Value,
        wait: Duration,
        key: Option<&str>,
    ) -> Result<Value, ClientError> {
        let url = format!("{}/v1/leases", self.server);
        let mut request = self.http.post(url).json(body).timeout(wait + ANSWER_WITHIN);
        if let Some(key) = key {
            request = request.header("Idempotency-Key", key);
        }
        self.answer(request).await
    }

    pub(super) async fn renew(&self, id: &str, body: &Value) -> Result<Value, ClientError> {
        let url = format!("{}/v1/leases/{id}/renew", self.server);
        self.answer(self.http.post(url).json(body).timeout(ANSWER_WITHIN)).await
    }

    pub(super) async fn release(&self, id: &str, outcome: &str) -> Result<(), ClientError> {
        let url = format!("{}/v1/leases/{id}", self.server);
        let request = self.http.delete(url).query(&[("outcome", outcome)]).timeout(ANSWER_WITHIN);
        self.answer(request).await.map(drop)
    }

    /// Decides about a worker; returns it as it is afterwards.
    pub(super) async fn act(&self, worker: &str, verb: &str) -> Result<Value, ClientError> {
        let url = format!("{}/v1/workers/{worker}/{verb}", self.server);
        self.answer(self.http.post(url).timeout(ANSWER_WITHIN)).await
    }
}
