//! Health, asked for many instances at once: whoever asks within a moment shares one `DescribeInstanceStatus`.
//!
//! | instance                                       | outcome                       |
//! |------------------------------------------------|-------------------------------|
//! | shutting down, terminated                        | gone                          |
//! | not known                                        | unhealthy; gone after `settle` |
//! | pending, stopping, stopped                      | unhealthy                     |
//! | running, a check not passed or not over           | unhealthy                     |
//! | running, no data for a check                     | nobody can tell                |
//! | running, AWS is going to end it                  | unhealthy                     |
//! | running, both checks passed                      | healthy                       |

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pool_provider::{ProbeOutcome, ProviderError};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use crate::answer::{Status, Statuses};
use crate::client::{Client, Limits};
use crate::refusal::Refusal;
use crate::request::Parameters;

/// How long the first one waits for others.
const GATHERING: Duration = Duration::from_millis(5);
/// How long after one call the next one is made in the long run: EC2 lets an account make some tens of these calls a second.
const BETWEEN: Duration = Duration::from_millis(200);
/// What is saved up of that while nobody asks: workers that are made together ask at the same time.
const BURST: Duration = Duration::from_millis(800);
/// How many instances one call may ask for.
const MOST: usize = 100;
/// How many instances are remembered whose turn did not come: some of them are no more.
const MOST_LATE: usize = 10_000;
/// A probe has a moment only: a call that takes longer is given up, and holds up no other. Waiting for a turn would be
/// taken for the worker's silence.
const LIMITS: Limits = Limits { turn: Duration::ZERO, answer: Duration::from_secs(3) };
/// How long a repeat waits for its turn: nobody else of that call got an answer.
const REPEAT: Limits = Limits { turn: Duration::from_secs(1), ..LIMITS };

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
    waiting: Waiting,
    /// A task is at work until nobody waits.
    is_worked_on: bool,
    /// When the calls that were made would be over if there were one each [`BETWEEN`] (Turner 1986, the leaky bucket as a
    /// meter).
    paid: Option<Instant>,
    /// How often in a row the turn of an instance did not come: the later, the sooner among the next ones.
    late: BTreeMap<String, u32>,
}

/// Who wants to know of an instance.
type Waiting = BTreeMap<String, Vec<oneshot::Sender<Answer>>>;

impl Desk {
    pub(crate) fn new(client: Arc<Client>) -> Self {
        Self { client, queue: Arc::default() }
    }

