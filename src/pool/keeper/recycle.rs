//! Cleans workers between two leases: three attempts at most, then another worker takes the place.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::Keeper;
use crate::config::RecycleConfig;
use crate::probe::{self, Probed};
use crate::state::leases::RECYCLE_ATTEMPTS;
use crate::state::{StateError, Watched};

/// How many workers are cleaned at a time.
const PARALLEL: usize = 64;
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
    for (worker, recycle) in keeper.store.recycling().await? {
        if !keeper.desk.prober().begin(worker.row) {
            continue;
        }
        let (keeper, permits) = (keeper.clone(), Arc::clone(permits));
        tokio::spawn(async move {
            // The semaphore is never closed; without a permit one command too many would run.
            let _permit = permits.acquire().await.ok();
            let row = worker.row;
            if let Err(error) = clean(&keeper, &worker, recycle.as_ref()).await {
                tracing::warn!(%error, worker = %worker.name, "what cleaning came to was not recorded");
            }
            keeper.desk.prober().finish(row);
        });
    }
    Ok(())
}

async fn clean(
    keeper: &Keeper,
    worker: &Watched,
    recycle: Option<&RecycleConfig>,
) -> Result<(), StateError> {
    let mut last = "the pool does not say how".to_owned();
    for attempt in 1..=RECYCLE_ATTEMPTS {
        let Some(recycle) = recycle else { break };
        let outcome = match run(recycle, worker).await {
            Ok(()) => verify(keeper, worker).await,
            Err(why) => Err(why),
        };
        match outcome {
            Ok(()) => {
                keeper.store.record_recycled(worker.row).await?;
                keeper.desk.glance();
                return Ok(());
            }
            Err(why) => {
                tracing::warn!(worker = %worker.name, attempt, why, "a worker was not cleaned");
                last = why;
            }
        }
    }
    keeper.store.record_not_recycled(worker.row, last).await?;
    keeper.look_again();
    Ok(())
}

async fn run(recycle: &RecycleConfig, worker: &Watched) -> Result<(), String> {
    let run = probe::run_program(&recycle.command, &worker.name, &worker.addresses);
    timeout(recycle.timeout.get(), run)
        .await
        .unwrap_or_else(|_| Err(format!("cleaning took longer than {}", recycle.timeout)))
}

/// A clean worker is well, too.
async fn verify(keeper: &Keeper, worker: &Watched) -> Result<(), String> {
    let check = keeper.store.health_check(&worker.name.pool).await;
    let check = check.map_err(|error| error.to_string())?.unwrap_or_default();
    match keeper.desk.prober().probe(worker, &check).await {
        Ok(Probed::Passed) => Ok(()),
        Ok(Probed::Failed(why) | Probed::Gone(why)) => Err(why),
        Err(error) => Err(error.to_string()),
    }
}
