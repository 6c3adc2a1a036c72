//! The JSON Schema of pool files, generated from the types, and what breaks it, as diagnostics.
//!
//! Draft-07 and fully inlined: editors' language servers complete and explain that form best. The root
//! accepts a bare pool or a document with `pools`, told apart by `if`, so that every message is about
//! the form that was meant. This is the only module that knows the `jsonschema` crate.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use jsonschema::error::{TypeKind, ValidationErrorKind};
use jsonschema::{ValidationError, Validator};
use schemars::generate::SchemaSettings;
use schemars::transform::{Transform, transform_subschemas};
use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::diagnostic::{Diagnostic, did_you_mean};
use super::pointer::{dotted, escape};
use super::providers::{NAME_PATTERN, ProviderConfig};
use super::snippets::{Place, snippets};
use super::types::StaticPoolConfig;

/// A file that holds several pools.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Pools")]
struct PoolsDocument {
    /// The version of this format.
    #[serde(default = "version")]
    #[schemars(range(min = 1, max = 1), example = 1)]
    version: u32,
    /// Where workers come from, by the names that pools give. `local`, `docker`, `ec2` and `sim` are there
    /// without being declared.
    #[serde(default)]
    #[schemars(example = json!({ "build-host": { "type": "local", "max_concurrency": 4 } }))]
    providers: BTreeMap<ProviderName, ProviderConfig>,
    /// The pools.
    #[serde(default)]
    pools: Vec<StaticPoolConfig>,
}

/// What pools call a provider.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[schemars(transparent)]
struct ProviderName(#[schemars(regex(pattern = NAME_PATTERN))] String);

fn version() -> u32 {
    1
}

/// Returns the JSON Schema of a document of a pool file.
pub fn schema() -> Value {
    let settings = SchemaSettings::draft07().with(|settings| settings.inline_subschemas = true);
    let mut generator = settings.with_transform(EditorFriendly).into_generator();
    let mut pool = generator.root_schema_for::<StaticPoolConfig>().to_value();
    let mut document = generator.root_schema_for::<PoolsDocument>().to_value();
    for form in [&mut pool, &mut document] {
        if let Some(form) = form.as_object_mut() {
            form.remove("$schema");
            if let Some(properties) = form.get_mut("properties").and_then(Value::as_object_mut) {
                // JSON files name their schema in the file itself.
                let own = json!({ "type": "string", "description": "The schema of this file, for editors." });
                properties.insert("$schema".to_owned(), own);
            }
        }
    }
    let offer = |schema: &mut Value, pointer: &str, place: Place| {
        if let Some(schema) = schema.pointer_mut(pointer) {
            schema["defaultSnippets"] = snippets(place);
        }
    };
    offer(&mut document, "/properties/pools/items", Place::Pools);
    offer(&mut document, "/properties/providers", Place::Providers);
    json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "pool",
        "description": "Static pools of pre-provisioned workers.",
        "type": "object",
        "defaultSnippets": snippets(Place::File),
        // Offered in an empty file too: what they are is said in the form that they begin.
        "properties": {
            "pools": { "type": "array", "description": "Several pools, instead of one." },
            "providers": { "type": "object", "description": "Where workers come from, by name." }
        },
        "if": { "anyOf": [{ "required": ["pools"] }, { "required": ["providers"] }] },
        "then": document,
        "else": pool
    })
}

/// Returns the JSON Schema of what executables of `exec` providers read and print.
pub fn provider_protocol() -> Value {
    pool_exec::protocol::schema()
}

/// Makes what schemars writes fit for editors: documented enums as one `enum` with a text for each value,
/// descriptions as Markdown too, no number formats.
#[derive(Debug, Clone)]
struct EditorFriendly;