    /// Returns what AWS's checks say of an instance.
    pub(crate) async fn ask(&self, id: &str) -> Answer {
        let (answer, answered) = oneshot::channel();
        let begins = {
            let mut queue = locked(&self.queue);
            queue.waiting.entry(id.to_owned()).or_default().push(answer);
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

impl Queue {
    /// Takes those who still wait, in calls of the size that EC2 takes. When there are none, nobody works on it any more.
    fn take(&mut self) -> Vec<Waiting> {
        let mut waiting = std::mem::take(&mut self.waiting);
        waiting.retain(|_, answers| {
            answers.retain(|answer| !answer.is_closed());
            !answers.is_empty()
        });
        let mut all: Vec<_> = waiting.into_iter().collect();
        all.sort_by_key(|(id, _)| Reverse(self.late.get(id).copied()));
        let mut all = all.into_iter().peekable();
        let mut calls = Vec::new();
        while all.peek().is_some() {
            calls.push(all.by_ref().take(MOST).collect());
        }
        if self.late.len() > MOST_LATE {
            self.late.clear();
        }
        self.is_worked_on = !calls.is_empty();
        let now = Instant::now();
        let each = calls.iter().map(|_| BETWEEN);
        self.paid = Some(self.paid.map_or(now, |paid| paid.max(now)) + each.sum::<Duration>());
        calls
    }

    /// Returns when the next calls may be made.
    fn due(&self) -> Instant {
        let soon = Instant::now() + GATHERING;
        let paid = self.paid.and_then(|paid| paid.checked_sub(BURST));
        paid.map_or(soon, |paid| paid.max(soon))
    }

    /// Notes whether the turn of these came.
    fn note(&mut self, some: &Waiting, is_late: bool) {
        for id in some.keys() {
            if is_late {
                *self.late.entry(id.clone()).or_default() += 1;
            } else {
                self.late.remove(id);
            }
        }
    }
}

/// Asks until nobody waits.
async fn work(client: Arc<Client>, queue: Arc<Mutex<Queue>>) {
    loop {
        let due = locked(&queue).due();
        sleep_until(due).await;
        let calls = locked(&queue).take();
        if calls.is_empty() {
            return;
        }
        for some in calls {
            tokio::spawn(answer(Arc::clone(&client), Arc::clone(&queue), some));
        }
    }
}

/// Asks once, and tells those who wait for it.
async fn answer(client: Arc<Client>, queue: Arc<Mutex<Queue>>, some: Waiting) {
    let found = statuses(&client, some.keys().map(String::as_str).collect()).await;
    locked(&queue).note(&some, matches!(found, Err(ProviderError::RateLimited { .. })));
    for (id, answers) in some {
        let of_id = found.as_ref().map(|statuses| statuses.get(&id).cloned());
        for answer in answers {
            // Whoever asked may be gone.
            let _heard = answer.send(of_id.clone().map_err(Clone::clone)).is_ok();
        }
    }
}

/// Asks for these instances; those that EC2 does not know are left out. One unknown instance has the whole call refused.
async fn statuses(
    client: &Client,
    mut ids: BTreeSet<&str>,
) -> Result<BTreeMap<String, Status>, ProviderError> {
    let mut limits = LIMITS;
    while !ids.is_empty() {
        let mut parameters: Parameters = vec![("IncludeAllInstances".into(), "true".into())];
        let numbered = (1..).zip(&ids).map(|(n, id)| (format!("InstanceId.{n}"), (*id).to_owned()));
        parameters.extend(numbered);
        match client.call_within::<Statuses>(limits, "DescribeInstanceStatus", &parameters).await {
            Ok(found) => return Ok(found.by_id()),
            Err(refusal) => {
                let before = ids.len();
                if refusal.is_unknown_instance() {
                    ids.retain(|id| !names(&refusal, id));
                    limits = REPEAT;
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
///
/// # Errors
/// When it says nothing of the instance.
pub(crate) fn judge(status: &Status) -> Result<ProbeOutcome, ProviderError> {
    let state = status.instance_state.name.as_str();
    if status.instance_state.is_over() {
        return Ok(ProbeOutcome::Gone(format!("its instance is {state}")));
    }
    if state != "running" {
        return Ok(ProbeOutcome::Unhealthy(format!("its instance is {state}")));
    }
    for (what, check) in [("system", &status.system_status), ("instance", &status.instance_status)]
    {
        match check.status.as_str() {
            "ok" => {}
            "insufficient-data" => {
                let why = format!("EC2 has no data for its {what} status check");
                return Err(ProviderError::Transient(why));
            }
            "initializing" => {
                let why = format!("EC2's {what} status check is not over yet");
                return Ok(ProbeOutcome::Unhealthy(why));
            }
            other => {
                let why = format!("EC2's {what} status check says `{other}`");
                return Ok(ProbeOutcome::Unhealthy(why));
            }
        }
    }
    Ok(status.end().map_or(ProbeOutcome::Healthy, ProbeOutcome::Unhealthy))
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
            Ok(ProbeOutcome::Healthy) => "healthy".to_owned(),
            Ok(ProbeOutcome::Unhealthy(why)) => format!("unhealthy: {why}"),
            Ok(ProbeOutcome::Gone(why)) => format!("gone: {why}"),
            Err(error) => error.to_string(),
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
            (
                "running",
                "insufficient-data",
                "ok",
                "transient failure: EC2 has no data for its system status check",
            ),
            ("pending", "", "", "unhealthy: its instance is pending"),
            ("stopped", "", "", "unhealthy: its instance is stopped"),
            ("shutting-down", "ok", "ok", "gone: its instance is shutting-down"),
            ("terminated", "", "", "gone: its instance is terminated"),
        ] {
            assert_eq!(judged(state, system, instance), expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_few_calls_are_made_at_once_and_many_are_spread() {
        let mut queue = Queue::default();
        let begin = Instant::now();
        let mut at = Vec::new();
        for number in 0..8 {
            sleep_until(queue.due()).await;
            at.push((Instant::now() - begin).as_millis());
            let (answer, answered) = oneshot::channel();
            queue.waiting.entry(format!("i-{number}")).or_default().push(answer);
            assert_eq!(queue.take().len(), 1);
            drop(answered);
        }
        assert_eq!(at, [5, 10, 15, 20, 25, 205, 405, 605]);
    }

    #[test]
    fn those_whose_turn_did_not_come_are_the_first_of_the_next() {
        let mut queue = Queue::default();
        let mut answers = Vec::new();
        let mut round = |queue: &mut Queue| {
            for number in 0..300 {
                let (answer, answered) = oneshot::channel();
                queue.waiting.entry(format!("i-{number:03}")).or_default().push(answer);
                answers.push(answered);
            }
            let calls = queue.take();
            assert_eq!(calls.len(), 3);
            // There is a turn for one call a round.
            for (number, call) in calls.iter().enumerate() {
                queue.note(call, number > 0);
            }
            calls[0].keys().next().unwrap().clone()
        };
        let first: Vec<String> = (0..4).map(|_| round(&mut queue)).collect();
        assert_eq!(first, ["i-000", "i-100", "i-200", "i-000"]);
        assert!(queue.is_worked_on);
        assert!(queue.take().is_empty() && !queue.is_worked_on, "nobody waits");
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
