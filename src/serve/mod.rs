//! The HTTP server: a thin door to the desk, the pools and the record.
//!
//! A handler reads the request, calls one room below and turns what comes back into JSON; it decides
//! nothing. Errors are problems as RFC 9457 has them, in one place.
//!
//! | module      | holds                                                   |
//! |-------------|---------------------------------------------------------|
//! | [`wire`]    | what goes over the wire: the contract of `/v1`             |
//! | [`problem`] | errors                                                    |
//! | `leases`    | acquiring, renewing, releasing                             |
//! | `pools`     | pools and workers                                          |
//! | `events`    | what happened, as it happens                               |
//! | `signs`     | alive, ready, metrics                                      |
//! | [`metered`] | counts the calls of providers                              |
//! | [`metrics`] | what is measured                                           |
//! | [`openapi`] | the description of all this                                |
//! | [`listen`]  | connections, their limits, and how serving ends             |
//!
//! Does not know flags, SQL or how a provider works.

mod events;
mod leases;
pub mod listen;
pub mod metered;
pub mod metrics;
pub mod openapi;
mod pools;
pub mod problem;
mod signs;
pub mod wire;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};
use axum::{Router, middleware};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::request_id::{PropagateRequestIdLayer, SetRequestIdLayer};
use tower_http::timeout::RequestBodyTimeoutLayer;
use tower_http::trace::TraceLayer;

use self::metrics::Metrics;
use self::problem::Problem;
use crate::clock::Entropy;
use crate::pool::Keeper;

/// The largest request body.
const MOST_BODY: usize = 64 * 1024;
/// How long a client may pause while it sends its body.
const BODY_PAUSE: Duration = Duration::from_secs(10);

/// Everything that handlers need.
#[derive(Debug)]
pub struct Served {
    /// The pools, and those who look after them.
    pub keeper: Keeper,
    /// What is measured.
    pub metrics: Arc<Metrics>,
}

/// Builds the routes.
pub fn router(served: Arc<Served>, entropy: &Entropy) -> Router {
    let v1 = Router::new()
        .route("/leases", post(leases::acquire).get(leases::list))
        .route("/leases/{id}", get(leases::show).delete(leases::release))
        .route("/leases/{id}/renew", post(leases::renew))
        .route("/pools", get(pools::list))
        .route("/pools/{id}", get(pools::show))
        .route("/workers", get(pools::workers))
        .route("/workers/{name}", get(pools::worker))
        .route("/workers/{name}/{verb}", post(pools::act))
        .route("/events", get(events::stream))
        .route("/openapi.json", get(openapi::answer));
    Router::new()
        .nest("/v1", v1)
        .route("/healthz", get(signs::alive))
        .route("/readyz", get(signs::ready))
        .route("/metrics", get(signs::metrics))
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(DefaultBodyLimit::max(MOST_BODY))
        .layer(middleware::from_fn(listen::from_here))
        .layer(RequestBodyTimeoutLayer::new(BODY_PAUSE))
        .layer(PropagateRequestIdLayer::x_request_id())
        .layer(TraceLayer::new_for_http().make_span_with(listen::span).on_failure(()))
        .layer(SetRequestIdLayer::x_request_id(listen::RequestIds::new(entropy)))
        .layer(CatchPanicLayer::custom(problem::panicked))
        .with_state(served)
}

async fn no_route(uri: axum::http::Uri) -> Problem {
    Problem::no_route(uri.path())
}

async fn no_method(method: axum::http::Method, uri: axum::http::Uri) -> Problem {
    Problem::no_method(method.as_str(), uri.path())
}
