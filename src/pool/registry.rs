//! From a provider's config to the provider: one `match` arm each.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pool_docker::DockerProvider;
use pool_ec2::Ec2Provider;
use pool_exec::ExecProvider;
use pool_local::LocalProvider;
use pool_provider::{SharedProvider, WorkerProvider as _};
use pool_sim::SimProvider;
use serde_json::Value;

use super::PoolError;
use super::secrets::Secrets;
use crate::clock::Clock;
use crate::config::{Misfit, ProviderConfig, ProviderKind};

/// What the providers need of this machine.
#[derive(Clone)]
pub struct ProviderSettings {
    /// Where local workers' claims and logs are kept; absolute.
    pub local_root: PathBuf,
    /// The program and arguments of the local launcher step.
    pub launcher: (PathBuf, Vec<String>),
    /// The program and arguments of the step that runs an executable.
    pub warden: (PathBuf, Vec<String>),
    /// Where executables' logs are kept.
    pub exec_root: PathBuf,
    /// The environment of this process: executables get some of it, and their secrets may be there.
    pub environment: Arc<BTreeMap<String, String>>,
    /// Where the simulated cloud is kept.
    pub sim_root: PathBuf,
    /// Tells the simulated cloud's time.
    pub clock: Clock,
}

impl fmt::Debug for ProviderSettings {
    // The environment may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProviderSettings")
            .field("local_root", &self.local_root)
            .finish_non_exhaustive()
    }
}

/// Opens the provider called `name`, and asks it what it can do where only it knows. `place` is where its workers are,
/// as it was recorded.
///
/// # Errors
/// When it cannot be opened, or its config is not what it wants, or nobody can tell whether its workers are there.
pub(super) async fn open(
    name: &str,
    (config, place): (&ProviderConfig, Option<&str>),
    settings: &ProviderSettings,
) -> Result<SharedProvider, PoolError> {
    let exec = match &config.kind {
        ProviderKind::Exec(exec) => exec,
        ProviderKind::Ec2(ec2) => {
            let provider = instances(name, ec2, settings)?;
            let told = provider.ask_account().await;
            let is_told = provider.describe().about.place.is_some();
            let told = told.and_then(|()| match place {
                Some(_) if !is_told => Err(NOBODY_TO_ASK.to_owned()),
                _ => Ok(()),
            });
            return match (told, place) {
                (Err(why), Some(place)) => {
                    let reason = format!(
                        "its workers are in {place}, and nobody can tell whether this is it: {why}"
                    );
                    Err(PoolError::Provider { name: name.to_owned(), reason })
                }
                // A call that needs credentials says what is wrong with them.
                (Ok(()) | Err(_), _) => Ok(SharedProvider::new(provider)),
            };
        }
        _ => return open_now(name, config, settings),
    };
    let failed = |reason: String| PoolError::Provider { name: name.to_owned(), reason };
    let secrets = Secrets::new(Arc::clone(&settings.environment), None);
    let own = pool_exec::Settings {
        name: name.to_owned(),
        warden: settings.warden.clone(),
        logs: own(&settings.exec_root, "exec", name),
        environment: Arc::clone(&settings.environment),
        read_secret: Arc::new(move |source| secrets.read(source)),
    };
    let provider = ExecProvider::open(exec.as_ref().clone(), own).await;
    let provider = provider.map_err(|error| failed(error.to_string()))?;
    if let Some(schema) = provider.describe().about.config_schema {
        let given = Value::Object(exec.config.clone());
        let wrong = Misfit::config(name, &given, &schema);
        let wrong = wrong.map_err(|why| failed(format!("its config_schema: {why}")))?;
        if !wrong.is_empty() {
            return Err(PoolError::Misfits(wrong));
        }
    }
    Ok(SharedProvider::new(provider))
}

/// Where it is known whose workers they are, and the API is not AWS's own.
const NOBODY_TO_ASK: &str =
    "there is no STS to ask for an endpoint that is not AWS's; set AWS_ENDPOINT_URL_STS";

/// Opens the provider called `name` without asking anybody.
///
/// # Errors
/// When it cannot be opened so.
pub(super) fn open_now(
    name: &str,
    config: &ProviderConfig,
    settings: &ProviderSettings,
) -> Result<SharedProvider, PoolError> {
    let failed = |reason: String| PoolError::Provider { name: name.to_owned(), reason };
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
        ProviderKind::Ec2(ec2) => instances(name, ec2, settings).map(SharedProvider::new),
        ProviderKind::Exec(_) => Err(failed("it has to be asked first".to_owned())),
        ProviderKind::Sim(_) => {
            let clock = settings.clock.clone();
            let now_ms = move || clock.now().as_millisecond();
            SimProvider::open(&own(&settings.sim_root, "sim", name), now_ms)
                .map(SharedProvider::new)
                .map_err(|error| failed(error.to_string()))
        }
    }
}

fn instances(
    name: &str,
    config: &pool_ec2::Config,
    settings: &ProviderSettings,
) -> Result<Ec2Provider, PoolError> {
    let clock = settings.clock.clone();
    let now = Arc::new(move || clock.system_now());
    let set = |variable: &str| settings.environment.get(variable).filter(|url| !url.is_empty());
    // Where all of AWS is somewhere else, STS is there too.
    let elsewhere = set("AWS_ENDPOINT_URL").filter(|url| config.endpoint.as_ref() == Some(*url));
    let identity = set("AWS_ENDPOINT_URL_STS").or(elsewhere).cloned();
    let identity = identity.or_else(|| config.identity_endpoint());
    let identity = identity.map(|url| url.trim_end_matches('/').to_owned());
    let own = pool_ec2::Settings { name: name.to_owned(), now, identity };
    let failed = |reason| PoolError::Provider { name: name.to_owned(), reason };
    Ec2Provider::new(config.clone(), own).map_err(failed)
}

/// Returns the folder of one provider: beside `root`, which is that of the provider called as its type.
fn own(root: &Path, kind: &str, name: &str) -> PathBuf {
    if name == kind {
        return root.to_owned();
    }
    let folder = root.file_name().unwrap_or_default().to_string_lossy();
    root.with_file_name(format!("{folder}-{name}"))
}
