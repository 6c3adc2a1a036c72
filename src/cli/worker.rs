//! `pool worker`: decides about single workers, at a running server.

use clap::{Args, ValueEnum};
use serde_json::Value;

use super::client::{Client, ServerArgs};
use super::context::Context;
use super::error::CliError;
use super::exit::Exit;
use crate::worker::WorkerName;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// What is decided
    #[arg(value_enum)]
    verb: Verb,
    /// The workers: `ci-linux-3-1`
    #[arg(value_name = "WORKER", required = true)]
    workers: Vec<WorkerName>,
    /// Print the workers afterwards as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
}

/// What is decided about a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Verb {
    /// It gets no new lease
    Cordon,
    /// It may be leased again, verified first after a quarantine
    Uncordon,
    /// It gets no new lease, and is wanted without one
    Drain,
    /// It is out of service and kept for diagnosis
    Quarantine,
    /// It is probed now
    Verify,
    /// Another one takes its place, when its lease has ended
    Replace,
}

pub(super) async fn run(context: &Context, arguments: &Arguments) -> Result<Exit, CliError> {
    let client = Client::new(&arguments.server)?;
    let verb = arguments.verb.to_possible_value().map(|verb| verb.get_name().to_owned());
    let mut exit = Exit::Done;
    let mut told = Vec::new();
    for worker in &arguments.workers {
        let worker = client.act(&worker.to_string(), verb.as_deref().unwrap_or_default()).await?;
        if worker["healthy"] == false {
            exit = Exit::Error;
        }
        if !arguments.json {
            context.printer.data(&line(&worker));
        }
        told.push(worker);
    }
    if arguments.json {
        context.printer.json(&Value::Array(told));
    }
    Ok(exit)
}

/// One line a worker: its name, its phase, and what else is to be known of it.
fn line(worker: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let mut words = vec![text(&worker["name"]), text(&worker["phase"])];
    for flag in ["cordoned", "draining", "suspect"] {
        if worker[flag] == true {
            words.push(flag.to_owned());
        }
    }
    if let Some(holder) = worker["lease"]["holder"].as_str() {
        words.push(format!("leased to {holder}"));
    }
    if let Some(why) = worker["why"].as_str() {
        words.push(format!("({why})"));
    }
    words.join(" ") + "\n"
}
