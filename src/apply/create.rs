//! The attempts of one create, and the health check that ends it.
//!
//! The token of an attempt is the same however often it is sent; the attempt grows only on proof that
//! nothing exists. A lost answer is looked into: the worker is there (adopted), or its token makes a
//! repeat safe, or the provider's settle time and one complete listing prove that there is nothing. If
//! none of these can be had, the operation stays `unknown` and the next run goes on from there.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::time::Duration;

use pool_provider::{
    Call, Consistency, CreateRequest, Idempotency, ObservedStatus, ObservedWorker, ProviderError,
    WorkerProvider as _,
};
use tokio::time::{sleep, timeout};

use super::retry::{Next, Tries};
use super::step::{Admission, Listener, in_time};
use super::{PoolRun, StepError};
use crate::clock::Stopwatch;
use crate::config::HealthCheckKind;
use crate::health::{Tally, Verdict};
use crate::plan::{Failure, NewWorkerOrigin, OldWorker};
use crate::probe::{self, Probed};
use crate::state::{NewCreate, OpenedOperation};
use crate::worker::WorkerName;

/// How soon a new worker is probed again; doubled up to the check's interval.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// How often a worker that is ready is asked for what became known of it, and how long between two looks.
const LOOKS: u32 = 3;
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// A worker that exists, and whether what is seen of it is recorded.
#[derive(Clone, Copy)]
pub(super) struct Found<'f> {
    pub(super) observed: &'f ObservedWorker,
    pub(super) is_recorded: bool,
}

/// A create call that is about to leave.
struct Sending<'r> {
    operation: OpenedOperation,
    /// Whether the same attempt was sent before, and what became of that is not known.
    is_repeat: bool,
    listener: &'r Listener,
    admission: Admission<'r>,
}

/// How one attempt ended.
enum Attempt {
    /// The worker is ready.
    Ready(ObservedWorker),
    /// Nothing exists; the next attempt may begin.
    Nothing(Failure, Next),
    /// The same call may be sent again.
    Resend(Failure, Next),
    /// Neither is known, or another attempt would not help.
    GiveUp(Failure),
}

