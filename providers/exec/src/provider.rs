//! [`ExecProvider`]: the contract's methods as calls of an executable.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pool_provider::{
    CreateRequest, DeleteRequest, DeploymentId, Description, Listing, ObservedStatus,
    ObservedWorker, PageToken, ProbeOutcome, Progress, ProviderError, ResetRequest, SecretSource,
    UpdateRequest, WorkerName, WorkerProvider, WorkerRef, WorkerSpec,
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::call::{Answer, Caller, Failed};
use crate::config::Config;
use crate::logs::Logs;
use crate::protocol::{
    self, Delete, Described, Extra, Health, List, Listed, Method, Probed, Reset, Update, Worker,
};
use crate::shared::{Shared, Whole};

/// How much sooner than its caller gives up a call is ended, beside the grace: its last words are worth hearing.
const MARGIN: Duration = Duration::from_millis(500);

/// Reads a secret where it is, or says why it cannot.
pub type ReadSecret = Arc<dyn Fn(&SecretSource) -> Result<String, String> + Send + Sync>;

/// What the provider needs of whoever embeds it.
#[derive(Clone)]
pub struct Settings {
    /// What the provider is called in pool files.
    pub name: String,
    /// The program and arguments of the warden step.
    pub warden: (PathBuf, Vec<String>),
    /// Where logs are kept.
    pub logs: PathBuf,
    /// The environment of `pool`; executables get little of it.
    pub environment: Arc<BTreeMap<String, String>>,
    /// Reads the provider's secrets.
    pub read_secret: ReadSecret,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Has an executable create workers.
#[derive(Debug, Clone)]
pub struct ExecProvider {
    caller: Caller,
    description: Description,
    methods: BTreeSet<Extra>,
    whole: Arc<Shared>,
}

/// Why an executable is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// It cannot be started.
    #[error("{0}")]
    NotStarted(String),
    /// It does not say what it can do.
    #[error("asking what it can do: {0}")]
    Unasked(String),
    /// What it says cannot be used.
    #[error("what it says of itself: {0}")]
    Unfit(String),
}

impl ExecProvider {
    /// Asks the executable what it can do.
    ///
    /// # Errors
    /// When it cannot be started, does not answer, or speaks other versions of the protocol only.
    pub async fn open(config: Config, settings: Settings) -> Result<Self, OpenError> {
        let logs = Logs::at(settings.logs.clone());
        let caller = Caller { config, settings: Arc::new(settings), logs };
        let limit = caller.config.timeout.get();
        let quiet = Progress::default();
        let answer = caller.call(Method::Describe {}, BTreeMap::new(), limit, &quiet).await;
        let answer = answer.map_err(|failed| match failed {
            Failed::NotStarted(why) => OpenError::NotStarted(why),
            // That it may answer another time goes without saying.
            Failed::As(ProviderError::Transient(why)) => OpenError::Unasked(why),
            Failed::As(error) => OpenError::Unasked(error.to_string()),
        })?;
        let said: Vec<String> =
            answer.value.as_object().into_iter().flat_map(|said| said.keys()).cloned().collect();
        let understood = answer.understood(|answer| {
            let described: Described = protocol::read(answer).map_err(ProviderError::Transient)?;
            described.verify().map_err(ProviderError::Transient)?;
            Ok(described)
        });
        let described = understood.map_err(|error| match error {
            ProviderError::Transient(why) => OpenError::Unfit(why),
            other => OpenError::Unfit(other.to_string()),
        })?;
        let methods = described.methods.clone();
        let unknown = described.unknown(said);
        let mut description = described.into_description(caller.config.grace.get() + MARGIN, limit);
        description.about.unknown = unknown;
        Ok(Self { caller, description, methods, whole: Arc::default() })
    }

    async fn ask(&self, method: Method) -> Result<Answer, ProviderError> {
        let limit = self.caller.config.timeout.get();
        self.call(method, BTreeMap::new(), limit, &Progress::default()).await
    }

    async fn call(
        &self,
        method: Method,
        secrets: BTreeMap<String, String>,
        limit: Duration,
        progress: &Progress,
    ) -> Result<Answer, ProviderError> {
        Ok(self.caller.call(method, secrets, limit, progress).await?)
    }

