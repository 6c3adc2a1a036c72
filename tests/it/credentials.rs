//! AWS credentials: found where AWS's own tools find them, kept out of logs and states, and what becomes of workers when
//! they are no longer right. See `ec2.rs` for where these instances are.

use std::time::Duration;

use serde_json::{Value, json};

use crate::ec2::{Region, apply, pool, providers};
use crate::sandbox::{Sandbox, wait_until};
use crate::serve::Server;

#[test]
fn credentials_are_found_where_aws_own_tools_find_them() {
    let Some(region) = Region::new() else { return };
    let lists = |sandbox: &Sandbox, settings: &str| {
        let settings = format!("version: 1\nproviders: {{aws: {{{settings}}}}}\npools: []\n");
        sandbox.write("aws.yaml", &settings);
        sandbox.write("ci.yaml", &pool(1, "", ""));
        sandbox.pool(&["plan", "aws.yaml", "ci.yaml"])
    };
    let plain = region.settings("us-east-1");
    // None.
    let none = lists(&Region::stranger(), &plain).exits(1);
    assert!(none.stderr.contains("no AWS credentials"), "{}", none.stderr);

    // A profile that the settings name, although the environment has other credentials.
    let keys = "aws_access_key_id = AKIAPOOLTESTS\naws_secret_access_key = pool-tests-secret\n";
    let mut sandbox = Region::stranger();
    sandbox.write(".aws/credentials", &format!("[ci]\n{keys}"));
    lists(&sandbox, &plain).exits(1);
    sandbox.set("AWS_ACCESS_KEY_ID", "AKIANOBODY");
    sandbox.set("AWS_SECRET_ACCESS_KEY", "x");
    lists(&sandbox, &format!("{plain}, profile: ci")).exits(0);

    // A profile that the environment names, whose credentials a program tells.
    let mut sandbox = Region::stranger();
    let told = json!({ "Version": 1, "AccessKeyId": "AKIAPOOLTESTS", "SecretAccessKey": "pool-tests-secret" });
    let program = sandbox.write("keys.json", &told.to_string());
    let process = format!("[profile tool]\ncredential_process = cat {}\n", program.display());
    sandbox.write(".aws/config", &process);
    sandbox.set("AWS_PROFILE", "tool");
    lists(&sandbox, &plain).exits(0);

    // Web identity: a token in a file, for which STS gives credentials.
    let mut sandbox = Region::stranger();
    let token = sandbox.write("token", "a-token-of-the-pipeline");
    sandbox.set("AWS_WEB_IDENTITY_TOKEN_FILE", &token.display().to_string());
    sandbox.set("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/ci");
    sandbox.set("AWS_ENDPOINT_URL_STS", &region.url);
    region.faults(&json!({}));
    lists(&sandbox, &plain).exits(0);
    let asked = region.calls("AssumeRoleWithWebIdentity");
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0]["RoleArn"], "arn:aws:iam::123456789012:role/ci");

    // The role of the instance that this runs on.
    let mut sandbox = Region::stranger();
    sandbox.set("AWS_EC2_METADATA_DISABLED", "false");
    sandbox.set("AWS_EC2_METADATA_SERVICE_ENDPOINT", &region.url);
    let planned = lists(&sandbox, &plain).exits(0);
    assert!(planned.stdout.contains("1 to add"), "{}", planned.stdout);
    // Whatever is logged, the role's credentials are not.
    let told = sandbox.pool(&["plan", "aws.yaml", "ci.yaml", "-vvv"]).exits(0);
    let secrets = region.witness("us-east-1", &["secrets", &region.url]);
    for secret in secrets.as_array().unwrap() {
        assert!(!told.stderr.contains(secret.as_str().unwrap()), "in the log: {secret}");
    }
}

#[test]
fn no_credential_is_in_a_log_or_in_the_state() {
    let Some(region) = Region::new() else { return };
    let mut sandbox = Region::stranger();
    let token = sandbox.write("token", "a-token-of-the-pipeline");
    sandbox.set("AWS_WEB_IDENTITY_TOKEN_FILE", &token.display().to_string());
    sandbox.set("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/ci");
    sandbox.set("AWS_ENDPOINT_URL_STS", &region.url);
    sandbox.write("aws.yaml", &providers(&region));
    sandbox.write("ci.yaml", &pool(1, "", ""));
    let applied =
        sandbox.pool(&["apply", "aws.yaml", "ci.yaml", "--auto-approve", "-vvv"]).exits(0);
    assert!(applied.stderr.contains("RunInstances"), "{}", applied.stderr);
    let secrets = region.witness("us-east-1", &["secrets", &region.url]);
    assert!(!secrets.as_array().unwrap().is_empty());
    let state = std::fs::read(sandbox.path().join(".pool/state.db")).unwrap();
    for secret in secrets.as_array().unwrap() {
        let secret = secret.as_str().unwrap();
        assert!(!applied.stderr.contains(secret), "in the log: {secret}");
        assert!(!state.windows(secret.len()).any(|part| part == secret.as_bytes()), "{secret}");
    }
    assert!(!applied.stderr.contains("a-token-of-the-pipeline"));
    sandbox.pool(&["destroy", "--auto-approve"]).exits(0);
}

fn keys(key: &str) -> String {
    format!("[ci]\naws_access_key_id = {key}\naws_secret_access_key = pool-tests-secret\n")
}

/// Three workers that are asked for often and replaced at once, made with credentials of a file.
fn looked_after(sandbox: &mut Sandbox, region: &Region) {
    sandbox.write(".aws/credentials", &keys("AKIAPOOLTESTS"));
    sandbox.set("AWS_PROFILE", "ci");
    sandbox.write("aws.yaml", &providers(region));
    let rest = "health_check: {interval: 500ms, timeout: 500ms, unhealthy_threshold: 1}\nremediation: {backoff: 1s}\n";
    sandbox.write("ci.yaml", &pool(3, "", rest));
    apply(sandbox).exits(0);
}

