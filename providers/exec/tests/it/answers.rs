//! What executables answer, and what that comes to.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use pool_provider::{
    CreateRequest, DeleteRequest, ProbeOutcome, Progress, ProviderError, UpdateRequest,
    WorkerProvider as _, WorkerRef,
};
use serde_json::json;
use tokio::time::timeout;

use super::ground::{DESCRIBED, Ground, PATIENCE, created, name, owner, reference, request};

#[tokio::test]
async fn progress_is_told_and_the_answer_counts_whatever_the_exit_code() {
    let ground = Ground::new();
    let answer = created(&json!({ "attributes": { "zone": "a" } }));
    let script = format!(
        "echo '{{\"type\":\"progress\",\"message\":\"booting\"}}'\necho '{answer}'\nexit 3"
    );
    let provider = ground.script(&script).await;
    let told: Arc<Mutex<Vec<String>>> = Arc::default();
    let listener = Arc::clone(&told);
    let progress = Progress::to(move |what| listener.lock().unwrap().push(what.to_owned()));
    let worker = provider.create(&CreateRequest { progress, ..request() }).await.unwrap();
    assert_eq!(worker.provider_id, "i-1");
    assert_eq!(worker.addresses, ["10.0.0.1"]);
    assert_eq!(worker.attributes["zone"], "a");
    assert_eq!(*told.lock().unwrap(), ["booting"]);
}

#[tokio::test]
async fn a_last_line_needs_no_end() {
    let ground = Ground::new();
    let provider = ground.script(&format!("printf '%s' '{}'", created(&json!({})))).await;
    assert!(provider.create(&request()).await.is_ok());
}

#[tokio::test]
async fn every_error_has_its_name() {
    for (code, expected) in [
        ("not_found", ProviderError::NotFound("why".into())),
        ("already_exists", ProviderError::AlreadyExists("why".into())),
        (
            "out_of_capacity",
            ProviderError::OutOfCapacity { message: "why".into(), elsewhere: false },
        ),
        ("quota", ProviderError::Quota("why".into())),
        ("unauthenticated", ProviderError::Unauthenticated("why".into())),
        ("invalid_spec", ProviderError::InvalidSpec("why".into())),
        ("transient", ProviderError::Transient("why".into())),
        ("unknown_outcome", ProviderError::UnknownOutcome("why".into())),
        (
            "rate_limited",
            ProviderError::RateLimited {
                message: "why".into(),
                retry_after: Some(Duration::from_millis(1500)),
            },
        ),
    ] {
        let ground = Ground::new();
        let line = json!({
            "type": "error", "code": code, "message": "why", "retry_after_ms": 1500,
        });
        let provider = ground.script(&format!("echo '{line}'")).await;
        assert_eq!(provider.create(&request()).await.unwrap_err(), expected);
    }
}

/// What answers a create, and what the error says.
async fn refused(script: &str, expected: &[&str]) {
    let ground = Ground::new();
    let provider = ground.script(script).await;
    let error = provider.create(&request()).await.unwrap_err();
    assert!(error.is_unknown(), "it may have had its effect: {error}");
    for words in expected {
        assert!(error.to_string().contains(words), "{error} lacks {words}");
    }
    // A call that only looks changed nothing.
    let error = provider.list(&owner(), None).await.unwrap_err();
    assert!(matches!(error, ProviderError::Transient(_)), "{error}");
}

#[tokio::test]
async fn what_is_no_answer_leaves_a_creates_outcome_unknown() {
    let answer = created(&json!({}));
    refused("echo no >&2; exit 7", &["gave no answer to create", "exited with 7", ": no; its log"])
        .await;
    refused("kill -9 $$", &["signal 9 ended it"]).await;
    refused("echo '{\"type\":\"progress\",\"message\":\"m\"}'", &["exited with 0"]).await;
    refused(&format!("echo starting; echo '{answer}'"), &["\"starting\"", "standard error"]).await;
    refused("echo '{\"status\":\"ok\"}'", &["no line of the protocol", "no `type`"]).await;
    refused(&format!("echo '{answer}'; echo '{answer}'"), &["it answered twice"]).await;
    refused("echo '{\"type\":\"error\",\"code\":\"oops\",\"message\":\"m\"}'", &["oops"]).await;
    refused("head -c 70000000 /dev/zero | tr '\\0' 'x'", &["more than 64 MiB"]).await;
}

