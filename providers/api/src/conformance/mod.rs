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
//! | `looking`  | listings and probes                               |
//! | `rules`    | the sentences, and why each matters               |
//! | `told`     | what was answered, in words                       |

mod changing;
mod creating;
mod looking;
mod rules;
mod told;

use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{sleep, timeout};

use told::names;

use crate::error::ProviderError;
use crate::identity::{DeploymentId, Generation, Slot, WorkerName};
use crate::provider::{CreateRequest, DeleteRequest, Progress, WorkerProvider, WorkerRef};
use crate::spec::{ObservedWorker, WorkerSpec};

/// How long a deletion may take to show, beyond the provider's own settle time.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a call may take.
const CALL_LIMIT: Duration = Duration::from_secs(120);
/// How often the suite looks again.
const PAUSE: Duration = Duration::from_millis(20);
/// After how many milliseconds calls are abandoned at least, to find one in every stage.
const ABANDONED_AFTER_MS: [u64; 6] = [0, 1, 2, 4, 8, 16];
/// How long a worker is watched that has just been created: what its call took along with it is gone by then.
const STAYS: Duration = Duration::from_secs(3);
/// How often it is deleted what shows late.
const CLEANINGS: usize = 5;
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

    /// Returns how long a create may take.
    fn create_timeout(&self) -> Duration {
        CALL_LIMIT
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
    /// It could not be tried here, and why.
    NotTried(&'static str),
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
    /// What could not be deleted again.
    pub left: Vec<Left>,
}

/// Workers of the suite that may be left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    /// Whose they are: what they bear.
    pub owner: DeploymentId,
    /// Why it is not known that they are gone.
    pub why: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.outcome {
            Outcome::Kept => write!(f, "kept: {}", self.rule),
            Outcome::Broken(how) => write!(f, "BROKEN: {}: {how}\n  {}", self.rule, self.advice),
            Outcome::NotTried(why) => write!(f, "not tried here: {}: {why}", self.rule),
        }
    }
}

/// Why a try ended before its end.
enum Stop {
    /// The rule is broken, and how.
    Broken(String),
    /// It cannot be tried here, and why.
    NotTried(&'static str),
}

impl From<String> for Stop {
    fn from(how: String) -> Self {
        Self::Broken(how)
    }
}

/// What comes of trying a rule.
type Tried = Result<(), Stop>;

/// Runs every rule, and tells each finding. `seed` tells the deployments of two runs apart.
pub async fn run(
    subject: &impl Subject,
    seed: [u8; 15],
    tell: &mut (dyn FnMut(&Finding) + Send),
) -> Vec<Finding> {
    Suite::new(subject, seed).run(&|_| true, tell).await
}

/// The rules, and the workers that trying them makes.
pub struct Suite<'s, S> {
    subject: &'s S,
    seed: [u8; 15],
    /// The deployments whose workers may still be there.
    begun: Mutex<BTreeSet<DeploymentId>>,
}

impl<S> fmt::Debug for Suite<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Suite").field("begun", &self.begun).finish_non_exhaustive()
    }
}

/// A run of the suite.
struct Running<'r, S> {
    suite: &'r Suite<'r, S>,
    found: Vec<Finding>,
    /// Why nothing more can be tried.
    hopeless: bool,
    is_wanted: &'r (dyn Fn(&str) -> bool + Sync),
    tell: &'r mut (dyn FnMut(&Finding) + Send),
}

impl<'s, S: Subject> Suite<'s, S> {
    /// Builds the suite. `seed` tells the deployments of two runs apart.
    pub fn new(subject: &'s S, seed: [u8; 15]) -> Self {
        Self { subject, seed, begun: Mutex::default() }
    }

    fn begun(&self) -> MutexGuard<'_, BTreeSet<DeploymentId>> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn owner(&self, number: u8) -> DeploymentId {
        let mut id = [number; 16];
        // Names of objects end in the first three bytes.
        (id[0], id[1]) = (self.seed[0], number);
        id[2..].copy_from_slice(&self.seed[1..]);
        DeploymentId::from_random(id)
    }

    fn trial(&self, number: u8) -> Trial<'s, S> {
        Trial { subject: self.subject, owner: self.owner(number) }
    }

    /// Runs the rules whose sentence is wanted, and tells each finding. When workers cannot be created at all, the rest is
    /// not tried. It can be dropped at any moment; then [`Suite::clean`] is due.
    pub async fn run(
        &self,
        is_wanted: &(dyn Fn(&str) -> bool + Sync),
        tell: &mut (dyn FnMut(&Finding) + Send),
    ) -> Vec<Finding> {
        let mut running =
            Running { suite: self, found: Vec::new(), hopeless: false, is_wanted, tell };
        let own = self.trial(20);
        running.add(rules::CREATE, &own, own.plain_create()).await;
        running.hopeless = running.found.iter().any(|first| first.outcome != Outcome::Kept);
        let own = self.trial(1);
        running.add(rules::REPEATED_CREATE, &own, own.repeated_create()).await;
        let own = self.trial(2);
        running.add(rules::SIDE_BY_SIDE, &own, own.creates_side_by_side()).await;
        let own = self.trial(3);
        running.add(rules::TAGS, &own, own.tags_round_trip()).await;
        let (own, stranger) = (self.trial(4), self.trial(5));
        running.add(rules::SCOPE, &own, own.scoped(&stranger)).await;
        let own = self.trial(6);
        running.add(rules::WHOLE, &own, own.whole_listing()).await;
        let own = self.trial(7);
        running.add(rules::IN_PLACE, &own, own.update_in_place()).await;
        let own = self.trial(8);
        running.add(rules::DELETE_TWICE, &own, own.delete_twice()).await;
        let own = self.trial(14);
        running.add(rules::NEXT_ATTEMPT, &own, own.next_attempt()).await;
        let own = self.trial(15);
        running.add(rules::OTHER_ID, &own, own.other_id()).await;
        let own = self.trial(16);
        running.add(rules::RESET, &own, own.reset()).await;
        let own = self.trial(17);
        running.add(rules::ABANDONED_RESET, &own, own.abandoned_reset()).await;
        let own = self.trial(9);
        running.add(rules::NOT_FOUND, &own, own.not_found()).await;
        let own = self.trial(10);
        running.add(rules::INVALID, &own, own.invalid()).await;
        let own = self.trial(11);
        running.add(rules::LOST_ANSWER, &own, own.lost_answer()).await;
        let own = self.trial(12);
        running.add(rules::INCOMPLETE, &own, own.incomplete()).await;
        let own = self.trial(13);
        running.add(rules::ABANDONED, &own, own.abandoned()).await;
        let own = self.trial(18);
        running.add(rules::HEALTH, &own, own.health()).await;
        let own = self.trial(19);
        running.add(rules::LATE, &own, own.late_effects()).await;
        running.found
    }

    /// Deletes what a run that was dropped had begun, once its calls cannot bring anything any more; returns what could
    /// not be deleted.
    pub async fn clean(&self) -> Vec<Left> {
        sleep(self.subject.provider().describe().settle).await;
        self.clean_up().await
    }

    /// Returns the deployments whose workers may still be there.
    pub fn unclean(&self) -> BTreeSet<DeploymentId> {
        self.begun().clone()
    }

    async fn clean_up(&self) -> Vec<Left> {
        let mut left = Vec::new();
        for owner in self.unclean() {
            let trial = Trial { subject: self.subject, owner: owner.clone() };
            match trial.clean().await {
                Ok(()) => drop(self.begun().remove(&owner)),
                Err(why) => left.push(Left { owner, why }),
            }
        }
        left
    }
}

