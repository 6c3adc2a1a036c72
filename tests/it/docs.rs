//! The command blocks of the documentation do what it says, page by page, in an empty folder.
//!
//! | block                  | what becomes of it                                                                |
//! |------------------------|-----------------------------------------------------------------------------------|
//! | `console`              | each `$ ` line is run by one shell of the page; what follows is what it prints       |
//! | `sh`                   | run as it is, and has to succeed                                                   |
//! | `yaml file=NAME` etc.  | written into that file                                                             |
//! | `yaml`, `json`, `text`, `ini` | shown, not run                                                                |
//!
//! In what is printed, a line `...` stands for any lines, and times, ids and ports for any others. `examples`, `deploy` and
//! `schema` of the checkout are in the folder. `<!-- needs: docker jq -->` names what a page cannot be run without. A server
//! listens where `POOL_LISTEN` says; pages write `localhost:7070`. With `UPDATE_DOCS=1` what is printed is written anew.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::ec2::Region;
use crate::engines::not_run;
use crate::pipelines::has;
use crate::sandbox::{Sandbox, asked_for};
use crate::transcripts::neutral;

/// How long a page may take.
const PATIENCE: &str = "120";

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs")
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    /// A command, and the lines that it should print; `None` where nobody looks.
    Run {
        command: String,
        expected: Option<Vec<String>>,
    },
    Write {
        file: String,
        text: String,
    },
}

/// The pieces of a page in order, and for each console block the place of its lines.
fn pieces(text: &str) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(tag) = line.strip_prefix("```") else { continue };
        let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        match tag.split_once(" file=") {
            Some((_, file)) => {
                pieces.push(Piece::Write { file: file.to_owned(), text: block.join("\n") + "\n" });
            }
            None => match tag {
                "console" => pieces.extend(console(&block)),
                "sh" => pieces.push(Piece::Run { command: block.join("\n"), expected: None }),
                "yaml" | "json" | "text" | "ini" | "rust" => {}
                other => panic!("a block of `{other}`: is it to be run?"),
            },
        }
    }
    pieces
}

fn console(block: &[&str]) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    for line in block {
        match (line.strip_prefix("$ "), pieces.last_mut()) {
            (Some(command), _) => {
                pieces.push(Piece::Run { command: command.to_owned(), expected: Some(Vec::new()) });
            }
            // A command goes on where its line says so.
            (None, Some(Piece::Run { command, expected: Some(expected) }))
                if command.ends_with('\\') && expected.is_empty() =>
            {
                command.push_str(&format!("\n{line}"));
            }
            (None, Some(Piece::Run { expected: Some(expected), .. })) => {
                expected.push((*line).to_owned());
            }
            (None, _) => panic!("output without a command: {line}"),
        }
    }
    pieces
}

/// Whether lines are the expected ones, where `...` stands for any.
fn alike(expected: &[String], found: &[String]) -> bool {
    match expected.split_first() {
        None => found.is_empty(),
        Some((first, rest)) if first == "..." => {
            (0..=found.len()).any(|skipped| alike(rest, &found[skipped..]))
        }
        Some((first, rest)) => found.first() == Some(first) && alike(rest, &found[1..]),
    }
}

fn lines_of(text: &str, place: &str) -> Vec<String> {
    let text = neutral(&text.replace(place, "/home/you/work"));
    let words = |line: &str| line.split_whitespace().map(steady).collect::<Vec<_>>().join(" ");
    text.trim_end().lines().map(words).collect()
}

/// Replaces ages, pids, hosts and the ends of names at providers, which differ from run to run.
fn steady(word: &str) -> String {
    let bare = word.trim_matches(|c: char| "\"',()".contains(c));
    let digits = bare.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let is_age = digits.len() < bare.len() && ["ms", "s", "m"].contains(&digits);
    let is_pid = bare.len() > 2 && bare != word && bare.chars().all(|c| c.is_ascii_digit());
    let end = bare.rsplit_once('-').map_or("", |(_, end)| end);
    let hex = end.split_once('.').map_or("", |(hex, _)| hex);
    if is_age || is_pid {
        word.replace(bare, "N")
    } else if hex.len() == 6 && hex.chars().all(|c| c.is_ascii_hexdigit()) {
        word.replace(end, "STATE.1")
    } else {
        word.to_owned()
    }
}

