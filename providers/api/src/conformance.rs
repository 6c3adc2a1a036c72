//! The suite that every provider must pass: the contract of [`WorkerProvider`] as code.
//!
//! A provider's tests give a [`Subject`]; [`run`] answers with one [`Finding`] a rule, each failure with
//! what was expected and what happened instead, in words for the provider's author. It creates a few
//! workers under fresh deployments and deletes them again.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use crate::error::ProviderError;
use crate::identity::{DeploymentId, Generation, Slot, WorkerName};
use crate::provider::{
    CreateRequest, DeleteRequest, Idempotency, InPlaceField, ResetRequest, UpdateRequest,
    WorkerProvider, WorkerRef,
};
use crate::spec::{ObservedWorker, WorkerSpec};

/// How long a deletion may take to show, beyond the provider's own settle time.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often the suite looks again.
const PAUSE: Duration = Duration::from_millis(20);
/// After how many milliseconds creates are abandoned, to find one in every stage.
const ABANDONED_AFTER_MS: [u64; 6] = [0, 1, 2, 4, 8, 16];

/// A provider under test.
pub trait Subject: Sync {
    /// The provider's type.
    type Provider: WorkerProvider;

    /// Returns a new handle, as another process would have: nothing may be remembered between two.
    fn provider(&self) -> Self::Provider;

    /// Returns the spec of a worker that starts quickly and stays.
    fn spec(&self) -> WorkerSpec;

    /// Returns a spec that can never succeed, if there is one.
    fn invalid_spec(&self) -> Option<WorkerSpec> {
        None
    }

    /// Makes the next create lose its answer after its effect; false when that cannot be done here.
    fn lose_next_create(&self) -> bool {
        false
    }

    /// Makes the next listing unable to see everything; false when that cannot be done here.
    fn hide_from_next_listing(&self) -> bool {
        false
    }
}

/// What became of one rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The provider keeps it.
    Kept,
    /// It does not, and how.
    Broken(String),
    /// It could not be tried here.
    NotTried,
}

/// One rule, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The rule, as a sentence.
    pub rule: &'static str,
    /// What became of it.
    pub outcome: Outcome,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.outcome {
            Outcome::Kept => write!(f, "kept: {}", self.rule),
            Outcome::Broken(how) => write!(f, "BROKEN: {}: {how}", self.rule),
            Outcome::NotTried => write!(f, "not tried here: {}", self.rule),
        }
    }
}

/// Runs every rule. `seed` tells the deployments of two runs apart.
pub async fn run(subject: &impl Subject, seed: u8) -> Vec<Finding> {
    let trial = |number: u8| Trial {
        subject,
        owner: DeploymentId::from_random([
            seed, number, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14,
        ]),
    };
    vec![
        finding("a repeated create gives one worker", trial(1).repeated_create()).await,
        finding("creates side by side give one worker", trial(2).creates_side_by_side()).await,
        finding("what was created is listed with its tags", trial(3).tags_round_trip()).await,
        finding("a listing is scoped to its owner", trial(4).scoped(&trial(5).owner)).await,
        finding("a listing is whole over all its pages", trial(6).whole_listing()).await,
        finding("labels and tags change in place", trial(7).update_in_place()).await,
        finding("deleting twice is fine, and so is deleting nothing", trial(8).delete_twice())
            .await,
        finding("a deleted worker can be tried again under its name", trial(14).next_attempt())
            .await,
        finding("a delete that names another id leaves the worker alone", trial(15).other_id())
            .await,
        finding("a reset worker keeps its id and its tags", trial(16).reset()).await,
        finding("a reset is repeated when its caller is gone", trial(17).abandoned_reset()).await,
        finding("what does not exist is not found", trial(9).not_found()).await,
        finding("a spec that cannot succeed is invalid, and leaves nothing", trial(10).invalid())
            .await,
        finding("a lost answer is an unknown outcome", trial(11).lost_answer()).await,
        finding("a listing says when it does not see everything", trial(12).incomplete()).await,
        finding("an abandoned create is found, and can be repeated", trial(13).abandoned()).await,
    ]
}

async fn finding(rule: &'static str, trial: impl Future<Output = Result<bool, String>>) -> Finding {
    let outcome = match trial.await {
        Ok(true) => Outcome::Kept,
        Ok(false) => Outcome::NotTried,
        Err(how) => Outcome::Broken(how),
    };
    Finding { rule, outcome }
}

/// One rule's try, under a deployment of its own.
struct Trial<'s, S> {
    subject: &'s S,
    owner: DeploymentId,
}

