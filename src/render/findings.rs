//! What is wrong with a config, for the places where reviewers look: GitHub's annotations, SARIF for code scanning,
//! GitLab's code quality.
//!
//! - GitHub: workflow commands (docs.github.com, "Workflow commands for GitHub Actions").
//! - SARIF: version 2.1.0 (OASIS).
//! - GitLab: the Code Climate subset that its documentation lists under "Code Quality".

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::diagnostic::visible;
use crate::config::diagnostic::Position;
use crate::config::rules::{RULES, meaning};
use crate::config::{Diagnostic, Report, Severity, Sources};

/// Where something is wrong, from 1.
struct Place<'a> {
    file: &'a str,
    start: Position,
    end: Position,
}

fn place<'a>(found: &Diagnostic, sources: &'a Sources) -> Option<Place<'a>> {
    let location = found.location.as_ref()?;
    let span = visible(location, sources);
    let (start, end) =
        (sources.position(location, span.start), sources.position(location, span.end));
    let file = &sources.of(location).name;
    Some(Place { file: file.strip_prefix("./").unwrap_or(file), start, end })
}

/// What is wrong and what to do, in as many lines.
fn message(found: &Diagnostic) -> String {
    match &found.help {
        Some(help) => format!("{}\n{help}", found.summary),
        None => found.summary.clone(),
    }
}

/// Writes a report as GitHub's workflow commands, one line each.
pub fn report_github(report: &Report) -> String {
    report.diagnostics.iter().map(|found| annotation(found, &report.sources)).collect()
}

fn annotation(found: &Diagnostic, sources: &Sources) -> String {
    let level = match found.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    };
    let place = place(found, sources).map(|Place { file, start, end }| {
        format!(
            "file={},line={},endLine={},col={},endColumn={},",
            property(file),
            start.line,
            end.line,
            start.column,
            end.column
        )
    });
    command(level, &place.unwrap_or_default(), found.rule, &message(found))
}

/// Writes one workflow command; `place` is empty or ends in a comma.
pub(super) fn command(level: &str, place: &str, title: &str, message: &str) -> String {
    format!("::{level} {place}title={}::{}\n", property(title), data(message))
}

/// GitHub ends a command at the end of a line.
fn data(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

/// A property of a command ends at a comma, its name at a colon.
pub(super) fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}

/// What tells one finding from another when lines move: the file, the rule, and where in the config.
fn fingerprints(report: &Report) -> Vec<String> {
    let mut known: BTreeMap<String, usize> = BTreeMap::new();
    let print = |found: &Diagnostic| {
        let file = place(found, &report.sources).map_or("", |place| place.file);
        let whole = [file, found.rule, &found.path, &found.summary].join("\0");
        // Two documents of a file may have the same mistake at the same path.
        let before = known.entry(whole.clone()).or_default();
        *before += 1;
        let hash = Sha256::digest(format!("{whole}\0{before}"));
        hash.iter().map(|byte| format!("{byte:02x}")).collect()
    };
    report.diagnostics.iter().map(print).collect()
}

/// Writes a report as SARIF.
pub fn report_sarif(report: &Report) -> Value {
    let rules: Vec<Value> = RULES
        .iter()
        .map(|(id, what)| {
            json!({ "id": id, "shortDescription": { "text": what }, "help": { "text": what } })
        })
        .collect();
    let found = report.diagnostics.iter().zip(fingerprints(report));
    let results: Vec<Value> =
        found.map(|(found, print)| result(found, &report.sources, &print)).collect();
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": {
                "name": "pool", "version": env!("CARGO_PKG_VERSION"), "rules": rules,
            } },
            "columnKind": "unicodeCodePoints",
            "results": results,
        }],
    })
}

fn result(found: &Diagnostic, sources: &Sources, fingerprint: &str) -> Value {
    let place = place(found, sources);
    let locations: Vec<Value> = place
        .iter()
        .map(|Place { file, start, end }| {
            json!({ "physicalLocation": {
                "artifactLocation": { "uri": uri(file) },
                "region": {
                    "startLine": start.line, "startColumn": start.column,
                    "endLine": end.line, "endColumn": end.column,
                },
            } })
        })
        .collect();
    json!({
        "ruleId": found.rule,
        "ruleIndex": RULES.iter().position(|(id, _)| *id == found.rule),
        "level": match found.severity { Severity::Error => "error", Severity::Warning => "warning" },
        "message": { "text": message(found) },
        "locations": locations,
        "partialFingerprints": { "poolFinding/v1": fingerprint },
    })
}

/// A path as a relative reference.
fn uri(file: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    file.bytes()
        .map(
            |byte| {
                if is_plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }
            },
        )
        .collect()
}

/// Writes a report as GitLab's code quality.
pub fn report_gitlab(report: &Report) -> Value {
    let issue = |(found, fingerprint): (&Diagnostic, String)| {
        let place = place(found, &report.sources);
        let (file, line) = place.map_or((".", 1), |place| (place.file, place.start.line));
        json!({
            "description": message(found).replace('\n', ": "),
            "check_name": found.rule,
            "fingerprint": fingerprint,
            "severity": match found.severity { Severity::Error => "major", Severity::Warning => "minor" },
            "location": { "path": file, "lines": { "begin": line } },
            "content": { "body": meaning(found.rule) },
        })
    };
    report.diagnostics.iter().zip(fingerprints(report)).map(issue).collect()
}
