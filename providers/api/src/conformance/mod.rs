//! The suite that every provider must pass: the contract of [`WorkerProvider`] as code.
//!
//! A provider's tests give a [`Subject`]; [`run`] answers with one [`Finding`] a rule, each failure with
//! what was expected and what happened instead, in words for the provider's author. It creates a few
//! workers under fresh deployments and deletes them again.
//!
//! | module     | rules about                                   |
//! |------------|-----------------------------------------------|
//! | `creating` | creates                                          |
//! | `changing` | updates, resets and deletes                       |
//! | `rules`    | the sentences, and why each matters               |

mod changing;
mod creating;
mod rules;

use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use crate::error::ProviderError;
use crate::identity::{DeploymentId, Generation, Slot, WorkerName};
use crate::provider::{CreateRequest, DeleteRequest, Progress, WorkerProvider, WorkerRef};
use crate::spec::{ObservedWorker, ProbeOutcome, WorkerSpec};

/// How long a deletion may take to show, beyond the provider's own settle time.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a call may take.
const CALL_LIMIT: Duration = Duration::from_secs(120);
/// How often the suite looks again.
const PAUSE: Duration = Duration::from_millis(20);
/// After how many milliseconds calls are abandoned at least, to find one in every stage.
const ABANDONED_AFTER_MS: [u64; 6] = [0, 1, 2, 4, 8, 16];
/// How long nothing may change at least once everything has shown.
const STILL: Duration = Duration::from_secs(1);

/// A provider under test.
pub trait Subject: Sync {
    /// The provider's type.
    type Provider: WorkerProvider;

    /// Returns a new handle, as another process would have: nothing may be remembered between two.
    fn provider(&self) -> Self::Provider;

    /// Returns the spec of a worker that starts quickly and stays.
    fn spec(&self) -> WorkerSpec;

    /// Returns a spec that can never succeed, if there is one: by default with the image of which the provider says
    /// so.
    fn invalid_spec(&self) -> Option<WorkerSpec> {
        let image = self.provider().describe().about.invalid_image?;
        Some(WorkerSpec { image, ..self.spec() })
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
    /// What goes wrong for users where it is not kept, and what a provider does about it.
    pub advice: &'static str,
    /// What became of it.
    pub outcome: Outcome,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.outcome {
            Outcome::Kept => write!(f, "kept: {}", self.rule),
            Outcome::Broken(how) => write!(f, "BROKEN: {}: {how}\n  {}", self.rule, self.advice),
            Outcome::NotTried => write!(f, "not tried here: {}", self.rule),
        }
    }
}

/// Tells each finding as soon as it is there.
struct Findings<'t> {
    found: Vec<Finding>,
    is_wanted: &'t (dyn Fn(&str) -> bool + Sync),
    tell: &'t mut (dyn FnMut(&Finding) + Send),
}

impl Findings<'_> {
    async fn add<S: Subject>(
        &mut self,
        (rule, advice): (&'static str, &'static str),
        trial: &Trial<'_, S>,
        trying: impl Future<Output = Result<bool, String>>,
    ) {
        if !(self.is_wanted)(rule) {
            return;
        }
        let outcome = match Box::pin(trying).await {
            Ok(true) => Outcome::Kept,
            Ok(false) => Outcome::NotTried,
            Err(how) => Outcome::Broken(match Box::pin(trial.clean()).await {
                Ok(()) => how,
                Err(left) => {
                    format!("{how}; workers of deployment {} are left: {left}", trial.owner)
                }
            }),
        };
        let finding = Finding { rule, advice, outcome };
        (self.tell)(&finding);
        self.found.push(finding);
    }
}

/// Runs every rule, and tells each finding. `seed` tells the deployments of two runs apart.
pub async fn run(
    subject: &impl Subject,
    seed: [u8; 15],
    tell: &mut (dyn FnMut(&Finding) + Send),
) -> Vec<Finding> {
    run_some(subject, seed, &|_| true, tell).await
}