impl Transform for EditorFriendly {
    fn transform(&mut self, schema: &mut Schema) {
        transform_subschemas(self, schema);
        flatten_documented_enum(schema);
        if let Some(object) = schema.as_object_mut() {
            let example = object.get("examples").and_then(|examples| examples.get(0)).cloned();
            if let Some(example) = example {
                explain_pattern(object, &example);
                // An example of a list shows what its items are like.
                let items = object.get_mut("items").and_then(Value::as_object_mut);
                if let (Some(items), Some(example)) = (items, example.get(0)) {
                    explain_pattern(items, example);
                }
            }
            // Number formats such as `uint32` are Rust's, not JSON Schema's.
            object.remove("format");
            let described = object.get("description").cloned();
            if let Some(description) = described {
                object.insert("markdownDescription".to_owned(), description);
            }
        }
    }
}

/// Has editors show an example where a text does not match: a regular expression tells nobody anything.
fn explain_pattern(schema: &mut Map<String, Value>, example: &Value) {
    if schema.contains_key("pattern") {
        let message = format!("This cannot stand here; an example that is right: {example}");
        schema.insert("patternErrorMessage".to_owned(), Value::String(message));
    }
}

/// Turns "one of these documented constants" into an `enum` with a description for each value.
fn flatten_documented_enum(schema: &mut Schema) {
    let Some(object) = schema.as_object_mut() else { return };
    let Some(variants) = object.get("oneOf").and_then(Value::as_array) else { return };
    let constants: Option<Vec<Value>> = variants.iter().map(|v| v.get("const").cloned()).collect();
    let Some(constants) = constants else { return };
    let words = |variant: &Value| variant.get("description").cloned().unwrap_or_default();
    let descriptions: Vec<Value> = variants.iter().map(words).collect();
    object.remove("oneOf");
    object.insert("type".to_owned(), json!("string"));
    object.insert("enum".to_owned(), Value::Array(constants));
    object.insert("enumDescriptions".to_owned(), Value::Array(descriptions.clone()));
    object.insert("markdownEnumDescriptions".to_owned(), Value::Array(descriptions));
}

fn compiled() -> &'static (Value, Validator) {
    static COMPILED: OnceLock<(Value, Validator)> = OnceLock::new();
    COMPILED.get_or_init(|| {
        let schema = schema();
        let validator = jsonschema::validator_for(&schema)
            .expect("the schema generated from our own types is valid");
        (schema, validator)
    })
}

/// Something that breaks the schema, by JSON pointer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Violation {
    /// Where in the document.
    pub(crate) pointer: String,
    /// Whether the key is at fault, and not its value.
    pub(crate) at_key: bool,
    /// The key that is missing, if one is.
    missing: Option<String>,
    /// What is wrong; not yet placed in the text.
    pub(crate) diagnostic: Diagnostic,
}

impl Violation {
    fn new(pointer: String, at_key: bool, diagnostic: Diagnostic) -> Self {
        Self { pointer, at_key, missing: None, diagnostic }
    }

    /// Builds what is wrong with a value.
    pub(crate) fn at_value(pointer: &str, diagnostic: Diagnostic) -> Self {
        Self::new(pointer.to_owned(), false, diagnostic)
    }

    /// Returns the same as part of something larger.
    #[must_use]
    pub(crate) fn below(self, pointer: &str) -> Self {
        Self { pointer: format!("{pointer}{}", self.pointer), ..self }
    }

    /// Returns whether a key is given that the schema does not know.
    pub(crate) fn is_unknown_key(&self) -> bool {
        self.diagnostic.rule == "unknown-key"
    }
}

/// Returns everything in `document` that breaks the schema.
pub(crate) fn violations(document: &Value) -> Vec<Violation> {
    let (schema, validator) = compiled();
    if !document.is_object() {
        let summary = format!(
            "a document must be a pool or a list of `pools`, and is {}",
            type_name(document)
        );
        let help = "start with `pool_id:`, or with `version: 1` and `pools:`";
        let diagnostic = Diagnostic::error("wrong-type", summary).help(help);
        return vec![Violation::new(String::new(), false, diagnostic)];
    }
    let mut found: Vec<Violation> = validator
        .iter_errors(document)
        .flat_map(|e| explain(&e, (schema, document), "the pool"))
        .collect();
    // What both the root and one of its forms say is one mistake.
    let mut seen = BTreeSet::new();
    found.retain(|violation| {
        seen.insert((violation.pointer.clone(), violation.diagnostic.summary.clone()))
    });
    // A misspelt key is one mistake, not also the lack of the right one.
    let misspelt: Vec<(String, String)> = found
        .iter()
        .filter_map(|violation| {
            let parent = violation.pointer.rsplit_once('/')?.0.to_owned();
            Some((parent, violation.diagnostic.replacement.clone()?))
        })
        .collect();
    found.retain(|violation| {
        let lacks = violation.missing.as_ref();
        !lacks.is_some_and(|key| misspelt.contains(&(violation.pointer.clone(), key.clone())))
    });
    found
}

