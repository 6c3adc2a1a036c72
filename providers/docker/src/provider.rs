//! [`DockerProvider`]: the provider trait over an engine's API.
//!
//! The name of a container decides: a second create of one attempt goes on with the first one's container. A container
//! that was never started is no worker yet: nothing but a repeat of its create starts it, and listings leave it out.

use std::sync::Arc;
use std::time::Duration;

use bollard::query_parameters::{
    CreateContainerOptions, LogsOptions, RemoveContainerOptions, RenameContainerOptions,
    StartContainerOptions, StopContainerOptions,
};
use futures_util::StreamExt as _;
use pool_provider::{
    About, Consistency, CreateRequest, DeleteRequest, DeploymentId, Description, Heard,
    Idempotency, Listing, ObservedWorker, PageToken, ProbeOutcome, Probes, Progress, ProviderError,
    ResetRequest, UpdateRequest, WorkerProvider, WorkerRef, WorkerSpec, marks,
};
use tokio::time::{Instant, sleep, timeout};

use crate::body;
use crate::config::{Config, Pull};
use crate::engine::{Door, Engine, Refusal};
use crate::events::{Event, Events, What};
use crate::health;
use crate::images::Pulls;
use crate::labels::{self, Identity};
use crate::look::Listed;
use crate::seen::{is_named, told, workers};

/// How long a call that nobody waits for any more may take to have its effect.
const SETTLE: Duration = Duration::from_secs(10);
/// How long an engine may take to remove a container that has stopped.
const REMOVAL: Duration = Duration::from_secs(20);
/// How often it is looked whether a container is gone that somebody else removes.
const LOOK: Duration = Duration::from_millis(50);
/// How much of a container's output is told when it ends at once, in lines.
const LINES: &str = "3";
/// How long podman may take to know that a container has ended.
const PODMAN_KNOWS: Duration = Duration::from_millis(150);
/// How long reading that may take.
const OUTPUT: Duration = Duration::from_secs(3);
/// What the name of a container ends in that is to take a worker's place in a reset.
const NEXT: &str = ".next";

/// What a provider is told beside its config.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The provider's name: two providers of one deployment list their own workers only.
    pub name: String,
    /// Where the engine is: `unix:///path` or `tcp://host:port`.
    pub host: String,
}

/// Runs workers as containers.
#[derive(Debug, Clone)]
pub struct DockerProvider {
    name: String,
    config: Config,
    door: Arc<Door>,
    events: Events,
    pulls: Arc<Pulls>,
}

impl DockerProvider {
    /// Builds a provider; connects when it is first asked for something.
    pub fn new(config: Config, settings: Settings) -> Self {
        let door = Door::new(settings.host, config.stop_grace.get());
        Self {
            name: settings.name,
            config,
            door: Arc::new(door),
            events: Events::default(),
            pulls: Arc::default(),
        }
    }

    /// Returns our containers of `owner` with these labels, in whatever state.
    async fn containers(
        &self,
        owner: &DeploymentId,
        label: Option<(&str, &str)>,
    ) -> Result<Vec<(Identity, Listed)>, ProviderError> {
        let engine = self.door.engine().await?;
        let mut wanted =
            vec![(marks::DEPLOYMENT, owner.as_str()), (marks::PROVIDER, self.name.as_str())];
        wanted.extend(label);
        let listed = engine.containers(&wanted).await?.into_iter();
        let identity = |container: &Listed| labels::read(container.labels.as_ref()?);
        Ok(listed.filter_map(|container| Some((identity(&container)?, container))).collect())
    }

    /// Creates a container of this name, pulling its image as the config says.
    async fn create_container(
        &self,
        engine: &Engine,
        name: &str,
        request: &CreateRequest,
    ) -> Result<Result<String, Refusal>, ProviderError> {
        let body = body::body(request, &self.name, self.door.socket(), name.ends_with(NEXT))?;
        let (image, progress) = (&request.spec.image, &request.progress);
        if self.config.pull == Pull::Always {
            self.pulls.pull(engine, image, false, progress).await?;
        }
        let create = || async {
            let options = CreateContainerOptions {
                name: Some(name.to_owned()),
                ..CreateContainerOptions::default()
            };
            let created = engine.docker.create_container(Some(options), body.clone()).await;
            created.map(|created| created.id).map_err(Refusal::from)
        };
        match create().await {
            Err(Refusal::Status(404, why)) if self.config.pull == Pull::Never => {
                Err(ProviderError::InvalidSpec(format!("{why}, and `pull` is `never`")))
            }
            Err(refusal) if refusal.is_not_found() => {
                self.pulls.pull(engine, image, true, progress).await?;
                Ok(create().await)
            }
            answer => Ok(answer),
        }
    }

