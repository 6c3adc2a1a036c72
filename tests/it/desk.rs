//! What the desk does: who is served when, who gives back, what becomes of workers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use pool::apply::Observer;
use pool::clock::Clock;
use pool::lease::{Ask, Ending, Outcome};
use pool::pool::{AcquireError, Keeper, Mode, Providers, Unwatched};
use pool::state::EventFilter;
use serde_json::{Value, json};

use crate::api::{Api, POOL, id};
use crate::support::{FullDisk, GoodCommits, load};

#[tokio::test]
async fn those_who_wait_are_served_by_priority_then_arrival() {
    let api = Api::new(&POOL.replace("fixed_size: 3", "fixed_size: 1")).await;
    let held = api.lease().await;
    let desk = Arc::clone(api.keeper.desk());
    let order = Arc::new(std::sync::Mutex::new(Vec::new()));
    let mut waiters = Vec::new();
    for (name, priority) in [("a", 0), ("b", 0), ("c", 5)] {
        let (desk, order) = (Arc::clone(&desk), Arc::clone(&order));
        let ask = Ask { priority, ..Ask::of_pool("ci".parse().unwrap(), name) };
        let pool = "ci".parse().unwrap();
        let before = api.keeper.desk().waiting(&pool).requests;
        waiters.push(tokio::spawn(async move {
            let given = desk.acquire(ask, Duration::from_secs(30)).await.unwrap();
            order.lock().unwrap().push(name);
            let lease = given.accept().remove(0);
            desk.release(lease.id, Outcome::Ok).await.unwrap();
        }));
        while api.keeper.desk().waiting(&pool).requests == before {
            tokio::task::yield_now().await;
        }
    }
    let pool = api.get("/v1/pools/ci").await.body;
    assert_eq!(pool["queue"]["length"], 3);
    api.delete(&format!("/v1/leases/{}", id(&held))).await;
    for waiter in waiters {
        waiter.await.unwrap();
    }
    assert_eq!(*order.lock().unwrap(), ["c", "a", "b"]);
}

#[tokio::test]
async fn whoever_hangs_up_leaves_the_line_and_gives_back_what_was_granted() {
    let api = Api::new(&POOL.replace("fixed_size: 3", "fixed_size: 1")).await;
    let desk = Arc::clone(api.keeper.desk());
    let ask = |holder: &str| Ask::of_pool("ci".parse().unwrap(), holder);
    let given = desk.acquire(ask("first"), Duration::ZERO).await.unwrap();
    // In line, then gone.
    let waiting = desk.acquire(ask("second"), Duration::from_secs(30));
    let gone = tokio::time::timeout(Duration::from_millis(20), waiting).await;
    assert!(gone.is_err());
    assert_eq!(desk.waiting(&"ci".parse().unwrap()).requests, 0);
    // Granted, and dropped before the answer: the worker is free again, and unused.
    drop(given);
    let next = desk.acquire(ask("third"), Duration::from_secs(30)).await.unwrap();
    assert_eq!(next.leases()[0].holder, "third");
    let events = api.store.events(EventFilter::default()).await.unwrap();
    assert!(
        events
            .iter()
            .any(|event| event.kind == "lease_ended" && event.why.ends_with(": abandoned"))
    );
    // With a key the lease stays for the retry.
    next.accept();
    let none = desk.acquire(ask("fourth"), Duration::ZERO).await;
    assert!(matches!(none, Err(AcquireError::NoneFree { .. })), "{none:?}");
}

#[tokio::test]
async fn a_keyed_grant_outlives_its_hang_up() {
    let api = Api::new(POOL).await;
    let desk = Arc::clone(api.keeper.desk());
    let key = pool::lease::ask::AskKey { key: [1; 16], body: [2; 16] };
    let ask = Ask { key: Some(key), ..Ask::of_pool("ci".parse().unwrap(), "me") };
    let first = desk.acquire(ask.clone(), Duration::ZERO).await.unwrap();
    let lease = first.leases()[0].id;
    drop(first);
    let retry = desk.acquire(ask, Duration::ZERO).await.unwrap();
    assert!(retry.replay);
    assert_eq!(retry.accept()[0].id, lease);
}

