//! Probes every ready worker again and again, and is told of those that end by themselves.
//!
//! Probes are spread over the interval and bounded in number. A worker is not leased from its first failed
//! probe on; it is unhealthy when [`crate::health`] says so; one that is gone is lost at once. An unhealthy
//! worker is probed on: when it was the check that broke, all come back by themselves. Successful probes
//! stay in memory.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use pool_provider::{Heard, WorkerProvider as _, WorkerRef};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};

use super::Keeper;
use crate::config::HealthCheckConfig;
use crate::health::{Tally, Verdict};
use crate::probe::Probed;
use crate::state::{Health, PoolVersions, Watched};
use crate::worker::{Phase, PoolId};

/// How often the record is looked at for workers that came or went.
const REFRESH: Duration = Duration::from_millis(500);
/// How many probes may be under way.
const PARALLEL: usize = 256;

/// How soon a provider is listened to again.
const BREATH: Duration = Duration::from_millis(20);

/// How long the first probe of a worker may be put off, however long the interval is.
const FIRST_PROBE: Duration = Duration::from_secs(10);

/// One worker that is watched.
struct Entry {
    worker: Arc<Watched>,
    check: Arc<HealthCheckConfig>,
    tally: Tally,
    probed: bool,
    under_way: bool,
    /// Whether it is to be probed again as soon as that is over.
    again: bool,
    /// When it is to be probed next; other entries of it in the heap are of the past.
    due_at: Instant,
    /// Waits for its end, where the provider tells.
    ended: Option<JoinHandle<()>>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let Some(ended) = &self.ended {
            ended.abort();
        }
    }
}

/// What comes back.
enum Found {
    Probed(Arc<Watched>, Probed),
    Heard(i64),
}

/// Everything that is watched.
struct Watch {
    keeper: Keeper,
    entries: HashMap<i64, Entry>,
    /// Workers for which nobody could ask the last time.
    unasked: HashSet<i64>,
    due: BinaryHeap<Reverse<(Instant, i64)>>,
    versions: PoolVersions,
    /// How many workers of each pool were never probed.
    unprobed: BTreeMap<PoolId, usize>,
    found: mpsc::UnboundedSender<Found>,
    permits: Arc<Semaphore>,
}

/// Watches until the keeper closes.
pub(super) async fn watch(keeper: Keeper) {
    let (found, mut arrived) = mpsc::unbounded_channel();
    let mut watch = Watch {
        keeper: keeper.clone(),
        entries: HashMap::new(),
        unasked: HashSet::new(),
        due: BinaryHeap::new(),
        versions: PoolVersions::new(),
        unprobed: BTreeMap::new(),
        found,
        permits: Arc::new(Semaphore::new(PARALLEL)),
    };
    let mut refresh_at = Instant::now();
    loop {
        let next = watch.due.peek().map_or(refresh_at, |Reverse((at, _))| (*at).min(refresh_at));
        tokio::select! {
            () = keeper.closed() => return,
            Some(found) = arrived.recv() => watch.settle(found).await,
            () = sleep_until(next) => {
                if Instant::now() >= refresh_at {
                    watch.refresh().await;
                    refresh_at = Instant::now() + REFRESH;
                }
                watch.probe_due();
            }
        }
    }
}

impl Watch {
    /// Sees which workers came and went, in the pools where something did.
    async fn refresh(&mut self) {
        let store = self.keeper.store.clone();
        let versions = match store.versions().await {
            Ok(versions) => versions,
            Err(error) => {
                tracing::warn!(%error, "the workers to probe are not known");
                return;
            }
        };
        for (pool, version) in &versions {
            if self.versions.get(pool) == Some(version) {
                continue;
            }
            let check = store.health_check(pool).await;
            match (store.watched_of(pool).await, check) {
                (Ok(workers), Ok(check)) => {
                    self.take_over(pool, workers, check.unwrap_or_default());
                }
                // Looked at again with the next refresh.
                (Err(error), _) | (_, Err(error)) => {
                    tracing::warn!(%error, %pool, "the workers to probe are not known");
                    return;
                }
            }
            self.versions.insert(pool.clone(), *version);
        }
        self.tell_probed();
    }

