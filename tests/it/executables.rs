//! `exec` providers with the real binary: what becomes of an executable when `pool` is killed, how much is asked of it,
//! where it says its workers are, and what a server does without it.

use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::sandbox::{Sandbox, pause, wait_until};
use crate::serve::Server;

/// A provider that answers as it should to everything but `create`, which is the test's.
fn script(sandbox: &Sandbox, described: &Value, create: &str) {
    let mut whole = json!({
        "protocol_versions": [1], "worker_types": ["vm"], "idempotency": "token", "consistency": "strong",
    });
    whole.as_object_mut().unwrap().extend(described.as_object().unwrap().clone());
    let answer = json!({ "type": "result", "result": whole });
    let text = format!(
        "#!/bin/sh\ncase $POOL_METHOD in\ndescribe) echo '{answer}' ;;\nlist) echo '{}' ;;\ndelete) echo '{{\"type\":\"result\"}}' ;;\ncreate) {create} ;;\nesac\n",
        r#"{"type":"result","result":{"workers":[],"complete":true}}"#
    );
    let path = sandbox.write("cloud.sh", &text);
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

fn yaml(size: u32, more: &str) -> String {
    format!(
        "version: 1\nproviders: {{cloud: {{type: exec, command: [./cloud.sh], grace: 200ms}}}}\npools:\n- pool_id: ci\n  \
         worker_type: vm\n  provider: cloud\n  fixed_size: {size}\n  worker_config: {{image: x, cpu_cores: 1, memory_mb: \
         16}}\n  provisioning: {{{more}}}\n"
    )
}

/// A pool of the Python example, and one of `local` beside it.
fn python(folder: &str, size: u32) -> String {
    format!(
        "version: 1\nproviders: {{racks: {{type: exec, command: ['{}/examples/providers/processes.py'], config: {{folder: \
         {folder}}}}}}}\npools:\n- pool_id: ci\n  worker_type: process\n  provider: racks\n  fixed_size: {size}\n  \
         worker_config: {{image: /bin/sleep, command: ['600'], cpu_cores: 1, memory_mb: 16}}\n  remediation: {{backoff: \
         1s}}\n  leases: {{recycle: {{reset: true}}}}\n",
        env!("CARGO_MANIFEST_DIR")
    )
}

/// The processes whose environment has `entry` in it.
fn processes_with(entry: &str) -> Vec<String> {
    let mut found = Vec::new();
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        let read = |file: &str| std::fs::read(process.path().join(file)).unwrap_or_default();
        let environ = String::from_utf8_lossy(&read("environ")).into_owned();
        let is_dead = String::from_utf8_lossy(&read("stat")).contains(") Z ");
        if environ.split('\0').any(|one| one == entry) && !is_dead {
            found.push(process.file_name().into_string().unwrap());
        }
    }
    found
}

#[test]
fn an_executable_does_not_outlive_a_run_that_was_killed() {
    let sandbox = Sandbox::new();
    let mark = format!("MARK={}", sandbox.path().display());
    let endless = "trap '' TERM; touch begun; while :; do sleep 0.05; done";
    script(&sandbox, &json!({}), endless);
    let marked = yaml(1, "")
        .replace("grace:", &format!("environment: {{{}}}, grace:", mark.replace('=', ": ")));
    sandbox.write("pool.yaml", &marked);
    let mut run = sandbox.spawn(&["apply", "pool.yaml", "--auto-approve"]);
    wait_until("a create is under way", || sandbox.path().join("begun").exists());
    assert!(!processes_with(&mark).is_empty());
    run.kill().unwrap();
    run.wait().unwrap();
    wait_until("nothing of it runs", || processes_with(&mark).is_empty());
}

