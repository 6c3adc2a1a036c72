//! From YAML to `ps` and back, with the real binary and real processes.

use std::time::Duration;

use super::sandbox::{Sandbox, pause, wait_until};

const QUICKSTART: &str = include_str!("../../examples/quickstart.yaml");

fn sleepers(size: u32, extra: &str) -> String {
    format!(
        "pool_id: ci\nworker_type: process\nfixed_size: {size}\n\
         worker_config: {{image: /bin/sleep, command: ['600'], cpu_cores: 1, memory_mb: 64}}\n{extra}"
    )
}

fn is_alive(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

fn kill(signal: &str, pid: u32) {
    let status =
        std::process::Command::new("kill").args([signal, &pid.to_string()]).status().unwrap();
    assert!(status.success(), "kill {signal} {pid}");
}

#[test]
fn the_quickstart_makes_real_processes_and_is_done_the_second_time() {
    let sandbox = Sandbox::new();
    sandbox.write("quickstart.yaml", QUICKSTART);
    let first = sandbox.pool(&["apply", "quickstart.yaml", "--auto-approve"]).exits(0);
    assert!(first.stdout.contains("Apply complete! Resources: 3 added"), "{}", first.stdout);
    let workers = sandbox.workers();
    assert_eq!(workers.len(), 3);
    for pid in &workers {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        assert_eq!(String::from_utf8_lossy(&command), "/bin/sleep\0infinity\0");
    }
    let again = sandbox.pool(&["apply", "quickstart.yaml", "--auto-approve"]).exits(0);
    assert_eq!(again.stdout, "No changes. 3 workers in 1 pool are as they should be.\n");
    sandbox.pool(&["plan", "quickstart.yaml", "--detailed-exitcode"]).exits(0);
    sandbox.pool(&["status", "--check"]).exits(0);
    sandbox.pool(&["destroy", "--auto-approve"]).exits(0);
    assert_eq!(sandbox.workers(), Vec::<i32>::new());
}

#[test]
fn a_new_image_replaces_one_at_a_time_and_never_has_fewer() {
    let sandbox = Sandbox::new();
    sandbox.write("ci.yaml", &sleepers(3, ""));
    sandbox.pool(&["apply", "ci.yaml", "--auto-approve"]).exits(0);
    sandbox.write("ci.yaml", &sleepers(3, "").replace("'600'", "'601'"));
    let plan = sandbox.pool(&["plan", "ci.yaml", "--detailed-exitcode"]).exits(2);
    assert!(plan.stdout.contains(r#"command: ["600"] -> ["601"] # forces replacement"#));
    assert!(plan.stdout.contains("new before old, in 3 batches"), "{}", plan.stdout);
    let mut apply = sandbox.spawn(&["apply", "ci.yaml", "--auto-approve"]);
    let mut fewest = usize::MAX;
    let mut most = 0;
    while apply.try_wait().unwrap().is_none() {
        let alive = sandbox.workers().into_iter().filter(|pid| is_alive(*pid)).count();
        fewest = fewest.min(alive);
        most = most.max(alive);
    }
    assert!(fewest >= 3, "only {fewest} workers at some moment");
    assert!(most <= 4, "{most} workers at some moment");
    sandbox.pool(&["plan", "ci.yaml", "--detailed-exitcode"]).exits(0);
    assert_eq!(sandbox.workers().len(), 3);
}

#[test]
fn a_killed_worker_is_named_and_healed() {
    let sandbox = Sandbox::new();
    sandbox.write("ci.yaml", &sleepers(3, ""));
    sandbox.pool(&["apply", "ci.yaml", "--auto-approve"]).exits(0);
    let status = sandbox.pool(&["status", "--json"]).json();
    let second = &status["pools"][0]["workers"][1];
    assert_eq!(second["name"], "ci-1-1");
    let pid: i32 = second["attributes"]["pid"].as_str().unwrap().parse().unwrap();
    kill("-9", u32::try_from(pid).unwrap());
    wait_until("the worker is dead", || !is_alive(pid));
    let plan = sandbox.pool(&["plan", "ci.yaml"]).exits(0);
    assert!(plan.stdout.contains("# ci[1]: worker ci-1-1 is missing"), "{}", plan.stdout);
    sandbox.pool(&["apply", "ci.yaml", "--auto-approve"]).exits(0);
    assert_eq!(sandbox.workers().len(), 3);
    sandbox.pool(&["plan", "ci.yaml", "--detailed-exitcode"]).exits(0);
}

#[test]
fn two_hundred_workers_survive_twenty_kills_of_their_apply() {
    let sandbox = Sandbox::new();
    sandbox.write("ci.yaml", &sleepers(200, ""));
    for round in 0_u64..20 {
        let mut apply = sandbox.spawn(&["apply", "ci.yaml", "--auto-approve"]);
        // Spread over the run, in no order.
        pause(Duration::from_millis(20 + (round * 7919) % 400));
        kill("-9", apply.id());
        apply.wait().unwrap();
    }
    sandbox.pool(&["apply", "ci.yaml", "--auto-approve"]).exits(0);
    assert_eq!(sandbox.workers().len(), 200);
    sandbox.pool(&["plan", "ci.yaml", "--detailed-exitcode"]).exits(0);
    let names = sandbox.pool(&["state", "list"]).exits(0).stdout;
    assert_eq!(names.lines().filter(|line| line.ends_with("\tready")).count(), 200);
    sandbox.pool(&["destroy", "--auto-approve"]).exits(0);
    assert_eq!(sandbox.workers(), Vec::<i32>::new());
}

#[test]
fn an_interrupted_apply_ends_at_once_with_130_and_goes_on_later() {
    let sandbox = Sandbox::new();
    // The worker never passes its check, so that the run is sure to be under way.
    let never = "health_check: {type: exec, command: [/bin/false]}\n";
    sandbox.write("ci.yaml", &sleepers(2, never));
    let apply = sandbox.spawn(&["apply", "ci.yaml", "--auto-approve"]);
    wait_until("both workers run", || sandbox.workers().len() == 2);
    kill("-INT", apply.id());
    let output = apply.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert!(String::from_utf8_lossy(&output.stderr).contains("run again to go on"));
    sandbox.write("ci.yaml", &sleepers(2, ""));
    let again = sandbox.pool(&["apply", "ci.yaml", "--auto-approve"]).exits(0);
    assert!(
        again.stdout.contains("ci[0-1] will be adopted\n      2 workers, because"),
        "{}",
        again.stdout
    );
    assert_eq!(sandbox.workers().len(), 2);
}

#[test]
fn a_pool_that_somebody_works_on_is_locked_until_they_are_dead() {
    let sandbox = Sandbox::new();
    let never = "health_check: {type: exec, command: [/bin/false]}\n";
    sandbox.write("ci.yaml", &sleepers(1, never));
    let mut first = sandbox.spawn(&["apply", "ci.yaml", "--auto-approve"]);
    wait_until("the worker runs", || sandbox.workers().len() == 1);
    let apply = ["apply", "ci.yaml", "--auto-approve", "--lock-timeout", "0s"];
    let second = sandbox.pool(&apply).exits(4);
    let holder = format!("locked by pool apply (process {})", first.id());
    assert!(second.stderr.contains(&holder), "{}", second.stderr);
    let plan = sandbox.pool(&["plan", "ci.yaml"]).exits(0);
    assert!(plan.stdout.contains("this plan may be out of date"), "{}", plan.stdout);
    kill("-9", first.id());
    first.wait().unwrap();
    sandbox.write("ci.yaml", &sleepers(1, ""));
    sandbox.pool(&apply).exits(0);
}

#[test]
fn a_program_that_does_not_exist_is_an_error_of_its_worker() {
    let sandbox = Sandbox::new();
    sandbox.write("ci.yaml", &sleepers(2, "").replace("/bin/sleep", "/no/such/program"));
    let run = sandbox.pool(&["apply", "ci.yaml", "--auto-approve"]).exits(5);
    assert!(run.stderr.contains("invalid spec: image `/no/such/program`"), "{}", run.stderr);
    assert!(run.stderr.contains("run again"), "{}", run.stderr);
    sandbox.pool(&["status", "--check"]).exits(1);
    sandbox.write("ci.yaml", &sleepers(2, ""));
    sandbox.pool(&["apply", "ci.yaml", "--auto-approve"]).exits(0);
    assert_eq!(sandbox.workers().len(), 2);
}

#[test]
fn a_worker_that_ends_at_once_is_tried_three_times_and_its_log_is_named() {
    let sandbox = Sandbox::new();
    sandbox.write("ci.yaml", &sleepers(1, "").replace("/bin/sleep", "/bin/false"));
    let run = sandbox.pool(&["apply", "ci.yaml", "--auto-approve"]).exits(5);
    assert!(run.stderr.contains("attempt 2 failed"), "{}", run.stderr);
    assert!(run.stderr.contains("`/bin/false` ended at once with exit status: 1; see"), "{run:?}");
    assert!(!run.stderr.contains("attempt 3 failed"), "the third is the last: {}", run.stderr);
    assert_eq!(sandbox.workers(), Vec::<i32>::new());
    let fast = sleepers(2, "provisioning: {on_failure: fail_fast, strategy: sequential}\n");
    sandbox.write("ci.yaml", &fast.replace("/bin/sleep", "/bin/false"));
    let run = sandbox.pool(&["apply", "ci.yaml", "--auto-approve"]).exits(5);
    assert!(!run.stderr.contains("attempt 1 failed"), "{}", run.stderr);
    assert!(run.stderr.contains("1 failed, 1 not begun"), "{}", run.stderr);
}

#[test]
fn http_and_tcp_checks_ask_the_real_worker() {
    for (kind, port) in [("tcp", 18_470), ("http", 18_480)] {
        let sandbox = Sandbox::new();
        let path = if kind == "http" { ", path: /" } else { "" };
        let pool = format!(
            "pool_id: web\nworker_type: process\nfixed_size: 2\n\
             worker_config:\n  image: /bin/sh\n  cpu_cores: 1\n  memory_mb: 128\n  \
             command: [-c, 'exec python3 -m http.server --bind 127.0.0.1 $(({port} + POOL_SLOT))']\n\
             health_check: {{type: {kind}, port: {port}, port_step: 1{path}}}\n"
        );
        sandbox.write("web.yaml", &pool);
        sandbox.pool(&["apply", "web.yaml", "--auto-approve"]).exits(0);
        for slot in 0..2 {
            std::net::TcpStream::connect(("127.0.0.1", port + slot)).unwrap();
        }
        sandbox.pool(&["destroy", "--auto-approve"]).exits(0);
    }
}

#[test]
fn a_secret_reaches_the_worker_and_nothing_else() {
    let mut sandbox = Sandbox::new();
    let secret = "hunter2-of-the-test";
    sandbox.set("CI_TOKEN", secret);
    sandbox.write("token", "file-secret-of-the-test\r\n");
    let pool = sleepers(1, "").replace(
        "memory_mb: 64",
        "memory_mb: 64, environment: {TOKEN: {from_env: CI_TOKEN}, FILE: {from_file: token}}",
    );
    sandbox.write("ci.yaml", &pool);
    sandbox.pool(&["plan", "ci.yaml", "--out", "plan.json"]).exits(0);
    sandbox.pool(&["apply", "plan.json"]).exits(0);
    let environ = std::fs::read(format!("/proc/{}/environ", sandbox.workers()[0])).unwrap();
    let environ = String::from_utf8_lossy(&environ).into_owned();
    assert!(environ.contains(&format!("TOKEN={secret}\0")));
    assert!(environ.contains("FILE=file-secret-of-the-test\0"));
    sandbox.pool(&["plan", "ci.yaml", "--detailed-exitcode"]).exits(0);
    let export = sandbox.pool(&["state", "export"]).exits(0).stdout;
    let plan = sandbox.read("plan.json");
    let state = std::fs::read(sandbox.path().join(".pool/state.db")).unwrap();
    let wal = std::fs::read(sandbox.path().join(".pool/state.db-wal")).unwrap_or_default();
    for (what, bytes) in
        [("export", export.as_bytes()), ("plan", plan.as_bytes()), ("state", &state), ("wal", &wal)]
    {
        let text = String::from_utf8_lossy(bytes);
        assert!(
            !text.contains(secret) && !text.contains("file-secret"),
            "a secret is in the {what}"
        );
    }
    sandbox.set("CI_TOKEN", "another");
    let changed = sandbox.pool(&["plan", "ci.yaml", "--detailed-exitcode"]).exits(2);
    assert!(changed.stdout.contains("environment.TOKEN: (secret) -> (another secret)"));
    let mut without = sandbox;
    without.set("CI_TOKEN_UNSET", "");
    let unset = without
        .command(&["plan", "ci.yaml", "--detailed-exitcode"])
        .env_remove("CI_TOKEN")
        .output();
    assert_eq!(
        unset.unwrap().status.code(),
        Some(0),
        "a secret that cannot be read is not a change"
    );
    without.write("ci.yaml", &pool.replace("'600'", "'601'"));
    let apply = without
        .command(&["apply", "ci.yaml", "--auto-approve"])
        .env_remove("CI_TOKEN")
        .output()
        .unwrap();
    assert_eq!(apply.status.code(), Some(5));
    let stderr = String::from_utf8_lossy(&apply.stderr).into_owned();
    assert!(stderr.contains("the variable CI_TOKEN is not set"), "{stderr}");
    assert_eq!(without.workers().len(), 1, "nothing was touched");
}

#[test]
fn two_states_never_touch_each_others_workers() {
    let (one, other) = (Sandbox::new(), Sandbox::new());
    for sandbox in [&one, &other] {
        sandbox.write("ci.yaml", &sleepers(2, ""));
        sandbox.pool(&["apply", "ci.yaml", "--auto-approve"]).exits(0);
    }
    one.pool(&["destroy", "--auto-approve"]).exits(0);
    assert_eq!(one.workers().len(), 0);
    assert_eq!(other.workers().len(), 2);
    other.pool(&["plan", "ci.yaml", "--detailed-exitcode"]).exits(0);
}

/// Runs the binary on a terminal of its own, answers its question, and returns what it showed.
fn on_a_terminal(sandbox: &Sandbox, answer: &str) -> (i32, String) {
    sandbox.write(
        "terminal.py",
        "import os, pty, sys, time\n\
         pid, terminal = pty.fork()\n\
         if pid == 0:\n    os.execvp('pool', ['pool', 'apply', 'ci.yaml'])\n\
         shown = b''\n\
         while b'> ' not in shown.split(b'accepted')[-1]:\n    shown += os.read(terminal, 4096)\n\
         os.write(terminal, sys.argv[1].encode().decode('unicode_escape').encode())\n\
         try:\n    while True:\n        more = os.read(terminal, 4096)\n        \
         if not more: break\n        shown += more\n\
         except OSError:\n    pass\n\
         print(shown.decode())\n\
         sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n",
    );
    let ran = sandbox.shell(&format!("python3 terminal.py '{answer}'"));
    (ran.code.unwrap(), ran.stdout)
}

#[test]
fn on_a_terminal_only_yes_approves() {
    let sandbox = Sandbox::new();
    sandbox.write("ci.yaml", &sleepers(1, ""));
    for answer in ["no\\n", "y\\n", "YES\\n", " yes\\n", "\\n"] {
        let (code, shown) = on_a_terminal(&sandbox, answer);
        assert_eq!(code, 1, "{shown}");
        assert!(shown.contains("not approved; nothing was changed"), "{shown}");
    }
    let (code, shown) = on_a_terminal(&sandbox, "\\x03");
    assert_eq!(code, 130, "Ctrl-C at the question: {shown}");
    assert_eq!(sandbox.workers().len(), 0);
    let (code, shown) = on_a_terminal(&sandbox, "yes\\n");
    assert_eq!(code, 0, "{shown}");
    assert!(shown.contains("Apply complete! Resources: 1 added"), "{shown}");
    assert_eq!(sandbox.workers().len(), 1);
}

#[test]
fn applies_of_different_pools_run_side_by_side() {
    let sandbox = Sandbox::new();
    let ids = ["one", "two", "three", "four", "five", "six"];
    let pools: Vec<String> = ids
        .iter()
        .map(|id| sleepers(10, "").replace("pool_id: ci", &format!("pool_id: {id}")))
        .collect();
    sandbox.write("ci.yaml", &pools.join("\n---\n"));
    // All at once on a state that none of them has made yet.
    let runs: Vec<_> = ids
        .iter()
        .map(|id| sandbox.spawn(&["apply", "ci.yaml", "--auto-approve", "--target", id]))
        .collect();
    for run in runs {
        let output = run.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{stderr}");
    }
    assert_eq!(sandbox.workers().len(), 60);
    sandbox.pool(&["plan", "ci.yaml", "--detailed-exitcode"]).exits(0);
}

#[test]
fn a_pool_moves_to_another_provider_worker_by_worker() {
    let sandbox = Sandbox::new();
    sandbox.write("ci.yaml", &sleepers(2, "provider: sim\n"));
    sandbox.pool(&["apply", "ci.yaml", "--auto-approve"]).exits(0);
    assert_eq!(sandbox.workers().len(), 0);
    sandbox.write("ci.yaml", &sleepers(2, ""));
    let plan = sandbox.pool(&["plan", "ci.yaml"]).exits(0);
    assert!(plan.stdout.contains("provider: sim -> local # forces replacement"), "{}", plan.stdout);
    sandbox.pool(&["apply", "ci.yaml", "--auto-approve"]).exits(0);
    assert_eq!(sandbox.workers().len(), 2);
    sandbox.pool(&["plan", "ci.yaml", "--detailed-exitcode"]).exits(0);
    let cloud = sandbox.read(".pool/sim/cloud.jsonl");
    assert_eq!(cloud.matches("\"remove\":{").count(), 2, "{cloud}");
}
