//! The providers at hand, by name: those that were given, and those that are opened when they are first
//! needed, as they were declared.
//!
//! Decides nothing about who may declare what: the state and the files do. Opening a provider calls nobody, but for an
//! executable, which is asked what it can do.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pool_provider::{SharedProvider, WorkerProvider as _};
use tokio::time::timeout;

use super::PoolError;
use super::limiter::Limiter;
use super::registry::{ProviderSettings, open, open_now};
use crate::clock::Stopwatch;
use crate::config::ProviderConfig;
use crate::state::Store;

/// How long one that could not be opened is not tried again: an executable may take its time to fail, and every probe
/// would ask for it.
const TRIED_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// How many ways to reach one provider are kept open: the recorded one, and that of files which are not applied yet.
const KEPT: usize = 3;

/// Providers by name; clones share them.
#[derive(Clone)]
pub struct Providers {
    /// How each is reached, where that was declared.
    declared: Arc<Mutex<BTreeMap<String, ProviderConfig>>>,
    shelf: Arc<Mutex<Shelf>>,
    opening: Option<Arc<Opening>>,
}

/// What came of opening providers.
#[derive(Default)]
struct Shelf {
    /// Those that were given.
    given: BTreeMap<String, SharedProvider>,
    /// Those that are open, and as what; the latest last.
    opened: BTreeMap<String, Vec<(ProviderConfig, SharedProvider)>>,
    /// Those that could not be opened lately: as what, since when that is known, and why.
    failed: BTreeMap<String, (ProviderConfig, Stopwatch, PoolError)>,
    /// One at a time opens a provider.
    turns: BTreeMap<String, Arc<tokio::sync::Mutex<()>>>,
}

/// What it takes to open a provider.
struct Opening {
    settings: ProviderSettings,
    store: Store,
    dress: Box<Dress>,
}

/// Puts something around a provider when it is opened, such as what counts its calls.
pub type Dress = dyn Fn(&str, SharedProvider) -> SharedProvider + Send + Sync;

impl fmt::Debug for Providers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Providers")
    }
}

/// What is recorded says where an executable's workers are; to reach them, it is asked.
fn as_reached((name, config): (String, ProviderConfig)) -> (String, ProviderConfig) {
    (name, config.at(None))
}

impl Shelf {
    /// Returns the provider that is open as this.
    fn open_as(&self, name: &str, config: &ProviderConfig) -> Option<SharedProvider> {
        let all = self.opened.get(name)?;
        let (_, provider) = all.iter().find(|(opened, _)| opened == config)?;
        Some(provider.clone())
    }

    /// Returns what came of opening the provider as this, if that was tried.
    fn known(
        &self,
        name: &str,
        config: &ProviderConfig,
    ) -> Option<Result<SharedProvider, PoolError>> {
        if let Some(opened) = self.open_as(name, config) {
            return Some(Ok(opened));
        }
        let (tried, since, error) = self.failed.get(name)?;
        let is_recent = since.elapsed() < TRIED_AGAIN_AFTER;
        (tried == config && is_recent).then(|| Err(error.clone()))
    }
}

impl Providers {
    /// Holds these and no others.
    pub fn given(providers: BTreeMap<String, SharedProvider>) -> Self {
        let shelf = Shelf { given: providers, ..Shelf::default() };
        Self { declared: Arc::default(), shelf: Arc::new(Mutex::new(shelf)), opening: None }
    }

