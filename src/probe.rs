//! Runs one health probe: asks the provider, opens a connection, makes a request, or runs a program.
//!
//! Input: the check and the worker's addresses. Output: passed, failed and why, or gone for good.
//! Counts nothing and judges nothing; see [`crate::health`].

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::process::Stdio;
use std::sync::OnceLock;

use pool_provider::{ProbeOutcome, WorkerProvider, WorkerRef};
use rustix::fs::{MemfdFlags, SealFlags};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::timeout;

use crate::config::{HealthCheckConfig, HealthCheckKind};
use crate::worker::WorkerName;

/// How much is kept of what a program says when it fails, in bytes.
const MOST_SAID: u64 = 16 * 1024;

/// What one probe found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probed {
    /// The worker is well.
    Passed,
    /// It is not, and why.
    Failed(String),
    /// It is no longer there.
    Gone(String),
}

/// Probes one worker, within the check's timeout.
pub async fn probe(
    check: &HealthCheckConfig,
    provider: &impl WorkerProvider,
    worker: &WorkerRef,
    addresses: &[String],
) -> Probed {
    let limit = check.timeout.get();
    let asked = async {
        match check.kind {
            HealthCheckKind::Provider => return ask_provider(provider, worker).await,
            HealthCheckKind::Tcp => tcp(check, worker, addresses).await,
            HealthCheckKind::Http => http(check, worker, addresses).await,
            HealthCheckKind::Exec => run_program(&check.command, &worker.name, addresses).await,
        }
        .map_or_else(Probed::Failed, |()| Probed::Passed)
    };
    let probed = timeout(limit, asked)
        .await
        .unwrap_or_else(|_| Probed::Failed(format!("no answer within {}", check.timeout)));
    match probed {
        // The provider knows best whether there is anything left to wait for.
        Probed::Failed(why) if check.kind != HealthCheckKind::Provider => {
            match timeout(limit, ask_provider(provider, worker)).await {
                Ok(Probed::Gone(gone)) => Probed::Gone(gone),
                Ok(Probed::Passed | Probed::Failed(_)) | Err(_) => Probed::Failed(why),
            }
        }
        probed => probed,
    }
}

async fn ask_provider(provider: &impl WorkerProvider, worker: &WorkerRef) -> Probed {
    match provider.probe(worker).await {
        Ok(ProbeOutcome::Healthy) => Probed::Passed,
        Ok(ProbeOutcome::Unhealthy(why)) => Probed::Failed(why),
        Ok(ProbeOutcome::Gone(why)) => Probed::Gone(why),
        Err(error) => Probed::Failed(error.to_string()),
    }
}

/// Returns `host:port` of the worker.
fn target(
    check: &HealthCheckConfig,
    worker: &WorkerRef,
    addresses: &[String],
) -> Result<(String, u16), String> {
    let host = addresses.first().ok_or("the worker has no address")?;
    let slot = worker.name.slot.0;
    let port = u32::from(check.port.unwrap_or(0)) + u32::from(check.port_step) * slot;
    let port = u16::try_from(port).map_err(|_| format!("slot {slot} has no port"))?;
    Ok((host.clone(), port))
}

async fn tcp(
    check: &HealthCheckConfig,
    worker: &WorkerRef,
    addresses: &[String],
) -> Result<(), String> {
    let (host, port) = target(check, worker, addresses)?;
    let connected = TcpStream::connect((host.as_str(), port)).await;
    connected.map(drop).map_err(|error| format!("connecting to {host}:{port}: {error}"))
}

async fn http(
    check: &HealthCheckConfig,
    worker: &WorkerRef,
    addresses: &[String],
) -> Result<(), String> {
    static CLIENT: OnceLock<Option<reqwest::Client>> = OnceLock::new();
    let client = CLIENT.get_or_init(|| {
        // A redirect is an answer; where it leads is nobody's health.
        let builder = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none());
        builder.no_proxy().pool_max_idle_per_host(0).build().ok()
    });
    let client = client.as_ref().ok_or("no HTTP client can be made on this system")?;
    let (host, port) = target(check, worker, addresses)?;
    let bracketed = if host.contains(':') { format!("[{host}]") } else { host };
    let url = format!("http://{bracketed}:{port}{}", check.path.as_deref().unwrap_or("/"));
    let answer = client.get(&url).send().await.map_err(|error| format!("{url}: {error}"))?;
    let status = answer.status();
    if status.is_success() || status.is_redirection() {
        Ok(())
    } else {
        Err(format!("{url} answered {status}"))
    }
}

/// Runs a program that is about one worker, here, with the worker's name, slot and address in its
/// environment; exit status 0 is success. Dropped, it is killed.
///
/// # Errors
/// How it ended, or why it could not be run.
pub async fn run_program(
    command: &[String],
    worker: &WorkerName,
    addresses: &[String],
) -> Result<(), String> {
    let (program, arguments) = command.split_first().ok_or("there is no command")?;
    let mut said = scratch().ok();
    let errors = said.as_ref().and_then(|said| said.try_clone().ok());
    let status = Command::new(program)
        .args(arguments)
        .env("POOL_WORKER", worker.to_string())
        .env("POOL_SLOT", worker.slot.to_string())
        .env("POOL_ADDRESS", addresses.first().map_or("", String::as_str))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(errors.map_or_else(Stdio::null, Stdio::from))
        .kill_on_drop(true)
        .status()
        .await
        .map_err(|error| format!("running {program}: {error}"))?;
    if status.success() {
        return Ok(());
    }
    let last = said.as_mut().and_then(|said| last_line(said).ok().flatten());
    Err(match last {
        Some(last) => format!("{program} ended with {status}: {last}"),
        None => format!("{program} ended with {status}"),
    })
}

/// Returns a place in memory for what a program says. What it leaves running may keep that open and write
/// on: unlike a pipe it keeps nobody waiting, and it does not grow (memfd_create(2)).
fn scratch() -> std::io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let place = rustix::fs::memfd_create("stderr", flags)?;
    rustix::fs::ftruncate(&place, MOST_SAID)?;
    rustix::fs::fcntl_add_seals(&place, SealFlags::GROW)?;
    Ok(File::from(place))
}

/// Returns the last line that says something.
fn last_line(said: &mut File) -> std::io::Result<Option<String>> {
    let mut bytes = Vec::new();
    said.rewind()?;
    said.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let mut lines = text.trim_end_matches('\0').lines().rev().map(str::trim);
    Ok(lines.find(|line| !line.is_empty()).map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;
    use pool_provider::{Generation, Slot};

    async fn run(script: &str) -> Result<(), String> {
        let command = ["/bin/sh", "-c", script].map(str::to_owned);
        let worker = WorkerName::new("ci".parse().unwrap(), Slot(0), Generation(1));
        run_program(&command, &worker, &[]).await
    }

    #[tokio::test]
    async fn a_program_that_fails_is_told_with_the_last_line_that_it_said() {
        assert_eq!(run("echo unseen >&2").await, Ok(()));
        let why = run("echo starting >&2; echo database is down >&2; echo >&2; exit 3").await;
        assert_eq!(why, Err("/bin/sh ended with exit status: 3: database is down".to_owned()));
        assert_eq!(run("exit 4").await, Err("/bin/sh ended with exit status: 4".to_owned()));
        // What is left running keeps nobody waiting, and too much is cut.
        let why = run("sleep 60 & yes no >&2; exit 5").await.unwrap_err();
        assert!(why.starts_with("/bin/sh ended with exit status: 5: "), "{why}");
    }
}
