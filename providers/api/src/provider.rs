//! The trait that every provider implements, and its requests.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::ProviderError;
use crate::identity::{DeploymentId, WorkerName};
use crate::shared::{Call, Turn};
use crate::spec::{ObservedWorker, ProbeOutcome, WorkerSpec};

/// What makes a repeated create safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Idempotency {
    /// The same token gives the same worker, whatever became of the first answer.
    Token,
    /// Names are unique: a second create of the same name fails with `already exists`.
    UniqueName,
    /// Nothing: a repeated create may make a second worker.
    None,
}

/// What a listing proves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Consistency {
    /// A listing shows every effect of every call that has returned.
    Strong,
    /// An effect may show up late, by at most [`Description::settle`].
    Eventual,
}

/// A field that some providers can change without a replacement.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum InPlaceField {
    /// `worker_config.labels`
    Labels,
    /// `worker_config.tags`
    Tags,
}

/// Whom a probe asks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Probes {
    /// The worker, or what nobody else can tell of it: one that does not answer in time is not well.
    #[default]
    Worker,
    /// A service that knows of all workers: its silence says nothing of any.
    Service,
}

/// What a provider can do; constant during a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// The provider's type: `local`, `sim`, `docker`.
    pub kind: String,
    /// The worker types that it can create: `process`, `container`, `vm`, `host`.
    pub worker_types: Vec<String>,
    /// What makes a repeated create safe.
    pub idempotency: Idempotency,
    /// What a listing proves.
    pub consistency: Consistency,
    /// How long an effect may take to show in a listing, whatever became of its call.
    #[serde(with = "crate::duration::written")]
    pub settle: Duration,
    /// How long a delete may take to answer, grace for the worker included.
    #[serde(with = "crate::duration::written")]
    pub slowest_delete: Duration,
    /// How long a page of a listing may take, where that may be long.
    #[serde(default, with = "crate::duration::written")]
    pub slowest_look: Duration,
    /// What [`WorkerProvider::update`] can change.
    pub in_place: Vec<InPlaceField>,
    /// Whether all workers are on one host: two of them cannot listen on the same port.
    pub one_host: bool,
    /// Whether [`WorkerProvider::watch`] ever returns: workers that end are noticed at once.
    #[serde(default)]
    pub tells_ends: bool,
    /// Whom [`WorkerProvider::probe`] asks.
    #[serde(default)]
    pub probes: Probes,
    /// Whether [`WorkerProvider::reset`] does anything: a worker can be made as new between two jobs.
    #[serde(default)]
    pub resets: bool,
    /// How many workers fit in all, where the provider knows; decides the order of replacements.
    pub capacity: Option<u32>,
    /// What it says of itself besides.
    #[serde(default)]
    pub about: About,
}

/// What a provider says of itself that a caller cannot know beforehand; those that are built in need none of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct About {
    /// Its own version, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Where its workers are, in words: an account, a region, a rack. Another place is another provider.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// How many calls that change something may be under way, unless its users say otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_concurrency: Option<u32>,
    /// The JSON Schema of its configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_schema: Option<serde_json::Value>,
    /// The JSON Schema of what only its workers have ([`WorkerSpec::attributes`]).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attributes_schema: Option<serde_json::Value>,
    /// An image that never becomes a worker, for the conformance suite.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub invalid_image: Option<String>,
    /// What else it answered when it was asked, in its own words: the rest of the description follows from that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answered: Option<serde_json::Value>,
    /// What it said that nobody here knows: perhaps of a later version, perhaps misspelt.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unknown: Vec<String>,
}

impl About {
    /// Says only which image never becomes a worker.
    pub fn refusing(image: &str) -> Self {
        Self { invalid_image: Some(image.to_owned()), ..Self::default() }
    }
}

impl Description {
    /// Returns how long the effect of a call that has answered may take to show in a listing.
    pub fn lag(&self) -> Duration {
        match self.consistency {
            Consistency::Strong => Duration::ZERO,
            Consistency::Eventual => self.settle,
        }
    }

    /// Returns whether `field` can change without a replacement.
    pub fn can_update(&self, field: InPlaceField) -> bool {
        self.in_place.contains(&field)
    }
}

/// What is heard of a worker without asking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// It has ended by itself, and why.
    Ended(String),
    /// Its own health check changed its mind, or something else happened that it may get over.
    Stirred(String),
}

/// Is told how a create goes, for people: what is pulled, what is booting.
#[derive(Clone, Default)]
pub struct Progress(Option<Arc<Listener>>);

type Listener = dyn Fn(&str) + Send + Sync;

impl Progress {
    /// Tells `listener`, which must not block.
    pub fn to(listener: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(listener)))
    }

    /// Tells whoever listens.
    pub fn tell(&self, what: &str) {
        if let Some(listener) = &self.0 {
            listener(what);
        }
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Progress").field("is_heard", &self.0.is_some()).finish()
    }
}

/// Asks for one worker. Everything that identifies it goes into the object's tags in the same call.
#[derive(Debug, Clone)]
pub struct CreateRequest {
    /// The deployment that will own it.
    pub owner: DeploymentId,
    /// Who it will be.
    pub name: WorkerName,
    /// Grows only on proof that the attempt before left nothing behind.
    pub attempt: u32,
    /// How many attempts of this worker found no capacity, where each of them looked: a provider that has several
    /// places chooses by it. The same for repeats of one attempt, so that a token never comes with another place.
    pub passed_over: u32,
    /// The operation that asks.
    pub operation: i64,
    /// The idempotency token: equal for repeats of one attempt, different otherwise.
    pub token: String,
    /// What it should be.
    pub spec: WorkerSpec,
    /// The hash of the spec without its secrets.
    pub spec_hash: String,
    /// Is told how it goes.
    pub progress: Progress,
    /// How long the caller waits for the answer, for providers that want to know.
    pub timeout: Duration,
}

