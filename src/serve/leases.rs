//! Acquiring, renewing and releasing leases.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use super::Served;
use super::problem::Problem;
use super::wire::{
    LeaseAnswer, LeaseBody, LeaseList, LeaseQuery, LeaseRequest, LeasedWorker, ReleaseQuery,
    RenewRequest,
};
use crate::config::HumanDuration;
use crate::lease::ask::AskKey;
use crate::lease::{Ask, LeaseId, Selector};
use crate::pool::AcquireError;
use crate::state::{Lease, LeaseFilter, Renewed};
use crate::worker::PoolId;

/// The header that makes a request repeatable.
const KEY: &str = "idempotency-key";
const LONGEST_KEY: usize = 256;
/// The longest wait, and the largest metadata, that a request may ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);
const MOST_METADATA: usize = 16 * 1024;
const MOST_WORKERS: u32 = 1000;

type Body = Result<Bytes, BytesRejection>;
type Asked<T> = Result<Query<T>, axum::extract::rejection::QueryRejection>;

pub(super) async fn acquire(
    State(served): State<Arc<Served>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let body = bytes(body)?;
    let request: LeaseRequest = parse(&body)?;
    let wait = request.wait.get();
    let ask = ask(request, &headers, &body)?;
    let pool = ask.selector.pool.clone();
    let given = match served.keeper.desk().acquire(ask, wait).await {
        Ok(given) => given,
        Err(error) => return Err(refused(&served, error, pool).await),
    };
    let (replay, waited_ms) = (given.replay, as_ms(given.waited));
    let leases = given.leases().iter().map(lease_body).collect();
    let status = if replay { StatusCode::OK } else { StatusCode::CREATED };
    let response = (status, Json(LeaseAnswer { leases, waited_ms, replay })).into_response();
    // From here on a hang-up cannot be seen: the leases are the holder's.
    drop(given.accept());
    Ok(response)
}

/// Says why nothing is free, with numbers.
async fn refused(served: &Served, error: AcquireError, pool: Option<PoolId>) -> Problem {
    let unsure = match error {
        AcquireError::NoneFree { unsure, .. } => Some(unsure),
        AcquireError::LineFull => Some(0),
        _ => None,
    };
    let mut problem = Problem::from(error);
    if let Some(unsure) = unsure
        && let Ok(summaries) = served.keeper.recent_summaries().await
    {
        let asked = summaries.iter().filter(|s| pool.as_ref().is_none_or(|pool| *pool == s.pool));
        let mut phases: BTreeMap<String, u32> = BTreeMap::new();
        for summary in asked {
            for (phase, count) in &summary.phases {
                *phases.entry(phase.to_string()).or_default() += count;
            }
            // What is ready and cannot be had is told as what keeps it, and not as ready as well.
            let kept = [
                ("leased", summary.leased),
                ("cordoned", summary.cordoned),
                ("suspect", summary.suspect),
            ];
            for (why, count) in kept.into_iter().filter(|(_, count)| *count > 0) {
                *phases.entry(why.to_owned()).or_default() += count;
            }
            let kept = summary.leased_ready + summary.cordoned + summary.suspect;
            let ready = phases.entry("ready".to_owned()).or_default();
            *ready = ready.saturating_sub(kept);
        }
        let unsure = u32::try_from(unsure).unwrap_or(u32::MAX);
        if let Some(ready) = phases.get_mut("ready")
            && unsure > 0
        {
            let unverified = unsure.min(*ready);
            *ready -= unverified;
            phases.insert("unverified".to_owned(), unverified);
        }
        problem.0.phases = phases;
    }
    problem
}

pub(super) async fn list(
    State(served): State<Arc<Served>>,
    query: Asked<LeaseQuery>,
) -> Result<Json<LeaseList>, Problem> {
    let query = asked(query)?;
    let pool = query.pool.as_deref().map(pool_id).transpose()?;
    let filter = LeaseFilter { pool, holder: query.holder };
    let leases = served.keeper.store().leases(filter).await?;
    Ok(Json(LeaseList { leases: leases.iter().map(lease_body).collect() }))
}

