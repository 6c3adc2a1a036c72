//! Completions in real shells, with names from a real state.

use crate::pipelines::has;
use crate::sandbox::Sandbox;

const POOL: &str = "worker_type: container\nprovider: sim\nworker_config: {image: a, cpu_cores: 1, memory_mb: 64}\n";

/// Two pools of simulated workers that are there.
fn applied() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("pools/ci.yaml", &format!("pool_id: ci\nfixed_size: 2\n{POOL}"));
    sandbox.write("pools/web.yaml", &format!("pool_id: web\nfixed_size: 12\n{POOL}"));
    sandbox.pool(&["apply", "pools", "--auto-approve"]).exits(0);
    sandbox
}

/// Completes the last word of a line, as bash does for a person.
fn bash(sandbox: &Sandbox, line: &[&str]) -> Vec<String> {
    let words: Vec<String> = line.iter().map(|word| format!("'{word}'")).collect();
    let last = words.last().unwrap();
    let before = &words[words.len() - 2];
    sandbox.write(
        "complete.bash",
        &format!(
            "source <(pool completions bash)\n\
             how=$(complete -p pool) && how=${{how#*-F }} && how=${{how%% *}}\n\
             COMP_WORDS=({}) COMP_CWORD={} COMP_TYPE=9\n\
             \"$how\" pool {last} {before}\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"\n",
            words.join(" "),
            words.len() - 1,
        ),
    );
    let ran = sandbox.shell("bash --norc complete.bash").exits(0);
    assert_eq!(ran.stderr, "");
    ran.stdout.lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_pools_slots_workers_and_leases_of_the_state() {
    let sandbox = applied();
    assert_eq!(bash(&sandbox, &["pool", "status", "c"]), ["ci"]);
    assert_eq!(bash(&sandbox, &["pool", "lease", "run", "--pool", "w"]), ["web"]);
    assert_eq!(bash(&sandbox, &["pool", "plan", "--target", "c"]), ["ci", "ci[0]", "ci[1]"]);
    assert_eq!(
        bash(&sandbox, &["pool", "apply", "--replace", "web[1"]),
        ["web[1]", "web[10]", "web[11]"]
    );
    assert_eq!(bash(&sandbox, &["pool", "worker", "drain", "ci"]), ["ci-0-1", "ci-1-1"]);
    assert_eq!(bash(&sandbox, &["pool", "state", "show", "ci-1"]), ["ci-1-1"]);
    assert_eq!(bash(&sandbox, &["pool", "provider", "describe", "s"]), ["sim"]);
    assert_eq!(bash(&sandbox, &["pool", "app"]), ["apply"]);
    assert_eq!(bash(&sandbox, &["pool", "plan", "--format", "m"]), ["markdown"]);
    assert_eq!(bash(&sandbox, &["pool", "validate", "--format", "s"]), ["sarif"]);
    assert!(bash(&sandbox, &["pool", "plan", "--out"]).contains(&"--out".to_owned()));
    // Files are completed as ever, and a file does not take a slot's place.
    assert_eq!(bash(&sandbox, &["pool", "plan", "pools/c"]), ["pools/ci.yaml"]);
    sandbox.write("ci0", "");
    assert_eq!(bash(&sandbox, &["pool", "plan", "--target", "ci["]), ["ci[0]", "ci[1]"]);
    let server = crate::serve::Server::start(&sandbox, &[]);
    let lease = server.acquire("ci")["id"].as_str().unwrap().to_owned();
    assert_eq!(bash(&sandbox, &["pool", "lease", "renew", ""])[0], lease);
}

#[test]
fn completions_look_where_the_line_says_that_the_state_is() {
    let sandbox = applied();
    sandbox.write("else/where", "");
    let from_else = |line: &[&str]| {
        let words = line.join(" ");
        let ran = sandbox.shell(&format!("cd else && POOL_COMPLETE=fish pool -- {words}")).exits(0);
        assert_eq!(ran.stderr, "");
        ran.stdout
            .lines()
            .filter(|line| !line.starts_with('-'))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert!(from_else(&["pool", "status", "''"]).is_empty());
    let found = ["ci\t2 of 2 ready", "web\t12 of 12 ready"];
    for place in ["-C ..", "--chdir=..", "--state ../.pool/state.db", "-state=../.pool/state.db"] {
        assert_eq!(from_else(&["pool", place, "status", "''"]), found, "{place}");
    }
    // A job's own words are a job's own.
    assert!(
        from_else(&["pool", "lease", "run", "--pool", "''", "--", "make", "-C", ".."]).is_empty()
    );
    // What cannot be read has no names, and says nothing: somebody is typing.
    sandbox.write("else/bad.db", "not a state");
    assert!(from_else(&["pool", "--state", "bad.db", "status", "''"]).is_empty());
    assert!(!sandbox.path().join("else/.pool").exists(), "completing made a state");
}

#[test]
fn fish_completes_with_what_the_names_mean() {
    if !has(&["fish"]) {
        return;
    }
    let sandbox = applied();
    let ran = sandbox
        .shell("HOME=$PWD fish -c 'pool completions fish | source; complete -C \"pool state show ci\"'")
        .exits(0);
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert_eq!(lines, ["ci[0]\tci-0-1", "ci[1]\tci-1-1", "ci-0-1\tready", "ci-1-1\tready"]);
}

#[test]
fn zsh_completes_a_worker_at_the_press_of_a_key() {
    if !has(&["zsh"]) {
        return;
    }
    let sandbox = applied();
    let script = [
        ("one> ", "unsetopt zle_bracketed_paste; autoload -U compinit && compinit -u -D\\n"),
        ("one> ", "source <(pool completions zsh); PS1='two> '\\n"),
        ("two> ", "pool state show ci-1\\t"),
        ("ci-1-1", "| head -1; pool plan pools --target ci\\\\[1\\t"),
        ("[1\\\\]", "; exit\\n"),
    ];
    let bin = std::path::Path::new(env!("CARGO_BIN_EXE_pool")).parent().unwrap();
    let path = format!("PATH={}:/usr/bin:/bin PS1='one> ' exec zsh -f -i", bin.display());
    let (screen, bytes, code) =
        crate::terminals::on_terminal(&sandbox, (60, 120), &script, &["sh", "-c", &path]);
    assert_eq!(code, Some(0), "{screen}\n{}", String::from_utf8_lossy(&bytes));
    assert!(screen.contains("name: ci-1-1"), "{screen}");
    assert!(screen.contains("No changes."), "{screen}");
}
