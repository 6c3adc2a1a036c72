//! The one thread that owns the connection: it gathers what callers ask and commits it together.
//!
//! Every job runs in a savepoint of its own inside one `BEGIN IMMEDIATE`; one that fails is rolled back
//! alone. Leases, which look before they write, do without. A caller gets its answer only after the commit is durable. There is no timer: while one batch
//! commits, the next one gathers. A failed commit fails every job of the batch, and nothing is kept.
//!
//! A batch takes jobs for 1 ms at most, and a process that does not serve leaves a gap after a long one:
//! a server's leases and an apply's records share the write lock.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::oneshot;

use super::error::StateError;
use super::open::translate;
use crate::clock::Stopwatch;

/// The most jobs in a batch.
const MAX_BATCH: usize = 256;
/// How long a batch takes jobs before it commits: others wait for the write lock.
const LONGEST_BATCH: Duration = Duration::from_millis(1);
/// How long a process whose changes can wait leaves the lock alone between two batches: whoever polls for
/// it gets it then.
const GAP: Duration = Duration::from_micros(200);

/// One thing to do inside a transaction.
trait Job: Send {
    /// Runs inside the transaction; returns whether its changes are to be kept.
    fn run(&mut self, connection: &Connection) -> bool;
    /// Whether it writes only once nothing can be wrong any more.
    fn looks_first(&self) -> bool;
    /// Answers the caller, once it is known whether the batch was committed.
    fn finish(self: Box<Self>, committed: Result<(), StateError>, path: &Path);
}

struct Asked<T, F> {
    looks_first: bool,
    work: Option<F>,
    outcome: Option<Result<T, JobError>>,
    answer: oneshot::Sender<Result<T, StateError>>,
}

impl<T: Send, F: FnOnce(&Connection) -> Result<T, JobError> + Send> Job for Asked<T, F> {
    fn run(&mut self, connection: &Connection) -> bool {
        self.outcome = self.work.take().map(|work| work(connection));
        matches!(self.outcome, Some(Ok(_)))
    }

    fn looks_first(&self) -> bool {
        self.looks_first
    }

    fn finish(self: Box<Self>, committed: Result<(), StateError>, path: &Path) {
        let outcome = match (self.outcome, committed) {
            (Some(Ok(value)), Ok(())) => Ok(value),
            (Some(Err(JobError::State(error))), _) => Err(error),
            (Some(Err(JobError::Sql(error))), _) => Err(translate(&error, path)),
            (Some(Ok(_)) | None, Err(error)) => Err(error),
            (None, Ok(())) => Err(StateError::Closed),
        };
        // A caller that was dropped meanwhile does not need its answer.
        let _nobody_waits = self.answer.send(outcome).is_err();
    }
}

/// Something that goes wrong around a commit, for tests of what survives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommitFault {
    /// All is well.
    None,
    /// The process dies here: nobody gets an answer, and nothing is written any more.
    Die,
    /// The same, but everybody was answered: what a writer that answers too early would do. For tests of
    /// whether such a writer would be found out.
    AnswerThenDie,
    /// The disk is full.
    DiskFull,
}

/// Decides what goes wrong around each commit; the binary has none.
pub trait CommitFaults: Send {
    /// Called before each commit that changes something.
    fn before_commit(&mut self) -> CommitFault;
    /// Called after it, before anybody is answered.
    fn after_commit(&mut self) -> CommitFault;
}

/// The way to the thread; clones share it. With the last of them the thread ends and the database is
/// closed, which moves everything from the write-ahead log into the database file.
#[derive(Debug, Clone)]
pub(super) struct Writer(Arc<Owner>);

/// Is told how many jobs each batch had.
pub type BatchObserver = Box<dyn Fn(usize) + Send + Sync>;

struct Owner {
    observer: Arc<OnceLock<BatchObserver>>,
    hurried: Arc<AtomicBool>,
    jobs: Option<Sender<Box<dyn Job>>>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Writer")
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        drop(self.jobs.take());
        // A writer that panicked has answered nobody; there is nothing to close any more.
        let _closed = self.thread.take().map(JoinHandle::join);
    }
}

