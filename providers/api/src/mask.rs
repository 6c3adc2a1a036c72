//! Keeps secrets out of what is told and what is kept, whoever says it.
//!
//! A value is looked for as it is, as JSON writes it, and, when it has several lines, line by line. What was encoded
//! otherwise is not found: a mask mends accidents, it is no leave to print secrets.

use std::collections::BTreeSet;
use std::fmt;

use aho_corasick::{AhoCorasick, MatchKind};

/// The shortest secret that is looked for, in bytes: shorter ones are everywhere.
const SHORTEST: usize = 4;
/// The shortest line of a secret that is looked for by itself, in bytes.
const SHORTEST_LINE: usize = 8;
/// What stands in a secret's place.
const STARS: &str = "***";

/// Puts `***` in the place of secrets.
#[derive(Clone)]
pub struct Mask {
    /// What is looked for.
    secrets: Vec<Vec<u8>>,
    search: Option<AhoCorasick>,
}

impl fmt::Debug for Mask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mask")
    }
}

impl Mask {
    /// Builds the mask of these secrets.
    pub fn new<'v>(values: impl IntoIterator<Item = &'v str>) -> Self {
        let mut secrets = BTreeSet::new();
        for value in values {
            let escaped = serde_json::to_string(value).unwrap_or_default();
            let escaped = escaped.trim_matches('"');
            // A file's or a variable's last line end is seldom printed with it.
            let bare = value.trim_end_matches(['\r', '\n']);
            let whole = [value, bare, escaped].into_iter().filter(|text| text.len() >= SHORTEST);
            let lines = value.lines().filter(|line| line.len() >= SHORTEST_LINE);
            secrets.extend(whole.chain(lines).map(|text| text.as_bytes().to_vec()));
        }
        let secrets: Vec<Vec<u8>> = secrets.into_iter().collect();
        let builder = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&secrets);
        // Too many secrets to build it is more than memory holds.
        let search = builder.ok().filter(|_| !secrets.is_empty());
        Self { secrets, search }
    }

    /// Returns a text without the secrets.
    pub fn text(&self, text: &str) -> String {
        match &self.search {
            Some(search) => search.replace_all(text, &vec![STARS; self.secrets.len()]),
            None => text.to_owned(),
        }
    }

    /// Masks what comes in pieces.
    pub fn stream(self) -> MaskedStream {
        MaskedStream { mask: self, held: Vec::new() }
    }

    /// Returns where the first secret begins that more text might complete.
    fn begun(&self, text: &[u8]) -> usize {
        let longest = self.secrets.iter().map(Vec::len).max().unwrap_or(0);
        let first = (text.len() + 1).saturating_sub(longest);
        let may_go_on = |at: &usize| {
            let rest = &text[*at..];
            let goes_on = |secret: &Vec<u8>| secret.len() > rest.len() && secret.starts_with(rest);
            self.secrets.iter().any(goes_on)
        };
        (first..text.len()).find(may_go_on).unwrap_or(text.len())
    }
}

/// Masks a text that comes in pieces: a secret may begin in one and end in the next.
#[derive(Debug)]
pub struct MaskedStream {
    mask: Mask,
    /// What may be the beginning of a secret.
    held: Vec<u8>,
}

impl MaskedStream {
    /// Takes a piece, and returns what can be told by now.
    pub fn push(&mut self, piece: &[u8]) -> Vec<u8> {
        self.held.extend_from_slice(piece);
        let until = self.mask.begun(&self.held);
        self.mask_until(until)
    }

    /// Returns the rest: nothing more comes.
    pub fn finish(&mut self) -> Vec<u8> {
        self.mask_until(self.held.len())
    }

    /// Takes away what stands before `until`, and the secrets that begin there.
    fn mask_until(&mut self, until: usize) -> Vec<u8> {
        let mut told = Vec::with_capacity(self.held.len());
        let mut last = 0;
        for found in self.mask.search.iter().flat_map(|search| search.find_iter(&self.held)) {
            if found.start() >= until {
                break;
            }
            told.extend_from_slice(&self.held[last..found.start()]);
            told.extend_from_slice(STARS.as_bytes());
            last = found.end();
        }
        let end = until.max(last);
        told.extend_from_slice(&self.held[last..end]);
        self.held.drain(..end);
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "-----BEGIN KEY-----\nabcdefghijk\nshort\n";

    #[test]
    fn secrets_are_masked_as_they_are_as_json_and_line_by_line() {
        let mask = Mask::new(["hunter2", KEY, "a", ""]);
        assert_eq!(mask.text("it is hunter2, a key"), "it is ***, a key");
        assert_eq!(mask.text(&format!("<{KEY}>")), "<***>");
        assert_eq!(mask.text("the line abcdefghijk and short"), "the line *** and short");
        let json = serde_json::json!({ "key": KEY }).to_string();
        assert_eq!(mask.text(&json), r#"{"key":"***"}"#);
        assert_eq!(Mask::new(["hunter2\n"]).text("token=hunter2 ok"), "token=*** ok");
        assert_eq!(Mask::new([]).text("nothing to hide"), "nothing to hide");
    }

    #[test]
    fn a_secret_in_pieces_is_masked_wherever_it_is_cut() {
        // One secret is the beginning of another, and one begins inside another.
        let secrets = ["hunter2", "hunter2345", "2345xyz", "abababab"];
        let text = "a hunter2 b hunter2345 c hunter2345xyz abababab ababababab hunte";
        let whole = Mask::new(secrets).text(text);
        for first in 0..text.len() {
            for second in first..text.len() {
                let mut stream = Mask::new(secrets).stream();
                let mut told = stream.push(&text.as_bytes()[..first]);
                told.extend(stream.push(&text.as_bytes()[first..second]));
                told.extend(stream.push(&text.as_bytes()[second..]));
                told.extend(stream.finish());
                assert_eq!(String::from_utf8(told).unwrap(), whole, "{first}, {second}");
            }
        }
    }

    #[test]
    fn what_cannot_be_a_secret_is_told_at_once() {
        let mut stream = Mask::new(["hunter2"]).stream();
        assert_eq!(stream.push(b"booting\n"), b"booting\n");
        assert_eq!(stream.push(b"token=hun"), b"token=");
        assert_eq!(stream.push(b"ger\n"), b"hunger\n");
    }
}