    fn take_over(&mut self, pool: &PoolId, workers: Vec<Watched>, check: HealthCheckConfig) {
        let check = Arc::new(check);
        let rows: HashSet<i64> = workers.iter().map(|worker| worker.row).collect();
        let keeper = &self.keeper;
        let unprobed = self.unprobed.entry(pool.clone()).or_default();
        self.entries.retain(|row, entry| {
            let stays = entry.worker.name.pool != *pool || rows.contains(row);
            if !stays {
                *unprobed -= usize::from(!entry.probed);
                keeper.desk.prober().vitals().forget(*row);
            }
            stays
        });
        self.unasked.retain(|row| self.entries.contains_key(row));
        let mut again = Vec::new();
        for worker in workers {
            let row = worker.row;
            match self.entries.get_mut(&row) {
                Some(entry) => {
                    // What was told of a worker before it was reset says nothing of it now.
                    let is_another = entry.worker.phase_since != worker.phase_since;
                    if is_another && entry.ended.as_ref().is_some_and(JoinHandle::is_finished) {
                        again.push(row);
                    }
                    // Somebody doubts it: a probe settles that.
                    let doubted = worker.suspect && !entry.worker.suspect;
                    entry.worker = Arc::new(worker);
                    entry.check = Arc::clone(&check);
                    if doubted {
                        self.probe(row);
                    }
                }
                None => self.begin(worker, &check),
            }
        }
        for row in again {
            let worker = self.entries.get(&row).map(|entry| Arc::clone(&entry.worker));
            let ended = worker.and_then(|worker| self.wait_for_end(&worker));
            if let Some(entry) = self.entries.get_mut(&row) {
                entry.ended = ended;
            }
        }
    }