impl<S: Subject> Running<'_, S> {
    async fn add(
        &mut self,
        (rule, advice): (&'static str, &'static str),
        trial: &Trial<'_, S>,
        trying: impl Future<Output = Tried>,
    ) {
        if !(self.is_wanted)(rule) {
            return;
        }
        let (outcome, left) = if self.hopeless {
            (Outcome::NotTried("the first rule is broken"), Vec::new())
        } else {
            self.suite.begun().insert(trial.owner.clone());
            match Box::pin(trying).await {
                Err(Stop::Broken(how)) => {
                    let left = Box::pin(self.suite.clean()).await;
                    (Outcome::Broken(how), left)
                }
                kept => {
                    // It has deleted its workers and seen that they are gone.
                    self.suite.begun().remove(&trial.owner);
                    let why = kept.err().and_then(|stop| match stop {
                        Stop::NotTried(why) => Some(why),
                        Stop::Broken(_) => None,
                    });
                    (why.map_or(Outcome::Kept, Outcome::NotTried), Vec::new())
                }
            }
        };
        let finding = Finding { rule, advice, outcome, left };
        (self.tell)(&finding);
        self.found.push(finding);
    }
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
            passed_over: 0,
            operation: i64::from(slot) + 100,
            token: format!("{}-{slot}-1", self.owner),
            spec: self.subject.spec(),
            spec_hash: "v1:0123456789abcdef".to_owned(),
            progress: Progress::default(),
            timeout: self.subject.create_timeout(),
        }
    }

    fn reference(&self, slot: u32, provider_id: Option<String>) -> WorkerRef {
        WorkerRef { owner: self.owner.clone(), name: Self::name(slot), provider_id }
    }

    async fn create(&self, slot: u32) -> Result<ObservedWorker, String> {
        self.create_as(&self.request(slot)).await
    }

    async fn create_as(&self, request: &CreateRequest) -> Result<ObservedWorker, String> {
        let provider = self.subject.provider();
        let created = timeout(request.timeout, provider.create(request)).await;
        let created =
            created.map_err(|_| format!("create took longer than {:?}", request.timeout))?;
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
            let found = names(&self.list().await?);
            Err(format!("expected {count} workers in the listing, found {found}"))
        }
    }

    /// Deletes a worker; one that is not there is deleted, too.
    async fn delete(&self, worker: WorkerRef, attempt: u32) -> Result<(), String> {
        match self.subject.provider().delete(&DeleteRequest { worker, attempt }).await {
            Ok(()) | Err(ProviderError::NotFound(_)) => Ok(()),
            Err(error) => Err(format!("delete failed: {error}")),
        }
    }

    /// Deletes everything and makes sure that it is gone, and stays so for as long as effects may take to show.
    async fn clean(&self) -> Result<(), String> {
        let lag = self.subject.provider().describe().lag();
        for _ in 0..CLEANINGS {
            for worker in self.list().await? {
                let reference = WorkerRef {
                    owner: self.owner.clone(),
                    name: worker.name,
                    provider_id: Some(worker.provider_id),
                };
                self.delete(reference, worker.attempt).await?;
            }
            self.list_until(0).await?;
            if lag.is_zero() {
                return Ok(());
            }
            // What did not show was not deleted.
            sleep(lag).await;
            if self.list().await?.is_empty() {
                return Ok(());
            }
        }
        Err("workers come back that were deleted".to_owned())
    }

    async fn plain_create(&self) -> Tried {
        self.create(0).await?;
        self.list_until(1).await?;
        sleep(STAYS).await;
        if self.list().await?.is_empty() {
            return Err(format!("a worker was there, and gone {STAYS:?} later").into());
        }
        Ok(self.clean().await?)
    }
}
