//! Applies files that change, and says so when the state is not what they say.
//!
//! The state holds the applied config. A change of the files is applied, whole or not at all: files that
//! are wrong, or that a guard refuses, change nothing, and the server goes on with what was applied. When
//! another process applied something else since, that is not reverted: the pools are kept as the state
//! says, and the conflict is told.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::heal::observer;
use super::{Keeper, Mode};
use crate::config::{LoadedPool, ProviderConfig};
use crate::plan::{PlanOptions, Refusal};
use crate::pool::hold::{Hold, Patience};
use crate::pool::{Effort, PoolError, Reconciler, Unseen};
use crate::state::StateError;
use crate::worker::PoolId;

/// How long files have to say the same before it is believed.
const QUIET: Duration = Duration::from_millis(150);
/// How often it is looked whether the state still is what the files say.
const COMPARE: Duration = Duration::from_secs(5);
/// How soon a pool is tried again that somebody else works on.
const LOCKED: Duration = Duration::from_millis(200);
/// How many provider calls may be under way in all pools together.
const PARALLELISM: usize = 100;

type Loading = Pin<Box<dyn Future<Output = Result<Vec<LoadedPool>, String>> + Send>>;

type Explain = dyn Fn(&[Refusal]) -> String + Send + Sync;

/// The files that a server follows.
#[derive(Clone)]
pub struct Files {
    /// Reads and checks them; says what is wrong, with file and line.
    pub load: Arc<dyn Fn() -> Loading + Send + Sync>,
    /// Says why a plan is refused.
    pub explain: Arc<Explain>,
    /// Is told when they may have changed.
    pub changed: Arc<Notify>,
    /// Is told of each change that was refused.
    pub refused: Arc<dyn Fn() + Send + Sync>,
}

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Files")
    }
}

/// How the files and the state stand to each other.
enum Stand {
    /// The state is what they say.
    Same,
    /// They changed since they were applied.
    Changed,
    /// They did not, and somebody else applied something else.
    Conflict(String),
}

/// What became of a look at the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    /// The state is what they say, or somebody was told why not.
    Done,
    /// They changed meanwhile.
    Again,
}

/// Follows the files until the keeper closes.
pub(super) async fn follow(keeper: Keeper, files: Files) {
    let mut first = true;
    let mut last_error = None;
    loop {
        let followed = tokio::select! {
            () = keeper.closed() => return,
            followed = once(&keeper, &files, first) => followed,
        };
        if followed == Ok(Look::Again) {
            continue;
        }
        let error = followed.err();
        if let Some(error) = error.as_ref().filter(|error| last_error.as_ref() != Some(*error)) {
            tracing::error!(error, "the files are not followed; what was applied stays");
            (files.refused)();
        } else if error.is_none() && last_error.is_some() {
            tracing::info!("the files are followed again");
        }
        keeper.set_config_error(error.clone());
        keeper.awaits_files.store(false, Ordering::Release);
        first &= error.is_some();
        last_error = error;
        tokio::select! {
            () = keeper.closed() => return,
            _ = timeout(COMPARE, files.changed.notified()) => {}
        }
    }
}

/// Reads the files and applies them if they changed.
async fn once(keeper: &Keeper, files: &Files, first: bool) -> Result<Look, String> {
    let pools = read_settled(files).await?;
    let digest = digest(&pools);
    let said = |error: StateError| error.to_string();
    match (stand(keeper, &pools, &digest).await.map_err(said)?, keeper.mode()) {
        (Stand::Conflict(what), _) => Err(what),
        (Stand::Same, Mode::Heal | Mode::Off) => Ok(Look::Done),
        (Stand::Same, Mode::Full) if !first => {
            // Applied by somebody else, or before this server was there: from here on a change is a change.
            remember(keeper, &digest).await.map(|()| Look::Done).map_err(said)
        }
        (Stand::Changed, Mode::Heal | Mode::Off) => {
            Err("the files changed; this server does not apply them (--reconcile)".to_owned())
        }
        // The server was just started with these files: whatever is missing comes, however much it is.
        (Stand::Same | Stand::Changed, Mode::Full) => {
            match apply(keeper, files, &pools, &digest).await {
                Ok(look) => Ok(look),
                Err(PoolError::Refused(refusals)) => Err((files.explain)(&refusals)),
                Err(error) => Err(error.to_string()),
            }
        }
    }
}

