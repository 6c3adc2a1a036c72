//! The providers at hand, by name: those that were given, and those that are opened when they are first
//! needed, as they were declared.
//!
//! Decides nothing about who may declare what: the state and the files do. Opening a provider calls nobody, but for an
//! executable, which is asked what it can do, and for `ec2`, which asks whose account it is.

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

/// How long one that could not be opened, or was found somewhere else, is not tried again: an executable may take its
/// time to fail, and every probe would ask for it.
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
    opened: BTreeMap<String, Vec<Opened>>,
    /// Those that could not be opened lately: as what, since when that is known, and why.
    failed: BTreeMap<String, (Reached, Stopwatch, PoolError)>,
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

/// Adds what is declared. Files do not say where workers are that only their provider knows: what is recorded stays.
fn add(known: &mut BTreeMap<String, ProviderConfig>, declared: BTreeMap<String, ProviderConfig>) {
    for (name, mut config) in declared {
        if let Some(before) = known.get(&name) {
            config.keep_place_of(before);
        }
        known.insert(name, config);
    }
}

/// How a provider is reached: by its config without where its workers are, which it is asked.
#[derive(PartialEq)]
struct Reached {
    config: ProviderConfig,
    /// Where its workers are, as it was recorded.
    place: Option<String>,
}

/// A provider that is open, as what, and since when.
struct Opened {
    reached: Reached,
    since: Stopwatch,
    provider: SharedProvider,
}

impl Opened {
    /// Returns whether this is what is asked for. One that is not where its workers were recorded, or did not say so before
    /// that was recorded, is opened once more: credentials may be others by now.
    fn is(&self, reached: &Reached) -> bool {
        let said = || self.provider.describe().about.place;
        let is_there = match &reached.place {
            None => true,
            Some(place) => match said() {
                Some(said) => said == *place || self.since.elapsed() < TRIED_AGAIN_AFTER,
                None => self.reached.place.is_some(),
            },
        };
        self.reached.config == reached.config && is_there
    }
}

impl Shelf {
    /// Returns the provider that is open as this.
    fn open_as(&self, name: &str, reached: &Reached) -> Option<SharedProvider> {
        let all = self.opened.get(name)?;
        let as_asked_for = all.iter().find(|opened| opened.is(reached))?;
        Some(as_asked_for.provider.clone())
    }

    /// Returns what came of opening the provider as this, if that was tried.
    fn known(&self, name: &str, reached: &Reached) -> Option<Result<SharedProvider, PoolError>> {
        if let Some(opened) = self.open_as(name, reached) {
            return Some(Ok(opened));
        }
        let (tried, since, error) = self.failed.get(name)?;
        let is_recent = since.elapsed() < TRIED_AGAIN_AFTER;
        (tried == reached && is_recent).then(|| Err(error.clone()))
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

    fn reached(&self, name: &str) -> Result<Reached, PoolError> {
        let declared = self.declared().get(name).cloned();
        let config = declared
            .or_else(|| ProviderConfig::implicit(name))
            .ok_or_else(|| PoolError::UnknownProvider(name.to_owned()))?;
        let place = config.kind.said_place().map(str::to_owned);
        Ok(Reached { config: config.at(None), place })
    }

    /// Learns how providers are reached. One that is open otherwise is opened anew when it is asked for;
    /// calls that are under way end as they began.
    pub fn declare(&self, declared: BTreeMap<String, ProviderConfig>) {
        add(&mut self.declared(), declared);
    }

    /// Returns these providers as they would be with `declared`: nobody else asks for them so. A run that is refused
    /// has changed nothing then.
    #[must_use]
    pub fn with(&self, declared: BTreeMap<String, ProviderConfig>) -> Self {
        let mut own = self.declared().clone();
        add(&mut own, declared);
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
        let reached = self.reached(name)?;
        if let Some(known) = self.shelf().known(name, &reached) {
            return known;
        }
        // Whoever asks meanwhile gets what comes of this.
        let turn = Arc::clone(self.shelf().turns.entry(name.to_owned()).or_default());
        let _turn = turn.lock().await;
        if let Some(known) = self.shelf().known(name, &reached) {
            return known;
        }
        let as_recorded = (&reached.config, reached.place.as_deref());
        let opened = open(name, as_recorded, &opening.settings).await;
        self.keep(opening, (name, reached), opened)
    }

    /// Returns the provider of this name, if it is where its workers are recorded to be.
    ///
    /// # Errors
    /// As [`Providers::get`], and when it is somewhere else: what it says of a worker there means nothing.
    pub async fn get_there(&self, name: &str) -> Result<SharedProvider, PoolError> {
        let provider = self.get(name).await?;
        let recorded = self.opening.as_ref().and_then(|_| self.reached(name).ok()?.place);
        match (recorded, provider.describe().about.place) {
            (Some(recorded), Some(said)) if recorded != said => {
                let reason = format!("its workers are in {recorded}, and it is in {said} now");
                Err(PoolError::Provider { name: name.to_owned(), reason })
            }
            (Some(_) | None, _) => Ok(provider),
        }
    }

    /// Returns the provider of this name unless somebody has to be asked first; what cannot be had is nothing.
    pub fn get_now(&self, name: &str) -> Option<SharedProvider> {
        let Some(opening) = &self.opening else {
            return self.shelf().given.get(name).cloned();
        };
        let reached = self.reached(name).ok()?;
        if let Some(known) = self.shelf().known(name, &reached) {
            return known.ok();
        }
        if reached.config.kind.says_place() {
            return None;
        }
        let opened = open_now(name, &reached.config, &opening.settings);
        self.keep(opening, (name, reached), opened).ok()
    }

    /// Keeps what came of opening a provider.
    fn keep(
        &self,
        opening: &Opening,
        (name, reached): (&str, Reached),
        opened: Result<SharedProvider, PoolError>,
    ) -> Result<SharedProvider, PoolError> {
        let dressed = opened.map(|bare| {
            let suggested = bare.describe().about.max_concurrency;
            let dressed = (opening.dress)(name, bare).called(name);
            let mut limits = reached.config.limits.clone();
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
                let since = Stopwatch::start();
                all.push(Opened { reached, since, provider: provider.clone() });
                let surplus = all.len().saturating_sub(KEPT);
                all.drain(..surplus);
            }
            Err(error) => {
                let failed = (reached, Stopwatch::start(), error.clone());
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
        let reached = self.reached(name)?;
        let is_asked = reached.config.kind.is_asked();
        let opened = self.shelf().open_as(name, &reached).filter(|_| is_asked);
        match opened {
            Some(opened) => Ok(opened),
            None => open_now(name, &reached.config, &opening.settings),
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
