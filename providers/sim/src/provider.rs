//! [`SimProvider`]: the provider trait over a simulated [`Cloud`].

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pool_provider::{
    About, CreateRequest, DeleteRequest, DeploymentId, Description, Idempotency, InPlaceField,
    Listing, ObservedStatus, ObservedWorker, PageToken, ProbeOutcome, Probes, ProviderError,
    ResetRequest, UpdateRequest, WorkerProvider, WorkerRef,
};
use tokio::time::sleep;

use crate::cloud::{Call, Cloud, Record, Removal, SimWorker, World};
use crate::settings::{Fate, Settings};

/// Creates workers in a simulated cloud.
#[derive(Clone)]
pub struct SimProvider {
    cloud: Cloud,
    settings: Settings,
    now_ms: Arc<dyn Fn() -> i64 + Send + Sync>,
}

impl fmt::Debug for SimProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimProvider").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// An answer of the cloud, with what becomes of it on the way back.
type Decided<T> = (Record, Result<T, ProviderError>);

impl SimProvider {
    /// Builds a provider over `cloud`; `now_ms` tells the time in milliseconds since the epoch.
    pub fn new(
        cloud: Cloud,
        settings: Settings,
        now_ms: impl Fn() -> i64 + Send + Sync + 'static,
    ) -> Self {
        Self { cloud, settings, now_ms: Arc::new(now_ms) }
    }

    /// Opens the cloud in the folder `path`, with the settings in its `settings.json` if there is one.
    ///
    /// # Errors
    /// When the folder cannot be used, or the settings are not what [`Settings`] says.
    pub fn open(path: &Path, now_ms: impl Fn() -> i64 + Send + Sync + 'static) -> io::Result<Self> {
        let file = path.join("settings.json");
        let settings = match std::fs::read(&file) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| {
                io::Error::new(io::ErrorKind::InvalidData, format!("{}: {error}", file.display()))
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Settings::default(),
            Err(error) => return Err(error),
        };
        Ok(Self::new(Cloud::open(path)?, settings, now_ms))
    }

    /// Returns the cloud.
    pub fn cloud(&self) -> &Cloud {
        &self.cloud
    }

    fn now(&self) -> i64 {
        (self.now_ms)()
    }

    /// Makes one call that changes the cloud: latency, limits, fate, effect, answer.
    async fn change<T>(
        &self,
        call: Call,
        decide: impl FnOnce(&World, i64) -> Decided<T>,
    ) -> Result<T, ProviderError> {
        let half = Duration::from_millis(self.settings.latency_ms / 2);
        pause(half).await;
        let now = self.now();
        let (fate, answer) = self
            .cloud
            .call(|world| {
                let nth = world.calls.get(&call).copied().unwrap_or(0);
                let refused = |error| (Record { call: Some(call), ..Record::default() }, error);
                if let Err(error) = self.admit(world, now) {
                    let (record, error) = refused(error);
                    return (record, (Fate::Fine, Err(error)));
                }
                let fate = self.settings.fate(call, nth);
                if fate == Fate::FailBefore {
                    let (record, error) =
                        refused(ProviderError::Transient("simulated failure".to_owned()));
                    return (record, (fate, Err(error)));
                }
                let effect_at = match fate {
                    Fate::Late { after_ms } => now.saturating_add_unsigned(after_ms),
                    Fate::Fine | Fate::FailBefore | Fate::LoseAnswer => now,
                };
                let (mut record, answer) = decide(world, effect_at);
                record.call = Some(call);
                (record, (fate, answer))
            })
            .map_err(|error| unreachable_cloud(&error))?;
        pause(half).await;
        match fate {
            Fate::LoseAnswer | Fate::Late { .. } if answer.is_ok() => {
                Err(ProviderError::UnknownOutcome("simulated lost answer".to_owned()))
            }
            _ => answer,
        }
    }

    /// Makes one call that only reads.
    fn read<T>(&self, call: Call, look: impl FnOnce(&World, u64) -> T) -> Result<T, ProviderError> {
        let now = self.now();
        self.cloud
            .call(|world| {
                let nth = world.calls.get(&call).copied().unwrap_or(0);
                let admitted = self.admit(world, now);
                let failed = self.settings.fate(call, nth) != Fate::Fine;
                let answer = match admitted {
                    Err(error) => Err(error),
                    Ok(()) if failed => {
                        Err(ProviderError::Transient("simulated failure".to_owned()))
                    }
                    Ok(()) => Ok(look(world, nth)),
                };
                // Counted here, and not written down: probes alone would fill the disk.
                *world.calls.entry(call).or_default() += 1;
                (Record::default(), answer)
            })
            .map_err(|error| unreachable_cloud(&error))?
    }

