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
pub(crate) fn neutral(text: &str) -> String {
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
    } else if bare.split_once('-').is_some_and(|(number, nonce)| {
        number.parse::<u64>().is_ok() && nonce.len() == 8 && hex(nonce)
    }) {
        "LEASE".to_owned()
    } else if bare.len() == 32 && hex(bare) {
        "DEPLOYMENT".to_owned()
    } else {
        return word.to_owned();
    };
    word.replace(bare, &neutral)
}

fn sessions() -> Vec<(PathBuf, String)> {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let folders = std::fs::read_dir(cases).unwrap().map(|entry| entry.unwrap().path());
    let sessions = folders.map(|folder| folder.join("session.txt"));
    sessions.map(|path| (path.clone(), std::fs::read_to_string(path).unwrap())).collect()
}

/// The names of the commands below `command`, as its help lists them.
fn commands_of(command: &[&str]) -> Vec<String> {
    let mut words = command.to_vec();
    words.push("--help");
    let help = Sandbox::new().pool(&words).exits(0).stdout;
    let Some((_, list)) = help.split_once("Commands:\n") else { return Vec::new() };
    let lines = list.lines().take_while(|line| line.starts_with("  "));
    // A description that goes on in the next line is indented further.
    let names = lines
        .filter(|line| !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

#[test]
fn every_command_is_in_a_transcript() {
    let all: String = sessions().into_iter().map(|(_, text)| text).collect();
    let mut missing = Vec::new();
    let top = commands_of(&[]);
    assert!(top.len() >= 16, "{top:?}");
    for command in top {
        let inner = commands_of(&[&command]);
        let mut whole: Vec<String> =
            inner.iter().map(|inner| format!("pool {command} {inner}")).collect();
        whole.push(format!("pool {command}"));
        missing.extend(whole.into_iter().filter(|command| !all.contains(command.as_str())));
    }
    assert!(missing.is_empty(), "in no transcript: {missing:?}");
}

#[test]
fn every_error_says_what_to_do() {
    let tells = |text: &str| {
        ["hint:", "help:", "tip:", "For more information", "run again"]
            .iter()
            .any(|word| text.contains(word))
    };
    for (path, text) in sessions() {
        // What is cut on purpose may have lost its hint.
        for run in text
            .split("\n$ ")
            .filter(|run| !run.lines().next().is_some_and(|it| it.contains("| head")))
        {
            let mut errors = run.split("\nerror").skip(1).peekable();
            while let Some(error) = errors.next() {
                // The count that ends a report is no error of its own.
                let is_count = error.starts_with(": ") && error.contains(" in the configuration");
                let is_one_of_several =
                    errors.peek().is_some() && !error.contains("\n\n") && !error.starts_with('[');
                assert!(
                    is_count || is_one_of_several || tells(error),
                    "{}: no hint in\n$ {run}\nfor\nerror{error}",
                    path.display()
                );
            }
        }
    }
}
