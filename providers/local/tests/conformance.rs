//! The local provider keeps the contract, with real processes.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::PathBuf;
use std::process::Command;

use pool_local::{LocalProvider, Settings};
use pool_provider::conformance::{self, Outcome, Subject};
use pool_provider::{
    CreateRequest, DeleteRequest, DeploymentId, Generation, ObservedStatus, Progress,
    ProviderError, ResetRequest, Slot, WorkerName, WorkerProvider, WorkerRef, WorkerSpec,
};

struct Local {
    root: tempfile::TempDir,
}

impl Local {
    fn new() -> Self {
        Self { root: tempfile::tempdir().unwrap() }
    }
}

impl Subject for Local {
    type Provider = LocalProvider;

    fn provider(&self) -> LocalProvider {
        let launcher = (PathBuf::from(env!("CARGO_BIN_EXE_pool-local-launch")), Vec::new());
        LocalProvider::new(Settings::new(self.root.path().to_owned(), launcher))
    }

    fn spec(&self) -> WorkerSpec {
        WorkerSpec {
            image: "/bin/sleep".into(),
            command: vec!["600".into()],
            cpu_cores: 1,
            memory_mb: 64,
            labels: [("os".to_owned(), "linux".to_owned())].into(),
            tags: vec!["ci".to_owned()],
            environment: [("STAGE".to_owned(), "test".to_owned())].into(),
            ..WorkerSpec::default()
        }
    }