#[test]
fn a_worker_that_is_there_without_an_answer_is_adopted_and_told_of() {
    let sandbox = Sandbox::new();
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/providers/processes.py");
    let text = std::fs::read_to_string(example).unwrap();
    let answers = "        say({\"type\": \"result\"";
    assert!(text.contains(answers));
    let creates = "        if request[\"method\"] == \"create\":\n            method(request[\"config\"], \
                   request[\"params\"], secrets)\n            return print(\"it is there\")\n";
    let mute = text.replacen(answers, &format!("{creates}{answers}"), 1);
    let mute = sandbox.write("racks.py", &mute);
    std::fs::set_permissions(&mute, std::fs::Permissions::from_mode(0o755)).unwrap();
    let folder = sandbox.path().join("workers").display().to_string();
    sandbox.write("pool.yaml", &python(&folder, 2).replace(example, mute.to_str().unwrap()));
    let applied = sandbox.pool(&["apply", "pool.yaml", "--auto-approve", "--json"]).exits(0);
    let lines = applied.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let found: Vec<Value> = lines.filter(|line| line["hook"]["found"] == json!(true)).collect();
    assert_eq!(found.len(), 2, "{}", applied.stdout);
    let why = found[0]["hook"]["error"].as_str().unwrap();
    assert!(why.starts_with("outcome unknown") && why.contains("it is there"), "{why}");
    sandbox.pool(&["plan", "pool.yaml", "--detailed-exitcode"]).exits(0);
    // People are told too.
    let again = ["apply", "pool.yaml", "--auto-approve", "--replace", "ci[0]"];
    let again = sandbox.pool(&again).exits(0);
    let told = "ci[0]: ci-0-2 is there, though its create had no answer that counts";
    assert!(again.stderr.contains(told), "{}", again.stderr);
    sandbox.pool(&["destroy", "--auto-approve"]).exits(0);
}

#[test]
fn a_test_of_a_provider_that_is_interrupted_leaves_no_worker() {
    let sandbox = Sandbox::new();
    let folder = sandbox.path().join("workers").display().to_string();
    let mark = format!("MARK={folder}");
    let marked = python(&folder, 1).replace(
        "worker_config: {",
        &format!("worker_config: {{environment: {{MARK: {folder}}}, "),
    );
    sandbox.write("pool.yaml", &marked);
    // Five workers at once: one of them at least is there, and others are on their way.
    let arguments =
        ["provider", "test", "racks", "pool.yaml", "--rule", "whole over all its pages"];
    let test = sandbox.command(&arguments).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("it has created a worker", || !processes_with(&mark).is_empty());
    assert!(
        Command::new("kill").args(["-INT", &test.id().to_string()]).status().unwrap().success()
    );
    let ended = test.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(130), "{told}");
    assert!(told.contains("the workers of this test are being deleted"), "{told}");
    assert!(!told.contains("may be left"), "{told}");
    assert_eq!(processes_with(&mark), [""; 0]);
}

#[test]
fn what_an_executable_says_of_itself_is_held_against_pools_and_shown() {
    let sandbox = Sandbox::new();
    let schema = json!({ "type": "object", "properties": { "flavor": { "enum": ["small"] } }, "additionalProperties": false });
    script(&sandbox, &json!({ "attributes_schema": schema, "setle_ms": 3 }), "touch created");
    let misfit = yaml(1, "").replace("memory_mb: 16", "memory_mb: 16, attributes: {flavr: small}");
    sandbox.write("pool.yaml", &misfit);
    // A test of the provider creates nothing that a pool could not have.
    let refused = sandbox.pool(&["provider", "test", "cloud", "pool.yaml"]).exits(1);
    let told = "worker_config.attributes.flavr: unknown key `flavr` (did you mean `flavor`?)";
    assert!(refused.stderr.contains(told), "{}", refused.stderr);
    assert!(!sandbox.path().join("created").exists());
    // What nobody here knows may be misspelt.
    let shown = sandbox.pool(&["provider", "describe", "cloud", "pool.yaml"]).exits(0).stdout;
    assert!(shown.contains("unknown:\n    - setle_ms\n"), "{shown}");
}

#[test]
fn a_listing_that_is_not_complete_is_no_proof_that_all_is_well() {
    let sandbox = Sandbox::new();
    let folder = sandbox.path().join("workers").display().to_string();
    let copy = sandbox.path().join("racks.py");
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/providers/processes.py");
    std::fs::copy(example, &copy).unwrap();
    sandbox.write("pool.yaml", &python(&folder, 2).replace(example, copy.to_str().unwrap()));
    sandbox.pool(&["apply", "pool.yaml", "--auto-approve"]).exits(0);
    let text = std::fs::read_to_string(example).unwrap();
    let blind = text.replacen("def list_workers(config, params, secrets):\n", "def list_workers(config, params, secrets):\n    return {\"workers\": [], \"complete\": False}\n", 1);
    assert_ne!(blind, text);
    sandbox.write("racks.py", &blind);
    let plan = sandbox.pool(&["plan", "pool.yaml", "--detailed-exitcode"]).exits(0).stdout;
    assert!(plan.starts_with("No changes. 2 workers in 1 pool are recorded as they should be; a provider could not see"), "{plan}");
    sandbox.write("racks.py", &text);
    sandbox.pool(&["destroy", "--auto-approve"]).exits(0);
}

