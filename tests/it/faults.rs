//! What a run makes of faults that do not kill it: full disks, lies, silence, bad luck.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pool::state::{CommitFault, CommitFaults, StateError};
use pool_provider::{
    CreateRequest, DeleteRequest, DeploymentId, Description, Generation, Idempotency, Listing,
    ObservedWorker, PageToken, ProbeOutcome, ProviderError, UpdateRequest, WorkerProvider,
    WorkerRef,
};
use pool_sim::{Call, CallFaults, Settings, SimProvider, SimWorker};

use tokio::sync::Barrier;
use tokio::time::sleep;

use super::support::{Ended, GoodCommits, Switch, World};

fn pool(size: u32, extra: &str) -> String {
    format!(
        "{{pool_id: ci, worker_type: vm, provider: sim, fixed_size: {size}, \
         worker_config: {{image: a, cpu_cores: 1, memory_mb: 1}}, {extra}}}"
    )
}

/// A disk that is full at one commit, and has room again at the next one.
struct FullAt(usize, usize);

impl CommitFaults for FullAt {
    fn before_commit(&mut self) -> CommitFault {
        self.1 += 1;
        if self.1 == self.0 { CommitFault::DiskFull } else { CommitFault::None }
    }

    fn after_commit(&mut self) -> CommitFault {
        CommitFault::None
    }
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_is_full_at_any_commit_costs_nothing_but_another_run() {
    let yaml = pool(4, "provisioning: {max_concurrency: 2}");
    for commit in 1.. {
        let world = World::new(Settings::default());
        let outcome = world.apply_with(&yaml, world.provider(), Box::new(FullAt(commit, 0))).await;
        let context = format!("full at commit {commit}");
        let stopped = match &outcome {
            Ok(outcomes) => outcomes
                .iter()
                .any(|outcome| matches!(outcome.stopped_by, Some(StateError::Full(_)))),
            Err(_) => true,
        };
        if world.state_path().exists() {
            world.assert_recorded(&context);
        }
        if !stopped {
            assert!(commit > 8, "only {commit} commits were tried");
            break;
        }
        let ended = world.apply(&yaml, &Switch::never()).await;
        assert!(matches!(ended, Ended::Returned(Ok(_))), "{context}: {ended:?}");
        world.assert_converged(&yaml, &context).await;
    }
}

/// How a provider misbehaves that no cloud of ours does.
#[derive(Clone, Copy, PartialEq)]
enum Vice {
    /// Answers a create with another worker's name.
    Lies,
    /// Creates, and never answers.
    IsSilent,
    /// None; it counts how many creates are under way at a time.
    Counts,
    /// With each worker that it creates, another one appears: a call of a killed holder that was still
    /// in flight.
    BringsStrays,
    /// Its first create goes on for a while when its caller is gone, and has its effect then.
    GoesOn,
}

/// A create that lands four seconds after its call was dropped.
struct Landing(SimProvider, CreateRequest);

impl Drop for Landing {
    fn drop(&mut self) {
        let (cloud, request) = (self.0.clone(), self.1.clone());
        tokio::spawn(async move {
            sleep(Duration::from_secs(4)).await;
            cloud.create(&request).await.unwrap();
        });
    }
}

struct Bad {
    inner: SimProvider,
    vice: Vice,
    /// How many creates were made; when it counts, the most that were under way at a time.
    calls: Arc<AtomicUsize>,
    under_way: AtomicUsize,
    together: Barrier,
}

impl WorkerProvider for Bad {
    fn describe(&self) -> Description {
        self.inner.describe()
    }

