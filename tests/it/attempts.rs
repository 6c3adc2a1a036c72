//! Which attempts a worker gets, and what makes the next one: places without room, too many calls, tokens that are used up.
//! On a cloud that answers creates as a test says.

use std::future::pending;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pool_provider::{
    CreateRequest, DeleteRequest, DeploymentId, Description, Idempotency, Listing, ObservedWorker,
    PageToken, ProbeOutcome, Probes, ProviderError, UpdateRequest, WorkerProvider, WorkerRef,
};
use pool_sim::{Settings, SimProvider};

use super::support::{GoodCommits, World};

/// What becomes of a create call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Made,
    /// There is no room, and there is another place.
    Full,
    /// There is no room, and no other place.
    AllFull,
    TooMany,
    /// It is not carried out, and not answered.
    Dropped,
    /// It is carried out, and not answered.
    Lost,
    Spent,
}

use Fate::{AllFull, Dropped, Full, Lost, Made, Spent, TooMany};

/// What a create call asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Asked {
    attempt: u32,
    passed_over: u32,
    token: String,
}

/// Answers creates one after the other as it is told, the last way for ever.
#[derive(Clone)]
pub(crate) struct Scripted {
    inner: SimProvider,
    fates: Arc<Vec<Fate>>,
    asked: Arc<Mutex<Vec<Asked>>>,
    /// Whether nothing is found by its name alone.
    hides: bool,
    /// Who answers probes, and what; never anything when that is none.
    pub(crate) probes: (Probes, Option<Result<ProbeOutcome, ProviderError>>),
}

impl Scripted {
    pub(crate) fn new(world: &World, fates: &[Fate]) -> Self {
        let fates = Arc::new(fates.to_vec());
        let probes = (Probes::Worker, Some(Ok(ProbeOutcome::Healthy)));
        Self { inner: world.provider(), fates, asked: Arc::default(), hides: false, probes }
    }

    /// Returns attempt and places passed over of each call.
    fn asked(&self) -> Vec<(u32, u32)> {
        let asked = self.asked.lock().unwrap();
        asked.iter().map(|asked| (asked.attempt, asked.passed_over)).collect()
    }

    fn tokens(&self) -> Vec<String> {
        self.asked.lock().unwrap().iter().map(|asked| asked.token.clone()).collect()
    }
}

impl WorkerProvider for Scripted {
    fn describe(&self) -> Description {
        Description { probes: self.probes.0, ..self.inner.describe() }
    }

    async fn create(&self, request: &CreateRequest) -> Result<ObservedWorker, ProviderError> {
        let fate = {
            let mut asked = self.asked.lock().unwrap();
            let CreateRequest { attempt, passed_over, token, .. } = request.clone();
            asked.push(Asked { attempt, passed_over, token });
            self.fates.get(asked.len() - 1).or(self.fates.last()).copied().unwrap()
        };
        let why = || "as told".to_owned();
        match fate {
            Made => self.inner.create(request).await,
            Full => Err(ProviderError::OutOfCapacity { message: why(), elsewhere: true }),
            AllFull => Err(ProviderError::OutOfCapacity { message: why(), elsewhere: false }),
            TooMany => Err(ProviderError::RateLimited { message: why(), retry_after: None }),
            Dropped => Err(ProviderError::UnknownOutcome(why())),
            Lost => {
                self.inner.create(request).await?;
                Err(ProviderError::UnknownOutcome(why()))
            }
            Spent => Err(ProviderError::Spent(why())),
        }
    }

    async fn list(
        &self,
        owner: &DeploymentId,
        page: Option<&PageToken>,
    ) -> Result<Listing, ProviderError> {
        self.inner.list(owner, page).await
    }

    async fn get(&self, worker: &WorkerRef) -> Result<ObservedWorker, ProviderError> {
        if self.hides && worker.provider_id.is_none() {
            return Err(ProviderError::NotFound(worker.name.to_string()));
        }
        self.inner.get(worker).await
    }

    async fn update(&self, request: &UpdateRequest) -> Result<ObservedWorker, ProviderError> {
        self.inner.update(request).await
    }

    async fn delete(&self, request: &DeleteRequest) -> Result<(), ProviderError> {
        self.inner.delete(request).await
    }

    async fn probe(&self, _: &WorkerRef) -> Result<ProbeOutcome, ProviderError> {
        match &self.probes.1 {
            Some(answer) => answer.clone(),
            None => pending().await,
        }
    }
}

fn world() -> World {
    World::new(Settings { idempotency: Idempotency::Token, ..Settings::default() })
}

fn pool(max_attempts: u32) -> String {
    format!(
        "{{pool_id: ci, worker_type: vm, provider: sim, fixed_size: 1, worker_config: {{image: a, cpu_cores: 1, memory_mb: 1}}, \
         provisioning: {{max_attempts: {max_attempts}, timeout: 60s}}}}"
    )
}