#[tokio::test]
async fn the_end_of_a_lease_does_to_the_worker_what_the_pool_says() {
    let one_shot = format!("{POOL}leases: {{reuse: one_shot}}\n");
    let api = Api::new(&one_shot).await;
    let lease = api.lease().await;
    api.delete(&format!("/v1/leases/{}", id(&lease))).await;
    let worker = api.worker("ci-0-1").await;
    assert_eq!((&worker["phase"], &worker["retired"]), (&json!("deleting"), &json!("one_shot")));
    assert_eq!(api.lease().await["slot"], 1, "another one is given");

    let uses = format!("{POOL}leases: {{max_uses: 2, pick: lowest_slot}}\n");
    let api = Api::new(&uses).await;
    for expected in ["ready", "deleting"] {
        let lease = api.lease().await;
        api.delete(&format!("/v1/leases/{}", id(&lease))).await;
        assert_eq!(api.worker("ci-0-1").await["phase"], expected);
    }

    let recycled = format!("{POOL}leases: {{recycle: {{command: [/bin/true]}}}}\n");
    let api = Api::new(&recycled).await;
    let lease = api.lease().await;
    api.delete(&format!("/v1/leases/{}?outcome=job_failed", id(&lease))).await;
    assert_eq!(api.worker("ci-0-1").await["phase"], "recycling");
}

#[tokio::test]
async fn the_worker_that_was_free_for_longest_is_picked_where_the_pool_says_so() {
    let api = Api::new(&format!("{POOL}leases: {{pick: least_recently_used}}\n")).await;
    let mut slots = Vec::new();
    for _ in 0..4 {
        let lease = api.lease().await;
        slots.push(lease["slot"].as_u64().unwrap());
        api.delete(&format!("/v1/leases/{}", id(&lease))).await;
        api.advance(Duration::from_millis(2));
    }
    assert_eq!(slots, [0, 1, 2, 0]);
}

#[tokio::test]
async fn an_expired_lease_is_reclaimed_after_the_servers_respite() {
    let api = Api::new(POOL).await;
    let lease = api.acquire(json!({ "ttl": "1s" })).await.body["leases"][0].clone();
    let start: Timestamp = lease["granted_at"].as_str().unwrap().parse().unwrap();
    api.advance(Duration::from_secs(30));
    // No lease expires within a minute of the server's start.
    let respite = start + jiff::SignedDuration::from_secs(60);
    assert_eq!(
        api.store.expire_leases(api.store.now(), respite, Duration::ZERO).await.unwrap(),
        []
    );
    assert_eq!(api.get(&format!("/v1/leases/{}", id(&lease))).await.body["ended_at"], Value::Null);
    api.advance(Duration::from_secs(31));
    let ended = api.store.expire_leases(api.store.now(), respite, Duration::ZERO).await.unwrap();
    assert_eq!(ended.len(), 1);
    let told = api.get(&format!("/v1/leases/{}", id(&lease))).await.body;
    assert_eq!(told["ending"], "expired");
    let worker = api.worker("ci-0-1").await;
    assert_eq!(
        worker["retired"], "lease_expired",
        "its job may still run: never straight to ready"
    );
}

#[tokio::test]
async fn three_holders_in_a_row_who_blame_a_worker_have_it_quarantined() {
    let api = Api::new(&POOL.replace("fixed_size: 3", "fixed_size: 1")).await;
    for blame in 1..=3 {
        let lease = api.acquire(json!({ "wait": "5s" })).await;
        assert_eq!(lease.status, 201, "{}", lease.body);
        let path = format!("/v1/leases/{}?outcome=infra_failed", id(&lease.body["leases"][0]));
        api.delete(&path).await;
        let worker = api.worker("ci-0-1").await;
        let expected = if blame < 3 { "ready" } else { "quarantined" };
        assert_eq!(worker["phase"], expected);
        if blame < 3 {
            assert_eq!(worker["suspect"], true, "it is probed before anybody else gets it");
            api.post("/v1/workers/ci-0-1/verify", json!({})).await;
        }
    }
}

