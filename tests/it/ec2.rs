//! Instances from end to end: two regions in one run, what leases carry, what becomes of
//! full zones and of throttling. On moto, behind the proxy that checks signatures and makes faults; boto3 looks.
//!
//! `POOL_TEST_EC2` says where moto listens (`tests/engines.sh`); without it these tests say that they were not run.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::engines::not_run;
use crate::sandbox::{Sandbox, asked_for, pause, wait_until};
use crate::serve::Server;

/// moto knows these.
pub(crate) const IMAGES: [&str; 2] = ["ami-12c6146b", "ami-1e749f67"];

/// How long effects may take to show, as the providers of these tests are told.
pub(crate) const SETTLE: Duration = Duration::from_millis(500);

/// A proxy of its own in front of moto, for all regions.
pub(crate) struct Region {
    moto: String,
    pub(crate) url: String,
    proxy: Child,
    /// The proxy ends with it.
    _open: ChildStdin,
}

fn python() -> Command {
    Command::new(asked_for("POOL_TEST_PYTHON").unwrap())
}

fn script(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ec2").join(name)
}

impl Region {
    pub(crate) fn new() -> Option<Self> {
        let Some(moto) = asked_for("POOL_TEST_EC2") else {
            assert!(asked_for("POOL_TEST_ENGINES").is_none(), "POOL_TEST_EC2 is not set");
            not_run("an EC2; POOL_TEST_EC2 is not set");
            return None;
        };
        let mut proxy = python()
            .arg(script("proxy.py"))
            .arg(&moto)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut url = String::new();
        BufReader::new(proxy.stdout.take().unwrap()).read_line(&mut url).unwrap();
        let open = proxy.stdin.take().unwrap();
        Some(Self { moto, url: url.trim().to_owned(), proxy, _open: open })
    }

    /// Returns the settings of a provider.
    pub(crate) fn settings(&self, region: &str) -> String {
        format!("type: ec2, region: {region}, endpoint: '{}', settle: 500ms", self.url)
    }

