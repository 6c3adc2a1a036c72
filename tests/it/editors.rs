//! What editors show of pool files, from the real language servers of VS Code, Neovim and Helix, and what other
//! validators say of the schema.
//!
//! `tests/editors` pins them (`npm ci` there, and its `requirements.txt` in a virtual environment at `target/checkers`); without
//! them these tests say that they were not run.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::language_server::{Language, LanguageServer};
use crate::sandbox::{Sandbox, asked_for};

/// The line by which a YAML file names its schema.
const MODELINE: &str = "# yaml-language-server: $schema=./pool.schema.json\n";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns a path below the repository, or says that the test was not run.
pub(crate) fn installed(path: &str, how: &str) -> Option<PathBuf> {
    let path = root().join(path);
    if path.exists() {
        return Some(path);
    }
    assert!(asked_for("POOL_TEST_EDITORS").is_none(), "{} is not there", path.display());
    let told = format!("NOT RUN: {} is not there; {how}\n", path.display());
    std::io::stderr().write_all(told.as_bytes()).unwrap();
    None
}

pub(crate) fn modules() -> Option<PathBuf> {
    installed("tests/editors/node_modules", "npm ci --prefix tests/editors installs it")
}

pub(crate) fn checker() -> Option<PathBuf> {
    let how = "pip install -r tests/editors/requirements.txt in a virtual environment there";
    installed("target/checkers/bin/check-jsonschema", how)
}

/// A folder with the schema in it, and a server that looks at its files.
struct Desk {
    folder: tempfile::TempDir,
    server: LanguageServer,
    language: Language,
    files: usize,
}

impl Desk {
    fn new(language: Language) -> Option<Self> {
        let modules = modules()?;
        let folder = tempfile::tempdir().unwrap();
        let schema = pool::config::schema::schema().to_string();
        std::fs::write(folder.path().join("pool.schema.json"), schema).unwrap();
        let server = LanguageServer::start(language, &modules, folder.path(), json!({}));
        Some(Self { folder, server, language, files: 0 })
    }

    /// Returns the name of a new file, and its text with a word on its schema.
    fn file(&mut self, text: &str) -> (PathBuf, String) {
        self.files += 1;
        let (ending, text) = match self.language {
            Language::Yaml => ("yaml", format!("{MODELINE}{text}")),
            Language::Json => {
                let more = if text.starts_with("{}") { "" } else { "," };
                let head = format!("{{\"$schema\": \"./pool.schema.json\"{more}");
                ("json", text.replacen('{', &head, 1))
            }
        };
        (self.folder.path().join(format!("file-{}.{ending}", self.files)), text)
    }

    /// Returns what is wrong with a text: the words that are marked, and why.
    fn mistakes(&mut self, text: &str) -> Vec<(String, String)> {
        let (path, text) = self.file(text);
        let lines: Vec<Vec<char>> = text.lines().map(|line| line.chars().collect()).collect();
        let found = self.server.diagnose(&path, &text);
        let place = |at: &Value| {
            let number = |key: &str| usize::try_from(at[key].as_u64().unwrap()).unwrap();
            (number("line"), number("character"))
        };
        let marked = |range: &Value| {
            let ((line, begin), (last, end)) = (place(&range["start"]), place(&range["end"]));
            let end = if last == line { end } else { lines[line].len() };
            lines[line][begin..end].iter().collect::<String>()
        };
        let told = |one: &Value| one["message"].as_str().unwrap().to_owned();
        found.iter().map(|one| (marked(&one["range"]), told(one))).collect()
    }

    fn complete(&mut self, text: &str) -> Vec<Value> {
        let (path, text) = self.file(text);
        self.server.complete(&path, &text)
    }

    fn hover(&mut self, text: &str) -> String {
        let (path, text) = self.file(text);
        self.server.hover(&path, &text)
    }
}

/// A pool, in YAML and JSON at once.
fn pool(more: &str) -> String {
    let worker = r#""worker_config": {"image": "a", "cpu_cores": 1, "memory_mb": 1}"#;
    format!("{{\"pool_id\": \"ci\", \"fixed_size\": 1, {worker}{more}}}")
}

