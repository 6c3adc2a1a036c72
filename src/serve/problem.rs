//! Errors as RFC 9457 has them: one type, one place that turns what went wrong below into a status and a
//! stable code.

use std::any::Any;
use std::collections::BTreeMap;
use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;

use crate::lease::LeaseId;
use crate::pool::{AcquireError, PoolError};
use crate::state::StateError;

/// What went wrong, as an answer.
#[derive(Debug, Clone)]
pub struct Problem(pub(super) Box<ProblemBody>);

/// What went wrong.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "Problem")]
pub struct ProblemBody {
    /// Names the kind of problem: `urn:pool:problem:` and the code.
    #[serde(rename = "type")]
    pub kind: String,
    /// The HTTP status.
    pub status: u16,
    /// The kind of problem, for programs: stable.
    pub code: &'static str,
    /// The kind of problem, for people.
    pub title: &'static str,
    /// What happened this time, and what to do.
    pub detail: String,
    /// For `unsatisfiable`: what no worker meets.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unmet: Vec<String>,
    /// For `no_capacity`: how many workers are in each phase; of those that are ready, how many are `leased`, `cordoned`,
    /// `suspect`, or `unverified`, because their probes get no answer (at most 64 are looked at).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub phases: BTreeMap<String, u32>,
    /// When it may be worth asking again, in seconds; the header Retry-After as well.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u64")]
    pub retry_after_seconds: Option<u64>,
}

/// The codes, with their status and title.
const KINDS: &[(&str, StatusCode, &str)] = &[
    ("invalid_request", StatusCode::BAD_REQUEST, "The request is not understood"),
    ("foreign_origin", StatusCode::FORBIDDEN, "The request comes from elsewhere"),
    ("pool_not_found", StatusCode::NOT_FOUND, "There is no such pool"),
    ("worker_not_found", StatusCode::NOT_FOUND, "There is no such worker"),
    ("lease_not_found", StatusCode::NOT_FOUND, "There is no such lease"),
    ("route_not_found", StatusCode::NOT_FOUND, "There is nothing here"),
    ("method_not_allowed", StatusCode::METHOD_NOT_ALLOWED, "This cannot be done here"),
    ("idempotency_conflict", StatusCode::CONFLICT, "The idempotency key is taken"),
    ("conflict", StatusCode::CONFLICT, "The present state does not allow this"),
    ("lease_gone", StatusCode::GONE, "The lease has ended"),
    ("fence_mismatch", StatusCode::PRECONDITION_FAILED, "The fence is not the lease's"),
    ("body_too_large", StatusCode::PAYLOAD_TOO_LARGE, "The request is too large"),
    ("unsatisfiable", StatusCode::UNPROCESSABLE_ENTITY, "No worker could ever do"),
    ("no_capacity", StatusCode::SERVICE_UNAVAILABLE, "No worker is free"),
    ("stopping", StatusCode::SERVICE_UNAVAILABLE, "The server is stopping"),
    ("state_unavailable", StatusCode::SERVICE_UNAVAILABLE, "The state cannot be used"),
    ("provider_unavailable", StatusCode::BAD_GATEWAY, "The provider cannot be used"),
    ("internal", StatusCode::INTERNAL_SERVER_ERROR, "Something is broken here"),
];

/// Returns every code with its status, for the API's description.
pub(super) fn kinds() -> impl Iterator<Item = (&'static str, u16, &'static str)> {
    KINDS.iter().map(|(code, status, title)| (*code, status.as_u16(), *title))
}

impl Problem {
    /// Builds a problem of one of the known kinds.
    pub(super) fn new(code: &'static str, detail: impl Into<String>) -> Self {
        let found = KINDS.iter().find(|(known, ..)| *known == code);
        let (status, title) = found
            .map_or((StatusCode::INTERNAL_SERVER_ERROR, ""), |(_, status, title)| {
                (*status, *title)
            });
        Self(Box::new(ProblemBody {
            kind: format!("urn:pool:problem:{code}"),
            status: status.as_u16(),
            code,
            title,
            detail: detail.into(),
            unmet: Vec::new(),
            phases: BTreeMap::new(),
            retry_after_seconds: None,
        }))
    }

    pub(super) fn invalid(detail: impl Into<String>) -> Self {
        Self::new("invalid_request", detail)
    }

    pub(super) fn foreign(who: &str) -> Self {
        let detail = format!(
            "`{who}` is not this machine: the server answers no web pages, and only to a loopback name"
        );
        Self::new("foreign_origin", detail)
    }

    pub(super) fn no_pool(pool: &str) -> Self {
        Self::new("pool_not_found", format!("there is no pool `{pool}`; GET /v1/pools lists them"))
    }

