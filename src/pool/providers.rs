//! The providers at hand, by name: those that were given, and those that are opened when they are first
//! needed.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use pool_provider::SharedProvider;

use super::PoolError;
use super::registry::{ProviderSettings, open};

/// Providers by name; clones share them.
#[derive(Clone)]
pub struct Providers {
    opened: Arc<Mutex<BTreeMap<String, SharedProvider>>>,
    settings: Option<Arc<ProviderSettings>>,
    dress: Option<Arc<Dress>>,
}

/// Puts something around a provider when it is opened, such as what counts its calls.
pub type Dress = dyn Fn(&str, SharedProvider) -> SharedProvider + Send + Sync;

impl fmt::Debug for Providers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Providers")
    }
}

impl Providers {
    /// Holds these and no others.
    pub fn given(providers: BTreeMap<String, SharedProvider>) -> Self {
        Self { opened: Arc::new(Mutex::new(providers)), settings: None, dress: None }
    }

    /// Opens what is needed, and dresses it.
    pub fn opening(settings: ProviderSettings, dress: Arc<Dress>) -> Self {
        Self { opened: Arc::default(), settings: Some(Arc::new(settings)), dress: Some(dress) }
    }

    /// Returns the provider of this name.
    ///
    /// # Errors
    /// When it is not known, or cannot be opened.
    pub fn get(&self, name: &str) -> Result<SharedProvider, PoolError> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(provider) = opened.get(name) {
            return Ok(provider.clone());
        }
        let settings =
            self.settings.as_ref().ok_or_else(|| PoolError::UnknownProvider(name.to_owned()))?;
        let bare = open(name, settings)?;
        let provider = match &self.dress {
            Some(dress) => dress(name, bare),
            None => bare,
        };
        opened.insert(name.to_owned(), provider.clone());
        Ok(provider)
    }
}
