//! Where workers come from, as types: the `providers` of a file, and those that are there without being
//! named.
//!
//! A provider's own settings are its crate's; here is what all have in common, and the list of types. Field
//! documentation is user documentation, as in [`super::types`]. Credentials are no settings: each provider
//! finds them where its engine's own tools do, so that nothing here is secret and all of it can be recorded.

use std::collections::BTreeMap;

use pool_provider::HumanDuration;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::diagnostic::{Diagnostic, Location};
use super::document::Document;
use super::load::with_whole_numbers;
use super::pointer::{dotted, escape};
use super::types::WorkerType;

/// What a provider may be called.
pub(crate) const NAME_PATTERN: &str = "^[a-z][a-z0-9_-]{0,39}$";

/// One provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProviderConfig {
    /// Its type, and that type's settings.
    #[serde(flatten)]
    pub kind: ProviderKind,
    /// How much may be asked of it.
    #[serde(flatten)]
    pub limits: LimitsConfig,
}

/// The types of providers, with their settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ProviderKind {
    /// Processes on this machine.
    Local(pool_local::Config),
    /// Containers of a Docker engine, or of podman's service.
    Docker(pool_docker::Config),
    /// Instances of Amazon EC2.
    Ec2(Box<pool_ec2::Config>),
    /// Whatever an executable creates.
    Exec(Box<pool_exec::Config>),
    /// A simulated cloud.
    Sim(pool_sim::Config),
}

/// How much may be asked of a provider by all processes of a state together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct LimitsConfig {
    /// How many calls that change something (create, update, delete, reset) may be under way, `pool apply`
    /// and `pool serve` taken together. No limit by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u32", range(min = 1, max = 1000), example = 10)]
    pub max_concurrency: Option<u32>,
    /// How many calls of any kind may be made in how much time. They are spread evenly, over `pool apply` and
    /// `pool serve` taken together. No limit by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "RateLimit", example = json!({ "calls": 20, "per": "1s" }))]
    pub rate_limit: Option<RateLimit>,
}

/// So many calls in so much time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Rate limit")]
pub struct RateLimit {
    /// How many calls.
    #[schemars(range(min = 1, max = 1_000_000), example = 20)]
    pub calls: u32,
    /// In how much time.
    #[serde(default = "a_second")]
    #[schemars(example = &"1s")]
    pub per: HumanDuration,
}

fn a_second() -> HumanDuration {
    HumanDuration::from_secs(1)
}

impl ProviderConfig {
    /// Returns the provider of this name that is there without being declared.
    pub fn implicit(name: &str) -> Option<Self> {
        let kind = match name {
            "local" => ProviderKind::Local(pool_local::Config::default()),
            "docker" => ProviderKind::Docker(pool_docker::Config::default()),
            "ec2" => ProviderKind::Ec2(Box::default()),
            "sim" => ProviderKind::Sim(pool_sim::Config::default()),
            _ => return None,
        };
        Some(Self { kind, limits: LimitsConfig::default() })
    }

    /// Returns the provider with what its engine's own tools take from the environment: what is recorded says
    /// where the workers are, whatever the environment of another process says.
    #[must_use]
    pub fn in_environment(mut self, environment: &BTreeMap<String, String>) -> Self {
        let told = |names: &[&str]| {
            let mut values = names.iter().filter_map(|name| environment.get(*name));
            values.find(|value| !value.is_empty()).cloned()
        };
        if let ProviderKind::Docker(docker) = &mut self.kind {
            docker.host = docker.host.take().or_else(|| told(&["DOCKER_HOST"]));
        }
        if let ProviderKind::Ec2(ec2) = &mut self.kind {
            let region = || told(&["AWS_REGION", "AWS_DEFAULT_REGION"]);
            ec2.region = ec2.region.take().or_else(region);
            let endpoint = || told(&["AWS_ENDPOINT_URL_EC2", "AWS_ENDPOINT_URL"]);
            ec2.endpoint = ec2.endpoint.take().or_else(endpoint);
        }
        if let ProviderKind::Exec(exec) = self.kind {
            // Whoever goes on with what is recorded may be somewhere else.
            self.kind = ProviderKind::Exec(Box::new(exec.in_directory()));
        }
        self
    }

    /// Returns the provider as its workers are found: where it says they are is part of that.
    #[must_use]
    pub fn at(mut self, place: Option<&str>) -> Self {
        match &mut self.kind {
            ProviderKind::Exec(exec) => exec.place = place.map(str::to_owned),
            ProviderKind::Ec2(ec2) => ec2.account = place.map(str::to_owned),
            ProviderKind::Local(_) | ProviderKind::Docker(_) | ProviderKind::Sim(_) => {}
        }
        self
    }

