//! What an executable prints: lines, errors, and what each method answers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pool_provider::{
    About, Consistency, DeploymentId, Description, Idempotency, InPlaceField, ObservedStatus,
    ObservedWorker, Probes, ProviderError,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::VERSION;

/// The longest that an executable is believed when it asks to come back later.
const LONGEST_WAIT: Duration = Duration::from_secs(5 * 60);

/// One line that an executable prints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Line {
    /// How it goes, for people; any number of these, before the answer.
    Progress {
        /// What happens now.
        message: String,
    },
    /// The answer: it is done. What `result` is depends on the method; a delete has none.
    Result {
        /// `Described`, `Worker`, `Listed` or `Probed`.
        #[serde(default)]
        result: Value,
    },
    /// The answer: it is not done. The exit status does not matter.
    Error {
        /// Which error; it decides what the caller does next.
        code: ErrorCode,
        /// What happened, for people.
        message: String,
        /// With `rate_limited`: how long to wait, in milliseconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_after_ms: Option<u64>,
    },
}

/// Why a call did not succeed. All but `unknown_outcome` promise that it had no effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// There is no such worker.
    NotFound,
    /// The name is taken by something that this call did not create.
    AlreadyExists,
    /// There is no room now.
    OutOfCapacity,
    /// A limit of the account is reached.
    Quota,
    /// Too many calls.
    RateLimited,
    /// The credentials are missing or refused.
    Unauthenticated,
    /// The request can never succeed as it is.
    InvalidSpec,
    /// A passing trouble; nothing happened.
    Transient,
    /// The call may have had its effect.
    UnknownOutcome,
}

impl ErrorCode {
    /// Returns the error of the contract.
    pub(crate) fn with(self, message: String, retry_after_ms: Option<u64>) -> ProviderError {
        match self {
            Self::NotFound => ProviderError::NotFound(message),
            Self::AlreadyExists => ProviderError::AlreadyExists(message),
            Self::OutOfCapacity => ProviderError::OutOfCapacity { message, elsewhere: false },
            Self::Quota => ProviderError::Quota(message),
            Self::RateLimited => {
                let retry_after =
                    retry_after_ms.map(|wait| Duration::from_millis(wait).min(LONGEST_WAIT));
                ProviderError::RateLimited { message, retry_after }
            }
            Self::Unauthenticated => ProviderError::Unauthenticated(message),
            Self::InvalidSpec => ProviderError::InvalidSpec(message),
            Self::Transient => ProviderError::Transient(message),
            Self::UnknownOutcome => ProviderError::UnknownOutcome(message),
        }
    }
}

/// Answers `describe`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Described {
    /// The versions of the protocol that the executable speaks.
    pub protocol_versions: Vec<u32>,
    /// The executable's own version, for people.
    #[serde(default)]
    pub version: Option<String>,
    /// The worker types that it creates: `process`, `container`, `vm`, `host`.
    pub worker_types: Vec<String>,
    /// The methods that it knows besides `describe`, `create`, `list` and `delete`: `get`, `update`, `probe`, `reset`.
    #[serde(default)]
    pub methods: BTreeSet<Extra>,
    /// What makes a repeated create safe.
    pub idempotency: Idempotency,
    /// What a listing proves.
    pub consistency: Consistency,
    /// How long the effect of a call may take to show in a listing, even when the call was cut off. What a cut off
    /// executable goes on to do counts from its end.
    #[serde(default)]
    pub settle_ms: u64,
    /// How long a delete may take, grace for the worker included.
    #[serde(default = "slowest_delete_ms")]
    pub slowest_delete_ms: u64,
    /// What `update` can change; nothing without that method.
    #[serde(default)]
    pub in_place: Vec<InPlaceField>,
    /// Whether all workers are on one host: two of them cannot listen on the same port.
    #[serde(default)]
    pub one_host: bool,
    /// How many workers fit in all, where that is known.
    #[serde(default)]
    pub capacity: Option<u32>,
    /// Where the workers are, in words: an account, a region, a rack. A provider that says another place than it
    /// did when it got its workers is refused: they would look missing.
    #[serde(default)]
    pub place: Option<String>,
    /// How much may be asked of it.
    #[serde(default)]
    pub limits: Limits,
    /// The JSON Schema (draft-07) of the provider's `config`.
    #[serde(default)]
    pub config_schema: Option<Value>,
    /// The JSON Schema (draft-07) of `worker_config.attributes`.
    #[serde(default)]
    pub attributes_schema: Option<Value>,
    /// An image that `create` refuses with `invalid_spec`, for `pool provider test`.
    #[serde(default)]
    pub invalid_image: Option<String>,
}

fn slowest_delete_ms() -> u64 {
    60_000
}

/// How much may be asked of an executable.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Limits {
    /// How many calls that change something may be under way, unless the pool file says otherwise.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub max_concurrency: Option<u32>,
}

/// A method that not every executable knows.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Extra {
    /// Look at one worker.
    Get,
    /// Change labels and tags.
    Update,
    /// Ask whether a worker is well.
    Probe,
    /// Start a worker anew.
    Reset,
}

