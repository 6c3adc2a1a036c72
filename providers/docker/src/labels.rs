//! Identity to labels and back. Everything that says whose a container is, in the create call itself.
//!
//! Users' labels are set as they are, for the engine's own tools, and once more as JSON: an image brings labels
//! of its own, which are not the worker's.

use std::collections::{BTreeMap, HashMap};

use pool_provider::marks::{self, ATTEMPT, OPERATION, SPEC_HASH, WORKER};
use pool_provider::{CreateRequest, DeploymentId, WorkerName};

/// The provider's id of the worker: a reset changes the container, and not this.
pub(crate) const ID: &str = "pool.id";
/// The container is made by a reset: before it is started it is the worker already.
const RESET: &str = "pool.reset";
const LABELS: &str = "pool.labels";
const TAGS: &str = "pool.tags";

/// Who a container is, read back from its labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) id: String,
    pub(crate) name: WorkerName,
    pub(crate) attempt: u32,
    pub(crate) operation: i64,
    pub(crate) is_of_reset: bool,
    pub(crate) spec_hash: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) tags: Vec<String>,
}

/// Returns the provider's id of a worker, which is its container's name as well. An attempt is part of it:
/// what is left of an earlier one does not keep its name.
pub(crate) fn id(owner: &DeploymentId, name: &WorkerName, attempt: u32) -> String {
    format!("{}.{attempt}", name.object_name(owner))
}

/// Writes who the container will be; `of_reset` when it takes the place of another one.
pub(crate) fn write(
    request: &CreateRequest,
    provider: &str,
    of_reset: bool,
) -> HashMap<String, String> {
    let CreateRequest { owner, name, attempt, spec, .. } = request;
    let own = marks::of(request, provider).into_iter().chain([
        (ID, id(owner, name, *attempt)),
        (LABELS, serde_json::to_string(&spec.labels).unwrap_or_default()),
        (TAGS, serde_json::to_string(&spec.tags).unwrap_or_default()),
    ]);
    // Ours are last: a user's label of the same name does not hide whose it is.
    let users = spec.labels.clone().into_iter();
    let reset = of_reset.then(|| (RESET.to_owned(), "true".to_owned()));
    users.chain(own.map(|(key, value)| (key.to_owned(), value))).chain(reset).collect()
}

/// Reads who a container is; `None` when its labels do not say.
pub(crate) fn read(labels: &HashMap<String, String>) -> Option<Identity> {
    let get = |key: &str| labels.get(key).map(String::as_str);
    Some(Identity {
        id: get(ID)?.to_owned(),
        name: get(WORKER)?.parse().ok()?,
        attempt: get(ATTEMPT)?.parse().ok()?,
        operation: get(OPERATION)?.parse().ok()?,
        is_of_reset: get(RESET) == Some("true"),
        spec_hash: get(SPEC_HASH)?.to_owned(),
        labels: serde_json::from_str(get(LABELS)?).ok()?,
        tags: serde_json::from_str(get(TAGS)?).ok()?,
    })
}

/// Returns the filter that finds containers with all of these labels.
pub(crate) fn filter(labels: &[(&str, &str)]) -> HashMap<String, Vec<String>> {
    let labels = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    HashMap::from([("label".to_owned(), labels)])
}
