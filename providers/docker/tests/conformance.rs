//! The docker provider keeps the contract, with real engines: dockerd and podman.
//!
//! `POOL_TEST_DOCKER` and `POOL_TEST_PODMAN` say where they listen; they have the images `pool-test:1` (sleeps),
//! `pool-test:2` (the same, another image) and `pool-test:checked` (with a HEALTHCHECK). `./test.sh` starts both and
//! makes these tests mandatory; without an engine they say that they were not run.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pool_docker::{Config, DockerProvider, Pull, Settings};
use pool_provider::conformance::{self, Outcome, Subject};
use pool_provider::{
    CreateRequest, DeleteRequest, DeploymentId, Generation, Heard, HumanDuration, ProbeOutcome,
    Progress, ProviderError, ResetRequest, Slot, WorkerName, WorkerProvider, WorkerRef, WorkerSpec,
};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{sleep, timeout};

/// How long anything may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Debug, Clone)]
struct Engine {
    host: String,
    config: Config,
}

impl Engine {
    /// Returns the engine that `variable` names, or says that the test was not run.
    #[expect(clippy::disallowed_methods, reason = "where the engines are comes from outside")]
    fn at(variable: &str) -> Option<Self> {
        let Ok(host) = std::env::var(variable) else {
            assert!(std::env::var("POOL_TEST_ENGINES").is_err(), "{variable} is not set");
            // Not by a macro: the test runner would keep it to itself.
            let told = format!("NOT RUN: needs an engine; {variable} is not set\n");
            std::io::stderr().write_all(told.as_bytes()).unwrap();
            return None;
        };
        let config = Config {
            stop_grace: HumanDuration::from_secs(0),
            pull: Pull::Never,
            ..Config::default()
        };
        Some(Self { host, config })
    }

    /// Runs the engine's own client.
    fn client(&self, arguments: &[&str]) -> String {
        let ran =
            Command::new("docker").arg("-H").arg(&self.host).args(arguments).output().unwrap();
        assert!(ran.status.success(), "docker {arguments:?}: {ran:?}");
        String::from_utf8(ran.stdout).unwrap()
    }

    fn request(&self, owner: u8, script: &str) -> CreateRequest {
        CreateRequest {
            owner: DeploymentId::from_random([owner; 16]),
            name: WorkerName::new("t".parse().unwrap(), Slot(0), Generation(1)),
            attempt: 1,
            passed_over: 0,
            operation: 1,
            token: "t".into(),
            spec: WorkerSpec {
                command: vec!["/bin/sh".into(), "-c".into(), script.into()],
                ..self.spec()
            },
            spec_hash: "v1:0".into(),
            progress: Progress::default(),
            timeout: PATIENCE,
        }
    }

    async fn delete(&self, request: &CreateRequest) {
        let delete = DeleteRequest { worker: reference(request), attempt: request.attempt };
        self.provider().delete(&delete).await.unwrap();
        let owner = format!("label=pool.deployment={}", request.owner);
        assert_eq!(self.client(&["ps", "-aq", "--filter", &owner]), "", "something is left");
    }
}

fn reference(request: &CreateRequest) -> WorkerRef {
    let provider_id = format!("{}.{}", request.name.object_name(&request.owner), request.attempt);
    WorkerRef {
        owner: request.owner.clone(),
        name: request.name.clone(),
        provider_id: Some(provider_id),
    }
}

impl Subject for Engine {
    type Provider = DockerProvider;

    fn provider(&self) -> DockerProvider {
        let settings = Settings { name: "docker".into(), host: self.host.clone() };
        DockerProvider::new(self.config.clone(), settings)
    }

    fn spec(&self) -> WorkerSpec {
        WorkerSpec {
            image: "pool-test:1".into(),
            cpu_cores: 1,
            memory_mb: 32,
            labels: [("os".to_owned(), "linux".to_owned())].into(),
            tags: vec!["ci".to_owned()],
            environment: [("STAGE".to_owned(), "test".to_owned())].into(),
            ..WorkerSpec::default()
        }
    }

    fn invalid_spec(&self) -> Option<WorkerSpec> {
        Some(WorkerSpec { command: vec!["/no/such/program".into()], ..self.spec() })
    }
}

