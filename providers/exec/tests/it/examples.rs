//! The examples keep every rule of the contract, and say nothing that the published schema does not know.

use std::io::Write as _;
use std::process::{Command, Stdio};

use pool_exec::ExecProvider;
use pool_provider::conformance::{self, Outcome, Subject};
use pool_provider::{HumanDuration, WorkerProvider as _, WorkerSpec};
use serde_json::{Value, json};

use super::ground::{Ground, owner, reference, repository, request};

/// An executable, and what is added to its workers' environment.
pub(crate) struct Example(pub(crate) ExecProvider, pub(crate) Vec<(String, String)>);

impl Subject for Example {
    type Provider = ExecProvider;

    fn provider(&self) -> ExecProvider {
        self.0.clone()
    }

    fn spec(&self) -> WorkerSpec {
        WorkerSpec {
            image: "/bin/sleep".to_owned(),
            command: vec!["600".to_owned()],
            labels: [("os".to_owned(), "linux".to_owned())].into(),
            tags: vec!["ci".to_owned()],
            environment: self.1.iter().cloned().collect(),
            ..WorkerSpec::default()
        }
    }
}

/// Returns the example's path, or says that the test was not run.
fn example(file: &str, needs: &str) -> Option<String> {
    if Command::new(needs).arg("--version").output().is_ok_and(|ran| ran.status.success()) {
        let path = repository().join("examples/providers").join(file).canonicalize().unwrap();
        return Some(path.to_str().unwrap().to_owned());
    }
    #[expect(clippy::disallowed_methods, reason = "tests are told by it what must not be left out")]
    let is_required = std::env::var("POOL_TEST_ENGINES").is_ok();
    assert!(!is_required, "{needs} is not installed");
    let told = format!("NOT RUN: needs {needs}\n");
    std::io::stderr().write_all(told.as_bytes()).unwrap();
    None
}

async fn keeps_every_rule(path: &str, settings: &Value, kept: usize) {
    let ground = Ground::new();
    let mut config = Ground::config(&[path]);
    config.grace = HumanDuration::from_secs(0);
    config.config = settings.as_object().unwrap().clone();
    config.config.insert("folder".to_owned(), json!(ground.path("workers")));
    let subject = Example(ground.open(config).await.unwrap(), Vec::new());
    let mut found = 0;
    for finding in conformance::run(&subject, [9; 15], &mut |_| {}).await {
        assert!(!matches!(finding.outcome, Outcome::Broken(_)), "{finding}");
        found += usize::from(finding.outcome == Outcome::Kept);
    }
    assert_eq!(found, kept, "rules are left out");
}

#[tokio::test]
async fn the_shell_script_keeps_every_rule_of_the_contract() {
    if let Some(path) = example("processes.sh", "jq") {
        keeps_every_rule(&path, &json!({}), 14).await;
        let lines = std::fs::read_to_string(path).unwrap().lines().count();
        assert!(lines < 100, "{lines} lines");
    }
}

#[tokio::test]
async fn the_python_program_keeps_every_rule_of_the_contract() {
    if let Some(path) = example("processes.py", "python3") {
        keeps_every_rule(&path, &json!({ "page_size": 2 }), 17).await;
    }
}

fn schema() -> Value {
    let path = repository().join("schema/provider-protocol.schema.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[track_caller]
fn assert_valid(definition: &str, value: &Value) {
    let mut schema = schema();
    schema.as_object_mut().unwrap().remove("anyOf");
    schema["$ref"] = json!(format!("#/definitions/{definition}"));
    let validator = jsonschema::validator_for(&schema).unwrap();
    let errors: Vec<String> = validator.iter_errors(value).map(|e| e.to_string()).collect();
    assert!(errors.is_empty(), "{definition}: {errors:?} in {value}");
}

/// Runs an example by hand, as the published protocol says, without any of our own code.
fn call(ground: &Ground, path: &str, method: &str, params: &Value) -> Value {
    let config = json!({ "folder": ground.path("workers") });
    let secrets = ground.write("secrets", "{\"provider\": {}, \"worker\": {}}");
    let request = json!({
        "protocol": 1, "provider": "racks", "config": config, "deadline_ms": 30000,
        "method": method, "params": params,
    });
    assert_valid("Request", &request);
    // The shell gives it the secrets as its descriptor 3.
    let mut shell = Command::new("/bin/sh")
        .args(["-c", "exec \"$0\" 3<\"$1\"", path, secrets.to_str().unwrap()])
        .env("POOL_METHOD", method)
        .env("POOL_SECRETS_FD", "3")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    shell.stdin.take().unwrap().write_all(request.to_string().as_bytes()).unwrap();
    let ran = shell.wait_with_output().unwrap();
    let lines: Vec<Value> = String::from_utf8(ran.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    for line in &lines {
        assert_valid("Line", line);
    }
    lines.last().unwrap().clone()
}

#[tokio::test]
async fn what_is_said_and_answered_is_what_the_published_schema_knows() {
    // What we send, as an executable got it.
    let ground = Ground::new();
    let heard = ground.path("heard");
    let script = format!(
        "cat >>{0}; echo >>{0}; cat <&$POOL_SECRETS_FD >{0}.secrets; exit 1",
        heard.display()
    );
    let provider = ground.script(&script).await;
    let _no_answer = provider.create(&request()).await;
    let _no_answer = provider.list(&owner(), None).await;
    let _no_answer = provider.get(&reference()).await;
    let _no_answer = provider.probe(&reference()).await;
    let requests: Vec<Value> =
        ground.read("heard").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(requests.len(), 4);
    for request in &requests {
        assert_valid("Request", request);
    }
    let secrets = serde_json::from_str(&ground.read("heard.secrets")).unwrap();
    assert_valid("SecretValues", &secrets);
}

#[test]
fn examples_can_be_called_by_hand() {
    for (file, needs) in [("processes.sh", "jq"), ("processes.py", "python3")] {
        let Some(path) = example(file, needs) else { continue };
        let ground = Ground::new();
        let described = call(&ground, &path, "describe", &json!({}));
        assert_valid("Described", &described["result"]);
        let listed = call(&ground, &path, "list", &json!({ "owner": owner() }));
        assert_valid("Listed", &listed["result"]);
        assert_eq!(listed["result"]["workers"], json!([]));
    }
}