impl Writer {
    /// Starts the thread.
    pub(super) fn start(
        connection: Connection,
        path: PathBuf,
        faults: Option<Box<dyn CommitFaults>>,
    ) -> Self {
        let (jobs, received) = channel();
        let observer: Arc<OnceLock<BatchObserver>> = Arc::default();
        let hurried: Arc<AtomicBool> = Arc::default();
        let (observed, hurry) = (Arc::clone(&observer), Arc::clone(&hurried));
        let thread = thread::spawn(move || {
            Thread { connection, path, faults, observer: observed, hurried: hurry }.run(&received);
        });
        Self(Arc::new(Owner { observer, hurried, jobs: Some(jobs), thread: Some(thread) }))
    }

    /// Has `observer` told of every batch from now on; the first one stays.
    pub(super) fn observe(&self, observer: BatchObserver) {
        let _first_stays = self.0.observer.set(observer).is_err();
    }

    /// Says that somebody waits for every change of this process.
    pub(super) fn hurry(&self) {
        self.0.hurried.store(true, Ordering::SeqCst);
    }

    /// Runs `job` in the next batch; returns once that is durable.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Connection) -> Result<T, JobError> + Send + 'static,
    ) -> Result<T, StateError> {
        self.send(job, false).await
    }

    /// The same for a job that writes only once nothing can be wrong any more: it needs no savepoint, in
    /// which SQLite would copy every page that it changes. Should it fail half-way all the same, its whole
    /// batch fails.
    pub(super) async fn run_without_savepoint<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Connection) -> Result<T, JobError> + Send + 'static,
    ) -> Result<T, StateError> {
        self.send(job, true).await
    }

    async fn send<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Connection) -> Result<T, JobError> + Send + 'static,
        looks_first: bool,
    ) -> Result<T, StateError> {
        let (answer, answered) = oneshot::channel();
        let asked = Asked { looks_first, work: Some(job), outcome: None, answer };
        let jobs = self.0.jobs.as_ref().ok_or(StateError::Closed)?;
        jobs.send(Box::new(asked)).map_err(|_| StateError::Closed)?;
        answered.await.map_err(|_| StateError::Closed)?
    }
}

/// Why a job failed: as the state sees it, or as SQLite does.
#[derive(Debug)]
pub(super) enum JobError {
    State(StateError),
    Sql(rusqlite::Error),
}

impl From<rusqlite::Error> for JobError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<StateError> for JobError {
    fn from(error: StateError) -> Self {
        Self::State(error)
    }
}

#[expect(clippy::disallowed_methods, reason = "the writer's thread does nothing else")]
fn leave_a_gap() {
    thread::sleep(GAP);
}

struct Thread {
    connection: Connection,
    path: PathBuf,
    faults: Option<Box<dyn CommitFaults>>,
    observer: Arc<OnceLock<BatchObserver>>,
    hurried: Arc<AtomicBool>,
}

impl Thread {
    fn run(mut self, received: &Receiver<Box<dyn Job>>) {
        let mut waiting: VecDeque<Box<dyn Job>> = VecDeque::new();
        loop {
            if waiting.is_empty() {
                match received.recv() {
                    Ok(first) => waiting.push_back(first),
                    Err(_) => return,
                }
            }
            waiting.extend(received.try_iter().take(MAX_BATCH.saturating_sub(waiting.len())));
            let since = Stopwatch::start();
            if !self.commit(&mut waiting) {
                return;
            }
            if since.elapsed() >= LONGEST_BATCH && !self.hurried.load(Ordering::SeqCst) {
                leave_a_gap();
            }
        }
    }

