//! Signs of life: alive, ready, metrics.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use super::Served;
use super::leases::asked;
use super::problem::Problem;
use super::wire::ReadyQuery;
use crate::worker::PoolId;

pub(super) async fn alive() -> &'static str {
    "ok\n"
}

pub(super) async fn ready(
    State(served): State<Arc<Served>>,
    query: Result<Query<ReadyQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, Problem> {
    let verbose = asked(query)?.verbose.is_some();
    let summaries = served.keeper.store().summaries().await?;
    let looked = served.keeper.looked();
    let mut pools = Map::new();
    let mut all = true;
    for summary in summaries.iter().filter(|summary| summary.applied.is_some()) {
        let seen = looked.get(&summary.pool);
        let probed = served.keeper.is_probed(&summary.pool);
        all &= seen.is_some() && probed;
        let error = seen.and_then(|seen| seen.error.clone());
        let entry = json!({
            "observed": seen.is_some_and(|seen| seen.observed), "probed": probed, "availability": summary.availability(),
            "error": error, "looked_at": seen.map(|seen| seen.at.to_string()),
        });
        pools.insert(summary.pool.to_string(), entry);
    }
    let config_error = served.keeper.config_error();
    // With files that were not applied yet, or never could be, there is nothing to lease.
    all &= !(pools.is_empty() && (config_error.is_some() || served.keeper.awaits_files()));
    let status = if all { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let word = if all {
        "ready"
    } else {
        "not ready: a pool has yet to be looked at, or the files to be applied"
    };
    if !verbose {
        return Ok((status, format!("{word}\n")).into_response());
    }
    let body = json!({ "ready": all, "pools": Value::Object(pools), "config_error": config_error });
    Ok((status, Json(body)).into_response())
}

pub(super) async fn metrics(State(served): State<Arc<Served>>) -> Result<Response, Problem> {
    let summaries = served.keeper.store().summaries().await?;
    let waiting = |pool: &PoolId| served.keeper.desk().waiting(pool);
    let refused = served.keeper.config_error().is_some();
    let others = (served.keeper.store().log_size(), refused);
    let text = served.metrics.encode(&summaries, waiting, others);
    // The type that prometheus-client writes (prometheus.io/docs/specs/om/open_metrics_spec).
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}
