//! One provider of any type behind one concrete type.
//!
//! [`WorkerProvider`] lets providers write plain `async fn`, which makes it unusable as a trait object.
//! [`SharedProvider`] boxes the futures once, here, so that a registry can hold providers of several
//! types, and one listing can serve every pool of a provider.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tokio::time::Instant;
use tracing::{Level, debug, trace};

use crate::error::ProviderError;
use crate::identity::{DeploymentId, WorkerName};
use crate::provider::{
    CreateRequest, DeleteRequest, Description, Heard, Listing, PageToken, ResetRequest,
    UpdateRequest, WorkerProvider, WorkerRef,
};
use crate::spec::{ObservedWorker, ProbeOutcome};

type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, ProviderError>> + Send + 'a>>;

/// [`WorkerProvider`] with boxed futures. Private: it is an artefact of the language.
trait ErasedProvider: Send + Sync + 'static {
    fn describe(&self) -> Description;
    fn create<'a>(&'a self, request: &'a CreateRequest) -> Answer<'a, ObservedWorker>;
    fn list<'a>(
        &'a self,
        owner: &'a DeploymentId,
        page: Option<&'a PageToken>,
    ) -> Answer<'a, Listing>;
    fn get<'a>(&'a self, worker: &'a WorkerRef) -> Answer<'a, ObservedWorker>;
    fn update<'a>(&'a self, request: &'a UpdateRequest) -> Answer<'a, ObservedWorker>;
    fn delete<'a>(&'a self, request: &'a DeleteRequest) -> Answer<'a, ()>;
    fn probe<'a>(&'a self, worker: &'a WorkerRef) -> Answer<'a, ProbeOutcome>;
    fn reset<'a>(&'a self, request: &'a ResetRequest) -> Answer<'a, ObservedWorker>;
    fn turn(&self, call: Call) -> Pin<Box<dyn Future<Output = Turn> + Send + '_>>;
    fn watch<'a>(
        &'a self,
        worker: &'a WorkerRef,
    ) -> Pin<Box<dyn Future<Output = Heard> + Send + 'a>>;
}

impl<T: WorkerProvider> ErasedProvider for T {
    fn describe(&self) -> Description {
        WorkerProvider::describe(self)
    }
    fn create<'a>(&'a self, request: &'a CreateRequest) -> Answer<'a, ObservedWorker> {
        Box::pin(WorkerProvider::create(self, request))
    }
    fn list<'a>(
        &'a self,
        owner: &'a DeploymentId,
        page: Option<&'a PageToken>,
    ) -> Answer<'a, Listing> {
        Box::pin(WorkerProvider::list(self, owner, page))
    }
    fn get<'a>(&'a self, worker: &'a WorkerRef) -> Answer<'a, ObservedWorker> {
        Box::pin(WorkerProvider::get(self, worker))
    }
    fn update<'a>(&'a self, request: &'a UpdateRequest) -> Answer<'a, ObservedWorker> {
        Box::pin(WorkerProvider::update(self, request))
    }
    fn delete<'a>(&'a self, request: &'a DeleteRequest) -> Answer<'a, ()> {
        Box::pin(WorkerProvider::delete(self, request))
    }
    fn probe<'a>(&'a self, worker: &'a WorkerRef) -> Answer<'a, ProbeOutcome> {
        Box::pin(WorkerProvider::probe(self, worker))
    }
    fn reset<'a>(&'a self, request: &'a ResetRequest) -> Answer<'a, ObservedWorker> {
        Box::pin(WorkerProvider::reset(self, request))
    }
    fn turn(&self, call: Call) -> Pin<Box<dyn Future<Output = Turn> + Send + '_>> {
        Box::pin(WorkerProvider::turn(self, call))
    }
    fn watch<'a>(
        &'a self,
        worker: &'a WorkerRef,
    ) -> Pin<Box<dyn Future<Output = Heard> + Send + 'a>> {
        Box::pin(WorkerProvider::watch(self, worker))
    }
}

/// What a call does, for whoever limits calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// It looks: list, get, probe.
    Look,
    /// It changes something: create, update, delete, reset.
    Change,
}

/// Lets calls through, as many and as fast as a provider may be called.
pub trait Gate: Send + Sync + 'static {
    /// Waits until one call may be made.
    fn pass(&self, call: Call) -> Pin<Box<dyn Future<Output = Turn> + Send + '_>>;
}