#[test]
fn a_server_has_nothing_to_do_with_what_is_of_another_account_by_now() {
    let Some(region) = Region::new() else { return };
    let mut sandbox = Region::stranger();
    sandbox.set("AWS_ENDPOINT_URL_STS", &region.url);
    looked_after(&mut sandbox, &region);
    let server = Server::start(&sandbox, &[]);
    let verify = || server.call("POST", "/v1/workers/ci-0-1/verify", &Value::Null).1;
    wait_until("the worker is well", || verify()["healthy"] == true);
    // What is refused is read anew.
    sandbox.write(".aws/credentials", &keys("AKIAPOOLOTHER"));
    let outdated = json!({ "times": 1, "code": "ExpiredToken" });
    let once = json!({ "DescribeInstanceStatus": outdated });
    let told = || sandbox.read("serve.log").contains("are of account 999999999999 by now");
    wait_until("it is another account", || {
        region.faults(&json!({ "account": "999999999999", "refuse": once }));
        crate::sandbox::pause(Duration::from_millis(500));
        told()
    });
    region.faults(&json!({ "account": "999999999999" }));
    assert_eq!(verify()["healthy"], false);
    crate::sandbox::pause(Duration::from_secs(3));
    for action in ["DescribeInstances", "RunInstances", "TerminateInstances"] {
        assert!(region.calls(action).is_empty(), "{action}");
    }
    let status = sandbox.pool(&["status", "--json"]).exits(0).json();
    assert_eq!(status["pools"][0]["ready"], 3, "{status}");

    sandbox.write(".aws/credentials", &keys("AKIAPOOLTESTS"));
    region.faults(&json!({}));
    wait_until("the worker is well again", || verify()["healthy"] == true);
}

#[test]
fn a_server_that_began_with_the_credentials_of_another_account_finds_its_workers_when_they_are_mended()
 {
    let Some(region) = Region::new() else { return };
    let mut sandbox = Region::stranger();
    sandbox.set("AWS_ENDPOINT_URL_STS", &region.url);
    looked_after(&mut sandbox, &region);
    region.faults(&json!({ "account": "999999999999" }));
    sandbox.write(".aws/credentials", &keys("AKIAPOOLOTHER"));
    let server = Server::start(&sandbox, &[]);
    let is_well =
        || server.call("POST", "/v1/workers/ci-0-1/verify", &Value::Null).1["healthy"] == true;
    crate::sandbox::pause(Duration::from_secs(3));
    // There it has nothing to look for.
    for action in ["DescribeInstanceStatus", "RunInstances", "TerminateInstances"] {
        assert!(region.calls(action).is_empty(), "{action}");
    }
    sandbox.write(".aws/credentials", &keys("AKIAPOOLTESTS"));
    region.faults(&json!({}));
    wait_until("the server lists them", || {
        let listed = region.calls("DescribeInstances");
        !listed.is_empty() && is_well()
    });
    let status = sandbox.pool(&["status", "--json"]).exits(0).json();
    assert_eq!(status["pools"][0]["ready"], 3, "{status}");
}

#[test]
fn workers_are_not_unhealthy_because_nobody_may_ask() {
    let Some(region) = Region::new() else { return };
    let mut sandbox = Region::stranger();
    looked_after(&mut sandbox, &region);
    let ids = || {
        let seen = region.seen("us-east-1", &sandbox);
        seen.into_iter().map(|one| one["InstanceId"].to_string()).collect::<Vec<_>>()
    };
    let before = ids();

    // Keys that are wrong by now, and then too many calls.
    sandbox.write(".aws/credentials", &keys("AKIANOBODY"));
    let server = Server::start(&sandbox, &[]);
    let log = || sandbox.read("serve.log");
    wait_until("nobody may ask", || log().contains("a worker could not be asked for"));
    let verify = || server.call("POST", "/v1/workers/ci-0-1/verify", &Value::Null).1;
    assert_eq!(verify()["healthy"], false);
    // They are read anew.
    sandbox.write(".aws/credentials", &keys("AKIAPOOLTESTS"));
    wait_until("the worker is well", || verify()["healthy"] == true);
    // No answer is none of the workers', either: neither a late one nor one that is lost.
    region.faults(&json!({ "latency_ms": { "DescribeInstanceStatus": 600_000 } }));
    wait_until("a call hangs", || log().contains("no answer within 500ms"));
    crate::sandbox::pause(Duration::from_secs(3));
    region.faults(&json!({}));
    wait_until("all were asked for", || region.calls("DescribeInstanceStatus").len() > 5);
    region.faults(&json!({ "lose": { "DescribeInstanceStatus": 1000 } }));
    wait_until("nobody answers", || log().contains("no answer of"));
    crate::sandbox::pause(Duration::from_secs(3));
    region.faults(&json!({}));
    wait_until("all were asked for", || region.calls("DescribeInstanceStatus").len() > 5);
    let refuse = json!({ "times": 1000, "code": "RequestLimitExceeded" });
    region.faults(&json!({ "refuse": { "DescribeInstanceStatus": refuse } }));
    wait_until("there are too many calls", || log().contains("rate limited"));
    crate::sandbox::pause(Duration::from_secs(3));
    assert!(region.calls("RunInstances").is_empty());
    assert_eq!(ids(), before);
    let status = sandbox.pool(&["status", "--json"]).exits(0).json();
    assert_eq!(status["pools"][0]["ready"], 3, "{status}");
}