/// What is wrong in a text: the words that are to be marked, and what the YAML and the JSON server say.
type Mistake = (String, &'static str, &'static str, &'static str);

fn mistakes() -> Vec<Mistake> {
    let typed = |more: &str| pool(&format!(", \"worker_type\": \"process\"{more}"));
    let provider = |settings: &str| format!("{{\"providers\": {{\"engine\": {{{settings}}}}}}}");
    let pools = |more: &str| format!("{{\"pools\": [{}]}}", typed(more));
    vec![
        (
            typed(", \"fixd_size\": 1"),
            "fixd_size",
            "fixd_size is not allowed",
            "fixd_size is not allowed",
        ),
        (
            pools(", \"fixd_size\": 1"),
            "fixd_size",
            "fixd_size is not allowed",
            "fixd_size is not allowed",
        ),
        (typed(", \"protect\": \"yes\""), "yes", "Expected \"boolean\"", "Expected \"boolean\""),
        (
            typed(", \"health_check\": {\"port_step\": 99999999}"),
            "99999999",
            "above the maximum",
            "above the maximum",
        ),
        (
            pool(", \"worker_type\": \"proces\""),
            "proces",
            "Valid values: \"process\"",
            "Valid values: \"process\"",
        ),
        ("{\"pools\": 5}".to_owned(), "5", "Expected \"array\"", "Expected \"array\""),
        (pool(""), "", "Missing property \"worker_type\"", "Missing property \"worker_type\""),
        (
            typed(", \"update\": {\"drain_timeout\": 5}"),
            "5",
            "Expected \"string\"",
            "Expected \"string\"",
        ),
        (
            typed(", \"update\": {\"drain_timeout\": \"5\"}"),
            "5",
            "an example that is right: \"1h\"",
            "an example that is right: \"1h\"",
        ),
        (
            provider("\"type\": \"dockr\""),
            "dockr",
            "Valid values: \"local\"",
            "Valid values: \"local\"",
        ),
        (
            provider("\"type\": \"docker\", \"command\": []"),
            "command",
            "command is not allowed",
            "command is not allowed",
        ),
        (
            provider("\"type\": \"exec\", \"command\": [\"a\"], \"host\": \"x\""),
            "host",
            "host is not allowed",
            "host is not allowed",
        ),
        (
            provider("\"type\": \"exec\""),
            "",
            "Missing property \"command\"",
            "Missing property \"command\"",
        ),
        (
            provider("\"type\": \"sim\", \"rate_limit\": {\"calls\": 0}"),
            "0",
            "below the minimum",
            "below the minimum",
        ),
    ]
}

#[test]
fn mistakes_are_marked_where_they_are() {
    for language in [Language::Yaml, Language::Json] {
        let Some(mut desk) = Desk::new(language) else { return };
        for (text, word, yaml, json) in mistakes() {
            let message = if language == Language::Yaml { yaml } else { json };
            let found = desk.mistakes(&text);
            let is_it = |(marked, told): &(String, String)| {
                told.contains(message) && marked.trim_matches('"').contains(word)
            };
            assert!(found.iter().any(is_it), "{language:?}: {text}: {word} {message}: {found:?}");
            assert_eq!(found.len(), 1, "{language:?}: {text}: one mistake is told once: {found:?}");
            assert!(!word.is_empty() || found[0].0.len() < 2 * text.len(), "{found:?}");
        }
    }
}

#[test]
fn the_examples_are_clean() {
    let files = std::fs::read_dir(root().join("examples")).unwrap().flatten();
    let mut seen = 0;
    let mut desks = [Desk::new(Language::Yaml), Desk::new(Language::Json)];
    for file in files.map(|entry| entry.path()) {
        let desk = match file.extension().and_then(|ending| ending.to_str()) {
            Some("yaml") => &mut desks[0],
            Some("json") => &mut desks[1],
            _ => continue,
        };
        let Some(desk) = desk else { return };
        let text = std::fs::read_to_string(&file).unwrap();
        // A file of JSON that names its schema has it elsewhere.
        let text = text.replace("\"$schema\": \"../schema/pool.schema.json\",", "");
        let found = desk.mistakes(&text);
        assert!(found.is_empty(), "{}: {found:?}", file.display());
        seen += 1;
    }
    assert!(seen > 8, "{seen}");
}

#[test]
fn what_can_be_written_is_offered() {
    let Some(mut desk) = Desk::new(Language::Yaml) else { return };
    let worker = "pool_id: ci\nworker_type: process\nfixed_size: 1\nworker_config:\n  ";
    let of_type = |kind: &str| format!("providers:\n  a:\n    type: {kind}\n    ▮");
    for (text, there, absent) in [
        (
            "▮".to_owned(),
            &["pool_id", "pools", "providers", "pools: a file of several", "pool: containers"][..],
            &[][..],
        ),
        (
            "pool_id: ci\n▮".to_owned(),
            &["worker_type", "fixed_size", "remediation"],
            &["pool_id", "version"],
        ),
        (
            "pools:\n  - ▮".to_owned(),
            &["pool_id", "pool of processes", "pool of an executable"],
            &["pools", "version"],
        ),
        ("pools: []\n▮".to_owned(), &["version", "providers"], &["pool_id", "fixed_size"]),
        ("pool_id: ci\nworker_type: ▮".to_owned(), &["process", "container", "vm", "host"], &[]),
        (format!("{worker}▮"), &["image", "cpu_cores", "docker", "attributes"], &["pool_id"]),
        (
            "providers:\n  ▮".to_owned(),
            &["provider: docker", "provider: exec", "provider: local"],
            &[],
        ),
        ("providers:\n  a:\n    type: ▮\n".to_owned(), &["local", "docker", "exec", "sim"], &[]),
        (of_type("docker"), &["host", "pull", "network", "rate_limit"], &["command", "type"]),
        (
            of_type("exec"),
            &["command", "secrets", "config", "pass_environment"],
            &["host", "place", "pull"],
        ),
    ] {
        let offered = desk.complete(&text);
        let labels: Vec<&str> = offered.iter().filter_map(|item| item["label"].as_str()).collect();
        for label in there {
            assert!(labels.contains(label), "{text}: {label} is not offered: {labels:?}");
        }
        for label in absent {
            assert!(!labels.contains(label), "{text}: {label} is offered");
        }
    }
    let Some(mut desk) = Desk::new(Language::Json) else { return };
    let offered = desk.complete("{\"providers\": {\"a\": {\"type\": \"docker\", ▮}}}");
    let labels: Vec<&str> = offered.iter().filter_map(|item| item["label"].as_str()).collect();
    assert!(labels.contains(&"host") && !labels.contains(&"command"), "{labels:?}");
}

#[test]
fn what_a_key_means_is_shown() {
    let Some(mut yaml) = Desk::new(Language::Yaml) else { return };
    let Some(mut json) = Desk::new(Language::Json) else { return };
    for (text, words) in [
        ("{\"fixed▮_size\": 1}", &["How many workers the pool keeps"][..]),
        ("{\"worker▮_type\": \"vm\"}", &["What kind of thing a worker is", "A virtual machine"]),
        ("{\"update\": {\"drain▮_timeout\": \"1h\"}}", &["How long a run waits for jobs"]),
        ("{\"providers\": {\"a\": {\"ty▮pe\": \"docker\"}}}", &["What kind of provider it is"]),
        ("{\"providers\": {\"a\": {\"type\": \"docker\", \"pu▮ll\": \"never\"}}}", &["image"]),
    ] {
        for (name, told) in [("yaml", yaml.hover(text)), ("json", json.hover(text))] {
            // The JSON server shows the meaning of values at the value.
            for word in words.iter().take(if name == "yaml" { 2 } else { 1 }) {
                assert!(told.contains(word), "{name}: {text}: {word}: {told:?}");
            }
        }
    }
}

/// Writes a snippet as an editor does when nobody types anything: with what stands at its stops at first.
fn written(snippet: &str) -> String {
    let mut text = String::new();
    let mut rest = snippet;
    while let Some((before, after)) = rest.split_once("${") {
        text.push_str(before);
        let (stop, after) = after.split_once('}').unwrap();
        let first = stop.trim_start_matches(|c: char| c.is_ascii_digit());
        let first = first.trim_start_matches([':', '|']).trim_end_matches('|');
        text.push_str(first.split(',').next().unwrap());
        rest = after;
    }
    text + rest
}

#[test]
fn every_snippet_is_valid_as_it_is_written() {
    let Some(mut desk) = Desk::new(Language::Yaml) else { return };
    let sandbox = Sandbox::new();
    let cloud = "providers: {cloud: {type: exec, command: [./cloud.sh]}}\n";
    let mut tried = 0;
    for (text, indent) in [("▮", 0), ("pools:\n  - ▮", 2), ("providers:\n  ▮", 0)] {
        for item in desk.complete(text) {
            let label = item["label"].as_str().unwrap();
            if !label.starts_with("pool: ") && !label.contains("pool of") && !label.contains(": ") {
                continue;
            }
            let snippet = item["textEdit"]["newText"].as_str().or(item["insertText"].as_str());
            let body = written(snippet.unwrap());
            // Editors indent what follows the first line.
            let pad = if text.starts_with("providers") { 2 } else { indent };
            let body = body.replace('\n', &format!("\n{}", " ".repeat(pad)));
            let whole = text.replace('▮', &body);
            let whole =
                if label.contains("executable") { format!("{cloud}{whole}") } else { whole };
            sandbox.write("snippet.yaml", &whole);
            let checked = sandbox.pool(&["validate", "snippet.yaml"]);
            assert_eq!(checked.code, Some(0), "{label}:\n{whole}\n{}", checked.stderr);
            tried += 1;
        }
    }
    assert_eq!(tried, 12);
}

/// Reads a file of TOML as JSON.
fn toml(text: &str) -> Value {
    let script = "import json, sys, tomllib; json.dump(tomllib.loads(sys.argv[1]), sys.stdout)";
    let ran = Command::new("python3").args(["-c", script, text]).output().unwrap();
    serde_json::from_slice(&ran.stdout).unwrap()
}

#[test]
fn the_settings_that_are_printed_have_editors_know_pool_files() {
    let Some(modules) = modules() else { return };
    let sandbox = Sandbox::new();
    let printed = |editor: &str| sandbox.pool(&["schema", "--editor", editor]).exits(0).stdout;
    let vscode: Value = serde_json::from_str(&printed("vscode")).unwrap();
    let helix = toml(&printed("helix"))["language-server"].clone();
    let of_helix = |server: &str, language: &str| helix[server]["config"][language].clone();
    for (language, settings) in [
        (Language::Yaml, json!({ "schemas": vscode["yaml.schemas"] })),
        (Language::Json, json!({ "schemas": vscode["json.schemas"] })),
        (Language::Yaml, of_helix("yaml-language-server", "yaml")),
        (Language::Json, of_helix("vscode-json-language-server", "json")),
    ] {
        // Globs do not look into folders that begin with a dot.
        let folder = tempfile::Builder::new().prefix("project").tempdir().unwrap();
        let schema = pool::config::schema::schema().to_string();
        std::fs::write(folder.path().join("pool.schema.json"), schema).unwrap();
        let ending = if language == Language::Yaml { "yaml" } else { "json" };
        let mut server = LanguageServer::start(language, &modules, folder.path(), settings.clone());
        let text = pool(", \"worker_type\": \"process\", \"fixd\": 1");
        for (file, is_ours) in [
            (format!("ci.pool.{ending}"), true),
            (format!("pools/team/ci.{ending}"), true),
            (format!("other.{ending}"), false),
        ] {
            let found = server.diagnose(&folder.path().join(&file), &text);
            assert_eq!(!found.is_empty(), is_ours, "{settings}: {file}: {found:?}");
        }
    }
    // Neovim asks the same servers the same.
    let neovim = printed("neovim");
    for glob in vscode["yaml.schemas"]["./pool.schema.json"].as_array().unwrap() {
        assert!(neovim.contains(&glob.to_string()), "{neovim}");
    }
}

/// Texts, and whether the schema takes them.
fn verdicts() -> Vec<(String, bool)> {
    let broken = mistakes().into_iter().map(|(text, ..)| (text, false));
    let fine = pool(", \"worker_type\": \"process\"");
    let several = format!(
        "{{\"version\": 1, \"providers\": {{\"a\": {{\"type\": \"sim\"}}}}, \"pools\": [{fine}]}}"
    );
    broken.chain([(fine, true), (several, true)]).collect()
}

#[test]
fn ajv_in_strict_mode_takes_the_schema_and_says_the_same() {
    let Some(modules) = modules() else { return };
    let input = json!({
        "schema": pool::config::schema::schema(),
        "protocol": pool::config::schema::provider_protocol(),
        "texts": verdicts().iter().map(|(text, _)| text).collect::<Vec<_>>(),
    });
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("input.json"), input.to_string()).unwrap();
    let ran = Command::new("node")
        .arg(root().join("tests/editors/ajv.cjs"))
        .arg(folder.path().join("input.json"))
        .env("NODE_PATH", &modules)
        .output()
        .unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let said: Vec<bool> = serde_json::from_slice(&ran.stdout).unwrap();
    let expected: Vec<bool> = verdicts().iter().map(|(_, is_valid)| *is_valid).collect();
    assert_eq!(said, expected);
}

#[test]
fn check_jsonschema_takes_the_schema_and_says_the_same() {
    let Some(checker) = checker() else { return };
    let folder = tempfile::tempdir().unwrap();
    let schema = folder.path().join("schema.json");
    for made in [pool::config::schema::schema(), pool::config::schema::provider_protocol()] {
        std::fs::write(&schema, made.to_string()).unwrap();
        let ran = Command::new(&checker).arg("--check-metaschema").arg(&schema).output().unwrap();
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stdout));
    }
    std::fs::write(&schema, pool::config::schema::schema().to_string()).unwrap();
    for (text, is_valid) in verdicts() {
        let file = folder.path().join("pool.yaml");
        std::fs::write(&file, &text).unwrap();
        let ran = Command::new(&checker).arg("--schemafile").arg(&schema).arg(&file).output();
        assert_eq!(ran.unwrap().status.success(), is_valid, "{text}");
    }
}
