//! Health, asked for many instances at once: whoever asks within a moment shares one `DescribeInstanceStatus`.
//!
//! | instance                                       | outcome                       |
//! |------------------------------------------------|-------------------------------|
//! | shutting down, terminated                        | gone                          |
//! | not known                                        | unhealthy; gone after `settle` |
//! | pending, stopping, stopped                      | unhealthy                     |
//! | running, a check not passed or not over           | unhealthy                     |
//! | running, AWS is going to end it                  | unhealthy                     |
//! | running, both checks passed                      | healthy                       |

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use pool_provider::{ProbeOutcome, ProviderError};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use crate::answer::{Status, Statuses};
use crate::client::Client;
use crate::refusal::Refusal;
use crate::request::Parameters;

/// How long the first one waits for others.
const GATHERING: Duration = Duration::from_millis(20);
/// How long after one call the next one is made: EC2 lets an account make some tens of these calls a second.
const BETWEEN: Duration = Duration::from_millis(200);
/// How many instances one call may ask for.
const MOST: usize = 100;

/// What is known of an instance; `None` when EC2 does not know it.
type Answer = Result<Option<Status>, ProviderError>;

/// Asks for many at once.
#[derive(Debug)]
pub(crate) struct Desk {
    client: Arc<Client>,
    queue: Arc<Mutex<Queue>>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Vec<(String, oneshot::Sender<Answer>)>,
    /// A task is at work until nobody waits.
    is_worked_on: bool,
    last: Option<Instant>,
}

impl Desk {
    pub(crate) fn new(client: Arc<Client>) -> Self {
        Self { client, queue: Arc::default() }
    }

    /// Returns what AWS's checks say of an instance.
    pub(crate) async fn ask(&self, id: &str) -> Answer {
        let (answer, answered) = oneshot::channel();
        let begins = {
            let mut queue = locked(&self.queue);
            queue.waiting.push((id.to_owned(), answer));
            !std::mem::replace(&mut queue.is_worked_on, true)
        };
        if begins {
            tokio::spawn(work(Arc::clone(&self.client), Arc::clone(&self.queue)));
        }
        let lost = || Err(ProviderError::Transient("asking for its status was broken off".into()));
        answered.await.unwrap_or_else(|_| lost())
    }
}

fn locked(queue: &Mutex<Queue>) -> MutexGuard<'_, Queue> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Somebody works on the queue until this is dropped, however that comes.
struct Working(Arc<Mutex<Queue>>);

impl Drop for Working {
    fn drop(&mut self) {
        locked(&self.0).is_worked_on = false;
    }
}

async fn work(client: Arc<Client>, queue: Arc<Mutex<Queue>>) {
    let working = Working(Arc::clone(&queue));
    loop {
        let last = locked(&queue).last;
        let soon = Instant::now() + GATHERING;
        sleep_until(last.map_or(soon, |last| soon.max(last + BETWEEN))).await;
        let waiting = {
            let mut queue = locked(&queue);
            queue.waiting.retain(|(_, answer)| !answer.is_closed());
            if queue.waiting.is_empty() {
                // Within the lock: whoever comes now begins anew.
                queue.is_worked_on = false;
                std::mem::forget(working);
                return;
            }
            queue.last = Some(Instant::now());
            std::mem::take(&mut queue.waiting)
        };
        let ids: BTreeSet<&str> = waiting.iter().map(|(id, _)| id.as_str()).collect();
        let ids: Vec<&str> = ids.into_iter().collect();
        let asked = ids.chunks(MOST).map(|some| statuses(&client, some.iter().copied().collect()));
        let mut found = BTreeMap::new();
        for (some, answer) in ids.chunks(MOST).zip(join_all(asked).await) {
            for id in some {
                let of_id = answer.as_ref().map(|statuses| statuses.get(*id).cloned());
                found.insert((*id).to_owned(), of_id.map_err(Clone::clone));
            }
        }
        for (id, answer) in waiting {
            if let Some(found) = found.get(&id) {
                // Whoever asked may be gone.
                let _heard = answer.send(found.clone()).is_ok();
            }
        }
    }
}

