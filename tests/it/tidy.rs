//! House rules that no compiler checks: who may know whom, one home for each foreign crate, sizes,
//! headers, words.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The modules in reading order, and which of the others each may use.
const MAY_USE: [(&str, &[&str]); 16] = [
    ("worker", &[]),
    ("clock", &["worker"]),
    ("config", &["worker"]),
    ("desired", &["config", "worker"]),
    ("lease", &["config", "worker", "desired"]),
    ("plan", &["desired", "lease", "config", "worker"]),
    ("health", &["config", "worker"]),
    ("state", &["plan", "lease", "config", "worker", "clock", "desired"]),
    ("probe", &["config", "health", "worker"]),
    (
        "apply",
        &["plan", "lease", "state", "clock", "config", "worker", "desired", "health", "probe"],
    ),
    (
        "pool",
        &[
            "apply", "plan", "lease", "state", "clock", "config", "desired", "worker", "health",
            "probe",
        ],
    ),
    ("serve", &["pool", "config", "clock", "lease", "worker", "state", "probe"]),
    ("render", &["plan", "config", "worker", "apply", "desired", "pool"]),
    (
        "cli",
        &[
            "pool", "serve", "lease", "render", "config", "clock", "state", "plan", "apply",
            "worker",
        ],
    ),
    ("lib", &[]),
    ("main", &[]),
];

/// Where each foreign crate may be named.
const HOMES: [(&str, &[&str]); 19] = [
    ("rusqlite", &["state"]),
    ("serde_yaml", &["config"]),
    ("granit_parser", &["config"]),
    ("jsonschema", &["config"]),
    ("schemars", &["config", "serve"]),
    ("axum", &["serve"]),
    ("hyper", &["serve"]),
    ("prometheus_client", &["serve"]),
    ("notify", &["cli"]),
    ("sd_notify", &["cli"]),
    ("tracing_subscriber", &["cli"]),
    ("annotate_snippets", &["render"]),
    ("similar", &["render"]),
    ("console", &["render", "main"]),
    ("clap", &["cli"]),
    ("clap_complete", &["cli"]),
    ("clap_mangen", &["cli"]),
    ("reqwest", &["probe", "cli"]),
    ("procfs", &["state"]),
];

/// Words that say nothing; `StaticPoolManager` is the user story's.
const VAGUE: [&str; 7] = ["Manager", "Helper", "Handler", "Processor", "Wrapper", "Util", "Misc"];

fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut folders = vec![root.join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("target") {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                found.push((path.strip_prefix(root).unwrap().to_owned(), text));
            }
        }
    }
    found.sort();
    assert!(found.len() > 3, "no sources below {folder}");
    found
}

/// The module that a file of `src/` belongs to.
fn module(path: &Path) -> String {
    let inside = path.strip_prefix("src").unwrap();
    let first = inside.components().next().unwrap().as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

/// The text without its unit tests and comments.
fn code(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

#[test]
fn imports_follow_the_table() {
    let table: BTreeMap<&str, &[&str]> = MAY_USE.into_iter().collect();
    let mut broken = Vec::new();
    for (path, text) in sources("src") {
        let module = module(&path);
        let Some(may_use) = table.get(module.as_str()) else {
            broken.push(format!("{}: `{module}` is not in the table", path.display()));
            continue;
        };
        let text = code(&text);
        assert!(!text.contains("use crate::{"), "{}: a grouped import", path.display());
        for part in text.split("crate::").skip(1) {
            let used: String =
                part.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
            if used != module
                && !may_use.contains(&used.as_str())
                && table.contains_key(used.as_str())
            {
                broken.push(format!("{}: `{module}` may not use `{used}`", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn foreign_crates_have_one_home() {
    let mut broken = Vec::new();
    for (path, text) in sources("src") {
        let text = code(&text);
        for (name, homes) in HOMES {
            let named = text.contains(&format!("{name}::"));
            if named && !homes.contains(&module(&path).as_str()) {
                broken.push(format!("{}: {name} lives in {homes:?}", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn plan_is_pure() {
    for (path, text) in sources("src/plan") {
        if path.ends_with("tests.rs") {
            continue;
        }
        let text = code(&text);
        for word in
            ["async ", ".await", "std::fs", "std::env", "Clock", "Store", "println", "Result<Plan"]
        {
            assert!(!text.contains(word), "{}: `{word}` in the planner", path.display());
        }
    }
}

#[test]
fn files_have_headers_and_a_size_that_one_can_know() {
    for folder in ["src", "providers", "tests/it"] {
        for (path, text) in sources(folder) {
            assert!(text.starts_with("//!"), "{}: no header", path.display());
            let lines = text.lines().count();
            // Tables of tests may be longer than rooms that one lives in.
            let most = if path.ends_with("plan/tests.rs") { 750 } else { 500 };
            assert!(lines <= most, "{}: {lines} lines", path.display());
        }
    }
}

#[test]
fn names_say_something() {
    for folder in ["src", "providers"] {
        for (path, text) in sources(folder) {
            for line in code(&text).lines() {
                let declared =
                    ["struct ", "enum ", "trait "].iter().any(|kind| line.contains(kind));
                let vague = VAGUE.iter().any(|word| line.contains(word));
                let seed = line.contains("StaticPoolManager");
                assert!(!declared || !vague || seed, "{}: {line}", path.display());
            }
        }
    }
}

#[test]
fn nothing_is_left_undone() {
    for folder in ["src", "providers"] {
        for (path, text) in sources(folder) {
            for word in ["todo!(", "unimplemented!(", "FIXME", "XXX", "#[allow(", "#[ignore"] {
                assert!(!text.contains(word), "{}: {word}", path.display());
            }
        }
    }
}
