//! `pool lease`: leases from a running server, for scripts and jobs.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Map, Value, json};

use super::client::{Client, ServerArgs};
use super::context::Context;
use super::error::CliError;
use super::exit::Exit;
use super::lease_run;
use crate::config::HumanDuration;
use crate::lease::LeaseId;
use crate::worker::PoolId;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: LeaseCommand,
}

#[derive(Debug, Subcommand)]
enum LeaseCommand {
    /// Lease workers and print the leases
    Acquire(Acquire),
    /// Make a lease last for another while
    Renew(Renew),
    /// Give a lease back
    Release(Release),
    /// List the leases that have not ended
    List(List),
    /// Hold a lease around a command: what a CI job calls
    Run(lease_run::Run),
}

impl Arguments {
    /// Whether the command takes care of signals itself.
    pub(super) fn handles_signals(&self) -> bool {
        matches!(self.command, LeaseCommand::Run(_))
    }
}

/// Which workers are wanted.
#[derive(Debug, Clone, Args)]
pub(super) struct WantedArgs {
    /// Workers of this pool
    #[arg(long, value_name = "POOL")]
    pool: Option<PoolId>,
    /// Workers with this label: NAME=VALUE; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = label)]
    label: Vec<(String, String)>,
    /// Workers with this tag; may be repeated
    #[arg(long, value_name = "TAG")]
    tag: Vec<String>,
    /// Workers with at least so many processor cores
    #[arg(long, value_name = "N")]
    min_cpu_cores: Option<u32>,
    /// Workers with at least so much memory, in MiB
    #[arg(long, value_name = "MIB")]
    min_memory_mb: Option<u32>,
    /// Not this worker; may be repeated
    #[arg(long, value_name = "WORKER")]
    avoid: Vec<String>,
    /// For how long, unless it is renewed; the pool's default otherwise
    #[arg(long, value_name = "DURATION")]
    ttl: Option<HumanDuration>,
    /// Requests that wait are served by priority, larger ones first
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    priority: i32,
    /// Who holds the lease; this user and machine by default
    #[arg(long, value_name = "NAME", env = "POOL_HOLDER", hide_env_values = true)]
    holder: Option<String>,
    /// What for, for people
    #[arg(long, value_name = "TEXT")]
    purpose: Option<String>,
}

impl WantedArgs {
    /// Returns for how long a lease was asked for.
    pub(super) fn ttl(&self) -> Option<HumanDuration> {
        self.ttl
    }
}