    fn admit(&self, world: &mut World, now: i64) -> Result<(), ProviderError> {
        let Some(limit) = self.settings.rate_limit else { return Ok(()) };
        let window = i64::try_from(limit.per_ms).unwrap_or(i64::MAX);
        while world.recent.front().is_some_and(|earliest| now - earliest >= window) {
            world.recent.pop_front();
        }
        if world.recent.len() < limit.calls {
            world.recent.push_back(now);
            return Ok(());
        }
        let wait = world.recent.front().map_or(window, |earliest| window - (now - earliest));
        Err(ProviderError::RateLimited {
            message: format!("more than {} calls in {} ms", limit.calls, limit.per_ms),
            retry_after: Some(Duration::from_millis(wait.unsigned_abs())),
        })
    }

    /// Finds what `worker` names among those that exist at `now`.
    fn find<'w>(world: &'w World, worker: &WorkerRef, now: i64) -> Option<&'w SimWorker> {
        Self::find_up_to(u32::MAX, world, worker, now)
    }

    /// Does the same, and leaves out attempts later than `latest`.
    fn find_up_to<'w>(
        latest: u32,
        world: &'w World,
        worker: &WorkerRef,
        now: i64,
    ) -> Option<&'w SimWorker> {
        let is_meant = |found: &&SimWorker| {
            found.owner == worker.owner
                && found.observed.name == worker.name
                && found.observed.attempt <= latest
                && found.exists_from <= now
        };
        match &worker.provider_id {
            Some(id) => world.workers.get(id).filter(is_meant),
            None => world.workers.values().find(is_meant),
        }
    }

    fn decide_create(
        &self,
        request: &CreateRequest,
        world: &World,
        effect_at: i64,
    ) -> Decided<ObservedWorker> {
        let own = || world.workers.values().filter(|worker| worker.owner == request.owner);
        let refuse = |error| (Record::default(), Err(error));
        // Looked up by walking: only the small clouds of tests care about these two kinds.
        match self.settings.idempotency {
            Idempotency::Token => {
                let id = token_id(&request.token);
                if let Some(worker) = world.workers.get(&id) {
                    return (Record::default(), Ok(worker.observed.clone()));
                }
            }
            Idempotency::UniqueName => {
                if own().any(|worker| worker.observed.name == request.name) {
                    return refuse(ProviderError::AlreadyExists(request.name.to_string()));
                }
            }
            Idempotency::None => {}
        }
        let full = |limit: Option<u32>, count: usize| limit.is_some_and(|n| count >= n as usize);
        if full(self.settings.capacity, world.workers.len()) {
            return refuse(ProviderError::OutOfCapacity {
                message: "the simulated cloud is full".to_owned(),
                elsewhere: false,
            });
        }
        if self.settings.quota.is_some() && full(self.settings.quota, own().count()) {
            return refuse(ProviderError::Quota("the simulated quota is used up".to_owned()));
        }
        let worker = self.born(request, world, effect_at);
        let observed = worker.observed.clone();
        (Record { put: Some(worker), ..Record::default() }, Ok(observed))
    }

    fn born(&self, request: &CreateRequest, world: &World, exists_from: i64) -> SimWorker {
        let provider_id = match self.settings.idempotency {
            Idempotency::Token => token_id(&request.token),
            Idempotency::UniqueName | Idempotency::None => format!("sim-{:08}", world.created),
        };
        let slot = request.name.slot.0;
        let observed = ObservedWorker {
            provider_id,
            name: request.name.clone(),
            attempt: request.attempt,
            operation: request.operation,
            spec_hash: request.spec_hash.clone(),
            status: ObservedStatus::Running,
            labels: request.spec.labels.clone(),
            tags: request.spec.tags.clone(),
            addresses: vec![format!("10.{}.{}.{}", slot >> 16, (slot >> 8) & 255, slot & 255)],
            attributes: BTreeMap::new(),
        };
        SimWorker {
            owner: request.owner.clone(),
            token: request.token.clone(),
            image: request.spec.image.clone(),
            exists_from,
            listed_from: exists_from.saturating_add_unsigned(self.settings.listing_delay_ms),
            observed,
        }
    }
}

/// The same token names the same worker.
fn token_id(token: &str) -> String {
    format!("sim-{token}")
}

async fn pause(duration: Duration) {
    if !duration.is_zero() {
        sleep(duration).await;
    }
}

