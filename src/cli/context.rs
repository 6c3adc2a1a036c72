//! What commands have at hand: config files, the state, the providers, locks.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use pool_provider::SharedProvider;

use super::World;
use super::args::GlobalArgs;
use super::error::CliError;
use super::output::Printer;
use super::plan_file;
use crate::apply::Leased;
use crate::config::{self, Loaded, LoadedPool, Surroundings};
use crate::plan::Plan;
use crate::pool::{
    Effort, Hold, Patience, PoolError, ProviderSettings, Providers, Reconciler, Secrets, Unseen,
};
use crate::render;
use crate::state::{Check, OpenOptions, StateError, Store, WhenMissing};
use crate::worker::PoolId;

/// How long a provider may take to say what it can do; its own timeout is shorter, unless somebody asked for more.
const OPENED_WITHIN: Duration = Duration::from_secs(600);

/// Everything that a command has at hand.
#[derive(Clone)]
pub(super) struct Context {
    /// The world.
    pub world: World,
    /// The flags that every command has.
    pub global: GlobalArgs,
    /// The door to the terminal.
    pub printer: Printer,
}

impl Context {
    /// Reads and checks config files, and tells what is worth a word.
    pub(super) async fn load(&self, paths: &[PathBuf]) -> Result<Loaded, CliError> {
        let loaded = self.read(paths).await?;
        if !loaded.warnings.diagnostics.is_empty() {
            let text = render::report_text(&loaded.warnings, self.printer.error_look);
            self.printer.note(text.trim_end());
        }
        Ok(loaded)
    }

    /// Reads and checks config files.
    pub(super) async fn read(&self, paths: &[PathBuf]) -> Result<Loaded, CliError> {
        for path in paths {
            if plan_file::is_one(path) {
                let path = path.display();
                return Err(CliError::usage(
                    format!("{path} is a saved plan, where a config is wanted"),
                    format!("show it with `pool show {path}`, or apply it alone"),
                ));
            }
        }
        // On a thread of its own: standard input may take its time, and Ctrl-C must not wait for it.
        let asked = paths.to_vec();
        let sources = tokio::task::spawn_blocking(move || config::read(&asked, io::stdin().lock()))
            .await
            .context("reading the files")??;
        let around = Surroundings { environment: &self.world.environment };
        let loaded = config::load(sources, &around)?;
        for source in &loaded.warnings.sources.0 {
            tracing::debug!(file = source.name, bytes = source.text.len(), "read");
        }
        Ok(loaded)
    }

    /// Opens the state; `--require-state` refuses to go on without one.
    pub(super) fn open(&self, what: &str, when_missing: WhenMissing) -> Result<Store, CliError> {
        self.open_checked(what, when_missing, Check::First)
    }

    /// Opens the state, and says when it is checked for damage.
    pub(super) fn open_checked(
        &self,
        what: &str,
        when_missing: WhenMissing,
        check: Check,
    ) -> Result<Store, CliError> {
        let refuse = self.global.require_state;
        let options = OpenOptions {
            path: &self.global.state,
            when_missing: if refuse { WhenMissing::Refuse } else { when_missing },
            clock: self.world.clock.clone(),
            entropy: self.world.entropy.clone(),
            what,
            check,
        };
        let store = Store::open(options)?;
        tracing::debug!(state = %store.path().display(), deployment = %store.deployment(), "opened the state");
        Ok(store)
    }

    /// Puts together what a run needs, with the providers that the pools and the records name.
    pub(super) async fn reconciler(
        &self,
        store: Store,
        pools: &[LoadedPool],
        parallelism: u32,
    ) -> Result<Reconciler, CliError> {
        let providers = self.providers(&store).await?;
        providers.declare(
            pools
                .iter()
                .filter_map(|pool| {
                    Some((pool.config.provider_name().to_owned(), pool.provider.clone()?))
                })
                .collect(),
        );
        let mut names = store.provider_names().await?;
        names.extend(pools.iter().map(|pool| pool.config.provider_name().to_owned()));
        // A provider that nobody needs any more may be gone: the plan says what it is missed for.
        let wanted = pools.iter().map(|pool| pool.config.provider_name()).collect();
        let (providers, absent) = sorted(providers.get_all(&names, OPENED_WITHIN).await, &wanted)?;
        let environment = Arc::new(self.world.environment.clone());
        Ok(Reconciler {
            secrets: Secrets::new(environment, store.secret_key()),
            store,
            providers,
            absent,
            clock: self.world.clock.clone(),
            parallelism: parallelism as usize,
            leased: Leased::Wait,
            unseen: Unseen::new(),
            effort: Effort::PATIENT,
        })
    }

