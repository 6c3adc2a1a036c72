//! What several tests need: a simulated world that processes can die in.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use pool::apply::{Observer, PoolOutcome};
use pool::clock::{Clock, Entropy};
use pool::config::diagnostic::Source;
use pool::config::{self, LoadedPool, Sources, Surroundings};
use pool::plan::{Plan, PlanOptions};
use pool::pool::{PoolError, Reconciler, Secrets};
use pool::state::{Check, CommitFault, CommitFaults, OpenOptions, PoolLock, Store, WhenMissing};
use pool::worker::PoolId;
use pool_provider::{
    CreateRequest, DeleteRequest, DeploymentId, Description, Listing, ObservedWorker, PageToken,
    ProbeOutcome, ProviderError, SharedProvider, UpdateRequest, WorkerProvider, WorkerRef,
};
use pool_sim::{Cloud, Settings, SimProvider};
use tokio::sync::Notify;

/// Loads pools from YAML text, as the binary would.
pub(crate) fn load(yaml: &str) -> Vec<LoadedPool> {
    let source = Source::new("test.yaml", yaml);
    let around = Surroundings { environment: &BTreeMap::new() };
    let loaded = config::load(Sources(vec![source]), &around);
    loaded.unwrap_or_else(|report| panic!("{report:#?}")).pools
}

/// Kills the simulated process at its nth crash point: before or after a commit or a provider call.
#[derive(Debug, Default)]
pub(crate) struct Switch {
    passed: AtomicUsize,
    die_at: usize,
    dead: AtomicBool,
    died: Notify,
}

impl Switch {
    pub(crate) fn die_at(point: usize) -> Arc<Self> {
        Arc::new(Self { die_at: point, ..Self::default() })
    }

    pub(crate) fn never() -> Arc<Self> {
        Self::die_at(usize::MAX)
    }

    /// Passes one point; returns whether the process still lives.
    fn pass(&self) -> bool {
        if self.dead.load(Ordering::SeqCst) {
            return false;
        }
        if self.passed.fetch_add(1, Ordering::SeqCst) + 1 == self.die_at {
            self.dead.store(true, Ordering::SeqCst);
            self.died.notify_one();
            return false;
        }
        true
    }

    async fn point(&self) {
        if !self.pass() {
            std::future::pending::<()>().await;
        }
    }
}

/// Commits that never fail.
pub(crate) struct GoodCommits;

impl CommitFaults for GoodCommits {
    fn before_commit(&mut self) -> CommitFault {
        CommitFault::None
    }

    fn after_commit(&mut self) -> CommitFault {
        CommitFault::None
    }
}

/// Commits that find the disk full.
pub(crate) struct FullDisk;

impl CommitFaults for FullDisk {
    fn before_commit(&mut self) -> CommitFault {
        CommitFault::DiskFull
    }

    fn after_commit(&mut self) -> CommitFault {
        CommitFault::None
    }
}

struct DyingCommits(Arc<Switch>);

impl CommitFaults for DyingCommits {
    fn before_commit(&mut self) -> CommitFault {
        if self.0.pass() { CommitFault::None } else { CommitFault::Die }
    }

    fn after_commit(&mut self) -> CommitFault {
        if self.0.pass() { CommitFault::None } else { CommitFault::Die }
    }
}

/// A provider whose caller may die before and after each call.
struct Dying {
    inner: SimProvider,
    switch: Arc<Switch>,
}

impl WorkerProvider for Dying {
    fn describe(&self) -> Description {
        self.inner.describe()
    }

    async fn create(&self, request: &CreateRequest) -> Result<ObservedWorker, ProviderError> {
        self.switch.point().await;
        let answer = self.inner.create(request).await;
        self.switch.point().await;
        answer
    }

    async fn list(
        &self,
        owner: &DeploymentId,
        page: Option<&PageToken>,
    ) -> Result<Listing, ProviderError> {
        self.switch.point().await;
        self.inner.list(owner, page).await
    }

    async fn get(&self, worker: &WorkerRef) -> Result<ObservedWorker, ProviderError> {
        self.switch.point().await;
        self.inner.get(worker).await
    }

    async fn update(&self, request: &UpdateRequest) -> Result<ObservedWorker, ProviderError> {
        self.switch.point().await;
        let answer = self.inner.update(request).await;
        self.switch.point().await;
        answer
    }

    async fn delete(&self, request: &DeleteRequest) -> Result<(), ProviderError> {
        self.switch.point().await;
        let answer = self.inner.delete(request).await;
        self.switch.point().await;
        answer
    }

