//! Carries out a plan: intent, provider call, result, event; for every step, in the plan's order.
//!
//! Decides nothing about what should be: names, order and reasons are the plan's. It knows how a call
//! is made safe: the intent is durable before the call, a lost answer is `unknown` and never `failed`,
//! and no call is made once the state can no longer be written. Dropping the future is safe at any
//! moment: the next run finds what was in flight.
//!
//! | module     | holds                                                        |
//! |------------|--------------------------------------------------------------|
//! | `step`     | one step: create, replace, update, delete, adopt              |
//! | `create`   | the attempts of one create, and the health check that ends it  |
//! | `drain`    | keeps new jobs from workers that are to go                      |
//! | `retry`    | how long to wait between attempts                               |
//! | [`event`]  | what it tells while it works                                    |

mod create;
mod drain;
pub mod event;
mod retry;
mod step;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt as _};
use futures_util::stream::{self, StreamExt as _};
use pool_provider::{Progress, SharedProvider, WorkerSpec};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use self::step::Listener;
pub use event::{ApplyEvent, ApplyEventKind, Observer};

use crate::clock::Stopwatch;
use crate::desired::{SecretHashes, Spec};
use crate::plan::{NewWorkerOrigin, Plan, PoolPlan, RecordedSpec, Step, Summary};
use crate::state::{PoolLock, StateError, Store};
use crate::worker::{PoolId, WorkerName};

/// How soon a run that waits notices that it is to stop.
const STOPPED_WITHIN: Duration = Duration::from_millis(200);

/// A spec with its secrets read.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// What providers get.
    pub spec: WorkerSpec,
    /// What is recorded of the secrets.
    pub secrets: SecretHashes,
}

/// Reads the secrets of a spec, or says which one cannot be read.
pub type Resolver = Arc<dyn Fn(&Spec) -> Result<Resolved, String> + Send + Sync>;

/// Everything that carrying out a plan needs.
#[derive(Clone)]
pub struct Applier {
    /// Where intents and results are recorded.
    pub store: Store,
    /// The providers, by name.
    pub providers: BTreeMap<String, SharedProvider>,
    /// Reads secrets.
    pub resolver: Resolver,
    /// Is told what happens.
    pub observer: Observer,
    /// How many provider calls may be under way in all pools together.
    pub parallelism: usize,
    /// What it does about workers that jobs have.
    pub leased: Leased,
}

/// Who comes back for a worker that is to go while a job has it. It gets no new lease meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leased {
    /// The same run, in another round: until then its step is not over.
    Wait,
    /// Another run.
    Leave,
}

/// What became of one pool's part of a plan.
#[derive(Debug, Clone, PartialEq)]
pub struct PoolOutcome {
    /// The pool.
    pub pool: PoolId,
    /// What was done.
    pub done: Summary,
    /// The steps that failed, and why.
    pub failures: Vec<(WorkerName, String)>,
    /// The steps that a job keeps waiting, and which job.
    pub held: Vec<(WorkerName, String)>,
    /// How many steps were not begun.
    pub skipped: u32,
    /// The steps that are not done, whatever for, by their number in the plan.
    pub unfinished: BTreeSet<usize>,
    /// Why the pool's run ended early, when the state was the reason.
    pub stopped_by: Option<StateError>,
    /// What is not known although every step went well.
    pub unsure: Option<String>,
}

impl PoolOutcome {
    /// Returns whether everything that was planned is done.
    pub fn is_complete(&self) -> bool {
        self.failures.is_empty()
            && self.held.is_empty()
            && self.skipped == 0
            && self.stopped_by.is_none()
            && self.unsure.is_none()
    }

    /// Returns whether another round could go on, once a job gave its worker back.
    pub fn waits_for_jobs(&self) -> bool {
        !self.held.is_empty() && self.stopped_by.is_none() && self.unsure.is_none()
    }

    /// Adds what became of the same pool in another plan; that one's steps have numbers of their own.
    pub(crate) fn add(&mut self, other: Self) {
        self.done = [self.done, other.done].into_iter().sum();
        self.failures.extend(other.failures);
        self.held.extend(other.held);
        self.skipped += other.skipped;
        self.stopped_by = self.stopped_by.take().or(other.stopped_by);
        self.unsure = self.unsure.take().or(other.unsure);
    }

    /// Nothing was done yet.
    fn nothing(plan: &PoolPlan) -> Self {
        Self {
            pool: plan.pool.clone(),
            done: Summary::default(),
            failures: Vec::new(),
            held: Vec::new(),
            skipped: 0,
            unfinished: BTreeSet::new(),
            stopped_by: None,
            unsure: None,
        }
    }

    /// Nothing of the plan is done.
    fn none_of(plan: &PoolPlan) -> Self {
        Self {
            skipped: u32::try_from(plan.steps.len()).unwrap_or(u32::MAX),
            unfinished: (0..plan.steps.len()).collect(),
            ..Self::nothing(plan)
        }
    }
}

/// Why a step failed.
enum StepError {
    /// The provider, or the worker itself.
    Worker(String),
    /// A job has the worker, and did not give it back.
    Held(String),
    /// The state: no further call may be made.
    State(StateError),
}

