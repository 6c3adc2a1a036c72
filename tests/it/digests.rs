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

/// A job's end must not hide what else is asked for.
#[test]
fn a_config_that_nobody_approved_is_not_carried_out_in_the_shadow_of_a_lease() {
    let sandbox = Sandbox::new();
    let jobs =
        |seconds: &str| pool("jobs", 1, ", leases: {reuse: one_shot}").replace("600", seconds);
    sandbox.write("pools.yaml", &file(&[pool("ci", 1, ""), jobs("600")]));
    sandbox.pool(&["apply", "pools.yaml", "--auto-approve"]).exits(0);
    sandbox.write("pools.yaml", &file(&[pool("ci", 2, ""), jobs("600")]));
    let approved = digest(&sandbox.pool(&["plan", "pools.yaml"]).exits(0));
    let server = Server::start(&sandbox, &["--reconcile", "off"]);
    let lease = server.acquire("jobs");
    let path = format!("/v1/leases/{}", lease["id"].as_str().unwrap());
    assert_eq!(server.call("DELETE", &path, &serde_json::Value::Null).0, 204);
    drop(server);
    assert_eq!(digest(&sandbox.pool(&["plan", "pools.yaml"]).exits(0)), approved, "used up");
    // Its process ends by itself, too.
    let pid = lease["worker"]["attributes"]["pid"].as_str().unwrap();
    let _may_be_gone = std::process::Command::new("kill").args(["-9", pid]).status();
    assert_eq!(digest(&sandbox.pool(&["plan", "pools.yaml"]).exits(0)), approved, "ended");
    // With it, another program gets in.
    sandbox.write("pools.yaml", &file(&[pool("ci", 2, ""), jobs("601")]));
    let stale = apply(&sandbox, &approved).exits(3).stderr;
    assert!(stale.contains("jobs"), "{stale}");
    // And a setting, alone, by a name that reads like the end of a drain.
    sandbox.write(
        "pools.yaml",
        &file(&[
            pool("ci", 2, ""),
            jobs("600").replace("memory_mb: 16", "memory_mb: 16, labels: {draining: 'no'}"),
        ]),
    );
    apply(&sandbox, &approved).exits(3);
    sandbox.pool(&["destroy", "--auto-approve"]).exits(0);
}

#[test]
fn a_narrowed_run_approves_no_whole_one() {
    let sandbox = Sandbox::new();
    sandbox.write("pools.yaml", &file(&[pool("ci", 2, ", protect: true")]));
    sandbox.pool(&["apply", "pools.yaml", "--auto-approve"]).exits(0);
    let victim = sandbox.workers()[0].to_string();
    assert!(std::process::Command::new("kill").args(["-9", &victim]).status().unwrap().success());
    sandbox.write("pools.yaml", &file(&[pool("ci", 2, "")]));
    let json = sandbox.pool(&["plan", "pools.yaml", "--json"]).exits(0).json();
    let slot = json["resource_changes"].as_array().unwrap().iter();
    let slot =
        slot.filter(|one| one["change"]["actions"] == json!(["create"])).map(|one| &one["index"]);
    let target = format!("ci[{}]", slot.collect::<Vec<_>>().pop().unwrap());
    let narrowed = digest(&sandbox.pool(&["plan", "pools.yaml", "--target", &target]).exits(0));
    apply(&sandbox, &narrowed).exits(3);
    sandbox
        .pool(&["apply", "pools.yaml", "--target", &target, "--expect-digest", &narrowed])
        .exits(0);
}

