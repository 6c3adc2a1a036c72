//! Decides what to do: a pure, total, synchronous function from three pasts to a plan.
//!
//! | input                | says                                             | filled by |
//! |----------------------|--------------------------------------------------|-----------|
//! | [`DesiredPool`]      | what the files ask for                            | `desired` |
//! | [`RecordedPool`]     | what our state says we did                         | `state`   |
//! | [`Observation`]      | what a provider reports now                        | `pool`    |
//!
//! The output leaves no choice to `apply`: who, what, why, in which wave, in which order. What could not
//! be decided yet is in [`PoolPlan::waiting`], what must not be done in [`Plan::refusals`].
//!
//! | module      | decides                                                       |
//! |-------------|---------------------------------------------------------------|
//! | [`compare`] | which differences there are, and what each means for a worker   |
//! | [`judge`]   | what state of life a recorded worker is in                       |
//! | `slot`      | what to do in one slot                                           |
//! | `order`     | which slots a pool keeps, and the waves                           |
//! | `guard`     | what is refused                                                  |
//! | [`remedy`]  | what of a plan a server may do by itself                         |
//! | `effects`   | what of a plan is approved in a review                           |
//! | [`check`]   | whether a finished plan keeps its own promises                   |
//!
//! Reads no clock, no database and no network, and formats nothing.

pub mod check;
pub mod compare;
mod effects;
mod guard;
mod input;
pub mod judge;
mod order;
pub mod remedy;
mod slot;
#[cfg(test)]
mod tests;
mod types;

pub use effects::{Difference, Effects};
pub use guard::pool_refusals;
pub use input::{
    AppliedConfig, Failure, Listed, Observation, OpenOperation, OperationKind, OperationState,
    PlanInput, PlanMode, PlanOptions, RecordedLease, RecordedPool, RecordedSpec, RecordedWorker,
    Standing,
};
pub use types::{
    Action, Budget, Drift, FieldChange, KeptWorker, NewWorker, NewWorkerOrigin, OldWorker, Plan,
    PoolPlan, Reason, Refusal, ReplaceOrder, Step, Summary, Waiting,
};

use std::collections::{BTreeMap, BTreeSet};

use crate::desired::DesiredPool;
use crate::worker::PoolId;

/// Makes the plan.
pub fn plan(input: &PlanInput<'_>) -> Plan {
    let desired: BTreeMap<&PoolId, &DesiredPool> =
        input.desired.iter().map(|pool| (&pool.id, pool)).collect();
    let recorded: BTreeMap<&PoolId, &RecordedPool> =
        input.recorded.iter().map(|pool| (&pool.id, pool)).collect();
    // A pool that is gone stays recorded for the generations of its slots, and needs no plan.
    let alive = recorded.iter().filter(|(_, pool)| !pool.is_gone()).map(|(id, _)| id);
    let observed = input.observed_by_pool();
    let ids: BTreeSet<&PoolId> =
        desired.keys().chain(alive).chain(observed.keys()).copied().collect();
    let mut pools = Vec::new();
    for id in ids.into_iter().filter(|id| input.is_in_scope(id)) {
        let empty = BTreeMap::new();
        let pool = order::PoolInput {
            id,
            desired: desired.get(id).copied().filter(|_| input.options.mode == PlanMode::Converge),
            recorded: recorded.get(id).copied(),
            observed: observed.get(id).unwrap_or(&empty),
            input,
        };
        pools.push(order::plan_pool(&pool));
    }
    let complete = input.observed.values().all(Observation::is_complete);
    let mut plan = Plan {
        format_version: types::FORMAT_VERSION.to_owned(),
        deployment: input.deployment.cloned(),
        created_at: input.now,
        mode: input.options.mode,
        observed: input.observed.values().all(Observation::was_asked),
        complete: complete && pools.iter().all(|pool| pool.waiting.is_empty()),
        pools,
        overridden_guards: input.options.override_guards.clone(),
        refusals: Vec::new(),
    };
    plan.refusals = guard::refusals(&plan, input);
    plan
}
