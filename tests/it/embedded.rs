//! A pool as a library: `StaticPoolManager` behind `ResourcePool`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pool::apply::PoolOutcome;
use pool::clock::{Clock, Entropy};
use pool::pool::{PoolError, Secrets};
use pool::state::{Check, OpenOptions, StateError, Store, WhenMissing};
use pool::{ResourcePool, StaticPoolConfig, StaticPoolManager};
use pool_sim::{Cloud, Settings, SimProvider};

fn config(size: u32, protect: bool) -> StaticPoolConfig {
    serde_json::from_value(serde_json::json!({
        "pool_id": "embedded", "worker_type": "vm", "provider": "sim", "fixed_size": size,
        "worker_config": { "image": "a", "cpu_cores": 1, "memory_mb": 1 }, "protect": protect,
    }))
    .unwrap()
}

fn open(folder: &std::path::Path) -> Store {
    Store::open(OpenOptions {
        path: &folder.join("state.db"),
        when_missing: WhenMissing::Create,
        clock: Clock::system(),
        entropy: Entropy::system(),
        what: "test",
        check: Check::First,
    })
    .unwrap()
}

fn manager(
    folder: &std::path::Path,
    cloud: &Cloud,
    config: StaticPoolConfig,
) -> StaticPoolManager<SimProvider> {
    manager_of(open(folder), cloud, config, Settings::default())
}

fn manager_of(
    store: Store,
    cloud: &Cloud,
    config: StaticPoolConfig,
    settings: Settings,
) -> StaticPoolManager<SimProvider> {
    let clock = Clock::system();
    let secrets = Secrets::new(Arc::new(BTreeMap::new()), store.secret_key());
    let time = clock.clone();
    let now_ms = move || time.now().as_millisecond();
    let provider = SimProvider::new(cloud.clone(), settings, now_ms);
    StaticPoolManager::new(config, provider, store, secrets, clock)
}

#[tokio::test]
async fn a_pool_behind_the_trait_is_planned_reconciled_observed_and_told_of() {
    let folder = tempfile::tempdir().unwrap();
    let cloud = Cloud::in_memory();
    let pools: Vec<Box<dyn ResourcePool>> =
        vec![Box::new(manager(folder.path(), &cloud, config(3, true)))];
    let pool = &pools[0];
    assert_eq!(pool.id().as_str(), "embedded");
    let before = pool.status().await.unwrap();
    assert!(!before.is_converged() || before.workers.is_empty());
    assert_eq!(pool.plan().await.unwrap().summary().add, 3);
    assert_eq!(cloud.workers().len(), 0, "planning changes nothing");
    assert!(pool.reconcile().await.unwrap().iter().all(PoolOutcome::is_complete));
    assert_eq!(pool.observe().await.unwrap().workers.len(), 3);
    let status = pool.status().await.unwrap();
    assert!(status.is_converged());
    assert_eq!((status.ready, status.fixed_size), (3, Some(3)));
    assert!(pool.plan().await.unwrap().is_empty());
    cloud.kill(&cloud.workers()[1].observed.provider_id).unwrap();
    assert_eq!(pool.plan().await.unwrap().summary().add, 1);
    pool.reconcile().await.unwrap();
    assert_eq!(cloud.workers().len(), 3);
}

#[tokio::test]
async fn a_guard_refuses_it_too() {
    let folder = tempfile::tempdir().unwrap();
    let cloud = Cloud::in_memory();
    manager(folder.path(), &cloud, config(2, true)).reconcile().await.unwrap();
    let emptied = manager(folder.path(), &cloud, config(0, false));
    assert!(matches!(emptied.reconcile().await, Err(PoolError::Refused(_))));
    assert_eq!(cloud.workers().len(), 2);
    assert_eq!(emptied.last_known().map(|state| state.ready), Some(2));
}

#[tokio::test]
async fn two_runs_of_one_process_keep_out_of_each_others_way() {
    let folder = tempfile::tempdir().unwrap();
    let (cloud, store) = (Cloud::in_memory(), open(folder.path()));
    let slow = Settings { latency_ms: 200, ..Settings::default() };
    let first = manager_of(store.clone(), &cloud, config(2, false), slow.clone());
    let second = manager_of(store.clone(), &cloud, config(2, false), slow);
    let (one, other) = tokio::join!(first.reconcile(), second.reconcile());
    assert!(one.unwrap().iter().all(PoolOutcome::is_complete));
    assert!(matches!(other, Err(PoolError::State(StateError::Locked { .. }))), "{other:?}");
    // Afterwards it may, and so may another process.
    assert_eq!(second.reconcile().await.unwrap(), []);
    assert_eq!(manager(folder.path(), &cloud, config(2, false)).reconcile().await.unwrap(), []);
}

#[tokio::test]
async fn a_run_that_is_dropped_gives_its_lock_back() {
    let folder = tempfile::tempdir().unwrap();
    let (cloud, store) = (Cloud::in_memory(), open(folder.path()));
    let slow = Settings { latency_ms: 60_000, ..Settings::default() };
    let dropped = manager_of(store, &cloud, config(2, false), slow);
    let run = dropped.reconcile();
    assert!(tokio::time::timeout(Duration::from_millis(300), run).await.is_err());
    let other = manager(folder.path(), &cloud, config(2, false));
    for _ in 0..200 {
        match other.reconcile().await {
            Ok(outcomes) => {
                assert!(outcomes.iter().all(PoolOutcome::is_complete), "{outcomes:?}");
                assert_eq!(cloud.workers().len(), 2);
                return;
            }
            Err(PoolError::State(StateError::Locked { .. })) => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
    panic!("the lock was never given back");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_dropped_anywhere_leaves_no_lock_behind() {
    let folder = tempfile::tempdir().unwrap();
    let (cloud, store) = (Cloud::in_memory(), open(folder.path()));
    for drop_after in 0..60 {
        let size = 1 + drop_after % 3;
        let config = config(u32::try_from(size).unwrap(), false);
        let run = manager_of(store.clone(), &cloud, config.clone(), Settings::default());
        let limit = Duration::from_micros(drop_after * 250);
        let _dropped = tokio::time::timeout(limit, run.reconcile()).await.is_err();
        let mut tries = 0;
        while let Err(error) = run.reconcile().await {
            let is_locked = matches!(error, PoolError::State(StateError::Locked { .. }));
            assert!(is_locked && tries < 500, "dropped after {limit:?}: {error}");
            tries += 1;
            tokio::time::sleep(Duration::from_millis(4)).await;
        }
    }
}