/// Names one existing worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerRef {
    /// The deployment that owns it.
    pub owner: DeploymentId,
    /// Who it is.
    pub name: WorkerName,
    /// The provider's id, where it is known. Without one, every object of that name is meant.
    pub provider_id: Option<String>,
}

/// Asks to change a worker in place.
#[derive(Debug, Clone)]
pub struct UpdateRequest {
    /// Which worker.
    pub worker: WorkerRef,
    /// All labels that it should have.
    pub labels: BTreeMap<String, String>,
    /// All tags that it should have.
    pub tags: Vec<String>,
}

/// Asks for a worker to be as new.
#[derive(Debug, Clone)]
pub struct ResetRequest {
    /// Which worker.
    pub worker: WorkerRef,
    /// What it is made from, secrets included: whatever has to be started again needs it.
    pub spec: WorkerSpec,
    /// How long the caller waits for the answer, for providers that want to know.
    pub timeout: Duration,
}

/// Asks for a worker to be gone.
#[derive(Debug, Clone)]
pub struct DeleteRequest {
    /// Which worker.
    pub worker: WorkerRef,
    /// The latest attempt to create it that may be under way. Later ones are not meant: a worker that
    /// did not get well is deleted and tried again under its name.
    pub attempt: u32,
}

/// Where a listing goes on; opaque.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageToken(pub String);

/// One page of a listing.
#[derive(Debug, Clone)]
pub struct Listing {
    /// The page's workers.
    pub workers: Vec<ObservedWorker>,
    /// The next page, if there is one.
    pub next: Option<PageToken>,
    /// False when the provider could not see everything (a zone is down): absence proves nothing.
    pub complete: bool,
}

/// Creates and deletes workers somewhere.
///
/// # Guarantees a provider gives
/// - `create` is all or nothing, and the object carries owner, name, attempt, operation and spec hash
///   from its first moment on. A repeat of the same attempt gives the same worker where
///   [`Description::idempotency`] says so.
/// - `list` returns workers of `owner` only, and every one that runs or may still come to run, within
///   the stated consistency.
/// - `delete` succeeds when the worker is already gone, and takes along what the worker started.
/// - `update` sets labels and tags to exactly what is asked.
/// - `reset` ends whatever the worker ran and starts it anew, under its id and with its tags. Meanwhile
///   `list` goes on to return it; a repeat after a dropped call does it again. A dropped call must not reset
///   the worker once a later one has answered: a job may have it by then.
/// - Errors are the named ones. A timeout or a lost answer is `UnknownOutcome`, never another.
/// - Calls may be dropped half-way (the process is killed); what they started is found by `list`.
///
/// # What it need not do
/// Retry, limit its own concurrency, time out, or remember anything: the caller does.
pub trait WorkerProvider: Send + Sync + 'static {
    /// Says what the provider can do. Cheap, and constant during a run.
    fn describe(&self) -> Description;

    /// Creates a worker and returns it, running or starting.
    fn create(
        &self,
        request: &CreateRequest,
    ) -> impl Future<Output = Result<ObservedWorker, ProviderError>> + Send;

    /// Returns one page of the workers that `owner` has.
    fn list(
        &self,
        owner: &DeploymentId,
        page: Option<&PageToken>,
    ) -> impl Future<Output = Result<Listing, ProviderError>> + Send;

    /// Returns one worker, or `NotFound`.
    fn get(
        &self,
        worker: &WorkerRef,
    ) -> impl Future<Output = Result<ObservedWorker, ProviderError>> + Send;

    /// Changes labels and tags in place.
    fn update(
        &self,
        request: &UpdateRequest,
    ) -> impl Future<Output = Result<ObservedWorker, ProviderError>> + Send;

    /// Deletes a worker; returns once it no longer runs, or is certain to stop.
    fn delete(
        &self,
        request: &DeleteRequest,
    ) -> impl Future<Output = Result<(), ProviderError>> + Send;

    /// Asks the provider whether the worker is well.
    fn probe(
        &self,
        worker: &WorkerRef,
    ) -> impl Future<Output = Result<ProbeOutcome, ProviderError>> + Send;

    /// Ends whatever a job left on the worker and starts it anew: the same worker, with the same id and tags.
    /// What it answers is what the worker is like from now on (another process id, say). It is called only
    /// where [`Description::resets`] is true.
    fn reset(
        &self,
        request: &ResetRequest,
    ) -> impl Future<Output = Result<ObservedWorker, ProviderError>> + Send {
        let name = request.worker.name.to_string();
        async move { Err(ProviderError::InvalidSpec(format!("{name}: this provider resets nothing"))) }
    }

    /// Waits until a call may be made. A provider lets every call through; what limits calls, as
    /// [`crate::SharedProvider::behind`] does, has them wait here.
    fn turn(&self, _call: Call) -> impl Future<Output = Turn> + Send {
        async { Turn::free() }
    }

    /// Waits until something is heard of a worker that a probe would find. Where
    /// [`Description::tells_ends`] is false it waits for ever, and only probes find out. It may be dropped at
    /// any moment.
    fn watch(&self, _worker: &WorkerRef) -> impl Future<Output = Heard> + Send {
        std::future::pending()
    }
}