    /// Creates the container of an attempt, or finds the one that the same attempt created before.
    async fn create_once(
        &self,
        engine: &Engine,
        request: &CreateRequest,
        id: &str,
    ) -> Result<Found, ProviderError> {
        let watch = Instant::now();
        loop {
            match self.create_container(engine, id, request).await? {
                Ok(container_id) => return Ok(Found::Created(container_id)),
                Err(refusal) if refusal.is_name_taken() => {}
                Err(refusal) => return Err(refusal.of_change(&format!("creating {id}"))),
            }
            if let Some(found) = self.take_over(engine, request, id).await? {
                return Ok(found);
            }
            // The name is taken before the container can be seen.
            if watch.elapsed() > SETTLE {
                let why = format!("the name {id} is taken, and no container has it");
                return Err(ProviderError::Transient(why));
            }
            sleep(LOOK).await;
        }
    }

    /// Returns the container that has the name of the one that was to be created, where the same attempt
    /// created it; `None` when it cannot be seen.
    async fn take_over(
        &self,
        engine: &Engine,
        request: &CreateRequest,
        id: &str,
    ) -> Result<Option<Found>, ProviderError> {
        let found = self.containers(&request.owner, Some((labels::ID, id))).await?;
        let Some((_, container)) = found.into_iter().find(|(_, c)| is_named(c, id)) else {
            let has_it = engine.inspect(id).await;
            let labels = has_it.ok().map(|found| found.config.labels.unwrap_or_default());
            return match labels {
                Some(labels) if labels::read(&labels).is_none_or(|found| found.id != id) => {
                    Err(ProviderError::AlreadyExists(format!(
                        "a container called {id} is there, and is not this worker's"
                    )))
                }
                Some(_) | None => Ok(None),
            };
        };
        match container.state.as_str() {
            "exited" | "dead" | "stopped" => {
                Err(self.ended_at_once(engine, &container.id, &request.spec).await)
            }
            "removing" => Ok(None),
            "created" | "configured" => Ok(Some(Found::Created(container.id))),
            // It was started: to start it once more would be another run of it, if it has just ended.
            _ => Ok(Some(Found::Started(container.id))),
        }
    }

    /// Starts a container and returns the worker that it is; whatever cannot run is removed again.
    async fn start(
        &self,
        engine: &Engine,
        request: &CreateRequest,
        container_id: &str,
    ) -> Result<ObservedWorker, ProviderError> {
        let started =
            engine.docker.start_container(container_id, None::<StartContainerOptions>).await;
        match started.map_err(Refusal::from) {
            // podman says so before it knows of a program that ends at once.
            Ok(()) if engine.is_podman => sleep(PODMAN_KNOWS).await,
            Ok(()) | Err(Refusal::Status(304, _)) => {}
            Err(refusal @ Refusal::Status(..)) => {
                let error = refusal.of_change(&format!("starting {}", request.name));
                return Err(self.without(engine, container_id, error).await);
            }
            Err(refusal) => {
                // It exists whatever became of this call.
                let why = format!("starting {}: {}", request.name, refusal.text());
                return Err(ProviderError::UnknownOutcome(why));
            }
        }
        self.started(engine, request, container_id).await
    }

    /// Returns the worker that a container is which was started.
    async fn started(
        &self,
        engine: &Engine,
        request: &CreateRequest,
        container_id: &str,
    ) -> Result<ObservedWorker, ProviderError> {
        let id = labels::id(&request.owner, &request.name, request.attempt);
        let found = self.containers(&request.owner, Some((labels::ID, &id))).await;
        let found = found.map_err(|error| ProviderError::UnknownOutcome(error.to_string()))?;
        match workers(found).pop() {
            Some(worker) => Ok(worker),
            None => Err(self.ended_at_once(engine, container_id, &request.spec).await),
        }
    }

    /// Says how a container ended that was just started, and removes it.
    async fn ended_at_once(
        &self,
        engine: &Engine,
        container_id: &str,
        spec: &WorkerSpec,
    ) -> ProviderError {
        let inspected = engine.inspect(container_id).await.ok();
        let why = inspected.and_then(|found| health::end(&found.state));
        let why = why.unwrap_or_else(|| "its container is gone".to_owned());
        let said = output(engine, container_id).await;
        let said = if said.is_empty() {
            said
        } else {
            format!("; it said: {}", told(&said, spec.environment.values().map(String::as_str)))
        };
        let error = ProviderError::Transient(format!("{why} at once{said}"));
        self.without(engine, container_id, error).await
    }

    /// Removes a container and returns `error`, which promises that nothing is left.
    async fn without(
        &self,
        engine: &Engine,
        container_id: &str,
        error: ProviderError,
    ) -> ProviderError {
        match remove(engine, container_id).await {
            Ok(()) => error,
            Err(left) => ProviderError::UnknownOutcome(format!("{error}; then: {}", left.text())),
        }
    }

