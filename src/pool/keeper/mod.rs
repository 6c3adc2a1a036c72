//! Looks after all pools of a state: one of it runs in `pool serve`.
//!
//! | module    | does                                                  |
//! |-----------|-------------------------------------------------------|
//! | `watch`   | probes workers, and hears of those that end              |
//! | `files`   | applies files that change                                |
//! | `heal`    | looks at the pools and repairs what it may               |
//! | `recycle` | cleans workers between leases                            |

mod files;
mod heal;
mod recycle;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use pool_provider::SharedProvider;
use tokio::sync::watch as signal;
use tokio::time::sleep;

pub use self::files::Files;
use super::desk::Desk;
use super::providers::Providers;
use super::vitals::Prober;
use super::{Effort, PoolError, Reconciler, Secrets, StaticPoolManager, Unseen, Watcher};
use crate::apply::Leased;
use crate::clock::{Clock, Stopwatch};
use crate::config::LoadedPool;
use crate::lease::terms::Respite;
use crate::state::{PoolSummary, StateError, Store};
use crate::worker::PoolId;

/// How long a server that was just started only leases: whoever waited for it is served first.
const LEASES_FIRST: Duration = Duration::from_millis(500);

/// How old what the pools come to may be for a refusal.
const RECENT: Duration = Duration::from_millis(500);

/// How the latest look at a pool went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Looked {
    /// When it ended.
    pub at: Timestamp,
    /// What went wrong, if something did.
    pub error: Option<String>,
    /// Whether its workers were seen since this began: a look can fail.
    pub observed: bool,
    /// Whether the error is one of repairing it, and not of looking.
    pub of_repair: bool,
}

/// What the pools came to, and since when that is known.
type Recent = Option<(Stopwatch, Arc<Vec<PoolSummary>>)>;

/// What a keeper does by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// It heals, and applies files that change.
    Full,
    /// It heals.
    Heal,
    /// It probes, and changes nothing.
    Off,
}

/// How a keeper goes about it.
#[derive(Debug, Clone, Copy)]
pub struct Habits {
    /// What it does by itself.
    pub mode: Mode,
    /// When leases may expire: never at once after a start.
    pub respite: Respite,
}

impl From<Mode> for Habits {
    fn from(mode: Mode) -> Self {
        Self { mode, respite: Respite::default() }
    }
}

/// Everything that looks after pools; clones share it.
#[derive(Clone)]
pub struct Keeper {
    store: Store,
    providers: Providers,
    secrets: Secrets,
    clock: Clock,
    desk: Arc<Desk>,
    watcher: Arc<dyn Watcher>,
    mode: Mode,
    looked: Arc<Mutex<BTreeMap<PoolId, Looked>>>,
    /// Pools in which too much is broken for anything to be replaced.
    stopped: Arc<Mutex<BTreeSet<PoolId>>>,
    /// Providers that could not be listed lately: since when that is known, and why.
    unseen: Arc<Mutex<BTreeMap<String, (Stopwatch, String)>>>,
    /// Pools of which every worker was probed once.
    probed: Arc<Mutex<BTreeSet<PoolId>>>,
    config_error: Arc<Mutex<Option<String>>>,
    /// Whether there are files, and nobody knows yet what becomes of them.
    awaits_files: Arc<AtomicBool>,
    recent: Arc<tokio::sync::Mutex<Recent>>,
    closing: Arc<signal::Sender<bool>>,
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keeper")
    }
}

impl Keeper {
    /// Opens the desk of a state; nothing is looked after before [`Keeper::begin`].
    pub fn open(
        store: Store,
        providers: Providers,
        secrets: Secrets,
        clock: Clock,
        watcher: Arc<dyn Watcher>,
        habits: impl Into<Habits>,
    ) -> Self {
        let Habits { mode, respite } = habits.into();
        let prober = Prober::new(store.clone(), providers.clone(), clock.clone());
        let seen = Arc::clone(&watcher);
        let desk = Desk::open_watched(store.clone(), clock.clone(), prober, seen, respite);
        Self {
            store,
            providers,
            secrets,
            clock,
            desk,
            watcher,
            mode,
            looked: Arc::default(),
            stopped: Arc::default(),
            unseen: Arc::default(),
            probed: Arc::default(),
            config_error: Arc::default(),
            awaits_files: Arc::default(),
            recent: Arc::default(),
            closing: Arc::new(signal::Sender::new(false)),
        }
    }

