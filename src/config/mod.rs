//! What the files and the environment ask for.
//!
//! Text goes in, pools or diagnostics come out: [`read`] gets the texts, [`load`] turns them into
//! [`LoadedPool`]s. Knows nothing of state, providers' workings, or terminals.
//!
//! | module         | decides                                                      |
//! |----------------|--------------------------------------------------------------|
//! | [`types`]      | what a pool file can say (the user story's names)              |
//! | [`policy`]     | how a pool is run                                              |
//! | [`providers`]  | where workers come from                                        |
//! | [`leases`]     | how its workers are leased                                     |
//! | `document`     | what YAML or JSON text means, and where each value stands      |
//! | [`schema`]     | the JSON Schema, and what breaks it                            |
//! | `overrides`    | what the environment changes                                   |
//! | [`check`]      | rules between fields                                           |
//! | [`rules`]      | every rule by its name                                         |
//! | [`load`]       | the order of all this                                          |
//! | `snippets`     | what editors offer to write as a whole                         |
//! | `misfit`       | what does not fit what a provider says of itself                |

pub mod check;
pub mod diagnostic;
mod document;
pub mod leases;
mod load;
mod misfit;
mod overrides;
mod pointer;
pub mod policy;
pub mod providers;
pub mod rules;
pub mod schema;
mod snippets;
pub mod types;

pub use diagnostic::{Diagnostic, Location, Report, Severity, Sources};
pub use leases::{LeasesConfig, Pick, RecycleConfig, Reuse};
pub use load::{Loaded, LoadedPool, Origin, Surroundings, load, read};
pub use misfit::{Misfit, misfits_report};
pub use policy::{
    CountOrPercent, GuardsConfig, HealthCheckConfig, HealthCheckKind, OnFailure,
    ProvisioningConfig, ProvisioningStrategy, RemediationConfig, UpdateConfig,
};
pub use pool_provider::{HumanDuration, SecretSource};
pub use providers::{LimitsConfig, ProviderConfig, ProviderKind, RateLimit};
pub use types::{EnvironmentValue, StaticPoolConfig, StaticWorkerConfig, WorkerType};

/// Writes a value as YAML, for people; a value that YAML cannot hold is written as nothing.
pub fn to_yaml(value: &impl serde::Serialize) -> String {
    serde_yaml::to_string(value).unwrap_or_default()
}