    /// Stops and removes a container.
    async fn end(&self, engine: &Engine, container: &Listed) -> Result<(), Refusal> {
        let id = &container.id;
        let runs = !matches!(
            container.state.as_str(),
            "created" | "configured" | "exited" | "dead" | "stopped" | "removing"
        );
        if runs {
            let grace = i32::try_from(self.config.stop_grace.get().as_secs()).unwrap_or(i32::MAX);
            let options =
                StopContainerOptions { t: Some(grace), ..StopContainerOptions::default() };
            match engine.docker.stop_container(id, Some(options)).await.map_err(Refusal::from) {
                // What cannot be stopped in peace, because it is paused, is removed by force.
                Ok(()) | Err(Refusal::Status(..)) => {}
                Err(refusal) => return Err(refusal),
            }
        }
        remove(engine, id).await
    }
}

/// The container of an attempt, by its id.
enum Found {
    /// It is yet to be started.
    Created(String),
    /// Whoever sent the same create before has started it.
    Started(String),
}

/// Removes a container with its anonymous volumes. One that is gone, or that somebody else removes, is fine.
async fn remove(engine: &Engine, container_id: &str) -> Result<(), Refusal> {
    let options = RemoveContainerOptions { v: true, force: true, link: false };
    match engine.docker.remove_container(container_id, Some(options)).await.map_err(Refusal::from) {
        Ok(()) => Ok(()),
        Err(refusal) if refusal.is_not_found() || refusal.is_being_removed() => Ok(()),
        Err(refusal) => Err(refusal),
    }
}

/// Returns the last lines that a container wrote.
async fn output(engine: &Engine, container_id: &str) -> String {
    let options = LogsOptions {
        stdout: true,
        stderr: true,
        tail: LINES.to_owned(),
        ..LogsOptions::default()
    };
    let mut lines = engine.docker.logs(container_id, Some(options));
    let mut said = Vec::new();
    let reading = async {
        while let Some(Ok(line)) = lines.next().await {
            said.push(line.to_string().trim().to_owned());
        }
    };
    // What it said is told where it can be had; an error does not wait for it.
    let _in_time = timeout(OUTPUT, reading).await.is_ok();
    said.join(" | ")
}

impl WorkerProvider for DockerProvider {
    fn describe(&self) -> Description {
        Description {
            kind: "docker".to_owned(),
            worker_types: vec!["container".to_owned()],
            idempotency: Idempotency::Token,
            consistency: Consistency::Strong,
            settle: SETTLE,
            slowest_delete: self.config.stop_grace.get() + REMOVAL,
            slowest_look: Duration::ZERO,
            in_place: Vec::new(),
            one_host: self.config.network.as_deref() == Some("host"),
            tells_ends: true,
            probes: Probes::Service,
            resets: true,
            capacity: None,
            // No reference can look like this.
            about: About::refusing("-no-image-"),
        }
    }

    async fn create(&self, request: &CreateRequest) -> Result<ObservedWorker, ProviderError> {
        let engine = self.door.engine().await?;
        let id = labels::id(&request.owner, &request.name, request.attempt);
        match self.create_once(engine, request, &id).await? {
            Found::Created(container_id) => self.start(engine, request, &container_id).await,
            Found::Started(container_id) => self.started(engine, request, &container_id).await,
        }
    }

    async fn list(
        &self,
        owner: &DeploymentId,
        _page: Option<&PageToken>,
    ) -> Result<Listing, ProviderError> {
        let workers = workers(self.containers(owner, None).await?);
        Ok(Listing { workers, next: None, complete: true })
    }

    async fn get(&self, worker: &WorkerRef) -> Result<ObservedWorker, ProviderError> {
        let label = match &worker.provider_id {
            Some(id) => (labels::ID, id.clone()),
            None => (marks::WORKER, worker.name.to_string()),
        };
        let found = self.containers(&worker.owner, Some((label.0, &label.1))).await?;
        let found = workers(found).into_iter().max_by_key(|found| found.attempt);
        found.ok_or_else(|| ProviderError::NotFound(worker.name.to_string()))
    }

    async fn update(&self, request: &UpdateRequest) -> Result<ObservedWorker, ProviderError> {
        let name = &request.worker.name;
        Err(ProviderError::InvalidSpec(format!(
            "{name}: an engine cannot change a container's labels"
        )))
    }

    async fn delete(&self, request: &DeleteRequest) -> Result<(), ProviderError> {
        let WorkerRef { owner, name, provider_id } = &request.worker;
        let engine = self.door.engine().await?;
        let gone = async {
            loop {
                let label = (marks::WORKER, name.to_string());
                let mut left = self.containers(owner, Some((label.0, &label.1))).await?;
                left.retain(|(found, _)| match provider_id {
                    Some(id) => *id == found.id,
                    None => found.attempt <= request.attempt,
                });
                if left.is_empty() {
                    return Ok(());
                }
                for (_, container) in &left {
                    let ended = self.end(engine, container).await;
                    ended.map_err(|refusal| refusal.of_change(&format!("deleting {name}")))?;
                }
                sleep(LOOK).await;
            }
        };
        let limit = self.config.stop_grace.get() + REMOVAL;
        timeout(limit, gone).await.unwrap_or_else(|_| {
            Err(ProviderError::UnknownOutcome(format!("{name}: its container is still there")))
        })
    }

