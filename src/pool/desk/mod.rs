//! Where leases are asked for and given back: one desk for everybody in a process.
//!
//! An ask that finds free workers is answered by one transaction. One that does not waits in line, by
//! priority and arrival, for as long as it said; workers that are only stale are probed meanwhile. The
//! line is looked at whenever something was given back, and every 50 ms while somebody waits: what
//! another process did needs no message.
//!
//! Guarantees: an answer is durable before it is given. Whoever hangs up in line leaves it; whoever hangs
//! up between the grant and its answer gives the workers back, unless the request can be repeated.

mod given;
mod tasks;

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{sleep, timeout};

use self::given::Abandoned;
pub use self::given::{AcquireError, Given};

use super::vitals::Prober;
use super::watcher::{Unwatched, Watcher};
use crate::clock::{Clock, Stopwatch};
use crate::lease::line::Place;
use crate::lease::terms::Respite;
use crate::lease::{After, Ask, Ending, LeaseId, Line, Outcome, Selector};
use crate::probe::Probed;
use crate::state::{Ended, Granted, Lease, Renewed, StateError, Store};
use crate::worker::PoolId;

/// How often the line is looked at although nothing was given back here.
const GLANCE: Duration = Duration::from_millis(50);
/// How long a request that does not wait may take to have stale workers probed.
const PROBE_PATIENCE: Duration = Duration::from_secs(3);
/// How many requests may wait; more would only wait in vain.
const MOST_WAITING: usize = 10_000;
/// How many requests for the same are looked at in one transaction; the rest have to wait anyway.
const AT_ONCE: usize = 64;

/// Somebody in line.
#[derive(Debug)]
struct Waiter {
    ask: Arc<Ask>,
    since: Stopwatch,
    /// Whether it is only there until the stale workers are probed.
    only_for_probes: bool,
    /// How many workers would do of which it is not known whether they are well.
    unsure: Arc<AtomicUsize>,
    answer: oneshot::Sender<Result<Given, AcquireError>>,
}

#[derive(Debug)]
struct Answer {
    leases: Vec<Lease>,
    replay: bool,
}

/// How long the line of a pool is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Waiting {
    /// How many requests.
    pub requests: usize,
    /// For how long the first one has waited.
    pub oldest: Duration,
}

/// The desk.
pub struct Desk {
    store: Store,
    clock: Clock,
    prober: Prober,
    line: Mutex<Line<Waiter>>,
    wake: Notify,
    back: mpsc::UnboundedSender<Abandoned>,
    turnover: Mutex<VecDeque<Stopwatch>>,
    watcher: Arc<dyn Watcher>,
    /// Told whenever a worker has to be looked after: it goes, or is to be cleaned.
    chores: Arc<Notify>,
    /// Told whenever a worker is to be cleaned.
    used: Arc<Notify>,
    closing: AtomicBool,
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Desk")
    }
}

impl Desk {
    /// Opens the desk; its tasks end with it.
    pub fn open(store: Store, clock: Clock, prober: Prober) -> Arc<Self> {
        Self::open_watched(store, clock, prober, Arc::new(Unwatched), Respite::default())
    }

    /// Opens the desk, and tells `watcher` what happens; no lease expires before `respite` is over.
    pub fn open_watched(
        store: Store,
        clock: Clock,
        prober: Prober,
        watcher: Arc<dyn Watcher>,
        respite: Respite,
    ) -> Arc<Self> {
        let (back, abandoned) = mpsc::unbounded_channel();
        let desk = Arc::new(Self {
            store,
            clock,
            prober,
            line: Mutex::default(),
            wake: Notify::new(),
            back,
            turnover: Mutex::default(),
            watcher,
            chores: Arc::default(),
            used: Arc::default(),
            closing: AtomicBool::new(false),
        });
        tokio::spawn(tasks::serve_line(Arc::downgrade(&desk)));
        tokio::spawn(tasks::take_back(Arc::downgrade(&desk), abandoned));
        tokio::spawn(tasks::expire(Arc::downgrade(&desk), respite));
        desk
    }

    /// Returns what is told whenever a worker has to be looked after.
    pub fn chores(&self) -> Arc<Notify> {
        Arc::clone(&self.chores)
    }

    /// Returns what is told whenever a worker is to be cleaned.
    pub fn used(&self) -> Arc<Notify> {
        Arc::clone(&self.used)
    }

