//! Runs one health probe: asks the provider, opens a connection, makes a request, or runs a program.
//!
//! Input: the check and the worker's addresses. Output: passed, failed and why, or gone for good.
//! Counts nothing and judges nothing; see [`crate::health`].

use std::process::Stdio;
use std::sync::OnceLock;

use pool_provider::{
    Call, ProbeOutcome, Probes, ProviderError, SharedProvider, WorkerProvider as _, WorkerRef,
};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::config::{HealthCheckConfig, HealthCheckKind};
use crate::worker::WorkerName;

/// What one probe found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probed {
    /// The worker is well.
    Passed,
    /// It is not, and why.
    Failed(String),
    /// It is no longer there.
    Gone(String),
    /// Nobody could ask, which says nothing of the worker, and why.
    Unasked(String),
}

/// Probes one worker, within the check's timeout. Of `calls`, asking the provider takes one.
pub async fn probe(
    check: &HealthCheckConfig,
    (provider, calls): (&SharedProvider, Option<&Semaphore>),
    worker: &WorkerRef,
    addresses: &[String],
) -> Probed {
    let limit = check.timeout.get();
    let asked = async {
        match check.kind {
            HealthCheckKind::Provider => {
                return ask_provider(check, (provider, calls), worker).await;
            }
            HealthCheckKind::Tcp => timeout(limit, tcp(check, worker, addresses)).await,
            HealthCheckKind::Http => timeout(limit, http(check, worker, addresses)).await,
            HealthCheckKind::Exec => {
                timeout(limit, run_program(&check.command, &worker.name, addresses)).await
            }
        }
        .unwrap_or_else(|_| Err(late(check)))
        .map_or_else(Probed::Failed, |()| Probed::Passed)
    };
    match asked.await {
        // The provider knows best whether there is anything left to wait for.
        Probed::Failed(why) if check.kind != HealthCheckKind::Provider => {
            match ask_provider(check, (provider, calls), worker).await {
                Probed::Gone(gone) => Probed::Gone(gone),
                Probed::Passed | Probed::Failed(_) | Probed::Unasked(_) => Probed::Failed(why),
            }
        }
        probed => probed,
    }
}

/// Its time begins when the provider may be asked.
async fn ask_provider(
    check: &HealthCheckConfig,
    (provider, calls): (&SharedProvider, Option<&Semaphore>),
    worker: &WorkerRef,
) -> Probed {
    // In the order of every other call: who has one and waits for the other must not meet who has the other.
    let _turn = provider.turn(Call::Look).await;
    let _permit = match calls {
        Some(calls) => calls.acquire().await.ok(),
        None => None,
    };
    match timeout(check.timeout.get(), provider.probe(worker)).await {
        Ok(Ok(ProbeOutcome::Healthy)) => Probed::Passed,
        Ok(Ok(ProbeOutcome::Unhealthy(why))) => Probed::Failed(why),
        Ok(Ok(ProbeOutcome::Gone(why))) => Probed::Gone(why),
        // These speak of whoever asks: a fleet is not unhealthy because a login has run out, or a network is down.
        Ok(Err(
            error @ (ProviderError::RateLimited { .. }
            | ProviderError::Unauthenticated(_)
            | ProviderError::Transient(_)),
        )) => Probed::Unasked(error.to_string()),
        Ok(Err(error)) => Probed::Failed(error.to_string()),
        Err(_) => match provider.describe().probes {
            Probes::Worker => Probed::Failed(late(check)),
            Probes::Service => Probed::Unasked(late(check)),
        },
    }
}

fn late(check: &HealthCheckConfig) -> String {
    format!("no answer within {}", check.timeout)
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
        let builder = pool_provider::http::plain().redirect(reqwest::redirect::Policy::none());
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
    let status = Command::new(program)
        .args(arguments)
        .env("POOL_WORKER", worker.to_string())
        .env("POOL_SLOT", worker.slot.to_string())
        .env("POOL_ADDRESS", addresses.first().map_or("", String::as_str))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .status()
        .await
        .map_err(|error| format!("running {program}: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("{program} ended with {status}")) }
}
