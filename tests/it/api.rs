//! The API without a socket: a real state on disk, a simulated cloud, the routes.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request};
use http_body_util::BodyExt as _;
use pool::clock::{Clock, Entropy};
use pool::pool::{Keeper, Mode, Providers};
use pool::serve::metrics::Metrics;
use pool::serve::{Served, router};
use pool::state::Store;
use pool_provider::SharedProvider;
use pool_sim::Settings;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::support::{GoodCommits, World};

/// A pool of three simulated workers, applied and served.
pub(crate) struct Api {
    pub(crate) world: World,
    pub(crate) keeper: Keeper,
    pub(crate) store: Store,
    router: Router,
    /// Milliseconds that the clock is ahead.
    ahead: Arc<AtomicI64>,
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Value,
    pub(crate) retry_after: Option<u64>,
}

pub(crate) const POOL: &str = "
pool_id: ci
worker_type: vm
provider: sim
fixed_size: 3
worker_config: {image: a, cpu_cores: 2, memory_mb: 512, labels: {os: linux}, tags: [ci]}
";

impl Api {
    pub(crate) async fn new(yaml: &str) -> Self {
        Self::with(yaml, Settings::default()).await
    }

    pub(crate) async fn with(yaml: &str, settings: Settings) -> Self {
        Self::build(yaml, settings, None).await
    }

    /// Serves pools of two providers; the second one is the same cloud, with these settings once all is
    /// applied.
    pub(crate) async fn with_other(yaml: &str, name: &str, other: Settings) -> Self {
        Self::build(yaml, Settings::default(), Some((name, other))).await
    }

    async fn build(yaml: &str, settings: Settings, other: Option<(&str, Settings)>) -> Self {
        let ahead: Arc<AtomicI64> = Arc::default();
        let shift = Arc::clone(&ahead);
        let system = Clock::system();
        let clock = Clock::telling(move || {
            let ahead = jiff::SignedDuration::from_millis(shift.load(Ordering::SeqCst));
            system.now() + ahead
        });
        let world = World::told_by(settings, clock.clone());
        world.converge_with(yaml, other.as_ref().map(|(name, _)| *name)).await;
        let mut reconciler = world.start_with(world.provider(), Box::new(GoodCommits));
        let store = reconciler.store.clone().with_reader().unwrap();
        reconciler.store = store.clone();
        if let Some((name, settings)) = other {
            let provider = SharedProvider::new(world.provider_with(settings));
            reconciler.providers.insert(name.to_owned(), provider);
        }
        let providers = Providers::given(reconciler.providers.clone());
        let metrics: Arc<Metrics> = Arc::default();
        let watcher = Arc::clone(&metrics);
        let keeper = Keeper::open(
            store.clone(),
            providers,
            reconciler.secrets.clone(),
            clock.clone(),
            watcher,
            Mode::Heal,
        );
        let served = Served { keeper: keeper.clone(), metrics };
        let router = router(Arc::new(served), &Entropy::system());
        Self { world, keeper, store, router, ahead }
    }

    pub(crate) fn advance(&self, by: Duration) {
        self.ahead.fetch_add(i64::try_from(by.as_millis()).unwrap(), Ordering::SeqCst);
    }

    pub(crate) fn set_back(&self, by: Duration) {
        self.ahead.fetch_sub(i64::try_from(by.as_millis()).unwrap(), Ordering::SeqCst);
    }

    pub(crate) async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let header = response.headers().get("retry-after").cloned();
        let retry_after = header.map(|seconds| seconds.to_str().unwrap().parse().unwrap());
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let text = || Value::String(String::from_utf8_lossy(&bytes).into_owned());
        let body = serde_json::from_slice(&bytes).unwrap_or_else(|_| text());
        Answer { status, body, retry_after }
    }

    pub(crate) async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
        self.send(Request::builder().method(method).uri(path).body(body).unwrap()).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path, None).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.call(Method::POST, path, Some(body)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.call(Method::DELETE, path, None).await
    }

    pub(crate) async fn acquire(&self, body: Value) -> Answer {
        let mut whole = json!({ "holder": "me" });
        if body.get("selector").is_none() {
            whole["pool"] = json!("ci");
        }
        whole.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
        self.post("/v1/leases", whole).await
    }

    /// Acquires one worker; returns the lease.
    pub(crate) async fn lease(&self) -> Value {
        let answer = self.acquire(json!({})).await;
        assert_eq!(answer.status, 201, "{}", answer.body);
        answer.body["leases"][0].clone()
    }

    async fn with_key(&self, key: &str, body: Value) -> Answer {
        let request = Request::post("/v1/leases").header("Idempotency-Key", key);
        self.send(request.body(Body::from(body.to_string())).unwrap()).await
    }

    pub(crate) async fn worker(&self, name: &str) -> Value {
        self.get(&format!("/v1/workers/{name}")).await.body
    }
}

