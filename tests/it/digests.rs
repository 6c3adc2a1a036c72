//! Approval by digest: what a plan comes to is approved, and nothing else is carried out.

use std::os::unix::fs::PermissionsExt as _;

use serde_json::json;

use crate::sandbox::{Ran, Sandbox};
use crate::serve::Server;

fn pool(id: &str, size: u32, more: &str) -> String {
    format!(
        "- {{pool_id: {id}, worker_type: process, fixed_size: {size}, worker_config: {{image: /bin/sleep, command: ['600'], \
         cpu_cores: 1, memory_mb: 16}}{more}}}\n"
    )
}

fn file(pools: &[String]) -> String {
    format!("version: 1\npools:\n{}", pools.concat())
}

/// The digest that a plan prints.
fn digest(ran: &Ran) -> String {
    let line = ran.stdout.lines().find_map(|line| line.strip_prefix("Effects: "));
    let digest = line.and_then(|line| line.split(' ').next());
    digest.unwrap_or_else(|| panic!("no digest: {} {}", ran.stdout, ran.stderr)).to_owned()
}

fn apply(sandbox: &Sandbox, digest: &str) -> Ran {
    sandbox.pool(&["apply", "pools.yaml", "--expect-digest", digest])
}

#[test]
fn what_was_approved_is_carried_out_and_nothing_else() {
    let sandbox = Sandbox::new();
    sandbox.write("pools.yaml", &file(&[pool("ci", 1, "")]));
    sandbox.pool(&["apply", "pools.yaml", "--auto-approve"]).exits(0);
    sandbox.write("pools.yaml", &file(&[pool("ci", 3, "")]));
    let planned = sandbox.pool(&["plan", "pools.yaml"]).exits(0);
    let approved = digest(&planned);
    let json = sandbox.pool(&["plan", "pools.yaml", "--json"]).exits(0).json();
    assert_eq!(json["pool"]["effect_digest"], json!(approved));
    // Another size got in.
    sandbox.write("pools.yaml", &file(&[pool("ci", 4, "")]));
    let stale = apply(&sandbox, &approved).exits(3);
    for words in [
        "create: ci[1-2] was approved, ci[1-3] now",
        "ci: fixed_size: 3 was approved, 4 now",
        "hint: make a new plan",
    ] {
        assert!(stale.stderr.contains(words), "{}", stale.stderr);
    }
    assert_eq!(sandbox.workers().len(), 1, "nothing was done");
    // So did another image, and a pool.
    let other = pool("ci", 3, "").replace("600", "601");
    sandbox.write("pools.yaml", &file(&[other, pool("more", 1, "")]));
    let stale = apply(&sandbox, &approved).exits(3).stderr;
    assert!(stale.contains("replace: none was approved, ci[0] now"), "{stale}");
    assert!(stale.contains("create: none was approved, more[0] now"), "{stale}");
    assert!(
        stale.contains("worker_config.command: [\"600\"] was approved, [\"601\"] now"),
        "{stale}"
    );
    // What was approved needs no more approval.
    sandbox.write("pools.yaml", &file(&[pool("ci", 3, "")]));
    apply(&sandbox, &approved).exits(0);
    assert_eq!(sandbox.workers().len(), 3);
    let again = apply(&sandbox, &approved).exits(3);
    assert!(again.stderr.contains("create: ci[1-2] was approved, none now"), "{}", again.stderr);
}

#[test]
fn an_unknown_digest_is_refused_and_a_wrong_one_explained() {
    let sandbox = Sandbox::new();
    sandbox.write("pools.yaml", &file(&[pool("ci", 1, "")]));
    let unknown = apply(&sandbox, "e1-00112233445566778899aabbccddeeff").exits(3);
    assert!(unknown.stderr.contains("is not remembered beside this state"), "{}", unknown.stderr);
    assert!(sandbox.workers().is_empty());
    let wrong = apply(&sandbox, "3f9a").exits(1);
    assert!(wrong.stderr.contains("a digest is what `pool plan` prints"), "{}", wrong.stderr);
    // A digest of a plan for a state that is not there yet.
    let approved = digest(&sandbox.pool(&["--state", "fresh.db", "plan", "pools.yaml"]).exits(0));
    sandbox
        .pool(&["--state", "fresh.db", "apply", "pools.yaml", "--expect-digest", &approved])
        .exits(0);
    sandbox.pool(&["--state", "fresh.db", "destroy", "--auto-approve"]).exits(0);
}

#[test]
fn what_others_do_meanwhile_changes_no_digest() {
    let sandbox = Sandbox::new();
    let one_shot = ", leases: {reuse: one_shot}, remediation: {backoff: 1s}";
    let files = |size, other| file(&[pool("ci", size, one_shot), pool("other", other, "")]);
    sandbox.write("pools.yaml", &files(2, 1));
    sandbox.pool(&["apply", "pools.yaml", "--auto-approve"]).exits(0);
    sandbox.write("pools.yaml", &files(3, 1));
    let approved = digest(&sandbox.pool(&["plan", "pools.yaml"]).exits(0));
    // A job takes a worker, and uses it up; the other pool's worker is another one.
    let server = Server::start(&sandbox, &[]);
    let lease = server.acquire("ci");
    assert_eq!(digest(&sandbox.pool(&["plan", "pools.yaml"]).exits(0)), approved);
    drop(server);
    sandbox
        .pool(&[
            "apply",
            "pools.yaml",
            "--auto-approve",
            "--replace",
            "other[0]",
            "--target",
            "other",
        ])
        .exits(0);
    assert_eq!(digest(&sandbox.pool(&["plan", "pools.yaml"]).exits(0)), approved);
    let server = Server::start(&sandbox, &["--reconcile", "off"]);
    let path = format!("/v1/leases/{}", lease["id"].as_str().unwrap());
    assert_eq!(server.call("DELETE", &path, &serde_json::Value::Null).0, 204);
    assert_eq!(digest(&sandbox.pool(&["plan", "pools.yaml"]).exits(0)), approved);
    drop(server);
    apply(&sandbox, &approved).exits(0);
    sandbox.pool(&["destroy", "--auto-approve"]).exits(0);
}

#[test]
fn where_a_checkout_lies_is_no_effect() {
    let sandbox = Sandbox::new();
    let state = sandbox.path().join("state.db").display().to_string();
    let provider = "version: 1\nproviders: {cloud: {type: exec, command: [./cloud.sh]}}\npools:\n- {pool_id: ci, worker_type: vm, \
                    provider: cloud, fixed_size: 1, worker_config: {image: x, cpu_cores: 1, memory_mb: 16}}\n";
    let script = "#!/bin/sh\ncase $POOL_METHOD in\ndescribe) echo '{\"type\":\"result\",\"result\":{\"protocol_versions\":[1],\
                  \"worker_types\":[\"vm\"],\"idempotency\":\"token\",\"consistency\":\"strong\"}}' ;;\n\
                  list) echo '{\"type\":\"result\",\"result\":{\"workers\":[],\"complete\":true}}' ;;\nesac\n";
    let digests = ["one", "two"].map(|folder| {
        std::fs::create_dir(sandbox.path().join(folder)).unwrap();
        sandbox.write(&format!("{folder}/pools.yaml"), provider);
        let path = sandbox.write(&format!("{folder}/cloud.sh"), script);
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
        digest(&sandbox.pool(&["-C", folder, "--state", &state, "plan", "pools.yaml"]).exits(0))
    });
    assert_eq!(digests[0], digests[1]);
}