/// Returns the JSON type or types that the schema wants at `path` of a pool, and the keys that it knows
/// there; `None` when it knows no such place.
pub(crate) fn lookup<'s>(path: &[String]) -> Option<&'s Value> {
    let mut here = &compiled().0["else"];
    for key in path {
        here = match here.get("properties").and_then(|properties| properties.get(key)) {
            Some(child) => child,
            None => here.get("additionalProperties").filter(|free| free.is_object())?,
        };
    }
    Some(here)
}

/// Returns everything in `value` that breaks a schema of somebody else's.
///
/// # Errors
/// When the schema is none.
pub(crate) fn violations_of(schema: &Value, value: &Value) -> Result<Vec<Violation>, String> {
    let validator = jsonschema::validator_for(schema).map_err(|error| error.to_string())?;
    Ok(validator
        .iter_errors(value)
        .flat_map(|error| explain(&error, (schema, value), "it"))
        .collect())
}

fn explain(
    error: &ValidationError<'_>,
    (schema, root): (&Value, &Value),
    whole: &str,
) -> Vec<Violation> {
    let pointer = error.instance_path().as_str().to_owned();
    let shown = dotted(&pointer);
    let name = shown.rsplit('.').next().unwrap_or_default().to_owned();
    let at_value = |diagnostic: Diagnostic| {
        vec![Violation::new(pointer.clone(), false, diagnostic.on(&shown))]
    };
    match error.kind() {
        ValidationErrorKind::AdditionalProperties { unexpected } => {
            if has_named_entries(schema, error.schema_path().as_str()) {
                return unexpected.iter().map(|key| bad_name(&pointer, key)).collect();
            }
            let known = known_keys(schema, error.schema_path().as_str());
            unexpected.iter().map(|key| unknown_key(&pointer, key, &known)).collect()
        }
        // A schema without `properties` knows no key at all, and only its first one is told.
        ValidationErrorKind::FalseSchema
            if error.schema_path().as_str().ends_with("/additionalProperties") =>
        {
            let given = root.pointer(&pointer).and_then(Value::as_object);
            given
                .into_iter()
                .flat_map(|given| given.keys())
                .map(|key| unknown_key(&pointer, key, &[]))
                .collect()
        }
        ValidationErrorKind::Required { property } => {
            let property = property.as_str().unwrap_or_default();
            let within = if shown.is_empty() { whole.to_owned() } else { format!("`{shown}`") };
            let summary = format!("{within} lacks `{property}`");
            let found =
                Diagnostic::error("missing-key", summary).help(format!("add `{property}:`"));
            let missing = Some(property.to_owned());
            vec![Violation { missing, ..Violation::new(pointer, true, found.on(&shown)) }]
        }
        ValidationErrorKind::Type { kind } => {
            let wanted = wanted_types(kind);
            let got = type_name(error.instance());
            let summary = format!("`{name}` must be {wanted}, and is {got}");
            let found = Diagnostic::error("wrong-type", summary);
            let is_duration = pattern_of(schema, error.schema_path().as_str()).contains("ms)");
            let hint = wrong_type_hint(&wanted, error.instance(), is_duration);
            at_value(found.help(hint.unwrap_or_else(|| what_it_is(schema, error, &name))))
        }
        ValidationErrorKind::Enum { options } => at_value(not_an_option(&name, error, options)),
        ValidationErrorKind::Minimum { limit } => {
            let summary = format!("`{name}` must be at least {limit}, and is {}", error.instance());
            let found = Diagnostic::error("out-of-range", summary);
            at_value(found.help(what_it_is(schema, error, &name)))
        }
        ValidationErrorKind::Maximum { limit } => {
            let summary = format!("`{name}` must be at most {limit}, and is {}", error.instance());
            let found = Diagnostic::error("out-of-range", summary);
            at_value(found.help(what_it_is(schema, error, &name)))
        }
        ValidationErrorKind::Pattern { .. } => {
            let example = example(schema, error.schema_path().as_str());
            let summary = format!("`{name}` cannot be {}", repeated(error.instance()));
            at_value(Diagnostic::error("bad-format", summary).help(example))
        }
        ValidationErrorKind::MaxLength { limit } => {
            let has = error.instance().as_str().map_or(0, |text| text.chars().count());
            let summary = format!("`{name}` must have at most {limit} characters, and has {has}");
            let found = Diagnostic::error("out-of-range", summary);
            at_value(found.help(what_it_is(schema, error, &name)))
        }
        ValidationErrorKind::MinLength { .. } | ValidationErrorKind::MinItems { .. } => at_value(
            Diagnostic::error("empty", format!("`{name}` must not be empty"))
                .help(example(schema, error.schema_path().as_str())),
        ),
        ValidationErrorKind::MinProperties { .. } | ValidationErrorKind::MaxProperties { .. } => {
            at_value(
                Diagnostic::error(
                    "bad-secret",
                    format!("`{name}` must name one place of a secret"),
                )
                .help("write a text, `{from_env: NAME}` or `{from_file: PATH}`"),
            )
        }
        _ => {
            let found = Diagnostic::error("invalid", error.to_string());
            at_value(found.help(what_it_is(schema, error, &name)))
        }
    }
}

