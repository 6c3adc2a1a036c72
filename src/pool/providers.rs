//! The providers at hand, by name: those that were given, and those that are opened when they are first
//! needed, as they were declared.
//!
//! Decides nothing about who may declare what: the state and the files do. Opening a provider calls nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pool_provider::SharedProvider;

use super::PoolError;
use super::limiter::Limiter;
use super::registry::{ProviderSettings, open};
use crate::config::ProviderConfig;
use crate::state::Store;

/// Providers by name; clones share them.
#[derive(Clone)]
pub struct Providers {
    shelf: Arc<Mutex<Shelf>>,
    opening: Option<Arc<Opening>>,
}

/// What is known of each provider.
#[derive(Default)]
struct Shelf {
    /// How each is reached, where that was declared.
    declared: BTreeMap<String, ProviderConfig>,
    /// Those that are open, and as what.
    opened: BTreeMap<String, (Option<ProviderConfig>, SharedProvider)>,
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

impl Shelf {
    fn config(&self, name: &str) -> Result<ProviderConfig, PoolError> {
        let declared = self.declared.get(name).cloned();
        declared
            .or_else(|| ProviderConfig::implicit(name))
            .ok_or_else(|| PoolError::UnknownProvider(name.to_owned()))
    }
}

impl Providers {
    /// Holds these and no others.
    pub fn given(providers: BTreeMap<String, SharedProvider>) -> Self {
        let opened = providers.into_iter().map(|(name, provider)| (name, (None, provider)));
        let shelf = Shelf { opened: opened.collect(), ..Shelf::default() };
        Self { shelf: Arc::new(Mutex::new(shelf)), opening: None }
    }

    /// Opens what is needed, and dresses it. Limits on calls are kept in `store`.
    pub fn opening(settings: ProviderSettings, store: Store, dress: Box<Dress>) -> Self {
        let opening = Opening { settings, store, dress };
        Self { shelf: Arc::default(), opening: Some(Arc::new(opening)) }
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Learns how providers are reached. One that is open otherwise is opened anew when it is asked for;
    /// calls that are under way end as they began.
    pub fn declare(&self, declared: BTreeMap<String, ProviderConfig>) {
        self.shelf().declared.extend(declared);
    }

    /// Returns these providers as they would be with `declared`: what is open as it is declared is shared, and
    /// nobody else sees the rest. A run that is refused has changed nothing then.
    #[must_use]
    pub fn with(&self, declared: BTreeMap<String, ProviderConfig>) -> Self {
        let shelf = self.shelf();
        let mut own = Shelf { declared: shelf.declared.clone(), opened: shelf.opened.clone() };
        own.declared.extend(declared);
        Self { shelf: Arc::new(Mutex::new(own)), opening: self.opening.clone() }
    }

    /// Returns the provider of this name.
    ///
    /// # Errors
    /// When it is not known, or cannot be opened.
    pub fn get(&self, name: &str) -> Result<SharedProvider, PoolError> {
        let mut shelf = self.shelf();
        let Some(opening) = &self.opening else {
            let given = shelf.opened.get(name).map(|(_, provider)| provider.clone());
            return given.ok_or_else(|| PoolError::UnknownProvider(name.to_owned()));
        };
        let config = shelf.config(name)?;
        match shelf.opened.get(name) {
            Some((Some(opened), provider)) if *opened == config => return Ok(provider.clone()),
            Some(_) | None => {}
        }
        let bare = open(name, &config, &opening.settings)?;
        let dressed = (opening.dress)(name, bare);
        let provider = match Limiter::new(name, &config.limits, opening.store.clone()) {
            Some(limiter) => dressed.behind(Arc::new(limiter)),
            None => dressed,
        };
        shelf.opened.insert(name.to_owned(), (Some(config), provider.clone()));
        Ok(provider)
    }

    /// Opens the provider of this name once more, bare: as another process would.
    ///
    /// # Errors
    /// As [`Providers::get`].
    pub fn open_anew(&self, name: &str) -> Result<SharedProvider, PoolError> {
        match &self.opening {
            None => self.get(name),
            Some(opening) => open(name, &self.shelf().config(name)?, &opening.settings),
        }
    }

    /// Returns the providers of these names, and why others cannot be had.
    pub fn get_all(
        &self,
        names: &BTreeSet<String>,
    ) -> (BTreeMap<String, SharedProvider>, BTreeMap<String, PoolError>) {
        let (mut found, mut failed) = (BTreeMap::new(), BTreeMap::new());
        for name in names {
            match self.get(name) {
                Ok(provider) => drop(found.insert(name.clone(), provider)),
                Err(error) => drop(failed.insert(name.clone(), error)),
            }
        }
        (found, failed)
    }
}
