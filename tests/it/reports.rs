//! What users reported, each as a test that reads like the report.

use super::sandbox::{Sandbox, wait_until};

fn pool(size: u32, command: &str, extra: &str) -> String {
    format!(
        "pool_id: ci\nworker_type: process\nfixed_size: {size}\n\
         worker_config: {{image: /bin/sh, command: [-c, '{command}'], cpu_cores: 1, memory_mb: 64}}\n\
         {extra}"
    )
}

/// Old and new worker of a slot share a port on one host, so the probe of the new one reached the old one.
#[test]
fn a_release_that_does_not_listen_does_not_pass_its_check_by_the_old_workers_port() {
    let sandbox = Sandbox::new();
    let check = "health_check: {type: http, port: 18490, port_step: 1, interval: 1s, timeout: 1s}\n\
                 provisioning: {timeout: 2s, max_attempts: 1}\n";
    let serve = "exec python3 -m http.server --bind 127.0.0.1 $((18490 + POOL_SLOT))";
    sandbox.write("ci.yaml", &pool(2, serve, check));
    sandbox.write("ci.yaml", &pool(2, serve, check).replace("timeout: 2s", "timeout: 20s"));
    sandbox.pool(&["apply", "ci.yaml", "--auto-approve"]).exits(0);
    sandbox.write("ci.yaml", &pool(2, "exec sleep 600", check));
    let plan = sandbox.pool(&["plan", "ci.yaml"]).exits(0);
    assert!(plan.stdout.contains("old before new, in 2 batches"), "{}", plan.stdout);
    let run = sandbox.pool(&["apply", "ci.yaml", "--auto-approve"]).exits(5);
    assert!(run.stderr.contains("1 failed, 1 not begun"), "{}", run.stderr);
    let second = std::net::TcpStream::connect(("127.0.0.1", 18491));
    assert!(second.is_ok(), "the second worker still serves");
}

/// The claim of a deleted attempt kept every later attempt from starting.
#[test]
fn a_worker_that_gets_well_on_its_second_start_gets_one() {
    let sandbox = Sandbox::new();
    let start = "echo start >> starts; exec sleep 600";
    let twice = "health_check: {type: exec, interval: 1s, timeout: 1s, \
                 command: [/bin/sh, -c, \"test $(wc -l < starts) -ge 2\"]}\n\
                 provisioning: {timeout: 1s, max_attempts: 3}\n";
    sandbox.write("ci.yaml", &pool(1, start, twice));
    let run = sandbox.pool(&["apply", "ci.yaml", "--auto-approve"]).exits(0);
    assert!(run.stderr.contains("attempt 1 failed"), "{}", run.stderr);
    assert_eq!(sandbox.read("starts").lines().count(), 2);
    assert_eq!(sandbox.workers().len(), 1);
}

/// A pool that was only ever applied to by slot was not recorded, and its workers were forgotten.
#[test]
fn a_pool_whose_first_apply_names_a_slot_is_known() {
    let sandbox = Sandbox::new();
    sandbox.write("ci.yaml", &pool(3, "exec sleep 600", "protect: true\n"));
    sandbox.pool(&["apply", "ci.yaml", "-target", "ci[0]", "-auto-approve"]).exits(0);
    let status = sandbox.pool(&["status", "--json"]).exits(0).json();
    assert_eq!(status["pools"][0]["ready"], 1);
    assert_eq!(status["pools"][0]["fixed_size"], 3);
    sandbox.pool(&["status", "--check"]).exits(1);
    sandbox.pool(&["destroy", "--auto-approve"]).exits(6);
    sandbox.write("ci.yaml", &pool(1, "exec sleep 600", ""));
    sandbox.pool(&["apply", "ci.yaml", "-auto-approve"]).exits(0);
    sandbox.pool(&["destroy", "--auto-approve"]).exits(0);
    assert_eq!(sandbox.workers().len(), 0);
}

