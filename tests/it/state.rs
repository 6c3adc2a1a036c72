//! Everything that can be wrong with a state file is a clear error before any provider call.

use std::os::unix::fs::PermissionsExt as _;

use rusqlite::Connection;

use super::sandbox::{Sandbox, asked_for, wait_until};

const POOL: &str = "{pool_id: ci, worker_type: vm, provider: sim, fixed_size: 2, \
                    worker_config: {image: a, cpu_cores: 1, memory_mb: 1}}";

fn applied() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("ci.yaml", POOL);
    sandbox.pool(&["apply", "ci.yaml", "--auto-approve"]).exits(0);
    sandbox
}

fn database(sandbox: &Sandbox) -> Connection {
    Connection::open(sandbox.path().join(".pool/state.db")).unwrap()
}

/// How many calls the simulated cloud got so far.
fn calls(sandbox: &Sandbox) -> usize {
    std::fs::read_to_string(sandbox.path().join(".pool/sim/cloud.jsonl"))
        .map_or(0, |log| log.lines().count())
}

#[track_caller]
fn refused(sandbox: &Sandbox, message: &str) {
    let before = calls(sandbox);
    for arguments in [&["plan", "ci.yaml"][..], &["apply", "ci.yaml", "--auto-approve"]] {
        let ran = sandbox.pool(arguments).exits(1);
        assert!(ran.stderr.contains(message), "{}", ran.stderr);
        assert!(ran.stderr.contains("hint: "), "{}", ran.stderr);
    }
    assert_eq!(calls(sandbox), before, "a provider was called");
}

#[test]
fn the_state_is_private() {
    let sandbox = applied();
    let mode = |name: &str| {
        let path = sandbox.path().join(name);
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    };
    assert_eq!(mode(".pool"), 0o700);
    assert_eq!(mode(".pool/state.db"), 0o600);
}

#[test]
fn planning_leaves_no_state_behind() {
    let sandbox = Sandbox::new();
    sandbox.write("ci.yaml", POOL);
    sandbox.pool(&["plan", "ci.yaml"]).exits(0);
    assert!(!sandbox.path().join(".pool/state.db").exists());
    let required =
        sandbox.pool(&["apply", "ci.yaml", "--auto-approve", "--require-state"]).exits(1);
    assert!(required.stderr.contains("there is no state at .pool/state.db"), "{}", required.stderr);
    assert!(!sandbox.path().join(".pool/state.db").exists());
}

#[test]
fn a_damaged_state_is_refused() {
    let sandbox = applied();
    let path = sandbox.path().join(".pool/state.db");
    let mut bytes = std::fs::read(&path).unwrap();
    let length = bytes.len();
    bytes[4096..length / 2].fill(0xAA);
    std::fs::write(&path, bytes).unwrap();
    refused(&sandbox, "damaged");
}

#[test]
fn something_else_is_refused() {
    let sandbox = applied();
    sandbox
        .write(".pool/state.db", "this is a text, and quite a long one, not a database at all\n");
    refused(&sandbox, "is not a state of pool");
    let foreign = Sandbox::new();
    foreign.write("ci.yaml", POOL);
    std::fs::create_dir(foreign.path().join(".pool")).unwrap();
    database(&foreign).execute_batch("CREATE TABLE t (x)").unwrap();
    refused(&foreign, "is not a state of pool");
}

#[test]
fn a_newer_state_is_refused() {
    let sandbox = applied();
    database(&sandbox).pragma_update(None, "user_version", 99).unwrap();
    refused(&sandbox, "has schema version 99; this pool knows up to 4");
}

#[test]
fn a_state_whose_migration_is_not_ours_is_refused() {
    let sandbox = applied();
    let sql = "UPDATE meta SET value = CAST('x' AS BLOB) WHERE key = 'migration_1'";
    database(&sandbox).execute(sql, []).unwrap();
    refused(&sandbox, "schema version 1 is not the one that this pool makes");
}

#[test]
fn a_state_that_cannot_be_opened_is_refused() {
    let sandbox = Sandbox::new();
    sandbox.write("ci.yaml", POOL);
    sandbox.write(".pool", "a file where the folder should be");
    let ran = sandbox.pool(&["apply", "ci.yaml", "--auto-approve"]).exits(1);
    assert!(ran.stderr.contains("cannot open the state"), "{}", ran.stderr);
}