fn unknown_key(pointer: &str, key: &str, known: &[String]) -> Violation {
    let inner = format!("{pointer}/{}", escape(key));
    let meant = did_you_mean(key, known.iter().map(String::as_str));
    let help = match meant {
        Some(meant) => format!("did you mean `{meant}`?"),
        None if known.is_empty() => "no key is known here".to_owned(),
        None => format!("known here: {}", known.join(", ")),
    };
    let diagnostic = Diagnostic::error("unknown-key", format!("unknown key `{key}`"))
        .on(dotted(&inner))
        .help(help)
        .instead(meant.map(str::to_owned));
    Violation::new(inner, true, diagnostic)
}

/// Returns whether the keys at a place are names of the user's own choice.
fn has_named_entries(schema: &Value, schema_path: &str) -> bool {
    let parent = schema_path.rsplit_once('/').map_or("", |(parent, _)| parent);
    schema.pointer(parent).is_some_and(|parent| parent.get("patternProperties").is_some())
}

fn bad_name(pointer: &str, key: &str) -> Violation {
    let inner = format!("{pointer}/{}", escape(key));
    let diagnostic = Diagnostic::error("bad-name", format!("`{key}` cannot be a name"))
        .on(dotted(&inner))
        .help("a name is a lower-case letter and at most 39 lower-case letters, digits, - and _");
    Violation::new(inner, true, diagnostic)
}

fn not_an_option(name: &str, error: &ValidationError<'_>, options: &Value) -> Diagnostic {
    let options: Vec<&str> =
        options.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let given = error.instance().as_str().unwrap_or_default();
    let meant = did_you_mean(given, options.iter().copied());
    let help = match meant {
        Some(meant) => format!("did you mean `{meant}`?"),
        None => format!("one of: {}", options.join(", ")),
    };
    Diagnostic::error("not-an-option", format!("`{name}` cannot be {}", repeated(error.instance())))
        .help(help)
        .instead(meant.map(str::to_owned))
}

fn known_keys(schema: &Value, schema_path: &str) -> Vec<String> {
    let parent = schema_path.rsplit_once('/').map_or("", |(parent, _)| parent);
    let properties = schema.pointer(parent).and_then(|parent| parent.get("properties"));
    let keys = properties.and_then(Value::as_object).into_iter().flat_map(|keys| keys.keys());
    keys.filter(|key| *key != "$schema").cloned().collect()
}

