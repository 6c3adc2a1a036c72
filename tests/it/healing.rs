//! What a server does when workers break: what is found, what is replaced, and what is left alone.

use std::path::Path;
use std::time::Duration;

use pool::state::EventFilter;
use pool_sim::{Call, CallFaults, Settings};
use serde_json::{Value, json};

use crate::api::{Api, POOL, id};

/// Every worker is well for as long as there is a file of its name in `folder`.
fn checked_by_files(folder: &Path, size: u32) -> String {
    for slot in 0..size {
        for generation in 1..5 {
            well(folder, slot, generation);
        }
    }
    let folder = folder.display();
    format!(
        "
pool_id: ci
worker_type: vm
provider: sim
fixed_size: {size}
worker_config: {{image: a, cpu_cores: 1, memory_mb: 1}}
health_check:
  type: exec
  command: [/bin/sh, -c, 'test -e {folder}/$POOL_WORKER']
  interval: 250ms
  timeout: 250ms
  unhealthy_threshold: 3
"
    )
}

fn well(folder: &Path, slot: u32, generation: u32) {
    std::fs::write(folder.join(format!("ci-{slot}-{generation}")), "").unwrap();
}

fn ill(folder: &Path, slot: u32, generation: u32) {
    std::fs::remove_file(folder.join(format!("ci-{slot}-{generation}"))).unwrap();
}