    /// Runs jobs for a while and commits them; returns false when the simulated process has died. Those
    /// that it did not come to stay.
    fn commit(&mut self, waiting: &mut VecDeque<Box<dyn Job>>) -> bool {
        let before = self.connection.total_changes();
        let mut batch = Vec::new();
        let committed = match self.transact(waiting, &mut batch, before) {
            Ok(Some(committed)) => committed,
            Ok(None) => return false,
            Err(error) => Err(translate(&error, &self.path)),
        };
        if let Some(observe) = self.observer.get() {
            observe(batch.len());
        }
        if committed.is_err() && !self.connection.is_autocommit() {
            let _nothing_left_to_do = self.execute("ROLLBACK").is_err();
        }
        let changed = self.connection.total_changes() != before;
        if changed && self.faults.as_mut().is_some_and(|f| f.after_commit() == CommitFault::Die) {
            return false;
        }
        if committed.is_err() {
            // What could not even begin would not fare better.
            batch.extend(waiting.drain(..));
        }
        for job in batch {
            job.finish(committed.clone(), &self.path);
        }
        true
    }

    /// Moves what it ran from `waiting` to `batch`. Returns `None` when the simulated process dies before
    /// the commit.
    fn transact(
        &mut self,
        waiting: &mut VecDeque<Box<dyn Job>>,
        batch: &mut Vec<Box<dyn Job>>,
        before: u64,
    ) -> rusqlite::Result<Option<Result<(), StateError>>> {
        self.execute("BEGIN IMMEDIATE")?;
        let since = Stopwatch::start();
        while let Some(mut job) = waiting.pop_front() {
            let ran = self.run_one(&mut *job);
            batch.push(job);
            let kept = ran?;
            if self.connection.is_autocommit() {
                // SQLite rolls everything back by itself when it has no space, no memory or no disk.
                return Ok(Some(Err(self.why_rolled_back())));
            }
            if !kept {
                let what = "a change failed half-way; nothing of its batch was kept";
                return Ok(Some(Err(StateError::Other(what.to_owned()))));
            }
            if since.elapsed() >= LONGEST_BATCH {
                break;
            }
        }
        let changed = self.connection.total_changes() != before;
        let fault = match &mut self.faults {
            Some(faults) if changed => faults.before_commit(),
            Some(_) | None => CommitFault::None,
        };
        match fault {
            CommitFault::None => self.execute("COMMIT").map(|()| Some(Ok(()))),
            CommitFault::DiskFull => Ok(Some(Err(StateError::Full(self.path.clone())))),
            CommitFault::Die => Ok(None),
            CommitFault::AnswerThenDie => {
                for job in batch.drain(..) {
                    job.finish(Ok(()), &self.path);
                }
                Ok(None)
            }
        }
    }

    /// Says why SQLite gave the transaction up: whatever a write says now.
    fn why_rolled_back(&self) -> StateError {
        let probe = self.execute("BEGIN IMMEDIATE").and_then(|()| {
            let touched = self.execute("UPDATE meta SET value = value WHERE key = 'deployment'");
            touched.and(self.execute("COMMIT"))
        });
        if !self.connection.is_autocommit() {
            let _nothing_left_to_do = self.execute("ROLLBACK").is_err();
        }
        probe.err().map_or_else(
            || StateError::Other("SQLite gave a transaction up; nothing of it was kept".to_owned()),
            |error| translate(&error, &self.path),
        )
    }

    /// Runs one job so that it leaves nothing behind when it fails; false when it did all the same.
    fn run_one(&self, job: &mut dyn Job) -> rusqlite::Result<bool> {
        if job.looks_first() {
            let before = self.connection.total_changes();
            return Ok(job.run(&self.connection) || self.connection.total_changes() == before);
        }
        self.execute("SAVEPOINT job")?;
        if !job.run(&self.connection) {
            self.execute("ROLLBACK TO job")?;
        }
        self.execute("RELEASE job")?;
        Ok(true)
    }

    fn execute(&self, sql: &str) -> rusqlite::Result<()> {
        self.connection.prepare_cached(sql)?.execute([]).map(drop)
    }
}
