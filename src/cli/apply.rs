//! `pool apply` and `pool destroy`: lock, look, plan, ask, carry out.
//!
//! A plan file is approved already and is refused when a pool that it touches has moved. Otherwise the
//! plan is made under the locks, so that what was approved is what is carried out.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;

use clap::Args;

use super::approved;
use super::args::{ApplyingArgs, PlanningArgs};
use super::context::Context;
use super::error::CliError;
use super::exit::Exit;
use super::plan::{check_addresses, load, options, tell_gone};
use super::plan_file;
use super::progress::Display;
use crate::apply::PoolOutcome;
use crate::plan::{self, Plan, PlanMode, Summary};
use crate::pool::{Hold, Reconciler};
use crate::render;
use crate::state::{StateError, WhenMissing};
use crate::worker::PoolId;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Files, folders of *.yaml, *.yml and *.json, - for standard input, or one saved plan
    #[arg(value_name = "CONFIG|PLANFILE")]
    paths: Vec<PathBuf>,
    #[command(flatten)]
    planning: PlanningArgs,
    #[command(flatten)]
    applying: ApplyingArgs,
    /// Delete the files' pools, or all recorded ones
    #[arg(long)]
    destroy: bool,
}

#[derive(Debug, Args)]
pub(super) struct DestroyArguments {
    /// Files whose pools are deleted; without any, all recorded pools are
    #[arg(value_name = "CONFIG")]
    paths: Vec<PathBuf>,
    #[command(flatten)]
    planning: PlanningArgs,
    #[command(flatten)]
    applying: ApplyingArgs,
}

impl Arguments {
    pub(super) fn wants_json(&self) -> bool {
        self.applying.json
    }
}

impl DestroyArguments {
    pub(super) fn wants_json(&self) -> bool {
        self.applying.json
    }
}

pub(super) async fn run(context: &Context, arguments: &Arguments) -> Result<Exit, CliError> {
    if let [path] = arguments.paths.as_slice()
        && let Some(plan) = plan_file::read(path)?
    {
        return saved(context, plan, arguments).await;
    }
    let mode = if arguments.destroy { PlanMode::Destroy } else { PlanMode::Converge };
    fresh(context, &arguments.paths, mode, &arguments.planning, &arguments.applying).await
}

pub(super) async fn destroy(
    context: &Context,
    arguments: &DestroyArguments,
) -> Result<Exit, CliError> {
    let DestroyArguments { paths, planning, applying } = arguments;
    fresh(context, paths, PlanMode::Destroy, planning, applying).await
}

/// Plans and applies in one go.
async fn fresh(
    context: &Context,
    paths: &[PathBuf],
    mode: PlanMode,
    planning: &PlanningArgs,
    applying: &ApplyingArgs,
) -> Result<Exit, CliError> {
    let loaded = load(context, paths, mode).await?;
    let pools = &loaded.pools;
    // Where there is no state there is nothing to destroy, and no reason to make one.
    let (what, when_missing) = match mode {
        PlanMode::Destroy => ("pool destroy", WhenMissing::Pretend),
        PlanMode::Converge => ("pool apply", WhenMissing::Create),
    };
    let store = context.open(what, when_missing)?;
    let options = options(planning, mode, paths, pools);
    let mut concerned = store.pool_ids().await?;
    concerned.extend(pools.iter().map(|pool| pool.config.pool_id.clone()));
    let narrowed: BTreeSet<PoolId> = concerned
        .into_iter()
        .filter(|pool| options.only_pools.as_ref().is_none_or(|only| only.contains(pool)))
        .filter(|pool| {
            options.targets.is_empty() || options.targets.iter().any(|t| t.pool == *pool)
        })
        .collect();
    let hold = context.lock(&store, &narrowed, applying.lock_timeout.get()).await?;
    let run = async {
        let reconciler = context.reconciler(store.clone(), pools, applying.parallelism).await;
        let reconciler = reconciler.map_err(|error| error.shown_in(&loaded))?;
        let desired = reconciler.desired(pools);
        let planned = reconciler.plan_settled(&desired, &options, planning.refresh).await;
        let mut planned = planned.map_err(|error| CliError::from(error).shown_in(&loaded))?;
        check_addresses(&options, pools, &planned.recorded)?;
        // A pool of which nothing is recorded can still have workers that bear our tag.
        let strays: BTreeSet<PoolId> = planned
            .plan
            .pools
            .iter()
            .map(|pool| pool.pool.clone())
            .filter(|pool| !hold.locks().contains_key(pool))
            .collect();
        if !strays.is_empty() {
            hold.add(&strays).await?;
            planned = reconciler.plan_settled(&desired, &options, planning.refresh).await?;
        }
        tell_gone(context, &planned);
        show(context, &planned.plan, applying.json);
        if !planned.plan.refusals.is_empty() {
            return Err(CliError::Refused(planned.plan.refusals));
        }
        if let Some(expected) = &applying.expect_digest {
            approved::verify(context, &planned.plan, expected)?;
        }
        if planned.plan.is_empty() {
            return Ok(undecided(context, &planned.plan));
        }
        if !applying.auto_approve && applying.expect_digest.is_none() {
            approve(context, mode).await?;
        }
        let exit = carry_out(context, &reconciler, &planned.plan, &hold, applying.json).await?;
        Ok(if exit == Exit::Done { undecided(context, &planned.plan) } else { exit })
    };
    let outcome = run.await;
    hold.give_back().await;
    outcome
}

