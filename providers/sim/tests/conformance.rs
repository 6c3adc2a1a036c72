//! The simulated cloud keeps the contract: perfect, slow, forgetful of names, in memory and in a file.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};

use pool_provider::conformance::{self, Outcome, Subject};
use pool_provider::{
    CreateRequest, DeploymentId, Generation, Idempotency, Progress, ProviderError, Slot,
    WorkerName, WorkerProvider as _, WorkerSpec,
};
use pool_sim::{Call, CallFaults, Cloud, RateLimit, Settings, SimProvider};

struct Sim {
    cloud: Cloud,
    settings: Settings,
    next: Mutex<Option<Settings>>,
}

fn now() -> i64 {
    static START: std::sync::OnceLock<tokio::time::Instant> = std::sync::OnceLock::new();
    let start = *START.get_or_init(tokio::time::Instant::now);
    i64::try_from(start.elapsed().as_millis()).unwrap()
}

impl Sim {
    fn new(cloud: Cloud, settings: Settings) -> Self {
        Self { cloud, settings, next: Mutex::new(None) }
    }
}

impl Subject for Sim {
    type Provider = SimProvider;

    fn provider(&self) -> SimProvider {
        let settings = self.next.lock().unwrap().take().unwrap_or_else(|| self.settings.clone());
        SimProvider::new(self.cloud.clone(), settings, now)
    }

    fn spec(&self) -> WorkerSpec {
        WorkerSpec {
            image: "image".into(),
            labels: [("os".to_owned(), "linux".to_owned())].into(),
            tags: vec!["ci".into()],
            ..WorkerSpec::default()
        }
    }

    fn lose_next_create(&self) -> bool {
        let faults = CallFaults { lose_answer: 1.0, ..CallFaults::default() };
        let faults = BTreeMap::from([(Call::Create, faults)]);
        *self.next.lock().unwrap() = Some(Settings { faults, ..self.settings.clone() });
        true
    }

    fn hide_from_next_listing(&self) -> bool {
        let settings = Settings { incomplete_listings: 1.0, ..self.settings.clone() };
        *self.next.lock().unwrap() = Some(settings);
        true
    }
}

async fn check(cloud: Cloud, settings: Settings) {
    let subject = Sim::new(cloud, settings);
    for finding in conformance::run(&subject, [1; 15], &mut |_| {}).await {
        assert!(!matches!(finding.outcome, Outcome::Broken(_)), "{finding}");
    }
}

#[tokio::test]
async fn a_perfect_cloud_keeps_every_rule() {
    check(Cloud::in_memory(), Settings::default()).await;
}

#[tokio::test]
async fn a_slow_cloud_with_delayed_and_paged_listings_keeps_every_rule() {
    let settings =
        Settings { latency_ms: 10, listing_delay_ms: 40, page_size: 2, ..Settings::default() };
    check(Cloud::in_memory(), settings).await;
}

#[tokio::test]
async fn a_cloud_with_unique_names_keeps_every_rule() {
    let settings = Settings { idempotency: Idempotency::UniqueName, ..Settings::default() };
    check(Cloud::in_memory(), settings).await;
}

#[tokio::test]
async fn a_cloud_without_idempotency_keeps_the_other_rules() {
    let settings = Settings { idempotency: Idempotency::None, ..Settings::default() };
    check(Cloud::in_memory(), settings).await;
}

#[tokio::test]
async fn a_cloud_in_a_file_keeps_every_rule() {
    let folder = tempfile::tempdir().unwrap();
    check(Cloud::open(folder.path()).unwrap(), Settings::default()).await;
}

const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

fn request(slot: u32) -> CreateRequest {
    CreateRequest {
        owner: DeploymentId::from_random([9; 16]),
        name: WorkerName::new("t".parse().unwrap(), Slot(slot), Generation(1)),
        attempt: 1,
        passed_over: 0,
        operation: 1,
        token: format!("token-{slot}"),
        spec: WorkerSpec::default(),
        spec_hash: "v1:0".into(),
        progress: Progress::default(),
        timeout: PATIENCE,
    }
}

#[tokio::test]
async fn two_processes_share_one_file_and_a_torn_line_is_a_call_without_effect() {
    let folder = tempfile::tempdir().unwrap();
    let open = || SimProvider::open(folder.path(), now).unwrap();
    let (one, other) = (open(), open());
    one.create(&request(0)).await.unwrap();
    other.create(&request(1)).await.unwrap();
    let owner = request(0).owner;
    assert_eq!(one.list(&owner, None).await.unwrap().workers.len(), 2);
    let log = folder.path().join("cloud.jsonl");
    let whole = std::fs::read(&log).unwrap();
    let torn = [whole.as_slice(), b"{\"call\":\"create\",\"put\":{\"ow"].concat();
    std::fs::write(&log, torn).unwrap();
    let later = open();
    assert_eq!(later.list(&owner, None).await.unwrap().workers.len(), 2);
    later.create(&request(2)).await.unwrap();
    assert_eq!(one.list(&owner, None).await.unwrap().workers.len(), 3);
    assert_eq!(open().cloud().calls()[&Call::Create], 3);
}

#[tokio::test]
async fn limits_have_their_names() {
    let provider = |settings| SimProvider::new(Cloud::in_memory(), settings, now);
    let capacity = provider(Settings { capacity: Some(1), ..Settings::default() });
    capacity.create(&request(0)).await.unwrap();
    assert!(matches!(capacity.create(&request(1)).await, Err(ProviderError::OutOfCapacity { .. })));
    let quota = provider(Settings { quota: Some(1), ..Settings::default() });
    quota.create(&request(0)).await.unwrap();
    assert!(matches!(quota.create(&request(1)).await, Err(ProviderError::Quota(_))));
}

#[tokio::test]
async fn a_rate_limit_says_how_long_to_wait() {
    let time = std::sync::Arc::new(AtomicI64::new(0));
    let settings =
        Settings { rate_limit: Some(RateLimit { calls: 2, per_ms: 100 }), ..Settings::default() };
    let clock = std::sync::Arc::clone(&time);
    let provider =
        SimProvider::new(Cloud::in_memory(), settings, move || clock.load(Ordering::SeqCst));
    provider.create(&request(0)).await.unwrap();
    time.store(30, Ordering::SeqCst);
    provider.create(&request(1)).await.unwrap();
    let Err(ProviderError::RateLimited { retry_after, .. }) = provider.create(&request(2)).await
    else {
        panic!("the third call within 100 ms was let through");
    };
    assert_eq!(retry_after, Some(std::time::Duration::from_millis(70)));
    time.store(100, Ordering::SeqCst);
    provider.create(&request(2)).await.unwrap();
}

#[tokio::test]
async fn it_holds_a_hundred_thousand_workers() {
    let provider = SimProvider::new(Cloud::in_memory(), Settings::default(), now);
    for slot in 0..100_000 {
        provider.create(&request(slot)).await.unwrap();
    }
    let owner = request(0).owner;
    let (mut page, mut count, mut pages) = (None, 0, 0);
    loop {
        let listing = provider.list(&owner, page.as_ref()).await.unwrap();
        count += listing.workers.len();
        pages += 1;
        match listing.next {
            Some(next) => page = Some(next),
            None => break,
        }
    }
    assert_eq!((count, pages), (100_000, 100));
}
