//! Stops a worker and what it started: SIGTERM, grace, SIGKILL.
//!
//! Signals go through pidfds whose process is verified after opening, so a reused pid is never hit
//! (pidfd_open(2)). Whatever carries the worker's tags, or shares its session while the worker itself
//! still runs, belongs to it and is stopped with it; a launcher that resets the worker only when that is asked.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use pool_provider::{DeploymentId, WorkerName};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::time::{sleep, timeout};

use crate::claim::ClaimFolder;
use crate::find::{self, ProcessId};
use crate::proc;

/// How long a killed process may take to be gone; a process in the kernel's hands may take its time.
const KILL_WAIT: Duration = Duration::from_secs(5);
/// How often a worker's descendants are searched again: one that forks faster than this is not stopped.
const ROUNDS: usize = 20;

/// Which attempts of a worker are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meant {
    /// None after this one.
    UpTo(u32),
    /// Only this one.
    Only(u32),
    /// None that can exist.
    Nothing,
}

impl Meant {
    pub(crate) fn covers(self, attempt: u32) -> bool {
        match self {
            Self::UpTo(last) => attempt <= last,
            Self::Only(only) => attempt == only,
            Self::Nothing => false,
        }
    }
}

/// What is to be stopped.
pub(crate) struct Target<'a> {
    pub(crate) folder: &'a ClaimFolder,
    pub(crate) owner: &'a DeploymentId,
    pub(crate) name: &'a WorkerName,
    pub(crate) meant: Meant,
    /// Whether those that are about to start the worker anew go on.
    pub(crate) spares_resets: bool,
}

/// The variable that only a launcher which resets a worker has.
pub(crate) const RESET: &str = "POOL_RESET";

/// Stops everything that belongs to the target. Returns once nothing of it runs.
pub(crate) async fn stop(target: &Target<'_>, grace: Duration) -> io::Result<()> {
    let (workers, mut family) = belongings(target)?;
    for worker in &workers {
        signal(*worker, Signal::TERM)?;
    }
    for worker in &workers {
        wait_for_end(*worker, grace).await;
    }
    for _ in 0..ROUNDS {
        family.retain(|process| process.is_alive());
        family.extend(belongings(target)?.1);
        if family.is_empty() {
            return Ok(());
        }
        for process in &family {
            signal(*process, Signal::KILL)?;
        }
        for process in &family {
            wait_for_end(*process, KILL_WAIT).await;
        }
    }
    let name = target.name;
    Err(io::Error::other(format!("worker {name} keeps starting processes faster than they stop")))
}

/// Returns the workers of that name, and they with everything that they started.
fn belongings(target: &Target<'_>) -> io::Result<(BTreeSet<ProcessId>, BTreeSet<ProcessId>)> {
    let Target { folder, owner, name, meant, spares_resets } = *target;
    let mut workers = BTreeSet::new();
    let claims = folder.read_all(Some(name))?;
    for claim in claims.into_iter().filter(|claim| meant.covers(claim.attempt)) {
        workers.extend(find::live_process(&claim)?);
    }
    let mut family = workers.clone();
    for (process, tags) in find::tagged(owner, Some(name))? {
        let attempt = tags.get("POOL_ATTEMPT").and_then(|attempt| attempt.parse().ok());
        let spared = spares_resets && tags.contains_key(RESET);
        if spared || !attempt.is_some_and(|attempt| meant.covers(attempt)) {
            continue;
        }
        let itself = format!("{}:{}", process.pid, process.start_time);
        if tags.get("POOL_PROCESS") == Some(&itself) {
            workers.insert(process);
        }
        family.insert(process);
    }
    let sessions: BTreeSet<i32> = workers.iter().map(|worker| worker.pid).collect();
    if !sessions.is_empty() {
        for stat in proc::pids()?.into_iter().filter_map(proc::stat) {
            if sessions.contains(&stat.session) && !stat.dead {
                family.insert(ProcessId { pid: stat.pid, start_time: stat.start_time });
            }
        }
    }
    Ok((workers, family))
}

/// Opens the very process, or returns `None` when it is gone.
fn open(process: ProcessId) -> io::Result<Option<OwnedFd>> {
    let Some(pid) = Pid::from_raw(process.pid) else { return Ok(None) };
    match pidfd_open(pid, PidfdFlags::NONBLOCK) {
        Ok(pidfd) => Ok(process.is_alive().then_some(pidfd)),
        Err(rustix::io::Errno::SRCH) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn signal(process: ProcessId, signal: Signal) -> io::Result<()> {
    let Some(pidfd) = open(process)? else { return Ok(()) };
    match pidfd_send_signal(pidfd, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Waits until the process has ended, at most `limit`.
async fn wait_for_end(process: ProcessId, limit: Duration) {
    let ended = async {
        let mut pause = Duration::from_millis(1);
        while process.is_alive() {
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    };
    // Out of time is not an error here: the caller looks again and uses more force.
    let _ended_in_time = timeout(limit, ended).await.is_ok();
}
