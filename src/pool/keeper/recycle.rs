//! Cleans workers between two leases: three attempts at most, then another worker takes the place.

use std::sync::Arc;
use std::time::Duration;

use pool_provider::{
    Call, ObservedWorker, ProviderError, ResetRequest, WorkerProvider as _, WorkerRef,
};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::Keeper;
use crate::clock::Stopwatch;
use crate::config::RecycleConfig;
use crate::probe::{self, Probed};
use crate::state::leases::RECYCLE_ATTEMPTS;
use crate::state::{StateError, Used, Watched};
use crate::worker::Phase;

/// How many workers are cleaned at a time.
const PARALLEL: usize = 64;
/// How long the first pause between two attempts is, and the longest.
const BETWEEN: Duration = Duration::from_secs(1);
const LONGEST_BETWEEN: Duration = Duration::from_secs(30);
/// How soon a worker that was reset is probed again; doubled up to the check's interval.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// How often it is looked for workers that are to be cleaned, although nobody told.
const LOOK: Duration = Duration::from_secs(1);

/// Cleans workers until the keeper closes.
pub(super) async fn recycle(keeper: Keeper) {
    let permits = Arc::new(Semaphore::new(PARALLEL));
    let told = keeper.desk.used();
    loop {
        if let Err(error) = begin(&keeper, &permits).await {
            tracing::warn!(%error, "workers are not cleaned");
        }
        tokio::select! {
            () = keeper.closed() => return,
            _ = timeout(LOOK, told.notified()) => {}
        }
    }
}

/// Begins to clean every worker that is to be cleaned and is not being cleaned yet.
async fn begin(keeper: &Keeper, permits: &Arc<Semaphore>) -> Result<(), StateError> {
    for used in keeper.store.recycling().await? {
        let row = used.worker.row;
        if !keeper.desk.prober().begin(row) {
            continue;
        }
        let (keeper, permits) = (keeper.clone(), Arc::clone(permits));
        tokio::spawn(async move {
            // The semaphore is never closed; without a permit one command too many would run.
            let _permit = permits.acquire().await.ok();
            if let Err(error) = clean(&keeper, &used).await {
                tracing::warn!(%error, worker = %used.worker.name, "what cleaning came to was not recorded");
            }
            keeper.desk.prober().finish(row);
        });
    }
    Ok(())
}

async fn clean(keeper: &Keeper, used: &Used) -> Result<(), StateError> {
    let worker = &used.worker;
    // Between the look at all of them and this one's turn it may have been cleaned, and leased again.
    let now = keeper.store.watched(worker.row).await?;
    let is_same = |now: &Watched| {
        now.phase == Phase::Recycling && now.phase_since == worker.phase_since && !now.leased
    };
    if !now.as_ref().is_some_and(is_same) {
        return Ok(());
    }
    let mut last = "the pool does not say how".to_owned();
    for attempt in 1..=RECYCLE_ATTEMPTS {
        let Some(recycle) = &used.recycle else { break };
        match try_once(keeper, used, recycle).await {
            Ok(reset) => {
                keeper.store.record_recycled(worker, reset).await?;
                keeper.desk.glance();
                return Ok(());
            }
            Err(Unclean { why, hopeless, wait }) => {
                tracing::warn!(worker = %worker.name, attempt, why, "a worker was not cleaned");
                last = why;
                if hopeless {
                    break;
                }
                if attempt < RECYCLE_ATTEMPTS {
                    sleep(wait.unwrap_or(BETWEEN * attempt).min(LONGEST_BETWEEN)).await;
                }
            }
        }
    }
    keeper.store.record_not_recycled(worker, last).await?;
    keeper.look_again();
    Ok(())
}

/// Why an attempt failed.
struct Unclean {
    why: String,
    /// Whether another one would fail as well.
    hopeless: bool,
    /// When the provider asks to come back.
    wait: Option<Duration>,
}

