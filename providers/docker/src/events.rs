//! One stream of events for all workers of a deployment.
//!
//! Whoever watches a worker is told when anything happened to it, and looks. A stream that breaks is opened
//! again from where it ended, and everybody looks once: nothing that happened meanwhile is missed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bollard::models::EventMessage;
use bollard::query_parameters::EventsOptions;
use futures_util::StreamExt as _;
use jiff::Timestamp;
use pool_provider::{DeploymentId, marks};
use tokio::sync::broadcast::{self, Receiver, Sender};
use tokio::time::sleep;

use crate::engine::Door;
use crate::labels;

/// How many events may wait for whoever watches; who misses some looks.
const WAITING: usize = 1024;
/// How soon a stream that broke is opened again.
const AGAIN: Duration = Duration::from_secs(1);

/// What happened to one worker, or what makes everybody look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// Something happened to the worker of this id.
    Of(String, What),
    /// Something may have happened to anybody.
    Any,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum What {
    /// It stopped, or went away.
    Ended,
    /// Its health check changed its mind, or it ran out of memory.
    Stirred(String),
}

/// The streams of an engine, by deployment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Events(Arc<Mutex<BTreeMap<DeploymentId, Sender<Event>>>>);

impl Events {
    /// Returns what happens from now on.
    pub(crate) fn listen(&self, door: &Arc<Door>, owner: &DeploymentId) -> Receiver<Event> {
        let mut streams = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = streams.get(owner) {
            return known.subscribe();
        }
        let (sender, receiver) = broadcast::channel(WAITING);
        streams.insert(owner.clone(), sender.clone());
        let (all, door, owner) = (self.clone(), Arc::clone(door), owner.clone());
        tokio::spawn(async move { all.follow(&door, &owner, &sender).await });
        receiver
    }

    /// Follows the stream until nobody listens.
    async fn follow(&self, door: &Door, owner: &DeploymentId, sender: &Sender<Event>) {
        let mut since = None;
        loop {
            let nobody = async {
                while !self.forget(owner, sender) {
                    sleep(AGAIN).await;
                }
            };
            tokio::select! {
                () = nobody => return,
                () = once(door, owner, sender, &mut since) => {}
            }
            sleep(AGAIN).await;
        }
    }

    /// Ends the stream when nobody listens; nobody can begin to meanwhile.
    fn forget(&self, owner: &DeploymentId, sender: &Sender<Event>) -> bool {
        let mut streams = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if sender.receiver_count() > 0 {
            return false;
        }
        streams.remove(owner);
        true
    }
}

/// Reads one stream to its end. It begins with the latest event that is known, or at the engine's present: what
/// happens while it is being opened is in it.
async fn once(
    door: &Door,
    owner: &DeploymentId,
    sender: &Sender<Event>,
    since: &mut Option<Timestamp>,
) {
    let Ok(engine) = door.engine().await else { return };
    // An engine that is away makes nobody look.
    let Ok(time) = engine.time().await else { return };
    if since.is_none() {
        *since = time;
    }
    // Whoever looked before this moment looks once more.
    let _nobody_listens = sender.send(Event::Any).is_err();
    let mut filters = labels::filter(&[(marks::DEPLOYMENT, owner.as_str())]);
    filters.insert("type".to_owned(), vec!["container".to_owned()]);
    // Engines take seconds with a fraction here; dockerd takes no other form.
    let seconds = |time: Timestamp| format!("{}.{:09}", time.as_second(), time.subsec_nanosecond());
    let options = EventsOptions { since: since.map(seconds), until: None, filters: Some(filters) };
    let mut stream = engine.docker.events(Some(options));
    while let Some(Ok(message)) = stream.next().await {
        let at = message.time_nano.map(|nanos| Timestamp::from_nanosecond(i128::from(nanos)));
        if let Some(Ok(at)) = at {
            *since = Some(at);
        }
        if let Some(event) = read(message) {
            let _nobody_listens = sender.send(event).is_err();
        }
    }
}

fn read(message: EventMessage) -> Option<Event> {
    let id = message.actor?.attributes?.remove(labels::ID)?;
    let action = message.action?;
    let what = match action.as_str() {
        // podman says "died" and "remove".
        "die" | "died" | "destroy" | "remove" => What::Ended,
        "oom" => What::Stirred("it is out of memory".to_owned()),
        "pause" | "unpause" => What::Stirred(format!("its container was {action}d")),
        health if health.starts_with("health_status") => What::Stirred(action),
        _ => return None,
    };
    Some(Event::Of(id, what))
}