    /// Returns who probes workers.
    pub fn prober(&self) -> &Prober {
        &self.prober
    }

    /// Answers everybody who waits that the server stops, and takes no more requests.
    pub fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
        let mut line = self.line();
        let places: Vec<Place> = line.iter().map(|(place, _)| place).collect();
        for place in places {
            if let Some(waiter) = line.leave(place) {
                let _hung_up = waiter.answer.send(Err(AcquireError::Closing)).is_err();
            }
        }
    }

    /// Returns once everything that was granted to those who hung up is taken back.
    pub async fn taken_back(&self) {
        let (told, all) = oneshot::channel();
        if self.back.send(Abandoned::All(told)).is_ok() {
            // The task ends with the desk, and this is the desk.
            let _all = all.await.is_ok();
        }
    }

    /// Has the line looked at: a worker may be free.
    pub fn glance(&self) {
        if !self.line().is_empty() {
            self.wake.notify_one();
        }
    }

    fn line(&self) -> MutexGuard<'_, Line<Waiter>> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leases workers, waiting for them at most `wait`.
    ///
    /// # Errors
    /// When none are given: why, as [`AcquireError`] names it.
    pub async fn acquire(&self, ask: Ask, wait: Duration) -> Result<Given, AcquireError> {
        let since = Stopwatch::start();
        if self.closing.load(Ordering::SeqCst) {
            return Err(AcquireError::Closing);
        }
        let ask = Arc::new(ask);
        let nobody_waits = self.line().is_empty();
        if let Some(key) = ask.key.filter(|_| !nobody_waits)
            && let Some(answer) = self.store.replay(key).await?
            && let Outcomes::Answer(answer) = outcome(answer)?
        {
            // A repeated request is answered whatever its place would be.
            return Ok(self.note(self.guard(&ask, answer), since));
        }
        let unsure = Arc::new(AtomicUsize::new(0));
        if nobody_waits {
            match self.try_now(&ask).await? {
                Tried::Given(given) => return Ok(self.note(given, since)),
                Tried::NoneFree(stale) if wait.is_zero() && stale.is_empty() => {
                    return Err(self.none_free(0));
                }
                Tried::NoneFree(stale) => unsure.store(stale.len(), Ordering::Relaxed),
            }
        }
        let patience = if wait.is_zero() { PROBE_PATIENCE } else { wait };
        let (answer, answered) = oneshot::channel();
        let only_for_probes = wait.is_zero();
        let (asked, seen) = (Arc::clone(&ask), Arc::clone(&unsure));
        let waiter = Waiter { ask: asked, since, only_for_probes, unsure: seen, answer };
        let _place = {
            let mut line = self.line();
            if self.closing.load(Ordering::SeqCst) {
                return Err(AcquireError::Closing);
            }
            if line.len() >= MOST_WAITING {
                return Err(AcquireError::LineFull);
            }
            let place = line.join(ask.priority, waiter);
            InLine { desk: self, place }
        };
        self.wake.notify_one();
        let queued = Stopwatch::start();
        let left = patience.saturating_sub(since.elapsed());
        match timeout(left, answered).await {
            Ok(Ok(Ok(given))) => {
                let pools = given.leases.iter().map(|lease| &lease.name.pool);
                pools.for_each(|pool| self.watcher.queued(pool, queued.elapsed()));
                Ok(self.note(given, since))
            }
            Ok(Ok(Err(error))) => Err(error),
            Ok(Err(_)) => Err(AcquireError::Closing),
            Err(_) => Err(self.none_free(unsure.load(Ordering::Relaxed))),
        }
    }

    fn guard(&self, ask: &Ask, Answer { leases, replay }: Answer) -> Given {
        // A request that can be repeated keeps its lease for the retry.
        let back = ask.key.is_none().then(|| self.back.clone());
        Given { leases, replay, waited: Duration::ZERO, back }
    }

    fn note(&self, mut given: Given, since: Stopwatch) -> Given {
        given.waited = since.elapsed();
        if !given.replay {
            for lease in &given.leases {
                self.watcher.granted(&lease.name.pool, given.waited);
            }
        }
        given
    }

    async fn try_now(&self, ask: &Arc<Ask>) -> Result<Tried, AcquireError> {
        let back = ask.key.is_none().then(|| self.back.clone());
        // The guard is made in the transaction: when nobody waits for the answer any more, it is dropped
        // with it.
        let wrap = move |mut answers: Vec<Granted>| match answers.pop() {
            Some(Granted::Leases(leases)) => {
                Ok(Given { leases, replay: false, waited: Duration::ZERO, back })
            }
            other => Err(other),
        };
        let vitals = Arc::clone(self.prober.vitals());
        let given = self.store.grant(vec![Arc::clone(ask)], vitals, wrap).await?;
        match given {
            Ok(given) => Ok(Tried::Given(given)),
            Err(answer) => match answer.map_or(Ok(Outcomes::Wait(Vec::new())), outcome)? {
                Outcomes::Answer(answer) => Ok(Tried::Given(self.guard(ask, answer))),
                Outcomes::Wait(stale) => Ok(Tried::NoneFree(stale)),
            },
        }
    }

    fn none_free(&self, unsure: usize) -> AcquireError {
        AcquireError::NoneFree { unsure, retry_after: self.retry_after() }
    }

    /// When a worker is likely to be free for one more: from how fast workers came back lately.
    fn retry_after(&self) -> Duration {
        let waiting = u32::try_from(self.line().len()).unwrap_or(u32::MAX);
        let turnover = self.turnover.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(first) = turnover.front() else { return Duration::from_secs(1) };
        let count = u32::try_from(turnover.len()).unwrap_or(1).max(1);
        let each = first.elapsed() / count;
        let wait = each.saturating_mul(waiting.saturating_add(1));
        wait.clamp(Duration::from_secs(1), Duration::from_secs(60))
    }

    /// Makes a lease last for another while.
    ///
    /// # Errors
    /// When the state cannot be written.
    pub async fn renew(
        &self,
        id: LeaseId,
        fence: i64,
        ttl: Option<Duration>,
    ) -> Result<Renewed, StateError> {
        self.store.renew(id, fence, ttl).await
    }

    /// Gives a lease back; false when it had ended before, or never was.
    ///
    /// # Errors
    /// When the state cannot be written.
    pub async fn release(&self, id: LeaseId, outcome: Outcome) -> Result<bool, StateError> {
        self.end(id, Ending::Released(outcome)).await
    }

    async fn end(&self, id: LeaseId, ending: Ending) -> Result<bool, StateError> {
        let ended = self.store.end_lease(id, ending).await?;
        if let Some(ended) = &ended {
            if ending == Ending::Released(Outcome::InfraFailed) {
                self.prober.vitals().forget(ended.worker);
                self.chores.notify_one();
            }
            self.settle(ended);
        }
        Ok(ended.is_some())
    }

    fn settle(&self, ended: &Ended) {
        self.watcher.ended(ended);
        {
            let mut turnover = self.turnover.lock().unwrap_or_else(PoisonError::into_inner);
            turnover.push_back(Stopwatch::start());
            if turnover.len() > 32 {
                turnover.pop_front();
            }
        }
        match ended.after {
            After::Ready => self.glance(),
            After::Recycle => self.used.notify_one(),
            After::Retire(_) | After::Quarantine | After::Heal => {
                self.chores.notify_one();
            }
        }
    }

    /// Returns how many requests wait that workers of this pool could serve, as far as their selector
    /// names the pool or no pool.
    pub fn waiting(&self, pool: &PoolId) -> Waiting {
        let line = self.line();
        let own = line.iter().filter(|(_, waiter)| waiter.ask.selector.covers(pool));
        own.fold(Waiting::default(), |sum, (_, waiter)| Waiting {
            requests: sum.requests + 1,
            oldest: sum.oldest.max(waiter.since.elapsed()),
        })
    }

    /// Looks at the line once: answers those whose turn it is.
    async fn round(self: &Arc<Self>) -> Result<(), StateError> {
        let (places, asks): (Vec<Place>, Vec<Arc<Ask>>) = {
            let line = self.line();
            let mut alike: HashMap<&Selector, usize> = HashMap::new();
            let mut looked_at = Vec::new();
            for (place, waiter) in line.iter() {
                let before = alike.entry(&waiter.ask.selector).or_default();
                *before += 1;
                if *before <= AT_ONCE {
                    looked_at.push((place, Arc::clone(&waiter.ask)));
                }
            }
            looked_at.into_iter().unzip()
        };
        if asks.is_empty() {
            return Ok(());
        }
        let vitals = Arc::clone(self.prober.vitals());
        let answers = self.store.grant(asks.clone(), vitals, |answers| answers).await?;
        // Whoever finds everything set aside by those before may still get what is being probed for them.
        let mut probing = false;
        for ((place, ask), answer) in places.into_iter().zip(&asks).zip(answers) {
            match outcome(answer) {
                Ok(Outcomes::Wait(stale)) => {
                    probing |= self.probe_some(&stale);
                    let mut line = self.line();
                    let waiter = line.get(place);
                    let only_for_probes = waiter.is_some_and(|waiter| {
                        waiter.unsure.store(stale.len(), Ordering::Relaxed);
                        waiter.only_for_probes
                    });
                    if only_for_probes
                        && !probing
                        && let Some(waiter) = line.leave(place)
                    {
                        drop(line);
                        let _hung_up =
                            waiter.answer.send(Err(self.none_free(stale.len()))).is_err();
                    }
                }
                Ok(Outcomes::Answer(answer)) => {
                    self.hand_over(place, ask, answer);
                    // Those behind may have been too many to be looked at.
                    self.wake.notify_one();
                }
                Err(error) => {
                    if let Some(waiter) = self.line().leave(place) {
                        let _hung_up = waiter.answer.send(Err(error)).is_err();
                    }
                }
            }
        }
        Ok(())
    }

    /// Hands leases to whoever waits at `place`. Wherever they are dropped on the way, they are taken back.
    fn hand_over(&self, place: Place, ask: &Ask, answer: Answer) {
        let given = self.guard(ask, answer);
        if let Some(waiter) = self.line().leave(place) {
            let _taken_back = waiter.answer.send(Ok(given)).is_err();
        }
    }

    /// Has some stale workers probed; returns whether any is being probed.
    fn probe_some(self: &Arc<Self>, stale: &[i64]) -> bool {
        let mut begun = 0;
        for row in stale.iter().copied() {
            begun += 1;
            if !self.prober.begin(row) {
                continue;
            }
            let desk = Arc::clone(self);
            tokio::spawn(async move {
                // Without an answer the worker stays stale, and is not given; it is asked again in a moment.
                let verified = desk.prober.verify(row).await;
                if matches!(verified, Err(_) | Ok(Some((_, Probed::Unasked(_))))) {
                    sleep(GLANCE * 4).await;
                }
                desk.prober.finish(row);
                desk.wake.notify_one();
            });
        }
        begun > 0
    }
}