/// Asks for these instances; those that EC2 does not know are left out. One unknown instance has the whole call refused.
async fn statuses(
    client: &Client,
    mut ids: BTreeSet<&str>,
) -> Result<BTreeMap<String, Status>, ProviderError> {
    while !ids.is_empty() {
        let mut parameters: Parameters = vec![("IncludeAllInstances".into(), "true".into())];
        let numbered = (1..).zip(&ids).map(|(n, id)| (format!("InstanceId.{n}"), (*id).to_owned()));
        parameters.extend(numbered);
        match client.call::<Statuses>("DescribeInstanceStatus", &parameters).await {
            Ok(found) => return Ok(found.by_id()),
            Err(refusal) => {
                let before = ids.len();
                if refusal.is_unknown_instance() {
                    ids.retain(|id| !names(&refusal, id));
                }
                if ids.len() == before {
                    return Err(refusal.of_look("asking for the status of instances"));
                }
            }
        }
    }
    Ok(BTreeMap::new())
}

/// Returns whether a refusal names this instance.
fn names(refusal: &Refusal, id: &str) -> bool {
    let text = refusal.text();
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '-').any(|word| word == id)
}

/// Says what a status means.
pub(crate) fn judge(status: &Status) -> ProbeOutcome {
    let state = status.instance_state.name.as_str();
    if status.instance_state.is_over() {
        return ProbeOutcome::Gone(format!("its instance is {state}"));
    }
    if state != "running" {
        return ProbeOutcome::Unhealthy(format!("its instance is {state}"));
    }
    for (what, check) in [("system", &status.system_status), ("instance", &status.instance_status)]
    {
        match check.status.as_str() {
            "ok" => {}
            "initializing" => {
                let why = format!("EC2's {what} status check is not over yet");
                return ProbeOutcome::Unhealthy(why);
            }
            other => {
                let why = format!("EC2's {what} status check says `{other}`");
                return ProbeOutcome::Unhealthy(why);
            }
        }
    }
    status.end().map_or(ProbeOutcome::Healthy, ProbeOutcome::Unhealthy)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(state: &str, system: &str, instance: &str) -> String {
        let check = |status: &str| crate::answer::Check { status: status.to_owned() };
        let status = Status {
            instance_state: crate::answer::State { name: state.to_owned() },
            system_status: check(system),
            instance_status: check(instance),
            ..Status::default()
        };
        match judge(&status) {
            ProbeOutcome::Healthy => "healthy".to_owned(),
            ProbeOutcome::Unhealthy(why) => format!("unhealthy: {why}"),
            ProbeOutcome::Gone(why) => format!("gone: {why}"),
        }
    }

    #[test]
    fn both_checks_have_to_pass() {
        assert_eq!(judged("running", "ok", "ok"), "healthy");
        for (state, system, instance, expected) in [
            (
                "running",
                "initializing",
                "ok",
                "unhealthy: EC2's system status check is not over yet",
            ),
            ("running", "ok", "impaired", "unhealthy: EC2's instance status check says `impaired`"),
            ("pending", "", "", "unhealthy: its instance is pending"),
            ("stopped", "", "", "unhealthy: its instance is stopped"),
            ("shutting-down", "ok", "ok", "gone: its instance is shutting-down"),
            ("terminated", "", "", "gone: its instance is terminated"),
        ] {
            assert_eq!(judged(state, system, instance), expected);
        }
    }

    #[test]
    fn a_refusal_names_instances_as_words() {
        let refusal = Refusal::Code {
            code: "InvalidInstanceID.NotFound".into(),
            message: "The instance IDs 'i-0ab, i-1' do not exist".into(),
            retry_after: None,
        };
        assert!(names(&refusal, "i-0ab") && names(&refusal, "i-1"));
        assert!(!names(&refusal, "i-0a") && !names(&refusal, "i-11"));
    }
}