#[test]
fn a_state_that_may_not_be_seen_is_not_taken_for_none() {
    let sandbox = applied();
    let script = "chmod 711 . && mkdir -m 755 bin && cp $(command -v pool) bin/ && \
        if [ \"$(id -u)\" = 0 ]; then chmod 700 .pool && as='setpriv --reuid 65534 --clear-groups'; \
        else chmod 000 .pool; fi; \
        $as bin/pool plan ci.yaml; echo \"plan $?\"; $as bin/pool status; echo \"status $?\"; chmod 700 .pool";
    let ran = sandbox.shell(script);
    assert!(ran.stdout.contains("plan 1") && ran.stdout.contains("status 1"), "{ran:?}");
    let told =
        ran.stderr.matches("cannot open the state .pool/state.db: Permission denied").count();
    assert_eq!(told, 2, "{ran:?}");
}

/// Root may write read-only files, so this needs a read-only mount; a user gets there by `chmod`.
#[test]
fn a_read_only_state_is_refused_before_any_call() {
    let sandbox = applied();
    let script = "set -e; . /dev/null
        if [ \"$(id -u)\" = 0 ]; then
            unshare -m sh -c 'mount --bind .pool .pool && mount -o remount,bind,ro .pool && \
                pool apply ci.yaml --auto-approve'
        else
            chmod 500 .pool && chmod 400 .pool/state.db && pool apply ci.yaml --auto-approve
        fi";
    let before = calls(&sandbox);
    let ran = sandbox.shell(script);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let told = ran.stderr.contains("read-only") || ran.stderr.contains("cannot open the state");
    assert!(told, "{ran:?}");
    assert_eq!(calls(&sandbox), before);
    // A server that could grant nothing does not pretend to be one.
    let ran = sandbox.shell(&script.replace("apply ci.yaml --auto-approve", "serve --listen :0"));
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let told = ran.stderr.contains("read-only") || ran.stderr.contains("cannot open the state");
    assert!(told, "{ran:?}");
}

#[test]
fn a_full_disk_stops_the_run_before_the_next_call_and_loses_nothing() {
    let sandbox = applied();
    sandbox.write("ci.yaml", &POOL.replace("fixed_size: 2", "fixed_size: 400"));
    // A file system of its own, too small for 400 workers; only root can mount one.
    let script = "export POOL_SIM_DIR=$PWD/.pool/sim; unshare -m sh -c '
        mkdir small && mount -t tmpfs -o size=300k tmpfs small && cp .pool/state.db small/ || exit 77
        pool apply ci.yaml --auto-approve --state small/state.db; echo \"exit $?\"
        cp small/state.db* . 2>/dev/null; mv state.db* .pool/'";
    let ran = sandbox.shell(script);
    if ran.code == Some(77) || ran.stderr.contains("Operation not permitted") {
        assert!(asked_for("CI").is_none(), "this test must run there: {ran:?}");
        return;
    }
    assert!(ran.stdout.contains("exit 5"), "{ran:?}");
    assert!(ran.stderr.contains("no space is left to write the state"), "{ran:?}");
    assert!(ran.stderr.contains("hint: free some space"), "{ran:?}");
    // With room again, the next run goes on: nothing that exists is created twice.
    sandbox.pool(&["apply", "ci.yaml", "--auto-approve"]).exits(0);
    sandbox.pool(&["plan", "ci.yaml", "--detailed-exitcode"]).exits(0);
    let log = sandbox.read(".pool/sim/cloud.jsonl");
    let created = log.lines().filter(|line| line.contains("\"put\"")).count();
    assert_eq!(created, 400, "every worker was created once");
}

#[test]
fn a_plan_is_stale_only_when_its_own_pools_moved() {
    let sandbox = applied();
    let other = POOL.replace("pool_id: ci", "pool_id: other");
    sandbox
        .write("both.yaml", &format!("{}\n---\n{other}\n", POOL.replace("image: a", "image: b")));
    sandbox.pool(&["plan", "both.yaml", "--target", "ci", "--out", "ci.plan"]).exits(0);
    sandbox.pool(&["apply", "both.yaml", "--target", "other", "--auto-approve"]).exits(0);
    sandbox.pool(&["apply", "ci.plan"]).exits(0);
    let stale = sandbox.pool(&["apply", "ci.plan"]).exits(3);
    assert!(
        stale.stderr.contains("the pool ci has moved since the plan was made"),
        "{}",
        stale.stderr
    );
    assert!(stale.stderr.contains("its serial was"), "{}", stale.stderr);
    assert!(stale.stderr.contains("hint: make a new plan"), "{}", stale.stderr);
}

#[test]
fn a_plan_of_another_state_is_stale() {
    let (one, other) = (applied(), applied());
    one.write("ci.yaml", &POOL.replace("image: a", "image: b"));
    one.pool(&["plan", "ci.yaml", "--out", "plan"]).exits(0);
    other.write("plan", &one.read("plan"));
    let stale = other.pool(&["apply", "plan"]).exits(3);
    assert!(stale.stderr.contains("made for another state"), "{}", stale.stderr);
}

#[test]
fn a_plan_file_is_private_shown_without_state_and_checked() {
    let sandbox = applied();
    sandbox.write("ci.yaml", &POOL.replace("image: a", "image: b"));
    sandbox.write("saved", "an older file that everybody can read");
    sandbox.pool(&["plan", "ci.yaml", "-out", "saved"]).exits(0);
    let mode = std::fs::metadata(sandbox.path().join("saved")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let elsewhere = Sandbox::new();
    elsewhere.write("saved", &sandbox.read("saved"));
    let shown = elsewhere.pool(&["show", "saved"]).exits(0);
    assert!(shown.stdout.contains("\nPlan: 2 to add, 0 to change, 2 to destroy.\nEffects: e1-"));
    let json = elsewhere.pool(&["show", "saved", "--json"]).exits(0).json();
    assert_eq!(json["resource_changes"].as_array().unwrap().len(), 2);
    for (edit, message) in [
        (("\"format_version\": \"1.0\"", "\"format_version\": \"2.0\""), "has format 2.0"),
        (("\"provider\"", "\"provaider\""), "damaged"),
        (("\"wave\": 2", "\"wave\": 1"), "breaks its own promises"),
    ] {
        sandbox.write("edited", &sandbox.read("saved").replace(edit.0, edit.1));
        let ran = sandbox.pool(&["apply", "edited"]).exits(1);
        assert!(ran.stderr.contains(message), "{}", ran.stderr);
    }
    let nothing = sandbox.pool(&["show", "ci.yaml"]).exits(1);
    assert!(nothing.stderr.contains("is not a saved plan"));
}

#[test]
fn a_guard_is_evaluated_again_when_a_plan_file_is_applied() {
    let sandbox = applied();
    sandbox.write("ci.yaml", &POOL.replace("fixed_size: 2", "fixed_size: 0"));
    sandbox.pool(&["plan", "ci.yaml", "--out", "plan"]).exits(0);
    let sql = "UPDATE pool SET config = json_set(config, '$.protect', json('true'))";
    database(&sandbox).execute(sql, []).unwrap();
    // The plan's own config decides for a pool that the files name; one that they drop goes by the record.
    sandbox.pool(&["plan", "--destroy", "--out", "destroy"]).exits(6);
    let edited = sandbox.read("plan").replace("\"protect\": false", "\"protect\": true");
    sandbox.write("edited", &edited);
    let refused = sandbox.pool(&["apply", "edited"]).exits(6);
    assert!(refused.stderr.contains("the pool ci is protected"), "{}", refused.stderr);
}

/// The heartbeat of a process that cannot be looked at is what keeps its lock.
#[test]
fn a_lock_of_another_machine_expires_without_heartbeat() {
    let sandbox = applied();
    let database = database(&sandbox);
    let lock = |age_ms: i64| {
        let sql = "UPDATE lock SET heartbeat_at = unixepoch('subsec') * 1000 - ?1, holder =
            json_object('id', 'x', 'what', 'pool apply', 'machine_id', 'elsewhere', 'boot_id', 'b',
                        'pid_namespace', 'n', 'pid', 1, 'start_time', 1)";
        database.execute(sql, [age_ms]).unwrap();
    };
    sandbox.write("ci.yaml", &POOL.replace("image: a", "image: b"));
    let apply = ["apply", "ci.yaml", "--auto-approve", "--lock-timeout", "0s"];
    lock(1_000);
    sandbox.pool(&apply).exits(4);
    lock(16_000);
    sandbox.pool(&apply).exits(0);
}

#[test]
fn a_holder_that_was_taken_over_commits_nothing_more() {
    let sandbox = applied();
    std::fs::write(sandbox.path().join(".pool/sim/settings.json"), "{\"latency_ms\": 1500}")
        .unwrap();
    sandbox.write("ci.yaml", &POOL.replace("image: a", "image: b"));
    let first = sandbox.spawn(&["apply", "ci.yaml", "--auto-approve"]);
    let database = database(&sandbox);
    database.busy_timeout(std::time::Duration::from_secs(5)).unwrap();
    let open = "SELECT count(*) FROM operation WHERE state = 'intended'";
    wait_until("an operation is open", || {
        database.query_row(open, [], |row| row.get::<_, i64>(0)).unwrap() > 0
    });
    database.execute("UPDATE lock SET fence = fence + 1", []).unwrap();
    let output = first.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(5));
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(stderr.contains("was taken over by another process"), "{stderr}");
    sandbox.pool(&["apply", "ci.yaml", "--auto-approve"]).exits(0);
    sandbox.pool(&["plan", "ci.yaml", "--detailed-exitcode"]).exits(0);
}
