//! A pool embedded in a program of one's own: three simulated workers, reconciled, leased, given back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pool::clock::{Clock, Entropy};
use pool::config::StaticPoolConfig;
use pool::lease::{Ask, Outcome};
use pool::pool::{ResourcePool, Secrets, StaticPoolManager};
use pool::state::{Check, OpenOptions, Store, WhenMissing};
use pool_sim::{Cloud, Settings, SimProvider};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let config: StaticPoolConfig = serde_json::from_value(serde_json::json!({
        "pool_id": "embedded",
        "worker_type": "vm",
        "provider": "sim",
        "fixed_size": 3,
        "worker_config": { "image": "debian-12", "cpu_cores": 1, "memory_mb": 512 },
    }))?;
    let folder = std::env::temp_dir().join(format!("pool-embed-{}", std::process::id()));
    let clock = Clock::system();
    let store = Store::open(OpenOptions {
        path: &folder.join("state.db"),
        when_missing: WhenMissing::Create,
        clock: clock.clone(),
        entropy: Entropy::system(),
        what: "embed",
        check: Check::First,
    })?;
    let secrets = Secrets::new(Arc::new(BTreeMap::new()), store.secret_key());
    let time = clock.clone();
    let provider = SimProvider::new(Cloud::in_memory(), Settings::default(), move || {
        time.now().as_millisecond()
    });
    let pool = StaticPoolManager::new(config, provider, store, secrets, clock);
    let plan = pool.plan().await?;
    print(&format!("to add: {}\n", plan.summary().add));
    pool.reconcile().await?;
    let state = pool.status().await?;
    for worker in &state.workers {
        print(&format!("{} {}\n", worker.name, worker.phase));
    }
    // A job leases a worker, waiting for it at most a second; what is accepted has to be given back.
    let ask = Ask::of_pool(pool.id().clone(), "a job");
    let given = pool.acquire(ask, Duration::from_secs(1)).await?;
    let lease = given.accept().remove(0);
    print(&format!("{} is leased until {}\n", lease.name, lease.expires_at));
    pool.release(lease.id, Outcome::Ok).await?;
    std::fs::remove_dir_all(folder)?;
    Ok(())
}

fn print(text: &str) {
    use std::io::Write as _;
    let _closed = std::io::stdout().write_all(text.as_bytes()).is_err();
}
