//! Connections: their limits, and how serving ends.
//!
//! A client that sends its headers slowly, or never, holds a connection and nothing else, and not for
//! long. When serving ends no connection is taken any more, whoever waits for workers is answered, and
//! what is being answered is finished.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderMap, HeaderValue, Request, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};
use tower_http::request_id::{MakeRequestId, RequestId};

use super::problem::Problem;
use crate::clock::Entropy;

/// How long a client may take for its headers, and so how long an idle connection is kept.
const HEADERS_WITHIN: Duration = Duration::from_secs(30);
/// The most headers of a request, and the most bytes of them.
const MOST_HEADERS: usize = 64;
const MOST_HEADER_BYTES: usize = 16 * 1024;
/// How long what is being answered may take once serving ends.
const LAST_ANSWERS: Duration = Duration::from_secs(5);
/// How long no connection is taken when the system has no more of them.
const PAUSE: Duration = Duration::from_millis(50);

/// Why a server cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody could listen from elsewhere.
    #[error("{0} can be reached from other machines")]
    Exposed(SocketAddr),
    /// The system refuses.
    #[error("listening on {address}: {source}")]
    Refused {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// Binds a loopback address. Everybody who reaches the server may do everything: it has neither tokens nor
/// TLS, so others must not reach it.
///
/// # Errors
/// When the address is not a loopback address, or taken.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, ListenError> {
    if !address.ip().is_loopback() {
        return Err(ListenError::Exposed(address));
    }
    TcpListener::bind(address).await.map_err(|source| ListenError::Refused { address, source })
}

/// Serves until `stop` is ready; then `closing` is run and what is being answered is finished.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    stop: impl Future<Output = ()>,
    closing: impl FnOnce(),
) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEADERS_WITHIN)
        .max_headers(MOST_HEADERS)
        .max_buf_size(MOST_HEADER_BYTES.max(8192) + super::MOST_BODY);
    let graceful = GracefulShutdown::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        let stream = tokio::select! {
            () = &mut stop => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a connection was not taken");
                    sleep(PAUSE).await;
                    continue;
                }
            },
        };
        // An answer is small, and somebody waits for it.
        let _slower = stream.set_nodelay(true).is_err();
        let service = TowerToHyperService::new(router.clone());
        let connection = graceful.watch(http.serve_connection(TokioIo::new(stream), service));
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended");
            }
        });
    }
    drop(listener);
    closing();
    if timeout(LAST_ANSWERS, graceful.shutdown()).await.is_err() {
        tracing::warn!("some requests were not answered in time");
    }
}

/// Lets in only those who mean this server. Everybody on this machine may ask, and that must not include
/// web pages in its browsers: they send an `Origin`, or reach it by a name that leads here.
pub(super) async fn from_here(request: Request<axum::body::Body>, next: Next) -> Response {
    match foreign(request.headers()) {
        Some(who) => Problem::foreign(&who).into_response(),
        None => next.run(request).await,
    }
}

/// Returns what tells that a request is not meant for this server.
fn foreign(headers: &HeaderMap) -> Option<String> {
    let text = |name: header::HeaderName| {
        headers.get(name).map(|value| value.to_str().unwrap_or("?").to_owned())
    };
    text(header::ORIGIN).or(text(header::HOST).filter(|host| !is_loopback(host)))
}

/// Returns whether a `Host` names this machine, whatever the port.
fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost" || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Numbers requests that do not bring an id of their own.
#[derive(Debug, Clone)]
pub(super) struct RequestIds {
    server: Arc<str>,
    next: Arc<AtomicU64>,
}

impl RequestIds {
    /// Numbers them behind a random part: ids of two servers differ.
    pub(super) fn new(entropy: &Entropy) -> Self {
        let server: String = entropy.bytes::<4>().iter().map(|b| format!("{b:02x}")).collect();
        Self { server: server.into(), next: Arc::default() }
    }
}

impl MakeRequestId for RequestIds {
    fn make_request_id<B>(&mut self, _request: &Request<B>) -> Option<RequestId> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let id = HeaderValue::try_from(format!("{}-{number}", self.server)).ok()?;
        Some(RequestId::new(id))
    }
}

/// What log lines of a request say of it.
pub(super) fn span<B>(request: &Request<B>) -> tracing::Span {
    let id = request.headers().get("x-request-id").and_then(|id| id.to_str().ok()).unwrap_or("");
    tracing::debug_span!("request", method = %request.method(), path = request.uri().path(), id)
}