    async fn create(&self, request: &CreateRequest) -> Result<ObservedWorker, ProviderError> {
        if self.vice == Vice::Counts {
            let now = self.under_way.fetch_add(1, Ordering::SeqCst) + 1;
            self.calls.fetch_max(now, Ordering::SeqCst);
            // Goes on only when as many are under way as there should be: fewer would wait in vain.
            self.together.wait().await;
            self.under_way.fetch_sub(1, Ordering::SeqCst);
            return self.inner.create(request).await;
        }
        let first = self.calls.fetch_add(1, Ordering::SeqCst) == 0;
        if self.vice == Vice::GoesOn && first {
            let _landing = Landing(self.inner.clone(), request.clone());
            std::future::pending::<()>().await;
        }
        let mut observed = self.inner.create(request).await?;
        match self.vice {
            Vice::Lies => observed.name.generation = Generation(99),
            Vice::IsSilent if first => std::future::pending::<()>().await,
            Vice::IsSilent | Vice::Counts | Vice::GoesOn => {}
            Vice::BringsStrays => {
                let cloud = self.inner.cloud();
                let own = |worker: &SimWorker| worker.observed.provider_id == observed.provider_id;
                if let Some(mut stray) = cloud.workers().into_iter().find(own) {
                    stray.observed.provider_id.push_str("-late");
                    cloud.put(stray).expect("a cloud in memory takes everything");
                }
            }
        }
        Ok(observed)
    }

    async fn list(
        &self,
        owner: &DeploymentId,
        page: Option<&PageToken>,
    ) -> Result<Listing, ProviderError> {
        self.inner.list(owner, page).await
    }

    async fn get(&self, worker: &WorkerRef) -> Result<ObservedWorker, ProviderError> {
        self.inner.get(worker).await
    }

    async fn update(&self, request: &UpdateRequest) -> Result<ObservedWorker, ProviderError> {
        self.inner.update(request).await
    }

    async fn delete(&self, request: &DeleteRequest) -> Result<(), ProviderError> {
        self.inner.delete(request).await
    }

