//! The published schema is the one that the types make, and says the same as the binary does.

use std::path::{Path, PathBuf};

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
fn fields<'s>(schema: &'s Value, path: &str, visit: &mut impl FnMut(&str, &'s Value, bool)) {
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
fn provider_types(schema: &Value) -> Vec<(&str, &Value)> {
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
fn the_readme_lists_every_field_and_every_exit_code() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let schema = committed();
    let mut check = |path: &str, field: &Value, _: bool| {
        let name = path.trim_start_matches('.');
        if name == "$schema" || name.contains("from_") || field == &Value::Bool(true) {
            return;
        }
        let row = readme.lines().find(|line| line.starts_with(&format!("| `{name}` |")));
        let row = row.unwrap_or_else(|| panic!("README does not list `{name}`"));
        if let Some(default) = field.get("default").filter(|default| !default.is_object()) {
            let shown = default.as_str().map_or_else(|| default.to_string(), str::to_owned);
            assert!(
                row.contains(&format!("`{shown}`")),
                "README: the default of `{name}` is {shown}"
            );
        }
    };
    fields(&schema["else"], "", &mut check);
    for (name, settings) in provider_types(&schema) {
        // What all types have in common is listed once.
        let mut each = |path: &str, field: &Value, is_required: bool| {
            let is_limit = path.contains("].max_concurrency") || path.contains("].rate_limit");
            let path = if is_limit { path.replace(name, "*") } else { path.to_owned() };
            check(&path, field, is_required);
        };
        fields(settings, &format!("providers[{name}]"), &mut each);
    }
    for line in pool::cli::Exit::HELP.lines().skip(1) {
        let mut words = line.split_whitespace();
        let code = words.next().unwrap();
        let meaning = words.collect::<Vec<_>>().join(" ");
        assert!(
            readme.contains(&format!("| {code} | {meaning} |")),
            "README lacks exit code {code}: {meaning}"
        );
    }
}
