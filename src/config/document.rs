//! YAML and JSON text to values whose every key and value still knows its place.
//!
//! One parser for both (JSON is YAML): `granit-parser` gives events with byte positions, this module
//! builds a tree of them, and `serde_yaml` decides what a plain scalar means and merges `<<` keys.
//! Aliases share one node, so an alias bomb costs nothing here; expanding the values is bounded.
//! Everything that is wrong is collected; what can still be understood is returned.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use granit_parser::{Event, Parser, ScalarStyle, Tag};
use serde_yaml::{Mapping, Value};

use super::diagnostic::{Diagnostic, Location};
use super::pointer::unescape;

/// Deeper nesting than any config has; stops hostile texts before the stack does.
const MAX_DEPTH: usize = 64;
/// More values than 100,000 pools would have, aliases expanded.
const MAX_VALUES: usize = 4_000_000;

/// A value with its place.
#[derive(Debug)]
pub(crate) struct Node {
    span: Range<usize>,
    kind: NodeKind,
}

#[derive(Debug)]
enum NodeKind {
    Scalar(Value),
    Sequence(Vec<Rc<Node>>),
    Mapping(Vec<Entry>),
}

#[derive(Debug)]
struct Entry {
    key: String,
    key_span: Range<usize>,
    value: Rc<Node>,
}

/// One document of a stream.
#[derive(Debug)]
pub(crate) struct Document {
    source: usize,
    root: Rc<Node>,
    /// The document's value, aliases expanded and `<<` merged.
    pub(crate) value: serde_json::Value,
}

impl Document {
    /// Returns where the value at `pointer` is, or its nearest parent that the text has.
    pub(crate) fn value_at(&self, pointer: &str) -> Location {
        Location { source: self.source, span: self.walk(pointer).1.span.clone() }
    }

    /// Returns where the key of the value at `pointer` is; the value's place when it has no key.
    pub(crate) fn key_at(&self, pointer: &str) -> Location {
        let (key, node) = self.walk(pointer);
        Location { source: self.source, span: key.unwrap_or_else(|| node.span.clone()) }
    }

    fn walk(&self, pointer: &str) -> (Option<Range<usize>>, &Node) {
        let mut node: &Node = &self.root;
        let mut key = None;
        for token in pointer.split('/').skip(1) {
            let token = unescape(token);
            match node.child(&token) {
                Some((child_key, child)) => {
                    key = child_key;
                    node = child;
                }
                None => break,
            }
        }
        (key, node)
    }
}

impl Node {
    fn child(&self, token: &str) -> Option<(Option<Range<usize>>, &Node)> {
        match &self.kind {
            NodeKind::Scalar(_) => None,
            NodeKind::Sequence(items) => {
                items.get(token.parse::<usize>().ok()?).map(|item| (None, &**item))
            }
            NodeKind::Mapping(entries) => entries
                .iter()
                .rfind(|entry| entry.key == token)
                .map(|entry| (Some(entry.key_span.clone()), &*entry.value))
                .or_else(|| {
                    let merges = entries.iter().filter(|entry| entry.key == "<<");
                    merges.flat_map(|entry| entry.value.merged()).find_map(|n| n.child(token))
                }),
        }
    }

    /// Returns the mappings that a `<<` key with this value merges.
    fn merged(&self) -> Vec<&Node> {
        match &self.kind {
            NodeKind::Sequence(items) => items.iter().map(|item| &**item).collect(),
            NodeKind::Scalar(_) | NodeKind::Mapping(_) => vec![self],
        }
    }

    /// Expands the node into a value, counting down `budget`.
    fn expand(&self, budget: &mut usize) -> Option<Value> {
        *budget = budget.checked_sub(1)?;
        Some(match &self.kind {
            NodeKind::Scalar(value) => value.clone(),
            NodeKind::Sequence(items) => Value::Sequence(
                items.iter().map(|item| item.expand(budget)).collect::<Option<_>>()?,
            ),
            NodeKind::Mapping(entries) => {
                let mut mapping = Mapping::new();
                for entry in entries {
                    let value = entry.value.expand(budget)?;
                    mapping.insert(Value::String(entry.key.clone()), value);
                }
                Value::Mapping(mapping)
            }
        })
    }
}

