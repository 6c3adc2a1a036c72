//! Environment overrides: `POOL__<POOL_ID>__<PATH>=value`, and `${VAR}` inside texts.
//!
//! An override names a pool and a place in it, case-insensitively and with dashes as underscores. It is
//! put into the document before the schema looks at it, so that its type and bounds are checked like
//! any other value's. A variable that names nothing, or two things, is an error, never ignored.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::diagnostic::{Diagnostic, did_you_mean};
use super::pointer::escape;
use super::schema;

/// Every override variable starts with this.
pub(crate) const PREFIX: &str = "POOL__";

/// One override, split and not yet placed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Override {
    pub(crate) variable: String,
    pool: String,
    path: Vec<String>,
    value: String,
}

/// Returns the overrides in `environment`, in order of name.
pub(crate) fn find(
    environment: &BTreeMap<String, String>,
    diagnostics: &mut Vec<Diagnostic>,
) -> Vec<Override> {
    let mut found: Vec<Override> = Vec::new();
    for (variable, value) in environment {
        let Some(rest) = strip_prefix_ignoring_case(variable) else { continue };
        let mut segments = rest.split("__").map(str::to_owned);
        let pool = segments.next().unwrap_or_default();
        let path: Vec<String> = segments.collect();
        if pool.is_empty() || path.is_empty() || path.iter().any(String::is_empty) {
            diagnostics.push(
                Diagnostic::error(
                    "bad-override",
                    format!("the variable {variable} names no field"),
                )
                .help("write POOL__<POOL_ID>__<FIELD>, such as POOL__CI_LINUX__FIXED_SIZE=8"),
            );
            continue;
        }
        let same = |other: &&Override| {
            folded(&other.pool) == folded(&pool)
                && other.path.iter().map(|s| folded(s)).eq(path.iter().map(|s| folded(s)))
        };
        if let Some(other) = found.iter().find(same) {
            let other = &other.variable;
            diagnostics.push(
                Diagnostic::error(
                    "ambiguous-override",
                    format!("the variables {other} and {variable} name the same field"),
                )
                .help("unset one of them"),
            );
            continue;
        }
        found.push(Override { variable: variable.clone(), pool, path, value: value.clone() });
    }
    found
}

fn strip_prefix_ignoring_case(variable: &str) -> Option<&str> {
    let head = variable.get(..PREFIX.len())?;
    head.eq_ignore_ascii_case(PREFIX).then(|| &variable[PREFIX.len()..])
}

fn folded(text: &str) -> String {
    text.to_lowercase().replace('-', "_")
}

/// Reports overrides that name none of the pools.
pub(crate) fn check_pools(
    overrides: &[Override],
    pool_ids: &[String],
    diagnostics: &mut Vec<Diagnostic>,
) {
    for found in overrides {
        if !pool_ids.iter().any(|id| folded(id) == folded(&found.pool)) {
            let folded_ids: Vec<String> = pool_ids.iter().map(|id| folded(id)).collect();
            let meant = did_you_mean(&found.pool, folded_ids.iter().map(String::as_str));
            let help = match meant {
                Some(meant) => format!("did you mean {PREFIX}{}__...?", meant.to_uppercase()),
                None => format!("the pools are: {}", pool_ids.join(", ")),
            };
            let summary = format!("the variable {} names no pool of the files", found.variable);
            diagnostics.push(Diagnostic::error("bad-override", summary).help(help));
        }
    }
}

/// Puts the overrides that are for `pool` into it; returns the pointers that they set, relative to the
/// pool, with the variable's name.
pub(crate) fn apply(
    overrides: &[Override],
    pool: &mut Value,
    diagnostics: &mut Vec<Diagnostic>,
) -> BTreeMap<String, String> {
    let mut set = BTreeMap::new();
    let Some(id) = pool.get("pool_id").and_then(Value::as_str).map(folded) else { return set };
    for found in overrides.iter().filter(|found| folded(&found.pool) == id) {
        match place(found, pool) {
            Ok(pointer) => {
                set.insert(pointer, found.variable.clone());
            }
            Err(diagnostic) => diagnostics.push(*diagnostic),
        }
    }
    set
}