#[tokio::test]
async fn executables_are_not_trusted() {
    for (changes, expected) in [
        (json!({ "owner": "0".repeat(32) }), "has the owner 0000"),
        (json!({ "name": "ci-3-1" }), "it is about ci-3-1, not ci-3-2"),
        (json!({ "name": "nonsense" }), "name"),
        (json!({ "provider_id": "" }), "no provider_id"),
        (json!({ "attempt": 2 }), "attempt"),
        (json!({ "attempt": "1" }), "`attempt`: it is string \"1\", expected a whole number"),
        (json!({ "labels": [] }), "`labels`: it is a list, expected an object"),
        (json!({ "addresses": { "ip": 1 } }), "`addresses`"),
        (json!({ "spec_hash": "v1:other" }), "spec_hash"),
        (json!({ "status": "dead" }), "dead"),
    ] {
        refused(&format!("echo '{}'", created(&changes)), &[expected]).await;
    }
    // What others have is not shown, and not taken for a listing.
    let ground = Ground::new();
    let line = created(&json!({ "owner": "0".repeat(32) }));
    let worker = serde_json::from_str::<serde_json::Value>(&line).unwrap()["result"].clone();
    let listed = json!({ "type": "result", "result": { "workers": [worker], "complete": true } });
    let provider = ground.script(&format!("echo '{listed}'")).await;
    let error = provider.list(&owner(), None).await.unwrap_err();
    assert!(error.to_string().contains("its listing is wrong"), "{error}");
}

#[tokio::test]
async fn another_worker_of_the_same_name_is_not_the_one_that_is_asked_for() {
    let ground = Ground::new();
    let provider = ground.script(&format!("echo '{}'", created(&json!({})))).await;
    let worker = WorkerRef { provider_id: Some("i-0".into()), ..reference() };
    assert!(matches!(provider.get(&worker).await, Err(ProviderError::NotFound(_))));
    let update = UpdateRequest { worker, labels: [].into(), tags: Vec::new() };
    assert!(provider.update(&update).await.unwrap_err().is_unknown());
}

#[tokio::test]
async fn a_listing_that_goes_round_is_an_error() {
    let ground = Ground::new();
    // Each page leads to the other one.
    let described = DESCRIBED.replace('\n', "").replace(
        r#""methods":["get","update","probe","reset"],"in_place":["labels"]"#,
        r#""methods":[]"#,
    );
    let script = format!(
        "if [ $POOL_METHOD = describe ]; then echo '{described}'; exit; fi\nif grep -q '\"page\":\"a\"'; then next=b; else \
         next=a; fi\necho '{{\"type\":\"result\",\"result\":{{\"workers\":[],\"complete\":true,\"next\":\"'$next'\"}}}}'"
    );
    let path = ground.write("provider.sh", &script);
    let provider = ground.open(Ground::config(&["/bin/sh", path.to_str().unwrap()])).await.unwrap();
    let found = timeout(PATIENCE, provider.get(&reference())).await.unwrap();
    assert!(found.unwrap_err().to_string().contains("it never ends"));
}

#[tokio::test]
async fn without_get_and_probe_the_listing_tells() {
    let ground = Ground::new();
    let described = r#"{"type":"result","result":{"protocol_versions":[1],"worker_types":["vm"],"idempotency":"token","consistency":"strong"}}"#;
    let line = created(&json!({}));
    let worker = serde_json::from_str::<serde_json::Value>(&line).unwrap()["result"].clone();
    let listed = json!({ "type": "result", "result": { "workers": [worker], "complete": true } })
        .to_string();
    let partial = listed.replace("true", "false").replace("ci-3-2", "ci-4-1");
    ground.write("listing", &listed);
    let script = format!(
        "if [ $POOL_METHOD = describe ]; then echo '{described}'; else cat {}; fi",
        ground.path("listing").display()
    );
    let path = ground.write("provider.sh", &script);
    let provider = ground.open(Ground::config(&["/bin/sh", path.to_str().unwrap()])).await.unwrap();
    assert_eq!(provider.get(&reference()).await.unwrap().provider_id, "i-1");
    assert_eq!(provider.probe(&reference()).await.unwrap(), ProbeOutcome::Healthy);
    ground.write("listing", &listed.replace("running", "starting"));
    assert!(matches!(provider.probe(&reference()).await.unwrap(), ProbeOutcome::Unhealthy(_)));
    ground.write("listing", &listed.replace("ci-3-2", "ci-4-1"));
    assert!(matches!(provider.get(&reference()).await, Err(ProviderError::NotFound(_))));
    assert!(matches!(provider.probe(&reference()).await.unwrap(), ProbeOutcome::Gone(_)));
    // What cannot be seen is not gone.
    ground.write("listing", &partial);
    assert!(matches!(provider.get(&reference()).await, Err(ProviderError::Transient(_))));
}