/// Parses every document of the text of source number `source`.
pub(crate) fn parse(source: usize, text: &str, diagnostics: &mut Vec<Diagnostic>) -> Vec<Document> {
    let mut builder = Builder {
        source,
        parser: Parser::new_from_str(text),
        anchors: BTreeMap::new(),
        diagnostics,
    };
    let mut roots = Vec::new();
    if let Err(found) = builder.stream(&mut roots) {
        builder.diagnostics.push(*found);
    }
    let expanded = roots.into_iter().filter_map(|root| expand(source, root, diagnostics));
    expanded.collect()
}

fn expand(source: usize, root: Rc<Node>, diagnostics: &mut Vec<Diagnostic>) -> Option<Document> {
    let location = Location { source, span: root.span.clone() };
    let mut budget = MAX_VALUES;
    let Some(mut value) = root.expand(&mut budget) else {
        diagnostics.push(
            Diagnostic::error("too-large", "the document has more than 4,000,000 values")
                .at(Some(location))
                .help("aliases (`*name`) that contain aliases multiply; use fewer of them"),
        );
        return None;
    };
    if let Err(error) = value.apply_merge() {
        diagnostics.push(
            Diagnostic::error("bad-merge", error.to_string())
                .at(Some(location))
                .help("`<<` takes a mapping, or a list of mappings"),
        );
        return None;
    }
    match serde_json::to_value(&value) {
        Ok(value) => Some(Document { source, root, value }),
        Err(error) => {
            let summary = format!("the document is not representable as JSON: {error}");
            diagnostics.push(
                Diagnostic::error("not-json", summary)
                    .at(Some(location))
                    .help("use plain numbers, texts, lists and mappings only"),
            );
            None
        }
    }
}

type Found = Box<Diagnostic>;

struct Builder<'a, 'd> {
    source: usize,
    parser: Parser<'a, granit_parser::StrInput<'a>>,
    anchors: BTreeMap<usize, Rc<Node>>,
    diagnostics: &'d mut Vec<Diagnostic>,
}