/// A worker whose fate is open is not success.
fn undecided(context: &Context, plan: &Plan) -> Exit {
    let open: Vec<String> = plan
        .pools
        .iter()
        .flat_map(|pool| &pool.waiting)
        .map(|waiting| waiting.worker.to_string())
        .collect();
    if open.is_empty() {
        return Exit::Done;
    }
    let names = open.join(", ");
    context.printer.error(&format!(
        "what became of interrupted creates is not known yet: {names}; run again\n"
    ));
    Exit::Partial
}

/// Applies a saved plan.
async fn saved(context: &Context, plan: Plan, arguments: &Arguments) -> Result<Exit, CliError> {
    let planning = &arguments.planning;
    let changes_it = !planning.target.is_empty()
        || !planning.replace.is_empty()
        || !planning.override_guard.is_empty()
        || planning.allow_empty
        || !planning.refresh
        || arguments.destroy;
    if changes_it {
        return Err(CliError::usage(
            "a saved plan is carried out as it is",
            "leave the planning flags out, or make a new plan with them",
        ));
    }
    let applying = &arguments.applying;
    let store = context.open("pool apply", WhenMissing::Create)?;
    if plan.deployment.as_ref().is_some_and(|made_for| made_for != store.deployment()) {
        return Err(CliError::Stale("the plan was made for another state".to_owned()));
    }
    let touched: BTreeSet<PoolId> =
        plan.pools.iter().filter(|pool| !pool.is_empty()).map(|pool| pool.pool.clone()).collect();
    let hold = context.lock(&store, &touched, applying.lock_timeout.get()).await?;
    let run = async {
        for pool in plan.pools.iter().filter(|pool| touched.contains(&pool.pool)) {
            store.verify_serial(&hold.locks()[&pool.pool], pool.serial).await?;
        }
        let mut refusals = plan.refusals.clone();
        refusals.extend(plan::pool_refusals(&plan, &store.load().await?));
        if !refusals.is_empty() {
            return Err(CliError::Refused(refusals));
        }
        let mut reconciler = context.reconciler(store.clone(), &[], applying.parallelism).await?;
        context.add_providers(&mut reconciler, &plan).await?;
        show(context, &plan, applying.json);
        if let Some(expected) = &applying.expect_digest {
            approved::verify(context, &plan, expected)?;
        }
        if plan.is_empty() {
            return Ok(Exit::Done);
        }
        carry_out(context, &reconciler, &plan, &hold, applying.json).await
    };
    let outcome = run.await;
    hold.give_back().await;
    outcome
}

fn show(context: &Context, plan: &Plan, json: bool) {
    let printer = &context.printer;
    if json {
        for line in render::plan_events(plan, context.world.clock.now()) {
            printer.json_line(&line);
        }
    } else {
        printer.data(&render::plan_text(plan, printer.look));
    }
}

