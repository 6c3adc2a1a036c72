//! [`LocalProvider`]: the provider trait over claims, launcher and `/proc`.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use pool_provider::{
    About, Consistency, CreateRequest, DeleteRequest, DeploymentId, Description, Heard,
    Idempotency, InPlaceField, Listing, ObservedStatus, ObservedWorker, PageToken, ProbeOutcome,
    Probes, Progress, ProviderError, ResetRequest, UpdateRequest, WorkerProvider, WorkerRef,
    WorkerSpec,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;
use tokio::time::timeout;

use crate::claim::{Claim, ClaimFolder};
use crate::ends::Ends;
use crate::launch::{LaunchReport, LaunchRequest, Mission};
use crate::stop::Meant;
use crate::{find, limits, stop};

/// Where programs are found when a worker's environment does not say: the usual places.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How long a launcher may take that nobody waits for any more.
const SETTLE: Duration = Duration::from_secs(2);

/// How long a worker may take to be gone after SIGKILL, beyond its grace.
const KILL_MARGIN: Duration = Duration::from_secs(20);

/// The provider of workers that do not say which one created them.
pub(crate) const DEFAULT_NAME: &str = "local";

/// How the provider works on this machine.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where claims and logs are kept, a folder per deployment below it.
    pub root: PathBuf,
    /// The provider's name: two providers of one deployment list their own workers only.
    pub name: String,
    /// The program and arguments that run [`crate::launch::run`].
    pub launcher: (PathBuf, Vec<String>),
    /// How long a worker has between SIGTERM and SIGKILL.
    pub stop_grace: Duration,
    /// How long a program must run to count as started: one that ends sooner failed to start.
    pub min_uptime: Duration,
    /// Where control groups are mounted.
    pub cgroup_root: PathBuf,
}

impl Settings {
    /// Returns the defaults: 10 s of grace, 100 ms of uptime, control groups where Linux mounts them.
    pub fn new(root: PathBuf, launcher: (PathBuf, Vec<String>)) -> Self {
        Self {
            root,
            name: DEFAULT_NAME.to_owned(),
            launcher,
            stop_grace: Duration::from_secs(10),
            min_uptime: Duration::from_millis(100),
            cgroup_root: PathBuf::from("/sys/fs/cgroup"),
        }
    }
}

/// Runs workers as processes on this machine.
#[derive(Debug, Clone)]
pub struct LocalProvider {
    settings: Settings,
    ends: Ends,
}

impl LocalProvider {
    /// Builds a provider; touches nothing yet.
    pub fn new(settings: Settings) -> Self {
        Self { settings, ends: Ends::default() }
    }

    fn folder(&self, owner: &DeploymentId) -> ClaimFolder {
        ClaimFolder::of(&self.settings.root, owner)
    }

    /// Runs the launcher and returns its last report, and how the program ended if it ended at once.
    async fn launch(
        &self,
        request: &CreateRequest,
        folder: &ClaimFolder,
        mission: Mission,
    ) -> io::Result<(LaunchReport, Option<ExitStatus>)> {
        let (program, arguments) = &self.settings.launcher;
        let mut launcher = Command::new(program)
            .args(arguments)
            .env_clear()
            // The tags are in the launcher's environment too: a delete finds it on its way.
            .envs(tags(request, &self.settings.name))
            .envs(matches!(mission, Mission::Reset { .. }).then_some((stop::RESET, "1")))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let asked = launch_request(request, folder, &self.settings, mission);
        let text = serde_json::to_vec(&asked)?;
        if let Some(mut stdin) = launcher.stdin.take() {
            stdin.write_all(&text).await?;
        }
        let mut report = String::new();
        if let Some(mut stdout) = launcher.stdout.take() {
            stdout.read_to_string(&mut report).await?;
        }
        let last = report.lines().last().unwrap_or_default();
        let report = serde_json::from_str(last)
            .map_err(|_| io::Error::other(format!("the launcher answered `{last}`")))?;
        // The child is the worker now. Dropping the handle leaves it running; tokio reaps it when it
        // ends while this process lives, and init does after that.
        let ended = match report {
            LaunchReport::Claimed => timeout(self.settings.min_uptime, launcher.wait()).await.ok(),
            LaunchReport::Taken | LaunchReport::NotExecutable(_) | LaunchReport::Failed(_) => None,
        };
        Ok((report, ended.transpose()?))
    }

