//! `pool serve`: the server, its signals and its files.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use pool_provider::SharedProvider;
use rustix::process::{Resource, getrlimit, setrlimit};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

use super::context::Context;
use super::error::CliError;
use super::exit::Exit;
use super::logs::{self, LogArgs};
use super::watch_files::{self, WatchedFiles};
use crate::plan::Refusal;
use crate::pool::{Files, Keeper, Mode, Providers, Secrets};
use crate::serve::listen::{self, ListenError};
use crate::serve::metered::Metered;
use crate::serve::metrics::Metrics;
use crate::serve::{self, Served};
use crate::state::{Check, StateError, Store, WhenMissing, holder};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Files and folders whose changes are applied; without any, the server follows the state
    #[arg(value_name = "CONFIG")]
    paths: Vec<PathBuf>,
    /// Where to listen; only this machine can be let in so far
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "POOL_LISTEN", hide_env_values = true,
        default_value = "127.0.0.1:7070",
        value_parser = address
    )]
    listen: SocketAddr,
    /// What the server does by itself; `full` with files, else `heal`
    #[arg(long, value_enum, value_name = "MODE")]
    reconcile: Option<Reconcile>,
    #[command(flatten)]
    logs: LogArgs,
}

/// Reads `127.0.0.1:7070`, `localhost:7070`, `:7070` and `7070`.
fn address(text: &str) -> Result<SocketAddr, String> {
    let local = match text.strip_prefix("localhost:").or(text.strip_prefix(':')) {
        Some(port) => format!("127.0.0.1:{port}"),
        None if text.bytes().all(|byte| byte.is_ascii_digit()) => format!("127.0.0.1:{text}"),
        None => text.to_owned(),
    };
    local.parse().map_err(|_| "write an address and a port, such as 127.0.0.1:7070".to_owned())
}

/// What the server does by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Reconcile {
    /// Apply the files whenever they change, and heal
    Full,
    /// Replace what breaks
    Heal,
    /// Probe, and change nothing
    Off,
}

impl Arguments {
    fn mode(&self) -> Result<Mode, CliError> {
        match (self.reconcile, self.paths.is_empty()) {
            (Some(Reconcile::Full), true) => Err(CliError::usage(
                "--reconcile full needs files to apply",
                "name the files, or leave it out: the server then follows the state",
            )),
            (Some(Reconcile::Full) | None, false) => Ok(Mode::Full),
            (Some(Reconcile::Heal), _) | (None, true) => Ok(Mode::Heal),
            (Some(Reconcile::Off), _) => Ok(Mode::Off),
        }
    }
}

pub(super) async fn run(context: &Context, arguments: &Arguments) -> Result<Exit, CliError> {
    let mode = arguments.mode()?;
    logs::begin(context, &arguments.logs)?;
    // Files that are wrong from the start are not served at all.
    if !arguments.paths.is_empty() {
        context.load(&arguments.paths).await?;
    }
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    // A server without files has nothing to read again, and does not end of it.
    let _hang_up = signal(SignalKind::hangup()).context("listening for SIGHUP")?;
    raise_file_limit();
    let when_missing =
        if arguments.paths.is_empty() { WhenMissing::Refuse } else { WhenMissing::Create };
    let store = context.open_checked("pool serve", when_missing, Check::Later)?.with_reader()?;
    store.serve().await?;
    let outcome = async {
        let listener = listen::bind(arguments.listen).await.map_err(|error| refused(&error))?;
        let address = listener.local_addr().context("looking where it listens")?;
        let metrics: Arc<Metrics> = Arc::default();
        let measured = Arc::clone(&metrics);
        store.observe_batches(Box::new(move |jobs| measured.batch(jobs)));
        let keeper = keeper(context, &store, &metrics, mode)?;
        let _watched = follow(context, arguments, &keeper, &metrics)?;
        keeper.begin();
        let mut heart = tokio::spawn(beat(store.clone()));
        let served = Arc::new(Served { keeper, metrics });
        let router = serve::router(Arc::clone(&served), &context.world.entropy);
        tracing::info!(%address, state = %store.path().display(), "serving");
        notify(&[NotifyState::Ready]);
        let mut trouble = None;
        let stop = async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                found = damaged(&store) => trouble = Some(found),
                Ok(taken) = &mut heart => trouble = Some(taken),
            }
            tracing::info!("stopping");
            notify(&[NotifyState::Stopping]);
        };
        listen::serve(listener, router, stop, || served.keeper.close()).await;
        served.keeper.desk().taken_back().await;
        heart.abort();
        trouble.map_or(Ok(Exit::Done), |found| Err(found.into()))
    }
    .await;
    store.stop_serving().await?;
    outcome
}

