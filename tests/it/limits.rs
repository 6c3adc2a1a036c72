//! What may be asked of a provider is kept to by all processes of a state together.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::Duration;

use pool::clock::{Clock, Entropy};
use pool::config::{LimitsConfig, ProviderConfig, RateLimit};
use pool::pool::{ProviderSettings, Providers};
use pool::state::{Check, OpenOptions, Store, WhenMissing};
use pool_provider::{Call, SharedProvider, WorkerProvider as _};
use pool_sim::Settings;
use tokio::time::{Instant, sleep, timeout};

use super::support::{Switch, World};

const FOUR: &str = "{pool_id: ci, worker_type: vm, provider: sim, fixed_size: 4, \
    provisioning: {max_concurrency: 4}, worker_config: {image: a, cpu_cores: 1, memory_mb: 1}}";

/// One process of the state at `folder`, with the clock that it reads.
fn process(folder: &tempfile::TempDir, clock: Clock) -> Store {
    Store::open(OpenOptions {
        path: &folder.path().join("state.db"),
        when_missing: WhenMissing::Create,
        clock,
        entropy: Entropy::system(),
        what: "test",
        check: Check::First,
    })
    .unwrap()
}

/// The provider `sim` as such a process opens it, with these limits.
fn limited(folder: &tempfile::TempDir, store: &Store, limits: LimitsConfig) -> SharedProvider {
    limited_to(folder, store, limits, None)
}

