//! What happened, as it happens: server-sent events, resumable by their number.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::http::HeaderMap;
use axum::response::IntoResponse;
use axum::response::sse::{Event as Message, KeepAlive, Sse};
use futures_util::stream;

use super::Served;
use super::leases::asked;
use super::problem::Problem;
use super::wire::EventQuery;
use crate::state::Event;

/// How often the record is looked at for more.
const LOOK: Duration = Duration::from_millis(200);
/// How many events are read at once.
const AT_ONCE: u32 = 500;
/// How often a silent stream says that it is alive.
const ALIVE: Duration = Duration::from_secs(15);

/// Where a client is.
struct Reader {
    served: Arc<Served>,
    after: i64,
    /// Read, and not yet sent; latest first.
    pending: Vec<Event>,
}

pub(super) async fn stream(
    State(served): State<Arc<Served>>,
    headers: HeaderMap,
    query: Result<Query<EventQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<impl IntoResponse, Problem> {
    // A client that reconnects by itself says in a header where it was (html.spec.whatwg.org).
    let last = headers.get("last-event-id").and_then(|value| value.to_str().ok()?.parse().ok());
    let after = match last.or(asked(query)?.after) {
        Some(after) => after,
        None => served.keeper.store().last_event().await?,
    };
    let reader = Reader { served, after, pending: Vec::new() };
    let messages = stream::unfold(reader, |mut reader| async {
        let event = reader.next().await?;
        Some((Ok::<_, Infallible>(message(&event)), reader))
    });
    Ok(Sse::new(messages).keep_alive(KeepAlive::new().interval(ALIVE)))
}

impl Reader {
    /// Returns the next event, once there is one; `None` when the server stops.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.pending.pop() {
                self.after = event.seq;
                return Some(event);
            }
            let store = self.served.keeper.store();
            match store.events_after(self.after, AT_ONCE).await {
                Ok(events) if events.is_empty() => {
                    tokio::select! {
                        () = tokio::time::sleep(LOOK) => {}
                        () = self.served.keeper.closed() => return None,
                    }
                }
                Ok(mut events) => {
                    events.reverse();
                    self.pending = events;
                }
                Err(error) => {
                    tracing::warn!(%error, "a stream of events ends");
                    return None;
                }
            }
        }
    }
}

fn message(event: &Event) -> Message {
    let data = serde_json::to_string(event).unwrap_or_default();
    Message::default().id(event.seq.to_string()).event(event.kind.as_str()).data(data)
}