/// Makes each of these tests one for every engine.
macro_rules! on_both_engines {
    ($($test:ident),* $(,)?) => {
        mod on_dockerd { $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                if let Some(engine) = super::Engine::at("POOL_TEST_DOCKER") {
                    super::$test(engine).await;
                }
            }
        )* }
        mod on_podman { $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                if let Some(engine) = super::Engine::at("POOL_TEST_PODMAN") {
                    super::$test(engine).await;
                }
            }
        )* }
    };
}

on_both_engines! {
    keeps_every_rule_of_the_contract,
    a_container_is_what_the_spec_says,
    an_end_is_heard_at_once_with_its_reason,
    a_health_check_of_the_container_decides,
    a_container_that_ends_at_once_says_why_and_leaves_nothing,
    what_can_never_work_is_an_invalid_spec,
    ports_and_volumes_are_the_workers,
    a_name_that_somebody_else_has_is_left_alone,
    two_providers_of_one_deployment_list_their_own,
    a_reset_leaves_nothing_of_the_job,
    a_container_has_its_grace,
    all_workers_are_one_listing,
    one_stream_of_events_is_opened_and_stays,
    a_paused_container_can_be_deleted,
    a_reset_that_is_abandoned_anywhere_loses_no_worker,
}

async fn keeps_every_rule_of_the_contract(engine: Engine) {
    let seed = u8::try_from(std::process::id() % 256).unwrap();
    let mut kept = 0;
    for finding in conformance::run(&engine, [seed; 15], &mut |_| {}).await {
        assert!(!matches!(finding.outcome, Outcome::Broken(_)), "{finding}");
        kept += usize::from(finding.outcome == Outcome::Kept);
    }
    assert_eq!(kept, 16);
}

async fn a_container_is_what_the_spec_says(engine: Engine) {
    let mut request = engine.request(101, "sleep 600");
    request.spec.network = Some("none".into());
    let worker = engine.provider().create(&request).await.unwrap();
    assert!(worker.addresses.is_empty(), "{worker:?}");
    let inspected = engine.client(&["inspect", &worker.provider_id]);
    let found: serde_json::Value = serde_json::from_str(&inspected).unwrap();
    let (config, host) = (&found[0]["Config"], &found[0]["HostConfig"]);
    assert_eq!(host["Memory"], 32 * 1024 * 1024);
    // podman tells it as a quota of its period.
    let quota = host["CpuQuota"].as_f64().unwrap() / host["CpuPeriod"].as_f64().unwrap();
    assert!(host["NanoCpus"] == 1_000_000_000 || (quota - 1.0).abs() < 0.01, "{host}");
    assert_eq!(host["NetworkMode"], "none");
    let environment: BTreeSet<&str> =
        config["Env"].as_array().unwrap().iter().map(|entry| entry.as_str().unwrap()).collect();
    assert!(environment.contains("STAGE=test") && environment.contains("POOL_WORKER=t-0-1"));
    assert_eq!(config["Labels"]["os"], "linux", "labels are there for the engine's own tools");
    engine.delete(&request).await;
}

async fn an_end_is_heard_at_once_with_its_reason(engine: Engine) {
    let request = engine.request(102, "echo the $STAGE is over >&2; exec sleep 600");
    let provider = engine.provider();
    let worker = provider.create(&request).await.unwrap();
    let (watched, reference) = (provider.clone(), reference(&request));
    let watching = tokio::spawn(async move { watched.watch(&reference).await });
    // Whether the stream is open by now or not: the kill must not be missed.
    engine.client(&["kill", &worker.provider_id]);
    let heard = timeout(PATIENCE, watching).await.unwrap().unwrap();
    let Heard::Ended(why) = heard else { panic!("{heard:?}") };
    assert!(why.contains("exit code 137 (signal 9)"), "{why}");
    // What it said last, without values of its environment.
    assert!(why.ends_with("it said: the *** is over"), "{why}");
    assert!(provider.list(&request.owner, None).await.unwrap().workers.is_empty());
    engine.delete(&request).await;
}