pub(super) async fn show(
    State(served): State<Arc<Served>>,
    Path(id): Path<String>,
) -> Result<Json<LeaseBody>, Problem> {
    let lease = served.keeper.store().lease(lease_id(&id)?).await?;
    lease.map(|lease| Json(lease_body(&lease))).ok_or_else(|| Problem::no_lease(&id))
}

pub(super) async fn renew(
    State(served): State<Arc<Served>>,
    Path(id): Path<String>,
    body: Body,
) -> Result<Json<LeaseBody>, Problem> {
    let request: RenewRequest = parse(&bytes(body)?)?;
    let ttl = positive(request.ttl)?;
    let number = lease_id(&id)?;
    match served.keeper.desk().renew(number, request.fence, ttl).await? {
        Renewed::Lease(lease) => Ok(Json(lease_body(&lease))),
        Renewed::Unknown => Err(Problem::no_lease(&id)),
        Renewed::Gone(lease) => {
            let ending = lease.ended.map(|(_, ending)| ending).unwrap_or_default();
            Err(Problem::lease_gone(number, &ending))
        }
        Renewed::WrongFence => {
            let detail = format!("the fence of lease {id} is not {}", request.fence);
            Err(Problem::new("fence_mismatch", detail))
        }
        Renewed::TtlTooLong(most) => {
            let most = HumanDuration::from_secs(most.as_secs());
            Err(Problem::invalid(format!("a lease of this pool lasts at most {most}")))
        }
    }
}

pub(super) async fn release(
    State(served): State<Arc<Served>>,
    Path(id): Path<String>,
    query: Asked<ReleaseQuery>,
) -> Result<StatusCode, Problem> {
    let outcome = asked(query)?.outcome;
    let number = lease_id(&id)?;
    let ended_now = served.keeper.desk().release(number, outcome).await?;
    // One that ended before is as good as released; one that never was is a mistake.
    if !ended_now && served.keeper.store().lease(number).await?.is_none() {
        return Err(Problem::no_lease(&id));
    }
    Ok(StatusCode::NO_CONTENT)
}

fn ask(request: LeaseRequest, headers: &HeaderMap, body: &[u8]) -> Result<Ask, Problem> {
    let selector = match (request.pool, request.selector) {
        (Some(pool), None) => Selector::of_pool(pool_id(&pool)?),
        (None, Some(body)) => Selector {
            pool: body.pool.as_deref().map(pool_id).transpose()?,
            worker_type: body.worker_type,
            labels: body.labels,
            tags: body.tags,
            min_cpu_cores: body.min_cpu_cores,
            min_memory_mb: body.min_memory_mb,
            docker: body.docker,
        },
        (Some(_), Some(_)) => {
            return Err(Problem::invalid("give either `pool` or `selector`; it has a `pool` too"));
        }
        (None, None) => {
            return Err(Problem::invalid("give `pool`, or a `selector`: {} takes any worker"));
        }
    };
    if request.holder.is_empty() || request.holder.len() > 256 {
        return Err(Problem::invalid("`holder` says who asks, in 1 to 256 bytes"));
    }
    if !(1..=MOST_WORKERS).contains(&request.count) {
        return Err(Problem::invalid(format!("`count` is from 1 to {MOST_WORKERS}")));
    }
    if request.purpose.as_ref().is_some_and(|purpose| purpose.len() > 1024) {
        return Err(Problem::invalid("`purpose` has at most 1024 bytes"));
    }
    if request.wait.get() > LONGEST_WAIT {
        return Err(Problem::invalid("`wait` is at most 1h"));
    }
    let metadata = serde_json::to_vec(&request.metadata).map_or(0, |text| text.len());
    if metadata > MOST_METADATA {
        return Err(Problem::invalid(format!("`metadata` has at most {MOST_METADATA} bytes")));
    }
    let key = key(headers, &request.holder, body)?;
    Ok(Ask {
        selector,
        count: request.count,
        ttl: positive(request.ttl)?,
        priority: request.priority,
        holder: request.holder,
        purpose: request.purpose,
        metadata: request.metadata,
        avoid: request.avoid_workers,
        key,
    })
}

