//! One worker is tried out with another config (`--target 'POOL[SLOT]'`), beside a server that keeps everything as recorded.

use serde_json::Value;

use crate::rolling::{changed, kill_worker, ready, release, served, workers};
use crate::sandbox::wait_until;
use crate::serve::POOL;

fn simulated() -> String {
    POOL.replace("worker_type: process", "worker_type: vm\nprovider: sim")
        .replace("/bin/sleep", "a")
        .replace(", command: [infinity]", "")
}

#[test]
fn one_worker_that_is_tried_out_stays_until_the_others_follow() {
    let (sandbox, server) = served(POOL);
    wait_until("it is ready", || server.call("GET", "/readyz", &Value::Null).0 == 200);
    sandbox.write("web.yaml", &changed(POOL));
    sandbox.pool(&["apply", "web.yaml", "--auto-approve", "--target", "web[0]"]).exits(0);
    // A job has it and gives it back, and the server repairs another one: neither undoes it.
    let lease = server.acquire("web");
    assert_eq!(lease["worker"]["name"], "web-0-2");
    release(&server, &lease);
    kill_worker(&server, "web-1-1");
    wait_until("another one is repaired", || ready(&server).contains(&"web-1-2".to_owned()));
    assert_eq!(ready(&server), ["web-0-2", "web-1-2", "web-2-1"]);
    // A person may drain it to look at it, without having it undone.
    server.call("POST", "/v1/workers/web-0-2/drain", &Value::Null);
    kill_worker(&server, "web-2-1");
    wait_until("one more is repaired", || ready(&server).contains(&"web-2-2".to_owned()));
    assert_eq!(ready(&server), ["web-0-2", "web-1-2", "web-2-2"]);
    server.call("POST", "/v1/workers/web-0-2/uncordon", &Value::Null);
    let rest = sandbox.pool(&["apply", "web.yaml", "--auto-approve"]).exits(0).stdout;
    assert!(rest.contains("2 added, 0 changed, 2 destroyed"), "{rest}");
}

#[test]
fn labels_that_are_tried_out_on_one_worker_stay_too() {
    let sim = simulated();
    let (sandbox, server) = served(&sim);
    wait_until("it is ready", || server.call("GET", "/readyz", &Value::Null).0 == 200);
    sandbox.write("web.yaml", &sim.replace("memory_mb: 16", "memory_mb: 16, labels: {new: 'yes'}"));
    sandbox.pool(&["apply", "web.yaml", "--auto-approve", "--target", "web[0]"]).exits(0);
    // The server looks at the pool for another reason.
    server.call("POST", "/v1/workers/web-1-1/replace", &Value::Null);
    wait_until("another one is replaced", || ready(&server).contains(&"web-1-2".to_owned()));
    let rest = sandbox.pool(&["apply", "web.yaml", "--auto-approve"]).exits(0).stdout;
    assert!(rest.contains("0 added, 2 changed, 0 destroyed"), "{rest}");
}

#[test]
fn a_rollout_of_which_a_part_failed_is_finished_by_the_server() {
    let sim =
        simulated() + "provisioning: {max_attempts: 1, timeout: 2s}\nupdate: {max_surge: 1}\n";
    let (sandbox, server) = served(&sim);
    wait_until("it is ready", || server.call("GET", "/readyz", &Value::Null).0 == 200);
    // Only this run finds the new image unwell: the server has read its cloud's settings before.
    sandbox.write(".pool/sim/settings.json", r#"{"unhealthy_images": ["b"]}"#);
    sandbox.write("web.yaml", &sim.replace("image: a", "image: b"));
    let failed = sandbox.pool(&["apply", "web.yaml", "--auto-approve"]);
    assert_eq!(failed.code, Some(5), "{}", failed.stderr);
    let images = || workers(&server).iter().filter(|one| one["image"] == "b").count();
    server.call("POST", "/v1/workers/web-2-1/verify", &Value::Null);
    wait_until("the server has finished it", || images() == 3 && ready(&server).len() == 3);
}

#[test]
fn what_was_tried_out_is_taken_back_under_a_job_when_it_ends() {
    let (sandbox, server) = served(&format!("{POOL}update: {{drain_timeout: 1s}}\n"));
    wait_until("it is ready", || server.call("GET", "/readyz", &Value::Null).0 == 200);
    let file = sandbox.read("web.yaml");
    sandbox.write("web.yaml", &changed(&file));
    sandbox.pool(&["apply", "web.yaml", "--auto-approve", "--target", "web[0]"]).exits(0);
    let lease = server.acquire("web");
    sandbox.write("web.yaml", &file);
    sandbox.pool(&["apply", "web.yaml", "--auto-approve"]).exits(5);
    release(&server, &lease);
    wait_until("the old config is back", || ready(&server) == ["web-0-3", "web-1-1", "web-2-1"]);
}

#[test]
fn another_provider_that_is_tried_out_on_one_worker_stays_too() {
    let file = |provider: &str| {
        let pool = simulated().replace("provider: sim", &format!("provider: {provider}"));
        let pool = pool.trim().replace('\n', "\n  ");
        format!("version: 1\nproviders: {{other: {{type: sim}}}}\npools:\n- {pool}\n")
    };
    let (sandbox, server) = served(&file("sim"));
    wait_until("it is ready", || server.call("GET", "/readyz", &Value::Null).0 == 200);
    sandbox.write("web.yaml", &file("other"));
    sandbox.pool(&["apply", "web.yaml", "--auto-approve", "--target", "web[0]"]).exits(0);
    server.call("POST", "/v1/workers/web-1-1/replace", &Value::Null);
    wait_until("another one is replaced", || ready(&server).contains(&"web-1-2".to_owned()));
    assert_eq!(ready(&server), ["web-0-2", "web-1-2", "web-2-1"]);
}

#[test]
fn a_server_with_an_older_secret_replaces_no_worker_for_that() {
    let mut sandbox = crate::sandbox::Sandbox::new();
    sandbox.set("TOKEN", "old");
    let pool = POOL.replace("memory_mb: 16", "memory_mb: 16, environment: {T: {from_env: TOKEN}}");
    sandbox.write("web.yaml", &pool);
    sandbox.pool(&["apply", "web.yaml", "--auto-approve"]).exits(0);
    let server = crate::serve::Server::start(&sandbox, &[]);
    wait_until("it is ready", || server.call("GET", "/readyz", &Value::Null).0 == 200);
    sandbox.set("TOKEN", "new");
    sandbox.pool(&["apply", "web.yaml", "--auto-approve"]).exits(0);
    assert_eq!(ready(&server), ["web-0-2", "web-1-2", "web-2-2"]);
    // It looks at the pool, and repairs no more than what broke.
    kill_worker(&server, "web-1-2");
    wait_until("it is repaired", || ready(&server).contains(&"web-1-3".to_owned()));
    kill_worker(&server, "web-2-2");
    wait_until("that one too", || ready(&server).contains(&"web-2-3".to_owned()));
    assert_eq!(ready(&server), ["web-0-2", "web-1-3", "web-2-3"]);
}