    /// Returns what the environment says where a region and its credentials come from there.
    pub(crate) fn variables(&self, region: &str) -> [(&'static str, String); 4] {
        [
            ("AWS_REGION", region.to_owned()),
            ("AWS_ENDPOINT_URL_EC2", self.url.clone()),
            ("AWS_ACCESS_KEY_ID", "AKIAPOOLTESTS".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "pool-tests-secret".to_owned()),
        ]
    }

    /// Returns a folder whose commands have credentials in their environment, and nothing else.
    pub(crate) fn sandbox() -> Sandbox {
        let mut sandbox = Self::stranger();
        sandbox.set("AWS_ACCESS_KEY_ID", "AKIAPOOLTESTS");
        sandbox.set("AWS_SECRET_ACCESS_KEY", "pool-tests-secret");
        sandbox
    }

    /// Returns a folder whose commands have no credentials.
    pub(crate) fn stranger() -> Sandbox {
        let mut sandbox = Sandbox::new();
        let home = sandbox.path().display().to_string();
        sandbox.set("HOME", &home);
        sandbox.set("AWS_EC2_METADATA_DISABLED", "true");
        sandbox
    }

    /// Asks boto3, past the proxy.
    pub(crate) fn witness(&self, region: &str, arguments: &[&str]) -> Value {
        let mut witness = python();
        let ran = witness.arg(script("witness.py")).args([&self.moto, region]).args(arguments);
        let ran = ran.output().unwrap();
        assert!(ran.status.success(), "{ran:?}");
        serde_json::from_slice(&ran.stdout).unwrap_or(Value::Null)
    }

    /// Replaces the faults, and forgets the calls.
    pub(crate) fn faults(&self, faults: &Value) {
        let ran = Command::new("curl")
            .args(["-sf", "--data", &faults.to_string(), &format!("{}/-/faults", self.url)])
            .output()
            .unwrap();
        assert!(ran.status.success(), "{ran:?}");
    }

    /// Returns the parameters of the calls of an action.
    pub(crate) fn calls(&self, action: &str) -> Vec<Value> {
        let url = format!("{}/-/calls", self.url);
        let ran = Command::new("curl").args(["-sf", &url]).output().unwrap();
        let calls: Vec<Value> = serde_json::from_slice(&ran.stdout).unwrap();
        let of_action = calls.into_iter().filter(|call| call["action"] == action);
        of_action.map(|mut call| call["parameters"].take()).collect()
    }

    /// Returns the live instances of the state in `sandbox`.
    pub(crate) fn seen(&self, region: &str, sandbox: &Sandbox) -> Vec<Value> {
        let deployment = sandbox.deployment().unwrap();
        self.witness(region, &["list", &deployment]).as_array().unwrap().clone()
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        let _ended = self.proxy.kill().and_then(|()| self.proxy.wait());
    }
}

/// A pool of a provider called `aws`.
pub(crate) fn pool(size: u32, ec2: &str, rest: &str) -> String {
    format!(
        "pool_id: ci\nworker_type: vm\nprovider: aws\nfixed_size: {size}\nworker_config: {{image: {}, cpu_cores: 2, \
         memory_mb: 8192, labels: {{os: linux}}, ec2: {{{ec2}}}}}\nprovisioning: {{timeout: 60s}}\n{rest}",
        IMAGES[0]
    )
}

pub(crate) fn providers(region: &Region) -> String {
    format!("version: 1\nproviders: {{aws: {{{}}}}}\npools: []\n", region.settings("us-east-1"))
}

pub(crate) fn apply(sandbox: &Sandbox) -> crate::sandbox::Ran {
    sandbox.pool(&["apply", "aws.yaml", "ci.yaml", "--auto-approve"])
}

#[test]
fn a_lease_carries_where_and_what_its_instance_is() {
    let Some(region) = Region::new() else { return };
    let sandbox = Region::sandbox();
    sandbox.write("aws.yaml", &providers(&region));
    sandbox.write("ci.yaml", &pool(1, "instance_types: [c7i.xlarge]", ""));
    apply(&sandbox).exits(0);
    let seen = region.seen("us-east-1", &sandbox).remove(0);
    let server = Server::start(&sandbox, &[]);
    let lease = server.acquire("ci");
    let worker = &lease["worker"];
    assert_eq!(worker["addresses"], json!([seen["PrivateIpAddress"], seen["PublicIpAddress"]]));
    let attributes = &worker["attributes"];
    for (key, expected) in [
        ("instance_id", &seen["InstanceId"]),
        ("private_ip", &seen["PrivateIpAddress"]),
        ("public_ip", &seen["PublicIpAddress"]),
        ("zone", &seen["Zone"]),
        ("instance_type", &json!("c7i.xlarge")),
    ] {
        assert_eq!(attributes[key], *expected, "{key}: {lease}");
    }
    drop(server);
}

#[test]
fn two_regions_are_one_run() {
    let Some(region) = Region::new() else { return };
    let sandbox = Region::sandbox();
    let pools = |size: u32| {
        format!(
            "version: 1\nproviders:\n  ireland: {{{}}}\n  tokyo: {{{}}}\npools:\n{}{}",
            region.settings("eu-west-1"),
            region.settings("ap-northeast-1"),
            of_region("near", "ireland", size),
            of_region("far", "tokyo", size),
        )
    };
    let of = |place: &str| {
        let seen = region.seen(place, &sandbox);
        seen.into_iter().map(|one| one["Zone"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    sandbox.write("all.yaml", &pools(2));
    sandbox.pool(&["apply", "all.yaml", "--auto-approve"]).exits(0);
    for place in ["eu-west-1", "ap-northeast-1"] {
        let zones = of(place);
        assert_eq!(zones.len(), 2);
        assert!(zones.iter().all(|zone| zone.starts_with(place)), "{zones:?}");
    }
    sandbox.pool(&["plan", "all.yaml", "--detailed-exitcode"]).exits(0);
    // Another region is another provider: what is there would look gone.
    let moved = pools(2).replace("ap-northeast-1", "ap-northeast-2");
    sandbox.write("all.yaml", &moved);
    let refused = sandbox.pool(&["plan", "all.yaml"]).exits(1);
    assert!(refused.stderr.contains("of type ec2 in ap-northeast-1"), "{}", refused.stderr);
    sandbox.pool(&["destroy", "--auto-approve"]).exits(0);
    assert_eq!((of("eu-west-1").len(), of("ap-northeast-1").len()), (0, 0));
}

fn of_region(pool: &str, provider: &str, size: u32) -> String {
    format!(
        "- {{pool_id: {pool}, worker_type: vm, provider: {provider}, fixed_size: {size}, worker_config: {{image: {}, \
         cpu_cores: 1, memory_mb: 1024}}}}\n",
        IMAGES[0]
    )
}

#[test]
fn where_there_is_no_room_the_next_place_is_tried_at_once_and_attempts_are_not_used_up() {
    let Some(region) = Region::new() else { return };
    let sandbox = Region::sandbox();
    let network = region.witness("us-east-1", &["network"]);
    let subnets: Vec<String> = serde_json::from_value(network["subnets"].clone()).unwrap();
    sandbox.write("aws.yaml", &providers(&region));
    let own = format!(
        "instance_types: [m7i.large, m6i.large, m5.large], subnets: [{}]",
        subnets.join(", ")
    );
    let yaml = pool(1, &own, "").replace("timeout: 60s", "timeout: 60s, max_attempts: 1");
    sandbox.write("ci.yaml", &yaml);
    let last = format!("m5.large/{}", subnets[0]);
    region.faults(&json!({ "no_room": ["m7i.large", "m6i.large", last] }));
    let applied = apply(&sandbox).exits(0);
    let seen = region.seen("us-east-1", &sandbox);
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0]["InstanceType"], "m5.large");
    assert_eq!(seen[0]["SubnetId"], subnets[1].as_str());
    let tried: Vec<String> = region
        .calls("RunInstances")
        .iter()
        .map(|sent| format!("{}/{}", sent["InstanceType"], sent["SubnetId"]).replace('"', ""))
        .collect();
    let places = ["m7i.large", "m6i.large", "m5.large"];
    let expected: Vec<String> = places
        .iter()
        .flat_map(|kind| subnets.iter().map(move |subnet| format!("{kind}/{subnet}")))
        .collect();
    assert_eq!(tried, expected);
    assert!(applied.stderr.contains("InsufficientInstanceCapacity"), "{}", applied.stderr);

    // With all of them full the run says so, and the next one begins again with the first place.
    sandbox.write("ci.yaml", &yaml.replace("fixed_size: 1", "fixed_size: 2"));
    region.faults(&json!({ "no_room": places }));
    let full = apply(&sandbox).exits(5);
    assert!(full.stderr.contains("out of capacity: running a m5.large"), "{}", full.stderr);
    assert_eq!(region.calls("RunInstances").len(), 6);
    region.faults(&json!({}));
    apply(&sandbox).exits(0);
    let first = &region.calls("RunInstances")[0];
    assert_eq!(
        (&first["InstanceType"], &first["SubnetId"]),
        (&json!("m7i.large"), &json!(subnets[1]))
    );
    sandbox.pool(&["destroy", "--auto-approve"]).exits(0);
    assert!(region.seen("us-east-1", &sandbox).is_empty());
}

#[test]
fn throttling_uses_up_no_attempt() {
    let Some(region) = Region::new() else { return };
    let sandbox = Region::sandbox();
    sandbox.write("aws.yaml", &providers(&region));
    let yaml = pool(12, "", "").replace("timeout: 60s", "timeout: 60s, max_attempts: 1");
    sandbox.write("ci.yaml", &yaml);
    // A burst of two, and four a second.
    region.faults(&json!({ "bucket": { "RunInstances": [2, 4] } }));
    apply(&sandbox).exits(0);
    assert_eq!(region.seen("us-east-1", &sandbox).len(), 12);
    let calls = region.calls("RunInstances").len();
    assert!(calls > 12, "it was throttled");
    assert!(calls < 40, "{calls} calls for 12 instances: refusals slow it down");
    sandbox.pool(&["destroy", "--auto-approve"]).exits(0);
}

#[test]
fn lost_answers_and_full_zones_and_lateness_at_once_leave_each_worker_once() {
    let Some(region) = Region::new() else { return };
    let sandbox = Region::sandbox();
    sandbox.write("aws.yaml", &providers(&region));
    sandbox.write("ci.yaml", &pool(8, "instance_types: [m7i.large, m6i.large]", ""));
    region.faults(&json!({
        "lose": { "RunInstances": 3 }, "drop": { "RunInstances": 2 }, "no_room": ["m7i.large"], "late_ms": 200,
        "refuse": { "DescribeInstances": { "times": 1, "code": "RequestLimitExceeded" } },
    }));
    let mut runs = 0;
    while apply(&sandbox).code != Some(0) {
        runs += 1;
        assert!(runs < 5, "it never gets there");
    }
    let seen = region.seen("us-east-1", &sandbox);
    let mut workers: Vec<&str> =
        seen.iter().map(|one| one["Tags"]["pool.worker"].as_str().unwrap()).collect();
    workers.sort_unstable();
    workers.dedup();
    assert_eq!((seen.len(), workers.len()), (8, 8), "{seen:#?}");
    assert!(seen.iter().all(|one| one["InstanceType"] == "m6i.large"));
    sandbox.pool(&["destroy", "--auto-approve"]).exits(0);
    assert!(region.seen("us-east-1", &sandbox).is_empty());
}

#[test]
fn a_server_replaces_what_aws_takes_back_and_labels_change_in_place() {
    let Some(region) = Region::new() else { return };
    let sandbox = Region::sandbox();
    sandbox.write("aws.yaml", &providers(&region));
    let rest = "health_check: {interval: 1s, timeout: 1s}\nremediation: {backoff: 1s}\n";
    let yaml = pool(3, "market: spot", rest);
    sandbox.write("ci.yaml", &yaml);
    apply(&sandbox).exits(0);
    let before = region.seen("us-east-1", &sandbox);

    sandbox.write("ci.yaml", &yaml.replace("os: linux", "os: debian"));
    let changed = apply(&sandbox).exits(0);
    assert!(changed.stdout.contains("0 added, 3 changed, 0 destroyed"), "{}", changed.stdout);
    let after = region.seen("us-east-1", &sandbox);
    let ids = |seen: &[Value]| -> Vec<String> {
        let mut ids: Vec<_> = seen.iter().map(|one| one["InstanceId"].to_string()).collect();
        ids.sort();
        ids
    };
    assert_eq!(ids(&before), ids(&after));
    assert!(after.iter().all(|one| one["Tags"]["pool.label.os"] == "debian"));

    // Another type is another instance.
    sandbox.write("larger.yaml", &yaml.replace("market: spot", "instance_types: [m7i.xlarge]"));
    let planned = sandbox.pool(&["plan", "aws.yaml", "larger.yaml"]).exits(0);
    assert!(planned.stdout.contains("worker_config.ec2.instance_types"), "{}", planned.stdout);
    assert!(planned.stdout.contains("3 to add, 0 to change, 3 to destroy"), "{}", planned.stdout);

    let _server = Server::start(&sandbox, &[]);
    let taken = after[0]["InstanceId"].as_str().unwrap();
    drop(region.witness("us-east-1", &["terminate", taken]));
    wait_until("what AWS took is replaced", || {
        let seen = region.seen("us-east-1", &sandbox);
        seen.len() == 3 && !ids(&seen).contains(&format!("\"{taken}\""))
    });
}

#[test]
fn an_approval_holds_for_a_job_that_cannot_ask_whose_account_it_is() {
    let Some(region) = Region::new() else { return };
    let mut sandbox = Region::sandbox();
    sandbox.write("aws.yaml", &providers(&region));
    sandbox.write("ci.yaml", &pool(1, "", ""));
    let digest = |sandbox: &Sandbox| {
        let planned = sandbox.pool(&["plan", "aws.yaml", "ci.yaml", "--format", "json"]).exits(0);
        planned.json()["pool"]["effect_digest"].as_str().unwrap().to_owned()
    };
    let without = digest(&sandbox);
    sandbox.set("AWS_ENDPOINT_URL_STS", &region.url);
    assert_eq!(digest(&sandbox), without);
    let approved = ["apply", "aws.yaml", "ci.yaml", "--expect-digest", &without];
    sandbox.pool(&approved).exits(0);
    sandbox.pool(&["destroy", "--auto-approve"]).exits(0);
}

#[test]
fn another_account_is_another_place() {
    let Some(region) = Region::new() else { return };
    let mut sandbox = Region::sandbox();
    sandbox.set("AWS_ENDPOINT_URL_STS", &region.url);
    sandbox.write("aws.yaml", &providers(&region));
    sandbox.write("ci.yaml", &pool(2, "", ""));
    apply(&sandbox).exits(0);
    sandbox.pool(&["plan", "aws.yaml", "ci.yaml", "--detailed-exitcode"]).exits(0);
    // The same region, and the credentials of somebody else: everything would look gone.
    region.faults(&json!({ "account": "999999999999" }));
    let refused = apply(&sandbox).exits(1);
    let before = ", account 123456789012";
    assert!(refused.stderr.contains(before), "{}", refused.stderr);
    assert!(refused.stderr.contains("account 999999999999"), "{}", refused.stderr);
    // Once it is known, it has to be known.
    let silent = json!({ "GetCallerIdentity": { "times": 100, "code": "AccessDenied" } });
    region.faults(&json!({ "refuse": silent }));
    let refused = apply(&sandbox).exits(1);
    let untold = "its workers are in account 123456789012, and nobody can tell whether this is it";
    assert!(refused.stderr.contains(untold), "{}", refused.stderr);
    assert!(refused.stderr.contains("AccessDenied"), "{}", refused.stderr);
    assert!(region.calls("RunInstances").is_empty());
    // Nor is it believed where there is nobody to ask any more.
    region.faults(&json!({}));
    sandbox.set("AWS_ENDPOINT_URL_STS", "");
    for command in [["plan", "aws.yaml", "ci.yaml"].as_slice(), &["destroy", "--auto-approve"]] {
        let refused = sandbox.pool(command).exits(1);
        assert!(refused.stderr.contains(untold), "{}", refused.stderr);
        assert!(refused.stderr.contains("set AWS_ENDPOINT_URL_STS"), "{}", refused.stderr);
    }
    assert!(region.calls("DescribeInstances").is_empty());
    sandbox.set("AWS_ENDPOINT_URL_STS", &region.url);
    // Nor is what was saved carried out there: each instance would look gone.
    region.faults(&json!({}));
    sandbox.pool(&["plan", "aws.yaml", "ci.yaml", "--destroy", "--out", "saved"]).exits(0);
    region.faults(&json!({ "account": "999999999999" }));
    let refused = sandbox.pool(&["apply", "saved"]).exits(1);
    assert!(refused.stderr.contains("account 999999999999"), "{}", refused.stderr);
    assert!(region.calls("TerminateInstances").is_empty());
    assert_eq!(region.seen("us-east-1", &sandbox).len(), 2);
    // An STS that does not answer is waited for only where it has to say something.
    region.faults(&json!({ "latency_ms": { "GetCallerIdentity": 600_000 } }));
    let refused = sandbox.pool(&["apply", "saved"]).exits(5);
    assert!(refused.stderr.contains("STS did not answer within 5s"), "{}", refused.stderr);
    assert!(region.calls("TerminateInstances").is_empty());
    region.faults(&json!({}));
    sandbox.pool(&["destroy", "--auto-approve"]).exits(0);
    assert!(region.seen("us-east-1", &sandbox).is_empty());
}

#[test]
fn where_sts_never_answered_workers_come_all_the_same() {
    let Some(region) = Region::new() else { return };
    let mut sandbox = Region::sandbox();
    sandbox.set("AWS_ENDPOINT_URL_STS", &region.url);
    region.faults(&json!({ "latency_ms": { "GetCallerIdentity": 600_000 } }));
    sandbox.write("aws.yaml", &providers(&region));
    sandbox.write("ci.yaml", &pool(2, "", ""));
    let applied = sandbox.pool(&["apply", "aws.yaml", "ci.yaml", "--auto-approve", "-v"]).exits(0);
    assert!(
        applied.stderr.contains("it is not known whose AWS account this is"),
        "{}",
        applied.stderr
    );
    sandbox.pool(&["destroy", "--auto-approve"]).exits(0);
}

#[test]
fn a_worker_is_not_thrown_away_because_nobody_could_ask_whether_it_is_clean() {
    let Some(region) = Region::new() else { return };
    let sandbox = Region::sandbox();
    sandbox.write("aws.yaml", &providers(&region));
    sandbox
        .write("ci.yaml", &pool(1, "", "leases: {recycle: {command: ['true'], timeout: 60s}}\n"));
    apply(&sandbox).exits(0);
    let server = Server::start(&sandbox, &[]);
    let lease = server.acquire("ci");
    let instance = || region.seen("us-east-1", &sandbox).remove(0)["InstanceId"].clone();
    let leased = instance();
    let refuse = json!({ "times": 1000, "code": "RequestLimitExceeded" });
    region.faults(&json!({ "refuse": { "DescribeInstanceStatus": refuse } }));
    let id = lease["id"].as_str().unwrap();
    let (status, _) = server.call("DELETE", &format!("/v1/leases/{id}"), &Value::Null);
    assert!(status < 300, "{status}");
    // Three attempts would be over by then.
    pause(Duration::from_secs(5));
    region.faults(&json!({}));
    wait_until("it is clean", || {
        let told = sandbox.pool(&["status", "--json"]).exits(0).json();
        told["pools"][0]["ready"] == 1
    });
    assert_eq!(instance(), leased);
}

#[test]
fn the_address_that_is_asked_for_is_the_one_that_is_checked_although_it_comes_late() {
    let Some(region) = Region::new() else { return };
    let sandbox = Region::sandbox();
    let public = providers(&region).replace("settle:", "address: public, settle:");
    sandbox.write("aws.yaml", &public);
    let check = "health_check: {type: exec, command: [sh, -c, 'echo $POOL_ADDRESS >> checked']}\n";
    sandbox.write("ci.yaml", &pool(1, "", check));
    apply(&sandbox).exits(0);
    let seen = region.seen("us-east-1", &sandbox).remove(0);
    assert_eq!(sandbox.read("checked").trim(), seen["PublicIpAddress"].as_str().unwrap());
    let shown = sandbox.pool(&["state", "show", "ci[0]", "--json"]).exits(0).json();
    let expected = json!([seen["PublicIpAddress"], seen["PrivateIpAddress"]]);
    assert_eq!(shown["worker"]["addresses"], expected, "{shown}");
}

#[test]
fn the_conformance_suite_runs_from_the_command_line() {
    let Some(region) = Region::new() else { return };
    let sandbox = Region::sandbox();
    sandbox.write("aws.yaml", &providers(&region));
    sandbox.write("ci.yaml", &pool(1, "instance_types: [m7i.large]", ""));
    let tested = sandbox.pool(&["provider", "test", "aws", "aws.yaml", "ci.yaml"]).exits(0);
    assert!(!tested.stdout.contains("BROKEN"), "{}", tested.stdout);
    assert!(tested.stdout.contains("a repeated create gives one worker"), "{}", tested.stdout);
}