#[test]
fn a_saved_plan_is_stale_when_a_secret_is_another_one() {
    let mut sandbox = Sandbox::new();
    sandbox.set("CI_TOKEN", "one");
    let secret = pool(1, "exec sleep 600", "")
        .replace("memory_mb: 64", "memory_mb: 64, environment: {TOKEN: {from_env: CI_TOKEN}}");
    sandbox.write("ci.yaml", &secret);
    sandbox.pool(&["apply", "ci.yaml", "--auto-approve"]).exits(0);
    let before = sandbox.workers();
    sandbox.set("CI_TOKEN", "two");
    sandbox.pool(&["plan", "ci.yaml", "--out", "saved"]).exits(0);
    sandbox.set("CI_TOKEN", "three");
    let stale = sandbox.pool(&["apply", "saved"]).exits(3);
    assert!(
        stale.stderr.contains("the secret TOKEN of its environment is another one"),
        "{stale:?}"
    );
    assert_eq!(sandbox.workers(), before, "nothing was touched");
    sandbox.set("CI_TOKEN", "two");
    sandbox.pool(&["apply", "saved"]).exits(0);
    let kept = sandbox.shell("env -u CI_TOKEN pool plan ci.yaml");
    assert!(kept.stdout.contains("CI_TOKEN is not set; a change of it would"), "{}", kept.stdout);
    let mut unset = sandbox;
    unset.write("ci.yaml", &secret.replace("CI_TOKEN", "CI_TOKEN_OF_ANOTHER_NAME"));
    let plan = unset.pool(&["plan", "ci.yaml"]).exits(0);
    let told =
        "the secret TOKEN cannot be read now: the variable CI_TOKEN_OF_ANOTHER_NAME is not set";
    assert!(plan.stdout.contains(&format!("{told}; no worker is created")), "{}", plan.stdout);
    // A new pool's workers cannot be created, and no state is needed to see that.
    let fresh = unset.pool(&["--state", "fresh.db", "plan", "ci.yaml"]).exits(0);
    assert!(fresh.stdout.contains(&format!("{told}; no worker is created")), "{}", fresh.stdout);
    unset.set("CI_TOKEN", "");
}

/// Taking the protection off and using that in one change is the mistake that it is there for.
#[test]
fn guards_hold_in_the_change_that_lifts_them() {
    let sandbox = Sandbox::new();
    let guarded = "protect: true\nguards: {max_destroy: 1}\n";
    sandbox.write("ci.yaml", &pool(4, "exec sleep 600", guarded));
    sandbox.pool(&["apply", "ci.yaml", "--auto-approve"]).exits(0);
    sandbox.write("ci.yaml", &pool(0, "exec sleep 600", ""));
    let refused = sandbox.pool(&["apply", "ci.yaml", "--auto-approve"]).exits(6);
    assert!(refused.stderr.contains("is protected"), "{}", refused.stderr);
    assert!(refused.stderr.contains("guards.max_destroy allows 1"), "{}", refused.stderr);
    sandbox.write("ci.yaml", &pool(4, "exec sleep 600", ""));
    sandbox.pool(&["apply", "ci.yaml", "--auto-approve"]).exits(0);
    sandbox.write("ci.yaml", &pool(0, "exec sleep 600", ""));
    sandbox.pool(&["apply", "ci.yaml", "--auto-approve"]).exits(0);
    assert_eq!(sandbox.workers().len(), 0);
}

#[test]
fn output_that_cannot_be_written_is_an_error_and_a_reader_that_left_is_not() {
    let sandbox = Sandbox::new();
    sandbox.write("ci.yaml", &pool(1, "exec sleep 600", ""));
    for command in ["schema", "config ci.yaml", "plan ci.yaml --json"] {
        let full = sandbox.shell(&format!("pool {command} > /dev/full"));
        assert_eq!(full.code, Some(1), "{command}");
        assert!(full.stderr.contains("error: writing the output: No space left"), "{full:?}");
        let gone = sandbox.shell(&format!("pool {command} | true"));
        assert_eq!((gone.code, gone.stderr.as_str()), (Some(0), ""), "{command}");
    }
}

#[test]
fn errors_of_an_apply_are_event_lines_too() {
    let sandbox = Sandbox::new();
    sandbox.write("ci.yaml", &pool(1, "exec sleep 600", "protekt: true\n"));
    let ran = sandbox.pool(&["apply", "ci.yaml", "--auto-approve", "--json"]).exits(1);
    let event = ran.json();
    assert_eq!(event["type"], "diagnostic");
    assert_eq!(event["diagnostic"]["summary"], "ci.yaml:5:1: unknown key `protekt`");
    assert_eq!(event["diagnostic"]["detail"], "did you mean `protect`?");
}

