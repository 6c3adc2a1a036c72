//! From files to pools: read, parse, override, validate, check.
//!
//! Every step collects what is wrong and goes on with what it can, so that one run reports everything.
//! Reads files and nothing else; the environment comes in as a value.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::check;
use super::diagnostic::{Diagnostic, Report, Source, Sources};
use super::document::{self, Document};
use super::overrides::{self, Override};
use super::pointer::{dotted, escape, unescape};
use super::providers::{Declared, Found, ProviderConfig};
use super::schema::{self, Violation};
use super::types::StaticPoolConfig;

/// A config of 100,000 pools would be smaller; stops a file that was given by mistake.
const MAX_BYTES: u64 = 32 * 1024 * 1024;

/// Where a value of a pool's config came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A file, as `file:line:column`.
    File(String),
    /// An environment variable.
    Environment(String),
    /// Nobody said it: the default.
    Default,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(place) => f.write_str(place),
            Self::Environment(variable) => write!(f, "{variable} (environment)"),
            Self::Default => f.write_str("default"),
        }
    }
}

/// A pool as the files and the environment ask for it.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadedPool {
    /// What is asked for.
    pub config: StaticPoolConfig,
    /// The provider that it names; `None` when whoever embeds the pool brings its own.
    pub provider: Option<ProviderConfig>,
    /// Where the pool begins, as `file:line:column`.
    pub place: String,
    /// Where each value came from, by JSON pointer into the config.
    pub origins: BTreeMap<String, Origin>,
}

impl LoadedPool {
    /// Returns the values that an environment variable decided, by dotted path.
    pub fn overridden(&self) -> BTreeMap<String, String> {
        self.origins
            .iter()
            .filter_map(|(pointer, origin)| match origin {
                Origin::Environment(variable) => Some((dotted(pointer), variable.clone())),
                Origin::File(_) | Origin::Default => None,
            })
            .collect()
    }
}

/// What is read besides the files.
pub struct Surroundings<'a> {
    /// The environment of `pool`.
    pub environment: &'a BTreeMap<String, String>,
}

/// Everything that files ask for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Loaded {
    /// The pools.
    pub pools: Vec<LoadedPool>,
    /// The providers that are declared, used or not.
    pub providers: BTreeMap<String, ProviderConfig>,
    /// What is allowed and worth a word.
    pub warnings: Report,
}

/// Reads the files, folders and `-` (standard input) that `paths` name.
///
/// # Errors
/// A report with every path that cannot be read, and why.
pub fn read(paths: &[PathBuf], stdin: impl Read) -> Result<Sources, Report> {
    let mut report = Report::default();
    let mut stdin = Some(stdin);
    for path in paths {
        let outcome = if path.as_os_str() == "-" {
            match stdin.take() {
                Some(input) => read_text("<stdin>", input).map(|source| vec![source]),
                None => Ok(Vec::new()),
            }
        } else {
            read_path(path)
        };
        match outcome {
            Ok(sources) => report.sources.0.extend(sources),
            Err(diagnostic) => report.diagnostics.push(*diagnostic),
        }
    }
    if report.diagnostics.is_empty() { Ok(report.sources) } else { Err(report) }
}