#[tokio::test]
async fn a_worker_that_does_not_pass_its_probe_is_not_given_and_the_next_one_is() {
    let api = Api::new(POOL).await;
    // Everything is stale, and one worker is gone behind our back.
    api.advance(Duration::from_secs(60));
    let workers = api.world.cloud.workers();
    let first = workers.iter().find(|worker| worker.observed.name.slot.0 == 0).unwrap();
    api.world.cloud.kill(&first.observed.provider_id).unwrap();
    let lease = api.lease().await;
    assert_ne!(lease["slot"], 0, "the next candidate is tried silently");
    assert!(
        lease["verified_at"].as_str() > first_ready(&api).await.as_deref(),
        "it was probed just now"
    );
    // The one that failed is out, until it passes.
    api.lease().await;
    let none = api.acquire(json!({})).await;
    assert_eq!(none.status, 503);
    assert_eq!(api.worker("ci-0-1").await["suspect"], true);
}

async fn first_ready(api: &Api) -> Option<String> {
    api.worker("ci-1-1").await["since"].as_str().map(str::to_owned)
}

#[tokio::test]
async fn a_worker_of_which_somebody_has_a_lease_is_not_deleted() {
    let api = Api::new(POOL).await;
    let lease = api.lease().await;
    let mut reconciler = api.world.start_with(api.world.provider(), Box::new(GoodCommits));
    reconciler.store = api.store.clone();
    let smaller = load(&POOL.replace("fixed_size: 3", "fixed_size: 0"));
    let lock = api.store.lock(&"ci".parse().unwrap()).await.unwrap();
    let locks = BTreeMap::from([(lock.pool.clone(), lock)]);
    let desired = reconciler.desired(&smaller);
    let plan = reconciler.plan(&desired, &pool::plan::PlanOptions::default(), true).await.unwrap();
    let observer: Observer = Arc::new(|_| {});
    let outcomes = reconciler.apply(&plan.plan, &locks, observer).await.unwrap();
    assert_eq!(outcomes[0].done.destroy, 2);
    assert!(outcomes[0].held[0].1.contains("leased"), "{outcomes:?}");
    assert_eq!(api.world.cloud.workers().len(), 1);
    assert_eq!(api.get(&format!("/v1/leases/{}", id(&lease))).await.body["ended_at"], Value::Null);
}

#[tokio::test]
async fn nobody_is_left_waiting_when_the_server_stops() {
    let api = Api::new(&POOL.replace("fixed_size: 3", "fixed_size: 1")).await;
    api.lease().await;
    let desk = Arc::clone(api.keeper.desk());
    let ask = Ask::of_pool("ci".parse().unwrap(), "me");
    let waiting = tokio::spawn({
        let (desk, ask) = (Arc::clone(&desk), ask.clone());
        async move { desk.acquire(ask, Duration::from_secs(60)).await.map(drop) }
    });
    while desk.waiting(&"ci".parse().unwrap()).requests == 0 {
        tokio::task::yield_now().await;
    }
    api.keeper.close();
    assert_eq!(waiting.await.unwrap(), Err(AcquireError::Closing));
    let late = desk.acquire(ask, Duration::ZERO).await.map(drop);
    assert_eq!(late, Err(AcquireError::Closing));
}