fn example(schema: &Value, schema_path: &str) -> String {
    let parent = schema_path.rsplit_once('/').map_or("", |(parent, _)| parent);
    let example = |path: &str| schema.pointer(path)?.get("examples")?.get(0);
    // An example of a list shows what its items are like.
    let of_list = || example(parent.strip_suffix("/items")?)?.get(0);
    match example(parent).or_else(of_list) {
        Some(example) => format!("an example that is right: {example}"),
        None => format!("it must match {}", schema.pointer(schema_path).unwrap_or(&Value::Null)),
    }
}

fn wanted_types(kind: &TypeKind) -> String {
    let names: Vec<String> = match kind {
        TypeKind::Single(one) => vec![one.to_string()],
        TypeKind::Multiple(several) => several.iter().map(|one| one.to_string()).collect(),
    };
    let article = |name: &String| match name.as_str() {
        "integer" => "a whole number".to_owned(),
        "object" => "a mapping".to_owned(),
        "array" => "a list".to_owned(),
        "string" => "a text".to_owned(),
        "boolean" => "true or false".to_owned(),
        other => other.to_owned(),
    };
    names.iter().map(article).collect::<Vec<_>>().join(" or ")
}

/// How much of a text a message repeats, in characters.
const LONGEST_SHOWN: usize = 60;

/// Repeats a value, or how it begins.
fn repeated(value: &Value) -> String {
    match value {
        Value::String(text) if text.chars().count() > LONGEST_SHOWN => type_name(value),
        value => value.to_string(),
    }
}

fn type_name(value: &Value) -> String {
    match value {
        Value::Null => "empty".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a mapping".to_owned(),
        Value::String(text) if text.chars().count() > LONGEST_SHOWN => {
            let begin: String = text.chars().take(LONGEST_SHOWN).collect();
            format!("a text that begins with {begin:?}")
        }
        Value::String(text) => format!("the text {text:?}"),
        Value::Number(number) => format!("the number {number}"),
        Value::Bool(value) => format!("`{value}`"),
    }
}

/// Says what a field is for: whoever gave it a value that it cannot have may have meant another one.
fn what_it_is(schema: &Value, error: &ValidationError<'_>, name: &str) -> String {
    let path = error.schema_path().as_str();
    let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
    let said = |key: &str| schema.pointer(parent)?.get(key);
    let description = said("description").and_then(Value::as_str).unwrap_or_default();
    let range = match (said("minimum"), said("maximum")) {
        (Some(least), Some(most)) => format!("from {least} to {most}"),
        (Some(least), None) => format!("{least} or more"),
        (None, Some(most)) => format!("{most} or less"),
        (None, None) => String::new(),
    };
    match (description.trim_end_matches('.'), range.as_str()) {
        ("", "") => format!("`{name}` is described where its schema is from"),
        ("", range) => format!("`{name}`: {range}"),
        (description, "") => format!("`{name}`: {description}"),
        (description, range) => format!("`{name}`: {description} ({range})"),
    }
}

fn pattern_of<'s>(schema: &'s Value, schema_path: &str) -> &'s str {
    let parent = schema_path.rsplit_once('/').map_or("", |(parent, _)| parent);
    let pattern = schema.pointer(parent).and_then(|parent| parent.get("pattern"));
    pattern.and_then(Value::as_str).unwrap_or_default()
}

fn wrong_type_hint(wanted: &str, value: &Value, is_duration: bool) -> Option<String> {
    match value {
        Value::Number(number) if is_duration => Some(format!("say which unit: {number}s")),
        Value::String(text) if wanted.contains("true or false") => {
            let truth = matches!(text.as_str(), "yes" | "on" | "y" | "Yes" | "On" | "True");
            Some(format!("write {truth}"))
        }
        Value::String(text) if wanted.contains("number") && text.parse::<i64>().is_ok() => {
            Some(format!("leave the quotes out: {text}"))
        }
        Value::Number(number) if wanted.contains("text") => {
            Some(format!("put it in quotes: '{number}'"))
        }
        Value::Bool(value) if wanted.contains("text") => {
            Some(format!("put it in quotes: '{value}'"))
        }
        _ => None,
    }
}
