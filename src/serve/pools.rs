//! Pools and workers: looking at them, and deciding about single workers.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use serde_json::{Value, json};

use super::Served;
use super::leases::{asked, pool_id};
use super::problem::Problem;
use super::wire::{PoolBody, PoolList, QueueBody, ReconcileBody, WorkerQuery};
use crate::pool::{ResourcePool as _, StaticPoolState, WorkerStatus};
use crate::probe::Probed;
use crate::state::{EventFilter, Mark, PoolSummary, WorkerKey};
use crate::worker::WorkerName;

/// Who decides about workers over HTTP, as events name it.
const WHO: &str = "the API";
/// How much of a worker's history is told.
const HISTORY: u32 = 200;

pub(super) async fn list(State(served): State<Arc<Served>>) -> Result<Json<PoolList>, Problem> {
    let summaries = served.keeper.store().summaries().await?;
    let pools = summaries.into_iter().map(|summary| body(&served, summary)).collect();
    Ok(Json(PoolList { pools }))
}

pub(super) async fn show(
    State(served): State<Arc<Served>>,
    Path(id): Path<String>,
) -> Result<Json<PoolBody>, Problem> {
    let pool = pool_id(&id)?;
    let mut summaries = served.keeper.store().summaries().await?.into_iter();
    let found = summaries.find(|summary| summary.pool == pool);
    found.map(|summary| Json(body(&served, summary))).ok_or_else(|| Problem::no_pool(&id))
}

fn body(served: &Served, summary: PoolSummary) -> PoolBody {
    let waiting = served.keeper.desk().waiting(&summary.pool);
    let looked = served.keeper.looked().remove(&summary.pool);
    let (fixed_size, availability) = (summary.fixed_size(), summary.availability());
    let (config, applied_at, origin) = match summary.applied {
        Some((config, at, origin)) => (Some(config), Some(at), Some(origin)),
        None => (None, None, None),
    };
    PoolBody {
        id: summary.pool.to_string(),
        serial: summary.serial,
        config,
        applied_at,
        origin,
        fixed_size,
        phases: summary.phases.iter().map(|(phase, n)| (phase.to_string(), *n)).collect(),
        leased: summary.leased,
        free: summary.free,
        availability,
        queue: QueueBody {
            length: waiting.requests,
            oldest_wait_ms: u64::try_from(waiting.oldest.as_millis()).unwrap_or(u64::MAX),
        },
        last_reconcile: looked.map(|looked| ReconcileBody { at: looked.at, error: looked.error }),
        config_error: served.keeper.config_error(),
    }
}

pub(super) async fn workers(
    State(served): State<Arc<Served>>,
    query: Result<Query<WorkerQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Value>, Problem> {
    let only = asked(query)?.pool.as_deref().map(pool_id).transpose()?;
    let pools = served.keeper.store().load().await?;
    let workers: Vec<WorkerStatus> = pools
        .iter()
        .filter(|pool| only.as_ref().is_none_or(|only| *only == pool.id))
        .flat_map(|pool| StaticPoolState::of(pool).workers)
        .collect();
    Ok(Json(json!({ "workers": workers })))
}

pub(super) async fn worker(
    State(served): State<Arc<Served>>,
    Path(name): Path<String>,
) -> Result<Json<Value>, Problem> {
    let worker = worker_name(&name)?;
    let Some(status) = status(&served, &worker).await? else {
        return Err(Problem::no_worker(&name));
    };
    let filter = EventFilter {
        pool: Some(worker.pool.clone()),
        slot: Some(worker.slot),
        last: Some(HISTORY),
    };
    let mut history = served.keeper.store().events(filter).await?;
    history.retain(|event| event.generation == Some(worker.generation));
    let mut body = serde_json::to_value(status).unwrap_or_default();
    body["history"] = serde_json::to_value(history).unwrap_or_default();
    Ok(Json(body))
}

async fn status(served: &Served, name: &WorkerName) -> Result<Option<WorkerStatus>, Problem> {
    let pool = served.keeper.store().load_pool(&name.pool).await?;
    let workers = pool.map(|pool| StaticPoolState::of(&pool).workers).unwrap_or_default();
    let is_meant =
        |worker: &WorkerStatus| worker.slot == name.slot && worker.generation == name.generation;
    Ok(workers.into_iter().find(is_meant))
}

pub(super) async fn act(
    State(served): State<Arc<Served>>,
    Path((name, verb)): Path<(String, String)>,
) -> Result<Json<Value>, Problem> {
    let worker = worker_name(&name)?;
    let mark = match verb.as_str() {
        "cordon" => Mark::Cordon,
        "uncordon" => Mark::Uncordon,
        "drain" => Mark::Drain,
        "quarantine" => Mark::Quarantine,
        "verify" => return verify(&served, &worker).await,
        "replace" => return replace(&served, &worker).await,
        _ => {
            let known = "cordon, uncordon, drain, quarantine, verify, replace";
            let detail = format!("a worker has no `{verb}`; it has {known}");
            return Err(Problem::new("route_not_found", detail));
        }
    };
    if !served.keeper.store().mark(&worker, mark, WHO).await? {
        return Err(Problem::no_worker(&name));
    }
    served.keeper.look_again();
    described(&served, &worker, BTreeMap::new()).await
}

async fn verify(served: &Served, worker: &WorkerName) -> Result<Json<Value>, Problem> {
    let pool = served.keeper.pool(&worker.pool).await?;
    let pool = pool.ok_or_else(|| Problem::no_worker(&worker.to_string()))?;
    let probed = pool.verify(key(worker)).await?;
    let (healthy, why) = match probed {
        Probed::Passed => (true, Value::Null),
        Probed::Failed(why) | Probed::Gone(why) | Probed::Unasked(why) => (false, json!(why)),
    };
    served.keeper.look_again();
    described(served, worker, BTreeMap::from([("healthy", json!(healthy)), ("why", why)])).await
}

/// A replacement takes as long as its provider does: it is begun here, and events tell how it goes.
async fn replace(served: &Served, worker: &WorkerName) -> Result<Json<Value>, Problem> {
    if !served.keeper.store().retire(worker, WHO).await? {
        return Err(Problem::no_worker(&worker.to_string()));
    }
    served.keeper.look_again();
    described(served, worker, BTreeMap::new()).await
}

async fn described(
    served: &Served,
    worker: &WorkerName,
    more: BTreeMap<&str, Value>,
) -> Result<Json<Value>, Problem> {
    let found = status(served, worker).await?;
    let status = found.ok_or_else(|| Problem::no_worker(&worker.to_string()))?;
    let mut body = serde_json::to_value(status).unwrap_or_default();
    for (name, value) in more {
        body[name] = value;
    }
    Ok(Json(body))
}

fn key(worker: &WorkerName) -> WorkerKey {
    WorkerKey { slot: worker.slot, generation: worker.generation }
}

fn worker_name(text: &str) -> Result<WorkerName, Problem> {
    text.parse().map_err(|_| Problem::no_worker(text))
}