#[test]
fn a_server_is_ready_once_its_files_were_applied_and_keeps_what_went_wrong() {
    let sandbox = Sandbox::new();
    script(
        &sandbox,
        &json!({}),
        "echo '{\"type\":\"error\",\"code\":\"quota\",\"message\":\"no luck\"}'",
    );
    let other = "- {pool_id: other, worker_type: process, fixed_size: 1, remediation: {backoff: 1s}, worker_config: {image: \
                 /bin/sleep, command: ['603'], cpu_cores: 1, memory_mb: 16}}\n";
    let failing = yaml(1, "max_attempts: 1");
    sandbox.write("pool.yaml", &format!("{failing}  remediation: {{backoff: 60s}}\n{other}"));
    let good = sandbox.read("cloud.sh");
    sandbox.write("cloud.sh", "#!/bin/sh\nexit 1\n");
    let server = Server::start(&sandbox, &["pool.yaml"]);
    let ready = || server.get("/readyz?verbose");
    wait_until("the files were refused", || !ready()["config_error"].is_null());
    assert_eq!(ready()["ready"], json!(false), "{}", ready());
    sandbox.write("cloud.sh", &good);
    wait_until("the files are applied", || ready()["pools"]["ci"].is_object());
    let error = || ready()["pools"]["ci"]["error"].as_str().unwrap_or_default().to_owned();
    // Whenever another pool's worker breaks, all pools are looked at.
    let breaks = || {
        wait_until("the other pool is there", || sandbox.workers().len() == 1);
        let victim = sandbox.workers()[0];
        let killed = Command::new("kill").args(["-9", &victim.to_string()]).status();
        assert!(killed.unwrap().success());
        wait_until("it is replaced", || {
            sandbox.workers().first().is_some_and(|one| *one != victim)
        });
    };
    breaks();
    // Its provider, which could not be opened, is left in peace for half a minute.
    let mut seconds = 0..90;
    while !error().contains("no luck") {
        assert!(seconds.next().is_some(), "waited in vain for the create to fail: {}", ready());
        pause(Duration::from_secs(1));
    }
    let looked = || ready()["pools"]["ci"]["looked_at"].clone();
    let before = looked();
    // A look that only waits for the next try does not take that back.
    breaks();
    wait_until("all was looked at", || looked() != before);
    assert!(error().contains("no luck"), "{}", ready());
}

#[test]
fn no_more_is_asked_of_an_executable_than_it_says() {
    let sandbox = Sandbox::new();
    let counts = "echo in >>calls; sleep 0.1; echo out >>calls; echo '{\"type\":\"error\",\"code\":\"quota\",\"message\":\"m\"}'";
    script(&sandbox, &json!({ "limits": { "max_concurrency": 2 } }), counts);
    sandbox.write("pool.yaml", &yaml(6, "max_concurrency: 6"));
    sandbox.pool(&["apply", "pool.yaml", "--auto-approve"]).exits(5);
    let (mut now, mut most) = (0, 0);
    for line in sandbox.read("calls").lines() {
        now += if line == "in" { 1 } else { -1 };
        most = most.max(now);
    }
    assert_eq!((now, most), (0, 2));
    // Its users know better.
    std::fs::remove_file(sandbox.path().join("calls")).unwrap();
    let wider = yaml(6, "max_concurrency: 6").replace("grace:", "max_concurrency: 1, grace:");
    sandbox.write("pool.yaml", &wider);
    sandbox.pool(&["apply", "pool.yaml", "--auto-approve"]).exits(5);
    let calls = sandbox.read("calls");
    assert!(calls.lines().eq(["in", "out"].into_iter().cycle().take(12)), "{calls}");
}

