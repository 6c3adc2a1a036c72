//! `pool plan`: show what apply would do. Takes no lock and records nothing; what the plan comes to is remembered beside the
//! state, for `apply --expect-digest`.

use std::collections::BTreeSet;
use std::path::PathBuf;

use clap::Args;

use super::approved;
use super::args::PlanningArgs;
use super::context::Context;
use super::error::CliError;
use super::exit::Exit;
use super::formats::{self, Wanted};
use super::plan_file;
use super::plan_formats::{self, PlanFormat};
use crate::config::{Loaded, LoadedPool};
use crate::plan::{PlanMode, PlanOptions, RecordedPool};
use crate::pool::Planned;
use crate::state::WhenMissing;
use crate::worker::{Address, PoolId};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Files, folders of *.yaml, *.yml and *.json, or - for standard input
    #[arg(value_name = "CONFIG")]
    paths: Vec<PathBuf>,
    #[command(flatten)]
    planning: PlanningArgs,
    /// Plan to delete the files' pools, or all recorded ones
    #[arg(long)]
    destroy: bool,
    /// Write the plan to a file for `pool apply FILE`
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Exit with 2 when there are changes
    #[arg(long)]
    detailed_exitcode: bool,
    /// Print one document with Terraform's plan JSON: the same as --format json
    #[arg(long)]
    json: bool,
    /// How to show the plan: text, json, markdown or github; with =FILE into a file beside the text; may be repeated
    #[arg(long, value_name = "FORMAT[=FILE]", value_parser = formats::wanted::<PlanFormat>, add = formats::completer::<PlanFormat>())]
    format: Vec<Wanted<PlanFormat>>,
}

pub(super) async fn run(context: &Context, arguments: &Arguments) -> Result<Exit, CliError> {
    let json = (PlanFormat::Json, arguments.json);
    let wanted = formats::settled(&arguments.format, json, PlanFormat::Text)?;
    let mode = if arguments.destroy { PlanMode::Destroy } else { PlanMode::Converge };
    let loaded = load(context, &arguments.paths, mode).await?;
    let pools = &loaded.pools;
    let store = context.open("pool plan", WhenMissing::Pretend)?;
    let reconciler = context.reconciler(store, pools, 1).await;
    let reconciler = reconciler.map_err(|error| error.shown_in(&loaded))?;
    let desired = reconciler.desired(pools);
    let options = options(&arguments.planning, mode, &arguments.paths, pools);
    let planned = reconciler.plan(&desired, &options, arguments.planning.refresh).await;
    let planned = planned.map_err(|error| CliError::from(error).shown_in(&loaded))?;
    check_addresses(&options, pools, &planned.recorded)?;
    tell_gone(context, &planned);
    let plan = planned.plan;
    approved::remember(context, &approved::effects(&plan));
    plan_formats::show(context, &plan, &wanted)?;
    let printer = &context.printer;
    if !plan.refusals.is_empty() {
        return Err(CliError::Refused(plan.refusals));
    }
    if let Some(file) = &arguments.out {
        plan_file::write(file, &plan)?;
        printer.note(&format!("The plan is in {0}; apply it with: pool apply {0}", file.display()));
    }
    let settled = plan.is_empty() && plan.pools.iter().all(|pool| pool.waiting.is_empty());
    Ok(if arguments.detailed_exitcode && !settled { Exit::Changes } else { Exit::Done })
}

/// Loads the files. Without any, only destroying everything that is recorded makes sense.
pub(super) async fn load(
    context: &Context,
    paths: &[PathBuf],
    mode: PlanMode,
) -> Result<Loaded, CliError> {
    if paths.is_empty() && mode == PlanMode::Converge {
        return Err(CliError::usage(
            "no config is given",
            "name files or folders, or - for standard input, such as: pools.yaml",
        ));
    }
    context.load(paths).await
}

pub(super) fn options(
    planning: &PlanningArgs,
    mode: PlanMode,
    paths: &[PathBuf],
    pools: &[LoadedPool],
) -> PlanOptions {
    let only: BTreeSet<PoolId> = pools.iter().map(|pool| pool.config.pool_id.clone()).collect();
    PlanOptions {
        mode,
        only_pools: (mode == PlanMode::Destroy && !paths.is_empty()).then_some(only),
        targets: planning.target.clone(),
        replace: planning.replace.clone(),
        allow_empty: planning.allow_empty,
        override_guards: planning.override_guard.iter().cloned().collect(),
    }
}

/// An address that names nothing must not silently narrow a run to nothing.
pub(super) fn check_addresses(
    options: &PlanOptions,
    pools: &[LoadedPool],
    recorded: &[RecordedPool],
) -> Result<(), CliError> {
    for address in &options.replace {
        let targets = &options.targets;
        let covered = |slot| targets.iter().any(|target| target.covers(&address.pool, slot));
        let narrowed_away = match address.slot {
            Some(slot) => !targets.is_empty() && !covered(slot),
            None => !targets.is_empty() && !targets.iter().any(|t| t.pool == address.pool),
        };
        if options.mode == PlanMode::Destroy || narrowed_away {
            return Err(CliError::usage(
                format!("--replace {address} would do nothing in this run"),
                "leave it out, or leave --target or --destroy out",
            ));
        }
    }
    for address in options.targets.iter().chain(&options.replace) {
        let desired = pools.iter().find(|pool| pool.config.pool_id == address.pool);
        let known = recorded.iter().find(|pool| pool.id == address.pool && !pool.is_gone());
        let slot_exists = |slot| {
            desired.is_some_and(|pool| slot < crate::worker::Slot(pool.config.fixed_size))
                || known.is_some_and(|pool| pool.workers.iter().any(|worker| worker.slot == slot))
        };
        let Address { slot, .. } = address;
        if desired.is_none() && known.is_none() || !slot.is_none_or(slot_exists) {
            let of_files = pools.iter().map(|pool| &pool.config.pool_id);
            let of_state = recorded.iter().filter(|pool| !pool.is_gone()).map(|pool| &pool.id);
            let ids: BTreeSet<&PoolId> = of_files.chain(of_state).collect();
            let names: Vec<&str> = ids.into_iter().map(PoolId::as_str).collect();
            return Err(CliError::usage(
                format!("the address {address} names nothing"),
                format!("the pools are: {}", names.join(", ")),
            ));
        }
    }
    Ok(())
}

/// Says which providers were not looked at although workers came from them once.
pub(super) fn tell_gone(context: &Context, planned: &Planned) {
    for (name, why) in &planned.gone {
        let what = "has no workers any more and was not looked at";
        context.printer.note(&format!("the provider {name} {what}: {why}"));
    }
}