fn label(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

#[derive(Debug, Args)]
struct Acquire {
    #[command(flatten)]
    wanted: WantedArgs,
    /// How many workers; all or none
    #[arg(long, value_name = "N", default_value_t = 1)]
    count: u32,
    /// How long to wait for workers that are not free
    #[arg(long, value_name = "DURATION", default_value = "0s")]
    wait: HumanDuration,
    /// Makes the request repeatable: the same key gets the same leases
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// Print the server's answer as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, Args)]
struct Renew {
    /// The lease
    #[arg(value_name = "LEASE")]
    id: LeaseId,
    /// The lease's fence; the number that its id begins with by default
    #[arg(long, value_name = "N")]
    fence: Option<i64>,
    /// For how long from now; the pool's default otherwise
    #[arg(long, value_name = "DURATION")]
    ttl: Option<HumanDuration>,
    /// Print the server's answer as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, Args)]
struct Release {
    /// The lease
    #[arg(value_name = "LEASE")]
    id: LeaseId,
    /// How the job went
    #[arg(long, value_enum, default_value = "ok")]
    outcome: OutcomeArg,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, Args)]
struct List {
    /// Of this pool only
    #[arg(long, value_name = "POOL")]
    pool: Option<PoolId>,
    /// Of this holder only
    #[arg(long, value_name = "NAME")]
    holder: Option<String>,
    /// Print the server's answer as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
}

/// How a job went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum OutcomeArg {
    /// Well
    Ok,
    /// The job failed, and the worker is not to blame
    JobFailed,
    /// The worker is to blame
    InfraFailed,
}

pub(super) async fn run(context: &Context, arguments: &Arguments) -> Result<Exit, CliError> {
    match &arguments.command {
        LeaseCommand::Acquire(arguments) => acquire(context, arguments).await,
        LeaseCommand::Renew(arguments) => renew(context, arguments).await,
        LeaseCommand::List(arguments) => list(context, arguments).await,
        LeaseCommand::Release(arguments) => {
            let outcome = match arguments.outcome {
                OutcomeArg::Ok => "ok",
                OutcomeArg::JobFailed => "job_failed",
                OutcomeArg::InfraFailed => "infra_failed",
            };
            let client = Client::new(&arguments.server)?;
            client.release(&arguments.id.to_string(), outcome).await?;
            Ok(Exit::Done)
        }
        LeaseCommand::Run(arguments) => lease_run::run(context, arguments).await,
    }
}

/// Puts together what the server is asked.
pub(super) fn request(
    context: &Context,
    wanted: &WantedArgs,
    count: u32,
    wait: Duration,
) -> Result<Value, CliError> {
    let wants_more = !wanted.label.is_empty()
        || !wanted.tag.is_empty()
        || wanted.min_cpu_cores.is_some()
        || wanted.min_memory_mb.is_some();
    if wanted.pool.is_none() && !wants_more {
        return Err(CliError::usage(
            "which workers are wanted is not said",
            "give --pool, --label, --tag, --min-cpu-cores or --min-memory-mb",
        ));
    }
    let mut body = Map::new();
    let labels: Map<String, Value> =
        wanted.label.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
    let mut selector = json!({ "labels": labels, "tags": wanted.tag });
    if let Some(pool) = &wanted.pool {
        selector["pool"] = json!(pool);
    }
    if let Some(least) = wanted.min_cpu_cores {
        selector["min_cpu_cores"] = json!(least);
    }
    if let Some(least) = wanted.min_memory_mb {
        selector["min_memory_mb"] = json!(least);
    }
    match &wanted.pool {
        Some(pool) if !wants_more => body.insert("pool".to_owned(), json!(pool)),
        _ => body.insert("selector".to_owned(), selector),
    };
    body.insert("count".to_owned(), json!(count));
    body.insert("wait".to_owned(), json!(format!("{}ms", wait.as_millis())));
    body.insert("priority".to_owned(), json!(wanted.priority));
    body.insert("holder".to_owned(), json!(holder(context, wanted)));
    body.insert("avoid_workers".to_owned(), json!(wanted.avoid));
    if let Some(ttl) = wanted.ttl {
        body.insert("ttl".to_owned(), json!(ttl));
    }
    if let Some(purpose) = &wanted.purpose {
        body.insert("purpose".to_owned(), json!(purpose));
    }
    Ok(Value::Object(body))
}

fn holder(context: &Context, wanted: &WantedArgs) -> String {
    if let Some(holder) = &wanted.holder {
        return holder.clone();
    }
    let named = ["USER", "LOGNAME"].iter().find_map(|name| context.world.environment.get(*name));
    // Neither is set in containers, by cron, or by systemd for root.
    let user =
        named.cloned().unwrap_or_else(|| format!("uid-{}", rustix::process::getuid().as_raw()));
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{user}@{}", host.trim())
}

async fn acquire(context: &Context, arguments: &Acquire) -> Result<Exit, CliError> {
    let wait = arguments.wait.get();
    let body = request(context, &arguments.wanted, arguments.count, wait)?;
    let client = Client::new(&arguments.server)?;
    let answer = client.acquire(&body, wait, arguments.idempotency_key.as_deref()).await?;
    if arguments.json {
        context.printer.json(&answer);
    } else {
        for lease in answer["leases"].as_array().into_iter().flatten() {
            show(context, lease);
        }
    }
    Ok(Exit::Done)
}

async fn renew(context: &Context, arguments: &Renew) -> Result<Exit, CliError> {
    let mut body = json!({ "fence": arguments.fence.unwrap_or(arguments.id.number) });
    if let Some(ttl) = arguments.ttl {
        body["ttl"] = json!(ttl);
    }
    let client = Client::new(&arguments.server)?;
    let lease = client.renew(&arguments.id.to_string(), &body).await?;
    if arguments.json {
        context.printer.json(&lease);
    } else {
        show(context, &lease);
    }
    Ok(Exit::Done)
}

async fn list(context: &Context, arguments: &List) -> Result<Exit, CliError> {
    let client = Client::new(&arguments.server)?;
    let pool = arguments.pool.as_ref().map(ToString::to_string);
    let answer = client.leases(pool.as_deref(), arguments.holder.as_deref()).await?;
    if arguments.json {
        context.printer.json(&answer);
        return Ok(Exit::Done);
    }
    for lease in answer["leases"].as_array().into_iter().flatten() {
        let holder = lease["holder"].as_str().unwrap_or("-");
        context.printer.data(&format!("{} by {holder}\n", line(lease)));
    }
    Ok(Exit::Done)
}

fn show(context: &Context, lease: &Value) {
    context.printer.data(&format!("{}\n", line(lease)));
}

/// One line a lease, its id first: `read -r lease worker address rest`.
fn line(lease: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let address = text(&lease["worker"]["addresses"][0]);
    let (id, worker) = (text(&lease["id"]), text(&lease["worker"]["name"]));
    format!("{id} {worker} {address} until {}", text(&lease["expires_at"]))
}