impl From<String> for Unclean {
    fn from(why: String) -> Self {
        Self { why, hopeless: false, wait: None }
    }
}

/// Resets, runs the command, and probes; returns what a reset made of the worker.
async fn try_once(
    keeper: &Keeper,
    used: &Used,
    recycle: &RecycleConfig,
) -> Result<Option<ObservedWorker>, Unclean> {
    let (since, limit) = (Stopwatch::start(), recycle.timeout);
    let cleaning = async {
        let reset = if recycle.reset {
            Some(reset(keeper, used, (since, limit.get())).await?)
        } else {
            None
        };
        let worker = match &reset {
            Some(ObservedWorker { addresses, .. }) => {
                Watched { addresses: addresses.clone(), ..used.worker.clone() }
            }
            None => used.worker.clone(),
        };
        if !recycle.command.is_empty() {
            probe::run_program(&recycle.command, &worker.name, &worker.addresses).await?;
        }
        verify(keeper, &worker, reset.is_some()).await?;
        Ok(reset)
    };
    let out_of_time = || Err(Unclean::from(format!("cleaning took longer than {limit}")));
    timeout(limit.get(), cleaning).await.unwrap_or_else(|_| out_of_time())
}

async fn reset(
    keeper: &Keeper,
    used: &Used,
    (since, limit): (Stopwatch, Duration),
) -> Result<ObservedWorker, Unclean> {
    let worker = &used.worker;
    let hopeless = |why: String| Unclean { why, hopeless: true, wait: None };
    let provider = keeper.providers.get_there(&worker.provider).await;
    let provider = provider.map_err(|error| error.to_string())?;
    if !provider.describe().resets {
        return Err(hopeless(format!("the provider `{}` resets no workers", worker.provider)));
    }
    let spec = keeper.secrets.resolve(&used.spec)?.spec;
    let _turn = provider.turn(Call::Change).await;
    let request = ResetRequest {
        worker: WorkerRef {
            owner: keeper.store.deployment().clone(),
            name: worker.name.clone(),
            provider_id: worker.provider_id.clone(),
        },
        spec,
        // What the provider's turn left of it.
        timeout: limit.saturating_sub(since.elapsed()),
    };
    match provider.reset(&request).await {
        // Providers are not trusted: under another id it would be lost.
        Ok(reset)
            if reset.name == worker.name
                && worker.provider_id.as_ref() == Some(&reset.provider_id) =>
        {
            Ok(reset)
        }
        Ok(reset) => {
            Err(hopeless(format!("the reset answered {} {}", reset.name, reset.provider_id)))
        }
        Err(error @ (ProviderError::NotFound(_) | ProviderError::InvalidSpec(_))) => {
            Err(hopeless(error.to_string()))
        }
        Err(error) => {
            let wait = match &error {
                ProviderError::RateLimited { retry_after, .. } => *retry_after,
                _ => None,
            };
            Err(Unclean { why: error.to_string(), hopeless: false, wait })
        }
    }
}

/// A clean worker is well, too; one that starts anew gets until the attempt's end to be.
async fn verify(keeper: &Keeper, worker: &Watched, starts: bool) -> Result<(), Unclean> {
    let check = keeper.store.health_check(&worker.name.pool).await;
    let check = check.map_err(|error| error.to_string())?.unwrap_or_default();
    let mut pause = FIRST_PAUSE;
    loop {
        match keeper.desk.prober().probe(worker, &check).await {
            Ok(Probed::Passed) => return Ok(()),
            Ok(Probed::Failed(why)) if !starts => return Err(why.into()),
            // Nobody could ask, or it is on its way: both end with the attempt.
            Ok(Probed::Failed(_) | Probed::Unasked(_)) => {
                sleep(pause).await;
                pause = (pause * 2).min(check.interval.get());
            }
            Ok(Probed::Gone(why)) => return Err(Unclean { why, hopeless: true, wait: None }),
            Err(error) => return Err(error.to_string().into()),
        }
    }
}
