//! What a pool file says of a provider of type `sim`: nothing. Its knobs are in `settings.json` in its
//! folder, because they belong to the cloud and not to those who use it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A simulated cloud.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Config {}