pub(crate) fn id(lease: &Value) -> &str {
    lease["id"].as_str().unwrap()
}

#[tokio::test]
async fn a_lease_is_acquired_renewed_looked_at_and_released() {
    let api = Api::new(POOL).await;
    let asked = json!({ "ttl": "5m", "purpose": "build", "metadata": { "job": 7 } });
    let answer = api.acquire(asked).await;
    assert_eq!((answer.status, &answer.body["replay"]), (201, &json!(false)));
    assert!(answer.body["waited_ms"].is_u64());
    let lease = &answer.body["leases"][0];
    assert_eq!(lease["worker"]["name"], "ci-0-1");
    assert_eq!(lease["worker"]["labels"], json!({ "os": "linux" }));
    assert_eq!(lease["worker"]["tags"], json!(["ci"]));
    assert_eq!(lease["worker"]["addresses"], json!(["10.0.0.0"]));
    assert_eq!(
        (&lease["slot"], &lease["generation"], &lease["uses"]),
        (&json!(0), &json!(1), &json!(1))
    );
    assert_eq!((&lease["holder"], &lease["metadata"]), (&json!("me"), &json!({ "job": 7 })));
    assert_eq!(lease["verified_by"], "provider");
    let path = format!("/v1/leases/{}", id(lease));
    assert_eq!(api.get(&path).await.body, *lease, "what is told later is what was answered");
    let fence = lease["fence"].as_i64().unwrap();
    let renewed = api.post(&format!("{path}/renew"), json!({ "fence": fence, "ttl": "1h" })).await;
    assert_eq!(renewed.status, 200);
    assert!(renewed.body["expires_at"].as_str() > lease["expires_at"].as_str());
    // A late renewal with a shorter time does not shorten it.
    let again = api.post(&format!("{path}/renew"), json!({ "fence": fence, "ttl": "1s" })).await;
    assert_eq!(again.body["expires_at"], renewed.body["expires_at"]);
    let wrong = api.post(&format!("{path}/renew"), json!({ "fence": fence + 1 })).await;
    assert_eq!((wrong.status, &wrong.body["code"]), (412, &json!("fence_mismatch")));
    assert_eq!(
        api.get("/v1/leases?pool=ci&holder=me").await.body["leases"].as_array().unwrap().len(),
        1
    );
    assert_eq!(api.get("/v1/leases?holder=you").await.body["leases"], json!([]));
    assert_eq!(api.delete(&path).await.status, 204);
    assert_eq!(
        api.delete(&format!("{path}?outcome=job_failed")).await.status,
        204,
        "it ended before"
    );
    let ended = api.get(&path).await;
    assert_eq!((ended.status, &ended.body["ending"]), (200, &json!("ok")), "the first end stays");
    let gone = api.post(&format!("{path}/renew"), json!({ "fence": fence })).await;
    assert_eq!((gone.status, &gone.body["code"]), (410, &json!("lease_gone")));
    let next = api.lease().await;
    assert!(next["fence"].as_i64().unwrap() > fence, "fences only grow");
    assert_eq!((&next["worker"]["name"], &next["uses"]), (&json!("ci-0-1"), &json!(2)));
}

