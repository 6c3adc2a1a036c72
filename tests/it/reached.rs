//! How a provider is reached is recorded with each pool, and a change of it concerns whom it is applied to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use pool::clock::Clock;
use pool::plan::PlanOptions;
use pool::pool::{PoolError, ProviderSettings, Providers};
use pool::state::StateError;
use pool_provider::{
    CreateRequest, DeleteRequest, DeploymentId, Description, Listing, ObservedWorker, PageToken,
    ProbeOutcome, ProviderError, SharedProvider, UpdateRequest, WorkerProvider, WorkerRef,
};
use pool_sim::{Settings, SimProvider};

use super::support::{GoodCommits, World, apply, load};

/// Two pools of one provider; the cloud stands in for the engine.
fn two(network: &str) -> String {
    let pool = |id: &str| {
        format!(
            "- {{pool_id: {id}, worker_type: container, provider: d, fixed_size: 2, worker_config: \
             {{image: a, cpu_cores: 1, memory_mb: 16}}}}\n"
        )
    };
    let providers = format!("providers: {{d: {{type: docker, network: {network}}}}}");
    format!("version: 1\n{providers}\npools:\n{}{}", pool("a"), pool("b"))
}

fn database(world: &World) -> rusqlite::Connection {
    rusqlite::Connection::open(world.state_path()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_change_of_a_shared_provider_reaches_all_of_its_pools() {
    let world = World::new(Settings::default());
    for network in ["one", "two"] {
        world.converge_with(&two(network), Some("d")).await;
        // What leases compare: a worker that is as its pool was applied is not outdated.
        let sql = "SELECT count(*) FROM worker JOIN pool ON pool.id = worker.pool
                   JOIN spec ON spec.id = worker.spec
                   WHERE worker.phase = 'ready' AND spec.hash = pool.spec_hash";
        let current: i64 = database(&world).query_row(sql, [], |row| row.get(0)).unwrap();
        assert_eq!(current, 4, "{network}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_narrowed_run_leaves_the_other_pools_of_a_provider_as_they_were_applied() {
    let world = World::new(Settings::default());
    world.converge_with(&two("one"), Some("d")).await;
    let mut reconciler = world.start_with(world.provider(), Box::new(GoodCommits));
    reconciler.providers.insert("d".into(), SharedProvider::new(world.provider()));
    let only_a: Vec<_> = load(&two("two")).into_iter().take(1).collect();
    let desired = reconciler.desired(&only_a);
    let target = "a".parse().unwrap();
    let options = PlanOptions { targets: vec![target], ..PlanOptions::default() };
    let plan = reconciler.plan(&desired, &options, true).await.unwrap().plan;
    let id = "a".parse().unwrap();
    let locks = BTreeMap::from([(id, reconciler.store.lock(&"a".parse().unwrap()).await.unwrap())]);
    reconciler.apply(&plan, &locks, Arc::new(|_| {})).await.unwrap();
    // As a server would look at it: what was applied is what is desired.
    let recorded = reconciler.store.load().await.unwrap();
    let network = |id: &str| {
        let pool = recorded.iter().find(|pool| pool.id.as_str() == id).unwrap();
        let provider = pool.applied.as_ref().unwrap().provider.clone().unwrap();
        provider.kind.network().unwrap().to_owned()
    };
    assert_eq!((network("a"), network("b")), ("two".to_owned(), "one".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn an_older_plan_does_not_move_a_provider_that_has_workers() {
    let world = World::new(Settings::default());
    let at = |host: &str| two("one").replace("network: one", &format!("host: 'unix:///{host}'"));
    world.converge_with(&at("here"), Some("d")).await;
    let reconciler = world.start_with(world.provider(), Box::new(GoodCommits));
    let moved = load(&at("there")).remove(0);
    let lock = reconciler.store.lock(&moved.config.pool_id).await.unwrap();
    let recorded =
        reconciler.store.record_config(&lock, &moved.config, moved.provider.as_ref(), "plan").await;
    assert!(matches!(recorded, Err(StateError::ProviderMoved { .. })), "{recorded:?}");
    reconciler.store.unlock(&lock).await.unwrap();
    let planned = apply(&reconciler, &at("there")).await;
    assert!(
        matches!(planned, Err(PoolError::State(StateError::ProviderMoved { .. }))),
        "{planned:?}"
    );
}

#[tokio::test]
async fn what_a_run_declares_is_its_own_until_it_is_recorded() {
    let world = World::told_by(Settings::default(), Clock::system());
    let store = world.start_with(world.provider(), Box::new(GoodCommits)).store;
    let opened = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&opened);
    let folder = tempfile::tempdir().unwrap();
    let settings = ProviderSettings {
        local_root: folder.path().join("local"),
        launcher: ("/bin/false".into(), Vec::new()),
        warden: ("/bin/false".into(), Vec::new()),
        exec_root: "/nowhere".into(),
        environment: Arc::default(),
        sim_root: folder.path().join("sim"),
        clock: Clock::system(),
    };
    let dress = move |_: &str, bare| {
        count.fetch_add(1, Ordering::SeqCst);
        bare
    };
    let providers = Providers::opening(settings, store, Box::new(dress));
    let declared = |network: &str| {
        let pool = load(&two(network)).remove(0);
        BTreeMap::from([("d".to_owned(), pool.provider.unwrap())])
    };
    providers.declare(declared("host"));
    let on_host = |providers: &Providers| providers.get_now("d").unwrap().describe().one_host;
    assert!(on_host(&providers));
    let own = providers.with(declared("none"));
    assert!(!on_host(&own) && on_host(&providers), "a refused run would have changed the server's");
    assert_eq!(opened.load(Ordering::SeqCst), 2, "what is declared alike is opened once");
    let names = BTreeSet::from(["d".to_owned(), "nobody".to_owned()]);
    let (found, failed) = own.get_all(&names, std::time::Duration::from_secs(60)).await;
    assert_eq!((found.len(), failed.len()), (1, 1));
}

/// A cloud whose first create has its effect and loses its answer; then it is out of reach for a while.
struct Away {
    inner: SimProvider,
    creates: AtomicUsize,
}

impl WorkerProvider for Away {
    fn describe(&self) -> Description {
        self.inner.describe()
    }

    async fn create(&self, request: &CreateRequest) -> Result<ObservedWorker, ProviderError> {
        match self.creates.fetch_add(1, Ordering::SeqCst) {
            0 => {
                self.inner.create(request).await.unwrap();
                Err(ProviderError::UnknownOutcome("the answer was lost".into()))
            }
            1 => Err(ProviderError::Transient("connection refused".into())),
            _ => self.inner.create(request).await,
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
        if self.creates.load(Ordering::SeqCst) < 3 {
            return Err(ProviderError::Transient("connection refused".into()));
        }
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

#[tokio::test(start_paused = true)]
async fn a_repeat_that_is_refused_says_nothing_of_the_first_call() {
    let world = World::new(Settings::default());
    let away = Away { inner: world.provider(), creates: AtomicUsize::new(0) };
    let yaml = "{pool_id: ci, worker_type: vm, provider: sim, fixed_size: 1, \
                worker_config: {image: a, cpu_cores: 1, memory_mb: 1}}";
    let outcomes = world.apply_with(yaml, away, Box::new(GoodCommits)).await.unwrap();
    assert!(outcomes.iter().all(pool::apply::PoolOutcome::is_complete), "{outcomes:?}");
    let workers = world.cloud.workers();
    assert_eq!(workers.len(), 1);
    assert_eq!(workers[0].observed.attempt, 1, "the worker of the first call was given up");
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_only_had_workers_once_need_not_answer() {
    let world = World::new(Settings::default());
    world.converge_with(&two("one"), Some("d")).await;
    let elsewhere = two("one").replace("provider: d", "provider: sim");
    world.converge_with(&elsewhere, Some("d")).await;
    let mut reconciler = world.start_with(world.provider(), Box::new(GoodCommits));
    let faults = pool_sim::CallFaults { fail_before: 1.0, ..pool_sim::CallFaults::default() };
    let down = Settings { faults: [(pool_sim::Call::List, faults)].into(), ..Settings::default() };
    reconciler.providers.insert("d".into(), SharedProvider::new(world.provider_with(down)));
    let desired = reconciler.desired(&load(&elsewhere));
    let planned = reconciler.plan(&desired, &PlanOptions::default(), true).await.unwrap();
    assert!(planned.plan.is_empty());
    assert_eq!(planned.gone.keys().collect::<Vec<_>>(), ["d"], "and that is told");
    // With workers there it has to.
    let back = reconciler.desired(&load(&two("one")));
    assert!(reconciler.plan(&back, &PlanOptions::default(), true).await.is_err());
}