/// Runs a page; returns what each of its commands printed and its exit code.
fn run(sandbox: &Sandbox, pieces: &[Piece]) -> Vec<(String, i32)> {
    for link in ["examples", "deploy", "schema"] {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join(link);
        std::os::unix::fs::symlink(from, sandbox.path().join(link)).unwrap();
    }
    let out = tempfile::tempdir().unwrap();
    let mut script = String::from("trap 'kill $(jobs -p) 2>/dev/null' EXIT\nlast=0\n");
    for (number, piece) in pieces.iter().enumerate() {
        let file = out.path().join(number.to_string());
        let file = file.display();
        match piece {
            Piece::Run { command, .. } => script.push_str(&format!(
                "{{ (exit $last)\n{}\n}} >{file} 2>&1 </dev/null; last=$?; echo $last >{file}.code\n",
                command.replace("localhost:7070", "$POOL_LISTEN")
            )),
            Piece::Write { file: name, text } => {
                let source = out.path().join(format!("{number}.text"));
                std::fs::write(&source, text).unwrap();
                script.push_str(&format!(
                    "mkdir -p \"$(dirname '{name}')\"; cp {} '{name}'\n",
                    source.display()
                ));
            }
        }
    }
    let bin = Path::new(env!("CARGO_BIN_EXE_pool")).parent().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let _told_by_the_codes = Command::new("timeout")
        .args(["--foreground", PATIENCE, "bash", "--norc", "-c", &script])
        .current_dir(sandbox.path())
        .env_clear()
        .envs(sandbox.variables())
        .env("PATH", format!("{}:{}", bin.display(), sandbox.variables()["PATH"]))
        .env("HOME", sandbox.path())
        .env("POOL_LISTEN", port.to_string())
        .env("POOL_SERVER", format!("http://{port}"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .unwrap();
    let read = |number: usize| {
        let file = out.path().join(number.to_string());
        // What was cut off has none, and what comes after that has not even begun.
        let code = std::fs::read_to_string(file.with_extension("code")).unwrap_or("-1".to_owned());
        let printed =
            String::from_utf8_lossy(&std::fs::read(file).unwrap_or_default()).into_owned();
        (printed.replace(&port.to_string(), "localhost:7070"), code.trim().parse().unwrap())
    };
    let runs = pieces.iter().enumerate().filter(|(_, piece)| matches!(piece, Piece::Run { .. }));
    runs.map(|(number, _)| read(number)).collect()
}

/// What stands beside a page while it is followed.
type Beside = Option<Region>;

/// Returns what a page needs, unless it is not there; sets what is said of it.
fn prepared(sandbox: &mut Sandbox, page: &str) -> Option<Beside> {
    let mut beside = None;
    let needs =
        page.lines().find_map(|line| line.strip_prefix("<!-- needs: ")?.strip_suffix(" -->"));
    for need in needs.unwrap_or_default().split(' ').filter(|need| !need.is_empty()) {
        if need == "ec2" {
            let region = Region::new()?;
            for (name, value) in region.variables("eu-central-1") {
                sandbox.set(name, &value);
            }
            beside = Some(region);
            continue;
        }
        if need != "docker" {
            if !has(&[need]) {
                return None;
            }
            continue;
        }
        let Some(host) = asked_for("POOL_TEST_DOCKER") else {
            assert!(asked_for("POOL_TEST_ENGINES").is_none(), "POOL_TEST_DOCKER is not set");
            not_run("an engine; POOL_TEST_DOCKER is not set");
            return None;
        };
        sandbox.set("DOCKER_HOST", &host);
        // What pages take from a registry is made from what is here.
        let tagged = sandbox
            .shell("docker tag pool-test:1 busybox:1.36 && docker tag pool-test:2 busybox:1.37");
        assert_eq!(tagged.code, Some(0), "{}", tagged.stderr);
    }
    Some(beside)
}

#[track_caller]
fn follow(name: &str) {
    let path = docs().join(name);
    let text = std::fs::read_to_string(&path).unwrap();
    let mut sandbox = Sandbox::new();
    sandbox.set("LANG", "C.UTF-8");
    sandbox.set("USER", "you");
    let Some(_beside) = prepared(&mut sandbox, &text) else { return };
    let pieces = pieces(&text);
    let place = sandbox.path().display().to_string();
    let ran = run(&sandbox, &pieces);
    let mut told = text.clone();
    let mut wrong = Vec::new();
    let runs = pieces.iter().filter_map(|piece| match piece {
        Piece::Run { command, expected } => Some((command, expected)),
        Piece::Write { .. } => None,
    });
    for ((command, expected), (printed, code)) in runs.zip(&ran) {
        let Some(expected) = expected else {
            if *code != 0 {
                wrong.push(format!("$ {command}\n[exit {code}]\n{printed}"));
            }
            continue;
        };
        let found = lines_of(printed, &place);
        let neutral = lines_of(&expected.join("\n"), "/home/you/work");
        if *code == -1 || !alike(&neutral, &found) {
            wrong.push(format!(
                "$ {command}\n{printed}[exit {code}], where the page has\n{}",
                expected.join("\n")
            ));
            let printed = printed.replace(&place, "/home/you/work");
            let old = [&[format!("$ {command}")][..], expected].concat().join("\n");
            told = told.replacen(&old, format!("$ {command}\n{printed}").trim_end(), 1);
        }
    }
    if asked_for("UPDATE_DOCS").is_some() {
        std::fs::write(&path, told).unwrap();
    } else {
        assert!(wrong.is_empty(), "{name}:\n{}", wrong.join("\n\n"));
    }
}

/// Has a page followed by a test of its own.
macro_rules! followed {
    ($($test:ident: $page:literal,)*) => {
        $(#[test]
        fn $test() {
            follow($page);
        })*
        const FOLLOWED: &[&str] = &[$($page),*];
    };
}

followed! {
    the_tutorial: "tutorial.md",
    how_to_processes: "how-to/processes.md",
    how_to_containers: "how-to/containers.md",
    how_to_instances: "how-to/instances.md",
    how_to_an_executable: "how-to/your-own-provider.md",
    how_to_simulate: "how-to/simulate.md",
    how_to_roll_out: "how-to/roll-out.md",
    how_to_jobs: "how-to/jobs.md",
    how_to_editors: "how-to/editors.md",
    how_to_terminals: "how-to/terminals.md",
    how_to_github_actions: "how-to/github-actions.md",
    how_to_gitlab_ci: "how-to/gitlab-ci.md",
    how_to_pre_commit: "how-to/pre-commit.md",
    how_to_drift: "how-to/drift.md",
    how_to_run_the_server: "how-to/run-the-server.md",
    how_crash_safety_works: "explanation/crash-safety.md",
    how_leases_work: "explanation/leases.md",
    how_it_compares: "explanation/comparison.md",
}

#[test]
fn every_page_with_commands_is_followed() {
    let mut folders = vec![docs()];
    let mut pages = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.strip_prefix(docs()).unwrap().to_str().unwrap().to_owned();
            let text = std::fs::read_to_string(&path).unwrap();
            let has_commands = ["```console", "```sh", "```bash", "```shell", "```\n$ "]
                .iter()
                .any(|tag| text.contains(tag));
            // The policies are followed below: some of their blocks are meant to fail.
            let is_followed = FOLLOWED.contains(&name.as_str()) || name == "policies.md";
            assert!(is_followed || !has_commands, "nobody follows {name}");
            // Links within the documentation lead somewhere.
            for link in text.split("](").skip(1).filter_map(|after| after.split([')', '#']).next())
            {
                let leads = link.is_empty()
                    || link.contains("://")
                    || path.parent().unwrap().join(link).exists();
                assert!(leads, "{name}: {link} leads nowhere");
            }
            pages += 1;
        }
    }
    assert!(pages > FOLLOWED.len(), "{pages}");
}

