//! `pool status`: the pools as they are recorded; with `--check`, an exit code for monitors, with `--watch`, again whenever
//! they change.

use std::time::Duration;

use clap::Args;
use tokio::time::sleep;

use super::context::Context;
use super::error::CliError;
use super::exit::Exit;
use super::interrupt::Interrupt;
use crate::config::HumanDuration;
use crate::pool::StaticPoolState;
use crate::render;
use crate::state::{Store, WhenMissing};
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
    /// Look again and again, every 2s unless told otherwise, and show what changed; Ctrl-C ends it
    #[arg(
        long,
        value_name = "DURATION",
        num_args = 0..=1,
        default_missing_value = "2s",
        require_equals = true,
        conflicts_with = "check"
    )]
    watch: Option<HumanDuration>,
}

/// How often the state is looked at, at most.
const SHORTEST: Duration = Duration::from_millis(100);

impl Arguments {
    /// Whether an interrupt is the ordinary end.
    pub(super) fn handles_signals(&self) -> bool {
        self.watch.is_some()
    }
}

pub(super) async fn run(context: &Context, arguments: &Arguments) -> Result<Exit, CliError> {
    let store = context.open("pool status", WhenMissing::Refuse)?;
    if let Some(every) = arguments.watch {
        return watch(context, arguments, &store, every.get().max(SHORTEST)).await;
    }
    let pools = recorded(&store, &arguments.pools).await?;
    context.printer.data(&shown(context, arguments, &pools));
    // A gate that nothing passed through yet is closed.
    let converged = !pools.is_empty() && pools.iter().all(StaticPoolState::is_converged);
    Ok(if arguments.check && !converged { Exit::Error } else { Exit::Done })
}

/// Shows the pools whenever they change: in place on a terminal, one after another elsewhere.
async fn watch(
    context: &Context,
    arguments: &Arguments,
    store: &Store,
    every: Duration,
) -> Result<Exit, CliError> {
    let mut interrupt = Interrupt::listen()?;
    let mut last = None;
    loop {
        let pools = recorded(store, &arguments.pools).await?;
        if last.as_ref() != Some(&pools) {
            // Home, and clear what is below: what was there before stays in the scrollback.
            let begin = match (context.world.stdout_is_terminal && !arguments.json, &last) {
                (true, _) => "\x1b[H\x1b[J",
                (false, Some(_)) if !arguments.json => "\n",
                (false, _) => "",
            };
            context.printer.data(&format!("{begin}{}", shown(context, arguments, &pools)));
            last = Some(pools);
        }
        tokio::select! {
            () = sleep(every) => {}
            () = interrupt.asked() => return Ok(Exit::Interrupted),
        }
    }
}

/// Reads the pools that are asked for.
async fn recorded(store: &Store, asked: &[PoolId]) -> Result<Vec<StaticPoolState>, CliError> {
    let recorded = store.load().await?;
    let alive = || recorded.iter().filter(|pool| !pool.is_gone());
    for wanted in asked {
        if !alive().any(|pool| pool.id == *wanted) {
            let known: Vec<&str> = alive().map(|pool| pool.id.as_str()).collect();
            let hint = match known.join(", ") {
                none if none.is_empty() => {
                    "nothing is recorded yet; `pool apply` does so".to_owned()
                }
                names => format!("recorded are: {names}"),
            };
            return Err(CliError::usage(format!("no pool `{wanted}` is recorded"), hint));
        }
    }
    let wanted = alive().filter(|pool| asked.is_empty() || asked.contains(&pool.id));
    Ok(wanted.map(StaticPoolState::of).collect())
}

fn shown(context: &Context, arguments: &Arguments, pools: &[StaticPoolState]) -> String {
    let look = context.printer.look;
    if arguments.json {
        let document = serde_json::json!({ "format_version": "1.0", "pools": pools });
        // While it is watched, each line is a document.
        return if arguments.watch.is_some() {
            format!("{document}\n")
        } else {
            format!("{document:#}\n")
        };
    }
    if pools.is_empty() {
        return "No pools are recorded.\n".to_owned();
    }
    let workers = render::worker_table(pools, context.world.clock.now(), look);
    format!("{}\n{workers}", render::status_table(pools, look))
}