#[test]
fn habits_of_terraform_and_kubectl_get_an_answer_about_the_word_that_was_meant() {
    let sandbox = Sandbox::new();
    sandbox.write("ci.yaml", &pool(1, "exec sleep 600", ""));
    let told = |arguments: &[&str], message: &str| {
        let ran = sandbox.pool(arguments).exits(1);
        assert!(ran.stderr.contains(message), "{arguments:?}: {}", ran.stderr);
    };
    told(&["plan", "-input=false", "ci.yaml"], "unexpected argument '--input' found");
    told(&["plan", "-refresh-only", "ci.yaml"], "unexpected argument '--refresh-only' found");
    sandbox.pool(&["plan", "-out=saved", "ci.yaml"]).exits(0);
    told(&["plan", "saved"], "saved is a saved plan, where a config is wanted");
    told(&["apply", "saved", "ci.yaml"], "saved is a saved plan, where a config is wanted");
    let cut: String = sandbox.read("saved").chars().take(300).collect();
    sandbox.write("cut", &cut);
    told(&["apply", "cut"], "the plan file cut is damaged");
    told(&["apply", "saved", "-allow-empty"], "a saved plan is carried out as it is");
    told(&["show", "nowhere"], "No such file");
    told(&["plan", "ci.yaml", "-target", "ci[0]", "-replace", "ci[1]"], "would do nothing");
    told(&["destroy", "ci.yaml", "-replace", "ci"], "would do nothing");
    sandbox.pool(&["plan", "-refresh=false", "-detailed-exitcode", "ci.yaml"]).exits(2);
    let mut required = sandbox;
    required.set("POOL_REQUIRE_STATE", "1");
    let ran = required.pool(&["plan", "ci.yaml"]).exits(1);
    assert!(ran.stderr.contains("there is no state"), "{}", ran.stderr);
    required.set("POOL_REQUIRE_STATE", "0");
    required.pool(&["plan", "ci.yaml"]).exits(0);
}

#[test]
fn one_typo_is_one_mistake_and_hides_no_other() {
    let sandbox = Sandbox::new();
    let typo = pool(1, "exec sleep 600", "health_check: {type: http}\nprotekt: true\n")
        .replace("fixed_size", "fixed_sise");
    sandbox.write("ci.yaml", &typo);
    let ran = sandbox.pool(&["validate", "ci.yaml"]).exits(1);
    let found: Vec<&str> = ran.stderr.lines().filter(|line| line.starts_with("error[")).collect();
    assert_eq!(
        found,
        [
            "error[unknown-key]: unknown key `fixed_sise`",
            "error[unknown-key]: unknown key `protekt`",
        ]
    );
    sandbox.write("ci.yaml", &typo.replace("fixed_sise", "fixed_size"));
    let ran = sandbox.pool(&["validate", "ci.yaml"]).exits(1);
    assert!(ran.stderr.contains("needs a `port`"), "{}", ran.stderr);
    assert!(ran.stderr.contains("unknown key `protekt`"), "{}", ran.stderr);
}

#[test]
fn a_killed_destroy_is_finished_by_the_next_one() {
    let sandbox = Sandbox::new();
    // Each worker takes a moment to end, so that the kill comes in the middle.
    let slow = "trap \"sleep 0.2; exit\" TERM; while true; do sleep 0.05; done";
    sandbox.write("ci.yaml", &pool(6, slow, "provisioning: {max_concurrency: 2}\n"));
    sandbox.pool(&["apply", "ci.yaml", "--auto-approve"]).exits(0);
    let mut destroy = sandbox.spawn(&["destroy", "--auto-approve"]);
    let deleting = || {
        let listed = sandbox.pool(&["state", "list"]).stdout;
        listed.contains("\tdeleting")
    };
    wait_until("a deletion has begun", deleting);
    destroy.kill().unwrap();
    destroy.wait().unwrap();
    sandbox.pool(&["destroy", "--auto-approve"]).exits(0);
    assert_eq!(sandbox.workers().len(), 0);
    let status = sandbox.pool(&["status"]).exits(0);
    assert_eq!(status.stdout, "No pools are recorded.\n");
}

/// Only pools of the files and of the state were locked, and a plan for any other was never carried out.
#[test]
fn a_worker_of_a_pool_that_nobody_remembers_is_deleted() {
    let sandbox = Sandbox::new();
    let sim = |id: &str| {
        pool(1, "x", "provider: sim\n").replace("pool_id: ci", &format!("pool_id: {id}"))
    };
    sandbox.write("ci.yaml", &sim("ci"));
    sandbox.pool(&["apply", "ci.yaml", "--auto-approve"]).exits(0);
    let cloud = sandbox.read(".pool/sim/cloud.jsonl");
    let created = cloud.lines().find(|line| line.contains("\"put\"")).unwrap();
    let other = created
        .replace("\"pool\":\"ci\"", "\"pool\":\"forgotten\"")
        .replace("\"provider_id\":\"sim-", "\"provider_id\":\"sim-other-");
    sandbox.write(".pool/sim/cloud.jsonl", &format!("{cloud}{other}\n"));
    let run = sandbox.pool(&["apply", "ci.yaml", "--auto-approve"]).exits(0);
    assert!(run.stdout.contains("worker forgotten-0-1"), "{}", run.stdout);
    assert!(run.stdout.contains("1 destroyed"), "{}", run.stdout);
    sandbox.pool(&["plan", "ci.yaml", "--detailed-exitcode"]).exits(0);
}