    /// Has the launcher start a worker's program, and returns the worker once it has run for a moment.
    async fn start(
        &self,
        request: &CreateRequest,
        folder: &ClaimFolder,
        mission: Mission,
    ) -> Result<ObservedWorker, ProviderError> {
        let launched = self.launch(request, folder, mission).await;
        let (report, ended) = launched.map_err(|error| {
            ProviderError::UnknownOutcome(format!("starting a process: {error}"))
        })?;
        match report {
            LaunchReport::NotExecutable(why) => {
                return Err(ProviderError::InvalidSpec(format!("image {why}")));
            }
            LaunchReport::Failed(why) => return Err(ProviderError::Transient(why)),
            LaunchReport::Claimed | LaunchReport::Taken => {}
        }
        let log = folder.log_path(&request.name);
        if let Some(status) = ended {
            return Err(ProviderError::Transient(format!(
                "`{}` ended at once with {status}; see {}",
                request.spec.image,
                log.display()
            )));
        }
        let claim = folder.read(&request.name, request.attempt).map_err(|error| looking(&error))?;
        match claim {
            Some(claim) if find::live_process(&claim).map_err(|e| looking(&e))?.is_some() => {
                Ok(find::observed(&claim, &request.owner))
            }
            Some(_) | None => Err(ProviderError::Transient(format!(
                "the process of {} has ended already; see {}",
                request.name,
                log.display()
            ))),
        }
    }
}

fn tags(request: &CreateRequest, provider: &str) -> BTreeMap<String, String> {
    BTreeMap::from([
        ("POOL_DEPLOYMENT".to_owned(), request.owner.to_string()),
        ("POOL_PROVIDER".to_owned(), provider.to_owned()),
        ("POOL_ID".to_owned(), request.name.pool.to_string()),
        ("POOL_WORKER".to_owned(), request.name.to_string()),
        ("POOL_SLOT".to_owned(), request.name.slot.to_string()),
        ("POOL_ATTEMPT".to_owned(), request.attempt.to_string()),
        ("POOL_OPERATION".to_owned(), request.operation.to_string()),
        ("POOL_SPEC_HASH".to_owned(), request.spec_hash.clone()),
    ])
}

fn launch_request(
    request: &CreateRequest,
    folder: &ClaimFolder,
    settings: &Settings,
    mission: Mission,
) -> LaunchRequest {
    let WorkerSpec { image, command, cpu_cores, memory_mb, labels, tags: user_tags, .. } =
        request.spec.clone();
    let mut environment = BTreeMap::from([
        ("PATH".to_owned(), DEFAULT_PATH.to_owned()),
        ("LANG".to_owned(), "C.UTF-8".to_owned()),
    ]);
    environment.extend(request.spec.environment.clone());
    environment.extend(tags(request, &settings.name));
    LaunchRequest {
        folder: folder.path().to_owned(),
        mission,
        cgroup_root: settings.cgroup_root.clone(),
        claim: Claim {
            name: request.name.clone(),
            attempt: request.attempt,
            operation: request.operation,
            spec_hash: request.spec_hash.clone(),
            labels,
            tags: user_tags,
            pid: 0,
            start_time: 0,
            boot_id: String::new(),
            pid_namespace: String::new(),
            limits: String::new(),
        },
        object_name: request.name.object_name(&request.owner),
        image,
        command,
        environment,
        cpu_cores,
        memory_mb,
    }
}

/// Waits until the worker's process has ended; `None` when the kernel cannot be asked to tell.
async fn ended(folder: &ClaimFolder, worker: &WorkerRef, ends: &Ends) -> Option<String> {
    const WHY: &str = "its process has ended";
    let claims = folder.read_all(Some(&worker.name)).ok()?;
    let meant = |claim: &&Claim| {
        let attempt =
            worker.provider_id.as_ref().map(|id| find::attempt_of(id, &worker.name, &worker.owner));
        attempt.is_none_or(|attempt| attempt == Some(claim.attempt))
    };
    let claim = claims.iter().find(meant)?;
    let Some(process) = find::live_process(claim).ok()? else { return Some(WHY.to_owned()) };
    ends.wait(process).await?;
    Some(WHY.to_owned())
}

/// Turns a failure to look into an error: nothing was done.
fn looking(error: &io::Error) -> ProviderError {
    ProviderError::Transient(format!("looking for local workers: {error}"))
}

impl WorkerProvider for LocalProvider {
    fn describe(&self) -> Description {
        Description {
            kind: "local".to_owned(),
            worker_types: vec!["process".to_owned()],
            idempotency: Idempotency::Token,
            consistency: Consistency::Strong,
            settle: SETTLE,
            slowest_delete: self.settings.stop_grace + KILL_MARGIN,
            slowest_look: Duration::ZERO,
            in_place: vec![InPlaceField::Labels, InPlaceField::Tags],
            one_host: true,
            tells_ends: true,
            probes: Probes::Worker,
            resets: true,
            capacity: None,
            about: About::refusing("/no/such/program"),
        }
    }

    async fn create(&self, request: &CreateRequest) -> Result<ObservedWorker, ProviderError> {
        let folder = self.folder(&request.owner);
        folder.create().map_err(|error| {
            let path = folder.path().display();
            ProviderError::Transient(format!("creating the folder {path}: {error}"))
        })?;
        self.start(request, &folder, Mission::Start).await
    }