fn read_path(path: &Path) -> Result<Vec<Source>, Box<Diagnostic>> {
    let cannot = |error: io::Error| {
        Box::new(
            Diagnostic::error("unreadable", format!("cannot read {}: {error}", path.display()))
                .help("give a YAML or JSON file, a folder of them, or - for standard input"),
        )
    };
    if !fs::metadata(path).map_err(cannot)?.is_dir() {
        let name = path.display().to_string();
        return Ok(vec![read_text(&name, File::open(path).map_err(cannot)?)?]);
    }
    let mut files: Vec<PathBuf> = fs::read_dir(path)
        .map_err(cannot)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|file| {
            let extension = file.extension().and_then(|extension| extension.to_str());
            // As a shell's *.yaml: editors leave files that begin with a dot.
            let hidden = file.file_name().is_some_and(|name| name.as_encoded_bytes()[0] == b'.');
            file.is_file() && !hidden && matches!(extension, Some("yaml" | "yml" | "json"))
        })
        .collect();
    files.sort();
    if files.is_empty() {
        let summary = format!("{} has no *.yaml, *.yml or *.json file", path.display());
        return Err(Box::new(
            Diagnostic::error("empty-folder", summary)
                .help("folders inside it are not looked at; name the files or the right folder"),
        ));
    }
    let mut sources = Vec::new();
    for file in files {
        sources.push(read_text(&file.display().to_string(), File::open(&file).map_err(cannot)?)?);
    }
    Ok(sources)
}

fn read_text(name: &str, input: impl Read) -> Result<Source, Box<Diagnostic>> {
    let mut bytes = Vec::new();
    input.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|error| {
        Box::new(
            Diagnostic::error("unreadable", format!("cannot read {name}: {error}"))
                .help("check that it is a file, and that this user may read it"),
        )
    })?;
    if bytes.len() as u64 > MAX_BYTES {
        let summary = format!("{name} is larger than 32 MiB");
        return Err(Box::new(Diagnostic::error("too-large", summary).help("is it a pool file?")));
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Source::new(name, text)),
        Err(error) => {
            let good = error.utf8_error().valid_up_to();
            let line = error.as_bytes()[..good].iter().filter(|byte| **byte == b'\n').count() + 1;
            let summary = format!("{name}:{line}: byte {good} is not UTF-8");
            Err(Box::new(
                Diagnostic::error("not-utf8", summary).help("save the file with UTF-8 encoding"),
            ))
        }
    }
}

/// Turns `sources` into pools and providers.
///
/// # Errors
/// A report of everything that is wrong.
pub fn load(sources: Sources, around: &Surroundings<'_>) -> Result<Loaded, Report> {
    let declared = Declared::default();
    let mut loader = Loader { sources: &sources, around, declared, diagnostics: Vec::new() };
    let pools = loader.load();
    let providers = loader.declared.into_configs();
    let mut report = Report { diagnostics: loader.diagnostics, sources };
    report.sort();
    if report.error_count() == 0 {
        Ok(Loaded { pools, providers, warnings: report })
    } else {
        Err(report)
    }
}

struct Loader<'a> {
    sources: &'a Sources,
    around: &'a Surroundings<'a>,
    declared: Declared,
    diagnostics: Vec<Diagnostic>,
}

