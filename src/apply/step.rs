//! Carries out one step. Each provider call stands between its intent and its result.

use std::time::Duration;

use pool_provider::{
    Call, DeleteRequest, ObservedWorker, Progress, ProviderError, SharedProvider, Turn,
    UpdateRequest, WorkerProvider as _, WorkerRef,
};
use tokio::sync::SemaphorePermit;
use tokio::time::{sleep, timeout};

use super::create::Found;
use super::retry::{Next, Tries};
use super::{PoolRun, StepError};
use crate::clock::Stopwatch;
use crate::desired::SecretHashes;
use crate::plan::{Action, NewWorker, NewWorkerOrigin, OldWorker, Reason, ReplaceOrder, Step};
use crate::state::{NewCreate, StateError, WorkerKey};
use crate::worker::{Slot, WorkerName};

/// Is told how a step goes.
pub(super) struct Listener {
    /// Attempts that are followed by another: which one failed, if one did, why, delay.
    pub(super) retrying: Box<dyn Fn(Option<u32>, String, Duration) + Send + Sync>,
    /// A worker that is there although its create had no answer: what became of that.
    pub(super) found: Box<dyn Fn(String) + Send + Sync>,
    /// What the provider tells of a create.
    pub(super) progress: Progress,
}

impl Listener {
    /// Returns one that hears nothing.
    pub(super) fn deaf() -> Self {
        let (retrying, found) = (Box::new(|_, _, _| {}), Box::new(|_| {}));
        Self { retrying, found, progress: Progress::default() }
    }
}

/// The right to make one call: of the run's, and of the provider's.
pub(super) type Admission<'r> = (Option<SemaphorePermit<'r>>, Turn);

/// How often a deletion is looked at again before it counts as stuck, and how long between two looks.
const LOOKS: u32 = 20;
const LOOK_AGAIN: Duration = Duration::from_millis(100);

