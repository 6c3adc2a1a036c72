//! Leases against a model: whatever is done in whatever order, no worker is leased twice, fences only
//! grow, ended leases stay ended, and what is refused changes nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use pool::clock::Clock;
use pool::lease::{Ask, Ending, LeaseId, Outcome};
use pool::state::{Granted, LeaseFilter, Mark, NoProbes, Renewed, Store};
use pool::worker::{Generation, Slot, WorkerName};
use pool_sim::Settings;
use proptest::prelude::*;

use crate::support::{GoodCommits, World};

const SIZE: u32 = 4;

#[derive(Debug, Clone)]
enum Step {
    Acquire { count: u32, ttl: u64 },
    Renew { which: usize, ttl: u64, fence: bool },
    Release { which: usize, outcome: Outcome },
    Abandon { which: usize },
    Wait { seconds: i64 },
    Cordon { slot: u32 },
    Uncordon { slot: u32 },
}

fn step() -> impl Strategy<Value = Step> {
    let outcome = prop_oneof![Just(Outcome::Ok), Just(Outcome::JobFailed)];
    prop_oneof![
        4 => (1..4u32, 1..100u64).prop_map(|(count, ttl)| Step::Acquire { count, ttl }),
        2 => (0..8usize, 1..100u64, prop::bool::weighted(0.8))
            .prop_map(|(which, ttl, fence)| Step::Renew { which, ttl, fence }),
        3 => (0..8usize, outcome).prop_map(|(which, outcome)| Step::Release { which, outcome }),
        1 => (0..8usize).prop_map(|which| Step::Abandon { which }),
        2 => (1..60i64).prop_map(|seconds| Step::Wait { seconds }),
        1 => (0..SIZE).prop_map(|slot| Step::Cordon { slot }),
        1 => (0..SIZE).prop_map(|slot| Step::Uncordon { slot }),
    ]
}

/// What the model knows of a lease.
#[derive(Debug, Clone)]
struct Known {
    id: LeaseId,
    slot: u32,
    expires_at: Timestamp,
    open: bool,
}

struct Model {
    store: Store,
    now: Arc<AtomicI64>,
    leases: Vec<Known>,
    cordoned: BTreeMap<u32, bool>,
}

impl Model {
    fn open(&self) -> impl Iterator<Item = &Known> {
        self.leases.iter().filter(|known| known.open)
    }

    fn free(&self) -> u32 {
        let taken: Vec<u32> = self.open().map(|known| known.slot).collect();
        let free = (0..SIZE).filter(|slot| !taken.contains(slot) && !self.cordoned[slot]);
        u32::try_from(free.count()).unwrap()
    }

    fn time(&self) -> Timestamp {
        Timestamp::from_millisecond(self.now.load(Ordering::SeqCst)).unwrap()
    }

    async fn take(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match *step {
            Step::Acquire { count, ttl } => self.acquire(count, ttl).await?,
            Step::Renew { which, ttl, fence } => self.renew(which, ttl, fence).await?,
            Step::Release { which, outcome } => {
                self.end(which, Ending::Released(outcome)).await?;
            }
            Step::Abandon { which } => self.end(which, Ending::Abandoned).await?,
            Step::Wait { seconds } => self.wait(seconds).await?,
            Step::Cordon { slot } | Step::Uncordon { slot } => {
                let cordon = matches!(step, Step::Cordon { .. });
                let mark = if cordon { Mark::Cordon } else { Mark::Uncordon };
                let name = WorkerName::new("ci".parse().unwrap(), Slot(slot), Generation(1));
                prop_assert!(self.store.mark(&name, mark, "test").await.unwrap());
                self.cordoned.insert(slot, cordon);
            }
        }
        // The record and the model agree on who has what.
        let open = self.store.leases(LeaseFilter::default()).await.unwrap();
        let told: Vec<(LeaseId, u32)> = open.iter().map(|l| (l.id, l.name.slot.0)).collect();
        let known: Vec<(LeaseId, u32)> = self.open().map(|known| (known.id, known.slot)).collect();
        prop_assert_eq!(told, known);
        let mut slots: Vec<u32> = self.open().map(|known| known.slot).collect();
        slots.sort_unstable();
        slots.dedup();
        prop_assert_eq!(slots.len(), self.open().count(), "a worker is leased twice");
        Ok(())
    }

