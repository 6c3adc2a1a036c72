//! Decides what is refused: a reconciler deletes, and a mistake in a file must not delete a fleet.
//!
//! The same rules are evaluated for a plan that is made and, with what is recorded then, for a plan
//! file that is applied.

use std::collections::BTreeMap;

use super::input::{PlanInput, PlanMode, RecordedPool};
use super::types::{Action, Plan, PoolPlan, Refusal};
use crate::config::StaticPoolConfig;
use crate::worker::PoolId;

/// Returns why a plan that is being made must not be applied.
pub(super) fn refusals(plan: &Plan, input: &PlanInput<'_>) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    let nothing_desired = input.desired.is_empty() && input.options.mode == PlanMode::Converge;
    if nothing_desired && !plan.is_empty() && !input.options.allow_empty {
        refusals.push(Refusal::Empty);
    }
    refusals.extend(pool_refusals(plan, input.recorded));
    refusals
}

/// Returns why `plan` must not be applied to what is recorded now.
pub fn pool_refusals(plan: &Plan, recorded: &[RecordedPool]) -> Vec<Refusal> {
    let recorded: BTreeMap<&PoolId, &RecordedPool> =
        recorded.iter().map(|pool| (&pool.id, pool)).collect();
    let mut refusals = Vec::new();
    for pool in &plan.pools {
        let recorded = recorded.get(&pool.pool).copied();
        if is_protected(pool, recorded) && deletes_the_pool(pool) {
            refusals.push(Refusal::Protect { pool: pool.pool.clone() });
        }
        if !plan.overridden_guards.contains("max_destroy") {
            refusals.extend(too_many(pool, recorded));
        }
    }
    refusals
}

/// Protected as is recorded or as the files say: taking the protection off is a change of its own.
fn is_protected(pool: &PoolPlan, recorded: Option<&RecordedPool>) -> bool {
    configs(pool, recorded).any(|config| config.protect)
}

fn configs<'a>(
    pool: &'a PoolPlan,
    recorded: Option<&'a RecordedPool>,
) -> impl Iterator<Item = &'a StaticPoolConfig> {
    let applied = recorded.and_then(|recorded| recorded.applied.as_ref());
    applied.map(|applied| &applied.config).into_iter().chain(pool.config.as_ref())
}

/// Shrinking a pool to nothing is deleting it by another name.
fn deletes_the_pool(pool: &PoolPlan) -> bool {
    let size = pool.config.as_ref().map_or(0, |config| config.fixed_size);
    let deletes = pool
        .steps
        .iter()
        .any(|step| step.action == Action::Delete && !step.reason.is_left_behind());
    size == 0 && (deletes || pool.config.is_none())
}

fn too_many(pool: &PoolPlan, recorded: Option<&RecordedPool>) -> Option<Refusal> {
    let recorded = recorded?;
    let workers = u32::try_from(recorded.workers.len()).unwrap_or(u32::MAX);
    // The stricter of what is recorded and what the files say: lifting a guard is a change of its own.
    let limit = configs(pool, Some(recorded))
        .filter_map(|config| config.guards.max_destroy)
        .map(|limit| limit.of_rounded_down(workers))
        .min()?;
    let planned = pool
        .steps
        .iter()
        .filter(|step| step.action == Action::Delete && !step.reason.is_left_behind())
        .map(|step| step.summary().destroy)
        .sum();
    (planned > limit).then(|| Refusal::MaxDestroy { pool: pool.pool.clone(), planned, limit })
}
