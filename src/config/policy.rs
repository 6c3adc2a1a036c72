//! How a pool is run, as types: provisioning, health checks, updates, guards.
//!
//! The other half of what a pool file says; nothing here touches a worker when it changes. Field
//! documentation is user documentation, as in [`super::types`].

use std::fmt;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use pool_provider::HumanDuration;

/// How workers are created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(title = "Provisioning")]
pub struct ProvisioningConfig {
    /// One worker after the other, or several at a time.
    #[schemars(example = &"parallel")]
    pub strategy: ProvisioningStrategy,
    /// How many workers are worked on at a time; 1 when the strategy is `sequential`.
    #[schemars(range(min = 1, max = 1000), example = 5)]
    pub max_concurrency: u32,
    /// How long one attempt may take, from the create call to the first passed health check.
    #[schemars(example = &"120s")]
    pub timeout: HumanDuration,
    /// How many attempts a worker gets when `on_failure` is `retry`.
    #[schemars(range(min = 1, max = 100), example = 3)]
    pub max_attempts: u32,
    /// What a failed worker does to the run.
    #[schemars(example = &"retry")]
    pub on_failure: OnFailure,
}

impl Default for ProvisioningConfig {
    fn default() -> Self {
        Self {
            strategy: ProvisioningStrategy::Parallel,
            max_concurrency: 5,
            timeout: HumanDuration::from_secs(120),
            max_attempts: 3,
            on_failure: OnFailure::Retry,
        }
    }
}

impl ProvisioningConfig {
    /// Returns how many workers are worked on at a time.
    pub fn concurrency(&self) -> u32 {
        match self.strategy {
            ProvisioningStrategy::Sequential => 1,
            ProvisioningStrategy::Parallel => self.max_concurrency,
        }
    }

    /// Returns whether the first failure ends the run.
    pub fn fails_fast(&self) -> bool {
        self.on_failure == OnFailure::FailFast
    }

    /// Returns how many attempts a worker gets.
    pub fn attempts(&self) -> u32 {
        match self.on_failure {
            OnFailure::FailFast => 1,
            OnFailure::Retry => self.max_attempts,
        }
    }
}

/// In which order workers are created.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProvisioningStrategy {
    /// One after the other.
    Sequential,
    /// Several at a time.
    Parallel,
}

/// What a failed worker does to the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// It is tried again; the others go on.
    Retry,
    /// No further provider call is made.
    FailFast,
}

/// How a worker's health is measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(title = "Health check")]
pub struct HealthCheckConfig {
    /// What a probe does.
    #[serde(rename = "type")]
    #[schemars(example = &"http")]
    pub kind: HealthCheckKind,
    /// How often a worker is probed: a new one until it is healthy, at most for `provisioning.timeout`.
    #[schemars(example = &"5s")]
    pub interval: HumanDuration,
    /// How long a probe may take before it counts as failed.
    #[schemars(example = &"2s")]
    pub timeout: HumanDuration,
    /// After how many failed probes in a row a worker is unhealthy. A new worker has until
    /// `provisioning.timeout`.
    #[schemars(range(min = 1, max = 100), example = 3)]
    pub unhealthy_threshold: u32,
    /// After how many passed probes in a row a worker is healthy. More than 1 makes sure that a program
    /// does not end right after its start.
    #[schemars(range(min = 1, max = 100), example = 1)]
    pub healthy_threshold: u32,
    /// How long after its creation failed probes do not count.
    #[schemars(example = &"10s")]
    pub start_period: HumanDuration,
    /// How long a passed probe vouches for a worker; twice the interval by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "HumanDuration", example = &"10s")]
    pub freshness: Option<HumanDuration>,
    /// The port that `tcp` and `http` probes connect to.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u16", range(min = 1, max = 65_535), example = 8080)]
    pub port: Option<u16>,
    /// Added to the port once for each slot number: workers on one host listen on `port`,
    /// `port + port_step`, and so on. A process finds its slot in `POOL_SLOT`. On one host a slot's old
    /// worker goes before its new one comes, because both need the port.
    #[schemars(range(min = 0, max = 1000), example = 1)]
    pub port_step: u16,
    /// The path that an `http` probe asks for. Any status from 200 to 399 passes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", regex(pattern = "^/"), example = "/healthz")]
    pub path: Option<String>,
    /// The program and arguments of an `exec` probe. It runs where `pool` runs, with `POOL_WORKER`,
    /// `POOL_SLOT` and `POOL_ADDRESS` in its environment; exit status 0 passes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(example = ["/usr/local/bin/check-worker", "--quick"])]
    pub command: Vec<String>,
}

impl Default for HealthCheckConfig {
    fn default() -> Self {
        Self {
            kind: HealthCheckKind::Provider,
            interval: HumanDuration::from_secs(5),
            timeout: HumanDuration::from_secs(2),
            unhealthy_threshold: 3,
            healthy_threshold: 1,
            start_period: HumanDuration::from_secs(0),
            freshness: None,
            port: None,
            port_step: 0,
            path: None,
            command: Vec::new(),
        }
    }
}

impl HealthCheckConfig {
    /// Returns how long a passed probe vouches for a worker.
    pub fn freshness(&self) -> Duration {
        self.freshness.map_or(self.interval.get() * 2, HumanDuration::get)
    }
}

/// What a probe does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HealthCheckKind {
    /// Asks the provider.
    Provider,
    /// Opens a TCP connection.
    Tcp,
    /// Makes an HTTP request.
    Http,
    /// Runs a program.
    Exec,
}