#[tokio::test]
async fn a_state_that_cannot_be_written_grants_nothing() {
    let api = Api::new(POOL).await;
    let full = api.world.start_with(api.world.provider(), Box::new(FullDisk));
    let providers = Providers::given(full.providers.clone());
    let keeper = Keeper::open(
        full.store.clone(),
        providers,
        full.secrets.clone(),
        Clock::system(),
        Arc::new(Unwatched),
        Mode::Heal,
    );
    let ask = Ask::of_pool("ci".parse().unwrap(), "me");
    let refused = keeper.desk().acquire(ask, Duration::ZERO).await.map(drop);
    assert!(matches!(refused, Err(AcquireError::State(_))), "{refused:?}");
    assert_eq!(api.get("/v1/leases").await.body["leases"], json!([]), "nothing was kept");
    // The same through the door: a status that says to try again.
    let problem =
        api.store.end_lease("1-00000000".parse().unwrap(), Ending::Expired).await.unwrap();
    assert_eq!(problem, None);
    assert_eq!(api.lease().await["slot"], 0, "the other process is well");
}

#[tokio::test]
async fn what_is_old_is_forgotten_and_what_is_open_is_not() {
    use pool::state::Retention;
    let api = Api::new(POOL).await;
    let (kept, ended) = (api.lease().await, api.lease().await);
    api.delete(&format!("/v1/leases/{}", id(&ended))).await;
    let day = Duration::from_secs(86_400);
    let keep = Retention { events: day * 30, leases: day * 7, keys: day };
    assert_eq!(api.store.forget_old(keep).await, Ok(false));
    assert_eq!(api.get(&format!("/v1/leases/{}", id(&ended))).await.status, 200, "not yet");
    api.advance(day * 8);
    api.store.forget_old(keep).await.unwrap();
    assert_eq!(api.get(&format!("/v1/leases/{}", id(&ended))).await.status, 404);
    assert_eq!(api.get(&format!("/v1/leases/{}", id(&kept))).await.status, 200, "it is open");
    assert!(!api.store.events(EventFilter::default()).await.unwrap().is_empty());
    api.advance(day * 23);
    api.store.forget_old(keep).await.unwrap();
    assert_eq!(api.store.events(EventFilter::default()).await, Ok(Vec::new()));
}

