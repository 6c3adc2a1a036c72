//! `pool state`: look into the state.

use anyhow::Context as _;
use clap::{Args, Subcommand};

use super::context::Context;
use super::error::CliError;
use super::exit::Exit;
use crate::pool::{StaticPoolState, WorkerStatus};
use crate::render;
use crate::state::{EventFilter, Store, WhenMissing};
use crate::worker::{Address, WorkerName};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: StateCommand,
}

#[derive(Debug, Subcommand)]
enum StateCommand {
    /// List the recorded workers by address
    List {
        /// Only this pool or slot
        #[arg(value_name = "ADDR")]
        addresses: Vec<Address>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show everything recorded of one worker, and its history
    Show {
        /// A slot (`ci-linux[3]`) or a worker (`ci-linux-3-1`)
        #[arg(value_name = "ADDR|WORKER")]
        worker: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print the whole state as JSON, without any secret
    Export,
}

pub(super) async fn run(context: &Context, arguments: &Arguments) -> Result<Exit, CliError> {
    let store = context.open("pool state", WhenMissing::Refuse)?;
    let recorded = store.load().await?;
    let pools: Vec<StaticPoolState> =
        recorded.iter().filter(|pool| !pool.is_gone()).map(StaticPoolState::of).collect();
    let printer = &context.printer;
    match &arguments.command {
        StateCommand::List { addresses, json } => {
            for address in addresses {
                let covers = |pool: &StaticPoolState| {
                    pool.workers.iter().any(|worker| address.covers(&pool.pool, worker.slot))
                };
                if !pools.iter().any(covers) {
                    return Err(CliError::usage(
                        format!("no worker is recorded at {address}"),
                        "list them all with: pool state list",
                    ));
                }
            }
            let listed = pools.iter().flat_map(|pool| {
                pool.workers.iter().filter(|worker| {
                    addresses.is_empty()
                        || addresses.iter().any(|address| address.covers(&pool.pool, worker.slot))
                })
            });
            if *json {
                let workers: Vec<&WorkerStatus> = listed.collect();
                printer.json(&serde_json::json!({ "format_version": "1.0", "workers": workers }));
            } else {
                let line = |worker: &WorkerStatus| format!("{}\t{}\n", worker.name, worker.phase);
                printer.data(&listed.map(line).collect::<String>());
            }
        }
        StateCommand::Show { worker, json } => {
            show(context, &store, find(&pools, worker)?, *json).await?;
        }
        StateCommand::Export => {
            let events = store.events(EventFilter::default()).await?;
            printer.json(&serde_json::json!({
                "format_version": "1.0",
                "deployment": store.deployment(),
                "pools": pools,
                "configs": recorded.iter().filter_map(|pool| {
                    Some((pool.id.to_string(), serde_json::to_value(&pool.applied.as_ref()?.config).ok()?))
                }).collect::<serde_json::Map<_, _>>(),
                "events": events,
            }));
        }
    }
    Ok(Exit::Done)
}

async fn show(
    context: &Context,
    store: &Store,
    found: &WorkerStatus,
    json: bool,
) -> Result<(), CliError> {
    let printer = &context.printer;
    let name: WorkerName = found.name.parse().context("reading a worker's name")?;
    let filter = EventFilter { pool: Some(name.pool), slot: Some(name.slot), last: Some(100) };
    let events = store.events(filter).await?;
    if json {
        let document = serde_json::json!({
            "format_version": "1.0", "worker": found, "events": events,
        });
        printer.json(&document);
        return Ok(());
    }
    printer.data(&render::worker_details(found));
    printer.data("history:\n");
    for event in events {
        let generation = event.generation.map_or(0, |generation| generation.0);
        let phases = match (&event.from_phase, &event.to_phase) {
            (Some(from), Some(to)) => format!("{from} -> {to}"),
            (None, Some(to)) => to.clone(),
            _ => event.kind.clone(),
        };
        let (at, why) = (event.at, event.why);
        printer.data(&format!("  {at:.3} generation {generation}: {phases} ({why})\n"));
    }
    Ok(())
}

fn find<'p>(pools: &'p [StaticPoolState], wanted: &str) -> Result<&'p WorkerStatus, CliError> {
    let address: Option<Address> = wanted.parse().ok();
    let of_slot = |pool: &StaticPoolState, worker: &WorkerStatus| {
        address.as_ref().is_some_and(|a| a.slot.is_some() && a.covers(&pool.pool, worker.slot))
    };
    pools
        .iter()
        .flat_map(|pool| pool.workers.iter().map(move |worker| (pool, worker)))
        .filter(|(pool, worker)| worker.name == wanted || of_slot(pool, worker))
        .map(|(_, worker)| worker)
        .next_back()
        .ok_or_else(|| {
            CliError::usage(
                format!("no worker `{wanted}` is recorded"),
                "list them with: pool state list",
            )
        })
}