/// The worker types of this version of the protocol.
const WORKER_TYPES: [&str; 4] = ["process", "container", "vm", "host"];

impl Described {
    /// Makes sure that this version can have workers of it.
    ///
    /// # Errors
    /// Why it cannot.
    pub(crate) fn verify(&self) -> Result<(), String> {
        if !self.protocol_versions.contains(&VERSION) {
            return Err(format!(
                "it speaks versions {:?} of the provider protocol, and this is version {VERSION}",
                self.protocol_versions
            ));
        }
        // Types that only a later version knows do no harm.
        if !self.worker_types.iter().any(|own| WORKER_TYPES.contains(&own.as_str())) {
            let known = WORKER_TYPES.join(", ");
            return Err(format!("`worker_types` {:?} has none of: {known}", self.worker_types));
        }
        Ok(())
    }

    /// Returns the keys of the answer that this version does not know.
    pub(crate) fn unknown(&self, said: Vec<String>) -> Vec<String> {
        let known = serde_json::to_value(self).unwrap_or_default();
        said.into_iter().filter(|key| known.get(key).is_none()).collect()
    }

    /// Returns the answer without what a description repeats as it is.
    fn answered(&self) -> Value {
        let rest = Self { config_schema: None, attributes_schema: None, ..self.clone() };
        let mut value = serde_json::to_value(rest).unwrap_or_default();
        if let Some(value) = value.as_object_mut() {
            value.retain(|_, value| !value.is_null());
        }
        value
    }

    /// Returns the contract's description. A call that was cut off may go on for `grace`; one that looks may take `look`.
    pub(crate) fn into_description(self, grace: Duration, look: Duration) -> Description {
        let answered = self.answered();
        let has = |method| self.methods.contains(&method);
        let in_place = if has(Extra::Update) { self.in_place.clone() } else { Vec::new() };
        Description {
            kind: "exec".to_owned(),
            resets: has(Extra::Reset),
            in_place,
            worker_types: self.worker_types,
            idempotency: self.idempotency,
            consistency: self.consistency,
            settle: Duration::from_millis(self.settle_ms).saturating_add(grace),
            slowest_delete: Duration::from_millis(self.slowest_delete_ms).saturating_add(grace),
            slowest_look: look.saturating_add(grace),
            one_host: self.one_host,
            tells_ends: false,
            probes: Probes::Worker,
            capacity: self.capacity,
            about: About {
                version: self.version,
                place: self.place,
                max_concurrency: self.limits.max_concurrency.filter(|most| *most > 0),
                config_schema: self.config_schema,
                attributes_schema: self.attributes_schema,
                invalid_image: self.invalid_image,
                answered: Some(answered),
                unknown: Vec::new(),
            },
        }
    }
}

/// One worker as the executable sees it. Dead and deleted workers are not shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Worker {
    /// The deployment that owns it.
    #[schemars(with = "String")]
    pub owner: DeploymentId,
    /// Its name, as it was created.
    pub name: String,
    /// The executable's own id of it: unique, and never used twice.
    #[schemars(length(min = 1))]
    pub provider_id: String,
    /// The attempt that created it.
    pub attempt: u32,
    /// The operation that created it.
    pub operation: i64,
    /// The hash that it was created with.
    pub spec_hash: String,
    /// How far it is.
    pub status: ObservedStatus,
    /// Its labels as they are now.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Its tags as they are now.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Where it can be reached: host names or IP addresses, best first. They are part of leases.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// What else a lease should tell.
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
}

impl Worker {
    /// Returns the contract's worker.
    ///
    /// # Errors
    /// When it is somebody else's, or nobody's: executables are not trusted.
    pub(crate) fn observed(self, owner: &DeploymentId) -> Result<ObservedWorker, String> {
        if self.owner != *owner {
            return Err(format!("the worker {} has the owner {}", self.name, self.owner));
        }
        if self.provider_id.is_empty() {
            return Err(format!("the worker {} has no provider_id", self.name));
        }
        Ok(ObservedWorker {
            name: self.name.parse().map_err(|error| format!("name: {error}"))?,
            provider_id: self.provider_id,
            attempt: self.attempt,
            operation: self.operation,
            spec_hash: self.spec_hash,
            status: self.status,
            labels: self.labels,
            tags: self.tags,
            addresses: self.addresses,
            attributes: self.attributes,
        })
    }
}

/// Answers `list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Listed {
    /// The page's workers.
    pub workers: Vec<Worker>,
    /// Where the listing goes on; absent on the last page.
    #[serde(default)]
    pub next: Option<String>,
    /// False when not everything could be seen (a zone is down): absence proves nothing then.
    pub complete: bool,
}

/// Answers `probe`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Probed {
    /// How the worker is.
    pub health: Health,
    /// Why it is not well.
    #[serde(default)]
    pub reason: String,
}

/// How a worker is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// It is well.
    Healthy,
    /// It is not well, and may get well again.
    Unhealthy,
    /// It is no longer there, and never comes back.
    Gone,
}