/// Runs the rules whose sentence is wanted.
pub async fn run_some(
    subject: &impl Subject,
    seed: [u8; 15],
    is_wanted: &(dyn Fn(&str) -> bool + Sync),
    tell: &mut (dyn FnMut(&Finding) + Send),
) -> Vec<Finding> {
    let trial = |number: u8| {
        let mut id = [number; 16];
        // Names of objects end in the first three bytes.
        (id[0], id[1]) = (seed[0], number);
        id[2..].copy_from_slice(&seed[1..]);
        Trial { subject, owner: DeploymentId::from_random(id) }
    };
    let mut findings = Findings { found: Vec::new(), is_wanted, tell };
    let own = trial(1);
    findings.add(rules::REPEATED_CREATE, &own, own.repeated_create()).await;
    let own = trial(2);
    findings.add(rules::SIDE_BY_SIDE, &own, own.creates_side_by_side()).await;
    let own = trial(3);
    findings.add(rules::TAGS, &own, own.tags_round_trip()).await;
    let (own, stranger) = (trial(4), trial(5));
    findings.add(rules::SCOPE, &own, own.scoped(&stranger.owner)).await;
    let own = trial(6);
    findings.add(rules::WHOLE, &own, own.whole_listing()).await;
    let own = trial(7);
    findings.add(rules::IN_PLACE, &own, own.update_in_place()).await;
    let own = trial(8);
    findings.add(rules::DELETE_TWICE, &own, own.delete_twice()).await;
    let own = trial(14);
    findings.add(rules::NEXT_ATTEMPT, &own, own.next_attempt()).await;
    let own = trial(15);
    findings.add(rules::OTHER_ID, &own, own.other_id()).await;
    let own = trial(16);
    findings.add(rules::RESET, &own, own.reset()).await;
    let own = trial(17);
    findings.add(rules::ABANDONED_RESET, &own, own.abandoned_reset()).await;
    let own = trial(9);
    findings.add(rules::NOT_FOUND, &own, own.not_found()).await;
    let own = trial(10);
    findings.add(rules::INVALID, &own, own.invalid()).await;
    let own = trial(11);
    findings.add(rules::LOST_ANSWER, &own, own.lost_answer()).await;
    let own = trial(12);
    findings.add(rules::INCOMPLETE, &own, own.incomplete()).await;
    let own = trial(13);
    findings.add(rules::ABANDONED, &own, own.abandoned()).await;
    let own = trial(18);
    findings.add(rules::HEALTH, &own, own.health()).await;
    let own = trial(19);
    findings.add(rules::LATE, &own, own.late_effects()).await;
    findings.found
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
            progress: Progress::default(),
            timeout: CALL_LIMIT,
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
        let (mut page, mut seen) = (None, BTreeSet::new());
        loop {
            let listed = provider.list(&self.owner, page.as_ref()).await;
            let listing = listed.map_err(|error| format!("list failed: {error}"))?;
            workers.extend(listing.workers);
            match listing.next {
                Some(next) if seen.insert(next.0.clone()) => page = Some(next),
                Some(next) => {
                    return Err(format!("the listing leads back to the page {:?}", next.0));
                }
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
            let found: Vec<String> = self
                .list()
                .await?
                .iter()
                .map(|w| format!("{} {}", w.name, w.provider_id))
                .collect();
            Err(format!("expected {count} workers in the listing, found {found:?}"))
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
            let attempt = worker.attempt;
            let deleted = provider.delete(&DeleteRequest { worker: reference, attempt }).await;
            deleted.map_err(|error| format!("delete failed: {error}"))?;
        }
        self.list_until(0).await.map(drop)
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

    async fn health(&self) -> Result<bool, String> {
        let provider = self.subject.provider();
        let created = self.create(0).await?;
        let worker = self.reference(0, Some(created.provider_id));
        let probing = async {
            loop {
                match provider.probe(&worker).await {
                    Ok(ProbeOutcome::Healthy) => return Ok(()),
                    Ok(ProbeOutcome::Unhealthy(_)) => sleep(PAUSE).await,
                    answer => {
                        return Err(format!("a probe of a worker that runs answered {answer:?}"));
                    }
                }
            }
        };
        let outcome = timeout(provider.describe().settle + PATIENCE, probing).await;
        outcome.unwrap_or_else(|_| Err("a worker that runs never became healthy".to_owned()))?;
        self.list_until(1).await?;
        self.clean().await?;
        let gone = async {
            loop {
                match provider.probe(&worker).await {
                    Ok(ProbeOutcome::Gone(_)) | Err(ProviderError::NotFound(_)) => return Ok(true),
                    // What a listing shows late may be known late here too.
                    Ok(_) => sleep(PAUSE).await,
                    Err(error) => {
                        return Err(format!("a probe of a deleted worker answered {error:?}"));
                    }
                }
            }
        };
        let limit = provider.describe().lag() + PATIENCE;
        let outcome = timeout(limit, gone).await;
        outcome.unwrap_or_else(|_| Err("a deleted worker was never gone".to_owned()))
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
}