impl<S: Subject> Trial<'_, S> {
    fn name(slot: u32) -> WorkerName {
        let pool = "conformance".parse().expect("the suite's pool id is valid");
        WorkerName::new(pool, Slot(slot), Generation(1))
    }

    fn request(&self, slot: u32) -> CreateRequest {
        CreateRequest {
            owner: self.owner.clone(),
            name: Self::name(slot),
            attempt: 1,
            operation: i64::from(slot) + 100,
            token: format!("{}-{slot}-1", self.owner),
            spec: self.subject.spec(),
            spec_hash: "v1:0123456789abcdef".to_owned(),
        }
    }

    fn reference(&self, slot: u32, provider_id: Option<String>) -> WorkerRef {
        WorkerRef { owner: self.owner.clone(), name: Self::name(slot), provider_id }
    }

    async fn create(&self, slot: u32) -> Result<ObservedWorker, String> {
        let created = self.subject.provider().create(&self.request(slot)).await;
        created.map_err(|error| format!("create failed: {error}"))
    }

    async fn list(&self) -> Result<Vec<ObservedWorker>, String> {
        let provider = self.subject.provider();
        let mut workers = Vec::new();
        let mut page = None;
        loop {
            let listed = provider.list(&self.owner, page.as_ref()).await;
            let listing = listed.map_err(|error| format!("list failed: {error}"))?;
            workers.extend(listing.workers);
            match listing.next {
                Some(next) => page = Some(next),
                None => return Ok(workers),
            }
        }
    }

    /// Lists until there are `count` workers, for as long as effects may take to show.
    async fn list_until(&self, count: usize) -> Result<Vec<ObservedWorker>, String> {
        let settle = self.subject.provider().describe().settle;
        let looking = async {
            loop {
                let workers = self.list().await?;
                if workers.len() == count {
                    return Ok(workers);
                }
                sleep(PAUSE).await;
            }
        };
        if let Ok(listed) = timeout(settle + PATIENCE, looking).await {
            listed
        } else {
            {
                let found: Vec<String> = self
                    .list()
                    .await?
                    .iter()
                    .map(|w| format!("{} {}", w.name, w.provider_id))
                    .collect();
                Err(format!("expected {count} workers in the listing, found {found:?}"))
            }
        }
    }

    /// Deletes everything and makes sure that it is gone.
    async fn clean(&self) -> Result<(), String> {
        let provider = self.subject.provider();
        for worker in self.list().await? {
            let reference = WorkerRef {
                owner: self.owner.clone(),
                name: worker.name,
                provider_id: Some(worker.provider_id),
            };
            let deleted = provider.delete(&DeleteRequest { worker: reference, attempt: 1 }).await;
            deleted.map_err(|error| format!("delete failed: {error}"))?;
        }
        self.list_until(0).await.map(drop)
    }

    /// What a repeat of the same attempt may answer.
    fn is_fine(
        &self,
        first: &ObservedWorker,
        again: &Result<ObservedWorker, ProviderError>,
    ) -> bool {
        match (self.subject.provider().describe().idempotency, again) {
            (Idempotency::Token, Ok(again)) => again.provider_id == first.provider_id,
            (Idempotency::UniqueName, Err(ProviderError::AlreadyExists(_))) => true,
            (Idempotency::None, _) => true,
            (Idempotency::Token | Idempotency::UniqueName, _) => false,
        }
    }

    async fn repeated_create(&self) -> Result<bool, String> {
        if self.subject.provider().describe().idempotency == Idempotency::None {
            return Ok(false);
        }
        let first = self.create(0).await?;
        let again = self.subject.provider().create(&self.request(0)).await;
        if !self.is_fine(&first, &again) {
            return Err(format!("the second create of one attempt answered {again:?}"));
        }
        self.list_until(1).await?;
        self.clean().await.map(|()| true)
    }

    async fn creates_side_by_side(&self) -> Result<bool, String> {
        if self.subject.provider().describe().idempotency == Idempotency::None {
            return Ok(false);
        }
        let (one, other) = (self.subject.provider(), self.subject.provider());
        let request = self.request(0);
        let (one, other) = tokio::join!(one.create(&request), other.create(&request));
        let (first, again) = if one.is_ok() { (one, other) } else { (other, one) };
        let first = first.map_err(|error| format!("both creates failed: {error}, {again:?}"))?;
        if !self.is_fine(&first, &again) {
            return Err(format!("two creates of one attempt answered {first:?} and {again:?}"));
        }
        self.list_until(1).await?;
        self.clean().await.map(|()| true)
    }

    async fn tags_round_trip(&self) -> Result<bool, String> {
        let request = self.request(3);
        let created = self.create(3).await?;
        let listed = self.list_until(1).await?.remove(0);
        let expected = (
            request.name,
            request.attempt,
            request.operation,
            request.spec_hash,
            request.spec.labels,
            request.spec.tags,
        );
        for (what, worker) in [("created", created), ("listed", listed)] {
            let ObservedWorker { name, attempt, operation, spec_hash, labels, tags, .. } = worker;
            let found = (name, attempt, operation, spec_hash, labels, tags);
            if found != expected {
                return Err(format!("{what} as {found:?}, expected {expected:?}"));
            }
        }
        self.clean().await.map(|()| true)
    }

    async fn scoped(&self, other: &DeploymentId) -> Result<bool, String> {
        self.create(0).await?;
        self.list_until(1).await?;
        let stranger = Trial { subject: self.subject, owner: other.clone() };
        let seen = stranger.list().await?;
        if !seen.is_empty() {
            return Err(format!("another deployment sees {seen:?}"));
        }
        // A stranger's delete of the same name must not reach ours.
        let reference = stranger.reference(0, None);
        let deleted =
            self.subject.provider().delete(&DeleteRequest { worker: reference, attempt: 1 }).await;
        deleted.map_err(|error| format!("deleting nothing failed: {error}"))?;
        self.list_until(1).await?;
        self.clean().await.map(|()| true)
    }

    async fn whole_listing(&self) -> Result<bool, String> {
        for slot in 0..5 {
            self.create(slot).await?;
        }
        let listed = self.list_until(5).await?;
        let names: BTreeSet<String> = listed.iter().map(|worker| worker.name.to_string()).collect();
        let ids: BTreeSet<&String> = listed.iter().map(|worker| &worker.provider_id).collect();
        if names.len() != 5 || ids.len() != 5 {
            return Err(format!("a worker is listed twice: {names:?}, {ids:?}"));
        }
        self.clean().await.map(|()| true)
    }

    async fn update_in_place(&self) -> Result<bool, String> {
        let description = self.subject.provider().describe();
        let both = [InPlaceField::Labels, InPlaceField::Tags];
        if !both.into_iter().all(|field| description.can_update(field)) {
            return Ok(false);
        }
        let created = self.create(0).await?;
        let request = UpdateRequest {
            worker: self.reference(0, Some(created.provider_id.clone())),
            labels: BTreeMap::from([("changed".to_owned(), "yes".to_owned())]),
            tags: vec!["changed".to_owned()],
        };
        for _ in 0..2 {
            let updated = self.subject.provider().update(&request).await;
            updated.map_err(|error| format!("update failed: {error}"))?;
        }
        let listed = self.list_until(1).await?.remove(0);
        if listed.labels != request.labels || listed.tags != request.tags {
            return Err(format!(
                "listed with labels {:?} and tags {:?}",
                listed.labels, listed.tags
            ));
        }
        if listed.provider_id != created.provider_id {
            return Err("the update made another worker".to_owned());
        }
        self.clean().await.map(|()| true)
    }

    async fn reset(&self) -> Result<bool, String> {
        if !self.subject.provider().describe().resets {
            return Ok(false);
        }
        let spec = self.subject.spec();
        let absent = ResetRequest { worker: self.reference(0, None), spec: spec.clone() };
        match self.subject.provider().reset(&absent).await {
            Err(ProviderError::NotFound(_)) => {}
            answer => return Err(format!("resetting nothing answered {answer:?}")),
        }
        let created = self.create(0).await?;
        let worker = self.reference(0, Some(created.provider_id.clone()));
        let reset = self.subject.provider().reset(&ResetRequest { worker, spec }).await;
        let reset = reset.map_err(|error| format!("reset failed: {error}"))?;
        let listed = self.list_until(1).await?.remove(0);
        for (what, worker) in [("answered", reset), ("listed", listed)] {
            let expected = ObservedWorker {
                addresses: worker.addresses.clone(),
                attributes: worker.attributes.clone(),
                status: worker.status,
                ..created.clone()
            };
            if worker != expected {
                return Err(format!("{what} as {worker:?}, created as {created:?}"));
            }
        }
        self.clean().await.map(|()| true)
    }

    async fn abandoned_reset(&self) -> Result<bool, String> {
        if !self.subject.provider().describe().resets {
            return Ok(false);
        }
        let created = self.create(0).await?;
        let worker = self.reference(0, Some(created.provider_id.clone()));
        let request = ResetRequest { worker, spec: self.subject.spec() };
        for limit in ABANDONED_AFTER_MS {
            let provider = self.subject.provider();
            let _abandoned = timeout(Duration::from_millis(limit), provider.reset(&request)).await;
            let seen = self.list_until(1).await?.remove(0);
            if seen.provider_id != created.provider_id {
                return Err(format!("abandoned after {limit} ms, it is {}", seen.provider_id));
            }
            let again = self.subject.provider().reset(&request).await;
            again.map_err(|error| format!("abandoned after {limit} ms: repeat: {error}"))?;
        }
        self.list_until(1).await?;
        self.clean().await.map(|()| true)
    }

    async fn delete_twice(&self) -> Result<bool, String> {
        let created = self.create(0).await?;
        for provider_id in [Some(created.provider_id), None, Some("never-was".to_owned())] {
            let worker = self.reference(0, provider_id);
            match self.subject.provider().delete(&DeleteRequest { worker, attempt: 1 }).await {
                Ok(()) | Err(ProviderError::NotFound(_)) => {}
                Err(error) => return Err(format!("delete failed: {error}")),
            }
        }
        self.list_until(0).await.map(|_| true)
    }

    async fn next_attempt(&self) -> Result<bool, String> {
        let first = self.create(0).await?;
        let worker = self.reference(0, Some(first.provider_id.clone()));
        let deleted = self.subject.provider().delete(&DeleteRequest { worker, attempt: 1 }).await;
        deleted.map_err(|error| format!("delete failed: {error}"))?;
        self.list_until(0).await?;
        let token = format!("{}-0-2", self.owner);
        let request = CreateRequest { attempt: 2, token, ..self.request(0) };
        let second = self.subject.provider().create(&request).await;
        let second = second.map_err(|error| format!("the second attempt failed: {error}"))?;
        if second.provider_id == first.provider_id {
            return Err("two attempts have one provider id".to_owned());
        }
        self.list_until(1).await?;
        self.clean().await.map(|()| true)
    }

    async fn other_id(&self) -> Result<bool, String> {
        self.create(0).await?;
        self.list_until(1).await?;
        let worker = self.reference(0, Some("another-id".to_owned()));
        match self.subject.provider().delete(&DeleteRequest { worker, attempt: 1 }).await {
            Ok(()) | Err(ProviderError::NotFound(_)) => {}
            Err(error) => return Err(format!("delete failed: {error}")),
        }
        self.list_until(1).await?;
        self.clean().await.map(|()| true)
    }

    async fn not_found(&self) -> Result<bool, String> {
        let reference = self.reference(0, None);
        match self.subject.provider().get(&reference).await {
            Err(ProviderError::NotFound(_)) => {}
            answer => return Err(format!("get answered {answer:?}")),
        }
        let (labels, tags) = (BTreeMap::new(), Vec::new());
        let request = UpdateRequest { worker: reference, labels, tags };
        match self.subject.provider().update(&request).await {
            Err(ProviderError::NotFound(_)) => Ok(true),
            answer => Err(format!("update answered {answer:?}")),
        }
    }

    async fn invalid(&self) -> Result<bool, String> {
        let Some(spec) = self.subject.invalid_spec() else { return Ok(false) };
        let request = CreateRequest { spec, ..self.request(0) };
        match self.subject.provider().create(&request).await {
            Err(ProviderError::InvalidSpec(_)) => self.list_until(0).await.map(|_| true),
            answer => Err(format!("create answered {answer:?}")),
        }
    }

    async fn lost_answer(&self) -> Result<bool, String> {
        if !self.subject.lose_next_create() {
            return Ok(false);
        }
        match self.subject.provider().create(&self.request(0)).await {
            Err(error) if error.is_unknown() => {}
            answer => return Err(format!("create answered {answer:?}")),
        }
        self.list_until(1).await?;
        self.clean().await.map(|()| true)
    }

    async fn incomplete(&self) -> Result<bool, String> {
        self.create(0).await?;
        self.list_until(1).await?;
        if !self.subject.hide_from_next_listing() {
            return self.clean().await.map(|()| false);
        }
        let listing = self.subject.provider().list(&self.owner, None).await;
        let listing = listing.map_err(|error| format!("list failed: {error}"))?;
        if listing.complete && listing.workers.is_empty() {
            return Err("a listing without the worker says that it is complete".to_owned());
        }
        self.clean().await.map(|()| true)
    }

    async fn abandoned(&self) -> Result<bool, String> {
        if self.subject.provider().describe().idempotency == Idempotency::None {
            return Ok(false);
        }
        for (slot, limit) in (0..).zip(ABANDONED_AFTER_MS) {
            let provider = self.subject.provider();
            let request = self.request(slot);
            // Dropping the call is what a killed caller looks like to the provider.
            let _abandoned = timeout(Duration::from_millis(limit), provider.create(&request)).await;
            match self.subject.provider().create(&request).await {
                Ok(_) | Err(ProviderError::AlreadyExists(_)) => {}
                Err(error) => return Err(format!("abandoned after {limit} ms: repeat: {error}")),
            }
        }
        let listed = self.list_until(ABANDONED_AFTER_MS.len()).await?;
        let names: BTreeSet<String> = listed.iter().map(|worker| worker.name.to_string()).collect();
        if names.len() != listed.len() {
            return Err(format!("an abandoned create made a second worker: {listed:?}"));
        }
        self.clean().await.map(|()| true)
    }
}