    async fn list(
        &self,
        owner: &DeploymentId,
        _page: Option<&PageToken>,
    ) -> Result<Listing, ProviderError> {
        let folder = self.folder(owner);
        let workers =
            find::workers(&folder, owner, &self.settings.name).map_err(|error| looking(&error))?;
        Ok(Listing { workers, next: None, complete: true })
    }

    async fn get(&self, worker: &WorkerRef) -> Result<ObservedWorker, ProviderError> {
        let folder = self.folder(&worker.owner);
        let found =
            find::by_name(&folder, &worker.owner, &worker.name).map_err(|error| looking(&error))?;
        found
            .into_iter()
            .find(|found| worker.provider_id.as_ref().is_none_or(|id| *id == found.provider_id))
            .ok_or_else(|| ProviderError::NotFound(worker.name.to_string()))
    }

    async fn update(&self, request: &UpdateRequest) -> Result<ObservedWorker, ProviderError> {
        let observed = self.get(&request.worker).await?;
        let folder = self.folder(&request.worker.owner);
        // A reset rewrites the claim as well.
        let lock = folder.try_lock_reset(&observed.name, observed.attempt);
        let Some(_lock) = lock.map_err(|error| looking(&error))? else {
            let why = format!("{} is being reset", observed.name);
            return Err(ProviderError::Transient(why));
        };
        let claim = folder.read(&observed.name, observed.attempt).map_err(|e| looking(&e))?;
        let claim = claim.ok_or_else(|| {
            ProviderError::NotFound(format!("{}: its claim file is lost", observed.name))
        })?;
        let claim = Claim { labels: request.labels.clone(), tags: request.tags.clone(), ..claim };
        folder.rewrite(&claim).map_err(|error| {
            ProviderError::UnknownOutcome(format!("rewriting the claim: {error}"))
        })?;
        Ok(find::observed(&claim, &request.worker.owner))
    }

    async fn delete(&self, request: &DeleteRequest) -> Result<(), ProviderError> {
        let WorkerRef { owner, name, provider_id } = &request.worker;
        let folder = self.folder(owner);
        let meant = match provider_id {
            None => Meant::UpTo(request.attempt),
            // An id that is none of ours names nothing that exists.
            Some(id) => find::attempt_of(id, name, owner).map_or(Meant::Nothing, Meant::Only),
        };
        if meant == Meant::Nothing {
            return Ok(());
        }
        let stopping =
            |error: io::Error| ProviderError::UnknownOutcome(format!("stopping {name}: {error}"));
        folder.bury(name, request.attempt).map_err(stopping)?;
        let target = stop::Target { folder: &folder, owner, name, meant, spares_resets: false };
        stop::stop(&target, self.settings.stop_grace).await.map_err(stopping)?;
        folder.clear(name, |attempt| meant.covers(attempt)).map_err(stopping)?;
        limits::remove(&self.settings.cgroup_root, &name.object_name(owner));
        Ok(())
    }

    async fn reset(&self, request: &ResetRequest) -> Result<ObservedWorker, ProviderError> {
        let WorkerRef { owner, name, .. } = &request.worker;
        let folder = self.folder(owner);
        let observed = self.get(&request.worker).await?;
        let known = folder.read(name, observed.attempt).map_err(|error| looking(&error))?;
        let known = known
            .ok_or_else(|| ProviderError::NotFound(format!("{name}: its claim file is lost")))?;
        let again = CreateRequest {
            owner: owner.clone(),
            name: name.clone(),
            attempt: known.attempt,
            passed_over: 0,
            operation: known.operation,
            // Only a create is told from its repeat by its token; ours is the claim.
            token: String::new(),
            spec: request.spec.clone(),
            spec_hash: known.spec_hash,
            progress: Progress::default(),
            timeout: request.timeout,
        };
        let grace_ms = u64::try_from(self.settings.stop_grace.as_millis()).unwrap_or(u64::MAX);
        let (pid, start_time, boot_id) = (known.pid, known.start_time, known.boot_id);
        let mission = Mission::Reset { owner: owner.clone(), grace_ms, pid, start_time, boot_id };
        self.start(&again, &folder, mission).await
    }

    async fn watch(&self, worker: &WorkerRef) -> Heard {
        let folder = self.folder(&worker.owner);
        match ended(&folder, worker, &self.ends).await {
            Some(why) => Heard::Ended(why),
            // It cannot be waited for; it is probed all the same.
            None => std::future::pending().await,
        }
    }

    async fn probe(&self, worker: &WorkerRef) -> Result<ProbeOutcome, ProviderError> {
        match self.get(worker).await {
            Ok(found) if found.status == ObservedStatus::Running => Ok(ProbeOutcome::Healthy),
            Ok(_) => Ok(ProbeOutcome::Unhealthy("it is being reset".to_owned())),
            Err(ProviderError::NotFound(_)) => {
                Ok(ProbeOutcome::Gone("its process has ended".to_owned()))
            }
            Err(error) => Err(error),
        }
    }
}