#[test]
fn where_an_executable_says_its_workers_are_is_where_they_stay() {
    let sandbox = Sandbox::new();
    let folder = |name: &str| sandbox.path().join(name).display().to_string();
    sandbox.write("pool.yaml", &python(&folder("one"), 2));
    sandbox.pool(&["apply", "pool.yaml", "--auto-approve"]).exits(0);
    sandbox.pool(&["plan", "pool.yaml", "--detailed-exitcode"]).exits(0);
    sandbox.write("pool.yaml", &python(&folder("two"), 2));
    let moved = sandbox.pool(&["plan", "pool.yaml"]).exits(1);
    let told = format!("of type exec at {}", folder("one"));
    assert!(moved.stderr.contains(&told), "{}", moved.stderr);
    assert!(moved.stderr.contains(&folder("two")), "{}", moved.stderr);
    // Neither does anything forget them that has no files, when it looks in another place than they are.
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/providers/processes.py");
    let elsewhere = std::fs::read_to_string(example).unwrap().replacen(
        "\"place\": config.get(\"folder\")",
        "\"place\": os.environ.get(\"REGION\", config.get(\"folder\"))",
        1,
    );
    assert!(elsewhere.contains("REGION"));
    let liar = sandbox.write("racks.py", &elsewhere);
    std::fs::set_permissions(&liar, std::fs::Permissions::from_mode(0o755)).unwrap();
    let here = python(&folder("one"), 2)
        .replace(example, liar.to_str().unwrap())
        .replace("config: {folder", "pass_environment: [REGION], config: {folder");
    sandbox.write("pool.yaml", &here);
    sandbox.pool(&["apply", "pool.yaml", "--auto-approve"]).exits(0);
    for command in ["destroy --auto-approve", "apply pool.yaml --auto-approve"] {
        let ran = sandbox.shell(&format!("REGION=two pool {command}"));
        assert_eq!(ran.code, Some(1), "{} {}", ran.stdout, ran.stderr);
        assert!(ran.stderr.contains("of type exec at two now"), "{}", ran.stderr);
    }
    sandbox.pool(&["plan", "pool.yaml", "--detailed-exitcode"]).exits(0);
    // What is recorded reaches them from anywhere, without files.
    let state = sandbox.path().join(".pool/state.db").display().to_string();
    sandbox.pool(&["-C", "/", "--state", &state, "destroy", "--auto-approve"]).exits(0);
    assert_eq!(std::fs::read_dir(folder("one")).unwrap().count(), 1, "the owner's folder");
    // Without workers it may be anywhere.
    sandbox.pool(&["apply", "pool.yaml", "--auto-approve"]).exits(0);
    sandbox.pool(&["destroy", "--auto-approve"]).exits(0);
}

#[test]
fn a_saved_plan_is_carried_out_by_its_own_provider_or_not_at_all() {
    let sandbox = Sandbox::new();
    let create =
        "echo x >>created; echo '{\"type\":\"error\",\"code\":\"quota\",\"message\":\"m\"}'";
    script(&sandbox, &json!({}), create);
    sandbox.write("pool.yaml", &yaml(1, "max_attempts: 1"));
    sandbox.pool(&["apply", "pool.yaml", "--auto-approve"]).exits(5);
    // Another executable, which is gone when the plan is applied.
    std::fs::copy(sandbox.path().join("cloud.sh"), sandbox.path().join("other.sh")).unwrap();
    sandbox.write("pool.yaml", &yaml(1, "max_attempts: 1").replace("cloud.sh", "other.sh"));
    sandbox.pool(&["plan", "pool.yaml", "--out", "plan"]).exits(0);
    std::fs::remove_file(sandbox.path().join("other.sh")).unwrap();
    std::fs::remove_file(sandbox.path().join("created")).unwrap();
    let refused = sandbox.pool(&["apply", "plan"]).exits(1);
    assert!(refused.stderr.contains("other.sh"), "{}", refused.stderr);
    assert!(!sandbox.path().join("created").exists(), "the old one was called");
}

#[test]
fn an_executable_that_hangs_keeps_no_other_pool_from_being_healed() {
    let sandbox = Sandbox::new();
    script(&sandbox, &json!({}), "exit 1");
    let mut yaml = yaml(0, "").replace("grace:", "timeout: 20s, grace:");
    yaml.push_str(
        "- {pool_id: other, worker_type: process, fixed_size: 1, remediation: {backoff: 1s}, worker_config: {image: \
         /bin/sleep, command: ['602'], cpu_cores: 1, memory_mb: 16}}\n",
    );
    sandbox.write("pool.yaml", &yaml);
    sandbox.pool(&["apply", "pool.yaml", "--auto-approve"]).exits(0);
    sandbox.write("cloud.sh", "#!/bin/sh\nsleep 1000\n");
    let _server = Server::start(&sandbox, &[]);
    for _ in 0..2 {
        let victim = sandbox.workers()[0];
        let killed = Command::new("kill").args(["-9", &victim.to_string()]).status();
        assert!(killed.unwrap().success());
        wait_until("what is killed is replaced", || {
            let workers = sandbox.workers();
            workers.len() == 1 && workers[0] != victim
        });
    }
}