    async fn probe(&self, worker: &WorkerRef) -> Result<ProbeOutcome, ProviderError> {
        self.inner.probe(worker).await
    }
}

fn bad(world: &World, vice: Vice) -> (Bad, Arc<AtomicUsize>) {
    let calls = Arc::new(AtomicUsize::new(0));
    let bad = Bad {
        inner: world.provider(),
        vice,
        calls: Arc::clone(&calls),
        under_way: AtomicUsize::new(0),
        together: Barrier::new(1),
    };
    (bad, calls)
}

#[tokio::test(start_paused = true)]
async fn an_answer_about_another_worker_is_not_believed() {
    let world = World::new(Settings::default());
    let yaml = pool(1, "");
    let (provider, _) = bad(&world, Vice::Lies);
    let outcomes = world.apply_with(&yaml, provider, Box::new(GoodCommits)).await.unwrap();
    let (_, why) = &outcomes[0].failures[0];
    assert_eq!(why, "the provider answered \"ci-0-99\" for ci-0-1");
    world.apply(&yaml, &Switch::never()).await;
    world.assert_converged(&yaml, "after the lie").await;
}

#[tokio::test(start_paused = true)]
async fn a_create_that_never_answers_is_looked_for_and_not_repeated_blindly() {
    for idempotency in [Idempotency::Token, Idempotency::UniqueName, Idempotency::None] {
        let world = World::new(Settings { idempotency, ..Settings::default() });
        let yaml = pool(1, "provisioning: {timeout: 5s}");
        let (provider, calls) = bad(&world, Vice::IsSilent);
        let outcomes = world.apply_with(&yaml, provider, Box::new(GoodCommits)).await.unwrap();
        assert!(outcomes[0].is_complete(), "{outcomes:?}");
        assert_eq!(calls.load(Ordering::SeqCst), 1, "{idempotency:?}: it was there all the time");
        world.assert_converged(&yaml, "after the silence").await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_killed_run_was_waiting_for_is_waited_for_from_when_it_is_known_to_be_dead() {
    let idempotency = Idempotency::None;
    // What lands after 4s shows within what the cloud promises: half a second for listings, five for late effects.
    let late = CallFaults { late: 1.0, late_ms: 5000, ..CallFaults::default() };
    let faults = [(Call::Update, late)].into();
    let settings = Settings { idempotency, listing_delay_ms: 500, faults, ..Settings::default() };
    let world = World::new(settings);
    let yaml = pool(1, "");
    let (provider, calls) = bad(&world, Vice::GoesOn);
    let killed = async {
        while calls.load(Ordering::SeqCst) == 0 {
            sleep(Duration::from_millis(1)).await;
        }
        // Long after its intent: counted from there, the time to settle would be over.
        sleep(Duration::from_secs(60)).await;
    };
    tokio::select! {
        outcome = world.apply_with(&yaml, provider, Box::new(GoodCommits)) => panic!("{outcome:?}"),
        () = killed => {}
    }
    world.converge(&yaml).await;
    assert_eq!(world.cloud.calls()[&Call::Create], 1, "it was repeated before it landed");
    world.assert_converged(&yaml, "after the killed run").await;
}

#[tokio::test(start_paused = true)]
async fn what_appears_while_a_run_is_under_way_is_deleted_at_its_end() {
    let world = World::new(Settings::default());
    let yaml = pool(3, "");
    let (provider, _) = bad(&world, Vice::BringsStrays);
    world.apply_with(&yaml, provider, Box::new(GoodCommits)).await.unwrap();
    world.assert_converged(&yaml, "after one run").await;
}

#[tokio::test(start_paused = true)]
async fn only_errors_that_deserve_it_are_tried_again() {
    let failing = CallFaults { fail_before: 1.0, ..CallFaults::default() };
    let faults = [(Call::Create, failing)].into();
    let world = World::new(Settings { faults, ..Settings::default() });
    world.apply(&pool(2, "provisioning: {max_attempts: 4}"), &Switch::never()).await;
    assert_eq!(world.cloud.calls()[&Call::Create], 8, "transient: four attempts each");

    let world = World::new(Settings { quota: Some(0), ..Settings::default() });
    world.apply(&pool(2, "provisioning: {max_attempts: 4}"), &Switch::never()).await;
    assert_eq!(world.cloud.calls()[&Call::Create], 2, "quota: one attempt each");
}

#[tokio::test(start_paused = true)]
async fn fail_fast_makes_no_new_call_after_the_first_failure() {
    let world = World::new(Settings { capacity: Some(2), ..Settings::default() });
    let yaml = pool(9, "provisioning: {on_failure: fail_fast, strategy: sequential}");
    let Ended::Returned(Ok(outcomes)) = world.apply(&yaml, &Switch::never()).await else {
        panic!("the run did not return");
    };
    assert_eq!(world.cloud.calls()[&Call::Create], 3);
    assert_eq!((outcomes[0].done.add, outcomes[0].failures.len(), outcomes[0].skipped), (2, 1, 6));
}

// In real time: a paused clock would jump while the state's thread works.
#[tokio::test]
async fn no_more_than_max_concurrency_workers_are_worked_on_at_a_time() {
    for (provisioning, most) in [
        ("provisioning: {max_concurrency: 5}", 5),
        ("provisioning: {max_concurrency: 1}", 1),
        ("provisioning: {strategy: sequential}", 1),
    ] {
        let world = World::new(Settings::default());
        let (mut provider, under_way) = bad(&world, Vice::Counts);
        provider.together = Barrier::new(most);
        let yaml = pool(50, provisioning);
        world.apply_with(&yaml, provider, Box::new(GoodCommits)).await.unwrap();
        assert_eq!(under_way.load(Ordering::SeqCst), most, "{provisioning}");
        world.assert_converged(&yaml, provisioning).await;
    }
}

#[tokio::test(start_paused = true)]
async fn observing_a_thousand_workers_is_one_paged_listing_and_no_call_each() {
    let world = World::new(Settings { page_size: 100, ..Settings::default() });
    let yaml = pool(1000, "provisioning: {max_concurrency: 100}");
    world.apply(&yaml, &Switch::never()).await;
    let before = world.cloud.calls();
    assert!(world.plan(&yaml).await.is_empty());
    let after = world.cloud.calls();
    assert_eq!(after[&Call::List] - before[&Call::List], 10);
    assert_eq!(after.get(&Call::Get), before.get(&Call::Get));
}
