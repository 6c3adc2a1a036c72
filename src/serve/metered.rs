//! Counts the calls of a provider, and those that fail by error: a decorator, so that nobody who calls
//! has to think of it.

use std::sync::Arc;

use pool_provider::{
    CreateRequest, DeleteRequest, DeploymentId, Description, Heard, Listing, ObservedWorker,
    PageToken, ProbeOutcome, ProviderError, ResetRequest, SharedProvider, UpdateRequest,
    WorkerProvider, WorkerRef,
};

use super::metrics::Metrics;

/// A provider whose calls are counted.
#[derive(Debug, Clone)]
pub struct Metered {
    name: String,
    provider: SharedProvider,
    metrics: Arc<Metrics>,
}

impl Metered {
    /// Counts the calls of `provider` under its name.
    pub fn new(name: &str, provider: SharedProvider, metrics: Arc<Metrics>) -> Self {
        Self { name: name.to_owned(), provider, metrics }
    }

    fn count<T>(
        &self,
        call: &'static str,
        answer: Result<T, ProviderError>,
    ) -> Result<T, ProviderError> {
        self.metrics.call(&self.name, call, answer.as_ref().err().map(ProviderError::code));
        answer
    }
}

impl WorkerProvider for Metered {
    fn describe(&self) -> Description {
        self.provider.describe()
    }

    async fn create(&self, request: &CreateRequest) -> Result<ObservedWorker, ProviderError> {
        self.count("create", self.provider.create(request).await)
    }

    async fn list(
        &self,
        owner: &DeploymentId,
        page: Option<&PageToken>,
    ) -> Result<Listing, ProviderError> {
        self.count("list", self.provider.list(owner, page).await)
    }

    async fn get(&self, worker: &WorkerRef) -> Result<ObservedWorker, ProviderError> {
        self.count("get", self.provider.get(worker).await)
    }

    async fn update(&self, request: &UpdateRequest) -> Result<ObservedWorker, ProviderError> {
        self.count("update", self.provider.update(request).await)
    }

    async fn delete(&self, request: &DeleteRequest) -> Result<(), ProviderError> {
        self.count("delete", self.provider.delete(request).await)
    }

    async fn probe(&self, worker: &WorkerRef) -> Result<ProbeOutcome, ProviderError> {
        self.count("probe", self.provider.probe(worker).await)
    }

    async fn reset(&self, request: &ResetRequest) -> Result<ObservedWorker, ProviderError> {
        self.count("reset", self.provider.reset(request).await)
    }

    async fn watch(&self, worker: &WorkerRef) -> Heard {
        self.provider.watch(worker).await
    }
}
