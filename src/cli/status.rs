//! `pool status`: the pools as they are recorded; with `--check`, an exit code for monitors.

use clap::Args;

use super::context::Context;
use super::error::CliError;
use super::exit::Exit;
use crate::pool::StaticPoolState;
use crate::render;
use crate::state::WhenMissing;
use crate::worker::PoolId;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Only these pools
    #[arg(value_name = "POOL")]
    pools: Vec<PoolId>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Exit with 1 unless pools are recorded and every wanted worker is ready
    #[arg(long)]
    check: bool,
}

pub(super) async fn run(context: &Context, arguments: &Arguments) -> Result<Exit, CliError> {
    let store = context.open("pool status", WhenMissing::Refuse)?;
    let recorded = store.load().await?;
    let pools: Vec<StaticPoolState> = recorded
        .iter()
        .filter(|pool| !pool.is_gone())
        .filter(|pool| arguments.pools.is_empty() || arguments.pools.contains(&pool.id))
        .map(StaticPoolState::of)
        .collect();
    for wanted in &arguments.pools {
        if !pools.iter().any(|pool| pool.pool == *wanted) {
            let known: Vec<&str> = recorded
                .iter()
                .filter(|pool| !pool.is_gone())
                .map(|pool| pool.id.as_str())
                .collect();
            return Err(CliError::usage(
                format!("no pool `{wanted}` is recorded"),
                format!("recorded are: {}", known.join(", ")),
            ));
        }
    }
    let printer = &context.printer;
    if arguments.json {
        printer.json(&serde_json::json!({ "format_version": "1.0", "pools": pools }));
    } else if pools.is_empty() {
        printer.data("No pools are recorded.\n");
    } else {
        let now = context.world.clock.now();
        let workers = render::worker_table(&pools, now, printer.look);
        printer.data(&format!("{}\n{workers}", render::status_table(&pools, printer.look)));
    }
    // A gate that nothing passed through yet is closed.
    let converged = !pools.is_empty() && pools.iter().all(StaticPoolState::is_converged);
    Ok(if arguments.check && !converged { Exit::Error } else { Exit::Done })
}