    /// Begins to probe, clean and heal, until [`Keeper::close`].
    pub fn begin(&self) {
        let keeper = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = keeper.closed() => return,
                () = sleep(LEASES_FIRST) => {}
            }
            tokio::spawn(watch::watch(keeper.clone()));
            tokio::spawn(recycle::recycle(keeper.clone()));
            tokio::spawn(heal::forget(keeper.clone()));
            tokio::spawn(heal::heal(keeper));
        });
    }

    /// Returns the state.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Returns where leases are asked for.
    pub fn desk(&self) -> &Arc<Desk> {
        &self.desk
    }

    /// Returns what it does by itself.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Returns how the latest look at each pool went.
    pub fn looked(&self) -> BTreeMap<PoolId, Looked> {
        self.looked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns whether every worker of the pool was probed since this began.
    pub fn is_probed(&self, pool: &PoolId) -> bool {
        self.probed.lock().unwrap_or_else(PoisonError::into_inner).contains(pool)
    }

    fn set_probed(&self, pools: BTreeSet<PoolId>) {
        self.probed.lock().unwrap_or_else(PoisonError::into_inner).extend(pools);
    }

    /// Returns why the server does not do as its files say, if it does not.
    pub fn config_error(&self) -> Option<String> {
        self.config_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns whether the server's files have yet to be applied, or refused, for the first time.
    pub fn awaits_files(&self) -> bool {
        self.awaits_files.load(Ordering::Acquire)
    }

    /// Returns what the pools come to, at most half a second old: whoever is refused asks again soon.
    ///
    /// # Errors
    /// When the state cannot be read.
    pub async fn recent_summaries(&self) -> Result<Arc<Vec<PoolSummary>>, StateError> {
        let mut recent = self.recent.lock().await;
        let known = recent.as_ref().filter(|(since, _)| since.elapsed() < RECENT);
        if let Some((_, summaries)) = known {
            return Ok(Arc::clone(summaries));
        }
        let summaries = Arc::new(self.store.summaries().await?);
        *recent = Some((Stopwatch::start(), Arc::clone(&summaries)));
        Ok(summaries)
    }

    /// Has the pools looked at soon: something was decided.
    pub fn look_again(&self) {
        self.desk.chores().notify_one();
    }

    /// Answers everybody who waits, and ends whatever goes on here.
    pub fn close(&self) {
        self.closing.send_replace(true);
        self.desk.close();
    }

    /// Returns once everything ends.
    pub async fn closed(&self) {
        // The sender is this very keeper's: it is there for as long as anybody asks.
        let _closed = self.closing.subscribe().wait_for(|closing| *closing).await.is_ok();
    }

    /// Puts together what a run over these pools needs, without these providers.
    async fn reconciler(
        &self,
        pools: &[LoadedPool],
        parallelism: usize,
        mut unseen: Unseen,
    ) -> Result<Reconciler, PoolError> {
        self.providers.declare(self.store.provider_configs().await?);
        let declared = pools.iter().filter_map(|pool| {
            Some((pool.config.provider_name().to_owned(), pool.provider.clone()?))
        });
        let providers = self.providers.with(declared.collect());
        let mut names = self.store.provider_names().await?;
        names.extend(pools.iter().map(|pool| pool.config.provider_name().to_owned()));
        names.retain(|name| !unseen.contains_key(name));
        let (providers, failed) = providers.get_all(&names, Effort::BRIEF.timeout).await;
        // One that cannot be opened keeps nobody from healing what others have.
        let absent: Unseen = failed
            .into_iter()
            .map(|(name, error)| match error {
                PoolError::Provider { reason, .. } => (name, reason),
                other => (name, other.to_string()),
            })
            .collect();
        self.set_unseen(absent.clone());
        unseen.extend(absent.clone());
        Ok(Reconciler {
            store: self.store.clone(),
            providers,
            secrets: self.secrets.clone(),
            clock: self.clock.clone(),
            parallelism,
            // What is leased is looked at again when the lease ends.
            leased: Leased::Leave,
            absent,
            unseen,
            effort: Effort::BRIEF,
        })
    }

    /// Returns a pool as it is applied; `None` when nothing is applied to it.
    ///
    /// # Errors
    /// When the state cannot be read, or its provider is not there.
    pub async fn pool(
        &self,
        id: &PoolId,
    ) -> Result<Option<StaticPoolManager<SharedProvider>>, PoolError> {
        let Some(config) = self.store.applied_config(id).await? else { return Ok(None) };
        let provider = self.providers.get(config.provider_name()).await?;
        let (store, secrets, clock) =
            (self.store.clone(), self.secrets.clone(), self.clock.clone());
        let manager = StaticPoolManager::new(config, provider, store, secrets, clock);
        Ok(Some(manager.with_desk(Arc::clone(&self.desk))))
    }
}
