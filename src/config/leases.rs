//! How a pool's workers are leased, as types. Field documentation is user documentation, as in
//! [`super::types`].

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use pool_provider::HumanDuration;

/// How a pool's workers are leased to jobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(title = "Leases")]
pub struct LeasesConfig {
    /// How long a lease lasts that does not say.
    #[schemars(example = &"10m")]
    pub default_ttl: HumanDuration,
    /// The longest time that can be asked for. Every renewal starts it anew.
    #[schemars(example = &"24h")]
    pub max_ttl: HumanDuration,
    /// Whether a worker has one lease, or one after the other.
    #[schemars(example = &"reusable")]
    pub reuse: Reuse,
    /// After so many leases a worker is replaced. Off by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u32", range(min = 1, max = 1_000_000), example = 20)]
    pub max_uses: Option<u32>,
    /// A worker of this age is replaced when its lease ends. Off by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "HumanDuration", example = &"24h")]
    pub max_age: Option<HumanDuration>,
    /// How a worker is cleaned between two leases. Without it a released worker is ready at once, and one
    /// whose lease expired is replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "RecycleConfig")]
    pub recycle: Option<RecycleConfig>,
    /// Which of the free workers is leased first.
    #[schemars(example = &"lowest_slot")]
    pub pick: Pick,
}

impl Default for LeasesConfig {
    fn default() -> Self {
        Self {
            default_ttl: HumanDuration::from_secs(600),
            max_ttl: HumanDuration::from_secs(86_400),
            reuse: Reuse::Reusable,
            max_uses: None,
            max_age: None,
            recycle: None,
            pick: Pick::LowestSlot,
        }
    }
}

/// Whether a worker has one lease, or one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reuse {
    /// One after the other.
    Reusable,
    /// One; then it is replaced.
    OneShot,
}

/// Which of the free workers is leased first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Pick {
    /// The one with the lowest slot.
    LowestSlot,
    /// The one that has been free for longest.
    LeastRecentlyUsed,
}

/// How a worker is cleaned between two leases.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Recycling")]
pub struct RecycleConfig {
    /// Has the provider make the worker as new: what a job left running is stopped, and the worker's own
    /// program starts again. It comes before `command`. After three failed attempts the worker is replaced.
    #[serde(default, skip_serializing_if = "is_false")]
    #[schemars(example = &true)]
    pub reset: bool,
    /// The program and arguments that clean a worker. It runs where `pool` runs, with `POOL_WORKER`,
    /// `POOL_SLOT` and `POOL_ADDRESS` in its environment; exit status 0 says that the worker is clean.
    /// After three failed attempts the worker is replaced.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1), example = ["/usr/local/bin/clean-worker"])]
    pub command: Vec<String>,
    /// How long one attempt may take.
    #[serde(default = "default_recycle_timeout")]
    #[schemars(example = &"60s")]
    pub timeout: HumanDuration,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks with a reference")]
fn is_false(value: &bool) -> bool {
    !value
}

fn default_recycle_timeout() -> HumanDuration {
    HumanDuration::from_secs(60)
}