fn unreachable_cloud(error: &io::Error) -> ProviderError {
    ProviderError::UnknownOutcome(format!("writing the simulated cloud's file: {error}"))
}

impl WorkerProvider for SimProvider {
    fn describe(&self) -> Description {
        Description {
            kind: "sim".to_owned(),
            worker_types: ["process", "container", "vm", "host"].map(str::to_owned).to_vec(),
            idempotency: self.settings.idempotency,
            consistency: self.settings.consistency(),
            settle: Duration::from_millis(self.settings.settle_ms()),
            slowest_delete: Duration::from_millis(self.settings.latency_ms),
            slowest_look: Duration::ZERO,
            in_place: vec![InPlaceField::Labels, InPlaceField::Tags],
            one_host: false,
            tells_ends: false,
            probes: Probes::Worker,
            resets: true,
            capacity: self.settings.capacity,
            about: About::default(),
        }
    }

    async fn create(&self, request: &CreateRequest) -> Result<ObservedWorker, ProviderError> {
        self.change(Call::Create, |world, at| self.decide_create(request, world, at)).await
    }

    async fn list(
        &self,
        owner: &DeploymentId,
        page: Option<&PageToken>,
    ) -> Result<Listing, ProviderError> {
        let now = self.now();
        let size = self.settings.page_size.max(1);
        let after = page.map(|PageToken(token)| token.as_str());
        let (mut workers, nth) =
            self.read(Call::List, |world, nth| (world.listed(owner, now, after, size + 1), nth))?;
        let more = workers.len() > size;
        workers.truncate(size);
        let next = more.then(|| workers.last().map(|last| PageToken(last.provider_id.clone())));
        let complete = !self.settings.listing_is_incomplete(nth);
        if !complete {
            workers.pop();
        }
        Ok(Listing { workers, next: next.flatten(), complete })
    }

    async fn get(&self, worker: &WorkerRef) -> Result<ObservedWorker, ProviderError> {
        let now = self.now();
        self.read(Call::Get, |world, _| {
            Self::find(world, worker, now).map(|found| found.observed.clone())
        })?
        .ok_or_else(|| ProviderError::NotFound(worker.name.to_string()))
    }

    async fn update(&self, request: &UpdateRequest) -> Result<ObservedWorker, ProviderError> {
        self.change(Call::Update, |world, at| match Self::find(world, &request.worker, at) {
            None => {
                let missing = request.worker.name.to_string();
                (Record::default(), Err(ProviderError::NotFound(missing)))
            }
            Some(found) => {
                let mut worker = found.clone();
                worker.observed.labels.clone_from(&request.labels);
                worker.observed.tags.clone_from(&request.tags);
                let observed = worker.observed.clone();
                (Record { put: Some(worker), ..Record::default() }, Ok(observed))
            }
        })
        .await
    }

    async fn reset(&self, request: &ResetRequest) -> Result<ObservedWorker, ProviderError> {
        self.change(Call::Reset, |world, at| match Self::find(world, &request.worker, at) {
            None => {
                let missing = request.worker.name.to_string();
                (Record::default(), Err(ProviderError::NotFound(missing)))
            }
            Some(found) => {
                let mut worker = found.clone();
                let attributes = &mut worker.observed.attributes;
                let before = attributes.get("resets").and_then(|count| count.parse::<u64>().ok());
                attributes.insert("resets".to_owned(), (before.unwrap_or(0) + 1).to_string());
                let observed = worker.observed.clone();
                (Record { put: Some(worker), ..Record::default() }, Ok(observed))
            }
        })
        .await
    }

    async fn delete(&self, request: &DeleteRequest) -> Result<(), ProviderError> {
        self.change(Call::Delete, |world, at| {
            let found = Self::find_up_to(request.attempt, world, &request.worker, at);
            let remove = found.map(|found| Removal {
                provider_id: found.observed.provider_id.clone(),
                listed_until: at.saturating_add_unsigned(self.settings.listing_delay_ms),
            });
            (Record { remove, ..Record::default() }, Ok(()))
        })
        .await
    }

    async fn probe(&self, worker: &WorkerRef) -> Result<ProbeOutcome, ProviderError> {
        let now = self.now();
        let image = self.read(Call::Probe, |world, _| {
            Self::find(world, worker, now).map(|found| found.image.clone())
        })?;
        Ok(match image {
            None => ProbeOutcome::Gone("it no longer exists".to_owned()),
            Some(image) if self.settings.unhealthy_images.contains(&image) => {
                ProbeOutcome::Unhealthy(format!("image `{image}` never gets healthy"))
            }
            Some(_) => ProbeOutcome::Healthy,
        })
    }
}
