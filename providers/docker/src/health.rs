//! What an engine knows of a container's health.
//!
//! | container                          | outcome                                     |
//! |------------------------------------|---------------------------------------------|
//! | not there, exited, dead             | gone, with exit code and out-of-memory        |
//! | paused, restarting, being removed   | unhealthy                                     |
//! | running, without HEALTHCHECK        | healthy                                       |
//! | running, with one                   | as that says; until it says so, unhealthy      |
//!
//! podman leaves its checks to systemd timers. Where none runs them, a check stays "starting" for ever: its
//! command is run by the probe itself then.

use bollard::exec::{CreateExecOptions, StartExecOptions, StartExecResults};
use futures_util::StreamExt as _;
use pool_provider::{ProbeOutcome, ProviderError};

use crate::engine::{Engine, Refusal};
use crate::look::{Health, Inspected, State};

/// How much of a check's output is told, in characters.
const TOLD: usize = 200;

/// What one look at a container says.
pub(crate) async fn judge(
    engine: &Engine,
    found: Inspected,
) -> Result<ProbeOutcome, ProviderError> {
    if let Some(why) = end(&found.state) {
        return Ok(ProbeOutcome::Gone(why));
    }
    if found.state.status != "running" {
        return Ok(ProbeOutcome::Unhealthy(format!("its container is {}", found.state.status)));
    }
    let Some(test) = own_check(&found) else { return Ok(ProbeOutcome::Healthy) };
    let health = found.state.health.clone().unwrap_or_default();
    match health.status.as_str() {
        "healthy" => Ok(ProbeOutcome::Healthy),
        "unhealthy" => {
            Ok(ProbeOutcome::Unhealthy(format!("its HEALTHCHECK fails: {}", last(&health))))
        }
        _ if engine.is_podman => run(engine, &found.id, test).await,
        _ => Ok(ProbeOutcome::Unhealthy("its HEALTHCHECK has not passed yet".to_owned())),
    }
}

/// Returns why a container has ended; `None` when it has not.
pub(crate) fn end(state: &State) -> Option<String> {
    if !matches!(state.status.as_str(), "exited" | "dead" | "stopped") {
        return None;
    }
    let code = state.exit_code;
    let signal = if code > 128 { format!(" (signal {})", code - 128) } else { String::new() };
    let memory = if state.oom_killed { ", out of memory" } else { "" };
    Some(format!("its container ended with exit code {code}{signal}{memory}"))
}

/// Cuts what somebody else wrote to what can be shown: a line without control characters, not too long.
pub(crate) fn printable(text: &str) -> String {
    let shown = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c });
    shown.take(TOLD).collect()
}

fn last(health: &Health) -> String {
    let output = health.log.as_ref().and_then(|log| Some(log.last()?.output.clone()));
    let text = printable(&output.unwrap_or_default());
    if text.is_empty() { "it says nothing".to_owned() } else { text }
}

/// Returns the command of the container's own check.
fn own_check(found: &Inspected) -> Option<Vec<String>> {
    match found.config.healthcheck.as_ref()?.test.as_ref()?.as_slice() {
        [kind, command @ ..] if kind == "CMD" && !command.is_empty() => Some(command.to_vec()),
        [kind, command] if kind == "CMD-SHELL" => {
            Some(vec!["/bin/sh".to_owned(), "-c".to_owned(), command.clone()])
        }
        _ => None,
    }
}

/// Runs the container's own check.
async fn run(
    engine: &Engine,
    container: &str,
    test: Vec<String>,
) -> Result<ProbeOutcome, ProviderError> {
    let looked = |error: bollard::errors::Error| Refusal::from(error).of_look();
    let options = CreateExecOptions {
        cmd: Some(test),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        ..CreateExecOptions::default()
    };
    let docker = &engine.docker;
    let exec = docker.create_exec(container, options).await.map_err(looked)?.id;
    let started = docker.start_exec(&exec, None::<StartExecOptions>).await.map_err(looked)?;
    let mut said = String::new();
    if let StartExecResults::Attached { mut output, .. } = started {
        while let Some(Ok(part)) = output.next().await {
            if said.len() < 4 * TOLD {
                said.push_str(&part.to_string());
            }
        }
    }
    match docker.inspect_exec(&exec).await.map_err(looked)?.exit_code {
        Some(0) => Ok(ProbeOutcome::Healthy),
        code => {
            let said = printable(&said);
            let code =
                code.map_or_else(|| "no exit code".to_owned(), |code| format!("exit code {code}"));
            Ok(ProbeOutcome::Unhealthy(format!("its HEALTHCHECK fails with {code}: {said}")))
        }
    }
}