    fn invalid_spec(&self) -> Option<WorkerSpec> {
        Some(WorkerSpec { image: "/no/such/program".into(), ..self.spec() })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keeps_every_rule_of_the_contract() {
    let subject = Local::new();
    let seed = u8::try_from(std::process::id() % 256).unwrap();
    for finding in conformance::run(&subject, [seed; 15], &mut |_| {}).await {
        assert!(!matches!(finding.outcome, Outcome::Broken(_)), "{finding}");
    }
}

const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

fn request(local: &Local, owner: &DeploymentId, script: &str) -> CreateRequest {
    CreateRequest {
        owner: owner.clone(),
        name: WorkerName::new("t".parse().unwrap(), Slot(0), Generation(1)),
        attempt: 1,
        passed_over: 0,
        operation: 1,
        token: "t".into(),
        spec: WorkerSpec {
            image: "/bin/sh".into(),
            command: vec!["-c".into(), script.into()],
            ..local.spec()
        },
        spec_hash: "v1:0".into(),
        progress: Progress::default(),
        timeout: PATIENCE,
    }
}

/// Processes that carry a marker in their environment, by `ps`: not by our own eyes.
fn processes_with(marker: &str) -> usize {
    let ps = Command::new("ps").args(["axe", "-o", "args"]).output().unwrap();
    String::from_utf8_lossy(&ps.stdout).lines().filter(|line| line.contains(marker)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_worker_started_is_no_worker_and_is_stopped_with_it() {
    let local = Local::new();
    let owner = DeploymentId::from_random([77; 16]);
    // One child in the worker's session, one in a session of its own, one that ignores SIGTERM.
    let script = "sleep 601 & setsid sleep 602 & (trap '' TERM; sleep 603) & wait";
    let mut create = request(&local, &owner, script);
    let marker = format!("MARK={}", std::process::id());
    create.spec.environment.insert("MARK".into(), std::process::id().to_string());
    let worker = local.provider().create(&create).await.unwrap();
    while processes_with(&marker) < 4 {
        tokio::task::yield_now().await;
    }
    let listed = local.provider().list(&owner, None).await.unwrap().workers;
    assert_eq!(listed.len(), 1, "descendants are not workers: {listed:?}");
    let reference = WorkerRef { owner, name: worker.name, provider_id: Some(worker.provider_id) };
    local.provider().delete(&DeleteRequest { worker: reference, attempt: 1 }).await.unwrap();
    assert_eq!(processes_with(&marker), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_claim_is_lost_is_found_by_its_tags() {
    let local = Local::new();
    let owner = DeploymentId::from_random([78; 16]);
    let worker = local.provider().create(&request(&local, &owner, "sleep 600")).await.unwrap();
    std::fs::remove_dir_all(local.root.path().join(owner.as_str())).unwrap();
    let listed = local.provider().list(&owner, None).await.unwrap().workers;
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].provider_id, worker.provider_id);
    let reference = WorkerRef { owner: owner.clone(), name: worker.name, provider_id: None };
    local.provider().delete(&DeleteRequest { worker: reference, attempt: 1 }).await.unwrap();
    assert_eq!(local.provider().list(&owner, None).await.unwrap().workers, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_of_another_pid_namespace_is_an_error_and_not_missing() {
    let local = Local::new();
    let owner = DeploymentId::from_random([79; 16]);
    let worker = local.provider().create(&request(&local, &owner, "sleep 600")).await.unwrap();
    let claim = local.root.path().join(owner.as_str()).join("t-0-1.1.claim");
    let text = std::fs::read_to_string(&claim).unwrap();
    let elsewhere = regexless_replace(&text, "\"pid_namespace\":\"", "pid:[1]");
    std::fs::write(&claim, elsewhere).unwrap();
    let listed = local.provider().list(&owner, None).await;
    let Err(ProviderError::Transient(why)) = listed else { panic!("{listed:?}") };
    assert!(why.contains("another PID namespace"), "{why}");
    std::fs::write(&claim, text).unwrap();
    let reference = WorkerRef { owner, name: worker.name, provider_id: Some(worker.provider_id) };
    local.provider().delete(&DeleteRequest { worker: reference, attempt: 1 }).await.unwrap();
}

/// Replaces the JSON string that follows `key`.
fn regexless_replace(text: &str, key: &str, value: &str) -> String {
    let start = text.find(key).unwrap() + key.len();
    let end = start + text[start..].find('"').unwrap();
    format!("{}{value}{}", &text[..start], &text[end..])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_workers_late_launcher_gives_up() {
    let local = Local::new();
    let owner = DeploymentId::from_random([80; 16]);
    let create = request(&local, &owner, "sleep 600");
    let reference =
        WorkerRef { owner: owner.clone(), name: create.name.clone(), provider_id: None };
    local.provider().delete(&DeleteRequest { worker: reference, attempt: 1 }).await.unwrap();
    assert!(local.provider().create(&create).await.is_err());
    assert_eq!(local.provider().list(&owner, None).await.unwrap().workers, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_in_the_workers_environment_and_in_no_argument_list() {
    let local = Local::new();
    let owner = DeploymentId::from_random([81; 16]);
    let mut create = request(&local, &owner, "echo \"$TOKEN\"; env | sort; sleep 600");
    create.spec.environment.insert("TOKEN".into(), "s3cret".into());
    let worker = local.provider().create(&create).await.unwrap();
    let log = local.root.path().join(owner.as_str()).join("t-0-1.log");
    let printed = loop {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        if text.contains("TOKEN=") {
            break text;
        }
        tokio::task::yield_now().await;
    };
    assert!(printed.starts_with("s3cret\n"), "{printed}");
    for name in
        ["POOL_DEPLOYMENT=", "POOL_ID=t", "POOL_WORKER=t-0-1", "POOL_SLOT=0", "LANG=C.UTF-8"]
    {
        assert!(printed.contains(name), "{name} in {printed}");
    }
    assert!(!printed.contains("CARGO"), "the base is clean: {printed}");
    let arguments = Command::new("ps").args(["ax", "-o", "args"]).output().unwrap();
    assert!(!String::from_utf8_lossy(&arguments.stdout).contains("s3cret"));
    let reference = WorkerRef { owner, name: worker.name, provider_id: Some(worker.provider_id) };
    local.provider().delete(&DeleteRequest { worker: reference, attempt: 1 }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_ends_what_a_job_left_and_starts_the_worker_anew() {
    let local = Local::new();
    let owner = DeploymentId::from_random([91; 16]);
    let script = "echo started; sleep 601 & setsid sleep 602 & wait";
    let mut create = request(&local, &owner, script);
    let marker = format!("MARK=reset-{}", std::process::id());
    create.spec.environment.insert("MARK".into(), format!("reset-{}", std::process::id()));
    let worker = local.provider().create(&create).await.unwrap();
    let until = async |count: usize| {
        while processes_with(&marker) != count {
            tokio::task::yield_now().await;
        }
    };
    until(3).await;
    // What a job leaves behind: a process in a session of its own, with the worker's environment.
    let left = Command::new("setsid")
        .args(["sleep", "604"])
        .envs([("POOL_DEPLOYMENT", owner.as_str()), ("POOL_WORKER", "t-0-1")])
        .envs([("POOL_ATTEMPT", "1".to_owned()), ("MARK", format!("reset-{}", std::process::id()))])
        .spawn();
    let mut left = left.unwrap();
    until(4).await;
    let reference = WorkerRef { owner: owner.clone(), name: worker.name, provider_id: None };
    let asked =
        ResetRequest { worker: reference.clone(), spec: create.spec.clone(), timeout: PATIENCE };
    let reset = local.provider().reset(&asked).await.unwrap();
    left.wait().unwrap();
    assert_eq!(reset.provider_id, worker.provider_id);
    assert_ne!(reset.attributes["pid"], worker.attributes["pid"], "another process");
    until(3).await;
    let log = local.root.path().join(owner.as_str()).join("t-0-1.log");
    assert_eq!(std::fs::read_to_string(log).unwrap(), "started\n", "a log of its own");
    local.provider().delete(&DeleteRequest { worker: reference, attempt: 1 }).await.unwrap();
    assert_eq!(processes_with(&marker), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_being_reset_is_listed_and_a_delete_takes_it_along() {
    let local = Local::new();
    let owner = DeploymentId::from_random([92; 16]);
    // It ignores SIGTERM: the reset waits for its grace.
    let create = request(&local, &owner, "trap '' TERM; while :; do sleep 0.05; done");
    let worker = local.provider().create(&create).await.unwrap();
    let reference = WorkerRef { owner: owner.clone(), name: worker.name, provider_id: None };
    let asked =
        ResetRequest { worker: reference.clone(), spec: create.spec.clone(), timeout: PATIENCE };
    let provider = local.provider();
    let resetting = tokio::spawn(async move { provider.reset(&asked).await });
    let file = local.root.path().join(owner.as_str()).join("t-0-1.1.reset");
    while !file.exists() {
        tokio::task::yield_now().await;
    }
    assert_eq!(local.provider().list(&owner, None).await.unwrap().workers.len(), 1);
    let delete = DeleteRequest { worker: reference, attempt: 1 };
    local.provider().delete(&delete).await.unwrap();
    let reset = resetting.await.unwrap();
    assert!(reset.is_err(), "it is deleted: {reset:?}");
    assert_eq!(local.provider().list(&owner, None).await.unwrap().workers, []);
    assert!(!file.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_reset_leaves_a_worker_alone_that_somebody_reset_since() {
    let local = Local::new();
    let owner = DeploymentId::from_random([93; 16]);
    let create = request(&local, &owner, "sleep 600");
    let worker = local.provider().create(&create).await.unwrap();
    let folder = local.root.path().join(owner.as_str());
    let lock = std::fs::File::create(folder.join("t-0-1.1.reset")).unwrap();
    lock.lock().unwrap();
    let reference = WorkerRef { owner: owner.clone(), name: worker.name, provider_id: None };
    let asked =
        ResetRequest { worker: reference.clone(), spec: create.spec.clone(), timeout: PATIENCE };
    let provider = local.provider();
    let late = tokio::spawn(async move { provider.reset(&asked).await });
    // It waits for the lock; the claim changes hands meanwhile.
    while processes_with("POOL_RESET=1 ") == 0 && processes_with("POOL_RESET=1") == 0 {
        tokio::task::yield_now().await;
    }
    let other = Command::new("sleep").arg("601").spawn().unwrap();
    let claim = folder.join("t-0-1.1.claim");
    let text = std::fs::read_to_string(&claim).unwrap();
    let pid = format!("\"pid\":{}", worker.attributes["pid"]);
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", other.id())).unwrap();
    let started = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().nth(19).unwrap();
    let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(text.contains(&pid), "{text}");
    value["pid"] = other.id().into();
    value["start_time"] = started.parse::<u64>().unwrap().into();
    std::fs::write(&claim, value.to_string()).unwrap();
    drop(lock);
    let reset = late.await.unwrap().unwrap();
    assert_eq!(
        reset.attributes["pid"],
        other.id().to_string(),
        "it is what somebody else made of it"
    );
    let mut other = other;
    assert!(other.try_wait().unwrap().is_none(), "it was not stopped");
    other.kill().unwrap();
    other.wait().unwrap();
    local.provider().delete(&DeleteRequest { worker: reference, attempt: 1 }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_process_has_ended_is_listed_for_as_long_as_somebody_resets_it() {
    let local = Local::new();
    let owner = DeploymentId::from_random([94; 16]);
    let worker = local.provider().create(&request(&local, &owner, "sleep 600")).await.unwrap();
    let pid = &worker.attributes["pid"];
    assert!(Command::new("kill").args(["-KILL", pid]).status().unwrap().success());
    let folder = local.root.path().join(owner.as_str());
    let lock = std::fs::File::create(folder.join("t-0-1.1.reset")).unwrap();
    lock.lock().unwrap();
    let list = async || local.provider().list(&owner, None).await.unwrap().workers;
    let stat = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    while !stat().is_empty() && !stat().contains(") Z ") {
        tokio::task::yield_now().await;
    }
    let listed = list().await;
    assert_eq!(listed.len(), 1, "it is on its way back");
    assert_eq!(listed[0].status, ObservedStatus::Starting);
    assert_eq!(listed[0].provider_id, worker.provider_id);
    drop(lock);
    assert_eq!(list().await, [], "nobody resets it any more");
}