/// Asks on a terminal; anywhere else there is nobody to ask.
async fn approve(context: &Context, mode: PlanMode) -> Result<(), CliError> {
    if !context.world.stdin_is_terminal {
        return Err(CliError::usage(
            "nobody can approve this plan: standard input is not a terminal",
            "give --auto-approve, or save a plan with `pool plan --out FILE` and apply that",
        ));
    }
    let what = if mode == PlanMode::Destroy { "delete all this" } else { "carry this out" };
    let question = format!("\nDo you want to {what}? Only `yes` will be accepted.\n> ");
    context.printer.error(&question);
    // On a thread of its own, so that Ctrl-C still ends the run.
    let answer = tokio::task::spawn_blocking(|| {
        let mut answer = String::new();
        io::stdin().read_line(&mut answer).map(|_| answer)
    });
    if matches!(answer.await, Ok(Ok(answer)) if answer.trim_end_matches(['\r', '\n']) == "yes") {
        Ok(())
    } else {
        Err(CliError::usage(
            "not approved; nothing was changed",
            "only the whole word `yes` approves; --auto-approve does so beforehand",
        ))
    }
}

async fn carry_out(
    context: &Context,
    reconciler: &Reconciler,
    plan: &Plan,
    hold: &Hold,
    json: bool,
) -> Result<Exit, CliError> {
    let (display, observer) = Display::start(context, plan, json);
    let outcomes = reconciler.apply_in_rounds(plan, hold, observer).await;
    display.finish().await;
    Ok(report(context, &outcomes?, plan.mode, json))
}

/// Says what came of it.
fn report(context: &Context, outcomes: &[PoolOutcome], mode: PlanMode, json: bool) -> Exit {
    let printer = &context.printer;
    let done: Summary = outcomes.iter().map(|outcome| outcome.done).sum();
    let complete = outcomes.iter().all(PoolOutcome::is_complete);
    if json {
        printer.json_line(&render::apply_summary_json(
            done,
            complete,
            mode,
            context.world.clock.now(),
        ));
    } else {
        printer.data(&format!(
            "\n{}\n",
            printer.look.strong(&render::apply_summary_text(done, complete, mode))
        ));
    }
    if complete {
        return Exit::Done;
    }
    let failed: usize =
        outcomes.iter().map(|outcome| outcome.failures.len() + outcome.held.len()).sum();
    for unsure in outcomes.iter().filter_map(|outcome| outcome.unsure.as_ref()) {
        printer.error(&format!("{} {unsure}\n", printer.error_look.removed("error:")));
    }
    let skipped: u32 = outcomes.iter().map(|outcome| outcome.skipped).sum();
    let mut text = String::new();
    for outcome in outcomes {
        for (worker, why) in outcome.failures.iter().chain(&outcome.held) {
            let head = printer.error_look.removed("error:");
            let name = worker.to_string();
            let told = why.contains(&name) || why.starts_with("worker ");
            let who = if told { String::new() } else { format!("{name}: ") };
            text.push_str(&format!("{head} {who}{why}\n"));
        }
    }
    let stopped = outcomes.iter().find_map(|outcome| outcome.stopped_by.clone());
    if let Some(error) = stopped.as_ref().filter(|error| !text.contains(&error.to_string())) {
        text.push_str(&format!("{} {error}\n", printer.error_look.removed("error:")));
    }
    if let Some(hint) = stopped.as_ref().and_then(StateError::hint) {
        text.push_str(&format!("{} {hint}\n", printer.error_look.strong("hint:")));
    }
    let rest = if skipped > 0 { format!(", {skipped} not begun") } else { String::new() };
    let is_overtaken = matches!(stopped, Some(StateError::Overtaken { .. }));
    let again = if is_overtaken { "" } else { "; run again to go on from here" };
    text.push_str(&format!("{failed} failed{rest}{again}\n"));
    printer.error(&text);
    // Nothing was begun under a plan that no longer holds: that is stale, not partly applied.
    let nothing_begun = done == Summary::default() && failed == 0;
    match stopped {
        Some(StateError::Moved { .. }) if nothing_begun => Exit::Stale,
        Some(_) | None => Exit::Partial,
    }
}