impl PoolRun<'_> {
    /// Returns the provider's id of the worker that came or changed.
    pub(super) async fn carry_out(
        &self,
        step: &Step,
        listener: &Listener,
    ) -> Result<Option<String>, StepError> {
        if step.after_job {
            for old in step.delete.iter().filter(|old| old.recorded) {
                let key = WorkerKey { slot: step.slot, generation: old.generation };
                self.drained(key, &self.teller(step)).await?;
            }
        }
        self.delete_all(step, &step.reap, listener).await?;
        let deletes_first = step.action != Action::Replace(ReplaceOrder::CreateFirst);
        if deletes_first {
            self.delete_all(step, &step.delete, listener).await?;
        }
        let provider_id = match (&step.create, &step.update) {
            (Some(new), _) => Some(self.bring(step, new, listener).await?.provider_id),
            (None, Some(old)) => Some(self.update(step, old, listener).await?.provider_id),
            (None, None) => None,
        };
        if !deletes_first {
            if self.is_stopped() {
                let why =
                    "its new worker is ready, and the run was stopped before the old one went";
                return Err(StepError::Worker(why.to_owned()));
            }
            self.delete_all(step, &step.delete, listener).await?;
        }
        Ok(provider_id)
    }

    pub(super) fn provider(&self, name: &str) -> Result<&SharedProvider, StepError> {
        self.applier.providers.get(name).ok_or_else(|| {
            StepError::Worker(format!("the provider `{name}` is not there any more"))
        })
    }

    pub(super) fn reference(&self, name: &WorkerName, provider_id: Option<String>) -> WorkerRef {
        WorkerRef {
            owner: self.applier.store.deployment().clone(),
            name: name.clone(),
            provider_id,
        }
    }

    pub(super) fn new_create(
        &self,
        slot: Slot,
        new: &NewWorker,
        reason: Reason,
    ) -> Result<NewCreate, StepError> {
        let NewWorker { generation, origin, .. } = *new;
        // What was not created just now may have been made with other secrets: nothing is known of them.
        let secrets = match origin {
            NewWorkerOrigin::Fresh | NewWorkerOrigin::Resend => {
                self.new.as_ref().map(|new| new.secrets.clone()).unwrap_or_default()
            }
            NewWorkerOrigin::Interrupted
            | NewWorkerOrigin::Unverified
            | NewWorkerOrigin::Orphan => SecretHashes::new(),
        };
        Ok(NewCreate {
            key: WorkerKey { slot, generation },
            provider: self.plan.provider.clone(),
            spec: self.recorded_spec(secrets)?,
            timeout: self.plan.provisioning.timeout.get(),
            budget: self.plan.budget,
            why: reason.name(),
            tried_out: self.tries_out(),
        })
    }

    /// Returns whether the run only tries something out in this pool.
    fn tries_out(&self) -> bool {
        self.plan.narrowed && !self.plan.records_config
    }

    /// Brings the step's new worker to being ready.
    async fn bring(
        &self,
        step: &Step,
        new: &NewWorker,
        listener: &Listener,
    ) -> Result<ObservedWorker, StepError> {
        let create = self.new_create(step.slot, new, step.reason)?;
        match new.origin {
            NewWorkerOrigin::Fresh | NewWorkerOrigin::Resend => {
                self.create(create, new.origin, listener).await
            }
            NewWorkerOrigin::Interrupted
            | NewWorkerOrigin::Unverified
            | NewWorkerOrigin::Orphan => {
                let observed = self.look(&create, new).await?;
                let (store, key, timeout) = (&self.applier.store, create.key, create.timeout);
                match new.origin {
                    NewWorkerOrigin::Orphan => {
                        store.record_adopted(self.lock, create.clone(), observed.clone()).await?;
                    }
                    NewWorkerOrigin::Interrupted => {
                        store.record_created(self.lock, key, observed.clone(), timeout).await?;
                    }
                    NewWorkerOrigin::Fresh
                    | NewWorkerOrigin::Resend
                    | NewWorkerOrigin::Unverified => {}
                }
                // What was recorded of one that is only verified may be older.
                let is_recorded = new.origin != NewWorkerOrigin::Unverified;
                let found = Found { observed: &observed, is_recorded };
                self.verify(&create, found, create.timeout).await?;
                Ok(observed)
            }
        }
    }

    async fn look(&self, create: &NewCreate, new: &NewWorker) -> Result<ObservedWorker, StepError> {
        let name = self.plan.worker(create.key.slot, create.key.generation);
        let reference = self.reference(&name, new.provider_id.clone());
        let found =
            self.call(&create.provider, create.timeout, Call::Look, |provider| async move {
                provider.get(&reference).await
            });
        found.await?.map_err(|error| StepError::Worker(format!("looking at {name}: {error}")))
    }

    /// Makes one provider call within the run's limit on calls; a timeout is an unknown outcome.
    pub(super) async fn call<'s, T, F>(
        &'s self,
        provider: &str,
        limit: Duration,
        call: Call,
        make: impl FnOnce(&'s SharedProvider) -> F,
    ) -> Result<Result<T, ProviderError>, StepError>
    where
        F: Future<Output = Result<T, ProviderError>>,
    {
        let provider = self.provider(provider)?;
        let _turn = self.turn(provider, call).await;
        Ok(in_time(limit, make(provider)).await)
    }

    /// Waits until a call may be made: within the run's limit on calls, and the provider's.
    pub(super) async fn turn(&self, provider: &SharedProvider, call: Call) -> Admission<'_> {
        // The provider's first: who waits for that keeps no call from those that need not.
        let turn = provider.turn(call).await;
        // The semaphore is never closed; without a permit the call would only be one too many.
        (self.calls.acquire().await.ok(), turn)
    }

    /// Repeats an idempotent call while that may help.
    async fn repeat<'s, T, F>(
        &'s self,
        (provider, limit): (&str, Duration),
        worker: &WorkerName,
        listener: &Listener,
        make: impl Fn(&'s SharedProvider) -> F,
    ) -> Result<Result<T, ProviderError>, StepError>
    where
        F: Future<Output = Result<T, ProviderError>>,
    {
        let mut tries = Tries::new(self.plan.provisioning.attempts(), limit);
        let provider = self.provider(provider)?;
        loop {
            let admission = self.turn(provider, Call::Change).await;
            let watch = Stopwatch::start();
            let error = match in_time(limit, make(provider)).await {
                Err(error) if error.is_worth_a_retry() => error,
                answer => return Ok(answer),
            };
            drop(admission);
            let failed = (error.to_string(), Next::after(&error), watch.elapsed());
            if !self.tries_again(&mut tries, (worker, listener), failed).await {
                return Ok(Err(error));
            }
        }
    }

    async fn update(
        &self,
        step: &Step,
        old: &OldWorker,
        listener: &Listener,
    ) -> Result<ObservedWorker, StepError> {
        let recorded = self.recorded_spec(SecretHashes::new())?;
        let key = WorkerKey { slot: step.slot, generation: old.generation };
        let name = self.plan.worker(step.slot, old.generation);
        let request = UpdateRequest {
            worker: self.reference(&name, old.provider_id.clone()),
            labels: recorded.spec.worker.labels.clone(),
            tags: recorded.spec.worker.tags.clone(),
        };
        let store = &self.applier.store;
        let limit = self.plan.provisioning.timeout.get();
        let operation = store.open_update(self.lock, key, limit).await?;
        let request = &request;
        let answer = self
            .repeat((&old.provider, limit), &name, listener, |provider| provider.update(request))
            .await?;
        match answer {
            Ok(observed) => {
                let why = step.reason.name();
                store.record_updated(self.lock, key, recorded, why, self.tries_out()).await?;
                Ok(observed)
            }
            Err(error) => {
                let why = format!("updating {name}: {error}");
                if error.is_unknown() {
                    store.mark_unknown(self.lock, key, operation.id, why.clone()).await?;
                } else {
                    store.record_update_failed(self.lock, key, why.clone()).await?;
                }
                Err(StepError::Worker(why))
            }
        }
    }

    async fn delete_all(
        &self,
        step: &Step,
        workers: &[OldWorker],
        listener: &Listener,
    ) -> Result<(), StepError> {
        for old in workers {
            self.delete(step, old, listener).await?;
        }
        Ok(())
    }

    async fn delete(
        &self,
        step: &Step,
        old: &OldWorker,
        listener: &Listener,
    ) -> Result<(), StepError> {
        let key = WorkerKey { slot: step.slot, generation: old.generation };
        let name = self.plan.worker(step.slot, old.generation);
        let store = &self.applier.store;
        let why = step.reason.name();
        let limit = self.delete_limit(old)?;
        let operation = if old.recorded {
            let budget = self.plan.budget;
            Some(loop {
                match store.open_delete(self.lock, key, budget, limit, why.clone()).await {
                    // A job may have got it a moment ago, whatever the plan says.
                    Err(StateError::Leased(_)) => self.drained(key, &self.teller(step)).await?,
                    opened => break opened?,
                }
            })
        } else {
            // A stray has no row for an intent. Whoever lost the lock must not delete it all the same: the
            // new holder may have adopted it.
            store.heartbeat(self.lock).await?;
            None
        };
        let outcome = self.delete_and_confirm(&name, old, listener).await?;
        match outcome {
            Ok(()) if old.recorded => store.record_deleted(self.lock, key).await?,
            Ok(()) => store.record_stray_deleted(self.lock, key, why).await?,
            Err(failure) => {
                if let Some(operation) = operation {
                    store.mark_unknown(self.lock, key, operation.id, failure.clone()).await?;
                }
                return Err(StepError::Worker(failure));
            }
        }
        Ok(())
    }

    /// A worker that ends slowly is not one that cannot be deleted.
    fn delete_limit(&self, old: &OldWorker) -> Result<Duration, StepError> {
        let slowest = self.provider(&old.provider)?.describe().slowest_delete;
        Ok(self.plan.provisioning.timeout.get().max(slowest))
    }

    /// Deletes at the provider, and looks whether it is gone.
    pub(super) async fn delete_and_confirm(
        &self,
        name: &WorkerName,
        old: &OldWorker,
        listener: &Listener,
    ) -> Result<Result<(), String>, StepError> {
        let limit = self.delete_limit(old)?;
        let reference = self.reference(name, old.provider_id.clone());
        let request = &DeleteRequest { worker: reference.clone(), attempt: old.attempt };
        let answer = self
            .repeat((&old.provider, limit), name, listener, |provider| provider.delete(request))
            .await?;
        match answer {
            Ok(()) | Err(ProviderError::NotFound(_)) => {}
            Err(error) => return Ok(Err(format!("deleting {name}: {error}"))),
        }
        let reference = &reference;
        for _ in 0..LOOKS {
            match self
                .call(&old.provider, limit, Call::Look, |provider| provider.get(reference))
                .await?
            {
                Err(ProviderError::NotFound(_)) => return Ok(Ok(())),
                Ok(_) | Err(_) => sleep(LOOK_AGAIN).await,
            }
        }
        Ok(Err(format!("deleting {name}: the provider says that it is done, and still has it")))
    }
}

pub(super) fn retry_after(error: &ProviderError) -> Option<Duration> {
    match error {
        ProviderError::RateLimited { retry_after, .. } => *retry_after,
        _ => None,
    }
}

/// Awaits an answer at most for `limit`; without one the outcome is unknown.
pub(super) async fn in_time<T>(
    limit: Duration,
    answer: impl Future<Output = Result<T, ProviderError>>,
) -> Result<T, ProviderError> {
    timeout(limit, answer).await.unwrap_or_else(|_| {
        Err(ProviderError::UnknownOutcome(format!("no answer within {limit:?}")))
    })
}