/// The blocks of shell commands in a page.
fn blocks(page: &str) -> Vec<String> {
    let text = std::fs::read_to_string(docs().join(page)).unwrap();
    let after = text.split("```sh\n").skip(1);
    after.map(|after| after.split("```").next().unwrap().to_owned()).collect()
}

fn pool(id: &str, size: u32, image: &str, more: &str) -> String {
    format!(
        "pool_id: {id}\nworker_type: container\nprovider: sim\nfixed_size: {size}\nworker_config: {{image: \
         registry.example.com/{image}, cpu_cores: 1, memory_mb: 1{more}}}\n"
    )
}

#[test]
fn the_policies_on_plans_tell_good_ones_from_bad_ones() {
    if !has(&["jq"]) {
        return;
    }
    let sandbox = Sandbox::new();
    sandbox.write("pools/ci.yaml", &pool("ci", 12, "ci:1", ""));
    sandbox.write("pools/old.yaml", &pool("old", 1, "old:1", ""));
    sandbox.pool(&["apply", "pools", "--auto-approve"]).exits(0);
    let mut blocks = blocks("policies.md");
    let plan = blocks.remove(0);
    assert_eq!(blocks.len(), 5);
    let verdicts = || -> Vec<Option<i32>> {
        let planned = sandbox.shell(&plan);
        assert_eq!(planned.code, Some(0), "{}", planned.stderr);
        blocks.iter().map(|policy| sandbox.shell(policy).code).collect()
    };
    sandbox.write("pools/ci.yaml", &pool("ci", 11, "ci:1", ""));
    assert_eq!(verdicts(), [Some(0); 5]);
    // Everything that is forbidden at once.
    let bad = pool("ci", 50, "ci:2", ", docker_enabled: true").replace("registry.", "elsewhere.");
    sandbox.write("pools/ci.yaml", &bad);
    std::fs::remove_file(sandbox.path().join("pools/old.yaml")).unwrap();
    assert_eq!(verdicts(), [Some(1); 5]);
}