/// The same, with the calls going to another provider.
fn limited_to(
    folder: &tempfile::TempDir,
    store: &Store,
    limits: LimitsConfig,
    target: Option<SharedProvider>,
) -> SharedProvider {
    let settings = ProviderSettings {
        local_root: folder.path().join("local"),
        launcher: ("/bin/false".into(), Vec::new()),
        warden: ("/bin/false".into(), Vec::new()),
        exec_root: "/nowhere".into(),
        environment: Arc::default(),
        sim_root: folder.path().join("sim"),
        clock: Clock::system(),
    };
    let providers = Providers::opening(
        settings,
        store.clone(),
        Box::new(move |_, bare| target.clone().unwrap_or(bare)),
    );
    let config = ProviderConfig { limits, ..ProviderConfig::implicit("sim").unwrap() };
    providers.declare(BTreeMap::from([("sim".to_owned(), config)]));
    providers.get_now("sim").unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn so_many_calls_are_under_way_in_all_processes_together() {
    let folder = tempfile::tempdir().unwrap();
    let limits = LimitsConfig { max_concurrency: Some(3), rate_limit: None };
    let (under_way, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut calls = Vec::new();
    for _ in 0..2 {
        let store = process(&folder, Clock::system());
        let provider = limited(&folder, &store, limits.clone());
        for _ in 0..12 {
            let (provider, under_way, most) =
                (provider.clone(), Arc::clone(&under_way), Arc::clone(&most));
            calls.push(tokio::spawn(async move {
                let turn = provider.turn(Call::Change).await;
                let now = under_way.fetch_add(1, Ordering::SeqCst) + 1;
                most.fetch_max(now, Ordering::SeqCst);
                sleep(Duration::from_millis(20)).await;
                under_way.fetch_sub(1, Ordering::SeqCst);
                drop(turn);
            }));
        }
    }
    for call in calls {
        call.await.unwrap();
    }
    assert_eq!(most.load(Ordering::SeqCst), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn looking_waits_for_nobody_who_changes_something() {
    let folder = tempfile::tempdir().unwrap();
    let store = process(&folder, Clock::system());
    let limits = LimitsConfig { max_concurrency: Some(1), rate_limit: None };
    let provider = limited(&folder, &store, limits);
    let _long_call = provider.turn(Call::Change).await;
    let _look = provider.turn(Call::Look).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limited_provider_stays_limited_whoever_wraps_it() {
    let folder = tempfile::tempdir().unwrap();
    let store = process(&folder, Clock::system());
    let limits = LimitsConfig { max_concurrency: Some(1), rate_limit: None };
    let wrapped = SharedProvider::new(SharedProvider::new(limited(&folder, &store, limits)));
    let turn = wrapped.turn(Call::Change).await;
    let next = timeout(Duration::from_millis(300), wrapped.turn(Call::Change));
    assert!(next.await.is_err(), "it is counted no more");
    drop(turn);
    drop(wrapped.turn(Call::Change).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_calls_of_a_dead_process_count_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let store = process(&folder, Clock::system());
    assert!(store.begin_call("sim", 1).await.unwrap().is_some());
    let other = process(&folder, Clock::system());
    assert_eq!(other.begin_call("sim", 1).await.unwrap(), None, "its process lives");
    let database = rusqlite::Connection::open(folder.path().join("state.db")).unwrap();
    let sql = "UPDATE provider_call SET holder = json_set(holder, '$.pid', 999999999)";
    assert_eq!(database.execute(sql, []).unwrap(), 1);
    let call = other.begin_call("sim", 1).await.unwrap().unwrap();
    other.end_call(call).await.unwrap();
    let left: i64 =
        database.query_row("SELECT count(*) FROM provider_call", [], |row| row.get(0)).unwrap();
    assert_eq!(left, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_spread_over_all_processes_and_a_clock_set_back_stops_none() {
    let folder = tempfile::tempdir().unwrap();
    let ms = Arc::new(AtomicI64::new(1_700_000_000_000));
    let told = Arc::clone(&ms);
    let clock = Clock::telling(move || {
        jiff::Timestamp::from_millisecond(told.load(Ordering::SeqCst)).unwrap()
    });
    let (one, other) = (process(&folder, clock.clone()), process(&folder, clock));
    let interval = Duration::from_millis(100);
    let mut waits = Vec::new();
    for store in [&one, &other, &one, &other] {
        waits.push(store.reserve_call("sim", interval).await.unwrap().as_millis());
    }
    assert_eq!(waits, [0, 100, 200, 300]);
    assert_eq!(one.reserve_call("another", interval).await.unwrap(), Duration::ZERO);
    ms.fetch_add(1000, Ordering::SeqCst);
    assert_eq!(one.reserve_call("sim", interval).await.unwrap(), Duration::ZERO);
    ms.fetch_sub(3_600_000, Ordering::SeqCst);
    let wait = other.reserve_call("sim", interval).await.unwrap();
    assert!(wait <= interval * 16, "{wait:?}");
}

#[tokio::test]
async fn a_limited_provider_is_called_no_faster_than_it_may_be() {
    let folder = tempfile::tempdir().unwrap();
    let store = process(&folder, Clock::system());
    let rate = RateLimit { calls: 50, per: pool::config::HumanDuration::from_secs(1) };
    let limits = LimitsConfig { max_concurrency: None, rate_limit: Some(rate) };
    let provider = limited(&folder, &store, limits);
    let since = Instant::now();
    for _ in 0..6 {
        drop(provider.turn(Call::Look).await);
    }
    // Never less than five intervals, however slow this machine is.
    assert!(since.elapsed() >= Duration::from_millis(99), "{:?}", since.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_its_turn_is_not_intended_yet() {
    let world = World::told_by(Settings { latency_ms: 40, ..Settings::default() }, Clock::system());
    let mut reconciler = world.start(&Switch::never());
    let folder = tempfile::tempdir().unwrap();
    let limits = LimitsConfig { max_concurrency: Some(1), rate_limit: None };
    let cloud = SharedProvider::new(world.provider());
    let provider = limited_to(&folder, &reconciler.store, limits, Some(cloud));
    reconciler.providers.insert("sim".to_owned(), provider);
    let store = reconciler.store.clone();
    let run = tokio::spawn(async move { super::support::apply(&reconciler, FOUR).await });
    let mut most = 0;
    while !run.is_finished() {
        let recorded = store.load().await.unwrap();
        let workers = recorded.iter().flat_map(|pool| &pool.workers);
        most = most.max(workers.filter(|worker| worker.operation.is_some()).count());
        sleep(Duration::from_millis(2)).await;
    }
    assert!(run.await.unwrap().is_ok());
    assert_eq!(world.cloud.workers().len(), 4);
    assert_eq!(most, 1, "an intent was written for a call that did not leave");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_no_longer_waits_for_a_turn_takes_none_away() {
    let folder = tempfile::tempdir().unwrap();
    let store = process(&folder, Clock::system());
    let limits = LimitsConfig { max_concurrency: Some(1), rate_limit: None };
    let provider = limited(&folder, &store, limits);
    for wait_us in 0..200 {
        let turn = provider.turn(Call::Change);
        drop(tokio::time::timeout(Duration::from_micros(wait_us * 10), turn).await);
    }
    let patience = Duration::from_secs(30);
    let turn = tokio::time::timeout(patience, provider.turn(Call::Change)).await;
    assert!(turn.is_ok(), "a call is counted that nobody makes");
}