impl<'a> Builder<'a, '_> {
    fn next(&mut self) -> Result<(Event<'a>, Range<usize>), Found> {
        match self.parser.next() {
            Some(Ok((event, span))) => {
                let range = span.byte_range().unwrap_or(0..0);
                Ok((event, range))
            }
            Some(Err(error)) => {
                let offset = error.marker().byte_offset().unwrap_or(0);
                let found = Diagnostic::error("syntax", error.info())
                    .help("what follows cannot be read; an editor shows where it begins");
                Err(Box::new(found.at(Some(self.location(offset..offset)))))
            }
            None => Ok((Event::StreamEnd, 0..0)),
        }
    }

    fn location(&self, span: Range<usize>) -> Location {
        Location { source: self.source, span }
    }

    fn stream(&mut self, roots: &mut Vec<Rc<Node>>) -> Result<(), Found> {
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::StreamEnd => return Ok(()),
                Event::DocumentStart(..) => self.anchors.clear(),
                Event::StreamStart | Event::DocumentEnd => {}
                event => {
                    let root = self.node(event, span, 0)?;
                    // An empty document says nothing; `---` at the end of a file is common.
                    if !matches!(root.kind, NodeKind::Scalar(Value::Null)) {
                        roots.push(root);
                    }
                }
            }
        }
    }

    fn node(
        &mut self,
        event: Event<'a>,
        span: Range<usize>,
        depth: usize,
    ) -> Result<Rc<Node>, Found> {
        if depth > MAX_DEPTH {
            let found = Diagnostic::error("too-deep", "nested more than 64 levels deep")
                .help("a pool needs four levels; is it a pool file?");
            return Err(Box::new(found.at(Some(self.location(span)))));
        }
        let (anchor, node) = match event {
            Event::Alias(id) => {
                let node = self.anchors.get(&id).cloned().ok_or_else(|| {
                    let found = Diagnostic::error("bad-alias", "an alias refers to itself")
                        .help("write the value out, or move the anchor (`&name`) to another one");
                    Box::new(found.at(Some(self.location(span))))
                })?;
                return Ok(node);
            }
            Event::Scalar(text, style, anchor, tag) => {
                let value = self.scalar(text, style, tag.as_deref(), &span);
                (anchor, Node { span, kind: NodeKind::Scalar(value) })
            }
            Event::SequenceStart(_, anchor, _) => (anchor, self.sequence(span, depth)?),
            Event::MappingStart(_, anchor, _) => (anchor, self.mapping(span, depth)?),
            _ => (0, Node { span, kind: NodeKind::Scalar(Value::Null) }),
        };
        let node = Rc::new(node);
        if anchor != 0 {
            self.anchors.insert(anchor, Rc::clone(&node));
        }
        Ok(node)
    }

    fn sequence(&mut self, start: Range<usize>, depth: usize) -> Result<Node, Found> {
        let mut items = Vec::new();
        loop {
            let (event, span) = self.next()?;
            if event == Event::SequenceEnd {
                return Ok(Node { span: start.start..span.end, kind: NodeKind::Sequence(items) });
            }
            items.push(self.node(event, span, depth + 1)?);
        }
    }

    fn mapping(&mut self, start: Range<usize>, depth: usize) -> Result<Node, Found> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut seen: BTreeMap<String, Range<usize>> = BTreeMap::new();
        loop {
            let (event, key_span) = self.next()?;
            if event == Event::MappingEnd {
                // A block mapping's span would end where the next one begins; its keys say more.
                let end = entries.first().map_or(key_span.end, |first| first.key_span.end);
                let begin = entries.first().map_or(start.start, |first| first.key_span.start);
                return Ok(Node { span: begin..end.max(begin), kind: NodeKind::Mapping(entries) });
            }
            let key_node = self.node(event, key_span.clone(), depth + 1)?;
            let key = self.key(&key_node, &key_span);
            let (event, span) = self.next()?;
            let value = self.node(event, span, depth + 1)?;
            if key != "<<"
                && let Some(first) = seen.get(&key).cloned()
            {
                let mut found =
                    Diagnostic::error("duplicate-key", format!("`{key}` is given twice"))
                        .at(Some(self.location(key_span.clone())))
                        .help("keep one of them");
                found.related = Some((self.location(first), "first here".into()));
                self.diagnostics.push(found);
            }
            seen.entry(key.clone()).or_insert_with(|| key_span.clone());
            entries.push(Entry { key, key_span, value });
        }
    }

    fn key(&mut self, node: &Node, span: &Range<usize>) -> String {
        match &node.kind {
            NodeKind::Scalar(Value::String(text)) => text.clone(),
            NodeKind::Scalar(value @ (Value::Number(_) | Value::Bool(_))) => {
                serde_yaml::to_string(value).unwrap_or_default().trim_end().to_owned()
            }
            NodeKind::Scalar(_) | NodeKind::Sequence(_) | NodeKind::Mapping(_) => {
                let found = Diagnostic::error("bad-key", "a key must be a text")
                    .help("put it in quotes, or leave the `?` out")
                    .at(Some(self.location(span.clone())));
                self.diagnostics.push(found);
                String::new()
            }
        }
    }

    fn scalar(
        &mut self,
        text: Cow<'_, str>,
        style: ScalarStyle,
        tag: Option<&Tag>,
        span: &Range<usize>,
    ) -> Value {
        if text.contains('\0') {
            let found = Diagnostic::error("nul-byte", "a text holds a NUL byte")
                .at(Some(self.location(span.clone())))
                .help("neither programs nor files can have one in a name or argument");
            self.diagnostics.push(found);
        }
        match tag {
            Some(tag) if tag.is_yaml_core_schema_tag("str") => Value::String(text.into_owned()),
            Some(tag) if tag.core_suffix().is_none() => {
                let found = Diagnostic::error("unknown-tag", format!("unknown tag `{tag}`"))
                    .at(Some(self.location(span.clone())))
                    .help("only YAML's own tags, such as `!!str`, mean something here");
                self.diagnostics.push(found);
                Value::Null
            }
            Some(_) => resolve(&text),
            None if style == ScalarStyle::Plain => resolve(&text),
            None => Value::String(text.into_owned()),
        }
    }
}