/// The right to make one call; it ends when it is dropped.
#[must_use]
pub struct Turn(Option<Box<dyn Send + Sync>>);

impl Turn {
    /// Returns a turn that nobody counts.
    pub fn free() -> Self {
        Self(None)
    }

    /// Returns a turn that drops `counted` when it ends.
    pub fn counted(counted: impl Send + Sync + 'static) -> Self {
        Self(Some(Box::new(counted)))
    }
}

impl fmt::Debug for Turn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Turn").field("is_counted", &self.0.is_some()).finish()
    }
}

/// A provider of any type; clones share it.
///
/// Its calls do not wait for their turn by themselves: a caller has to know when a call leaves. What it
/// writes down beforehand, and how long it waits for the answer, would be about another moment otherwise.
#[derive(Clone)]
pub struct SharedProvider {
    provider: Arc<dyn ErasedProvider>,
    gate: Option<Arc<dyn Gate>>,
    /// What it is called. Its calls are logged by that, and not without: what it stands in is called, and logs them.
    name: Option<Arc<str>>,
}

impl SharedProvider {
    /// Shares `provider`.
    pub fn new(provider: impl WorkerProvider) -> Self {
        Self { provider: Arc::new(provider), gate: None, name: None }
    }

    /// Returns the same provider behind `gate`.
    #[must_use]
    pub fn behind(self, gate: Arc<dyn Gate>) -> Self {
        Self { gate: Some(gate), ..self }
    }

    /// Returns the same provider under a name, by which its calls are logged; without one they are not.
    #[must_use]
    pub fn called(self, name: &str) -> Self {
        Self { name: Some(name.into()), ..self }
    }

    /// Makes a call, and logs what it came to: which, for whom, how long it took. Never what was sent, for there are
    /// secrets in it.
    async fn told<T>(
        &self,
        call: &str,
        worker: Option<&WorkerName>,
        answer: Answer<'_, T>,
    ) -> Result<T, ProviderError> {
        let Some(provider) = self.name.as_ref().filter(|_| tracing::enabled!(Level::DEBUG)) else {
            return answer.await;
        };
        let worker = worker.map(ToString::to_string);
        trace!(%provider, call, worker, "asking");
        let watch = Instant::now();
        let outcome = answer.await;
        let took_ms = (watch.elapsed().as_secs_f64() * 1e5).round() / 100.0;
        match &outcome {
            Ok(_) => debug!(%provider, call, worker, took_ms, "answered"),
            Err(error) => debug!(%provider, call, worker, took_ms, %error, "failed"),
        }
        outcome
    }
}

impl fmt::Debug for SharedProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SharedProvider").field(&self.provider.describe().kind).finish()
    }
}

impl WorkerProvider for SharedProvider {
    fn describe(&self) -> Description {
        self.provider.describe()
    }
    async fn create(&self, request: &CreateRequest) -> Result<ObservedWorker, ProviderError> {
        self.told("create", Some(&request.name), self.provider.create(request)).await
    }
    async fn list(
        &self,
        owner: &DeploymentId,
        page: Option<&PageToken>,
    ) -> Result<Listing, ProviderError> {
        self.told("list", None, self.provider.list(owner, page)).await
    }
    async fn get(&self, worker: &WorkerRef) -> Result<ObservedWorker, ProviderError> {
        self.told("get", Some(&worker.name), self.provider.get(worker)).await
    }
    async fn update(&self, request: &UpdateRequest) -> Result<ObservedWorker, ProviderError> {
        self.told("update", Some(&request.worker.name), self.provider.update(request)).await
    }
    async fn delete(&self, request: &DeleteRequest) -> Result<(), ProviderError> {
        self.told("delete", Some(&request.worker.name), self.provider.delete(request)).await
    }
    async fn probe(&self, worker: &WorkerRef) -> Result<ProbeOutcome, ProviderError> {
        self.told("probe", Some(&worker.name), self.provider.probe(worker)).await
    }
    async fn reset(&self, request: &ResetRequest) -> Result<ObservedWorker, ProviderError> {
        self.told("reset", Some(&request.worker.name), self.provider.reset(request)).await
    }
    /// Waits until one call may be made; the turn is held until the call has answered.
    async fn turn(&self, call: Call) -> Turn {
        match &self.gate {
            Some(gate) => gate.pass(call).await,
            None => self.provider.turn(call).await,
        }
    }
    async fn watch(&self, worker: &WorkerRef) -> Heard {
        self.provider.watch(worker).await
    }
}