    pub(super) fn no_worker(name: &str) -> Self {
        let detail = format!("there is no worker `{name}`; GET /v1/workers lists them");
        Self::new("worker_not_found", detail)
    }

    pub(super) fn no_lease(id: &str) -> Self {
        Self::new("lease_not_found", format!("there is no lease `{id}`"))
    }

    pub(super) fn lease_gone(id: LeaseId, ending: &str) -> Self {
        Self::new("lease_gone", format!("lease {id} has ended: {ending}"))
    }

    pub(super) fn no_route(path: &str) -> Self {
        let detail = format!("there is nothing at {path}; GET /v1/openapi.json describes the API");
        Self::new("route_not_found", detail)
    }

    pub(super) fn no_method(method: &str, path: &str) -> Self {
        Self::new("method_not_allowed", format!("{path} does not take {method}"))
    }

    fn retry_after(mut self, after: Duration) -> Self {
        let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
        self.0.retry_after_seconds = Some(seconds.max(1));
        self
    }
}

impl From<AcquireError> for Problem {
    fn from(error: AcquireError) -> Self {
        let detail = error.to_string();
        match error {
            AcquireError::State(error) => error.into(),
            AcquireError::UnknownPool(pool) => Self::no_pool(pool.as_str()),
            AcquireError::Unsatisfiable(unmet) if unmet.is_empty() => Self::new(
                "unsatisfiable",
                "`count` is more workers than the pools that could serve it keep (`fixed_size`)",
            ),
            AcquireError::Unsatisfiable(unmet) => {
                let unmet: Vec<String> = unmet.iter().map(ToString::to_string).collect();
                let detail = format!("no worker meets {}", unmet.join(" and "));
                let mut problem = Self::new("unsatisfiable", detail);
                problem.0.unmet = unmet;
                problem
            }
            AcquireError::TtlTooLong { .. } => Self::invalid(detail),
            AcquireError::NoneFree { unsure, retry_after } => {
                let detail = match unsure {
                    0 => "no worker became free in time; ask again, or wait longer (`wait`)",
                    _ => {
                        "none of the free workers could be found well in time: their probes get no answer (the \
                          server's log says why), or take longer; ask again, or wait longer (`wait`)"
                    }
                };
                Self::new("no_capacity", detail).retry_after(retry_after)
            }
            AcquireError::LineFull => {
                Self::new("no_capacity", detail).retry_after(Duration::from_secs(5))
            }
            AcquireError::KeyConflict => Self::new(
                "idempotency_conflict",
                "the key was used for another request within 24 hours; use a new key",
            ),
            AcquireError::KeyGone => Self::new(
                "lease_gone",
                "the leases that this key was answered with have ended; use a new key",
            ),
            AcquireError::Closing => {
                Self::new("stopping", detail).retry_after(Duration::from_secs(1))
            }
        }
    }
}

impl From<StateError> for Problem {
    fn from(error: StateError) -> Self {
        let detail = match error.hint() {
            Some(hint) => format!("{error}; {hint}"),
            None => error.to_string(),
        };
        match error {
            StateError::Conflict(_) | StateError::Leased(_) | StateError::Locked { .. } => {
                Self::new("conflict", detail)
            }
            _ => Self::new("state_unavailable", detail).retry_after(Duration::from_secs(5)),
        }
    }
}

impl From<PoolError> for Problem {
    fn from(error: PoolError) -> Self {
        let detail = error.to_string();
        match error {
            PoolError::State(error) => error.into(),
            PoolError::Acquire(error) => error.into(),
            PoolError::UnknownWorker(name) => Self::no_worker(&name),
            PoolError::UnknownProvider(_) | PoolError::Provider { .. } => {
                Self::new("provider_unavailable", detail)
            }
            PoolError::Misfits(_) | PoolError::Refused(_) => Self::new("conflict", detail),
            PoolError::BrokenPlan(_) => Self::new("internal", detail),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let retry_after = self.0.retry_after_seconds;
        let body = serde_json::to_vec(&self.0).unwrap_or_default();
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        let kind = HeaderValue::from_static("application/problem+json");
        headers.insert(header::CONTENT_TYPE, kind);
        if let Some(seconds) = retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// A handler that panicked is a bug of ours; the others go on.
#[expect(clippy::needless_pass_by_value, reason = "the layer's signature")]
pub(super) fn panicked(panic: Box<dyn Any + Send + 'static>) -> Response {
    let what = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or(panic.downcast_ref::<&str>().copied())
        .unwrap_or("a bug");
    tracing::error!(what, "a request was not answered");
    Problem::new("internal", "this is a bug of pool; the log says more").into_response()
}
