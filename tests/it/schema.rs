//! The published schema is the one that the types make, and says the same as the binary does.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use pool::config::diagnostic::Source;
use pool::config::{self, Severity, Surroundings};
use proptest::prelude::*;
use serde_json::Value;

use super::sandbox::{Sandbox, asked_for};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn committed() -> Value {
    serde_json::from_str(&std::fs::read_to_string(root().join("schema/pool.schema.json")).unwrap())
        .unwrap()
}

#[test]
fn the_committed_schemas_are_fresh() {
    for (arguments, file) in [
        (&["schema"][..], "schema/pool.schema.json"),
        (&["schema", "--provider-protocol"], "schema/provider-protocol.schema.json"),
    ] {
        let fresh = Sandbox::new().pool(arguments).exits(0).stdout;
        let path = root().join(file);
        if asked_for("UPDATE_SCHEMA").is_some() {
            std::fs::write(path, fresh).unwrap();
        } else {
            assert_eq!(std::fs::read_to_string(path).unwrap(), fresh, "run with UPDATE_SCHEMA=1");
        }
    }
}

#[test]
fn the_committed_description_of_the_api_is_fresh_and_whole() {
    let document = pool::serve::openapi::document();
    let fresh = format!("{document:#}\n");
    let path = root().join("schema/openapi.json");
    if asked_for("UPDATE_SCHEMA").is_some() {
        std::fs::write(&path, &fresh).unwrap();
    }
    assert_eq!(std::fs::read_to_string(path).unwrap(), fresh, "run with UPDATE_SCHEMA=1");
    let mut references = 0;
    let mut inner = vec![&document];
    while let Some(value) = inner.pop() {
        if let Some(target) = value["$ref"].as_str() {
            references += 1;
            let pointer = target.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{target} leads nowhere");
        }
        match value {
            Value::Object(fields) => inner.extend(fields.values()),
            Value::Array(items) => inner.extend(items),
            _ => {}
        }
    }
    assert!(references > 10, "only {references} references");
    let mut ids = std::collections::BTreeSet::new();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            if method != "parameters" {
                let id = operation["operationId"].as_str().unwrap();
                assert!(ids.insert(id), "{id} names two operations");
                assert!(operation["summary"].is_string(), "{method} {path}");
            }
        }
    }
}

#[test]
fn it_is_draft_07_inlined_and_without_null() {
    let text = committed().to_string();
    for word in [
        "\"$ref\"",
        "\"definitions\"",
        "\"$defs\"",
        "\"nullable\"",
        "\"default\":null",
        "\"format\"",
    ] {
        assert!(!text.contains(word), "{word}");
    }
    assert!(text.contains("draft-07"));
}

/// Walks every property of every object in the schema.
pub(crate) fn fields<'s>(
    schema: &'s Value,
    path: &str,
    visit: &mut impl FnMut(&str, &'s Value, bool),
) {
    let required: Vec<&str> =
        schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let inner = format!("{path}.{name}");
        visit(&inner, field, required.contains(&name.as_str()));
        fields(field, &inner, visit);
    }
    if schema["items"].is_object() {
        fields(&schema["items"], &format!("{path}[]"), visit);
    }
}

/// Every type of provider with its settings, from a document of several pools.
pub(crate) fn provider_types(schema: &Value) -> Vec<(&str, &Value)> {
    let named = &schema["then"]["properties"]["providers"]["patternProperties"];
    let provider = named.as_object().unwrap().values().next().unwrap();
    let types: Vec<(&str, &Value)> = provider["allOf"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["if"]["properties"]["type"]["const"].as_str().unwrap(), &one["then"]))
        .collect();
    let named: Vec<&str> = types.iter().map(|(name, _)| *name).collect();
    assert_eq!(provider["properties"]["type"]["enum"], serde_json::json!(named));
    types
}

#[test]
fn every_field_is_described_and_shown_by_examples_that_are_right() {
    let schema = committed();
    let mut count = 0;
    let mut check = |path: &str, field: &Value, is_required: bool| {
        if path.ends_with("$schema") || field == &Value::Bool(true) {
            return;
        }
        count += 1;
        assert!(field["description"].is_string(), "{path} has no description");
        let validator = jsonschema::validator_for(field).unwrap();
        let is_block = field["properties"].is_object();
        let examples = field["examples"].as_array();
        assert!(is_block || examples.is_some(), "{path} has no example");
        for example in examples.into_iter().flatten() {
            assert!(validator.is_valid(example), "{path}: the example {example} is wrong");
        }
        if let Some(default) = field.get("default") {
            assert!(validator.is_valid(default), "{path}: the default {default} is wrong");
            assert!(!is_required, "{path} is required and has a default");
        }
        if field["type"] == "integer" {
            assert!(
                field["minimum"].is_number() && field["maximum"].is_number(),
                "{path} has no bounds"
            );
        }
    };
    fields(&schema["else"], "pool", &mut check);
    for (name, settings) in provider_types(&schema) {
        fields(settings, &format!("provider {name}"), &mut check);
    }
    assert!(count > 30, "only {count} fields were seen");
}

