//! Whether what is asked for fits what providers say of themselves: where their workers are, and what these can be.
//!
//! What files alone tell is checked when they are loaded; this is what only the providers know. Input: configs, plans
//! and open providers. Calls nobody.

use std::collections::{BTreeMap, BTreeSet};

use pool_provider::{SharedProvider, WorkerProvider as _};
use serde_json::Value;

use super::{PoolError, Unseen};
use crate::config::{Misfit, ProviderConfig, StaticPoolConfig};
use crate::desired::{DesiredPool, Spec};
use crate::plan::{Plan, PoolPlan, RecordedPool};
use crate::state::StateError;
use crate::worker::PoolId;

type Open = BTreeMap<String, SharedProvider>;
type Known = BTreeMap<String, ProviderConfig>;

/// Returns where a provider says that its workers are.
pub(super) fn place(providers: &Open, name: &str) -> Option<String> {
    providers.get(name)?.describe().about.place
}

/// Returns the pools with the places that are recorded where their providers do not say one now: what is said once
/// stays.
pub(super) fn with_places(desired: &[DesiredPool], known: &Known) -> Vec<DesiredPool> {
    let kept = |pool: &DesiredPool| {
        let mut pool = pool.clone();
        if let (Some(config), Some(known)) = (&mut pool.provider_config, known.get(&pool.provider))
        {
            config.keep_place_of(known);
        }
        pool
    };
    desired.iter().map(kept).collect()
}

/// Returns the providers with recorded workers that are not where these are: a listing there says nothing of them.
pub(super) fn misplaced(
    providers: &Open,
    known: &Known,
    recorded: &[RecordedPool],
) -> BTreeMap<String, StateError> {
    let workers = recorded.iter().flat_map(|pool| &pool.workers);
    elsewhere(providers, known, workers.map(|worker| &worker.provider).collect())
}

/// Returns those of these providers that are not where they are recorded to be.
fn elsewhere(
    providers: &Open,
    known: &Known,
    used: BTreeSet<&String>,
) -> BTreeMap<String, StateError> {
    let moved = |name: &String| {
        let before = known.get(name)?;
        let now = before.clone().at(place(providers, name).as_deref());
        let error = || moved(name, before, &now);
        before.kind.is_elsewhere(&now.kind).then(|| (name.clone(), error()))
    };
    used.into_iter().filter_map(moved).collect()
}

fn moved(name: &str, before: &ProviderConfig, after: &ProviderConfig) -> StateError {
    let (before, after) = (before.kind.place(), after.kind.place());
    StateError::ProviderMoved { name: name.to_owned(), before, after }
}

/// Returns the same as reasons not to look there.
pub(super) fn unseen(misplaced: BTreeMap<String, StateError>) -> Unseen {
    misplaced.into_iter().map(|(name, error)| (name, error.to_string())).collect()
}

/// Makes sure that no provider is declared to be somewhere else while it has workers: there they would not
/// be found any more.
pub(super) fn verify_places(
    known: &Known,
    desired: &[DesiredPool],
    recorded: &[RecordedPool],
) -> Result<(), PoolError> {
    for pool in desired {
        let before = known.get(&pool.provider).cloned();
        let before = before.or_else(|| ProviderConfig::implicit(&pool.provider));
        let (Some(before), Some(after)) = (before, &pool.provider_config) else { continue };
        let has_workers = || {
            let mut workers = recorded.iter().flat_map(|pool| &pool.workers);
            workers.any(|worker| worker.provider == pool.provider)
        };
        if before.kind.is_elsewhere(&after.kind) && has_workers() {
            return Err(moved(&pool.provider, &before, after).into());
        }
    }
    Ok(())
}

/// Makes sure that every new worker of a plan is one that its provider can create, where the plan means it to be.
pub(super) fn verify_plan(providers: &Open, plan: &Plan) -> Result<(), PoolError> {
    let mut misfits = Vec::new();
    for pool in &plan.pools {
        let creates = pool.steps.iter().any(|step| step.create.is_some());
        let asked = pool.provider_config.as_ref().filter(|config| config.kind.says_place());
        if let Some(config) = asked.filter(|_| creates) {
            let now = config.clone().at(place(providers, &pool.provider).as_deref());
            if config.kind.is_elsewhere(&now.kind) {
                return Err(moved(&pool.provider, config, &now).into());
            }
            misfits.extend(misfits_of(providers, pool)?);
        }
    }
    if misfits.is_empty() { Ok(()) } else { Err(PoolError::Misfits(misfits)) }
}

/// Makes sure that the workers that a plan changes or deletes are where their providers are now: elsewhere each of them would
/// look gone.
pub(super) fn verify_old(providers: &Open, known: &Known, plan: &Plan) -> Result<(), StateError> {
    let steps = plan.pools.iter().flat_map(|pool| &pool.steps);
    let old = steps.flat_map(|step| step.update.iter().chain(&step.reap).chain(&step.delete));
    let used: BTreeSet<&String> = old.map(|old| &old.provider).collect();
    elsewhere(providers, known, used).into_values().next().map_or(Ok(()), Err)
}

fn misfits_of(providers: &Open, pool: &PoolPlan) -> Result<Vec<Misfit>, PoolError> {
    let (Some(provider), Some(spec)) = (providers.get(&pool.provider), pool.spec()) else {
        return Ok(Vec::new());
    };
    misfits(provider, &pool.provider, (&pool.pool, pool.place.as_str()), &spec)
}

/// Makes sure that a provider can create workers of a pool like this.
///
/// # Errors
/// [`PoolError::Misfits`] with all that it cannot.
pub fn verify_pool(
    provider: &SharedProvider,
    config: &StaticPoolConfig,
    place: &str,
) -> Result<(), PoolError> {
    let spec = Spec::of(config, None);
    let found = misfits(provider, config.provider_name(), (&config.pool_id, place), &spec)?;
    if found.is_empty() { Ok(()) } else { Err(PoolError::Misfits(found)) }
}

fn misfits(
    provider: &SharedProvider,
    name: &str,
    asks: (&PoolId, &str),
    spec: &Spec,
) -> Result<Vec<Misfit>, PoolError> {
    let described = provider.describe();
    let mut misfits = Vec::new();
    let wanted = spec.worker_type.as_str();
    if !described.worker_types.iter().any(|has| has == wanted) {
        misfits.push(Misfit::worker_type(name, asks, wanted, &described.worker_types));
    }
    if let Some(schema) = &described.about.attributes_schema {
        let given = Value::Object(spec.worker.attributes.clone());
        let found = Misfit::attributes(name, asks, &given, schema);
        misfits.extend(found.map_err(|why| PoolError::Provider {
            name: name.to_owned(),
            reason: format!("its attributes_schema: {why}"),
        })?);
    }
    Ok(misfits)
}