#[tokio::test]
async fn a_repeated_key_gets_the_same_leases() {
    let api = Api::new(POOL).await;
    let asked = json!({ "pool": "ci", "holder": "me", "count": 2 });
    let first = api.with_key("k1", asked.clone()).await;
    assert_eq!(first.status, 201);
    // Another order of fields is the same request.
    let again = api.with_key("k1", json!({ "count": 2, "holder": "me", "pool": "ci" })).await;
    assert_eq!((again.status, &again.body["replay"]), (200, &json!(true)));
    assert_eq!(again.body["leases"], first.body["leases"]);
    let other = api.with_key("k1", json!({ "pool": "ci", "holder": "me" })).await;
    assert_eq!((other.status, &other.body["code"]), (409, &json!("idempotency_conflict")));
    // The same key of another holder is another key.
    let theirs = api.with_key("k1", json!({ "pool": "ci", "holder": "you" })).await;
    assert_eq!(theirs.status, 201);
    api.delete(&format!("/v1/leases/{}", id(&first.body["leases"][0]))).await;
    let gone = api.with_key("k1", asked).await;
    assert_eq!((gone.status, &gone.body["code"]), (410, &json!("lease_gone")));
}

#[tokio::test]
async fn what_cannot_be_had_is_told_apart_and_explained() {
    let api = Api::new(POOL).await;
    let code = |answer: &Answer| (answer.status, answer.body["code"].as_str().unwrap().to_owned());
    let typo = api.acquire(json!({ "pool": "cii" })).await;
    assert_eq!(code(&typo), (404, "pool_not_found".into()));
    let never =
        api.acquire(json!({ "selector": { "min_cpu_cores": 64, "tags": ["ci", "gpu"] } })).await;
    assert_eq!(code(&never), (422, "unsatisfiable".into()));
    assert_eq!(never.body["unmet"], json!(["tags include gpu", "cpu_cores >= 64"]));
    let many = api.acquire(json!({ "count": 4 })).await;
    assert_eq!(code(&many), (422, "unsatisfiable".into()));
    let all = api.acquire(json!({ "count": 3 })).await;
    assert_eq!(all.status, 201);
    let full = api.acquire(json!({})).await;
    assert_eq!(code(&full), (503, "no_capacity".into()));
    assert_eq!(full.body["phases"], json!({ "leased": 3, "ready": 0 }));
    assert!(full.retry_after.is_some_and(|seconds| seconds >= 1));
}

