//! Waits for jobs that have workers which are to go.
//!
//! All of them are drained when the run begins: none gets a new lease, and they end side by side. A
//! worker whose lease does not end in time stays, and the run is not complete.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::sleep;

use super::event::ApplyEventKind;
use super::{Leased, PoolOutcome, PoolRun, StepError, worker_of};
use crate::clock::Stopwatch;
use crate::lease::terms::RESPITE;
use crate::plan::{RecordedLease, Step};
use crate::state::WorkerKey;
use crate::worker::{Generation, Slot};

/// How often a lease is looked at that is waited for.
const LOOK: Duration = Duration::from_millis(100);

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

    /// Waits until no job has the worker.
    pub(super) async fn drained(
        &self,
        key: WorkerKey,
        tell: &(dyn Fn(ApplyEventKind) + Send + Sync),
    ) -> Result<(), StepError> {
        let store = &self.applier.store;
        store.drain(self.lock, vec![key]).await?;
        let since = self.draining_since.get_or_init(Stopwatch::start);
        let mut told = false;
        loop {
            let Some(lease) = store.lease_of(self.lock, key).await? else { return Ok(()) };
            let name = self.plan.worker(key.slot, key.generation);
            let over = since.elapsed() >= self.plan.drain_timeout || self.is_stopped();
            if self.applier.leased == Leased::Leave || over {
                let RecordedLease { id, holder, expires_at } = &lease;
                return Err(StepError::Held(format!(
                    "worker {name} is leased to {holder} until {expires_at:.0} (lease {id}); it gets no \
                     new lease"
                )));
            }
            if !told {
                told = true;
                tell(ApplyEventKind::Draining {
                    holder: lease.holder.clone(),
                    until: lease.expires_at,
                });
            }
            self.expire().await?;
            sleep(LOOK).await;
        }
    }

    /// Where no server is there to end leases that are over, the run does; as late as a server that was
    /// just started would.
    async fn expire(&self) -> Result<(), StepError> {
        let store = &self.applier.store;
        if !store.is_served().await? {
            store.expire_leases(store.now(), Timestamp::MIN, RESPITE).await?;
        }
        Ok(())
    }

    /// Notes a step that is not begun; one that waits for a job is told by its name.
    pub(super) async fn skip(&self, step: &Step, outcome: &mut PoolOutcome) {
        for old in step.reap.iter().chain(&step.delete).filter(|old| old.leased) {
            let key = WorkerKey { slot: step.slot, generation: old.generation };
            if let Ok(Some(lease)) = self.applier.store.lease_of(self.lock, key).await {
                let name = self.plan.worker(key.slot, key.generation);
                let RecordedLease { holder, expires_at, .. } = lease;
                let why = format!("worker {name} is leased to {holder} until {expires_at:.0}");
                outcome.failures.push((worker_of(self.plan)(step), why));
                return;
            }
        }
        outcome.skipped += 1;
    }
}