/// Applies once; returns why that failed, if it did.
async fn apply(world: &World, yaml: &str, provider: &Scripted) -> Option<String> {
    let outcomes = world.apply_with(yaml, provider.clone(), Box::new(GoodCommits)).await.unwrap();
    outcomes[0].failures.first().map(|(_, why)| why.clone())
}

#[tokio::test(start_paused = true)]
async fn each_place_without_room_is_passed_over_and_uses_up_no_attempt() {
    let (world, yaml) = (world(), pool(1));
    let provider = Scripted::new(&world, &[Full, Full, Full, Made]);
    assert_eq!(apply(&world, &yaml, &provider).await, None);
    assert_eq!(provider.asked(), [(1, 0), (2, 1), (3, 2), (4, 3)]);
    world.assert_converged(&yaml, "in the fourth place").await;
}

#[tokio::test(start_paused = true)]
async fn where_all_places_are_full_an_attempt_is_used_up_and_the_next_run_goes_on() {
    let (world, yaml) = (world(), pool(2));
    let provider = Scripted::new(&world, &[Full, AllFull, Full, AllFull, Made]);
    let why = apply(&world, &yaml, &provider).await.unwrap();
    assert!(why.contains("out of capacity"), "{why}");
    assert_eq!(provider.asked(), [(1, 0), (2, 1), (3, 2), (4, 3)]);
    assert_eq!(apply(&world, &yaml, &provider).await, None);
    world.assert_converged(&yaml, "once there is room").await;
}

#[tokio::test(start_paused = true)]
async fn a_repeat_is_made_in_the_place_of_the_first_call_in_the_next_run_too() {
    let (world, yaml) = (world(), pool(2));
    let provider = Scripted::new(&world, &[Full, Dropped, Dropped, Made]);
    assert!(apply(&world, &yaml, &provider).await.is_some());
    assert_eq!(apply(&world, &yaml, &provider).await, None);
    assert_eq!(provider.asked(), [(1, 0), (2, 1), (2, 1), (2, 1)]);
    let tokens = provider.tokens();
    assert_ne!(tokens[0], tokens[1]);
    assert!(tokens[1] == tokens[2] && tokens[2] == tokens[3], "{tokens:?}");
}

#[tokio::test(start_paused = true)]
async fn a_repeat_that_finds_no_room_goes_elsewhere_once_nothing_shows() {
    let (world, yaml) = (world(), pool(2));
    let provider = Scripted::new(&world, &[Dropped, Full, Made]);
    assert_eq!(apply(&world, &yaml, &provider).await, None);
    assert_eq!(provider.asked(), [(1, 0), (1, 0), (2, 1)]);
    world.assert_converged(&yaml, "elsewhere").await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_shows_late_is_taken_instead_of_another_one_elsewhere() {
    let settings =
        Settings { idempotency: Idempotency::Token, listing_delay_ms: 2000, ..Settings::default() };
    let (world, yaml) = (World::new(settings), pool(2));
    let mut provider = Scripted::new(&world, &[Lost, Full, Made]);
    provider.hides = true;
    assert_eq!(apply(&world, &yaml, &provider).await, None);
    assert_eq!(provider.asked(), [(1, 0), (1, 0)], "the first call's worker is there");
    tokio::time::sleep(Duration::from_secs(5)).await;
    world.assert_converged(&yaml, "with the one that showed late").await;
}

#[tokio::test(start_paused = true)]
async fn a_token_that_is_used_up_makes_the_next_attempt_after_a_repeat_too() {
    let (world, yaml) = (world(), pool(3));
    let provider = Scripted::new(&world, &[Dropped, Spent, Made]);
    assert_eq!(apply(&world, &yaml, &provider).await, None);
    assert_eq!(provider.asked(), [(1, 0), (1, 0), (2, 0)]);
    let tokens = provider.tokens();
    assert!(tokens[0] == tokens[1] && tokens[1] != tokens[2], "{tokens:?}");
    world.assert_converged(&yaml, "by the next token").await;
}

#[tokio::test(start_paused = true)]
async fn too_many_calls_use_up_no_attempt_but_not_for_ever() {
    let (world, yaml) = (world(), pool(1));
    let mut fates = vec![TooMany; 6];
    fates.push(Made);
    let provider = Scripted::new(&world, &fates);
    assert_eq!(apply(&world, &yaml, &provider).await, None);
    assert_eq!(provider.asked().len(), 7);
    assert_eq!(provider.asked().last(), Some(&(7, 0)), "no place was passed over");
    world.assert_converged(&yaml, "after the rush").await;

    let world = self::world();
    let provider = Scripted::new(&world, &[TooMany]);
    let why = apply(&world, &yaml, &provider).await.unwrap();
    assert!(why.contains("rate limited"), "{why}");
    assert!(provider.asked().len() < 20, "it waits longer each time");
}