    /// Returns how long a call may take whose caller waits for `limit`: the grace comes after it.
    fn within(&self, limit: Duration) -> Duration {
        let reserved = self.caller.config.grace.get() + MARGIN;
        limit.saturating_sub(reserved).max(limit / 2)
    }

    /// Reads a worker that has to be this one. What was done and cannot be understood may be anything.
    fn worker(
        answer: Answer,
        (method, owner, name): (&str, &DeploymentId, &WorkerName),
    ) -> Result<ObservedWorker, ProviderError> {
        let read = |answer: Value| {
            let worker: Worker = protocol::read(answer)?;
            let observed = worker.observed(owner)?;
            if observed.name != *name {
                return Err(format!("it is about {}, not {name}", observed.name));
            }
            Ok(observed)
        };
        let unclear = |why: String| ProviderError::UnknownOutcome(wrong(method, &why));
        answer.understood(|answer| read(answer).map_err(unclear))
    }

    /// Looks for a worker in a whole listing.
    async fn find(&self, worker: &WorkerRef) -> Result<ObservedWorker, ProviderError> {
        let whole = self.whole.since_now(&worker.owner, || self.list_all(&worker.owner)).await?;
        let is_it = |seen: &&ObservedWorker| seen.name == worker.name && is_asked_for(worker, seen);
        match whole.workers.iter().find(is_it) {
            Some(found) => Ok(found.clone()),
            None if whole.complete => {
                Err(ProviderError::NotFound(format!("{} is not in the listing", worker.name)))
            }
            None => {
                let why = format!("{}: the listing is not complete", worker.name);
                Err(ProviderError::Transient(why))
            }
        }
    }

    /// Lists all pages.
    async fn list_all(&self, owner: &DeploymentId) -> Result<Whole, ProviderError> {
        let mut whole = Whole { workers: Vec::new(), complete: true };
        let (mut page, mut seen) = (None, BTreeSet::new());
        loop {
            let listing = self.list(owner, page.as_ref()).await?;
            whole.complete &= listing.complete;
            whole.workers.extend(listing.workers);
            match listing.next {
                Some(next) if seen.insert(next.0.clone()) => page = Some(next),
                Some(_) => return Err(ProviderError::Transient(wrong("list", &"it never ends"))),
                None => return Ok(whole),
            }
        }
    }
}

/// Returns whether an answer is about the very worker that was asked for.
fn is_asked_for(asked: &WorkerRef, answered: &ObservedWorker) -> bool {
    asked.provider_id.as_ref().is_none_or(|id| *id == answered.provider_id)
}

/// Reads what a method answers that only looks.
fn read<T: DeserializeOwned>(answer: Answer, method: &str) -> Result<T, ProviderError> {
    let wrong = |why: String| ProviderError::Transient(wrong(method, &why));
    answer.understood(|answer| protocol::read(answer).map_err(wrong))
}

fn wrong(method: &str, why: &dyn fmt::Display) -> String {
    format!("the answer to {method} is not what the protocol says: {why}")
}

/// Returns the values of a worker's secrets.
fn secrets(spec: &WorkerSpec) -> BTreeMap<String, String> {
    let secret = spec.environment.iter().filter(|(name, _)| spec.secrets.contains(*name));
    secret.map(|(name, value)| (name.clone(), value.clone())).collect()
}

impl WorkerProvider for ExecProvider {
    fn describe(&self) -> Description {
        self.description.clone()
    }

    async fn create(&self, request: &CreateRequest) -> Result<ObservedWorker, ProviderError> {
        let (method, limit) = (Method::create(request), self.within(request.timeout));
        let secrets = secrets(&request.spec);
        let answer = self.call(method, secrets, limit, &request.progress).await?;
        let created = Self::worker(answer, ("create", &request.owner, &request.name))?;
        let asked = (request.attempt, request.operation, request.spec_hash.as_str());
        let answered = (created.attempt, created.operation, created.spec_hash.as_str());
        if asked != answered {
            return Err(ProviderError::UnknownOutcome(format!(
                "the answer to create is wrong: attempt, operation and spec_hash are {answered:?}, not {asked:?}"
            )));
        }
        Ok(created)
    }