    /// Opens what is needed, and dresses it. Limits on calls are kept in `store`.
    pub fn opening(settings: ProviderSettings, store: Store, dress: Box<Dress>) -> Self {
        let opening = Opening { settings, store, dress };
        Self { declared: Arc::default(), shelf: Arc::default(), opening: Some(Arc::new(opening)) }
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn declared(&self) -> MutexGuard<'_, BTreeMap<String, ProviderConfig>> {
        self.declared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn config(&self, name: &str) -> Result<ProviderConfig, PoolError> {
        let declared = self.declared().get(name).cloned();
        declared
            .or_else(|| ProviderConfig::implicit(name))
            .ok_or_else(|| PoolError::UnknownProvider(name.to_owned()))
    }

    /// Learns how providers are reached. One that is open otherwise is opened anew when it is asked for;
    /// calls that are under way end as they began.
    pub fn declare(&self, declared: BTreeMap<String, ProviderConfig>) {
        self.declared().extend(declared.into_iter().map(as_reached));
    }

    /// Returns these providers as they would be with `declared`: nobody else asks for them so. A run that is refused
    /// has changed nothing then.
    #[must_use]
    pub fn with(&self, declared: BTreeMap<String, ProviderConfig>) -> Self {
        let mut own = self.declared().clone();
        own.extend(declared.into_iter().map(as_reached));
        Self { declared: Arc::new(Mutex::new(own)), ..self.clone() }
    }

    /// Returns the provider of this name.
    ///
    /// # Errors
    /// When it is not known, or cannot be opened.
    pub async fn get(&self, name: &str) -> Result<SharedProvider, PoolError> {
        let Some(opening) = &self.opening else {
            let given = self.shelf().given.get(name).cloned();
            return given.ok_or_else(|| PoolError::UnknownProvider(name.to_owned()));
        };
        let config = self.config(name)?;
        if let Some(known) = self.shelf().known(name, &config) {
            return known;
        }
        // Whoever asks meanwhile gets what comes of this.
        let turn = Arc::clone(self.shelf().turns.entry(name.to_owned()).or_default());
        let _turn = turn.lock().await;
        if let Some(known) = self.shelf().known(name, &config) {
            return known;
        }
        let opened = open(name, &config, &opening.settings).await;
        self.keep(opening, (name, config), opened)
    }

    /// Returns the provider of this name unless somebody has to be asked first; what cannot be had is nothing.
    pub fn get_now(&self, name: &str) -> Option<SharedProvider> {
        let Some(opening) = &self.opening else {
            return self.shelf().given.get(name).cloned();
        };
        let config = self.config(name).ok()?;
        if let Some(known) = self.shelf().known(name, &config) {
            return known.ok();
        }
        if config.kind.says_place() {
            return None;
        }
        let opened = open_now(name, &config, &opening.settings);
        self.keep(opening, (name, config), opened).ok()
    }

    /// Keeps what came of opening a provider.
    fn keep(
        &self,
        opening: &Opening,
        (name, config): (&str, ProviderConfig),
        opened: Result<SharedProvider, PoolError>,
    ) -> Result<SharedProvider, PoolError> {
        let dressed = opened.map(|bare| {
            let suggested = bare.describe().about.max_concurrency;
            let dressed = (opening.dress)(name, bare);
            let mut limits = config.limits.clone();
            limits.max_concurrency = limits.max_concurrency.or(suggested);
            match Limiter::new(name, &limits, opening.store.clone()) {
                Some(limiter) => dressed.behind(Arc::new(limiter)),
                None => dressed,
            }
        });
        let mut shelf = self.shelf();
        match &dressed {
            Ok(provider) => {
                shelf.failed.remove(name);
                let all = shelf.opened.entry(name.to_owned()).or_default();
                all.push((config, provider.clone()));
                let surplus = all.len().saturating_sub(KEPT);
                all.drain(..surplus);
            }
            Err(error) => {
                let failed = (config, Stopwatch::start(), error.clone());
                shelf.failed.insert(name.to_owned(), failed);
            }
        }
        dressed
    }

    /// Opens the provider of this name once more, bare: as another process would. One that has to be asked first
    /// is shared; each call of an executable is another process anyway.
    ///
    /// # Errors
    /// As [`Providers::get`].
    pub fn open_anew(&self, name: &str) -> Result<SharedProvider, PoolError> {
        let Some(opening) = &self.opening else {
            let given = self.shelf().given.get(name).cloned();
            return given.ok_or_else(|| PoolError::UnknownProvider(name.to_owned()));
        };
        let config = self.config(name)?;
        let opened = self.shelf().open_as(name, &config).filter(|_| config.kind.is_asked());
        match opened {
            Some(opened) => Ok(opened),
            None => open_now(name, &config, &opening.settings),
        }
    }

    /// Returns the providers of these names, and why others cannot be had; one that takes longer than `limit` to open
    /// is one of these.
    pub async fn get_all(
        &self,
        names: &BTreeSet<String>,
        limit: Duration,
    ) -> (BTreeMap<String, SharedProvider>, BTreeMap<String, PoolError>) {
        let (mut found, mut failed) = (BTreeMap::new(), BTreeMap::new());
        let gets = names.iter().map(async |name| {
            let got = timeout(limit, self.get(name)).await.unwrap_or_else(|_| {
                let reason = format!("it did not say what it can do within {limit:?}");
                Err(PoolError::Provider { name: name.clone(), reason })
            });
            (name.clone(), got)
        });
        for (name, got) in futures_util::future::join_all(gets).await {
            match got {
                Ok(provider) => drop(found.insert(name, provider)),
                Err(error) => drop(failed.insert(name, error)),
            }
        }
        (found, failed)
    }
}