impl From<StateError> for StepError {
    fn from(error: StateError) -> Self {
        match error {
            // Only this step would break a bound; others may go on, and may make room for it.
            StateError::Budget { .. } => Self::Worker(error.to_string()),
            StateError::Leased(_) => Self::Held(error.to_string()),
            error => Self::State(error),
        }
    }
}

/// Carries out `plan` under `locks`; pools run side by side.
pub async fn apply(
    applier: &Applier,
    plan: &Plan,
    locks: &BTreeMap<PoolId, PoolLock>,
) -> Vec<PoolOutcome> {
    let calls = Semaphore::new(applier.parallelism.max(1));
    let mut runs: Vec<BoxFuture<'_, PoolOutcome>> = Vec::new();
    for pool in plan.pools.iter().filter(|pool| !pool.is_empty()) {
        match locks.get(&pool.pool) {
            Some(lock) => runs.push(Box::pin(apply_pool(applier, pool, lock, &calls))),
            None => runs.push(Box::pin(async { not_ours(pool) })),
        }
    }
    futures_util::future::join_all(runs).await
}

/// Nothing is done to a pool without its lock, and that is not success.
fn not_ours(plan: &PoolPlan) -> PoolOutcome {
    let stopped_by = Some(StateError::Fenced(plan.pool.clone()));
    PoolOutcome { stopped_by, ..PoolOutcome::none_of(plan) }
}

async fn apply_pool(
    applier: &Applier,
    plan: &PoolPlan,
    lock: &PoolLock,
    calls: &Semaphore,
) -> PoolOutcome {
    let run = match PoolRun::begin(applier, plan, lock, calls).await {
        Ok(run) => run,
        Err(error) => {
            let mut outcome = PoolOutcome::none_of(plan);
            match error {
                StepError::State(error) => outcome.stopped_by = Some(error),
                StepError::Worker(why) | StepError::Held(why) => {
                    let worker = plan.steps.first().map(worker_of(plan));
                    outcome.failures.extend(worker.map(|worker| (worker, why)));
                    outcome.skipped = outcome.skipped.saturating_sub(1);
                }
            }
            return outcome;
        }
    };
    let mut outcome = PoolOutcome::nothing(plan);
    run.waves(&mut outcome).await;
    if plan.config.is_none() && outcome.is_complete() {
        outcome.stopped_by = applier.store.forget_pool(lock).await.err();
    }
    outcome
}

/// The worker that a step is about: the one that comes, else the one that changes or goes.
pub(crate) fn worker_of(plan: &PoolPlan) -> impl Fn(&Step) -> WorkerName + '_ {
    |step| {
        let coming = step.create.as_ref().map(|new| new.generation);
        let old = step.update.as_ref().or(step.delete.first()).map(|old| old.generation);
        plan.worker(step.slot, coming.or(old).unwrap_or_default())
    }
}

/// A secret that is not the one that was planned would make something else than what was approved.
fn verify_secrets(plan: &PoolPlan, resolved: &Resolved) -> Result<(), StepError> {
    for (name, planned) in &plan.secrets {
        let found = resolved.secrets.get(name);
        if planned.is_some() && found.is_some_and(|found| found != planned) {
            let what = format!("the secret {name} of its environment is another one now");
            return Err(StepError::State(StateError::Moved { pool: plan.pool.clone(), what }));
        }
    }
    Ok(())
}

/// One pool's part of a run.
struct PoolRun<'a> {
    applier: &'a Applier,
    plan: &'a PoolPlan,
    lock: &'a PoolLock,
    calls: &'a Semaphore,
    /// What the pool's workers are made from: `None` when the pool goes.
    spec: Option<Spec>,
    /// The same with its secrets read, when some worker is created.
    new: Option<Resolved>,
    /// Set when no further step may begin.
    stop: AtomicBool,
}

impl<'a> PoolRun<'a> {
    /// Reads the secrets and records the config, before anything is called.
    async fn begin(
        applier: &'a Applier,
        plan: &'a PoolPlan,
        lock: &'a PoolLock,
        calls: &'a Semaphore,
    ) -> Result<Self, StepError> {
        let calls_create = |step: &Step| {
            let origin = step.create.as_ref().map(|new| new.origin);
            matches!(origin, Some(NewWorkerOrigin::Fresh | NewWorkerOrigin::Resend))
        };
        let spec = plan.spec();
        let new = match &spec {
            Some(spec) if plan.steps.iter().any(calls_create) => {
                let resolved = (applier.resolver)(spec).map_err(StepError::Worker)?;
                verify_secrets(plan, &resolved)?;
                Some(resolved)
            }
            Some(_) | None => None,
        };
        match plan.config.as_ref().filter(|_| plan.records_config) {
            Some(config) => {
                let provider = plan.provider_config.as_ref();
                applier.store.record_config(lock, config, provider, &plan.place).await?;
            }
            // From here on nobody is to bring it back, or to lease of it.
            None if plan.config.is_none() && plan.records_config => {
                applier.store.record_going(lock).await?;
            }
            None => {
                if let Some(provider) = plan.provider_config.as_ref().filter(|_| plan.narrowed) {
                    applier.store.record_provider(lock, &plan.provider, provider).await?;
                }
            }
        }
        let run = Self { applier, plan, lock, calls, spec, new, stop: AtomicBool::new(false) };
        run.drain_all().await?;
        Ok(run)
    }