fn place(found: &Override, pool: &mut Value) -> Result<String, Box<Diagnostic>> {
    let variable = &found.variable;
    let refuse = |summary: String, help: String| {
        Box::new(Diagnostic::error("bad-override", summary).help(help))
    };
    let mut path: Vec<String> = Vec::new();
    let mut here = pool;
    for segment in &found.path {
        let Some(known) = schema::lookup(&path) else {
            return Err(refuse(
                format!(
                    "the variable {variable} goes into `{}`, which has no fields",
                    path.join(".")
                ),
                "leave the last part out".to_owned(),
            ));
        };
        let key = match_key(segment, known, here).map_err(|help| {
            refuse(format!("the variable {variable} names no field: `{segment}`"), help)
        })?;
        if here.is_null() {
            *here = Value::Object(Map::new());
        }
        let Some(object) = here.as_object_mut() else {
            return Err(refuse(
                format!(
                    "the variable {variable} goes into `{}`, which has no fields",
                    path.join(".")
                ),
                "set that field as a whole".to_owned(),
            ));
        };
        here = object.entry(key.clone()).or_insert(Value::Null);
        path.push(key);
    }
    if path == ["pool_id"] {
        return Err(refuse(
            format!("the variable {variable} would rename the pool"),
            "change pool_id in the file".to_owned(),
        ));
    }
    *here = value_for(&found.value, schema::lookup(&path));
    Ok(path.iter().map(|key| format!("/{}", escape(key))).collect())
}

/// Finds the key that `segment` means: one of the schema's, or in a free mapping one that is there.
fn match_key(segment: &str, known: &Value, here: &Value) -> Result<String, String> {
    let schema_keys = known.get("properties").and_then(Value::as_object);
    let mut candidates: Vec<String> = schema_keys
        .into_iter()
        .flat_map(|keys| keys.keys())
        .chain(here.as_object().into_iter().flat_map(|object| object.keys()))
        .filter(|key| folded(key) == folded(segment))
        .cloned()
        .collect();
    candidates.sort();
    candidates.dedup();
    match (candidates.pop(), candidates.pop()) {
        (Some(key), None) => Ok(key),
        (Some(one), Some(other)) => {
            Err(format!("it could be `{other}` or `{one}`: set it in the file"))
        }
        (None, _) if known.get("additionalProperties").is_some_and(Value::is_object) => {
            Ok(segment.to_owned())
        }
        (None, _) => {
            let keys: Vec<&str> =
                schema_keys.into_iter().flat_map(|m| m.keys()).map(String::as_str).collect();
            Err(match did_you_mean(segment, keys.iter().copied()) {
                Some(meant) => format!("did you mean {}?", meant.to_uppercase()),
                None if keys.is_empty() => "it has no fields".to_owned(),
                None => format!("known here: {}", keys.join(", ")),
            })
        }
    }
}

/// A text stays a text where only a text is wanted; elsewhere it is read as YAML.
fn value_for(text: &str, schema: Option<&Value>) -> Value {
    let only_text = schema.and_then(|schema| schema.get("type")).is_some_and(|t| t == "string");
    if only_text {
        return Value::String(text.to_owned());
    }
    let parsed = serde_yaml::from_str::<serde_yaml::Value>(text).ok();
    parsed
        .and_then(|value| serde_json::to_value(value).ok())
        .unwrap_or_else(|| Value::String(text.to_owned()))
}

/// Puts variables into every text of `value`; calls `missing` with the pointer and name of each one
/// that is not set.
pub(crate) fn interpolate(
    value: &mut Value,
    environment: &BTreeMap<String, String>,
    missing: &mut impl FnMut(&str, Diagnostic),
) {
    walk(value, &mut String::new(), environment, missing);
}

