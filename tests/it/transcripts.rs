//! Command-line sessions as people see them: `tests/cases/<name>/session.txt`.
//!
//! A line that starts with `$ ` is run by a shell in a folder with the case's other files; what follows
//! is what it prints, standard error included, and its exit code when that is not 0. Times, ids and
//! versions are replaced. With `UPDATE_TRANSCRIPTS=1` the files are rewritten: read them before you
//! commit them.

use std::path::{Path, PathBuf};

use super::sandbox::{Sandbox, asked_for};

#[test]
fn every_session_prints_what_its_transcript_says() {
    let update = asked_for("UPDATE_TRANSCRIPTS").is_some();
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let mut folders: Vec<PathBuf> =
        std::fs::read_dir(cases).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    assert!(folders.len() >= 10, "the cases are gone");
    let mut wrong = Vec::new();
    for folder in folders {
        let session = folder.join("session.txt");
        let expected = std::fs::read_to_string(&session).unwrap();
        let found = replay(&folder, &expected);
        if update {
            std::fs::write(&session, found).unwrap();
        } else if found != expected {
            let diff = similar::TextDiff::from_lines(&expected, &found);
            wrong.push(format!("{}\n{}", session.display(), diff.unified_diff()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn replay(folder: &Path, session: &str) -> String {
    let sandbox = Sandbox::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        if entry.file_name() != "session.txt" {
            let text = std::fs::read(entry.path()).unwrap();
            std::fs::write(sandbox.path().join(entry.file_name()), text).unwrap();
        }
    }
    let mut found = String::new();
    let place = sandbox.path().display().to_string();
    for line in session.lines() {
        if line.starts_with('#') && !found.contains("\n$ ") && !found.starts_with("$ ") {
            found.push_str(&format!("{line}\n"));
            continue;
        }
        let Some(command) = line.strip_prefix("$ ") else { continue };
        let ran = sandbox.shell(&format!("{{ {command}\n}} 2>&1"));
        found.push_str(&format!("$ {command}\n{}", neutral(&ran.stdout.replace(&place, "FOLDER"))));
        if !found.ends_with('\n') {
            found.push('\n');
        }
        if ran.code != Some(0) {
            found.push_str(&format!("[exit {}]\n", ran.code.unwrap()));
        }
    }
    found
}

/// Replaces what differs from run to run.
fn neutral(text: &str) -> String {
    let version = env!("CARGO_PKG_VERSION");
    let text = text.replace(&format!("pool {version}"), "pool VERSION");
    let mut neutral = String::new();
    for line in text.lines() {
        let words: Vec<String> = line.split(' ').map(neutral_word).collect();
        neutral.push_str(words.join(" ").trim_end());
        neutral.push('\n');
    }
    neutral
}

fn neutral_word(word: &str) -> String {
    let bare = word.trim_matches(|c: char| "\"',()".contains(c));
    let hex = |text: &str| text.len() >= 6 && text.chars().all(|c| c.is_ascii_hexdigit());
    let neutral = if bare.parse::<jiff::Timestamp>().is_ok() {
        "TIME".to_owned()
    } else if bare.starts_with("sim-") && hex(&bare[4..]) {
        "sim-TOKEN".to_owned()
    } else if bare.starts_with("e1-") && hex(&bare[3..]) {
        "DIGEST".to_owned()
    } else if bare.len() == 32 && hex(bare) {
        "DEPLOYMENT".to_owned()
    } else {
        return word.to_owned();
    };
    word.replace(bare, &neutral)
}
