//! What a pool file says of a provider of type `local`. Field documentation is user documentation.

use pool_provider::HumanDuration;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Processes on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Config {
    /// How long a worker has between SIGTERM and SIGKILL.
    #[schemars(example = &"10s")]
    pub stop_grace: HumanDuration,
}

impl Default for Config {
    fn default() -> Self {
        Self { stop_grace: HumanDuration::from_secs(10) }
    }
}
