//! Verifies that a finished plan keeps its own promises, before anything of it is applied.
//!
//! A second opinion, written against the plan alone: it shares no code with what made the plan. A
//! plan that breaks one of these is a bug of ours (or an edited plan file), and is refused whole.

use std::collections::BTreeSet;

use super::types::{Action, NewWorkerOrigin, Plan, PoolPlan, ReplaceOrder, Step};
use crate::worker::{Generation, Slot};

/// A promise that a plan breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("pool {pool}: {what}")]
pub struct BrokenPromise {
    /// The pool.
    pub pool: String,
    /// What is wrong.
    pub what: String,
}

/// Returns every promise that `plan` breaks.
pub fn check(plan: &Plan) -> Vec<BrokenPromise> {
    let mut broken = Vec::new();
    for pool in &plan.pools {
        let complain = |what: String| BrokenPromise { pool: pool.pool.to_string(), what };
        broken.extend(check_steps(pool).into_iter().map(complain));
        broken.extend(check_waves(pool).into_iter().map(complain));
    }
    broken
}

/// Each step is complete in itself, and no worker comes or goes twice.
fn check_steps(pool: &PoolPlan) -> Vec<String> {
    let mut broken = Vec::new();
    let mut coming: BTreeSet<Slot> = BTreeSet::new();
    let mut going: BTreeSet<(Slot, Generation, Option<&str>)> = BTreeSet::new();
    for step in &pool.steps {
        let slot = step.slot;
        let shape = (step.create.is_some(), step.update.is_some(), !step.delete.is_empty());
        let fits = match step.action {
            Action::Create => shape.0 && !shape.1,
            Action::Update => shape == (false, true, false),
            Action::Replace(_) => shape == (true, false, true),
            Action::Delete => shape == (false, false, true),
            Action::Adopt => shape.0 && !shape.1,
        };
        if !fits {
            broken.push(format!("slot {slot}: the step's workers do not fit its action"));
        }
        if step.create.is_some() && !coming.insert(slot) {
            broken.push(format!("slot {slot}: two workers would come"));
        }
        for old in step.reap.iter().chain(&step.delete) {
            let id = old.provider_id.as_deref();
            if !going.insert((slot, old.generation, id)) {
                broken.push(format!("slot {slot}: generation {} would go twice", old.generation));
            }
            if old.leased && !old.recorded {
                broken.push(format!("slot {slot}: a leased worker could not be drained"));
            }
            let newer = step.create.as_ref().is_some_and(|new| new.generation <= old.generation);
            let fresh = step.create.as_ref().is_some_and(|n| n.origin == NewWorkerOrigin::Fresh);
            if newer && fresh && old.recorded {
                broken.push(format!("slot {slot}: the new worker's generation is not new"));
            }
        }
        if step.create.is_some() && pool.config.is_none() {
            broken.push(format!("slot {slot}: a worker would come to a pool that goes"));
        }
    }
    broken
}

/// Waves are in order, and no batch of a rolling replacement is larger than the pool allows.
fn check_waves(pool: &PoolPlan) -> Vec<String> {
    let mut broken = Vec::new();
    if !pool.steps.is_sorted_by_key(|step| step.wave) {
        broken.push("the steps are not in order of wave".to_owned());
    }
    let Some(config) = &pool.config else { return broken };
    let surge = config.update.max_surge.of_rounded_up(config.fixed_size);
    let unavailable = config.update.max_unavailable.of_rounded_down(config.fixed_size).max(1);
    let waves: BTreeSet<u32> = pool.steps.iter().filter(|s| s.gates).map(|s| s.wave).collect();
    for wave in waves {
        let count = |order: ReplaceOrder| {
            let of_order =
                |step: &&Step| step.wave == wave && step.action == Action::Replace(order);
            u32::try_from(pool.steps.iter().filter(of_order).count()).unwrap_or(u32::MAX)
        };
        let resumed = |step: &&Step| {
            step.wave == wave
                && step.create.as_ref().is_some_and(|new| new.origin != NewWorkerOrigin::Fresh)
        };
        let resumed = u32::try_from(pool.steps.iter().filter(resumed).count()).unwrap_or(u32::MAX);
        if count(ReplaceOrder::CreateFirst) > surge.saturating_add(resumed) {
            broken.push(format!("wave {wave} creates more workers at once than max_surge"));
        }
        if count(ReplaceOrder::DestroyFirst) > unavailable {
            broken
                .push(format!("wave {wave} takes away more workers at once than max_unavailable"));
        }
    }
    broken
}
