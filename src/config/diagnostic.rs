//! What is wrong with a config, where, and what to do: as data.
//!
//! Does not format: `render` shows diagnostics to people and to machines.

use std::ops::Range;

/// How bad a diagnostic is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The config cannot be used.
    Error,
    /// The config can be used, and somebody should know what it means.
    Warning,
}

/// One text that configs were read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// How people call it: the path as given, or `<stdin>`.
    pub name: String,
    /// What it says.
    pub text: String,
    /// Where each line begins, so that a place is found without counting from the start.
    line_starts: Vec<usize>,
}

impl Source {
    /// Builds a source.
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Self {
        let text = text.into();
        let newlines = text.match_indices('\n').map(|(newline, _)| newline + 1);
        let line_starts = std::iter::once(0).chain(newlines).collect();
        Self { name: name.into(), text, line_starts }
    }
}

/// All texts of one load; a location refers to one by its number.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sources(pub Vec<Source>);

/// A place in a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// The number of the source in [`Sources`].
    pub source: usize,
    /// The bytes that are meant.
    pub span: Range<usize>,
}

/// A line and a column, both from 1; columns count characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The column.
    pub column: usize,
}

impl Sources {
    /// Returns the source that `location` is in.
    pub fn of(&self, location: &Location) -> &Source {
        &self.0[location.source]
    }

    /// Returns the line and column of the byte `offset` of `location`'s source.
    pub fn position(&self, location: &Location, offset: usize) -> Position {
        let Source { text, line_starts, .. } = self.of(location);
        let offset = floor_char_boundary(text, offset);
        let line = line_starts.partition_point(|start| *start <= offset);
        let line_start = line_starts[line - 1];
        Position { line, column: text[line_start..offset].chars().count() + 1 }
    }

    /// Writes `location` as `file:line:column`.
    pub fn describe(&self, location: &Location) -> String {
        let Position { line, column } = self.position(location, location.span.start);
        format!("{}:{line}:{column}", self.of(location).name)
    }
}

fn floor_char_boundary(text: &str, offset: usize) -> usize {
    let mut offset = offset.min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    offset
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// The rule that it breaks: a stable name.
    pub rule: &'static str,
    /// What is wrong, in one line.
    pub summary: String,
    /// Where in the config: `pools[0].fixed_size`.
    pub path: String,
    /// Where in the text, when it came from one.
    pub location: Option<Location>,
    /// A second place that matters, with a word on why.
    pub related: Option<(Location, String)>,
    /// What to do.
    pub help: Option<String>,
    /// A text that would be right in place of the one at `location`.
    pub replacement: Option<String>,
}

impl Diagnostic {
    /// Builds a diagnostic of something that is allowed and worth a word.
    pub fn warning(rule: &'static str, summary: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(rule, summary) }
    }

    /// Starts an error of `rule`.
    pub fn error(rule: &'static str, summary: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            rule,
            summary: summary.into(),
            path: String::new(),
            location: None,
            related: None,
            help: None,
            replacement: None,
        }
    }

    /// Says where in the text.
    #[must_use]
    pub fn at(mut self, location: Option<Location>) -> Self {
        self.location = location;
        self
    }

    /// Says where in the config.
    #[must_use]
    pub fn on(mut self, path: impl Into<String>) -> Self {
        self.path = path.into();
        self
    }

    /// Says what to do.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Offers a replacement for the text at the location.
    #[must_use]
    pub fn instead(mut self, replacement: Option<String>) -> Self {
        self.replacement = replacement;
        self
    }
}

/// Everything that is wrong with a config, with the texts that it refers to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// The texts.
    pub sources: Sources,
    /// What is wrong, in order of source and place.
    pub diagnostics: Vec<Diagnostic>,
}

impl Report {
    /// Returns how many diagnostics are errors.
    pub fn error_count(&self) -> usize {
        self.diagnostics.iter().filter(|found| found.severity == Severity::Error).count()
    }

    /// Puts the diagnostics in the order in which a person reads the files.
    pub fn sort(&mut self) {
        self.diagnostics.sort_by_key(|found| {
            found
                .location
                .as_ref()
                .map_or((usize::MAX, 0), |location| (location.source, location.span.start))
        });
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let plural = if self.error_count() == 1 { "error" } else { "errors" };
        write!(f, "{} {plural} in the configuration", self.error_count())
    }
}

impl std::error::Error for Report {}

/// Returns the word of `known` that `word` was probably meant to be.
pub fn did_you_mean<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let folded = word.to_lowercase().replace('-', "_");
    known
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(&folded, candidate), candidate))
        // 0.8: `cpu_count` still finds `cpu_cores`, unrelated words find nothing.
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_characters_and_survive_odd_offsets() {
        let sources = Sources(vec![Source::new("a.yaml", "é: 1\nüb: x")]);
        let at = |offset| {
            let location = Location { source: 0, span: offset..offset };
            sources.describe(&location)
        };
        assert_eq!(at(0), "a.yaml:1:1");
        assert_eq!(at(1), "a.yaml:1:1");
        assert_eq!(at(2), "a.yaml:1:2");
        assert_eq!(at(9), "a.yaml:2:3");
        assert_eq!(at(999), "a.yaml:2:6");
    }

    #[test]
    fn near_words_are_suggested_and_far_ones_are_not() {
        let known = ["fixed_size", "pool_id", "worker_type", "cpu_cores"];
        assert_eq!(did_you_mean("fixed-size", known), Some("fixed_size"));
        assert_eq!(did_you_mean("fixd_size", known), Some("fixed_size"));
        assert_eq!(did_you_mean("cpu_count", known), Some("cpu_cores"));
        assert_eq!(did_you_mean("zzz", known), None);
    }
}