/// Reads the files until they say the same twice: editors and git write in several steps, and a file that
/// is caught in between must not cost a pool its workers.
async fn read_settled(files: &Files) -> Result<Vec<LoadedPool>, String> {
    let mut before = (files.load)().await?;
    loop {
        sleep(QUIET).await;
        let pools = (files.load)().await?;
        if digest(&pools) == digest(&before) {
            if pools.is_empty() {
                return Err(
                    "the files name no pool; `pool destroy` deletes what is recorded".to_owned()
                );
            }
            return Ok(pools);
        }
        before = pools;
    }
}

async fn remember(keeper: &Keeper, digest: &str) -> Result<(), StateError> {
    if keeper.store.served_config().await?.as_deref() != Some(digest) {
        keeper.store.set_served_config(digest.to_owned()).await?;
    }
    Ok(())
}

fn digest(pools: &[LoadedPool]) -> String {
    let configs: BTreeMap<&PoolId, serde_json::Value> = pools
        .iter()
        .map(|pool| {
            // What nobody declared is left out: earlier versions did not know of it.
            let implicit = ProviderConfig::implicit(pool.config.provider_name());
            let provider =
                pool.provider.as_ref().filter(|config| Some(*config) != implicit.as_ref());
            let asked = match provider {
                Some(provider) => serde_json::to_value((&pool.config, provider)),
                None => serde_json::to_value(&pool.config),
            };
            (&pool.config.pool_id, asked.unwrap_or_default())
        })
        .collect();
    let text = serde_json::to_vec(&configs).unwrap_or_default();
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn stand(keeper: &Keeper, pools: &[LoadedPool], digest: &str) -> Result<Stand, StateError> {
    let differ = differences(keeper, pools).await?;
    if differ.is_empty() {
        return Ok(Stand::Same);
    }
    if keeper.store.served_config().await?.as_deref() != Some(digest) {
        return Ok(Stand::Changed);
    }
    Ok(Stand::Conflict(format!(
        "config_conflict: another process applied since: {}; the pools are kept as it said, until \
         these files change",
        differ.join(", ")
    )))
}

/// Says in what the applied configs are not those of the files.
async fn differences(keeper: &Keeper, pools: &[LoadedPool]) -> Result<Vec<String>, StateError> {
    let mut differ = Vec::new();
    let summaries = keeper.store.summaries().await?;
    let applied = |pool: &PoolId| {
        let summary = summaries.iter().find(|summary| summary.pool == *pool)?;
        summary.applied.as_ref()
    };
    let recorded = keeper.store.load_applied_providers().await?;
    let is_reached_so = |pool: &LoadedPool| {
        let recorded = recorded.get(&pool.config.pool_id).cloned();
        let implicit = || ProviderConfig::implicit(pool.config.provider_name());
        // Where an executable says it is was no part of the files.
        recorded.or_else(implicit).map(|config| config.at(None)) == pool.provider
    };
    for pool in pools {
        match applied(&pool.config.pool_id) {
            Some((config, ..)) if *config == pool.config && is_reached_so(pool) => {}
            Some((_, at, origin)) => {
                differ
                    .push(format!("{} was applied from {origin} at {at:.0}", pool.config.pool_id));
            }
            None => differ.push(format!("{} was removed", pool.config.pool_id)),
        }
    }
    for summary in summaries.iter().filter(|summary| summary.applied.is_some()) {
        if !pools.iter().any(|pool| pool.config.pool_id == summary.pool) {
            differ.push(format!("{} was added", summary.pool));
        }
    }
    Ok(differ)
}

/// Makes everything as the files say.
async fn apply(
    keeper: &Keeper,
    files: &Files,
    pools: &[LoadedPool],
    digest_before: &str,
) -> Result<Look, PoolError> {
    let mut concerned: BTreeSet<PoolId> = keeper.store.pool_ids().await?;
    concerned.extend(pools.iter().map(|pool| pool.config.pool_id.clone()));
    let configs = config_versions(keeper).await?;
    let hold = hold_all(keeper, &concerned).await?;
    let outcome = if config_versions(keeper).await? == configs {
        match (files.load)().await {
            Ok(now) if digest(&now) == digest_before => {
                under_locks(keeper, pools, &hold).await.map(|()| Look::Done)
            }
            // They changed while the locks were waited for.
            Ok(_) | Err(_) => Ok(Look::Again),
        }
    } else {
        // Whoever had the locks applied meanwhile: the files are older than that.
        let served = keeper.store.set_served_config(digest_before.to_owned()).await;
        served.map(|()| Look::Done).map_err(PoolError::from)
    };
    hold.give_back().await;
    keeper.look_again();
    if outcome? == Look::Again {
        return Ok(Look::Again);
    }
    // Not before the config is recorded: a change that was not must not look like one that was.
    if differences(keeper, pools).await?.is_empty() {
        remember(keeper, digest_before).await?;
    }
    Ok(Look::Done)
}

async fn config_versions(keeper: &Keeper) -> Result<BTreeMap<PoolId, i64>, StateError> {
    let versions = keeper.store.versions().await?;
    Ok(versions.into_iter().map(|(pool, (_, config))| (pool, config)).collect())
}

/// Takes the locks of all these pools. While somebody else has one of them, none is held: the others can be
/// healed meanwhile.
async fn hold_all(keeper: &Keeper, pools: &BTreeSet<PoolId>) -> Result<Hold, StateError> {
    let mut told = false;
    loop {
        match Hold::take(&keeper.store, pools, Patience::none()).await {
            Err(error @ StateError::Locked { .. }) => {
                if !told {
                    told = true;
                    tracing::info!(%error, "waiting to apply the files");
                }
                sleep(LOCKED).await;
            }
            taken => return taken,
        }
    }
}

/// Plans and applies; what single workers fail at is healed later.
async fn under_locks(keeper: &Keeper, pools: &[LoadedPool], hold: &Hold) -> Result<(), PoolError> {
    // All of what the files say, or nothing: pools that cannot be seen are no reason to say that it is done.
    let reconciler = keeper.reconciler(pools, PARALLELISM, Unseen::new()).await?;
    let reconciler = Reconciler { unseen: Unseen::new(), effort: Effort::PATIENT, ..reconciler };
    let desired = reconciler.desired(pools);
    let mut plan = reconciler.plan_settled(&desired, &PlanOptions::default(), true).await?.plan;
    if !plan.refusals.is_empty() {
        return Err(PoolError::Refused(plan.refusals));
    }
    let locks = hold.locks();
    plan.pools.retain(|pool| locks.contains_key(&pool.pool));
    let summary = plan.summary();
    tracing::info!(
        add = summary.add,
        change = summary.change,
        destroy = summary.destroy,
        "applying the files"
    );
    let outcomes = reconciler.apply(&plan, &locks, observer(keeper)).await?;
    let mut unrecorded = None;
    for (worker, why) in outcomes.iter().flat_map(|o| o.failures.iter().chain(&o.held)) {
        tracing::warn!(%worker, why, "not done yet");
        unrecorded.get_or_insert_with(|| why.clone());
    }
    if let Some(error) = outcomes.into_iter().find_map(|outcome| outcome.stopped_by) {
        return Err(error.into());
    }
    // A secret that cannot be read keeps the whole change from being recorded.
    match unrecorded {
        Some(why) if !differences(keeper, pools).await?.is_empty() => {
            Err(StateError::Conflict(format!("the files are not applied yet: {why}")).into())
        }
        Some(_) | None => Ok(()),
    }
}

impl Keeper {
    fn set_config_error(&self, error: Option<String>) {
        *self.config_error.lock().unwrap_or_else(PoisonError::into_inner) = error;
    }

    /// Begins to follow files, until [`Keeper::close`].
    pub fn follow(&self, files: Files) {
        self.awaits_files.store(true, Ordering::Release);
        tokio::spawn(follow(self.clone(), files));
    }
}