    async fn probe(&self, worker: &WorkerRef) -> Result<ProbeOutcome, ProviderError> {
        let engine = self.door.engine().await?;
        let gone = || Ok(ProbeOutcome::Gone("its container is not there".to_owned()));
        let id = match &worker.provider_id {
            Some(id) => id.clone(),
            None => match self.get(worker).await {
                Ok(found) => found.provider_id,
                Err(ProviderError::NotFound(_)) => return gone(),
                Err(error) => return Err(error),
            },
        };
        match engine.inspect(&id).await {
            Ok(found) => {
                let (container_id, environment) = (found.id.clone(), found.config.env.clone());
                match health::judge(engine, found).await? {
                    // Once it is replaced nobody can read that any more.
                    ProbeOutcome::Gone(why) => {
                        let said = output(engine, &container_id).await;
                        let environment = environment.unwrap_or_default();
                        let values = environment.iter().filter_map(|entry| entry.split_once('='));
                        let said = told(&said, values.map(|(_, value)| value));
                        let said =
                            if said.is_empty() { said } else { format!("; it said: {said}") };
                        Ok(ProbeOutcome::Gone(format!("{why}{said}")))
                    }
                    outcome => Ok(outcome),
                }
            }
            // Between two containers of a reset there is none of that name.
            Err(refusal) if refusal.is_not_found() => match self.get(worker).await {
                Ok(_) => Ok(ProbeOutcome::Unhealthy("it is being reset".to_owned())),
                Err(ProviderError::NotFound(_)) => gone(),
                Err(error) => Err(error),
            },
            Err(refusal) => Err(refusal.of_look()),
        }
    }

    async fn reset(&self, request: &ResetRequest) -> Result<ObservedWorker, ProviderError> {
        let engine = self.door.engine().await?;
        let known = self.get(&request.worker).await?;
        let id = known.provider_id.clone();
        let again = CreateRequest {
            owner: request.worker.owner.clone(),
            name: known.name,
            attempt: known.attempt,
            passed_over: 0,
            operation: known.operation,
            token: String::new(),
            spec: request.spec.clone(),
            spec_hash: known.spec_hash,
            progress: Progress::default(),
            timeout: request.timeout,
        };
        let doing = format!("resetting {}", again.name);
        let refused = |refusal: Refusal| refusal.of_change(&doing);
        let found = self.containers(&again.owner, Some((labels::ID, &id))).await?;
        let (old, left): (Vec<_>, Vec<_>) =
            found.into_iter().map(|(_, container)| container).partition(|c| is_named(c, &id));
        // What a reset left that was cut off. With the old container gone it is the worker: it has not run
        // yet, and a new one is made of the spec all the same.
        let next = format!("{id}{NEXT}");
        let spare = left.iter().find(|_| old.is_empty());
        for container in left.iter().filter(|_| !old.is_empty()) {
            remove(engine, &container.id).await.map_err(refused)?;
        }
        let container_id = match spare.map(|container| container.id.clone()) {
            Some(container_id) => container_id,
            None => self.create_container(engine, &next, &again).await?.map_err(refused)?,
        };
        for container in &old {
            self.end(engine, container).await.map_err(refused)?;
        }
        let options = RenameContainerOptions { name: id.clone() };
        let renamed = engine.docker.rename_container(&container_id, options).await;
        renamed.map_err(|error| refused(Refusal::from(error)))?;
        self.start(engine, &again, &container_id).await
    }

    async fn watch(&self, worker: &WorkerRef) -> Heard {
        loop {
            // Before it is looked at: what happens in between is heard.
            let mut events = self.events.listen(&self.door, &worker.owner);
            // Whatever else there is to find, regular probes find: only what changes is told here.
            if let Ok(ProbeOutcome::Gone(why)) = self.probe(worker).await {
                return Heard::Ended(why);
            }
            let is_ours = |id: &String| worker.provider_id.as_ref().is_none_or(|own| own == id);
            loop {
                match events.recv().await {
                    Ok(Event::Of(id, What::Stirred(what))) if is_ours(&id) => {
                        return Heard::Stirred(what);
                    }
                    Ok(Event::Of(id, What::Ended)) if is_ours(&id) => break,
                    Ok(Event::Any) | Err(_) => break,
                    Ok(Event::Of(..)) => {}
                }
            }
        }
    }
}