#[tokio::test]
async fn bad_requests_say_what_is_wrong() {
    let api = Api::new(POOL).await;
    for (body, part) in [
        (json!({ "pol": "ci" }), "unknown field `pol`"),
        (json!({ "ttl": "0s" }), "longer than 0s"),
        (json!({ "ttl": "5" }), "is not a duration"),
        (json!({ "ttl": "25h" }), "lasts at most"),
        (json!({ "count": 0 }), "from 1 to 1000"),
        (json!({ "holder": "" }), "`holder` says who asks"),
        (json!({ "wait": "2h" }), "`wait` is at most 1h"),
        (json!({ "pool": "ci", "selector": {} }), "either `pool` or `selector`"),
        (json!({ "metadata": { "a": "x".repeat(20_000) } }), "`metadata` has at most"),
    ] {
        let answer = api.acquire(body.clone()).await;
        assert_eq!(
            (answer.status, &answer.body["code"]),
            (400, &json!("invalid_request")),
            "{body}"
        );
        let detail = answer.body["detail"].as_str().unwrap();
        assert!(detail.contains(part), "{body}: {detail}");
        assert_eq!(answer.body["type"], "urn:pool:problem:invalid_request");
    }
    let neither = api.post("/v1/leases", json!({ "holder": "me" })).await;
    assert!(neither.body["detail"].as_str().unwrap().contains("give `pool`"));
    let broken = Request::post("/v1/leases").header("content-type", "text/plain");
    let broken = api.send(broken.body(Body::from("{\"pool\": ")).unwrap()).await;
    assert!(broken.body["detail"].as_str().unwrap().contains("line 1 column"), "{}", broken.body);
    let large = Request::post("/v1/leases").body(Body::from(vec![b' '; 70_000])).unwrap();
    assert_eq!(api.send(large).await.status, 413);
    let long = Request::post("/v1/leases").header("Idempotency-Key", "k".repeat(300));
    let long = api.send(long.body(Body::from(r#"{"pool":"ci","holder":"me"}"#)).unwrap()).await;
    assert_eq!(long.status, 400);
    for (path, status, code) in [
        ("/v1/nothing", 404, "route_not_found"),
        ("/v1/pools/nope", 404, "pool_not_found"),
        ("/v1/workers/nope", 404, "worker_not_found"),
        ("/v1/workers/ci-9-1", 404, "worker_not_found"),
        ("/v1/leases/x", 404, "lease_not_found"),
        ("/v1/leases/1-00000000", 404, "lease_not_found"),
        ("/v1/leases?nope=1", 400, "invalid_request"),
        ("/v1/events?after=x", 400, "invalid_request"),
    ] {
        let answer = api.get(path).await;
        assert_eq!((answer.status, &answer.body["code"]), (status, &json!(code)), "{path}");
    }
    let put = api.call(Method::PUT, "/v1/pools", None).await;
    assert_eq!((put.status, &put.body["code"]), (405, &json!("method_not_allowed")));
    let verb = api.post("/v1/workers/ci-0-1/explode", json!({})).await;
    assert_eq!(verb.status, 404);
    let outcome = api.delete("/v1/leases/1-00000000?outcome=meh").await;
    assert_eq!(outcome.status, 400);
    let never = api.delete("/v1/leases/1-00000000").await;
    assert_eq!(never.status, 404, "a lease that never was is a mistake");
}

#[tokio::test]
async fn web_pages_are_not_let_in() {
    let api = Api::new(POOL).await;
    let ask = async |name: &'static str, value: &'static str| {
        let request = Request::get("/v1/pools").header(name, value);
        api.send(request.body(Body::empty()).unwrap()).await
    };
    for host in ["localhost", "localhost:7070", "127.0.0.1:7070", "[::1]:7070", "127.9.9.9"] {
        assert_eq!(ask("host", host).await.status, 200, "{host}");
    }
    for host in ["example.com", "example.com:7070", "10.0.0.1", "localhost.example.com"] {
        let answer = ask("host", host).await;
        assert_eq!(
            (answer.status, &answer.body["code"]),
            (403, &json!("foreign_origin")),
            "{host}"
        );
    }
    assert_eq!(ask("origin", "http://localhost:3000").await.status, 403);
    assert_eq!(ask("origin", "null").await.status, 403);
}

#[tokio::test]
async fn several_workers_are_given_all_or_none() {
    let api = Api::new(POOL).await;
    api.lease().await;
    assert_eq!(api.acquire(json!({ "count": 3 })).await.status, 503);
    let leases = api.get("/v1/leases").await.body["leases"].as_array().unwrap().len();
    assert_eq!(leases, 1, "nothing was kept");
    assert_eq!(api.acquire(json!({ "count": 2 })).await.status, 201);
}

#[tokio::test]
async fn workers_that_are_avoided_or_do_not_meet_the_selector_are_passed_over() {
    let other = "\n---\npool_id: big\nworker_type: vm\nprovider: sim\nfixed_size: 1\n\
                 worker_config: {image: a, cpu_cores: 8, memory_mb: 4096, docker_enabled: true}\n";
    let api = Api::new(&format!("{POOL}{other}")).await;
    let avoiding = api.acquire(json!({ "avoid_workers": ["ci-0-1", "ci-1-1"] })).await;
    assert_eq!(avoiding.body["leases"][0]["worker"]["name"], "ci-2-1");
    let big = api.acquire(json!({ "selector": { "min_memory_mb": 1024, "docker": true } })).await;
    assert_eq!(big.body["leases"][0]["pool"], "big");
    let none = api.acquire(json!({ "selector": { "min_memory_mb": 1024 } })).await;
    assert_eq!(none.status, 503, "it is leased, and could be free again");
    let both =
        api.acquire(json!({ "selector": { "labels": { "os": "linux" } }, "count": 2 })).await;
    assert_eq!(both.status, 201);
}

#[tokio::test]
async fn people_decide_about_workers() {
    let api = Api::new(POOL).await;
    let act = async |verb: &str| api.post(&format!("/v1/workers/ci-0-1/{verb}"), json!({})).await;
    assert_eq!(act("cordon").await.body["cordoned"], true);
    assert_eq!(api.lease().await["slot"], 1);
    let back = act("uncordon").await.body;
    assert_eq!((&back["cordoned"], &back["draining"]), (&json!(false), &json!(false)));
    let lease = api.lease().await;
    assert_eq!(lease["slot"], 0);
    // Draining waits for the lease's end; the worker is not given again.
    let draining = act("drain").await.body;
    assert_eq!((&draining["draining"], &draining["lease"]["id"]), (&json!(true), &lease["id"]));
    api.delete(&format!("/v1/leases/{}", id(&lease))).await;
    let drained = api.worker("ci-0-1").await;
    assert_eq!((&drained["phase"], &drained["lease"]), (&json!("ready"), &Value::Null));
    assert_eq!(api.lease().await["slot"], 2);
    assert_eq!(act("quarantine").await.body["phase"], "quarantined");
    assert_eq!(act("uncordon").await.body["phase"], "verifying", "it is verified first");
    let history = api.worker("ci-0-1").await["history"].clone();
    let kinds: Vec<&str> =
        history.as_array().unwrap().iter().map(|event| event["kind"].as_str().unwrap()).collect();
    for kind in ["cordon", "uncordon", "drain", "lease_granted", "lease_ended", "quarantine"] {
        assert!(kinds.contains(&kind), "{kind} is not in {kinds:?}");
    }
    let verified = api.post("/v1/workers/ci-1-1/verify", json!({})).await.body;
    assert_eq!((&verified["healthy"], &verified["why"]), (&json!(true), &Value::Null));
    // A leased worker that is to be replaced keeps its lease.
    let replaced = api.post("/v1/workers/ci-1-1/replace", json!({})).await.body;
    assert_eq!((&replaced["phase"], &replaced["retired"]), (&json!("ready"), &json!("requested")));
    let leases = api.get("/v1/leases").await.body["leases"].clone();
    let own = leases.as_array().unwrap().iter().find(|lease| lease["slot"] == 1).unwrap().clone();
    api.delete(&format!("/v1/leases/{}", id(&own))).await;
    assert_eq!(api.worker("ci-1-1").await["phase"], "deleting");
}

#[tokio::test]
async fn signs_of_life_and_measures_are_there() {
    let api = Api::new(POOL).await;
    assert_eq!(api.get("/healthz").await.body, "ok\n");
    api.lease().await;
    let text = api.get("/metrics").await.body.as_str().unwrap().to_owned();
    for line in [
        "pool_workers{pool=\"ci\",phase=\"ready\"} 3",
        "pool_availability_ratio{pool=\"ci\"} 1.0",
        "pool_leases_open{pool=\"ci\"} 1",
        "pool_lease_latency_seconds_count{pool=\"ci\"} 1",
        "pool_queue_length{pool=\"ci\"} 0",
        "pool_workers_overdue{pool=\"ci\"} 0",
        "pool_config_refused 0",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    assert!(!text.contains("pool_queue_wait_seconds_count"), "nobody stood in line:\n{text}");
    let pool = api.get("/v1/pools/ci").await.body;
    assert_eq!(
        (&pool["leased"], &pool["free"], &pool["availability"]),
        (&json!(1), &json!(2), &json!(1.0))
    );
    assert_eq!(pool["phases"], json!({ "ready": 3 }));
    assert_eq!(pool["config"]["fixed_size"], 3);
    assert!(pool["origin"].as_str().unwrap().contains("test.yaml"));
    let verbose = api.get("/readyz?verbose").await;
    assert!(verbose.body["pools"]["ci"].is_object(), "{}", verbose.body);
    let workers = api.get("/v1/workers?pool=ci").await.body;
    assert_eq!(workers["workers"].as_array().unwrap().len(), 3);
    assert_eq!(workers["workers"][0]["lease"]["holder"], "me");
}

#[tokio::test]
async fn every_path_that_is_described_is_served() {
    let api = Api::new(POOL).await;
    let document = api.get("/v1/openapi.json").await.body;
    for (path, operations) in document["paths"].as_object().unwrap() {
        for method in operations.as_object().unwrap().keys().filter(|name| *name != "parameters") {
            // A stream of events does not end.
            if path == "/v1/events" {
                continue;
            }
            let path = path.replace("{verb}", "cordon").replace("{name}", "x").replace("{id}", "x");
            let method: Method = method.to_uppercase().parse().unwrap();
            let answer = api.call(method.clone(), &path, None).await;
            let code = answer.body["code"].as_str().unwrap_or_default();
            assert!(!["route_not_found", "method_not_allowed"].contains(&code), "{method} {path}");
        }
    }
}
