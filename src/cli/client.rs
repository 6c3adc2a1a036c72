//! Speaks to a server.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use serde::Deserialize;
use serde_json::Value;

use super::error::CliError;
use crate::clock::Stopwatch;

/// How long a request may take beyond what it asked to wait.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Args)]
pub(super) struct ServerArgs {
    /// Where the server is
    #[arg(
        long,
        value_name = "URL",
        env = "POOL_SERVER",
        hide_env_values = true,
        default_value = "http://127.0.0.1:7070"
    )]
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
    code: String,
    #[serde(default)]
    detail: String,
    #[serde(default)]
    phases: BTreeMap<String, u32>,
}

impl Refusal {
    /// What to do about it.
    fn hint(&self) -> &'static str {
        match self.code.as_str() {
            "pool_not_found" => "`pool status` lists the pools; a server follows one state",
            "worker_not_found" => {
                "`pool state list` lists the workers; a replaced one has a new name"
            }
            "lease_not_found" => {
                "`pool lease list` has those that have not ended; is it the right server?"
            }
            "lease_gone" => "acquire another one: the worker may be somebody else's by now",
            "fence_mismatch" => "give the fence that came with the lease, or leave it out",
            "idempotency_conflict" => "choose another key for another request",
            "unsatisfiable" => "ask for less, or change the pool that should meet it",
            "conflict" => "see how it stands with `pool status`, and decide again",
            "no_capacity" => "wait for a worker with --wait, or make the pool larger",
            "invalid_request" => "`--help` says what the command takes",
            "foreign_origin" => "reach the server on its own machine, by 127.0.0.1 or localhost",
            "body_too_large" => "say less in labels, tags and purpose",
            "stopping" => "ask again once the server is back",
            "state_unavailable" | "provider_unavailable" | "internal" => {
                "the server's log says more"
            }
            _ => "check --server: is it a pool server of this version?",
        }
    }
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
            ClientError::Refused(refusal) => refusal.hint().to_owned(),
            ClientError::Silent { .. } => {
                "start it with `pool serve`, or name another one with --server".to_owned()
            }
        };
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
        let http = pool_provider::http::plain()
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
        let watch = Stopwatch::start();
        let response = request.send().await.map_err(|error| self.silent(&error))?;
        let status = response.status();
        let took_ms = (watch.elapsed().as_secs_f64() * 1e5).round() / 100.0;
        // Without what names a lease: whoever knows that may give it back.
        let route: Vec<&str> = response.url().path().split('/').take(3).collect();
        tracing::debug!(route = route.join("/"), %status, took_ms, "the server answered");
        let body = response.bytes().await.map_err(|error| self.silent(&error))?;
        if status.is_success() {
            return Ok(serde_json::from_slice(&body).unwrap_or(Value::Null));
        }
        let mut refusal: Refusal = serde_json::from_slice(&body).unwrap_or_else(|_| Refusal {
            status: 0,
            code: String::new(),
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

    pub(super) async fn leases(
        &self,
        pool: Option<&str>,
        holder: Option<&str>,
    ) -> Result<Value, ClientError> {
        let url = format!("{}/v1/leases", self.server);
        let query = [("pool", pool), ("holder", holder)];
        let query: Vec<_> =
            query.iter().filter_map(|(name, value)| Some((name, (*value)?))).collect();
        self.answer(self.http.get(url).query(&query).timeout(ANSWER_WITHIN)).await
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
