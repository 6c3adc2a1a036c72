//! Keeps new jobs from workers that are to go, and finds out which still have one.
//!
//! All of them are drained when the run begins: none gets a new lease, and they end side by side. Nobody is
//! waited for here: whoever holds the lock on the pool would keep it from being healed meanwhile.

use std::collections::BTreeSet;

use super::event::ApplyEventKind;
use super::{Leased, PoolOutcome, PoolRun, StepError, worker_of};
use crate::plan::{RecordedLease, Step};
use crate::state::WorkerKey;
use crate::worker::{Generation, Slot, WorkerName};

impl PoolRun<'_> {
    /// Keeps new leases from every worker that is to go and that a job has; lets those be leased again
    /// that an earlier run drained and that stay after all.
    pub(super) async fn drain_all(&self) -> Result<(), StepError> {
        let key = |slot: Slot, generation: Generation| WorkerKey { slot, generation };
        let leased = |step: &Step| -> Vec<WorkerKey> {
            let old = step.reap.iter().chain(&step.delete).filter(|old| old.leased);
            old.map(|old| key(step.slot, old.generation)).collect()
        };
        let goes: Vec<WorkerKey> = self.plan.steps.iter().flat_map(leased).collect();
        let updated = self
            .plan
            .steps
            .iter()
            .filter_map(|step| step.update.as_ref().map(|old| key(step.slot, old.generation)));
        let unchanged = self.plan.unchanged.iter().map(|kept| key(kept.slot, kept.generation));
        let stays: BTreeSet<WorkerKey> = unchanged.chain(updated).collect();
        let store = &self.applier.store;
        store.stop_draining(self.lock, stays).await?;
        store.drain(self.lock, goes).await?;
        Ok(())
    }

    /// Looks whether a job still has the worker: then its step has to wait.
    pub(super) async fn drained(
        &self,
        key: WorkerKey,
        tell: &(dyn Fn(ApplyEventKind) + Send + Sync),
    ) -> Result<(), StepError> {
        let store = &self.applier.store;
        store.drain(self.lock, vec![key]).await?;
        let Some(lease) = store.lease_of(self.lock, key).await? else { return Ok(()) };
        let name = self.plan.worker(key.slot, key.generation);
        if self.applier.leased == Leased::Wait {
            let (holder, until) = (lease.holder.clone(), lease.expires_at);
            tell(ApplyEventKind::Draining { holder, until });
        }
        Err(StepError::Held(held(&name, &lease)))
    }

    /// Notes a step that is not begun; one that waits for a job is told by its name.
    pub(super) async fn skip(&self, step: &Step, outcome: &mut PoolOutcome) {
        for old in step.reap.iter().chain(&step.delete).filter(|old| old.leased) {
            let key = WorkerKey { slot: step.slot, generation: old.generation };
            if let Ok(Some(lease)) = self.applier.store.lease_of(self.lock, key).await {
                let name = self.plan.worker(key.slot, key.generation);
                outcome.held.push((worker_of(self.plan)(step), held(&name, &lease)));
                return;
            }
        }
        outcome.skipped += 1;
    }
}

fn held(name: &WorkerName, lease: &RecordedLease) -> String {
    let RecordedLease { id, holder, expires_at } = lease;
    format!(
        "worker {name} is leased to {holder} until {expires_at:.0} (lease {id}); it gets no new lease"
    )
}
