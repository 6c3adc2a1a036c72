//! A server and `pool apply` beside it, and files that change under a server: jobs keep their workers.

use std::io::{BufRead as _, BufReader};

use serde_json::{Value, json};

use crate::sandbox::{Sandbox, pause, wait_until};
use crate::serve::{POOL, Server};

/// A pool that is applied and served.
pub(crate) fn served(yaml: &str) -> (Sandbox, Server) {
    let sandbox = Sandbox::new();
    sandbox.write("web.yaml", yaml);
    sandbox.pool(&["apply", "web.yaml", "--auto-approve"]).exits(0);
    let server = Server::start(&sandbox, &[]);
    (sandbox, server)
}

pub(crate) fn workers(server: &Server) -> Vec<Value> {
    server.get("/v1/workers")["workers"].as_array().unwrap().clone()
}

pub(crate) fn ready(server: &Server) -> Vec<String> {
    let all = workers(server);
    let ready = all.iter().filter(|worker| worker["phase"] == "ready");
    ready.map(|worker| worker["name"].as_str().unwrap().to_owned()).collect()
}

fn is_running(lease: &Value) -> bool {
    let pid = lease["worker"]["attributes"]["pid"].as_str().unwrap();
    // Nobody may have taken note of its end yet: a zombie runs no more.
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

pub(crate) fn kill_worker(server: &Server, name: &str) {
    let worker = workers(server).into_iter().find(|worker| worker["name"] == name).unwrap();
    let pid = worker["attributes"]["pid"].as_str().unwrap().parse().unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

pub(crate) fn release(server: &Server, lease: &Value) {
    let path = format!("/v1/leases/{}", lease["id"].as_str().unwrap());
    assert_eq!(server.call("DELETE", &path, &Value::Null).0, 204);
}

const NEW: &str = "infinity, '0']";

pub(crate) fn changed(yaml: &str) -> String {
    yaml.replace("infinity]", NEW)
}

#[test]
fn a_new_image_is_rolled_out_around_a_job_and_no_leased_worker_dies() {
    let (sandbox, server) = served(POOL);
    let lease = server.acquire("web");
    sandbox.write("web.yaml", &changed(POOL));
    let plan = sandbox.pool(&["plan", "web.yaml"]).exits(0).stdout;
    assert!(
        plan.contains("when the lease of web-0-1 has ended; waits for that at most 1h"),
        "{plan}"
    );
    let mut apply = sandbox.beside(&["apply", "web.yaml", "--auto-approve"]);
    // Those that nobody has are replaced first; the leased one waits, and is given to nobody else.
    wait_until("the others are new", || {
        let all = ready(&server);
        all.contains(&"web-1-2".into()) && all.contains(&"web-2-2".into())
    });
    let mut said = String::new();
    let errors = apply.0.as_mut().unwrap().stderr.as_mut().unwrap();
    BufReader::new(errors).read_line(&mut said).unwrap();
    assert!(said.contains("waiting for me, whose lease lasts until"), "{said}");
    wait_until("it is drained", || workers(&server)[0]["draining"] == true);
    assert!(is_running(&lease));
    assert!(apply.runs(), "the run waits for the job");
    let other = server.acquire("web");
    assert_eq!(other["generation"], 2, "new jobs get new workers: {other}");
    release(&server, &lease);
    apply.ends().exits(0);
    assert!(ready(&server).contains(&"web-0-2".into()), "{:?}", ready(&server));
    assert!(is_running(&other), "a job that came meanwhile keeps its new worker");
    sandbox.pool(&["plan", "web.yaml", "--detailed-exitcode"]).exits(0);
}

#[test]
fn a_run_that_waited_long_enough_says_who_has_what_and_the_server_goes_on() {
    let short = format!("{POOL}update: {{drain_timeout: 200ms}}\n");
    let (sandbox, server) = served(&short);
    let (first, second) = (server.acquire("web"), server.acquire("web"));
    sandbox.write("web.yaml", &changed(&short));
    let ran = sandbox.pool(&["apply", "web.yaml", "--auto-approve"]).exits(5);
    for name in ["web-0-1", "web-1-1"] {
        assert!(
            ran.stderr.contains(&format!("worker {name} is leased to me until")),
            "{}",
            ran.stderr
        );
    }
    assert!(is_running(&first) && is_running(&second));
    let drained = |name: &str| {
        let all = workers(&server);
        let worker = all.iter().find(|worker| worker["name"] == name).unwrap();
        worker["cordoned"] == true && worker["draining"] == true
    };
    assert!(drained("web-0-1") && drained("web-1-1"), "{:?}", workers(&server));
    // The pool is to be what was applied: the server replaces each when its job is done.
    release(&server, &first);
    wait_until("slot 0 is new", || ready(&server).contains(&"web-0-2".into()));
    assert!(is_running(&second));
    // Gone back to what the second one is: it stays, and can be leased again.
    sandbox.write("web.yaml", &short);
    let plan = sandbox.pool(&["plan", "web.yaml"]).exits(0).stdout;
    assert!(plan.contains("web[1].draining: true -> false"), "{plan}");
    assert!(!plan.contains("web[1] will be"), "{plan}");
    sandbox.pool(&["apply", "web.yaml", "--auto-approve"]).exits(0);
    release(&server, &second);
    let again = workers(&server);
    let kept = again.iter().find(|worker| worker["name"] == "web-1-1").unwrap();
    assert_eq!((&kept["cordoned"], &kept["phase"]), (&json!(false), &json!("ready")));
}

#[test]
fn what_breaks_while_a_run_waits_for_a_job_is_healed_meanwhile() {
    let (sandbox, server) = served(POOL);
    let lease = server.acquire("web");
    sandbox.write("web.yaml", &changed(POOL));
    let mut apply = sandbox.beside(&["apply", "web.yaml", "--auto-approve"]);
    wait_until("the others are new", || ready(&server).contains(&"web-2-2".into()));
    kill_worker(&server, "web-1-2");
    wait_until("it is replaced", || ready(&server).contains(&"web-1-3".into()));
    assert!(is_running(&lease));
    assert!(apply.runs(), "the run still waits for the job");
    release(&server, &lease);
    let said = apply.ends().exits(0).stdout;
    assert!(said.contains("Apply complete! Resources: 3 added, 0 changed, 3 destroyed."), "{said}");
    sandbox.pool(&["plan", "web.yaml", "--detailed-exitcode"]).exits(0);
}

#[test]
fn runs_that_are_repeated_bring_no_second_surge() {
    let short = format!("{POOL}update: {{drain_timeout: 200ms}}\n");
    let (sandbox, server) = served(&short);
    let leases = ["a", "b", "c"].map(|_| server.acquire("web"));
    sandbox.write("web.yaml", &changed(&short));
    for _ in 0..3 {
        sandbox.pool(&["apply", "web.yaml", "--auto-approve"]).exits(5);
        assert_eq!(workers(&server).len(), 4, "{:?}", workers(&server));
    }
    for lease in &leases {
        assert!(is_running(lease));
        release(&server, lease);
    }
    sandbox.pool(&["apply", "web.yaml", "--auto-approve"]).exits(0);
    wait_until("all are new", || ready(&server).len() == 3);
}

#[test]
fn a_run_that_waits_in_one_pool_holds_no_other_pool() {
    let sandbox = Sandbox::new();
    sandbox.write("both/web.yaml", POOL);
    sandbox.write("both/api.yaml", &POOL.replace("pool_id: web", "pool_id: api"));
    sandbox.pool(&["apply", "both", "--auto-approve"]).exits(0);
    let server = Server::start(&sandbox, &[]);
    let lease = server.acquire("web");
    sandbox.write("both/web.yaml", &changed(POOL));
    sandbox.write("both/api.yaml", &changed(&POOL.replace("pool_id: web", "pool_id: api")));
    let apply = sandbox.beside(&["apply", "both", "--auto-approve"]);
    wait_until("all others are new", || {
        let all = ready(&server);
        ["web-1-2", "web-2-2", "api-0-2", "api-1-2", "api-2-2"]
            .iter()
            .all(|name| all.contains(&(*name).to_owned()))
    });
    kill_worker(&server, "api-1-2");
    wait_until("it is healed", || ready(&server).contains(&"api-1-3".into()));
    assert!(is_running(&lease));
    release(&server, &lease);
    let said = apply.ends().exits(0).stdout;
    assert!(said.contains("Apply complete! Resources: 6 added, 0 changed, 6 destroyed."), "{said}");
}

#[test]
fn a_worker_that_was_reset_can_be_leased_at_once_and_nothing_is_left_on_it() {
    let one = POOL.replace("fixed_size: 3", "fixed_size: 1");
    // Without the event of its end, only a probe in an hour would find anything.
    let slow = "health_check: {interval: 1h, freshness: 2h}\nleases: {recycle: {reset: true}}\n";
    let (_sandbox, server) = served(&format!("{one}{slow}"));
    let first = server.acquire("web");
    pause(std::time::Duration::from_millis(700));
    release(&server, &first);
    let wait = json!({ "pool": "web", "holder": "me", "wait": "30s" });
    let (status, answer) = server.call("POST", "/v1/leases", &wait);
    assert_eq!(status, 201, "{answer}");
    let second = answer["leases"][0].clone();
    assert_eq!(second["worker"]["name"], first["worker"]["name"]);
    assert!(!is_running(&first), "{first} {second}");
    assert!(is_running(&second), "{first} {second}");
    let worker = &workers(&server)[0];
    assert_eq!((&worker["phase"], &worker["suspect"]), (&json!("ready"), &json!(false)));
    let told = server.get("/v1/workers/web-0-1").to_string();
    assert!(!told.contains("probe_failed"), "{told}");
    // Its end is heard of again.
    kill_worker(&server, "web-0-1");
    wait_until("it is lost", || workers(&server)[0]["phase"] == "lost");
}

#[test]
fn a_run_that_waits_ends_when_somebody_else_applies() {
    let (sandbox, server) = served(POOL);
    let lease = server.acquire("web");
    sandbox.write("web.yaml", &changed(POOL));
    let apply = sandbox.beside(&["apply", "web.yaml", "--auto-approve"]);
    wait_until("it waits", || {
        let all = workers(&server);
        all[0]["draining"] == true && ready(&server).contains(&"web-2-2".into())
    });
    // Whoever comes later wins, and need not wait for the other one's job.
    let bigger = POOL.replace("fixed_size: 3", "fixed_size: 4");
    sandbox.write("web.yaml", &bigger);
    sandbox.pool(&["apply", "web.yaml", "--auto-approve"]).exits(0);
    assert!(ready(&server).contains(&"web-0-1".into()), "it is wanted again");
    // It need not wait for the job to see that.
    let said = apply.ends().exits(5).stderr;
    let why = "somebody else applied to the pool web while this run waited (from web.yaml:2:1 at";
    assert!(said.contains(why), "{said}");
    assert!(said.contains("running this one again would undo theirs"), "{said}");
    assert!(!said.contains("run again to go on"), "{said}");
    release(&server, &lease);
    sandbox.pool(&["plan", "web.yaml", "--detailed-exitcode"]).exits(0);
}

#[test]
fn a_replacement_that_was_asked_for_waits_for_the_job_and_is_made_once() {
    // Without a surge the old worker goes first: meanwhile it looks like one that nothing is to happen to.
    let pool = format!("{POOL}update: {{max_surge: 0, max_unavailable: 1}}\n");
    let (sandbox, server) = served(&pool);
    let lease = server.acquire("web");
    let arguments = ["apply", "web.yaml", "--auto-approve", "--replace", "web[0]"];
    let apply = sandbox.beside(&arguments);
    wait_until("it is drained", || workers(&server)[0]["draining"] == true);
    // The server looks at the pool and heals it: what the run drained is not the server's to give away.
    kill_worker(&server, "web-1-1");
    wait_until("it is healed", || ready(&server).contains(&"web-1-2".into()));
    assert_eq!(workers(&server)[0]["draining"], true);
    assert!(is_running(&lease));
    release(&server, &lease);
    let said = apply.ends().exits(0).stdout;
    assert!(said.contains("Apply complete! Resources: 1 added, 0 changed, 1 destroyed."), "{said}");
    assert!(ready(&server).contains(&"web-0-2".into()), "{:?}", ready(&server));
    assert_eq!(workers(&server)[0]["cordoned"], false);
}

#[test]
fn scaling_in_spares_leased_workers_and_without_a_server_old_leases_end() {
    let (sandbox, server) = served(POOL);
    // The highest slot would go first, but for its job.
    for name in ["web-0-1", "web-1-1"] {
        server.call("POST", &format!("/v1/workers/{name}/cordon"), &Value::Null);
    }
    let lease = server.acquire("web");
    assert_eq!(lease["slot"], 2);
    sandbox.write("web.yaml", &POOL.replace("fixed_size: 3", "fixed_size: 1"));
    sandbox.pool(&["apply", "web.yaml", "--auto-approve"]).exits(0);
    assert_eq!(ready(&server), ["web-2-1"]);
    assert!(is_running(&lease));
    server.kill();
    // Nobody can renew it; a minute after its end nobody has it any more.
    let database = rusqlite::Connection::open(sandbox.path().join(".pool/state.db")).unwrap();
    database.execute("UPDATE lease SET expires_at = expires_at - 600000 - 59000", []).unwrap();
    sandbox.write(
        "web.yaml",
        &format!(
            "{}update: {{drain_timeout: 100ms}}\n",
            POOL.replace("fixed_size: 3", "fixed_size: 0")
        ),
    );
    sandbox.pool(&["apply", "web.yaml", "--auto-approve"]).exits(5);
    database.execute("UPDATE lease SET expires_at = expires_at - 60000", []).unwrap();
    let ran = sandbox.pool(&["apply", "web.yaml", "--auto-approve"]);
    let ran = if ran.code == Some(0) {
        ran
    } else {
        sandbox.pool(&["apply", "web.yaml", "--auto-approve"])
    };
    ran.exits(0);
    assert_eq!(sandbox.workers(), Vec::<i32>::new());
}

#[test]
fn files_that_change_are_applied_and_a_lease_lives_through_it() {
    let sandbox = Sandbox::new();
    sandbox.write("web.yaml", POOL);
    let server = Server::start(&sandbox, &["web.yaml"]);
    wait_until("the files were applied", || ready(&server).len() == 3);
    let lease = server.acquire("web");
    sandbox.write("web.yaml", &POOL.replace("fixed_size: 3", "fixed_size: 5"));
    wait_until("the pool grew", || ready(&server).len() == 5);
    assert_eq!(server.get(&format!("/v1/leases/{}", lease["id"].as_str().unwrap())), lease);
    // A file that is wrong changes nothing, and everybody who looks is told where.
    sandbox.write("web.yaml", &POOL.replace("fixed_size: 3", "fixed_size: many"));
    let error = || server.get("/v1/pools/web")["config_error"].clone();
    wait_until("it is refused", || error().as_str().is_some_and(|e| e.contains("web.yaml:4:13")));
    let verbose = server.get("/readyz?verbose");
    assert!(verbose["config_error"].as_str().unwrap().contains("web.yaml:4:13"), "{verbose}");
    let metrics = server.get("/metrics").as_str().unwrap().to_owned();
    assert!(metrics.contains("pool_config_reload_failures_total 1"), "{metrics}");
    assert!(metrics.contains("pool_config_refused 1"), "{metrics}");
    assert!(
        metrics.contains("pool_provider_calls_total{provider=\"local\",call=\"create\"} 5"),
        "{metrics}"
    );
    assert!(sandbox.read("serve.log").contains("web.yaml:4:13"));
    assert_eq!(server.get("/v1/pools/web")["fixed_size"], 5);
    assert_eq!(server.acquire("web")["slot"], 1, "service goes on");
    // Smaller again; the leased one stays whatever its slot is.
    sandbox.write("web.yaml", &POOL.replace("fixed_size: 3", "fixed_size: 2"));
    wait_until("the pool shrank", || ready(&server).len() == 2 && error() == Value::Null);
    assert!(is_running(&lease));
}

#[test]
fn a_folder_is_followed_pools_come_and_go_and_guards_hold() {
    let mut sandbox = Sandbox::new();
    sandbox.set("POOL__WEB__FIXED_SIZE", "1");
    sandbox.write("pools/web.yaml", POOL);
    let other = POOL.replace("pool_id: web", "pool_id: api");
    let server = Server::start(&sandbox, &["pools"]);
    // Not before the files were applied: whoever waits for it wants to lease.
    wait_until("it is ready", || server.call("GET", "/readyz", &Value::Null).0 == 200);
    assert_eq!(ready(&server), ["web-0-1"], "and the override holds");
    sandbox.write("pools/api.yaml", &format!("{other}protect: true\n"));
    wait_until("a pool came", || ready(&server).len() == 4);
    // A protected pool is not removed because its file is.
    let gone = sandbox.path().join("pools/api.yaml");
    std::fs::remove_file(&gone).unwrap();
    let error = || server.get("/readyz?verbose")["config_error"].clone();
    wait_until("it is refused", || error().as_str().is_some_and(|e| e.contains("protect")));
    assert_eq!(ready(&server).len(), 4);
    sandbox.write("pools/api.yaml", &other);
    wait_until("the protection is off", || {
        server.get("/v1/pools/api")["config"]["protect"] == false && error() == Value::Null
    });
    std::fs::remove_file(gone).unwrap();
    let status = || server.call("GET", "/v1/pools/api", &Value::Null).0;
    wait_until("the pool went", || ready(&server) == ["web-0-1"] && status() == 404);
    // A move into the folder is seen as well, and SIGHUP has everything read.
    sandbox.write("new.tmp", &other);
    std::fs::rename(sandbox.path().join("new.tmp"), sandbox.path().join("pools/api.yaml")).unwrap();
    server.signal("-HUP");
    wait_until("it is there", || ready(&server).len() == 4);
}

#[test]
fn a_pool_that_is_removed_under_a_job_goes_when_the_job_ends() {
    let sandbox = Sandbox::new();
    sandbox.write("pools/web.yaml", POOL);
    let other = POOL.replace("pool_id: web", "pool_id: api").replace("size: 3", "size: 1");
    sandbox.write("pools/api.yaml", &other);
    let server = Server::start(&sandbox, &["pools"]);
    wait_until("the files were applied", || ready(&server).len() == 4);
    let lease = server.acquire("web");
    std::fs::remove_file(sandbox.path().join("pools/web.yaml")).unwrap();
    wait_until("the others go", || sandbox.workers().len() == 2);
    let (status, answer) =
        server.call("POST", "/v1/leases", &json!({ "pool": "web", "holder": "late" }));
    assert_eq!(
        (status, &answer["code"]),
        (404, &json!("pool_not_found")),
        "nobody gets a new lease"
    );
    // Nobody brings the pool back while the job runs.
    server.call("POST", "/v1/workers/api-0-1/replace", &Value::Null);
    wait_until("the server looked again", || ready(&server).contains(&"api-0-2".into()));
    assert_eq!(sandbox.workers().len(), 2);
    assert!(is_running(&lease));
    release(&server, &lease);
    wait_until("it is gone", || server.call("GET", "/v1/pools/web", &Value::Null).0 == 404);
    assert_eq!(sandbox.workers().len(), 1);
    // A folder without any file is a mistake, not a wish.
    std::fs::remove_file(sandbox.path().join("pools/api.yaml")).unwrap();
    let error = || server.get("/readyz?verbose")["config_error"].clone();
    wait_until("it is refused", || error().is_string());
    assert_eq!(ready(&server), ["api-0-2"]);
}

#[test]
fn what_a_pipeline_applied_is_not_reverted() {
    let sandbox = Sandbox::new();
    sandbox.write("web.yaml", POOL);
    let server = Server::start(&sandbox, &["web.yaml"]);
    wait_until("the files were applied", || ready(&server).len() == 3);
    sandbox.write("pipeline.yaml", &POOL.replace("fixed_size: 3", "fixed_size: 4"));
    wait_until("the pipeline got the pool", || {
        sandbox.pool(&["apply", "pipeline.yaml", "--auto-approve"]).code == Some(0)
    });
    let error = |server: &Server| server.get("/readyz?verbose")["config_error"].clone();
    wait_until("it is told", || {
        error(&server)
            .as_str()
            .is_some_and(|e| e.contains("config_conflict") && e.contains("pipeline.yaml"))
    });
    assert_eq!(ready(&server).len(), 4);
    // Neither by a restart.
    server.kill();
    let server = Server::start(&sandbox, &["web.yaml"]);
    wait_until("it is told again", || {
        error(&server).as_str().is_some_and(|e| e.contains("config_conflict"))
    });
    assert_eq!(ready(&server).len(), 4);
    // A change of the file is somebody's will.
    sandbox.write("web.yaml", &POOL.replace("fixed_size: 3", "fixed_size: 2"));
    wait_until("it is applied", || ready(&server).len() == 2 && error(&server) == Value::Null);
}

#[test]
fn a_process_that_ends_is_replaced_though_nobody_probes_it_for_an_hour() {
    let sandbox = Sandbox::new();
    let rarely = format!("{POOL}health_check: {{interval: 1h, freshness: 2h}}\n");
    sandbox.write("web.yaml", &rarely);
    let server = Server::start(&sandbox, &["web.yaml"]);
    wait_until("the files were applied", || ready(&server).len() == 3);
    let lease = server.acquire("web");
    let kill = |name: &str| {
        let all = workers(&server);
        let worker = all.iter().find(|worker| worker["name"] == name).unwrap().clone();
        let pid = worker["attributes"]["pid"].as_str().unwrap().to_owned();
        assert!(std::process::Command::new("kill").args(["-9", &pid]).status().unwrap().success());
    };
    kill("web-1-1");
    wait_until("it is replaced", || ready(&server).contains(&"web-1-2".into()));
    assert!(is_running(&lease));
    // A leased worker that ends is told on its lease.
    kill("web-0-1");
    let path = format!("/v1/leases/{}", lease["id"].as_str().unwrap());
    wait_until("the lease tells", || server.get(&path)["trouble"].is_string());
    assert_eq!(server.get(&path)["ended_at"], Value::Null);
    release(&server, &lease);
    wait_until("it is replaced after all", || ready(&server).contains(&"web-0-2".into()));
}

#[test]
fn a_server_that_reconciles_nothing_changes_nothing() {
    let sandbox = Sandbox::new();
    sandbox.write("web.yaml", POOL);
    sandbox.pool(&["apply", "web.yaml", "--auto-approve"]).exits(0);
    let server = Server::start(&sandbox, &["web.yaml", "--reconcile", "off"]);
    let pid = workers(&server)[1]["attributes"]["pid"].as_str().unwrap().to_owned();
    assert!(std::process::Command::new("kill").args(["-9", &pid]).status().unwrap().success());
    wait_until("it is seen", || workers(&server)[1]["phase"] == "lost");
    let error = || server.get("/readyz?verbose")["config_error"].clone();
    assert_eq!(error(), Value::Null, "what was applied is what the files say");
    sandbox.write("web.yaml", &POOL.replace("fixed_size: 3", "fixed_size: 9"));
    wait_until("the change is told", || {
        error().as_str().is_some_and(|e| e.contains("--reconcile"))
    });
    assert_eq!((ready(&server).len(), sandbox.workers().len()), (2, 2));
    server.kill();
    sandbox.pool(&["serve", "--reconcile", "full"]).exits(1);
    sandbox.pool(&["serve", "-"]).exits(1);
}