/// Connections and local workers take a file descriptor each; shells give 1,024 to begin with.
fn raise_file_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!(%error, "the limit on open files stays");
    }
}

/// Has the keeper follow the files, if there are any.
fn follow(
    context: &Context,
    arguments: &Arguments,
    keeper: &Keeper,
    metrics: &Arc<Metrics>,
) -> Result<Option<WatchedFiles>, CliError> {
    if arguments.paths.is_empty() {
        return Ok(None);
    }
    let changed: Arc<Notify> = Arc::default();
    let watched = watch_files::watch(&arguments.paths, &changed)?;
    let (context, paths) = (context.clone(), arguments.paths.clone());
    let load = Arc::new(move || {
        let (context, paths) = (context.clone(), paths.clone());
        Box::pin(async move {
            let loaded = context.read(&paths).await.map_err(|error| in_a_line(&error));
            loaded.map(|loaded| loaded.pools)
        }) as _
    });
    let explain = Arc::new(|refusals: &[Refusal]| in_a_line(&CliError::Refused(refusals.to_vec())));
    let measured = Arc::clone(metrics);
    let refused = Arc::new(move || measured.reload_failed());
    keeper.follow(Files { load, explain, changed, refused });
    Ok(Some(watched))
}

/// Everything that is wrong, each with its place, in one line.
fn in_a_line(error: &CliError) -> String {
    let found = error.diagnostics().into_iter().map(|(summary, _)| summary);
    found.collect::<Vec<_>>().join("; ")
}

fn keeper(
    context: &Context,
    store: &Store,
    metrics: &Arc<Metrics>,
    mode: Mode,
) -> Result<Keeper, CliError> {
    let environment = Arc::new(context.world.environment.clone());
    let secrets = Secrets::new(environment, store.secret_key());
    let counted = Arc::clone(metrics);
    let dress = Box::new(move |name: &str, provider: SharedProvider| {
        SharedProvider::new(Metered::new(name, provider, Arc::clone(&counted)))
    });
    let providers = Providers::opening(context.provider_settings()?, store.clone(), dress);
    let watcher = Arc::clone(metrics);
    let clock = context.world.clock.clone();
    Ok(Keeper::open(store.clone(), providers, secrets, clock, watcher, mode))
}

fn refused(error: &ListenError) -> CliError {
    let hint = match error {
        ListenError::Exposed(_) => {
            "whoever reaches the server may do everything: listen on 127.0.0.1 or [::1]"
        }
        ListenError::Refused { .. } => "choose another address with --listen",
    };
    CliError::usage(error.to_string(), hint)
}

/// Returns once the state turns out to be damaged; never, when it is not.
async fn damaged(store: &Store) -> StateError {
    match store.check().await {
        Err(error @ StateError::Damaged { .. }) => error,
        Ok(()) | Err(_) => std::future::pending().await,
    }
}

/// Says to others, and to systemd, that the server lives; returns once another one has the state.
async fn beat(store: Store) -> StateError {
    let watchdog = sd_notify::watchdog_enabled().map(|every| every / 2);
    let every = watchdog.unwrap_or(holder::HEARTBEAT).min(holder::HEARTBEAT);
    loop {
        tokio::time::sleep(every.max(Duration::from_millis(100))).await;
        match store.renew_serving().await {
            Ok(true) if watchdog.is_some() => notify(&[NotifyState::Watchdog]),
            Ok(true) => {}
            Ok(false) => {
                let holder = "another server, which took it over".to_owned();
                return StateError::Served { holder };
            }
            // Nothing is written any more, whatever happens: another process may do better.
            Err(error @ StateError::Closed) => return error,
            Err(error) => tracing::error!(%error, "the state cannot be written"),
        }
    }
}

/// Tells systemd, where it started us (sd_notify(3)).
fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "systemd was not told");
    }
}
