//! From a provider's config to the provider: one `match` arm each.

use std::path::{Path, PathBuf};

use pool_docker::DockerProvider;
use pool_local::LocalProvider;
use pool_provider::SharedProvider;
use pool_sim::SimProvider;

use super::PoolError;
use crate::clock::Clock;
use crate::config::{ProviderConfig, ProviderKind};

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

/// Opens the provider called `name`.
///
/// # Errors
/// When it cannot be opened.
pub(super) fn open(
    name: &str,
    config: &ProviderConfig,
    settings: &ProviderSettings,
) -> Result<SharedProvider, PoolError> {
    match &config.kind {
        ProviderKind::Local(local) => {
            let (root, launcher) = (own(&settings.local_root, "local", name), &settings.launcher);
            let settings = pool_local::Settings {
                name: name.to_owned(),
                stop_grace: local.stop_grace.get(),
                ..pool_local::Settings::new(root, launcher.clone())
            };
            Ok(SharedProvider::new(LocalProvider::new(settings)))
        }
        ProviderKind::Docker(docker) => {
            let host = docker.host.clone().unwrap_or_else(|| pool_docker::DEFAULT_HOST.to_owned());
            let settings = pool_docker::Settings { name: name.to_owned(), host };
            Ok(SharedProvider::new(DockerProvider::new(docker.clone(), settings)))
        }
        ProviderKind::Sim(_) => {
            let clock = settings.clock.clone();
            let now_ms = move || clock.now().as_millisecond();
            SimProvider::open(&own(&settings.sim_root, "sim", name), now_ms)
                .map(SharedProvider::new)
                .map_err(|error| PoolError::Provider {
                    name: name.to_owned(),
                    reason: error.to_string(),
                })
        }
    }
}

/// Returns the folder of one provider: beside `root`, which is that of the provider called as its type.
fn own(root: &Path, kind: &str, name: &str) -> PathBuf {
    if name == kind {
        return root.to_owned();
    }
    let folder = root.file_name().unwrap_or_default().to_string_lossy();
    root.with_file_name(format!("{folder}-{name}"))
}