    async fn probe(&self, worker: &WorkerRef) -> Result<ProbeOutcome, ProviderError> {
        self.switch.point().await;
        self.inner.probe(worker).await
    }
}

/// How a run ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// The process died.
    Died,
    /// It returned.
    Returned(Result<Vec<PoolOutcome>, PoolError>),
}

/// A state on disk and a cloud, which outlive the processes that work on them.
pub(crate) struct World {
    folder: tempfile::TempDir,
    pub(crate) cloud: Cloud,
    pub(crate) settings: Settings,
    clock: Clock,
}

impl World {
    /// Makes an empty world; time is tokio's.
    pub(crate) fn new(settings: Settings) -> Self {
        Self::told_by(settings, Clock::from_tokio("2026-01-01T00:00:00Z".parse().unwrap()))
    }

    /// Makes an empty world with a clock of its own.
    pub(crate) fn told_by(settings: Settings, clock: Clock) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { folder, cloud: Cloud::in_memory(), settings, clock }
    }

    /// Applies these files, and expects that all goes well.
    pub(crate) async fn converge(&self, yaml: &str) {
        match self.apply(yaml, &Switch::never()).await {
            Ended::Returned(Ok(outcomes)) => {
                assert!(outcomes.iter().all(PoolOutcome::is_complete), "{outcomes:?}");
            }
            other => panic!("{other:?}"),
        }
    }

    /// The same where pools have another provider beside `sim`: the same cloud under another name.
    pub(crate) async fn converge_with(&self, yaml: &str, other: Option<&str>) {
        let Some(other) = other else { return self.converge(yaml).await };
        let mut reconciler = self.start_with(self.provider(), Box::new(GoodCommits));
        let provider = SharedProvider::new(self.provider());
        reconciler.providers.insert(other.to_owned(), provider);
        let outcomes = apply(&reconciler, yaml).await.unwrap();
        assert!(outcomes.iter().all(PoolOutcome::is_complete), "{outcomes:?}");
    }

    /// Applies these files in a cloud that may fail; returns whether all went well.
    pub(crate) async fn try_to_converge(&self, yaml: &str) -> bool {
        let ended = self.apply(yaml, &Switch::never()).await;
        matches!(ended, Ended::Returned(Ok(outcomes)) if outcomes.iter().all(PoolOutcome::is_complete))
    }

    pub(crate) fn state_path(&self) -> PathBuf {
        self.folder.path().join("state.db")
    }

    /// Starts a process that dies as `switch` says.
    pub(crate) fn start(&self, switch: &Arc<Switch>) -> Reconciler {
        let provider = Dying { inner: self.provider(), switch: Arc::clone(switch) };
        self.start_with(provider, Box::new(DyingCommits(Arc::clone(switch))))
    }

    /// Returns a handle on the cloud.
    pub(crate) fn provider(&self) -> SimProvider {
        self.provider_with(self.settings.clone())
    }

    /// Returns a handle on the cloud that behaves otherwise.
    pub(crate) fn provider_with(&self, settings: Settings) -> SimProvider {
        let clock = self.clock.clone();
        let now_ms = move || clock.now().as_millisecond();
        SimProvider::new(self.cloud.clone(), settings, now_ms)
    }

    /// Starts a process with a provider and commits of its own.
    pub(crate) fn start_with(
        &self,
        provider: impl WorkerProvider,
        faults: Box<dyn CommitFaults>,
    ) -> Reconciler {
        let options = OpenOptions {
            path: &self.state_path(),
            when_missing: WhenMissing::Create,
            clock: self.clock.clone(),
            entropy: Entropy::system(),
            what: "test",
            check: Check::First,
        };
        let store = Store::open_with_faults(options, Some(faults)).unwrap();
        Reconciler {
            secrets: Secrets::new(Arc::default(), store.secret_key()),
            store,
            providers: BTreeMap::from([("sim".to_owned(), SharedProvider::new(provider))]),
            clock: self.clock.clone(),
            parallelism: 100,
            leased: pool::apply::Leased::Leave,
            absent: pool::pool::Unseen::new(),
            unseen: pool::pool::Unseen::new(),
            effort: pool::pool::Effort::PATIENT,
        }
    }

    /// Runs one whole apply with a provider and commits of its own.
    pub(crate) async fn apply_with(
        &self,
        yaml: &str,
        provider: impl WorkerProvider,
        faults: Box<dyn CommitFaults>,
    ) -> Result<Vec<PoolOutcome>, PoolError> {
        self.bury_the_dead();
        apply(&self.start_with(provider, faults), yaml).await
    }

    /// Asserts that nothing exists whose creation was not recorded before.
    pub(crate) fn assert_recorded(&self, context: &str) {
        let database = rusqlite::Connection::open(self.state_path()).unwrap();
        database.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
        for worker in self.cloud.workers() {
            let name = worker.observed.name;
            let sql = "SELECT count(*) FROM worker WHERE slot = ?1 AND generation = ?2
                       AND phase <> 'deleted'";
            let known: i64 = database
                .query_row(sql, (name.slot.0, name.generation.0), |row| row.get(0))
                .unwrap();
            assert_eq!(known, 1, "{context}: {name} exists and was never recorded");
        }
    }

    /// Runs one whole apply in a process that dies as `switch` says.
    pub(crate) async fn apply(&self, yaml: &str, switch: &Arc<Switch>) -> Ended {
        self.bury_the_dead();
        let reconciler = self.start(switch);
        tokio::select! {
            biased;
            () = switch.died.notified() => Ended::Died,
            // The writer's thread may die between the two polls.
            outcome = apply(&reconciler, yaml) => {
                if switch.dead.load(Ordering::SeqCst) { Ended::Died } else { Ended::Returned(outcome) }
            }
        }
    }

    /// A simulated process dies within this one, which lives: gives its locks to a process that is dead.
    pub(crate) fn bury_the_dead(&self) {
        if self.state_path().exists() {
            let database = rusqlite::Connection::open(self.state_path()).unwrap();
            database.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
            let sql = "UPDATE lock SET holder = json_set(holder, '$.pid', 999999999)
                       WHERE holder IS NOT NULL";
            match database.execute(sql, []) {
                Ok(_) => {}
                // It died before the schema was there.
                Err(error) => assert!(error.to_string().contains("no such table"), "{error}"),
            }
        }
    }

    /// Makes a plan for these files without changing anything.
    pub(crate) async fn plan(&self, yaml: &str) -> Plan {
        let reconciler = self.start(&Switch::never());
        let desired = reconciler.desired(&load(yaml));
        let options = PlanOptions { allow_empty: true, ..PlanOptions::default() };
        loop {
            let plan = reconciler.plan(&desired, &options, true).await.unwrap().plan;
            // A listing that does not see everything proves nothing.
            if plan.complete {
                return plan;
            }
        }
    }

    /// Asserts that the world is exactly as the files say: nothing leaked, nothing doubled.
    pub(crate) async fn assert_converged(&self, yaml: &str, context: &str) {
        let plan = self.plan(yaml).await;
        assert!(plan.is_empty(), "{context}: a second plan is not empty: {:#?}", plan.pools);
        let wanted: usize = load(yaml).iter().map(|pool| pool.config.fixed_size as usize).sum();
        let mut names: Vec<String> =
            self.cloud.workers().iter().map(|worker| worker.observed.name.to_string()).collect();
        assert_eq!(names.len(), wanted, "{context}: {names:?}");
        names.sort();
        names.dedup();
        assert_eq!(names.len(), wanted, "{context}: a worker exists twice");
    }
}

/// Locks, plans and applies, as `pool apply` does.
pub(crate) async fn apply(
    reconciler: &Reconciler,
    yaml: &str,
) -> Result<Vec<PoolOutcome>, PoolError> {
    let pools = load(yaml);
    let recorded = reconciler.store.load().await?;
    let ids: BTreeSet<PoolId> = pools
        .iter()
        .map(|pool| pool.config.pool_id.clone())
        .chain(recorded.iter().map(|pool| pool.id.clone()))
        .collect();
    let mut locks: BTreeMap<PoolId, PoolLock> = BTreeMap::new();
    for id in ids {
        let lock = reconciler.store.lock(&id).await?;
        locks.insert(id, lock);
    }
    let desired = reconciler.desired(&pools);
    let options = PlanOptions { allow_empty: true, ..PlanOptions::default() };
    let plan = reconciler.plan_settled(&desired, &options, true).await?.plan;
    let observer: Observer = Arc::new(|_| {});
    let outcomes = reconciler.apply(&plan, &locks, observer).await?;
    for lock in locks.values() {
        reconciler.store.unlock(lock).await?;
    }
    Ok(outcomes)
}