fn walk(
    value: &mut Value,
    pointer: &mut String,
    environment: &BTreeMap<String, String>,
    missing: &mut impl FnMut(&str, Diagnostic),
) {
    let length = pointer.len();
    match value {
        Value::String(text) if text.contains("${") => match expand(text, environment) {
            Ok(expanded) => *text = expanded,
            Err(diagnostic) => missing(pointer, *diagnostic),
        },
        Value::Array(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                pointer.push_str(&format!("/{index}"));
                walk(item, pointer, environment, missing);
                pointer.truncate(length);
            }
        }
        Value::Object(object) => {
            for (key, item) in object.iter_mut() {
                pointer.push('/');
                pointer.push_str(&escape(key));
                walk(item, pointer, environment, missing);
                pointer.truncate(length);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Expands `${VAR}` and `${VAR:-default}`; `$${` stands for `${`. Like a shell's `:-`, the default is
/// used for an empty variable too.
fn expand(text: &str, environment: &BTreeMap<String, String>) -> Result<String, Box<Diagnostic>> {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        if rest[..start].ends_with('$') {
            expanded.push_str(&rest[..start - 1]);
            expanded.push_str("${");
            rest = &rest[start + 2..];
            continue;
        }
        expanded.push_str(&rest[..start]);
        let Some(length) = rest[start..].find('}') else {
            return Err(Box::new(
                Diagnostic::error("bad-variable", "a `${` has no `}`")
                    .help("write `$${` for the characters themselves"),
            ));
        };
        let inside = &rest[start + 2..start + length];
        let (name, default) = match inside.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (inside, None),
        };
        let set = environment.get(name).filter(|value| default.is_none() || !value.is_empty());
        match (set.map(String::as_str), default) {
            (Some(value), _) | (None, Some(value)) => expanded.push_str(value),
            (None, None) => {
                return Err(Box::new(
                    Diagnostic::error(
                        "unset-variable",
                        format!("the variable `{name}` is not set"),
                    )
                    .help(format!("set it, or give a default: ${{{name}:-...}}")),
                ));
            }
        }
        rest = &rest[start + length + 1..];
    }
    expanded.push_str(rest);
    Ok(expanded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn environment(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn overridden(pairs: &[(&str, &str)]) -> (Value, Vec<String>) {
        let mut pool = json!({
            "pool_id": "ci-linux", "fixed_size": 2,
            "worker_config": { "image": "a", "labels": { "os-name": "x" } }
        });
        let mut diagnostics = Vec::new();
        let found = find(&environment(pairs), &mut diagnostics);
        check_pools(&found, &["ci-linux".to_owned()], &mut diagnostics);
        apply(&found, &mut pool, &mut diagnostics);
        (
            pool,
            diagnostics
                .into_iter()
                .map(|d| format!("{} | {}", d.summary, d.help.unwrap_or_default()))
                .collect(),
        )
    }

    #[test]
    fn an_override_sets_one_field_with_the_type_that_the_schema_wants() {
        let (pool, diagnostics) = overridden(&[
            ("POOL__CI_LINUX__FIXED_SIZE", "8"),
            ("pool__ci_linux__worker_config__image", "123"),
            ("POOL__CI_LINUX__WORKER_CONFIG__LABELS__OS_NAME", "y"),
            ("POOL__CI_LINUX__WORKER_CONFIG__ENVIRONMENT__STAGE", "ci"),
            ("POOL__CI_LINUX__UPDATE__MAX_SURGE", "50%"),
            ("POOL__CI_LINUX__WORKER_CONFIG__TAGS", "[a, b]"),
            ("POOL_OTHER", "ignored"),
        ]);
        assert_eq!(diagnostics, Vec::<String>::new());
        assert_eq!(pool["fixed_size"], 8);
        assert_eq!(pool["worker_config"]["image"], "123");
        assert_eq!(pool["worker_config"]["labels"], json!({ "os-name": "y" }));
        assert_eq!(pool["worker_config"]["environment"], json!({ "STAGE": "ci" }));
        assert_eq!(pool["update"]["max_surge"], "50%");
        assert_eq!(pool["worker_config"]["tags"], json!(["a", "b"]));
    }

    #[test]
    fn a_bad_override_names_the_variable_and_what_was_meant() {
        let complaint = |name| overridden(&[(name, "1")]).1.join("\n");
        assert!(complaint("POOL__CI_LINUX__FIXED_SZE").contains("POOL__CI_LINUX__FIXED_SZE"));
        assert!(complaint("POOL__CI_LINUX__FIXED_SZE").contains("did you mean FIXED_SIZE?"));
        assert!(
            complaint("POOL__CI_LINX__FIXED_SIZE").contains("did you mean POOL__CI_LINUX__...?")
        );
        assert!(complaint("POOL__CI_LINUX").contains("names no field"));
        assert!(complaint("POOL__CI_LINUX__POOL_ID").contains("rename"));
        assert!(complaint("POOL__CI_LINUX__FIXED_SIZE__X").contains("no fields"));
        let two = overridden(&[
            ("POOL__CI_LINUX__PROTECT", "true"),
            ("pool__CI_LINUX__PROTECT", "false"),
        ]);
        assert!(two.1[0].contains("name the same field"), "{:?}", two.1);
    }

    #[test]
    fn variables_expand_inside_texts() {
        let environment = environment(&[("A", "1"), ("EMPTY", "")]);
        for (text, expected) in [
            ("x${A}y", "x1y"),
            ("${A}${A}", "11"),
            ("${B:-d}", "d"),
            ("${EMPTY:-d}", "d"),
            ("${EMPTY}", ""),
            ("$${A}", "${A}"),
            ("$A", "$A"),
        ] {
            assert_eq!(expand(text, &environment).unwrap(), expected, "{text}");
        }
        assert!(expand("${B}", &environment).unwrap_err().summary.contains("`B` is not set"));
        assert!(expand("${A", &environment).is_err());
    }
}