/// Even one without workers, and one that was there before.
#[test]
fn a_pool_that_comes_or_goes_is_an_effect() {
    let sandbox = Sandbox::new();
    sandbox.write("pools.yaml", &file(&[pool("ci", 1, "")]));
    sandbox.pool(&["apply", "pools.yaml", "--auto-approve"]).exits(0);
    sandbox.write("pools.yaml", &file(&[pool("ci", 2, "")]));
    let approved = digest(&sandbox.pool(&["plan", "pools.yaml"]).exits(0));
    let with_empty = file(&[pool("ci", 2, ""), pool("empty", 0, "")]);
    sandbox.write("pools.yaml", &with_empty);
    apply(&sandbox, &approved).exits(3);
    sandbox.pool(&["apply", "pools.yaml", "--auto-approve"]).exits(0);
    // It goes, alone, and comes back.
    sandbox.write("pools.yaml", &file(&[pool("ci", 2, "")]));
    let goes = digest(&sandbox.pool(&["plan", "pools.yaml"]).exits(0));
    apply(&sandbox, &goes).exits(0);
    sandbox.write("pools.yaml", &with_empty);
    let comes = digest(&sandbox.pool(&["plan", "pools.yaml"]).exits(0));
    assert_ne!(comes, goes);
    apply(&sandbox, &comes).exits(0);
    sandbox.pool(&["destroy", "--auto-approve"]).exits(0);
}

#[test]
fn files_of_others_beside_the_state_stay() {
    let sandbox = Sandbox::new();
    sandbox.write("pools.yaml", &file(&[pool("ci", 1, "")]));
    sandbox.pool(&["--state", "state.db", "apply", "pools.yaml", "--auto-approve"]).exits(0);
    sandbox.write("pools.yaml", &file(&[pool("ci", 2, "")]));
    let old = "e1-00112233445566778899aabbccddeeff.json";
    for name in ["ci.plan", "e1-notes.json", old] {
        let path = sandbox.write(&format!("plans/{name}"), "{}");
        let long_ago = std::time::SystemTime::UNIX_EPOCH;
        std::fs::File::options().write(true).open(path).unwrap().set_modified(long_ago).unwrap();
    }
    sandbox.pool(&["--state", "state.db", "plan", "pools.yaml"]).exits(0);
    let left = |name: &str| sandbox.path().join("plans").join(name).exists();
    assert!(left("ci.plan") && left("e1-notes.json") && !left(old));
    sandbox.pool(&["--state", "state.db", "destroy", "--auto-approve"]).exits(0);
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
    // The same for a pool that was applied from one of them, when something else is planned.
    let more = format!("{provider}{}", pool("more", 1, ""));
    let empty = provider.replace("fixed_size: 1", "fixed_size: 0");
    sandbox.write("one/pools.yaml", &empty);
    sandbox
        .pool(&["-C", "one", "--state", &state, "apply", "pools.yaml", "--auto-approve"])
        .exits(0);
    let digests = ["one", "two"].map(|folder| {
        sandbox.write(
            &format!("{folder}/pools.yaml"),
            &more.replace(
                "fixed_size: 1, worker_config: {image: x",
                "fixed_size: 0, worker_config: {image: x",
            ),
        );
        digest(&sandbox.pool(&["-C", folder, "--state", &state, "plan", "pools.yaml"]).exits(0))
    });
    assert_eq!(digests[0], digests[1]);
    // A folder that is written down is part of what is asked for.
    let elsewhere = more.replace(
        "command: [./cloud.sh]",
        &format!("command: [./cloud.sh], directory: {}", sandbox.path().join("one").display()),
    );
    sandbox.write(
        "two/pools.yaml",
        &elsewhere.replace(
            "fixed_size: 1, worker_config: {image: x",
            "fixed_size: 0, worker_config: {image: x",
        ),
    );
    let other =
        digest(&sandbox.pool(&["-C", "two", "--state", &state, "plan", "pools.yaml"]).exits(0));
    assert_eq!(other, digests[0], "it is as recorded");
    std::fs::create_dir(sandbox.path().join("evil")).unwrap();
    std::fs::copy(sandbox.path().join("one/cloud.sh"), sandbox.path().join("evil/cloud.sh"))
        .unwrap();
    let evil = sandbox.read("two/pools.yaml").replace("/one}", "/evil}").replace("/one,", "/evil,");
    assert!(evil.contains("/evil"));
    sandbox.write("two/pools.yaml", &evil);
    let other =
        digest(&sandbox.pool(&["-C", "two", "--state", &state, "plan", "pools.yaml"]).exits(0));
    assert_ne!(other, digests[0]);
}