impl Loader<'_> {
    fn load(&mut self) -> Vec<LoadedPool> {
        let mut documents = Vec::new();
        for (number, source) in self.sources.0.iter().enumerate() {
            documents.extend(document::parse(number, &source.text, &mut self.diagnostics));
        }
        let overrides = overrides::find(self.around.environment, &mut self.diagnostics);
        for document in &mut documents {
            self.interpolate(document);
        }
        self.declared = Declared::collect(&documents, &mut self.diagnostics);
        self.check_ids(&documents, &overrides);
        let mut pools = Vec::new();
        for document in &mut documents {
            let set = self.override_pools(document, &overrides);
            self.pools_of(document, &set, &mut pools);
        }
        pools
    }

    fn interpolate(&mut self, document: &mut Document) {
        let mut value = std::mem::take(&mut document.value);
        overrides::interpolate(&mut value, self.around.environment, &mut |pointer, found| {
            let found = found.on(dotted(pointer)).at(Some(document.value_at(pointer)));
            self.diagnostics.push(found);
        });
        document.value = value;
    }

    /// Returns the pointers, from the document's root, that overrides set.
    fn override_pools(
        &mut self,
        document: &mut Document,
        overrides: &[Override],
    ) -> BTreeMap<String, String> {
        let mut set = BTreeMap::new();
        for base in bases(&document.value) {
            let Some(pool) = document.value.pointer_mut(&base) else { continue };
            let placed = overrides::apply(overrides, pool, &mut self.diagnostics);
            set.extend(placed.into_iter().map(|(at, variable)| (format!("{base}{at}"), variable)));
        }
        set
    }

    fn pools_of(
        &mut self,
        document: &Document,
        set: &BTreeMap<String, String>,
        pools: &mut Vec<LoadedPool>,
    ) {
        let violations = schema::violations(&document.value);
        if !violations.is_empty() {
            self.check_the_rest(document, &violations, set);
            for violation in violations {
                let location = if violation.at_key {
                    document.key_at(&violation.pointer)
                } else {
                    document.value_at(&violation.pointer)
                };
                self.diagnostics.push(blame(
                    violation.diagnostic.at(Some(location)),
                    set,
                    &violation.pointer,
                ));
            }
            return;
        }
        for base in bases(&document.value) {
            let Some(value) = document.value.pointer(&base) else { continue };
            let mut value = value.clone();
            if let Some(object) = value.as_object_mut() {
                object.remove("$schema");
            }
            match serde_json::from_value::<StaticPoolConfig>(with_whole_numbers(value.clone())) {
                Ok(config) => pools.push(self.pool(document, &base, &value, config, set)),
                Err(error) => self.diagnostics.push(
                    Diagnostic::error("invalid", error.to_string())
                        .help("`pool schema` says what is valid here")
                        .at(Some(document.value_at(&base))),
                ),
            }
        }
    }

    /// Checks the rules between fields of pools that are wrong in other ways, as far as they can still
    /// be understood: unknown keys do not keep anybody from that.
    fn check_the_rest(
        &mut self,
        document: &Document,
        violations: &[Violation],
        set: &BTreeMap<String, String>,
    ) {
        for base in bases(&document.value) {
            let Some(mut pool) = document.value.pointer(&base).cloned() else { continue };
            for violation in violations.iter().filter(|violation| violation.is_unknown_key()) {
                let Some((parent, key)) = violation.pointer.rsplit_once('/') else { continue };
                let Some(inside) = parent.strip_prefix(&base) else { continue };
                if let Some(Value::Object(object)) = pool.pointer_mut(inside) {
                    object.remove(&unescape(key));
                }
            }
            if let Ok(config) = serde_json::from_value(with_whole_numbers(pool)) {
                self.check(document, (&base, violations), &config, set);
            }
        }
    }

    /// Checks the rules between fields of the pool at `base`, and leaves out what the schema told already.
    fn check(
        &mut self,
        document: &Document,
        (base, told): (&str, &[Violation]),
        config: &StaticPoolConfig,
        set: &BTreeMap<String, String>,
    ) {
        for (at, found) in check::check(config, &self.declared) {
            let pointer = format!("{base}{at}");
            if told.iter().any(|violation| violation.pointer == pointer) {
                continue;
            }
            let location = document.value_at(&pointer);
            let found = found.on(dotted(&pointer)).at(Some(location));
            self.diagnostics.push(blame(found, set, &pointer));
        }
    }

    fn pool(
        &mut self,
        document: &Document,
        base: &str,
        value: &Value,
        config: StaticPoolConfig,
        set: &BTreeMap<String, String>,
    ) -> LoadedPool {
        self.check(document, (base, &[]), &config, set);
        let effective = serde_json::to_value(&config).unwrap_or_default();
        let mut origins = BTreeMap::new();
        leaves(&effective, &mut String::new(), &mut |pointer| {
            let full = format!("{base}{pointer}");
            let variable = set.iter().find(|(at, _)| is_within(&full, at));
            let origin = match variable {
                Some((_, variable)) => Origin::Environment(variable.clone()),
                None if value.pointer(pointer).is_some() => {
                    Origin::File(self.sources.describe(&document.value_at(&full)))
                }
                None => Origin::Default,
            };
            origins.insert(pointer.to_owned(), origin);
        });
        let place = self.sources.describe(&document.key_at(&format!("{base}/pool_id")));
        let provider = match self.declared.find(config.provider_name()) {
            Found::Right(provider) => Some(provider.in_environment(self.around.environment)),
            Found::Wrong | Found::Nowhere => None,
        };
        LoadedPool { config, provider, place, origins }
    }

    /// Reports pool ids that are given twice, and overrides that name no pool.
    fn check_ids(&mut self, documents: &[Document], overrides: &[Override]) {
        let mut ids: BTreeMap<String, super::diagnostic::Location> = BTreeMap::new();
        for document in documents {
            for base in bases(&document.value) {
                let pointer = format!("{base}/pool_id");
                let Some(id) = document.value.pointer(&pointer).and_then(Value::as_str) else {
                    continue;
                };
                let location = document.value_at(&pointer);
                if let Some(first) = ids.get(id) {
                    let summary = format!("the pool `{id}` is given twice");
                    let mut found = Diagnostic::error("duplicate-pool", summary)
                        .on(dotted(&pointer))
                        .at(Some(location))
                        .help("rename one of them, or remove it");
                    found.related = Some((first.clone(), "first here".to_owned()));
                    self.diagnostics.push(found);
                } else {
                    ids.insert(id.to_owned(), location);
                }
            }
        }
        let ids: Vec<String> = ids.into_keys().collect();
        overrides::check_pools(overrides, &ids, &mut self.diagnostics);
    }
}

