//! Which workers of a deployment run: claims and `/proc`, joined.
//!
//! A claim whose process is alive is a worker, even when the program has overwritten its environment.
//! A process whose `POOL_PROCESS` names itself is a worker, even when its claim is lost. One whose reset
//! lock is held is on its way back. A worker is gone only when all three say so. What a worker started
//! inherits its tags but not its pid: not a worker.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use pool_provider::{DeploymentId, ObservedStatus, ObservedWorker, WorkerName};

use crate::claim::{Claim, ClaimFolder};
use crate::proc;
use crate::provider::DEFAULT_NAME;

/// A process by pid and start time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ProcessId {
    pub(crate) pid: i32,
    pub(crate) start_time: u64,
}

impl ProcessId {
    pub(crate) fn is_alive(self) -> bool {
        proc::is_alive(self.pid, self.start_time)
    }
}

/// Returns the claim's process when it is of this boot and this PID namespace and runs.
///
/// # Errors
/// A claim of another PID namespace of this boot cannot be judged from here: that is not "missing".
pub(crate) fn live_process(claim: &Claim) -> io::Result<Option<ProcessId>> {
    if claim.boot_id != proc::boot_id()? {
        return Ok(None);
    }
    let own = proc::pid_namespace()?;
    if claim.pid_namespace != own {
        return Err(io::Error::other(format!(
            "worker {} runs in another PID namespace ({}, this one is {own}): run pool where the \
             worker was created",
            claim.name, claim.pid_namespace
        )));
    }
    let process = ProcessId { pid: claim.pid, start_time: claim.start_time };
    Ok(process.is_alive().then_some(process))
}

/// Returns every process that carries the tags of `owner` (and of `name`), workers and descendants.
pub(crate) fn tagged(
    owner: &DeploymentId,
    name: Option<&WorkerName>,
) -> io::Result<Vec<(ProcessId, BTreeMap<String, String>)>> {
    let name = name.map(ToString::to_string);
    let mut found = Vec::new();
    for pid in proc::pids()? {
        let tags = proc::tags(pid);
        let owned = tags.get("POOL_DEPLOYMENT").is_some_and(|tag| tag == owner.as_str());
        let named = name.is_none() || tags.get("POOL_WORKER") == name.as_ref();
        if owned && named {
            // Read after the tags: a pid that changed hands meanwhile would show another start time
            // than the one its tags were read under, and is judged by its own tags next time.
            if let Some(stat) = proc::stat(pid).filter(|stat| !stat.dead) {
                found.push((ProcessId { pid, start_time: stat.start_time }, tags));
            }
        }
    }
    Ok(found)
}

/// Returns all running workers of `owner` that the provider called `provider` created.
pub(crate) fn workers(
    folder: &ClaimFolder,
    owner: &DeploymentId,
    provider: &str,
) -> io::Result<Vec<ObservedWorker>> {
    let mut workers = Vec::new();
    let mut claimed = BTreeSet::new();
    for claim in folder.read_all(None)? {
        if let Some(process) = live_process(&claim)? {
            claimed.insert(process);
            workers.push(observed(&claim, owner));
        } else {
            workers.extend(restarting(folder, &claim, owner)?);
        }
    }
    for (process, tags) in tagged(owner, None)? {
        let created_by = tags.get("POOL_PROVIDER").map_or(DEFAULT_NAME, String::as_str);
        if !claimed.contains(&process) && created_by == provider {
            // A reset may have come to its end meanwhile: then its claim was seen already.
            let found = from_tags(process, &tags);
            let is_new = |found: &ObservedWorker| {
                !workers.iter().any(|known| known.provider_id == found.provider_id)
            };
            workers.extend(found.filter(is_new));
        }
    }
    Ok(workers)
}

/// Returns the running workers that bear `name`: one, unless something went wrong.
pub(crate) fn by_name(
    folder: &ClaimFolder,
    owner: &DeploymentId,
    name: &WorkerName,
) -> io::Result<Vec<ObservedWorker>> {
    let mut workers = Vec::new();
    for claim in folder.read_all(Some(name))? {
        if live_process(&claim)?.is_some() {
            workers.push(observed(&claim, owner));
        } else {
            workers.extend(restarting(folder, &claim, owner)?);
        }
    }
    if workers.is_empty() {
        for (process, tags) in tagged(owner, Some(name))? {
            workers.extend(from_tags(process, &tags));
        }
    }
    Ok(workers)
}

/// Describes a worker whose process has ended because it is being reset.
fn restarting(
    folder: &ClaimFolder,
    claim: &Claim,
    owner: &DeploymentId,
) -> io::Result<Option<ObservedWorker>> {
    let starting = ObservedWorker { status: ObservedStatus::Starting, ..observed(claim, owner) };
    if folder.is_being_reset(&claim.name, claim.attempt)? {
        return Ok(Some(starting));
    }
    // It may have come to its end between the two looks.
    let now = folder.read(&claim.name, claim.attempt)?;
    let again = now.map(|claim| Ok::<_, io::Error>((live_process(&claim)?.is_some(), claim)));
    let again = again.transpose()?;
    Ok(again.filter(|(lives, _)| *lives).map(|(_, claim)| observed(&claim, owner)))
}

/// Describes the worker that `claim` became.
pub(crate) fn observed(claim: &Claim, owner: &DeploymentId) -> ObservedWorker {
    ObservedWorker {
        provider_id: provider_id(&claim.name, owner, claim.attempt),
        name: claim.name.clone(),
        attempt: claim.attempt,
        operation: claim.operation,
        spec_hash: claim.spec_hash.clone(),
        status: ObservedStatus::Running,
        labels: claim.labels.clone(),
        tags: claim.tags.clone(),
        addresses: vec!["127.0.0.1".to_owned()],
        attributes: BTreeMap::from([
            ("limits".to_owned(), claim.limits.clone()),
            ("pid".to_owned(), claim.pid.to_string()),
        ]),
    }
}

/// Describes a worker whose claim is lost; labels and tags were only there.
fn from_tags(process: ProcessId, tags: &BTreeMap<String, String>) -> Option<ObservedWorker> {
    let itself = format!("{}:{}", process.pid, process.start_time);
    if tags.get("POOL_PROCESS")? != &itself {
        return None;
    }
    let name: WorkerName = tags.get("POOL_WORKER")?.parse().ok()?;
    let owner: DeploymentId = tags.get("POOL_DEPLOYMENT")?.parse().ok()?;
    let attempt = tags.get("POOL_ATTEMPT")?.parse().ok()?;
    Some(ObservedWorker {
        provider_id: provider_id(&name, &owner, attempt),
        name,
        attempt,
        operation: tags.get("POOL_OPERATION")?.parse().ok()?,
        spec_hash: tags.get("POOL_SPEC_HASH")?.clone(),
        status: ObservedStatus::Running,
        labels: BTreeMap::new(),
        tags: Vec::new(),
        addresses: vec!["127.0.0.1".to_owned()],
        attributes: BTreeMap::from([("pid".to_owned(), process.pid.to_string())]),
    })
}

/// Returns the attempt that a provider id of this worker tells; `None` when it is no id of it.
pub(crate) fn attempt_of(id: &str, name: &WorkerName, owner: &DeploymentId) -> Option<u32> {
    id.strip_prefix(&name.object_name(owner))?.strip_prefix('.')?.parse().ok()
}

fn provider_id(name: &WorkerName, owner: &DeploymentId, attempt: u32) -> String {
    format!("{}.{attempt}", name.object_name(owner))
}