impl Desk {
    /// The state cannot be written: nobody is left waiting for what cannot come.
    fn fail_all(&self, error: &StateError) {
        let mut line = self.line();
        let places: Vec<Place> = line.iter().map(|(place, _)| place).collect();
        for place in places {
            if let Some(waiter) = line.leave(place) {
                let _hung_up = waiter.answer.send(Err(error.clone().into())).is_err();
            }
        }
    }
}

enum Tried {
    Given(Given),
    NoneFree(Vec<i64>),
}

enum Outcomes {
    Answer(Answer),
    Wait(Vec<i64>),
}

/// Sorts what the state answers into what is final and what may change.
fn outcome(answer: Granted) -> Result<Outcomes, AcquireError> {
    match answer {
        Granted::Leases(leases) => Ok(Outcomes::Answer(Answer { leases, replay: false })),
        Granted::Replay(leases) => Ok(Outcomes::Answer(Answer { leases, replay: true })),
        Granted::NoneFree(stale) => Ok(Outcomes::Wait(stale)),
        Granted::KeyConflict => Err(AcquireError::KeyConflict),
        Granted::KeyGone => Err(AcquireError::KeyGone),
        Granted::UnknownPool(pool) => Err(AcquireError::UnknownPool(pool)),
        Granted::Unsatisfiable(unmet) => Err(AcquireError::Unsatisfiable(unmet)),
        Granted::TtlTooLong(pool, most) => Err(AcquireError::TtlTooLong { pool, most }),
    }
}

/// Leaves the line when it is dropped: whoever hangs up does not wait any more.
struct InLine<'d> {
    desk: &'d Desk,
    place: Place,
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        let left = self.desk.line().leave(self.place);
        if left.is_some() {
            // What was set aside for this one is free for the next.
            self.desk.glance();
        }
    }
}