    /// Takes over where `other` says that its workers are, unless this says so itself.
    pub fn keep_place_of(&mut self, other: &Self) {
        match (&mut self.kind, &other.kind) {
            (ProviderKind::Exec(own), ProviderKind::Exec(other)) => {
                own.place = own.place.take().or_else(|| other.place.clone());
            }
            (ProviderKind::Ec2(own), ProviderKind::Ec2(other)) => {
                own.account = own.account.take().or_else(|| other.account.clone());
            }
            _ => {}
        }
    }

    /// Returns the provider with executables that are killed at once when their time is over.
    #[must_use]
    pub fn without_grace(mut self) -> Self {
        if let ProviderKind::Exec(exec) = &mut self.kind {
            exec.grace = HumanDuration::from_secs(0);
        }
        self
    }

    /// Returns the names of the providers that are there without being declared.
    pub fn implicit_names() -> [&'static str; 4] {
        ["docker", "ec2", "local", "sim"]
    }
}

impl ProviderKind {
    /// Returns the type's name, as it is written in files.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Local(_) => "local",
            Self::Docker(_) => "docker",
            Self::Ec2(_) => "ec2",
            Self::Exec(_) => "exec",
            Self::Sim(_) => "sim",
        }
    }

    /// Returns where its workers are, in words: another place is another provider.
    pub fn place(&self) -> String {
        match self {
            Self::Local(_) | Self::Sim(_) => format!("of type {}", self.name()),
            Self::Docker(pool_docker::Config { host, .. }) => {
                let host = host.as_deref().unwrap_or(pool_docker::DEFAULT_HOST);
                format!("of type docker at {host}")
            }
            Self::Ec2(ec2) => {
                let region = ec2.region.as_deref().unwrap_or("no region (AWS_REGION is not set)");
                let at = ec2.endpoint.as_ref().map(|endpoint| format!(" at {endpoint}"));
                let account = ec2.account.as_ref().map(|account| format!(", {account}"));
                let (at, account) = (at.unwrap_or_default(), account.unwrap_or_default());
                format!("of type ec2 in {region}{at}{account}")
            }
            Self::Exec(exec) => match &exec.place {
                Some(place) => format!("of type exec at {place}"),
                None => "of type exec".to_owned(),
            },
        }
    }

    /// Returns whether only the provider itself knows what it can do: it has to be asked before it is used.
    pub fn is_asked(&self) -> bool {
        matches!(self, Self::Exec(_))
    }

    /// Returns whether only the provider itself knows where exactly its workers are.
    pub fn says_place(&self) -> bool {
        matches!(self, Self::Exec(_) | Self::Ec2(_))
    }

    /// Returns where the provider itself said that its workers are.
    pub fn said_place(&self) -> Option<&str> {
        match self {
            Self::Exec(exec) => exec.place.as_deref(),
            Self::Ec2(ec2) => ec2.account.as_deref(),
            Self::Local(_) | Self::Docker(_) | Self::Sim(_) => None,
        }
    }

    /// Returns whether the workers of the one are not those of the other. An executable that does not say where its
    /// workers are is believed.
    pub fn is_elsewhere(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exec(one), Self::Exec(other)) => {
                matches!((&one.place, &other.place), (Some(one), Some(other)) if one != other)
            }
            // The region's own endpoint may be written down or not.
            (Self::Ec2(one), Self::Ec2(other)) => {
                let is_another_account = matches!(
                    (&one.account, &other.account), (Some(one), Some(other)) if one != other
                );
                is_another_account
                    || one.region != other.region
                    || one.endpoint() != other.endpoint()
            }
            (one, other) => one.place() != other.place(),
        }
    }

    /// Returns the network of workers whose pool names none.
    pub fn network(&self) -> Option<&str> {
        match self {
            Self::Docker(docker) => docker.network.as_deref(),
            Self::Local(_) | Self::Ec2(_) | Self::Exec(_) | Self::Sim(_) => None,
        }
    }

    /// Returns the worker types that it may create; what an executable creates, it says itself.
    pub fn worker_types(&self) -> &'static [WorkerType] {
        match self {
            Self::Local(_) => &[WorkerType::Process],
            Self::Docker(_) => &[WorkerType::Container],
            Self::Ec2(_) => &[WorkerType::Vm],
            Self::Exec(_) | Self::Sim(_) => {
                &[WorkerType::Process, WorkerType::Container, WorkerType::Vm, WorkerType::Host]
            }
        }
    }
}

/// One type, for the schema: its name, what it is, and its settings.
type Described = (&'static str, &'static str, Schema);

fn described(generator: &mut SchemaGenerator) -> Vec<Described> {
    vec![
        ("local", "Processes on this machine.", pool_local::Config::json_schema(generator)),
        (
            "docker",
            "Containers of a Docker engine, or of podman's service.",
            pool_docker::Config::json_schema(generator),
        ),
        ("ec2", "Instances of Amazon EC2.", pool_ec2::Config::json_schema(generator)),
        (
            "exec",
            "Whatever an executable creates that speaks the provider protocol.",
            pool_exec::Config::json_schema(generator),
        ),
        (
            "sim",
            "A simulated cloud, for trying things out.",
            pool_sim::Config::json_schema(generator),
        ),
    ]
}