#[test]
fn an_executable_that_is_gone_is_missed_by_those_only_who_need_it() {
    let sandbox = Sandbox::new();
    let folder = sandbox.path().join("workers").display().to_string();
    let copy = sandbox.path().join("racks.py");
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/providers/processes.py");
    std::fs::copy(example, &copy).unwrap();
    let yaml = python(&folder, 1).replace(example, copy.to_str().unwrap());
    let other = "pool_id: other\nworker_type: process\nfixed_size: 1\nworker_config: {image: /bin/sleep, command: ['600'], \
                 cpu_cores: 1, memory_mb: 16}\n";
    sandbox.write("pool.yaml", &yaml);
    sandbox.write("other.yaml", other);
    sandbox.pool(&["apply", "pool.yaml", "--auto-approve"]).exits(0);
    std::fs::rename(&copy, sandbox.path().join("away.py")).unwrap();
    let missed = sandbox.pool(&["plan", "pool.yaml", "other.yaml"]).exits(1);
    assert!(
        missed.stderr.contains("the provider racks: it cannot be started"),
        "{}",
        missed.stderr
    );
    std::fs::rename(sandbox.path().join("away.py"), &copy).unwrap();
    sandbox.pool(&["destroy", "--auto-approve"]).exits(0);
    std::fs::remove_file(&copy).unwrap();
    // Nothing of it is left: a run says so and goes on.
    let gone = sandbox.pool(&["plan", "other.yaml"]).exits(0);
    assert!(gone.stderr.contains("racks"), "{}", gone.stderr);
    sandbox.pool(&["apply", "other.yaml", "--auto-approve"]).exits(0);
    sandbox.pool(&["destroy", "--auto-approve"]).exits(0);
}

#[test]
fn a_server_leases_resets_and_goes_on_without_an_executable_until_it_is_back() {
    let sandbox = Sandbox::new();
    let folder = sandbox.path().join("workers").display().to_string();
    let copy = sandbox.path().join("racks.py");
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/providers/processes.py");
    std::fs::copy(example, &copy).unwrap();
    let mut yaml = python(&folder, 1).replace(example, copy.to_str().unwrap());
    yaml.push_str(
        "- {pool_id: other, worker_type: process, fixed_size: 1, remediation: {backoff: 1s}, worker_config: {image: \
         /bin/sleep, command: ['601'], cpu_cores: 1, memory_mb: 16}}\n",
    );
    sandbox.write("pool.yaml", &yaml);
    sandbox.pool(&["apply", "pool.yaml", "--auto-approve"]).exits(0);
    let server = Server::start(&sandbox, &[]);
    let lease = server.acquire("ci");
    assert_eq!(lease["worker"]["addresses"], json!(["127.0.0.1"]), "{lease}");
    let pid = |lease: &Value| lease["worker"]["attributes"]["pid"].as_str().unwrap().to_owned();
    let path = format!("/v1/leases/{}", lease["id"].as_str().unwrap());
    assert_eq!(server.call("DELETE", &path, &Value::Null).0, 204);
    let mut again = Value::Null;
    wait_until("it is as new", || {
        let (status, answer) =
            server.call("POST", "/v1/leases", &json!({ "pool": "ci", "holder": "me" }));
        again = answer["leases"][0].clone();
        status == 201
    });
    assert_eq!(again["worker"]["name"], lease["worker"]["name"]);
    assert_ne!(pid(&again), pid(&lease), "another process");
    let path = format!("/v1/leases/{}", again["id"].as_str().unwrap());
    assert_eq!(server.call("DELETE", &path, &Value::Null).0, 204);
    drop(server);

    // A server that begins without it looks after the others.
    std::fs::rename(&copy, sandbox.path().join("away.py")).unwrap();
    let server = Server::start(&sandbox, &[]);
    let other = server.acquire("other");
    let victim = pid(&other);
    let path = format!("/v1/leases/{}", other["id"].as_str().unwrap());
    assert_eq!(server.call("DELETE", &path, &Value::Null).0, 204);
    assert!(Command::new("kill").args(["-9", &victim]).status().unwrap().success());
    let victim: i32 = victim.parse().unwrap();
    wait_until("what is killed is replaced", || {
        let workers = sandbox.workers();
        workers.len() == 1 && workers[0] != victim
    });
    std::fs::rename(sandbox.path().join("away.py"), &copy).unwrap();
    wait_until("its workers can be had again", || {
        server.call("POST", "/v1/leases", &json!({ "pool": "ci", "holder": "me" })).0 == 201
    });
}
