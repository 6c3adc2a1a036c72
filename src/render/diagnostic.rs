//! Diagnostics: with source lines and carets for people, in Terraform's `validate -json` shape for
//! machines.

use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{AnnotationKind, Group, Level, Patch, Renderer, Snippet};
use serde_json::{Value, json};

use super::Look;
use crate::config::diagnostic::Position;
use crate::config::{Diagnostic, Location, Report, Severity, Sources};

/// More than this is not read by anybody; a generated file can have thousands.
const MOST: usize = 50;

/// Shows a report to a person.
pub fn report_text(report: &Report, look: Look) -> String {
    let renderer = if look.colour { Renderer::styled() } else { Renderer::plain() };
    let renderer = renderer.decor_style(DecorStyle::Ascii).term_width(look.width);
    let mut text = String::new();
    for found in report.diagnostics.iter().take(MOST) {
        text.push_str(&renderer.render(&groups(found, &report.sources)));
        text.push_str("\n\n");
    }
    let more = report.diagnostics.len().saturating_sub(MOST);
    if more > 0 {
        text.push_str(&format!("... and {more} more\n\n"));
    }
    text
}

fn groups<'a>(found: &'a Diagnostic, sources: &'a Sources) -> Vec<Group<'a>> {
    let level = match found.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let title = level.primary_title(found.summary.as_str()).id(found.rule);
    let mut groups = Vec::new();
    let mut main = match &found.location {
        None => Group::with_title(title),
        Some(location) => {
            let primary = AnnotationKind::Primary.span(visible(location, sources));
            let snippet = snippet(location, sources).annotation(primary);
            match &found.related {
                Some((related, word)) if related.source == location.source => {
                    let context = AnnotationKind::Context.span(related.span.clone());
                    title.element(snippet.annotation(context.label(word.as_str())))
                }
                Some((related, word)) => {
                    let context = AnnotationKind::Context.span(related.span.clone());
                    let other = self::snippet(related, sources);
                    title.element(snippet).element(other.annotation(context.label(word.as_str())))
                }
                None => title.element(snippet),
            }
        }
    };
    match (&found.replacement, &found.location, &found.help) {
        (Some(replacement), Some(location), Some(help)) => {
            groups.push(main);
            let patch = Patch::new(location.span.clone(), replacement.as_str());
            let source = sources.of(location);
            let fixed =
                Snippet::source(source.text.as_str()).path(source.name.as_str()).patch(patch);
            groups.push(Level::HELP.secondary_title(help.as_str()).element(fixed));
        }
        (_, _, Some(help)) => {
            main = main.element(Level::HELP.message(help.as_str()));
            groups.push(main);
        }
        (_, _, None) => groups.push(main),
    }
    groups
}

fn snippet<'a, T: Clone>(location: &Location, sources: &'a Sources) -> Snippet<'a, T> {
    let source = sources.of(location);
    Snippet::source(source.text.as_str()).path(source.name.as_str())
}

/// A caret needs something to stand under, on one line.
pub(super) fn visible(location: &Location, sources: &Sources) -> std::ops::Range<usize> {
    let text = &sources.of(location).text;
    let start = location.span.start.min(text.len());
    let line_end = text[start..].find('\n').map_or(text.len(), |length| start + length);
    start..location.span.end.clamp(start, line_end)
}

/// Shows a report to a machine: Terraform's `validate -json`.
pub fn report_json(report: &Report) -> Value {
    let errors = report.error_count();
    let diagnostics: Vec<Value> =
        report.diagnostics.iter().map(|found| diagnostic_json(found, &report.sources)).collect();
    json!({
        "format_version": "1.0",
        "valid": errors == 0,
        "error_count": errors,
        "warning_count": report.diagnostics.len() - errors,
        "diagnostics": diagnostics,
    })
}

/// Shows one diagnostic to a machine.
fn diagnostic_json(found: &Diagnostic, sources: &Sources) -> Value {
    let mut value = json!({
        "severity": match found.severity { Severity::Error => "error", Severity::Warning => "warning" },
        "summary": found.summary,
        "detail": found.help.clone().unwrap_or_default(),
        "rule": found.rule,
        "address": found.path,
    });
    if let Some(location) = &found.location {
        let source = sources.of(location);
        let place = |offset: usize| {
            let Position { line, column } = sources.position(location, offset);
            json!({ "line": line, "column": column, "byte": offset })
        };
        let span = visible(location, sources);
        value["range"] = json!({
            "filename": source.name,
            "start": place(span.start),
            "end": place(span.end),
        });
        let line_start = source.text[..span.start].rfind('\n').map_or(0, |newline| newline + 1);
        let line = source.text[line_start..].lines().next().unwrap_or_default();
        value["snippet"] = json!({
            "context": found.path,
            "code": line,
            "start_line": sources.position(location, span.start).line,
            "highlight_start_offset": span.start - line_start,
            "highlight_end_offset": span.end - line_start,
            "values": [],
        });
    }
    value
}
