//! The launcher step: what runs between us and the worker's program.
//!
//! It is a process of its own because a create can be killed at any instruction: the launcher starts a
//! session, enters the worker's limits, claims the attempt exclusively on disk, and only then
//! executes the worker's program in its place, keeping its pid. A second launcher of the same attempt
//! loses the claim and ends. A reset is the same with another beginning: it stops what runs under the
//! claim, and takes it over. The request arrives on standard input, so that no secret is ever in an
//! argument list; one report line goes to standard output, which closes when the program is executed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use pool_provider::DeploymentId;
use serde::{Deserialize, Serialize};

use crate::claim::{Claim, ClaimFolder, private_file};
use crate::limits::{self, Limits};
use crate::proc;
use crate::stop::{self, Meant};

/// What a launcher is to do before it becomes the worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Mission {
    /// Claim an attempt that nobody has.
    Start,
    /// Stop the process that the claim named when the reset was asked for, with so many milliseconds of
    /// grace, and take the claim over. When it names another one by now, somebody else has reset the worker
    /// since, and a job may have it again.
    Reset { owner: DeploymentId, grace_ms: u64, pid: i32, start_time: u64, boot_id: String },
}

/// What a launcher is asked to start.
#[derive(Serialize, Deserialize)]
pub(crate) struct LaunchRequest {
    /// The deployment's claim folder.
    pub(crate) folder: PathBuf,
    pub(crate) mission: Mission,
    /// Where control groups are mounted.
    pub(crate) cgroup_root: PathBuf,
    /// The claim to take; the launcher fills in its own process.
    pub(crate) claim: Claim,
    /// The worker's name at the provider.
    pub(crate) object_name: String,
    pub(crate) image: String,
    pub(crate) command: Vec<String>,
    pub(crate) environment: BTreeMap<String, String>,
    pub(crate) cpu_cores: u32,
    pub(crate) memory_mb: u32,
}

/// What a launcher answers.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LaunchReport {
    /// The claim is taken. If the report closes after this line, the program runs.
    Claimed,
    /// The attempt was claimed before, or the worker is deleted.
    Taken,
    /// The program cannot be executed; nothing runs.
    NotExecutable(String),
    /// Something else failed before the program ran; nothing runs.
    Failed(String),
}

/// Runs the launcher step. Returns only when the worker's program does not run.
pub fn run() -> ExitCode {
    let Ok(mut report) = io::stdout().as_fd().try_clone_to_owned().map(File::from) else {
        return ExitCode::FAILURE;
    };
    let outcome = launch(&mut report)
        .unwrap_or_else(|error| LaunchReport::Failed(format!("launching the worker: {error}")));
    match send(&mut report, &outcome) {
        Ok(()) => ExitCode::FAILURE,
        Err(_) => ExitCode::from(2),
    }
}

fn send(report: &mut File, line: &LaunchReport) -> io::Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    report.write_all(&text)
}

fn launch(report: &mut File) -> io::Result<LaunchReport> {
    let mut text = Vec::new();
    io::stdin().read_to_end(&mut text)?;
    let request: LaunchRequest = serde_json::from_slice(&text)?;
    rustix::process::setsid()?;
    let limits = Limits {
        object_name: &request.object_name,
        cpu_cores: request.cpu_cores,
        memory_mb: request.memory_mb,
    };
    let pid = rustix::process::getpid().as_raw_nonzero().get();
    let own =
        proc::stat(pid).ok_or_else(|| io::Error::other("/proc does not show this process"))?;
    let folder = ClaimFolder::at(request.folder);
    let log = folder.log_path(&request.claim.name);
    // Held until the program is executed: until then the worker is on its way, and nobody else resets it.
    let (known, _lock) = match &request.mission {
        Mission::Start => (request.claim, None),
        Mission::Reset { owner, grace_ms, pid, start_time, boot_id } => {
            let asked = &request.claim;
            let lock = folder.lock_reset(&asked.name, asked.attempt)?;
            let Some(known) = folder.read(&asked.name, asked.attempt)? else {
                return Ok(LaunchReport::Taken);
            };
            if (known.pid, known.start_time, &known.boot_id) != (*pid, *start_time, boot_id) {
                return Ok(LaunchReport::Taken);
            }
            stop_all(&folder, owner, &known, Duration::from_millis(*grace_ms))?;
            (known, Some(lock))
        }
    };
    let claim = Claim {
        pid,
        start_time: own.start_time,
        boot_id: proc::boot_id()?,
        pid_namespace: proc::pid_namespace()?,
        limits: limits::enter(&request.cgroup_root, &limits),
        ..known
    };
    let taken = match request.mission {
        Mission::Start => folder.take(&claim)?,
        Mission::Reset { .. } => folder.take_over(&claim)?,
    };
    if !taken {
        return Ok(LaunchReport::Taken);
    }
    // A reader that was killed cannot take the worker along: the claim is what counts.
    let _reader_may_be_gone = send(report, &LaunchReport::Claimed).is_ok();
    let error = execute(&log, &request.image, &request.command, request.environment, &own)?;
    Ok(LaunchReport::NotExecutable(format!("`{}`: {error}", request.image)))
}

/// Stops what runs under a claim. The limits come after it: they would hold us with what is stopped.
fn stop_all(
    folder: &ClaimFolder,
    owner: &DeploymentId,
    claim: &Claim,
    grace: Duration,
) -> io::Result<()> {
    let meant = Meant::Only(claim.attempt);
    let target = stop::Target { folder, owner, name: &claim.name, meant, spares_resets: true };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    runtime.block_on(stop::stop(&target, grace))
}

fn execute(
    log: &Path,
    image: &str,
    command: &[String],
    environment: BTreeMap<String, String>,
    own: &proc::Stat,
) -> io::Result<io::Error> {
    let log = private_file(log)?;
    Ok(Command::new(image)
        .args(command)
        .env_clear()
        .envs(environment)
        // Tells the worker from what it starts: only the worker's own pid and start time match.
        .env("POOL_PROCESS", format!("{}:{}", own.pid, own.start_time))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .exec())
}
