//! Whether what is asked for fits what providers say of themselves: where their workers are, and what these can be.
//!
//! What files alone tell is checked when they are loaded; this is what only the providers know.

use std::collections::BTreeMap;

use pool_provider::{Description, SharedProvider, WorkerProvider as _};
use serde_json::Value;

use super::PoolError;
use crate::config::{self, ProviderConfig, ProviderKind};
use crate::desired::DesiredPool;
use crate::plan::RecordedPool;
use crate::state::StateError;

/// Makes sure that no provider is declared to be somewhere else while it has workers: there they would not
/// be found any more.
pub(super) fn verify_places(
    known: &BTreeMap<String, ProviderConfig>,
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
            let name = pool.provider.clone();
            let (before, after) = (before.kind.place(), after.kind.place());
            return Err(StateError::ProviderMoved { name, before, after }.into());
        }
    }
    Ok(())
}

/// Makes sure that every pool asks for workers that its provider can create.
pub(super) fn verify_workers(
    providers: &BTreeMap<String, SharedProvider>,
    desired: &[DesiredPool],
) -> Result<(), PoolError> {
    let mut misfits = Vec::new();
    for pool in desired {
        // What others can create is known without asking them, and was checked.
        let is_asked = pool
            .provider_config
            .as_ref()
            .is_some_and(|config| matches!(config.kind, ProviderKind::Exec(_)));
        if let Some(provider) = providers.get(&pool.provider).filter(|_| is_asked) {
            misfits.extend(misfits_of(pool, &provider.describe()));
        }
    }
    if misfits.is_empty() { Ok(()) } else { Err(PoolError::Misfits(misfits)) }
}

fn misfits_of(pool: &DesiredPool, described: &Description) -> Vec<String> {
    let mut misfits = Vec::new();
    let (place, id, provider) = (&pool.place, &pool.id, &pool.provider);
    let wanted = pool.spec.worker_type.as_str();
    if !described.worker_types.iter().any(|has| has == wanted) {
        let has = described.worker_types.join(", ");
        misfits.push(format!(
            "{place}: {id}: the provider `{provider}` has no workers of type `{wanted}`; it has: {has}"
        ));
    }
    if let Some(schema) = &described.about.attributes_schema {
        let given = Value::Object(pool.spec.worker.attributes.clone());
        match config::misfits(schema, &given, "worker_config.attributes") {
            Ok(found) => misfits.extend(
                found.into_iter().map(|what| format!("{place}: {id}: {what}, says `{provider}`")),
            ),
            Err(why) => {
                misfits.push(format!("the provider `{provider}`: its attributes_schema: {why}"));
            }
        }
    }
    misfits
}
