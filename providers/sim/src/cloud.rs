//! The simulated workers and call counts, in memory or in a file that several processes share.
//!
//! The file is a log of JSON lines, one a call, appended under an exclusive lock. Before each call a
//! process reads what others appended. A last line without its end is a call that was killed before it
//! had its effect: it is cut off. Nothing is synced to disk: a cloud does not lose power with us.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pool_provider::{DeploymentId, ObservedWorker};
use serde::{Deserialize, Serialize};

/// A kind of provider call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names are the trait's methods")]
pub enum Call {
    Create,
    List,
    Get,
    Update,
    Delete,
    Probe,
    Reset,
}

/// One simulated worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SimWorker {
    /// Whose it is.
    pub owner: DeploymentId,
    /// The token that created it.
    pub token: String,
    /// The image it runs.
    pub image: String,
    /// When it comes into being, in milliseconds since the epoch.
    pub exists_from: i64,
    /// When listings begin to show it, in milliseconds since the epoch.
    pub listed_from: i64,
    /// What listings show.
    pub observed: ObservedWorker,
}

/// A worker that was deleted, as listings still show it.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Ghost {
    listed_until: i64,
    worker: SimWorker,
}

/// One call and its effect: a line of the log.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Record {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) call: Option<Call>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) put: Option<SimWorker>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) remove: Option<Removal>,
}

impl Record {
    /// Returns whether the call left nothing that others have to know.
    fn is_empty(&self) -> bool {
        self.call.is_none() && self.put.is_none() && self.remove.is_none()
    }
}

/// Which worker goes, and how long listings still show it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Removal {
    pub(crate) provider_id: String,
    pub(crate) listed_until: i64,
}

/// What the cloud holds.
#[derive(Debug, Default)]
pub(crate) struct World {
    pub(crate) workers: BTreeMap<String, SimWorker>,
    ghosts: BTreeMap<String, Ghost>,
    pub(crate) calls: BTreeMap<Call, u64>,
    pub(crate) created: u64,
    /// Times of the latest calls, for the rate limit; each process counts its own.
    pub(crate) recent: std::collections::VecDeque<i64>,
    log: Option<Log>,
}

#[derive(Debug)]
struct Log {
    path: PathBuf,
    file: File,
    read_to: u64,
}

/// A simulated cloud; clones are the same cloud.
#[derive(Debug, Clone, Default)]
pub struct Cloud(Arc<Mutex<World>>);

impl Cloud {
    /// Makes an empty cloud in memory.
    pub fn in_memory() -> Self {
        Self::default()
    }

    /// Opens the cloud kept in the folder `path`; makes an empty one when it is missing.
    pub fn open(path: &Path) -> io::Result<Self> {
        fs::create_dir_all(path)?;
        let path = path.join("cloud.jsonl");
        let file = OpenOptions::new().read(true).append(true).create(true).open(&path)?;
        let mut world = World { log: Some(Log { path, file, read_to: 0 }), ..World::default() };
        world.catch_up()?;
        Ok(Self(Arc::new(Mutex::new(world))))
    }

    /// Runs `change` on the newest world and keeps the record that it returns.
    pub(crate) fn call<T>(&self, change: impl FnOnce(&mut World) -> (Record, T)) -> io::Result<T> {
        let mut world = self.world();
        world.lock_file()?;
        let outcome = world.catch_up().and_then(|()| {
            let (record, answer) = change(&mut world);
            world.keep(record).map(|()| answer)
        });
        world.unlock_file()?;
        outcome
    }

    fn world(&self) -> MutexGuard<'_, World> {
        // A panic in a test's closure leaves the world as consistent as before the call.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns how often each kind of call was made.
    pub fn calls(&self) -> BTreeMap<Call, u64> {
        self.world().calls.clone()
    }

    /// Returns every worker, those that are yet to come into being included.
    pub fn workers(&self) -> Vec<SimWorker> {
        self.world().workers.values().cloned().collect()
    }

    /// Makes a worker vanish behind everybody's back.
    pub fn kill(&self, provider_id: &str) -> io::Result<()> {
        let removal = Removal { provider_id: provider_id.to_owned(), listed_until: 0 };
        self.call(|_| (Record { remove: Some(removal), ..Record::default() }, ()))
    }

    /// Puts a worker there behind everybody's back, or changes one.
    pub fn put(&self, worker: SimWorker) -> io::Result<()> {
        self.call(|_| (Record { put: Some(worker), ..Record::default() }, ()))
    }
}

impl World {
    /// Returns what a listing for `owner` shows at `now`: at most `size` workers in order of provider
    /// id, those after `after` only.
    pub(crate) fn listed(
        &self,
        owner: &DeploymentId,
        now: i64,
        after: Option<&str>,
        size: usize,
    ) -> Vec<ObservedWorker> {
        let from = || (after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        let present = self
            .workers
            .range::<str, _>(from())
            .map(|(_, worker)| worker)
            .filter(|worker| worker.listed_from.max(worker.exists_from) <= now)
            .filter(|worker| worker.owner == *owner)
            .take(size);
        let ghosts = self
            .ghosts
            .range::<str, _>(from())
            .filter(|(_, ghost)| ghost.listed_until > now && ghost.worker.owner == *owner)
            .map(|(_, ghost)| &ghost.worker)
            .take(size);
        let mut listed: Vec<&SimWorker> = present.chain(ghosts).collect();
        listed.sort_by(|a, b| a.observed.provider_id.cmp(&b.observed.provider_id));
        listed.into_iter().take(size).map(|worker| worker.observed.clone()).collect()
    }

    fn apply(&mut self, record: Record) {
        if let Some(call) = record.call {
            *self.calls.entry(call).or_default() += 1;
        }
        if let Some(worker) = record.put {
            let id = worker.observed.provider_id.clone();
            if self.workers.insert(id, worker).is_none() {
                self.created += 1;
            }
        }
        if let Some(Removal { provider_id, listed_until }) = record.remove
            && let Some(worker) = self.workers.remove(&provider_id)
        {
            self.ghosts.insert(provider_id, Ghost { listed_until, worker });
        }
    }

    fn keep(&mut self, record: Record) -> io::Result<()> {
        if record.is_empty() {
            return Ok(());
        }
        if let Some(log) = &mut self.log {
            let mut line = serde_json::to_vec(&record)?;
            line.push(b'\n');
            log.file.write_all(&line)?;
            log.read_to += line.len() as u64;
        }
        self.apply(record);
        Ok(())
    }

    fn lock_file(&self) -> io::Result<()> {
        self.log.as_ref().map_or(Ok(()), |log| log.file.lock())
    }

    fn unlock_file(&self) -> io::Result<()> {
        self.log.as_ref().map_or(Ok(()), |log| log.file.unlock())
    }

    /// Reads what other processes appended.
    fn catch_up(&mut self) -> io::Result<()> {
        let Some(log) = &mut self.log else { return Ok(()) };
        if log.file.metadata()?.len() == log.read_to {
            return Ok(());
        }
        log.file.seek(SeekFrom::Start(log.read_to))?;
        let mut tail = Vec::new();
        log.file.read_to_end(&mut tail)?;
        let whole = tail.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        if whole < tail.len() {
            log.file.set_len(log.read_to + whole as u64)?;
        }
        log.read_to += whole as u64;
        let path = log.path.clone();
        for line in tail[..whole].split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let record = serde_json::from_slice(line).map_err(|error| {
                io::Error::new(io::ErrorKind::InvalidData, format!("{}: {error}", path.display()))
            })?;
            self.apply(record);
        }
        Ok(())
    }
}