    /// Returns the providers that the state knows, none of them open.
    pub(super) async fn providers(&self, store: &Store) -> Result<Providers, CliError> {
        let undressed = Box::new(|_: &str, provider| provider);
        let providers = Providers::opening(self.provider_settings()?, store.clone(), undressed);
        providers.declare(store.provider_configs().await?);
        Ok(providers)
    }

    /// Adds the providers that a saved plan names.
    pub(super) async fn add_providers(
        &self,
        reconciler: &mut Reconciler,
        plan: &Plan,
    ) -> Result<(), CliError> {
        let providers = self.providers(&reconciler.store).await?;
        let pools = || plan.pools.iter().filter(|pool| pool.config.is_some());
        let declared =
            pools().filter_map(|pool| Some((pool.provider.clone(), pool.provider_config.clone()?)));
        providers.declare(declared.collect());
        let names: BTreeSet<String> = pools().map(|pool| pool.provider.clone()).collect();
        let (found, absent) =
            sorted(providers.get_all(&names, OPENED_WITHIN).await, &BTreeSet::new())?;
        for (name, provider) in found {
            reconciler.absent.remove(&name);
            reconciler.providers.insert(name, provider);
        }
        for (name, reason) in absent {
            if pools().any(|pool| pool.provider == name && !pool.is_empty()) {
                return Err(PoolError::Provider { name, reason }.into());
            }
            // As it was recorded it may be another one.
            reconciler.providers.remove(&name);
            reconciler.absent.insert(name, reason);
        }
        Ok(())
    }

    pub(super) fn provider_settings(&self) -> Result<ProviderSettings, CliError> {
        let folder = self.global.state.parent().unwrap_or(Path::new(""));
        let folder = std::path::absolute(folder.join("."))
            .with_context(|| format!("finding the folder of {}", self.global.state.display()))?;
        let sim_root = self.world.environment.get("POOL_SIM_DIR").map(PathBuf::from);
        Ok(ProviderSettings {
            local_root: folder.join("local"),
            launcher: self.world.launcher.clone(),
            warden: self.world.warden.clone(),
            exec_root: folder.join("exec"),
            environment: Arc::new(self.world.environment.clone()),
            sim_root: sim_root.unwrap_or_else(|| folder.join("sim")),
            clock: self.world.clock.clone(),
        })
    }

    /// Locks pools, waiting for others at most `limit` in all.
    pub(super) async fn lock(
        &self,
        store: &Store,
        pools: &BTreeSet<PoolId>,
        limit: Duration,
    ) -> Result<Hold, CliError> {
        let printer = self.printer.clone();
        let waiting =
            Arc::new(move |error: &StateError| printer.note(&format!("waiting: {error}")));
        Ok(Hold::take(store, pools, Patience { limit, waiting }).await?)
    }
}

/// Tells those that cannot be reached now from those that nobody knows, and from those whose config in the files is
/// not what they want: these are mistakes.
fn sorted(
    (found, failed): (BTreeMap<String, SharedProvider>, BTreeMap<String, PoolError>),
    wanted: &BTreeSet<&str>,
) -> Result<(BTreeMap<String, SharedProvider>, Unseen), CliError> {
    let mut absent = Unseen::new();
    for (name, error) in failed {
        match error {
            PoolError::Provider { reason, .. } => drop(absent.insert(name, reason)),
            unfit @ PoolError::Misfits(_) if !wanted.contains(name.as_str()) => {
                absent.insert(name, unfit.to_string());
            }
            other => return Err(other.into()),
        }
    }
    Ok((found, absent))
}