impl JsonSchema for ProviderConfig {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Provider".into()
    }

    fn inline_schema() -> bool {
        true
    }

    // One `if` for each type instead of alternatives: editors then complete the keys of the type that is
    // given, and messages are about these.
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let limits = properties(&LimitsConfig::json_schema(generator));
        let types = described(generator);
        let constants: Vec<Value> = types
            .iter()
            .map(|(name, what, _)| json!({ "const": name, "description": what }))
            .collect();
        let of_type = |(name, _, own): &Described| {
            let mut known = serde_json::Map::from_iter([("type".to_owned(), json!(true))]);
            known.extend(properties(own));
            known.extend(limits.clone());
            let mut then = json!({ "properties": known, "additionalProperties": false });
            if let Some(required) = own.get("required") {
                then["required"] = required.clone();
            }
            json!({
                "if": { "properties": { "type": { "const": name } }, "required": ["type"] },
                "then": then
            })
        };
        json_schema!({
            "title": "Provider",
            "description": "Where workers come from, and how much may be asked of it.",
            "type": "object",
            "required": ["type"],
            "properties": {
                "type": {
                    "description": "What kind of provider it is; the other keys depend on it.",
                    "oneOf": constants,
                    "examples": ["local"]
                }
            },
            "allOf": types.iter().map(of_type).collect::<Vec<_>>()
        })
    }
}

fn properties(schema: &Schema) -> serde_json::Map<String, Value> {
    let properties = schema.get("properties").and_then(Value::as_object);
    properties.cloned().unwrap_or_default()
}

/// What there is of a provider.
pub(super) enum Found {
    /// How it is reached.
    Right(ProviderConfig),
    /// A declaration that is wrong, as is told where it stands.
    Wrong,
    /// Nothing.
    Nowhere,
}

/// The providers that files declare; `None` for those whose declaration is wrong.
#[derive(Debug, Default)]
pub(super) struct Declared(BTreeMap<String, (Option<ProviderConfig>, Location)>);

impl Declared {
    /// Collects what the documents declare; what breaks the schema is told elsewhere.
    pub(super) fn collect(documents: &[Document], diagnostics: &mut Vec<Diagnostic>) -> Self {
        let mut declared = Self::default();
        for document in documents {
            let blocks = document.value.get("providers").and_then(Value::as_object);
            for (name, block) in blocks.into_iter().flatten() {
                let pointer = format!("/providers/{}", escape(name));
                let location = document.key_at(&pointer);
                if let Some((_, first)) = declared.0.get(name) {
                    let summary = format!("the provider `{name}` is declared twice");
                    let mut found = Diagnostic::error("duplicate-provider", summary)
                        .on(dotted(&pointer))
                        .at(Some(location))
                        .help("rename one of them, or remove it");
                    found.related = Some((first.clone(), "first here".to_owned()));
                    diagnostics.push(found);
                    continue;
                }
                let config =
                    serde_json::from_value::<ProviderConfig>(with_whole_numbers(block.clone()))
                        .ok();
                for (at, found) in config.iter().flat_map(check) {
                    let at = format!("{pointer}{at}");
                    diagnostics.push(found.on(dotted(&at)).at(Some(document.value_at(&at))));
                }
                declared.0.insert(name.clone(), (config, location));
            }
        }
        declared
    }

    /// Looks for the provider of this name.
    pub(super) fn find(&self, name: &str) -> Found {
        match self.0.get(name) {
            Some((Some(config), _)) => Found::Right(config.clone()),
            Some((None, _)) => Found::Wrong,
            None => ProviderConfig::implicit(name).map_or(Found::Nowhere, Found::Right),
        }
    }

    /// Returns every name that a pool may give.
    pub(super) fn names(&self) -> Vec<&str> {
        let declared = self.0.keys().map(String::as_str);
        let mut names: Vec<&str> = declared.chain(ProviderConfig::implicit_names()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Returns the declarations that are right.
    pub(super) fn into_configs(self) -> BTreeMap<String, ProviderConfig> {
        self.0.into_iter().filter_map(|(name, (config, _))| Some((name, config?))).collect()
    }
}

/// Returns the rules between fields that a provider breaks, by pointer.
fn check(config: &ProviderConfig) -> Vec<(String, Diagnostic)> {
    let mut broken = Vec::new();
    if config.limits.rate_limit.is_some_and(|limit| limit.per.get().is_zero()) {
        let found = Diagnostic::error("zero-rate", "`per` must be longer than 0s");
        broken.push(("/rate_limit/per".to_owned(), found.help("1s is the default")));
    }
    broken
}