/// How workers are replaced when their configuration changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(title = "Update")]
pub struct UpdateConfig {
    /// How many workers above `fixed_size` may exist during a replacement; a percentage rounds up.
    #[schemars(example = 1)]
    pub max_surge: CountOrPercent,
    /// How many of `fixed_size` may be missing during a replacement; a percentage rounds down.
    #[schemars(example = &"10%")]
    pub max_unavailable: CountOrPercent,
    /// How long a run waits for jobs to give back workers that are to go, from the first such worker on.
    /// They get no new lease meanwhile. What is still leased then stays, and the run is not complete.
    #[schemars(example = &"1h")]
    pub drain_timeout: HumanDuration,
}

impl Default for UpdateConfig {
    fn default() -> Self {
        Self {
            max_surge: CountOrPercent::Count(1),
            max_unavailable: CountOrPercent::Count(0),
            drain_timeout: HumanDuration::from_secs(3600),
        }
    }
}

/// How a server replaces workers that broke.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(title = "Remediation")]
pub struct RemediationConfig {
    /// How many broken workers are replaced at a time.
    #[schemars(range(min = 1, max = 1000), example = 1)]
    pub max_in_flight: u32,
    /// When more workers than this are broken at once, none is replaced, because the check or the network
    /// is what broke; a percentage is of `fixed_size` and rounds down, but one worker is always allowed.
    /// `pool apply` replaces them all the same.
    #[schemars(example = &"40%")]
    pub max_unhealthy: CountOrPercent,
    /// How long after a replacement the same slot is replaced again at the earliest; doubled each time, up
    /// to 5m, and forgotten after 10m of rest. The first replacement does not wait.
    #[schemars(example = &"10s")]
    pub backoff: HumanDuration,
}

impl Default for RemediationConfig {
    fn default() -> Self {
        Self {
            max_in_flight: 1,
            max_unhealthy: CountOrPercent::Percent(Percent(40)),
            backoff: HumanDuration::from_secs(10),
        }
    }
}

/// What a run must not do to a pool.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(title = "Guards")]
pub struct GuardsConfig {
    /// Refuses a run that would delete more of the pool's workers than this without replacing them;
    /// a percentage is of the recorded workers and rounds down. The stricter of what is recorded and what
    /// the file says counts. Off by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "CountOrPercent", example = &"25%")]
    pub max_destroy: Option<CountOrPercent>,
}

/// A number of workers, or a share of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum CountOrPercent {
    /// So many.
    Count(u32),
    /// So many of a hundred.
    Percent(Percent),
}

impl CountOrPercent {
    /// Returns the number for a pool of `size`, rounding up.
    pub fn of_rounded_up(self, size: u32) -> u32 {
        match self {
            Self::Count(count) => count,
            Self::Percent(Percent(percent)) => share(size, percent, 99),
        }
    }

    /// Returns the number for a pool of `size`, rounding down.
    pub fn of_rounded_down(self, size: u32) -> u32 {
        match self {
            Self::Count(count) => count,
            Self::Percent(Percent(percent)) => share(size, percent, 0),
        }
    }
}

fn share(size: u32, percent: u8, round: u64) -> u32 {
    let exact = u64::from(size) * u64::from(percent) + round;
    u32::try_from(exact / 100).unwrap_or(u32::MAX)
}

impl fmt::Display for CountOrPercent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => count.fmt(f),
            Self::Percent(Percent(percent)) => write!(f, "{percent}%"),
        }
    }
}

impl JsonSchema for CountOrPercent {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "CountOrPercent".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["integer", "string"],
            "minimum": 0,
            "maximum": 100_000,
            "pattern": "^(100|[1-9]?[0-9])%$"
        })
    }
}

/// A share from `0%` to `100%`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Percent(u8);

impl TryFrom<String> for Percent {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let number = text.strip_suffix('%').and_then(|digits| digits.parse().ok());
        number
            .filter(|percent| *percent <= 100)
            .map(Self)
            .ok_or_else(|| format!("`{text}` is neither a number nor a percentage from 0% to 100%"))
    }
}

impl From<Percent> for String {
    fn from(percent: Percent) -> Self {
        format!("{}%", percent.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_round_as_documented() {
        let percent =
            |text: &str| CountOrPercent::Percent(Percent::try_from(text.to_owned()).unwrap());
        assert_eq!(percent("10%").of_rounded_up(11), 2);
        assert_eq!(percent("10%").of_rounded_down(11), 1);
        assert_eq!(percent("100%").of_rounded_up(7), 7);
        assert_eq!(percent("0%").of_rounded_up(7), 0);
        assert_eq!(CountOrPercent::Count(9).of_rounded_down(7), 9);
        assert!(Percent::try_from("101%".to_owned()).is_err());
    }

    #[test]
    fn the_storys_defaults_hold() {
        let provisioning = ProvisioningConfig::default();
        assert_eq!(provisioning.concurrency(), 5);
        assert_eq!(provisioning.timeout.to_string(), "120s");
        assert_eq!(provisioning.attempts(), 3);
        let health = HealthCheckConfig::default();
        assert_eq!(
            (health.interval.to_string(), health.timeout.to_string()),
            ("5s".into(), "2s".into())
        );
        assert_eq!((health.unhealthy_threshold, health.healthy_threshold), (3, 1));
    }

    #[test]
    fn fail_fast_means_one_attempt_and_sequential_means_one_at_a_time() {
        let provisioning = ProvisioningConfig {
            strategy: ProvisioningStrategy::Sequential,
            on_failure: OnFailure::FailFast,
            ..ProvisioningConfig::default()
        };
        assert_eq!((provisioning.concurrency(), provisioning.attempts()), (1, 1));
    }
}