fn examples() -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(root().join("examples"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "yaml" || e == "json"))
        .collect();
    files.sort();
    assert!(files.len() >= 5, "{files:?}");
    files
}

#[test]
fn every_example_is_valid_and_can_be_planned() {
    for file in examples() {
        let mut sandbox = Sandbox::new();
        sandbox.set("CI_TOKEN", "x");
        // One of them runs an executable from here.
        std::os::unix::fs::symlink(root().join("examples"), sandbox.path().join("examples"))
            .unwrap();
        let file = file.to_str().unwrap();
        sandbox.pool(&["validate", file]).exits(0);
        let engine = asked_for("POOL_TEST_DOCKER");
        sandbox.set("DOCKER_HOST", engine.as_deref().unwrap_or_default());
        // Without an engine containers can be planned all the same, but not looked for.
        let is_blind = engine.is_none() && file.contains("containers");
        let refresh = if is_blind { "--refresh=false" } else { "--refresh=true" };
        let plan = sandbox.pool(&["plan", file, refresh]).exits(0);
        assert!(plan.stdout.contains("Plan: "), "{file}: {}", plan.stdout);
    }
}

#[test]
fn the_readme_lists_every_exit_code() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    for (code, meaning) in pool::cli::Exit::MEANINGS {
        assert!(
            readme.contains(&format!("| {code} | {meaning} |")),
            "README lacks exit code {code}: {meaning}"
        );
    }
}

/// Rules between fields, which no schema can say: what breaks one of these is valid for an editor and not for us.
const CROSS_FIELD: [&str; 14] = [
    "bad-variable-name",
    "duplicate-pool",
    "health-check",
    "leases",
    "no-network",
    "no-room-to-update",
    "not-for-instances",
    "not-of-this-type",
    "reserved-variable",
    "short-timeout",
    "unknown-provider",
    "wrong-port",
    "wrong-worker-type",
    "zero-timeout",
];