/// The delete call was given up before the provider came to SIGKILL.
#[test]
fn a_worker_that_ignores_sigterm_can_be_deleted_whatever_the_provisioning_timeout() {
    let sandbox = Sandbox::new();
    let deaf = "trap \"\" TERM; while true; do sleep 0.1; done";
    sandbox.write("ci.yaml", &pool(1, deaf, "provisioning: {timeout: 2s}\n"));
    sandbox.pool(&["apply", "ci.yaml", "--auto-approve"]).exits(0);
    sandbox.pool(&["destroy", "--auto-approve"]).exits(0);
    assert_eq!(sandbox.workers().len(), 0);
}

#[test]
fn two_pools_that_a_variable_names_alike_are_one_too_many() {
    let mut sandbox = Sandbox::new();
    sandbox.set("NAME", "ci");
    let twice = format!(
        "{}\n---\n{}",
        pool(1, "x", ""),
        pool(2, "x", "").replace("pool_id: ci", "pool_id: ${NAME}")
    );
    sandbox.write("ci.yaml", &twice);
    let ran = sandbox.pool(&["plan", "ci.yaml"]).exits(1);
    assert!(ran.stderr.contains("the pool `ci` is given twice"), "{}", ran.stderr);
}

#[test]
fn a_config_from_a_pipe_is_read_whole() {
    let sandbox = Sandbox::new();
    sandbox.write("ci.yaml", &pool(1, "x", ""));
    let ran = sandbox.shell("mkfifo pipe; cat ci.yaml > pipe & pool validate pipe");
    assert_eq!(ran.stdout, "Valid: ci.\n", "{ran:?}");
    let ran = sandbox.shell("cat ci.yaml | pool plan /dev/stdin");
    assert!(ran.stdout.contains("Plan: 1 to add"), "{ran:?}");
}

#[test]
fn a_watched_status_is_shown_whenever_it_changes() {
    let sandbox = Sandbox::new();
    sandbox.write("ci.yaml", &pool(1, "exec sleep 600", ""));
    sandbox.pool(&["apply", "ci.yaml", "--auto-approve"]).exits(0);
    let watching = |more: &[&str], file: &str| {
        let output = std::fs::File::create(sandbox.path().join(file)).unwrap();
        let arguments = [&["status", "--watch=100ms"], more].concat();
        sandbox.command(&arguments).stdout(output).spawn().unwrap()
    };
    let (mut text, mut json) = (watching(&[], "text"), watching(&["--json", "ci"], "json"));
    wait_until("it is shown", || {
        sandbox.read("text").contains("ci-0-1") && sandbox.read("json").contains("ci-0-1")
    });
    sandbox.write("ci.yaml", &pool(2, "exec sleep 600", ""));
    sandbox.pool(&["apply", "ci.yaml", "--auto-approve"]).exits(0);
    let converged = |line: &str| {
        let told: serde_json::Value = serde_json::from_str(line).unwrap();
        let workers = told["pools"][0]["workers"].as_array().unwrap();
        workers.len() == 2 && workers.iter().all(|worker| worker["phase"] == "ready")
    };
    wait_until("the change is shown", || {
        let json = sandbox.read("json");
        sandbox.read("text").contains("ci-1-1")
            && json.ends_with('\n')
            && json.lines().last().is_some_and(converged)
    });
    let shown = sandbox.read("text").len();
    crate::sandbox::pause(std::time::Duration::from_millis(500));
    assert_eq!(sandbox.read("text").len(), shown, "nothing changed, and nothing is shown");
    for watcher in [&mut text, &mut json] {
        let pid = watcher.id().to_string();
        assert!(
            std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success()
        );
        assert_eq!(watcher.wait().unwrap().code(), Some(130));
    }
    assert!(!sandbox.read("text").contains('\x1b'), "it is no terminal");
    sandbox.pool(&["destroy", "--auto-approve"]).exits(0);
}

#[test]
fn every_command_has_a_manual_page() {
    let sandbox = Sandbox::new();
    let page = sandbox.pool(&["man"]).exits(0).stdout;
    assert!(page.contains(".TH pool 1") && page.contains("interrupted; run again"), "{page}");
    sandbox.pool(&["man", "pages"]).exits(0);
    for command in ["pool", "pool-plan", "pool-apply", "pool-lease-run", "pool-provider-test"] {
        let page = sandbox.read(&format!("pages/{command}.1"));
        assert!(page.contains(".SH SYNOPSIS"), "{command}: {page}");
    }
}