/// The key is the caller's own: two holders may use the same one.
fn key(headers: &HeaderMap, holder: &str, body: &[u8]) -> Result<Option<AskKey>, Problem> {
    let Some(value) = headers.get(KEY) else { return Ok(None) };
    let value = value.as_bytes();
    if value.is_empty() || value.len() > LONGEST_KEY {
        return Err(Problem::invalid(format!("Idempotency-Key has 1 to {LONGEST_KEY} bytes")));
    }
    let mut caller = Sha256::new();
    caller.update(holder.as_bytes());
    caller.update([0]);
    caller.update(value);
    let half = |digest: &[u8]| {
        let mut half = [0; 16];
        half.copy_from_slice(&digest[..16]);
        half
    };
    // What was asked, not how it was written.
    let canonical: serde_json::Value =
        serde_json::from_slice(body).map_err(|error| Problem::invalid(error.to_string()))?;
    let asked = sorted(&canonical).to_string();
    Ok(Some(AskKey { key: half(&caller.finalize()), body: half(&Sha256::digest(asked)) }))
}

/// Puts the fields of every mapping in order of their names.
fn sorted(value: &serde_json::Value) -> serde_json::Value {
    match value {
        serde_json::Value::Object(fields) => {
            let fields: BTreeMap<&String, serde_json::Value> =
                fields.iter().map(|(name, value)| (name, sorted(value))).collect();
            serde_json::to_value(fields).unwrap_or_default()
        }
        serde_json::Value::Array(items) => items.iter().map(sorted).collect(),
        other => other.clone(),
    }
}

fn positive(ttl: Option<HumanDuration>) -> Result<Option<Duration>, Problem> {
    match ttl.map(HumanDuration::get) {
        Some(ttl) if ttl.is_zero() => Err(Problem::invalid("`ttl` must be longer than 0s")),
        ttl => Ok(ttl),
    }
}

fn as_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn bytes(body: Body) -> Result<Bytes, Problem> {
    body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            Problem::new("body_too_large", format!("a body has at most {} bytes", super::MOST_BODY))
        }
        _ => Problem::invalid(rejection.body_text()),
    })
}

/// Whatever the Content-Type says, a body is JSON.
pub(super) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    if body.is_empty() {
        return Err(Problem::invalid("the body is empty; it is a JSON object"));
    }
    if !matches!(body.iter().find(|byte| !byte.is_ascii_whitespace()), Some(b'{')) {
        return Err(Problem::invalid("the body is a JSON object"));
    }
    serde_json::from_slice(body)
        .map_err(|error| Problem::invalid(format!("the body is not what is expected: {error}")))
}

pub(super) fn asked<T>(query: Asked<T>) -> Result<T, Problem> {
    query.map(|Query(query)| query).map_err(|rejection| Problem::invalid(rejection.body_text()))
}

pub(super) fn pool_id(text: &str) -> Result<PoolId, Problem> {
    text.parse().map_err(|_| Problem::no_pool(text))
}

fn lease_id(text: &str) -> Result<LeaseId, Problem> {
    text.parse().map_err(|_| Problem::no_lease(text))
}

fn lease_body(lease: &Lease) -> LeaseBody {
    let worker = lease.spec.as_ref().map(|spec| &spec.worker);
    let (ended_at, ending) = lease.ended.clone().unzip();
    LeaseBody {
        id: lease.id.to_string(),
        fence: lease.id.number,
        pool: lease.name.pool.to_string(),
        slot: lease.name.slot.0,
        generation: lease.name.generation.0,
        worker: LeasedWorker {
            name: lease.name.to_string(),
            addresses: lease.addresses.clone(),
            labels: worker.map(|worker| worker.labels.clone()).unwrap_or_default(),
            tags: worker.map(|worker| worker.tags.clone()).unwrap_or_default(),
            attributes: lease.attributes.clone(),
        },
        holder: lease.holder.clone(),
        purpose: lease.purpose.clone(),
        granted_at: lease.granted_at,
        expires_at: lease.expires_at,
        verified_at: lease.verified_at,
        verified_by: lease.verified_by.clone(),
        uses: lease.uses,
        metadata: lease.metadata.clone(),
        trouble: lease.trouble.clone(),
        ended_at,
        ending,
    }
}