    async fn waves(&self, outcome: &mut PoolOutcome) {
        let concurrency = self.plan.provisioning.concurrency().max(1) as usize;
        let mut gate_failed = false;
        let mut first = 0;
        for wave in self.plan.steps.chunk_by(|a, b| a.wave == b.wave) {
            let gates = wave.first().is_some_and(|step| step.gates);
            let begin = first;
            first += wave.len();
            if gate_failed && gates {
                outcome.unfinished.extend(begin..first);
                for step in wave {
                    self.skip(step, outcome).await;
                }
                continue;
            }
            // By number: a stream of references would not be `Send` enough for its callers.
            let mut results = stream::iter(0..wave.len())
                .map(|number| {
                    let result = self.step(&wave[number]);
                    result.map(move |result| (begin + number, result)).boxed()
                })
                .buffer_unordered(concurrency);
            while let Some((number, result)) = results.next().await {
                if !matches!(result, StepResult::Done(_)) {
                    outcome.unfinished.insert(number);
                }
                match result {
                    StepResult::Done(part) => {
                        outcome.done = [outcome.done, part].into_iter().sum();
                    }
                    StepResult::Skipped => outcome.skipped += 1,
                    StepResult::Failed(worker, StepError::Held(why)) => {
                        gate_failed |= gates;
                        outcome.held.push((worker, why));
                    }
                    StepResult::Failed(worker, StepError::Worker(why)) => {
                        gate_failed |= gates;
                        if self.plan.provisioning.fails_fast() {
                            self.stop.store(true, Ordering::SeqCst);
                        }
                        outcome.failures.push((worker, why));
                    }
                    StepResult::Failed(worker, StepError::State(error)) => {
                        // Another step's call must not follow an intent that cannot be recorded.
                        self.stop.store(true, Ordering::SeqCst);
                        outcome.failures.push((worker, error.to_string()));
                        outcome.stopped_by.get_or_insert(error);
                    }
                }
            }
        }
        outcome.failures.sort();
        outcome.held.sort();
    }

    /// Returns what is recorded of a worker with these secrets.
    fn recorded_spec(&self, secrets: SecretHashes) -> Result<Arc<RecordedSpec>, StepError> {
        let spec = self
            .spec
            .clone()
            .ok_or_else(|| StepError::Worker("the plan has no spec for this worker".to_owned()))?;
        Ok(Arc::new(RecordedSpec { hash: spec.hash(), spec, secrets }))
    }

    /// Returns what tells of this step.
    fn teller(&self, step: &Step) -> impl Fn(ApplyEventKind) + Send + Sync + Clone + use<> {
        let observer = Arc::clone(&self.applier.observer);
        let (pool, worker) = (self.plan.pool.clone(), worker_of(self.plan)(step));
        let (action, reason) = (step.action, step.reason);
        move |kind| {
            let (pool, worker) = (pool.clone(), worker.clone());
            observer(ApplyEvent { pool, worker, action, reason, kind });
        }
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// Waits; returns whether the run goes on.
    async fn sleep_unless_stopped(&self, pause: Duration) -> bool {
        let stopped = async {
            while !self.is_stopped() {
                sleep(STOPPED_WITHIN).await;
            }
        };
        timeout(pause, stopped).await.is_err()
    }

    async fn step(&self, step: &Step) -> StepResult {
        if self.is_stopped() {
            return StepResult::Skipped;
        }
        let worker = worker_of(self.plan)(step);
        let tell = self.teller(step);
        tell(ApplyEventKind::Started);
        let watch = Stopwatch::start();
        let (again, there, along) = (tell.clone(), tell.clone(), tell.clone());
        let listener = Listener {
            retrying: Box::new(move |attempt, why, delay| {
                again(ApplyEventKind::Retrying { attempt, why, delay });
            }),
            found: Box::new(move |why| there(ApplyEventKind::Found { why })),
            progress: Progress::to(move |what| along(ApplyEventKind::Progress(what.to_owned()))),
        };
        match self.carry_out(step, &listener).await {
            Ok(provider_id) => {
                tell(ApplyEventKind::Completed { elapsed: watch.elapsed(), provider_id });
                StepResult::Done(step.summary())
            }
            Err(error) => {
                let why = match &error {
                    // It is not over: another round goes on with it.
                    StepError::Held(_) if self.applier.leased == Leased::Wait => None,
                    StepError::Worker(why) | StepError::Held(why) => Some(why.clone()),
                    StepError::State(error) => Some(error.to_string()),
                };
                if let Some(why) = why {
                    tell(ApplyEventKind::Failed { elapsed: watch.elapsed(), why });
                }
                StepResult::Failed(worker, error)
            }
        }
    }
}

enum StepResult {
    Done(Summary),
    Skipped,
    Failed(WorkerName, StepError),
}