    async fn list(
        &self,
        owner: &DeploymentId,
        page: Option<&PageToken>,
    ) -> Result<Listing, ProviderError> {
        let asked = List { owner: owner.clone(), page: page.map(|page| page.0.clone()) };
        let listed: Listed = read(self.ask(Method::List(asked)).await?, "list")?;
        let lie = |why: String| ProviderError::Transient(format!("its listing is wrong: {why}"));
        let workers = listed.workers.into_iter().map(|worker| worker.observed(owner));
        Ok(Listing {
            workers: workers.collect::<Result<_, _>>().map_err(lie)?,
            next: listed.next.map(PageToken),
            complete: listed.complete,
        })
    }

    async fn get(&self, worker: &WorkerRef) -> Result<ObservedWorker, ProviderError> {
        if !self.methods.contains(&Extra::Get) {
            return self.find(worker).await;
        }
        let answer = self.ask(Method::Get(worker.into())).await?;
        let seen = Self::worker(answer, ("get", &worker.owner, &worker.name))
            .map_err(|error| ProviderError::Transient(error.to_string()))?;
        if !is_asked_for(worker, &seen) {
            let why = format!("{}: it is {} now", worker.name, seen.provider_id);
            return Err(ProviderError::NotFound(why));
        }
        Ok(seen)
    }

    async fn update(&self, request: &UpdateRequest) -> Result<ObservedWorker, ProviderError> {
        let worker = &request.worker;
        let (labels, tags) = (request.labels.clone(), request.tags.clone());
        let update = Update { worker: worker.into(), labels, tags };
        let answer = self.ask(Method::Update(update)).await?;
        let updated = Self::worker(answer, ("update", &worker.owner, &worker.name))?;
        if !is_asked_for(worker, &updated) {
            let why = format!("it is about {}", updated.provider_id);
            return Err(ProviderError::UnknownOutcome(wrong("update", &why)));
        }
        Ok(updated)
    }

    async fn delete(&self, request: &DeleteRequest) -> Result<(), ProviderError> {
        let delete = Delete { worker: (&request.worker).into(), attempt: request.attempt };
        let limit = self.within(self.description.slowest_delete);
        let quiet = Progress::default();
        self.call(Method::Delete(delete), BTreeMap::new(), limit, &quiet).await.map(drop)
    }

    async fn probe(&self, worker: &WorkerRef) -> Result<ProbeOutcome, ProviderError> {
        if !self.methods.contains(&Extra::Probe) {
            return match self.get(worker).await {
                Ok(seen) => Ok(match seen.status {
                    ObservedStatus::Running => ProbeOutcome::Healthy,
                    ObservedStatus::Starting => ProbeOutcome::Unhealthy("it starts".to_owned()),
                    ObservedStatus::Stopping => ProbeOutcome::Gone("it stops".to_owned()),
                }),
                Err(ProviderError::NotFound(why)) => {
                    Ok(ProbeOutcome::Gone(format!("not found: {why}")))
                }
                Err(error) => Err(error),
            };
        }
        let probed: Probed = read(self.ask(Method::Probe(worker.into())).await?, "probe")?;
        Ok(match probed.health {
            Health::Healthy => ProbeOutcome::Healthy,
            Health::Unhealthy => ProbeOutcome::Unhealthy(probed.reason),
            Health::Gone => ProbeOutcome::Gone(probed.reason),
        })
    }

    async fn reset(&self, request: &ResetRequest) -> Result<ObservedWorker, ProviderError> {
        let worker = &request.worker;
        let reset = Reset { worker: worker.into(), spec: (&request.spec).into() };
        let limit = self.within(request.timeout);
        let quiet = Progress::default();
        let method = Method::Reset(Box::new(reset));
        let answer = self.call(method, secrets(&request.spec), limit, &quiet).await?;
        Self::worker(answer, ("reset", &worker.owner, &worker.name))
    }
}