impl Api {
    /// Waits until the workers of the pool are as `condition` wants them.
    async fn until(&self, what: &str, condition: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        for _ in 0..2000 {
            let body = self.get("/v1/workers").await.body;
            let workers = body["workers"].as_array().unwrap().clone();
            if condition(&workers) {
                return workers;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let workers = self.get("/v1/workers").await.body;
        panic!("waited in vain until {what}: {workers:#}\n{:#}", self.get("/v1/pools").await.body);
    }

    /// Waits for an event.
    async fn told(&self, kind: &str) {
        for _ in 0..2000 {
            if !self.events(kind).await.is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("waited in vain for {kind}");
    }

    async fn events(&self, kind: &str) -> Vec<String> {
        let events = self.store.events(EventFilter::default()).await.unwrap();
        events.into_iter().filter(|event| event.kind == kind).map(|event| event.why).collect()
    }
}

fn named<'w>(workers: &'w [Value], name: &str) -> Option<&'w Value> {
    workers.iter().find(|worker| worker["name"] == name)
}

fn is(workers: &[Value], name: &str, phase: &str) -> bool {
    named(workers, name).is_some_and(|worker| worker["phase"] == phase)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_vanishes_is_replaced_and_leases_of_others_live() {
    let folder = tempfile::tempdir().unwrap();
    let api = Api::new(&checked_by_files(folder.path(), 5)).await;
    api.keeper.begin();
    let lease = api.lease().await;
    let victim =
        api.world.cloud.workers().into_iter().find(|w| w.observed.name.slot.0 == 1).unwrap();
    ill(folder.path(), 1, 1);
    api.world.cloud.kill(&victim.observed.provider_id).unwrap();
    api.until("slot 1 has a new worker", |workers| is(workers, "ci-1-2", "ready")).await;
    let told = api.get(&format!("/v1/leases/{}", id(&lease))).await.body;
    assert_eq!((&told["ended_at"], &told["trouble"]), (&Value::Null, &Value::Null));
    assert_eq!(api.world.cloud.workers().len(), 5);
    let lines = [
        "pool_replacements_total{pool=\"ci\",reason=\"create_because_missing\"} 1",
        "pool_provisioning_attempts_total{pool=\"ci\"} 1",
        "pool_provisioning_successes_total{pool=\"ci\"} 1",
        "pool_probes_total{pool=\"ci\",result=\"passed\"}",
    ];
    let mut text = String::new();
    for _ in 0..2000 {
        text = api.get("/metrics").await.body.as_str().unwrap().to_owned();
        if lines.iter().all(|line| text.contains(line)) {
            break;
        }
        // The first probes may not have come yet.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for line in lines {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    // Its first probe has yet to come.
    let mut ready = api.get("/readyz?verbose").await;
    for _ in 0..2000 {
        if ready.status == 200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        ready = api.get("/readyz?verbose").await;
    }
    assert_eq!((ready.status, &ready.body["ready"]), (200, &json!(true)), "{}", ready.body);
    assert!(api.get("/v1/pools/ci").await.body["last_reconcile"]["at"].is_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_is_not_leased_from_its_first_failure_and_comes_back_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    // It takes a hundred failures to be unhealthy, so that nothing is replaced here.
    let yaml = checked_by_files(folder.path(), 2).replace("threshold: 3", "threshold: 100");
    let api = Api::new(&yaml).await;
    api.keeper.begin();
    ill(folder.path(), 0, 1);
    api.until("it is suspect", |w| named(w, "ci-0-1").is_some_and(|w| w["suspect"] == true)).await;
    assert_eq!(api.lease().await["slot"], 1);
    let waiting = api.acquire(json!({ "wait": "60s" }));
    let back = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        well(folder.path(), 0, 1);
    };
    let (granted, ()) = tokio::join!(waiting, back);
    assert_eq!(granted.body["leases"][0]["slot"], 0, "{}", granted.body);
    assert_eq!(api.events("probe_failed").await.len(), 1);
    assert_eq!(api.events("probe_passed").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unhealthy_worker_is_replaced_and_a_leased_one_only_when_its_lease_ends() {
    let folder = tempfile::tempdir().unwrap();
    let api = Api::new(&checked_by_files(folder.path(), 5)).await;
    api.keeper.begin();
    let lease = api.lease().await;
    ill(folder.path(), 0, 1);
    api.until("it is unhealthy", |workers| is(workers, "ci-0-1", "unhealthy")).await;
    let path = format!("/v1/leases/{}", id(&lease));
    let told = api.get(&path).await.body;
    assert_eq!(told["ended_at"], Value::Null);
    assert!(told["trouble"].as_str().unwrap().starts_with("unhealthy: "), "{told}");
    // An idle one beside it is replaced meanwhile.
    ill(folder.path(), 1, 1);
    let workers = api.until("slot 1 is replaced", |workers| is(workers, "ci-1-2", "ready")).await;
    assert!(is(&workers, "ci-0-1", "unhealthy"), "a leased worker is never deleted: {workers:?}");
    assert_eq!(api.delete(&path).await.status, 204);
    let workers = api.until("slot 0 is replaced", |workers| is(workers, "ci-0-2", "ready")).await;
    assert_eq!(workers.len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_replaced_when_too_much_breaks_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let yaml = checked_by_files(folder.path(), 5);
    let api = Api::new(&yaml).await;
    // 40% of 5 are 2.
    for worker in api.world.cloud.workers().iter().filter(|worker| worker.observed.name.slot.0 < 3)
    {
        api.world.cloud.kill(&worker.observed.provider_id).unwrap();
    }
    api.keeper.begin();
    api.told("remediation_stopped").await;
    let why = api.events("remediation_stopped").await;
    assert_eq!(why, ["3 workers are broken, more than max_unhealthy (2)"]);
    let metrics = api.get("/metrics").await.body.as_str().unwrap().to_owned();
    assert!(metrics.contains("pool_remediation_stopped{pool=\"ci\"} 1"), "{metrics}");
    let error = api.get("/v1/pools/ci").await.body["last_reconcile"]["error"].clone();
    assert!(error.as_str().unwrap().contains("more than max_unhealthy"), "{error}");
    let before = api.get("/v1/workers").await.body;
    assert!(before["workers"].as_array().unwrap().iter().all(|worker| worker["generation"] == 1));
    assert_eq!(api.world.cloud.workers().len(), 2);
    // A person who applies knows better.
    api.world.converge(&yaml).await;
    api.keeper.look_again();
    api.told("remediation_resumed").await;
    assert_eq!(api.world.cloud.workers().len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_breaks_again_waits_and_the_wait_outlives_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let api = Api::new(&checked_by_files(folder.path(), 5)).await;
    api.keeper.begin();
    ill(folder.path(), 0, 1);
    api.until("the first replacement does not wait", |w| is(w, "ci-0-2", "ready")).await;
    ill(folder.path(), 0, 2);
    api.until("it broke again", |workers| is(workers, "ci-0-2", "unhealthy")).await;
    // Another slot is replaced meanwhile: the loop goes on, and slot 0 waits.
    ill(folder.path(), 1, 1);
    let workers = api.until("slot 1 is replaced", |w| is(w, "ci-1-2", "ready")).await;
    assert!(is(&workers, "ci-0-2", "unhealthy"));
    let tried = api.store.tried(&"ci".parse().unwrap()).await.unwrap();
    let tries: Vec<(u32, u32)> = tried.iter().map(|(slot, tried)| (slot.0, tried.tries)).collect();
    assert_eq!(tries, [(0, 1), (1, 1)], "what was tried is in the state");
    api.advance(Duration::from_secs(11));
    api.keeper.look_again();
    api.until("it is replaced after its back-off", |w| is(w, "ci-0-3", "ready")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_cannot_be_listed_keeps_no_other_pool_from_being_healed() {
    let other = POOL.replace("pool_id: ci", "pool_id: other").replace("vm", "process");
    let yaml = format!("{POOL}---\n{}", other.replace("provider: sim", "provider: local"));
    // Both are simulated; what the second one stands for can be listed until the server starts.
    let deaf = CallFaults { fail_before: 1.0, ..CallFaults::default() };
    let deaf = Settings { faults: [(Call::List, deaf)].into(), ..Settings::default() };
    let api = Api::with_other(&yaml, "local", deaf).await;
    api.keeper.begin();
    let of = |name: &str| {
        let mut workers = api.world.cloud.workers().into_iter();
        let found = workers.find(|worker| worker.observed.name.to_string() == name);
        found.unwrap().observed.provider_id
    };
    api.world.cloud.kill(&of("ci-0-1")).unwrap();
    api.until("it is replaced", |workers| is(workers, "ci-0-2", "ready")).await;
    let told = api.get("/v1/pools/other").await.body["last_reconcile"]["error"].clone();
    assert!(told.as_str().unwrap().contains("the provider local: listing its workers"), "{told}");
    let told = api.get("/v1/pools/ci").await.body["last_reconcile"].clone();
    assert_eq!(told["error"], Value::Null, "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_used_worker_is_reset_by_its_provider() {
    let yaml = format!("{POOL}leases: {{recycle: {{reset: true}}}}\n");
    let api = Api::new(&yaml).await;
    api.keeper.begin();
    let lease = api.lease().await;
    assert_eq!(lease["worker"]["attributes"], json!({}));
    api.delete(&format!("/v1/leases/{}", id(&lease))).await;
    api.until("it is ready", |workers| is(workers, "ci-0-1", "ready")).await;
    let again = api.lease().await;
    assert_eq!(again["worker"]["name"], "ci-0-1");
    assert_eq!(
        (&again["worker"]["attributes"]["resets"], &again["uses"]),
        (&json!("1"), &json!(2))
    );

    // What is gone cannot be reset: another one comes.
    let api = Api::new(&yaml).await;
    let lease = api.lease().await;
    let worker = api.world.cloud.workers().into_iter().find(|w| w.observed.name.slot.0 == 0);
    api.world.cloud.kill(&worker.unwrap().observed.provider_id).unwrap();
    api.delete(&format!("/v1/leases/{}", id(&lease))).await;
    api.keeper.begin();
    api.until("it is replaced", |workers| is(workers, "ci-0-2", "ready")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_used_worker_is_cleaned_or_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let cleaned = folder.path().join("cleaned");
    let yaml = format!(
        "{}leases:\n  recycle: {{command: [/bin/sh, -c, 'echo $POOL_WORKER >> {}; test $POOL_SLOT = 0']}}\n",
        checked_by_files(folder.path(), 2),
        cleaned.display()
    );
    let api = Api::new(&yaml).await;
    api.keeper.begin();
    let (first, second) = (api.lease().await, api.lease().await);
    api.delete(&format!("/v1/leases/{}", id(&first))).await;
    let again = api.acquire(json!({ "wait": "60s" })).await;
    assert_eq!(again.body["leases"][0]["worker"]["name"], "ci-0-1", "{}", again.body);
    assert_eq!(again.body["leases"][0]["uses"], 2);
    // Slot 1 is never clean: three attempts, then another worker.
    api.delete(&format!("/v1/leases/{}", id(&second))).await;
    api.until("it is replaced", |workers| is(workers, "ci-1-2", "ready")).await;
    let attempts = std::fs::read_to_string(cleaned).unwrap();
    let of = |name: &str| attempts.lines().filter(|line| *line == name).count();
    assert_eq!((of("ci-0-1"), of("ci-1-1")), (1, 3));

    let one_shot = format!("{}leases: {{reuse: one_shot}}\n", checked_by_files(folder.path(), 2));
    let api = Api::new(&one_shot).await;
    api.keeper.begin();
    let lease = api.lease().await;
    api.delete(&format!("/v1/leases/{}", id(&lease))).await;
    api.until("it is replaced", |workers| is(workers, "ci-0-2", "ready")).await;
    let asked = api.post("/v1/workers/ci-1-1/replace", json!({})).await;
    assert_eq!(asked.status, 200);
    api.until("it was asked for", |workers| is(workers, "ci-1-2", "ready")).await;
}