async fn a_health_check_of_the_container_decides(engine: Engine) {
    let mut request = engine.request(103, "sleep 600");
    // Its HEALTHCHECK, every second: `test -e /tmp/well`.
    request.spec.image = "pool-test:checked".into();
    let provider = engine.provider();
    let worker = provider.create(&request).await.unwrap();
    let reference = reference(&request);
    let unhealthy = async {
        loop {
            match provider.probe(&reference).await.unwrap() {
                ProbeOutcome::Unhealthy(why) => return why,
                other => assert_ne!(other, ProbeOutcome::Healthy, "before its check passed"),
            }
        }
    };
    timeout(PATIENCE, unhealthy).await.unwrap();
    let (watched, watches) = (provider.clone(), reference.clone());
    let watching = tokio::spawn(async move { watched.watch(&watches).await });
    engine.client(&["exec", &worker.provider_id, "touch", "/tmp/well"]);
    let healthy = async {
        while provider.probe(&reference).await.unwrap() != ProbeOutcome::Healthy {
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(PATIENCE, healthy).await.unwrap();
    // podman runs no checks by itself here, so that nothing is there to be heard.
    if engine.host.ends_with("docker.sock") {
        let heard = timeout(PATIENCE, watching).await.unwrap().unwrap();
        assert!(matches!(&heard, Heard::Stirred(what) if what.contains("healthy")), "{heard:?}");
    }
    engine.delete(&request).await;
}

async fn a_container_that_ends_at_once_says_why_and_leaves_nothing(engine: Engine) {
    let request = engine.request(104, "echo no licence >&2; exit 3");
    // Whether it has ended when its create answers is a race; a repeat of the create knows.
    let provider = engine.provider();
    let ending = async {
        loop {
            match provider.create(&request).await {
                Ok(_) => sleep(Duration::from_millis(50)).await,
                Err(error) => return error,
            }
        }
    };
    let error = timeout(PATIENCE, ending).await.unwrap();
    let ProviderError::Transient(why) = error else { panic!("{error:?}") };
    assert!(why.contains("exit code 3") && why.contains("no licence"), "{why}");
    let owner = format!("label=pool.deployment={}", request.owner);
    assert_eq!(engine.client(&["ps", "-aq", "--filter", &owner]), "");
}

async fn what_can_never_work_is_an_invalid_spec(engine: Engine) {
    let good = engine.request(105, "sleep 600");
    let with = |edit: fn(&mut WorkerSpec)| {
        let mut request = good.clone();
        edit(&mut request.spec);
        request
    };
    let never = [
        ("no image", with(|spec| spec.image = "pool-test:nowhere".into())),
        ("no network", with(|spec| spec.network = Some("nowhere".into()))),
        ("no program", with(|spec| spec.command = vec!["/no/such".into()])),
        ("no such key", with(|spec| drop(spec.attributes.insert("port".into(), json!([]))))),
    ];
    for (what, request) in never {
        let error = engine.provider().create(&request).await.unwrap_err();
        assert!(matches!(error, ProviderError::InvalidSpec(_)), "{what}: {error:?}");
        let owner = format!("label=pool.deployment={}", request.owner);
        assert_eq!(engine.client(&["ps", "-aq", "--filter", &owner]), "", "{what}");
    }
}

async fn ports_and_volumes_are_the_workers(engine: Engine) {
    let mut request =
        engine.request(106, "echo $POOL_WORKER > /shared/w; httpd -f -p 8080 -h /shared");
    let shared = tempfile::tempdir().unwrap();
    let volume = format!("{}:/shared", shared.path().display());
    request.spec.attributes.insert("ports".into(), json!(["127.0.0.1:8080"]));
    request.spec.attributes.insert("volumes".into(), json!([volume]));
    let worker = engine.provider().create(&request).await.unwrap();
    let published = worker.attributes.get("port.8080/tcp").unwrap();
    assert!(published.starts_with("127.0.0.1:"), "{published}");
    let served = async {
        loop {
            for host in [published.clone(), format!("{}:8080", worker.addresses[0])] {
                let url = format!("http://{host}/w");
                let got = Command::new("wget").args(["-qO-", "-T", "2", &url]).output().unwrap();
                if got.stdout == b"t-0-1\n" {
                    return;
                }
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, served).await.unwrap();
    assert_eq!(std::fs::read_to_string(shared.path().join("w")).unwrap(), "t-0-1\n");
    engine.delete(&request).await;
}

async fn a_name_that_somebody_else_has_is_left_alone(engine: Engine) {
    let request = engine.request(107, "sleep 600");
    let name = reference(&request).provider_id.unwrap();
    engine.client(&["create", "--name", &name, "pool-test:1"]);
    let error = engine.provider().create(&request).await.unwrap_err();
    assert!(matches!(error, ProviderError::AlreadyExists(_)), "{error:?}");
    let delete = DeleteRequest { worker: reference(&request), attempt: 1 };
    engine.provider().delete(&delete).await.unwrap();
    engine.client(&["rm", &name]);
}

async fn two_providers_of_one_deployment_list_their_own(engine: Engine) {
    let request = engine.request(108, "sleep 600");
    let settings = Settings { name: "other".into(), host: engine.host.clone() };
    let other = DockerProvider::new(engine.config.clone(), settings);
    engine.provider().create(&request).await.unwrap();
    assert!(other.list(&request.owner, None).await.unwrap().workers.is_empty());
    let listed = engine.provider().list(&request.owner, None).await.unwrap();
    assert_eq!(listed.workers.len(), 1);
    engine.delete(&request).await;
}

async fn a_reset_leaves_nothing_of_the_job(engine: Engine) {
    let request = engine.request(109, "sleep 600");
    let provider = engine.provider();
    let before = provider.create(&request).await.unwrap();
    engine.client(&["exec", &before.provider_id, "touch", "/left-by-a-job"]);
    let reset =
        ResetRequest { worker: reference(&request), spec: request.spec.clone(), timeout: PATIENCE };
    let after = provider.reset(&reset).await.unwrap();
    assert_eq!(after.provider_id, before.provider_id);
    assert_ne!(after.attributes["container_id"], before.attributes["container_id"]);
    let files = engine.client(&["exec", &after.provider_id, "ls", "/"]);
    assert!(!files.contains("left-by-a-job"), "{files}");
    engine.delete(&request).await;
}

async fn a_container_has_its_grace(engine: Engine) {
    let config = Config { stop_grace: HumanDuration::from_secs(20), ..engine.config.clone() };
    let engine = Engine { config, ..engine };
    let script = "trap 'touch /shared/ended; exit 0' TERM; touch /shared/ready; \
                  while :; do sleep 0.1; done";
    let mut request = engine.request(110, script);
    let shared = tempfile::tempdir().unwrap();
    let volume = format!("{}:/shared", shared.path().display());
    request.spec.attributes.insert("volumes".into(), json!([volume]));
    engine.provider().create(&request).await.unwrap();
    let ready = async {
        while !shared.path().join("ready").exists() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, ready).await.unwrap();
    engine.delete(&request).await;
    assert!(shared.path().join("ended").exists(), "it was killed before it could end by itself");
}

/// Passes everything on to an engine, and notes what is asked: the first line of each request.
fn noting(engine: &Engine, folder: &tempfile::TempDir) -> (String, Arc<Mutex<Vec<String>>>) {
    let path = folder.path().join("counted.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let target = engine.host.strip_prefix("unix://").unwrap().to_owned();
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let notes = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (mut from_client, mut to_client) = client.into_split();
            let (mut from_engine, mut to_engine) =
                UnixStream::connect(&target).await.unwrap().into_split();
            let notes = Arc::clone(&notes);
            tokio::spawn(async move {
                let mut buffer = vec![0; 64 * 1024];
                while let Ok(read @ 1..) = from_client.read(&mut buffer).await {
                    let text = String::from_utf8_lossy(&buffer[..read]).into_owned();
                    let lines = text.lines().filter(|line| line.ends_with(" HTTP/1.1"));
                    notes.lock().unwrap().extend(lines.map(str::to_owned));
                    if to_engine.write_all(&buffer[..read]).await.is_err() {
                        break;
                    }
                }
            });
            tokio::spawn(async move { tokio::io::copy(&mut from_engine, &mut to_client).await });
        }
    });
    (format!("unix://{}", path.display()), asked)
}

async fn all_workers_are_one_listing(engine: Engine) {
    let request = engine.request(111, "sleep 600");
    let workers: Vec<CreateRequest> = (0..5)
        .map(|slot| {
            let name = WorkerName::new("t".parse().unwrap(), Slot(slot), Generation(1));
            CreateRequest { name, ..request.clone() }
        })
        .collect();
    for worker in &workers {
        engine.provider().create(worker).await.unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let (host, asked) = noting(&engine, &folder);
    let watched = Engine { host, ..engine.clone() };
    let provider = watched.provider();
    // The first call connects, and asks for versions.
    provider.list(&request.owner, None).await.unwrap();
    asked.lock().unwrap().clear();
    let listing = provider.list(&request.owner, None).await.unwrap();
    assert_eq!((listing.workers.len(), listing.next, listing.complete), (5, None, true));
    let asked = asked.lock().unwrap().clone();
    assert_eq!(asked.len(), 1, "one request, however many they are: {asked:?}");
    for worker in &workers[1..] {
        let delete = DeleteRequest { worker: reference(worker), attempt: 1 };
        engine.provider().delete(&delete).await.unwrap();
    }
    engine.delete(&request).await;
}

async fn one_stream_of_events_is_opened_and_stays(engine: Engine) {
    let request = engine.request(112, "sleep 600");
    engine.provider().create(&request).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (host, asked) = noting(&engine, &folder);
    let watched = Engine { host, ..engine.clone() };
    let provider = watched.provider();
    let watchers: Vec<_> = (0..3)
        .map(|_| {
            let (provider, worker) = (provider.clone(), reference(&request));
            tokio::spawn(async move { provider.watch(&worker).await })
        })
        .collect();
    // Longer than it takes to open a stream again that broke.
    sleep(Duration::from_secs(3)).await;
    let streams = |asked: &Mutex<Vec<String>>| {
        asked.lock().unwrap().iter().filter(|line| line.contains("/events?")).count()
    };
    assert_eq!(streams(&asked), 1, "{:?}", asked.lock().unwrap());
    engine.client(&["kill", &reference(&request).provider_id.unwrap()]);
    for watcher in watchers {
        let heard = timeout(PATIENCE, watcher).await.unwrap().unwrap();
        assert!(matches!(heard, Heard::Ended(_)), "{heard:?}");
    }
    assert_eq!(streams(&asked), 1, "it was heard by the stream");
    engine.delete(&request).await;
}

async fn a_paused_container_can_be_deleted(engine: Engine) {
    let request = engine.request(113, "sleep 600");
    let worker = engine.provider().create(&request).await.unwrap();
    engine.client(&["pause", &worker.provider_id]);
    let probed = engine.provider().probe(&reference(&request)).await.unwrap();
    assert_eq!(probed, ProbeOutcome::Unhealthy("its container is paused".into()));
    engine.delete(&request).await;
}

async fn a_reset_that_is_abandoned_anywhere_loses_no_worker(engine: Engine) {
    let request = engine.request(114, "sleep 600");
    let provider = engine.provider();
    provider.create(&request).await.unwrap();
    let reset =
        ResetRequest { worker: reference(&request), spec: request.spec.clone(), timeout: PATIENCE };
    for limit_ms in [20, 60, 120, 200, 300, 450, 700] {
        let _abandoned = timeout(Duration::from_millis(limit_ms), provider.reset(&reset)).await;
        // What the engine is still doing may hide it for a moment; it is there, and once.
        let listed = async {
            while provider.list(&request.owner, None).await.unwrap().workers.len() != 1 {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, listed).await.unwrap_or_else(|_| panic!("abandoned after {limit_ms} ms"));
    }
    let resetting = async {
        loop {
            match provider.reset(&reset).await {
                Ok(worker) => return worker,
                // The one before may still be at it.
                Err(error) => assert!(error.is_worth_a_retry(), "{error:?}"),
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    let worker = timeout(PATIENCE, resetting).await.unwrap();
    assert_eq!(provider.list(&request.owner, None).await.unwrap().workers, [worker]);
    engine.delete(&request).await;
}