#[tokio::test]
async fn a_worker_that_is_used_up_goes_even_if_it_failed_or_was_drained_meanwhile() {
    use pool::state::Health;
    let api = Api::new(&format!("{POOL}leases: {{reuse: one_shot}}\n")).await;
    let lease = api.lease().await;
    let name = lease["worker"]["name"].as_str().unwrap().parse().unwrap();
    let row = api.store.row_of(&name).await.unwrap().unwrap();
    let probed = api.store.watched(row).await.unwrap().unwrap();
    assert_eq!(api.store.record_health(&probed, Health::Unhealthy, "x".into()).await, Ok(true));
    api.delete(&format!("/v1/leases/{}", id(&lease))).await;
    // It passes its probe again: that does not clean it.
    assert_eq!(api.store.record_health(&probed, Health::Well, "y".into()).await, Ok(false));
    let worker = api.worker("ci-0-1").await;
    assert_eq!((&worker["phase"], &worker["retired"]), (&json!("deleting"), &json!("one_shot")));
    let second = api.lease().await;
    api.post("/v1/workers/ci-1-1/drain", json!({})).await;
    api.delete(&format!("/v1/leases/{}", id(&second))).await;
    assert_eq!(api.worker("ci-1-1").await["phase"], "deleting");
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_gets_a_worker_when_all_are_only_stale() {
    let api = Api::new(&POOL.replace("fixed_size: 3", "fixed_size: 12")).await;
    api.advance(Duration::from_secs(60));
    let desk = api.keeper.desk();
    let asks = (0..12).map(|n| {
        let ask = Ask::of_pool("ci".parse().unwrap(), &format!("job-{n}"));
        desk.acquire(ask, Duration::ZERO)
    });
    for given in futures_util::future::join_all(asks).await {
        given.unwrap().accept();
    }
    assert_eq!(api.get("/v1/leases").await.body["leases"].as_array().unwrap().len(), 12);
}

#[tokio::test]
async fn a_clock_that_is_set_back_keeps_nobody_from_a_worker() {
    // The simulated cloud would go back with the clock.
    let checked = format!("{POOL}health_check: {{type: exec, command: [/bin/true]}}\n");
    let api = Api::new(&checked).await;
    api.set_back(Duration::from_secs(3600));
    let lease = api.lease().await;
    let at = |field: &str| lease[field].as_str().unwrap().parse::<Timestamp>().unwrap();
    assert!(at("verified_at") <= at("granted_at"), "it was probed on the clock as it is now");
}

#[tokio::test]
async fn what_was_granted_and_never_answered_is_taken_back_before_the_server_ends() {
    let api = Api::new(POOL).await;
    let desk = api.keeper.desk();
    let ask = Ask::of_pool("ci".parse().unwrap(), "me");
    let given = desk.acquire(ask, Duration::ZERO).await.unwrap();
    api.keeper.close();
    drop(given);
    desk.taken_back().await;
    assert_eq!(api.get("/v1/leases").await.body["leases"], json!([]));
}

#[tokio::test]
async fn who_stood_in_line_is_measured_and_so_is_a_worker_that_nobody_looks_after() {
    use pool::state::Health;
    let api = Api::new(&POOL.replace("fixed_size: 3", "fixed_size: 2")).await;
    let (first, second) = (api.lease().await, api.lease().await);
    let path = format!("/v1/leases/{}", id(&first));
    let (waited, _) = tokio::join!(api.acquire(json!({ "wait": "60s" })), async {
        while api.keeper.desk().waiting(&"ci".parse().unwrap()).requests == 0 {
            tokio::task::yield_now().await;
        }
        api.delete(&path).await
    });
    assert_eq!(waited.status, 201, "{}", waited.body);
    let metrics = async || api.get("/metrics").await.body.as_str().unwrap().to_owned();
    let text = metrics().await;
    assert!(text.contains("pool_queue_wait_seconds_count{pool=\"ci\"} 1"), "{text}");
    // Nothing replaces it while a job has it; somebody should look.
    let name = second["worker"]["name"].as_str().unwrap().parse().unwrap();
    let row = api.store.row_of(&name).await.unwrap().unwrap();
    let probed = api.store.watched(row).await.unwrap().unwrap();
    assert_eq!(api.store.record_health(&probed, Health::Unhealthy, "x".into()).await, Ok(true));
    assert!(metrics().await.contains("pool_workers_overdue{pool=\"ci\"} 0"));
    api.advance(Duration::from_secs(601));
    let text = metrics().await;
    assert!(text.contains("pool_workers_overdue{pool=\"ci\"} 1"), "{text}");
}

#[tokio::test]
async fn a_worker_that_nobody_can_ask_for_is_told_as_that_and_not_as_ready() {
    let unheard = pool_sim::CallFaults { fail_before: 1.0, ..pool_sim::CallFaults::default() };
    let silent = pool_sim::Settings {
        faults: [(pool_sim::Call::Probe, unheard)].into(),
        ..pool_sim::Settings::default()
    };
    let yaml = POOL.replace("provider: sim", "provider: local").replace("vm", "process");
    let api = Api::with_other(&yaml, "local", silent).await;
    // What is known of them is too long ago.
    api.advance(Duration::from_secs(3600));
    api.keeper.begin();
    for wait in ["0s", "300ms"] {
        let refused = api.acquire(json!({ "wait": wait })).await;
        assert_eq!(refused.status, 503, "{}", refused.body);
        assert_eq!(refused.body["code"], "no_capacity");
        assert_eq!(refused.body["phases"], json!({ "ready": 0, "unverified": 3 }));
        let detail = refused.body["detail"].as_str().unwrap();
        assert!(detail.contains("their probes get no answer"), "{detail}");
    }
}