/// When an override put the wrong value there, the variable is what to mend, not the file.
fn blame(found: Diagnostic, set: &BTreeMap<String, String>, pointer: &str) -> Diagnostic {
    match set.iter().find(|(at, _)| is_within(pointer, at)) {
        None => found,
        Some((_, variable)) => Diagnostic {
            summary: format!("{} (set by the variable {variable})", found.summary),
            location: None,
            replacement: None,
            ..found
        },
    }
}

/// Returns a value with `3.0` as `3`: for JSON Schema, and so for editors, that is an integer too.
pub(super) fn with_whole_numbers(value: Value) -> Value {
    /// Above that, not every whole number is a float.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match value {
        Value::Number(number) => match number.as_f64() {
            #[expect(clippy::cast_possible_truncation, reason = "it is whole, and in the range")]
            Some(float) if number.is_f64() && float.fract() == 0.0 && float.abs() < EXACT => {
                Value::from(float as i64)
            }
            _ => Value::Number(number),
        },
        Value::Array(items) => items.into_iter().map(with_whole_numbers).collect(),
        Value::Object(fields) => {
            // What is for an executable alone is its own: there it may mean something.
            let is_free = |key: &str| key == "attributes" || key == "config";
            let whole = |(key, inner): (String, Value)| {
                let inner = if is_free(&key) { inner } else { with_whole_numbers(inner) };
                (key, inner)
            };
            fields.into_iter().map(whole).collect()
        }
        other => other,
    }
}

fn is_within(pointer: &str, parent: &str) -> bool {
    pointer.strip_prefix(parent).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Returns the pointers to the pools of a document.
pub(super) fn bases(document: &Value) -> Vec<String> {
    match document.get("pools") {
        Some(Value::Array(pools)) => (0..pools.len()).map(|n| format!("/pools/{n}")).collect(),
        Some(_) => Vec::new(),
        None if document.get("providers").is_some() => Vec::new(),
        None => vec![String::new()],
    }
}

fn leaves(value: &Value, pointer: &mut String, visit: &mut impl FnMut(&str)) {
    match value {
        Value::Object(object) if !object.is_empty() => {
            let length = pointer.len();
            for (key, child) in object {
                pointer.push('/');
                pointer.push_str(&escape(key));
                leaves(child, pointer, visit);
                pointer.truncate(length);
            }
        }
        _ => visit(pointer),
    }
}