    async fn acquire(&mut self, count: u32, ttl: u64) -> Result<(), TestCaseError> {
        let ttl = Duration::from_secs(ttl);
        let ask = Ask { count, ttl: Some(ttl), ..Ask::of_pool("ci".parse().unwrap(), "me") };
        let vouch = Arc::new(NoProbes);
        let mut answers = self.store.grant(vec![Arc::new(ask)], vouch, |a| a).await.unwrap();
        match answers.pop().unwrap() {
            Granted::Leases(leases) => {
                prop_assert!(count <= self.free(), "more were given than are free");
                prop_assert_eq!(leases.len(), count as usize);
                for lease in leases {
                    let slot = lease.name.slot.0;
                    prop_assert!(!self.cordoned[&slot], "a cordoned worker was given");
                    let highest = self.leases.iter().map(|known| known.id.number).max();
                    prop_assert!(highest.is_none_or(|highest| lease.id.number > highest));
                    prop_assert!(
                        lease.expires_at >= self.time() + SignedDuration::try_from(ttl).unwrap()
                    );
                    let expires_at = lease.expires_at;
                    self.leases.push(Known { id: lease.id, slot, expires_at, open: true });
                }
            }
            Granted::NoneFree(stale) => {
                prop_assert!(count > self.free(), "{count} are free and were not given");
                prop_assert!(stale.is_empty(), "everybody is vouched for");
            }
            other => prop_assert!(false, "{other:?}"),
        }
        Ok(())
    }

    async fn renew(&mut self, which: usize, ttl: u64, fence: bool) -> Result<(), TestCaseError> {
        let Some(known) = self.leases.get(which).cloned() else { return Ok(()) };
        let number = known.id.number + i64::from(!fence);
        let ttl = Duration::from_secs(ttl);
        let renewed = self.store.renew(known.id, number, Some(ttl)).await.unwrap();
        match renewed {
            Renewed::Lease(lease) => {
                prop_assert!(known.open && fence);
                prop_assert!(lease.expires_at >= known.expires_at, "it got shorter");
                self.leases[which].expires_at = lease.expires_at;
            }
            Renewed::Gone(_) => prop_assert!(!known.open),
            Renewed::WrongFence => prop_assert!(known.open && !fence),
            other => prop_assert!(false, "{other:?}"),
        }
        Ok(())
    }

    async fn end(&mut self, which: usize, ending: Ending) -> Result<(), TestCaseError> {
        let Some(known) = self.leases.get(which).cloned() else { return Ok(()) };
        let ended = self.store.end_lease(known.id, ending).await.unwrap();
        prop_assert_eq!(ended.is_some(), known.open, "only an open lease ends");
        self.leases[which].open = false;
        Ok(())
    }

    async fn wait(&mut self, seconds: i64) -> Result<(), TestCaseError> {
        self.now.fetch_add(seconds * 1000, Ordering::SeqCst);
        let now = self.time();
        let ended = self.store.expire_leases(now, Timestamp::MIN, Duration::ZERO).await.unwrap();
        for known in self.leases.iter_mut().filter(|known| known.open) {
            let over = known.expires_at < now;
            let reclaimed = ended.iter().any(|ended| ended.name.slot.0 == known.slot);
            prop_assert_eq!(reclaimed, over, "expired exactly when its time was over");
            if over {
                known.open = false;
                // Its job may still run: the worker is not given again.
                self.cordoned.insert(known.slot, true);
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn leases_are_what_the_model_says(steps in prop::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let now = Arc::new(AtomicI64::new(1_800_000_000_000));
            let told = Arc::clone(&now);
            let tell = move || Timestamp::from_millisecond(told.load(Ordering::SeqCst)).unwrap();
            let world = World::told_by(Settings::default(), Clock::telling(tell));
            let yaml = format!(
                "{{pool_id: ci, worker_type: vm, provider: sim, fixed_size: {SIZE}, worker_config: \
                 {{image: a, cpu_cores: 1, memory_mb: 1}}, health_check: {{freshness: 300d}}}}"
            );
            world.converge(&yaml).await;
            let store = world.start_with(world.provider(), Box::new(GoodCommits)).store;
            let cordoned = (0..SIZE).map(|slot| (slot, false)).collect();
            let mut model = Model { store, now, leases: Vec::new(), cordoned };
            for step in &steps {
                // A worker whose lease expired is on its way out; cordons of it mean nothing.
                if let Step::Cordon { slot } | Step::Uncordon { slot } = step {
                    let gone = |known: &Known| known.slot == *slot && !known.open;
                    if model.cordoned[slot] && model.leases.iter().any(gone) {
                        continue;
                    }
                }
                model.take(step).await?;
            }
            Ok::<(), TestCaseError>(())
        })?;
    }
}