impl PoolRun<'_> {
    /// Creates a worker, in as many attempts as the pool allows.
    pub(super) async fn create(
        &self,
        create: NewCreate,
        origin: NewWorkerOrigin,
        listener: &Listener,
    ) -> Result<ObservedWorker, StepError> {
        let store = &self.applier.store;
        let name = self.plan.worker(create.key.slot, create.key.generation);
        let attempts = self.plan.provisioning.attempts();
        let mut resend = origin == NewWorkerOrigin::Resend;
        let mut tries = Tries::new(attempts, create.timeout);
        loop {
            // Not between the intent and the call: whoever looks into a lost call counts from its intent.
            let admission = self.turn(self.provider(&create.provider)?, Call::Change).await;
            if self.is_stopped() {
                return Err(StepError::Worker(format!("{name}: the run was stopped")));
            }
            let operation = if resend {
                store.reopen_create(self.lock, create.key).await?
            } else {
                store.open_create(self.lock, create.clone()).await?
            };
            let operation = Sending { operation, is_repeat: resend, listener, admission };
            let watch = Stopwatch::start();
            let (failure, next) = match self.attempt(&create, &name, operation).await? {
                Attempt::Ready(observed) => return Ok(observed),
                Attempt::Nothing(failure, next) => {
                    resend = false;
                    (failure, next)
                }
                Attempt::Resend(failure, next) => {
                    resend = true;
                    (failure, next)
                }
                Attempt::GiveUp(failure) => return Err(StepError::Worker(failure.message)),
            };
            let failed = (failure.message.clone(), next, watch.elapsed());
            if !self.tries_again(&mut tries, (&name, listener), failed).await {
                return Err(StepError::Worker(failure.message));
            }
        }
    }

    async fn attempt(
        &self,
        create: &NewCreate,
        name: &WorkerName,
        sending: Sending<'_>,
    ) -> Result<Attempt, StepError> {
        let Sending { operation, is_repeat, listener, admission } = sending;
        let new = self
            .new
            .as_ref()
            .ok_or_else(|| StepError::Worker("the plan has no spec for a new worker".to_owned()))?;
        let request = &CreateRequest {
            owner: self.applier.store.deployment().clone(),
            name: name.clone(),
            attempt: operation.attempt,
            passed_over: operation.passed_over,
            operation: operation.id,
            token: operation.token.clone(),
            spec: new.spec.clone(),
            spec_hash: create.spec.hash.clone(),
            progress: listener.progress.clone(),
            timeout: create.timeout,
        };
        let watch = Stopwatch::start();
        let provider = self.provider(&create.provider)?;
        let answer = in_time(create.timeout, provider.create(request)).await;
        drop(admission);
        match answer {
            Ok(observed) => {
                // One timeout for both: from the create call to the first passed health check.
                let left = create.timeout.saturating_sub(watch.elapsed());
                self.created(create, name, (observed, left)).await
            }
            Err(ProviderError::AlreadyExists(why)) => {
                let why = ProviderError::UnknownOutcome(format!("already exists: {why}"));
                self.find_out((create, name), &operation, why, listener).await
            }
            Err(error) if error.is_unknown() => {
                self.find_out((create, name), &operation, error, listener).await
            }
            Err(error @ ProviderError::OutOfCapacity { .. }) if is_repeat => {
                self.passed_over((create, name), &operation, error).await
            }
            // It speaks of the repeat: what the first call left is still not known.
            Err(error) if is_repeat && !matches!(error, ProviderError::Spent(_)) => {
                let store = &self.applier.store;
                let why = error.to_string();
                store.mark_unknown(self.lock, create.key, operation.id, why).await?;
                let failure = failure(&error, name);
                Ok(if error.is_worth_a_retry() {
                    Attempt::Resend(failure, Next::after(&error))
                } else {
                    Attempt::GiveUp(failure)
                })
            }
            Err(error) => {
                let failure = failure(&error, name);
                let store = &self.applier.store;
                store.record_create_failed(self.lock, create.key, failure.clone()).await?;
                Ok(if error.is_worth_a_retry() {
                    Attempt::Nothing(failure, Next::after(&error))
                } else {
                    Attempt::GiveUp(failure)
                })
            }
        }
    }

    /// Records a worker that exists and waits for its health check.
    async fn created(
        &self,
        create: &NewCreate,
        name: &WorkerName,
        (observed, left): (ObservedWorker, Duration),
    ) -> Result<Attempt, StepError> {
        let store = &self.applier.store;
        if observed.name != *name || observed.provider_id.is_empty() {
            // Providers are not trusted: recording this would lose the worker.
            let why = format!("the provider answered {:?} for {name}", observed.name.to_string());
            return Ok(Attempt::GiveUp(Failure { code: "bad_answer".to_owned(), message: why }));
        }
        store.record_created(self.lock, create.key, observed.clone(), create.timeout).await?;
        let found = Found { observed: &observed, is_recorded: true };
        let failure = match self.verify(create, found, left).await {
            Ok(()) => return Ok(Attempt::Ready(observed)),
            Err(StepError::Worker(why) | StepError::Held(why)) => {
                Failure { code: "unhealthy".to_owned(), message: why }
            }
            Err(error) => return Err(error),
        };
        let old = OldWorker {
            generation: create.key.generation,
            provider: create.provider.clone(),
            provider_id: Some(observed.provider_id),
            attempt: observed.attempt,
            recorded: true,
            observed: true,
            leased: false,
        };
        // It is recorded as failed already: a crash here leaves it to the next run. Whoever lost the lock
        // must not delete it.
        store.heartbeat(self.lock).await?;
        match self.delete_and_confirm(name, &old, &Listener::deaf()).await? {
            Ok(())
                if self.provider(&create.provider)?.describe().consistency
                    == Consistency::Strong =>
            {
                Ok(Attempt::Nothing(failure, Next::default()))
            }
            // Gone from one answer is no proof here: the next run looks at a whole listing.
            Ok(()) | Err(_) => Ok(Attempt::GiveUp(failure)),
        }
    }

    /// Probes a worker until it is healthy, at most for `limit`.
    pub(super) async fn verify(
        &self,
        create: &NewCreate,
        found: Found<'_>,
        limit: Duration,
    ) -> Result<(), StepError> {
        let observed = found.observed;
        let watch = Stopwatch::start();
        let mut last = "it was never probed".to_owned();
        let healthy = self.until_healthy(create, observed, &watch, &mut last);
        let outcome = match timeout(limit, healthy).await {
            Ok(outcome) => outcome,
            Err(_) => Err(format!("not healthy within {:?}: {last}", create.timeout)),
        };
        let store = &self.applier.store;
        match outcome {
            Ok(()) => {
                let now = match observed.status {
                    // It may have an address more by now.
                    ObservedStatus::Starting => Some(self.started(create, observed).await?),
                    _ => (!found.is_recorded).then(|| observed.clone()),
                };
                Ok(store.record_ready(self.lock, create.key, now).await?)
            }
            Err(why) => {
                let message = format!("{}: {why}", observed.name);
                let failure = Failure { code: "unhealthy".to_owned(), message: message.clone() };
                store.record_unverified(self.lock, create.key, failure).await?;
                Err(StepError::Worker(message))
            }
        }
    }

    /// Probes a worker until it is healthy, or gone.
    async fn until_healthy(
        &self,
        create: &NewCreate,
        observed: &ObservedWorker,
        watch: &Stopwatch,
        last: &mut String,
    ) -> Result<(), String> {
        let check = &self.plan.health_check;
        let Some(provider) = self.applier.providers.get(&create.provider) else {
            return Err(format!("the provider `{}` is not there any more", create.provider));
        };
        let reference = self.reference(&observed.name, Some(observed.provider_id.clone()));
        let mut now = Cow::Borrowed(observed);
        let mut tally = Tally::default();
        let mut pause = FIRST_PAUSE;
        loop {
            // Some get the address by which they are reached while they start.
            let by_address = check.kind != HealthCheckKind::Provider;
            if now.status == ObservedStatus::Starting && by_address {
                let _turn = self.turn(provider, Call::Look).await;
                now = provider.get(&reference).await.map_or(now, Cow::Owned);
            }
            let within = (provider, Some(self.calls));
            let probed = probe::probe(check, within, &reference, &now.addresses);
            let passed = match probed.await {
                Probed::Passed => true,
                Probed::Failed(why) | Probed::Unasked(why) => {
                    *last = why;
                    false
                }
                Probed::Gone(why) => return Err(why),
            };
            let (next, verdict) = tally.count(passed, watch.elapsed(), check);
            if verdict == Verdict::Healthy {
                return Ok(());
            }
            tally = next;
            sleep(pause).await;
            pause = (pause * 2).min(check.interval.get());
        }
    }

    /// Returns what is known by now of a worker that was only starting; as it was, if nobody answers.
    async fn started(
        &self,
        create: &NewCreate,
        observed: &ObservedWorker,
    ) -> Result<ObservedWorker, StepError> {
        let reference = &self.reference(&observed.name, Some(observed.provider_id.clone()));
        let mut latest = observed.clone();
        for _ in 0..LOOKS {
            let looked = self.call(&create.provider, create.timeout, Call::Look, |provider| {
                provider.get(reference)
            });
            if let Ok(found) = looked.await? {
                latest = found;
                if latest.status != ObservedStatus::Starting {
                    break;
                }
            }
            sleep(LOOK_AGAIN).await;
        }
        Ok(latest)
    }

    /// Finds out what became of a create whose answer was lost.
    async fn find_out(
        &self,
        (create, name): (&NewCreate, &WorkerName),
        operation: &OpenedOperation,
        error: ProviderError,
        listener: &Listener,
    ) -> Result<Attempt, StepError> {
        let store = &self.applier.store;
        store.mark_unknown(self.lock, create.key, operation.id, error.to_string()).await?;
        let reference = &self.reference(name, None);
        let looked = self
            .call(&create.provider, create.timeout, Call::Look, |provider| provider.get(reference));
        let looked = looked.await?;
        // What an earlier attempt left may still show: it is not this one's.
        let is_this_attempt = |observed: &ObservedWorker| observed.attempt == operation.attempt;
        if let Some(observed) = looked.ok().filter(is_this_attempt) {
            (listener.found)(error.to_string());
            return self.created(create, name, (observed, create.timeout)).await;
        }
        let description = self.provider(&create.provider)?.describe();
        if description.idempotency == Idempotency::Token {
            return Ok(Attempt::Resend(failure(&error, name), Next::default()));
        }
        if description.settle > create.timeout {
            return Ok(Attempt::GiveUp(failure(&error, name)));
        }
        sleep(description.settle).await;
        match self.search(create, name).await? {
            Search::Found(observed) => {
                (listener.found)(error.to_string());
                self.created(create, name, (observed, create.timeout)).await
            }
            Search::Unsure => Ok(Attempt::GiveUp(failure(&error, name))),
            Search::Absent => {
                let failure = failure(&error, name);
                store.record_create_failed(self.lock, create.key, failure.clone()).await?;
                Ok(Attempt::Nothing(failure, Next::default()))
            }
        }
    }

    /// A repeat found no room, which a call that brings the worker of the first one does not look for. So there is
    /// none, once whatever the first one could bring would show: the next attempt can go elsewhere.
    async fn passed_over(
        &self,
        (create, name): (&NewCreate, &WorkerName),
        operation: &OpenedOperation,
        error: ProviderError,
    ) -> Result<Attempt, StepError> {
        let store = &self.applier.store;
        store.mark_unknown(self.lock, create.key, operation.id, error.to_string()).await?;
        let settle = self.provider(&create.provider)?.describe().settle;
        if settle > create.timeout {
            return Ok(Attempt::Resend(failure(&error, name), Next::default()));
        }
        // The operation stays unknown: the next run repeats the call.
        if !self.sleep_unless_stopped(settle).await {
            return Ok(Attempt::GiveUp(failure(&error, name)));
        }
        match self.search(create, name).await? {
            Search::Found(observed) if observed.attempt == operation.attempt => {
                self.created(create, name, (observed, create.timeout)).await
            }
            Search::Absent => {
                let failure = failure(&error, name);
                store.record_create_failed(self.lock, create.key, failure.clone()).await?;
                Ok(Attempt::Nothing(failure, Next::after(&error)))
            }
            // A repeat goes to the same place: that is a failed attempt, and not elsewhere.
            Search::Found(_) | Search::Unsure => {
                Ok(Attempt::Resend(failure(&error, name), Next::default()))
            }
        }
    }

    /// Looks for a worker in a whole listing.
    async fn search(&self, create: &NewCreate, name: &WorkerName) -> Result<Search, StepError> {
        let owner = self.applier.store.deployment();
        let (mut page, mut seen) = (None, BTreeSet::new());
        let mut complete = true;
        loop {
            let asked = page.as_ref();
            let listed = self
                .call(&create.provider, create.timeout, Call::Look, |provider| {
                    provider.list(owner, asked)
                })
                .await?;
            let Ok(listing) = listed else { return Ok(Search::Unsure) };
            complete &= listing.complete;
            if let Some(found) = listing.workers.into_iter().find(|found| found.name == *name) {
                return Ok(Search::Found(found));
            }
            match listing.next {
                Some(next) if seen.insert(next.0.clone()) => page = Some(next),
                Some(_) => return Ok(Search::Unsure),
                None if complete => return Ok(Search::Absent),
                None => return Ok(Search::Unsure),
            }
        }
    }
}

/// What a search of a whole listing proves.
enum Search {
    Found(ObservedWorker),
    Absent,
    Unsure,
}

fn failure(error: &ProviderError, name: &WorkerName) -> Failure {
    Failure { code: error.code().to_owned(), message: format!("creating {name}: {error}") }
}