/// Values that are put where others belong: each type, and the edges of each.
fn strange_values() -> impl Strategy<Value = Value> {
    let words = [
        "", "a", "5s", "0s", "1h30m", "5", "50%", "process", "docker", "true", "~", "-", "CI", "/x",
    ];
    let numbers = [-1i64, 0, 1, 3, 65_536, 100_001, i64::MAX];
    let scalar = prop_oneof![
        prop::sample::select(words.to_vec()).prop_map(Value::from),
        prop::sample::select(numbers.to_vec()).prop_map(Value::from),
        prop::sample::select(vec![1.0, 2.5, 1e3, -0.0, 1e300]).prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        Just(Value::Null),
    ];
    scalar.prop_recursive(2, 6, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map("[a-z_]{1,6}", inner, 0..3)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// Every place in a document, keys that the schema knows and the document lacks included.
fn places(value: &Value, pointer: &str, found: &mut Vec<String>) {
    found.push(pointer.to_owned());
    match value {
        Value::Object(fields) => {
            for (key, inner) in fields {
                places(inner, &format!("{pointer}/{key}"), found);
            }
        }
        Value::Array(items) => {
            for (number, inner) in items.iter().enumerate() {
                places(inner, &format!("{pointer}/{number}"), found);
            }
        }
        _ => {}
    }
}

/// A whole file, with most of what can be said in it.
fn whole() -> Value {
    serde_json::json!({
        "version": 1,
        "providers": {
            "engine": { "type": "docker", "host": "unix:///x", "pull": "never", "rate_limit": { "calls": 1, "per": "1s" } },
            "aws": { "type": "ec2", "region": "eu-west-1", "subnets": ["subnet-0a1b2c3d"], "address": "public" },
            "cloud": { "type": "exec", "command": ["a"], "secrets": { "t": { "from_env": "T" } }, "timeout": "5s" },
        },
        "pools": [{
            "pool_id": "ci", "worker_type": "vm", "fixed_size": 3, "provider": "cloud", "protect": false,
            "worker_config": {
                "image": "a", "command": ["b"], "cpu_cores": 1, "memory_mb": 1, "labels": { "a": "b" }, "tags": ["t"],
                "environment": { "A": "b", "S": { "from_file": "/s" } }, "attributes": { "x": 1 },
            },
            "provisioning": { "strategy": "parallel", "max_concurrency": 5, "timeout": "120s", "max_attempts": 3 },
            "health_check": { "type": "provider", "interval": "5s", "timeout": "2s" },
            "update": { "max_surge": 1, "max_unavailable": "50%", "drain_timeout": "1h" },
            "remediation": { "max_in_flight": 1, "max_unhealthy": "40%", "backoff": "10s" },
            "leases": { "default_ttl": "10m", "reuse": "reusable" },
            "guards": { "max_destroy": 1 },
        }],
    })
}

/// What is done to a document.
#[derive(Debug, Clone)]
enum Damage {
    Replace(prop::sample::Index, Value),
    Remove(prop::sample::Index),
    Add(prop::sample::Index, String, Value),
}

fn damage() -> impl Strategy<Value = Damage> {
    let keys = [
        "pool_id",
        "fixed_size",
        "port",
        "path",
        "network",
        "host",
        "reset",
        "fixd",
        "type",
        "docker",
        "ec2",
        "region",
    ];
    let any_place = any::<prop::sample::Index>;
    prop_oneof![
        3 => (any_place(), strange_values()).prop_map(|(at, value)| Damage::Replace(at, value)),
        1 => any_place().prop_map(Damage::Remove),
        2 => (any_place(), prop::sample::select(keys.to_vec()), strange_values())
            .prop_map(|(at, key, value)| Damage::Add(at, key.to_owned(), value)),
    ]
}

fn damaged(mut document: Value, all: &[Damage]) -> Value {
    for one in all {
        let mut found = Vec::new();
        places(&document, "", &mut found);
        let (Damage::Replace(at, _) | Damage::Remove(at) | Damage::Add(at, ..)) = one;
        let place: &String = at.get(&found);
        match one {
            Damage::Replace(_, value) => {
                *document.pointer_mut(place).unwrap() = value.clone();
            }
            Damage::Remove(_) => {
                if let Some((parent, key)) = place.rsplit_once('/') {
                    match document.pointer_mut(parent) {
                        Some(Value::Object(fields)) => drop(fields.remove(key)),
                        Some(Value::Array(items)) => drop(items.remove(key.parse().unwrap())),
                        _ => {}
                    }
                }
            }
            Damage::Add(_, key, value) => {
                if let Some(Value::Object(fields)) = document.pointer_mut(place) {
                    fields.insert(key.clone(), value.clone());
                }
            }
        }
    }
    document
}

/// The rules of which the binary says that a document breaks them.
fn broken_rules(document: &Value) -> Vec<&'static str> {
    let source = Source::new("a.json", document.to_string());
    let environment = BTreeMap::new();
    let around = Surroundings { environment: &environment };
    match config::load(config::Sources(vec![source]), &around) {
        Ok(_) => Vec::new(),
        Err(report) => {
            let errors = report.diagnostics.iter().filter(|one| one.severity == Severity::Error);
            errors.map(|one| one.rule).collect()
        }
    }
}

fn validator() -> &'static jsonschema::Validator {
    static VALIDATOR: OnceLock<jsonschema::Validator> = OnceLock::new();
    VALIDATOR.get_or_init(|| jsonschema::validator_for(&committed()).unwrap())
}

#[test]
fn a_whole_number_with_a_point_is_a_whole_number_to_everybody() {
    let mut document = whole();
    document["pools"][0]["fixed_size"] = Value::from(3.0);
    document["providers"]["engine"]["rate_limit"]["calls"] = Value::from(1e3);
    assert!(validator().is_valid(&document));
    assert_eq!(broken_rules(&document), [""; 0]);
    document["pools"][0]["fixed_size"] = Value::from(3.5);
    assert_eq!(broken_rules(&document), ["wrong-type"]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// An editor and the binary say the same of a file, the rules between fields apart.
    #[test]
    fn the_schema_and_the_binary_are_of_one_opinion(all in prop::collection::vec(damage(), 0..4), bare in any::<bool>()) {
        let whole = whole();
        let mut document = if bare { whole["pools"][0].clone() } else { whole };
        if bare {
            document["provider"] = Value::from("sim");
            document["worker_config"].as_object_mut().unwrap().remove("attributes");
        }
        let document = damaged(document, &all);
        // A document of nothing is none for us: a file may begin or end with `---`.
        prop_assume!(!document.is_null());
        let is_valid = validator().is_valid(&document);
        let rules = broken_rules(&document);
        if is_valid {
            let others: Vec<_> = rules.iter().filter(|rule| !CROSS_FIELD.contains(rule)).collect();
            prop_assert!(others.is_empty(), "only the binary refuses {document}: {others:?}");
        } else {
            prop_assert!(!rules.is_empty(), "only the schema refuses {document}");
        }
    }
}