/// Says what a plain scalar means, by YAML 1.2's core schema.
fn resolve(text: &str) -> Value {
    if text.is_empty() {
        return Value::Null;
    }
    // Only these can begin a number, a boolean or a null; most texts need no second look.
    if !text.starts_with(|c: char| c.is_ascii_digit() || "+-.~nNtTfF".contains(c)) {
        return Value::String(text.to_owned());
    }
    match serde_yaml::from_str(text) {
        Ok(value @ (Value::Null | Value::Bool(_) | Value::Number(_))) => value,
        // Anything else that a plain scalar could be taken for is a text.
        Ok(_) | Err(_) => Value::String(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(text: &str, expected: &serde_json::Value) {
        let mut diagnostics = Vec::new();
        let documents = parse(0, text, &mut diagnostics);
        assert_eq!(diagnostics, [], "{text}");
        assert_eq!(documents.first().map(|document| &document.value), Some(expected), "{text}");
    }

    fn rules(text: &str) -> Vec<&'static str> {
        let mut diagnostics = Vec::new();
        parse(0, text, &mut diagnostics);
        diagnostics.iter().map(|found| found.rule).collect()
    }

    #[test]
    fn scalars_follow_yaml_1_2() {
        check(
            "{a: no, b: 010, c: 0o10, d: ~, e: 1.10, f: '5', g: on}",
            &serde_json::json!(
                { "a": "no", "b": "010", "c": 8, "d": null, "e": 1.1, "f": "5", "g": "on" }
            ),
        );
    }

    #[test]
    fn merge_keys_and_aliases_expand_and_keep_their_places() {
        let text = "base: &base {x: 1}\nderived:\n  <<: *base\n  y: 2\n";
        check(text, &serde_json::json!({ "base": { "x": 1 }, "derived": { "x": 1, "y": 2 } }));
        let document = parse(0, text, &mut Vec::new()).remove(0);
        assert_eq!(&text[document.key_at("/derived/y").span], "y");
        assert_eq!(&text[document.value_at("/derived/x").span], "1");
        assert_eq!(document.key_at("/derived/x").span.start, 13, "points into the merged mapping");
    }

    #[test]
    fn every_duplicate_key_is_found() {
        assert_eq!(rules("a: 1\na: 2\nb: {c: 1, c: 2}\n"), ["duplicate-key", "duplicate-key"]);
    }

    #[test]
    fn hostile_texts_are_refused_quickly() {
        let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
        for level in 1..12 {
            let item = format!("*a{}", level - 1);
            bomb.push_str(&format!("a{level}: &a{level} [{}]\n", [item.as_str(); 10].join(",")));
        }
        assert_eq!(rules(&bomb), ["too-large"]);
        assert_eq!(rules(&"[".repeat(50_000)).len(), 1);
        assert_eq!(rules(&"a: ".repeat(3)).len(), 1);
        assert_eq!(rules("a: \"x\\0y\""), ["nul-byte"]);
        assert_eq!(rules("a: !weird 5"), ["unknown-tag"]);
        assert_eq!(rules("a: *nowhere").len(), 1);
        assert_eq!(rules("? [a, b]\n: 1\n"), ["bad-key"]);
    }

    #[test]
    fn a_stream_has_several_documents_and_empty_ones_do_not_count() {
        let mut diagnostics = Vec::new();
        assert_eq!(parse(0, "---\na: 1\n---\n---\nb: 2\n---\n", &mut diagnostics).len(), 2);
        assert_eq!(parse(0, "", &mut diagnostics).len(), 0);
        assert_eq!(parse(0, "# nothing\n", &mut diagnostics).len(), 0);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,200}") {
            parse(0, &text, &mut Vec::new());
        }

        #[test]
        fn agrees_with_serde_yaml_where_that_accepts(text in "([a-c]: ([a-d]|[0-9]{1,3}|~|'x'|\\[1, a\\])\n){1,4}") {
            let mut diagnostics = Vec::new();
            let documents = parse(0, &text, &mut diagnostics);
            if let Ok(value) = serde_yaml::from_str::<Value>(&text) {
                prop_assert_eq!(diagnostics, []);
                prop_assert_eq!(&documents[0].value, &serde_json::to_value(value).unwrap());
            } else {
                prop_assert!(!diagnostics.is_empty());
            }
        }
    }
}