#[tokio::test]
async fn what_each_method_is_asked_is_in_its_request() {
    let ground = Ground::new();
    let script = format!("cat >{}/$POOL_METHOD; exit 1", ground.folder.path().display());
    let provider = ground.script(&script).await;
    let asked =
        |method: &str| -> serde_json::Value { serde_json::from_str(&ground.read(method)).unwrap() };
    let _no_answer = provider.create(&request()).await;
    let create = asked("create");
    assert_eq!(create["protocol"], 1);
    assert_eq!(create["provider"], "racks");
    let deadline = create["deadline_ms"].as_u64().unwrap();
    assert!((50_000..60_000).contains(&deadline), "before its caller gives up: {deadline}");
    for (key, value) in [
        ("object_name", json!("ci-3-2-070707")),
        ("pool", json!("ci")),
        ("slot", json!(3)),
        ("generation", json!(2)),
        ("attempt", json!(1)),
        ("operation", json!(17)),
        ("token", json!("token")),
    ] {
        assert_eq!(create["params"][key], value);
    }
    assert_eq!(create["params"]["spec"]["environment"], json!({ "PLAIN": "in-the-open" }));
    assert_eq!(create["params"]["spec"]["secret_environment"], json!(["SECRET"]));
    let worker = WorkerRef { provider_id: Some("i-1".into()), ..reference() };
    let delete = DeleteRequest { worker: worker.clone(), attempt: 4 };
    assert!(provider.delete(&delete).await.unwrap_err().is_unknown());
    assert_eq!(asked("delete")["params"]["provider_id"], "i-1");
    assert_eq!(asked("delete")["params"]["attempt"], 4);
    let labels = [("os".to_owned(), "linux".to_owned())].into();
    let update = UpdateRequest { worker, labels, tags: vec!["t".into()] };
    assert!(provider.update(&update).await.unwrap_err().is_unknown());
    assert_eq!(asked("update")["params"]["labels"], json!({ "os": "linux" }));
    assert_eq!(asked("update")["params"]["name"], name().to_string());
}

#[tokio::test]
async fn the_handshake_says_what_is_wrong_before_anything_else_is_asked() {
    let ground = Ground::new();
    let open = async |script: &str| {
        let path = ground.write("provider.sh", script);
        let config = Ground::config(&["/bin/sh", path.to_str().unwrap()]);
        ground.open(config).await.unwrap_err().to_string()
    };
    let other = DESCRIBED.replace("[1]", "[2,3]").replace('\n', "");
    let error = open(&format!("echo '{other}'")).await;
    assert!(error.contains("versions [2, 3]") && error.contains("this is version 1"), "{error}");
    let error = open("echo '{\"type\":\"result\",\"result\":{}}'").await;
    assert!(error.contains("there is no `protocol_versions`"), "{error}");
    let error = open("echo 'I am a provider'").await;
    assert!(error.contains("it is no JSON"), "{error}");
    let missing = ground.open(Ground::config(&["/no/such/program"])).await.unwrap_err();
    assert!(missing.to_string().contains("/no/such/program is not there"), "{missing}");
    let plain = ground.write("plain.txt", "hello");
    let refused = ground.open(Ground::config(&[plain.to_str().unwrap()])).await.unwrap_err();
    assert!(refused.to_string().contains("it cannot be started"), "{refused}");
    assert!(refused.to_string().contains("make it so with: chmod +x"), "{refused}");
    let typo = DESCRIBED.replace("\"vm\"", "\"vms\"").replace('\n', "");
    let error = open(&format!("echo '{typo}'")).await;
    assert!(error.contains("has none of: process, container, vm, host"), "{error}");
    let later = DESCRIBED.replace("\"vm\"", "\"vm\",\"cluster\"").replace('\n', "");
    let path = ground.write("provider.sh", &format!("echo '{later}'"));
    assert!(ground.open(Ground::config(&["/bin/sh", path.to_str().unwrap()])).await.is_ok());
}