    fn begin(&mut self, worker: Watched, check: &Arc<HealthCheckConfig>) {
        let row = worker.row;
        let interval = check.interval.get();
        // Golden-ratio hashing: rows that follow one another land far apart.
        let spread = (row.unsigned_abs().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32;
        let first = interval.min(FIRST_PROBE).mul_f64(f64::from(spread) / f64::from(u32::MAX));
        let due_at = Instant::now() + first;
        self.due.push(Reverse((due_at, row)));
        let worker = Arc::new(worker);
        let ended = self.wait_for_end(&worker);
        // It became ready by passing its check: if that was just now, that counts.
        let age = self.keeper.clock.now().duration_since(worker.phase_since);
        let age = Duration::try_from(age).unwrap_or_default();
        let probed = worker.phase == Phase::Ready && age <= check.freshness();
        let entry = Entry {
            worker,
            check: Arc::clone(check),
            tally: Tally::default(),
            probed,
            under_way: false,
            again: false,
            due_at,
            ended,
        };
        let unprobed = self.unprobed.entry(entry.worker.name.pool.clone()).or_default();
        *unprobed += usize::from(!entry.probed);
        self.entries.insert(row, entry);
    }

    /// Has the provider tell when the worker ends, where it can.
    fn wait_for_end(&self, worker: &Arc<Watched>) -> Option<JoinHandle<()>> {
        let provider = self.keeper.providers.get_now(&worker.provider)?;
        if !provider.describe().tells_ends {
            return None;
        }
        let reference = WorkerRef {
            owner: self.keeper.store.deployment().clone(),
            name: worker.name.clone(),
            provider_id: worker.provider_id.clone(),
        };
        let (found, row) = (self.found.clone(), worker.row);
        Some(tokio::spawn(async move {
            // Each time it stirs, a probe says what became of it.
            loop {
                let heard = provider.watch(&reference).await;
                let _closing = found.send(Found::Heard(row)).is_err();
                if matches!(heard, Heard::Ended(_)) {
                    return;
                }
                // Providers are not trusted: one that never stops talking costs little.
                sleep(BREATH).await;
            }
        }))
    }

    fn probe_due(&mut self) {
        let now = Instant::now();
        while let Some(Reverse((at, row))) = self.due.peek().copied() {
            if at > now {
                return;
            }
            self.due.pop();
            let Some(entry) = self.entries.get_mut(&row).filter(|entry| entry.due_at == at) else {
                continue;
            };
            entry.due_at = now + entry.check.interval.get();
            self.due.push(Reverse((entry.due_at, row)));
            self.probe(row);
        }
    }

    fn probe(&mut self, row: i64) {
        let Some(entry) = self.entries.get_mut(&row) else { return };
        if entry.under_way {
            entry.again = true;
            return;
        }
        entry.under_way = true;
        let (worker, check) = (Arc::clone(&entry.worker), Arc::clone(&entry.check));
        let prober = self.keeper.desk.prober().clone();
        let (found, permits) = (self.found.clone(), Arc::clone(&self.permits));
        tokio::spawn(async move {
            // One that hangs while it is opened must not keep the workers of others from being probed.
            let _opened = prober.open(&worker).await.is_ok();
            // The semaphore is never closed; without a permit the probe would only be one too many.
            let _permit = permits.acquire().await.ok();
            let probed = prober.probe(&worker, &check).await;
            let probed = probed.unwrap_or_else(|error| Probed::Unasked(error.to_string()));
            let _closing = found.send(Found::Probed(worker, probed)).is_err();
        });
    }

    async fn settle(&mut self, found: Found) {
        match found {
            // The probe says what became of it.
            Found::Heard(row) => self.probe(row),
            Found::Probed(worker, probed) => {
                let row = worker.row;
                if let Err(error) = self.judge(&worker, probed).await {
                    tracing::warn!(%error, "what a probe found was not recorded");
                }
                let again =
                    self.entries.get_mut(&row).map(|entry| std::mem::take(&mut entry.again));
                if again == Some(true) {
                    self.probe(row);
                }
            }
        }
    }

    /// Draws the consequences of a probe.
    async fn judge(
        &mut self,
        seen: &Watched,
        probed: Probed,
    ) -> Result<(), crate::state::StateError> {
        let row = seen.row;
        let Some(entry) = self.entries.get_mut(&row) else { return Ok(()) };
        entry.under_way = false;
        let (worker, keeper) = (Arc::clone(&entry.worker), self.keeper.clone());
        // One that nobody could ask for was looked at, too: a server is not unready for that.
        if !std::mem::replace(&mut entry.probed, true) {
            let left = self.unprobed.entry(worker.name.pool.clone()).or_default();
            *left -= 1;
            if *left == 0 {
                self.tell_probed();
            }
        }
        if let Probed::Unasked(why) = &probed {
            if self.unasked.insert(row) {
                tracing::warn!(worker = %worker.name, why, "a worker could not be asked for");
            }
            return Ok(());
        }
        self.unasked.remove(&row);
        let passed = probed == Probed::Passed;
        // One that is gone may have been deleted a moment ago: that is no failed probe.
        if !matches!(probed, Probed::Gone(_)) {
            keeper.watcher.probed(&worker.name.pool, passed);
        }
        let age = keeper.clock.now().duration_since(worker.created_at);
        let age = Duration::try_from(age).unwrap_or_default();
        let Some(entry) = self.entries.get_mut(&row) else { return Ok(()) };
        let (tally, verdict) = entry.tally.count(passed, age, &entry.check);
        entry.tally = tally;
        let (store, name) = (&keeper.store, &worker.name);
        match (probed, verdict, worker.phase) {
            (Probed::Gone(why), ..) => {
                if store.record_health(seen, Health::Lost, why.clone()).await? {
                    keeper.watcher.probed(&name.pool, false);
                    tracing::warn!(worker = %name, why, "a worker is gone");
                    keeper.look_again();
                }
            }
            (Probed::Failed(why), Verdict::Unhealthy, Phase::Ready) => {
                if store.record_health(seen, Health::Unhealthy, why.clone()).await? {
                    tracing::warn!(worker = %name, why, "a worker is unhealthy");
                    keeper.look_again();
                }
            }
            (Probed::Failed(why), ..) => {
                if self.is_in_its_start(row) {
                    return Ok(());
                }
                // Only the first failure in a row is written down.
                if store.mark_suspect(seen, Some(why)).await? {
                    self.suspect(row, true);
                }
            }
            (Probed::Passed, Verdict::Healthy, Phase::Unhealthy) => {
                if store.record_health(seen, Health::Well, "passes again".to_owned()).await? {
                    tracing::info!(worker = %name, "a worker is well again");
                    keeper.desk.glance();
                }
            }
            (Probed::Passed, Verdict::Healthy, _) if worker.suspect => {
                store.mark_suspect(seen, None).await?;
                self.suspect(row, false);
                keeper.desk.glance();
            }
            (Probed::Passed, ..) => keeper.desk.glance(),
            (Probed::Unasked(_), ..) => {}
        }
        Ok(())
    }

    /// Failed probes of a worker that is just starting count for nothing.
    fn is_in_its_start(&self, row: i64) -> bool {
        let Some(entry) = self.entries.get(&row) else { return true };
        let age = self.keeper.clock.now().duration_since(entry.worker.created_at);
        Duration::try_from(age).unwrap_or_default() < entry.check.start_period.get()
    }

    fn suspect(&mut self, row: i64, suspect: bool) {
        if let Some(entry) = self.entries.get_mut(&row) {
            entry.worker = Arc::new(Watched { suspect, ..Watched::clone(&entry.worker) });
        }
    }

    /// Says of which pools every worker was probed.
    fn tell_probed(&self) {
        let done = self.unprobed.iter().filter(|(_, left)| **left == 0);
        self.keeper.set_probed(done.map(|(pool, _)| pool.clone()).collect());
    }
}
