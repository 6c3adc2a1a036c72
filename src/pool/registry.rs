//! From a provider's name to the provider: one `match` arm each.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use pool_local::LocalProvider;
use pool_provider::SharedProvider;
use pool_sim::SimProvider;

use super::PoolError;
use crate::clock::Clock;
use crate::config::KnownProviders;

/// What the providers need of this machine.
#[derive(Debug, Clone)]
pub struct ProviderSettings {
    /// Where local workers' claims and logs are kept; absolute.
    pub local_root: PathBuf,
    /// The program and arguments of the local launcher step.
    pub launcher: (PathBuf, Vec<String>),
    /// Where the simulated cloud is kept.
    pub sim_root: PathBuf,
    /// Tells the simulated cloud's time.
    pub clock: Clock,
}

/// Returns every provider that this version has, with its worker types.
pub fn known_providers() -> KnownProviders {
    let types = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    BTreeMap::from([
        ("local".to_owned(), types(&["process"])),
        ("sim".to_owned(), types(&["process", "container", "vm", "host"])),
    ])
}

/// Opens the providers of these names.
///
/// # Errors
/// When one is not known, or cannot be opened.
pub fn open_providers(
    names: &BTreeSet<String>,
    settings: &ProviderSettings,
) -> Result<BTreeMap<String, SharedProvider>, PoolError> {
    names.iter().map(|name| Ok((name.clone(), open(name, settings)?))).collect()
}

pub(super) fn open(name: &str, settings: &ProviderSettings) -> Result<SharedProvider, PoolError> {
    match name {
        "local" => {
            let (root, launcher) = (settings.local_root.clone(), settings.launcher.clone());
            let local = pool_local::Settings::new(root, launcher);
            Ok(SharedProvider::new(LocalProvider::new(local)))
        }
        "sim" => {
            let clock = settings.clock.clone();
            let now_ms = move || clock.now().as_millisecond();
            SimProvider::open(&settings.sim_root, now_ms).map(SharedProvider::new).map_err(
                |error| PoolError::Provider { name: name.to_owned(), reason: error.to_string() },
            )
        }
        other => Err(PoolError::UnknownProvider(other.to_owned())),
    }
}
