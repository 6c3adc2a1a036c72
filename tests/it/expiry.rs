//! Leases that expire while the server dies again and again, and servers that lie: each of the ways in which
//! a lease can be broken is tried, and the checker of histories has to find it.
//!
//! In one process, because no binary of ours can be told to lie: the state is on disk, a death is a
//! writer that stops at a commit, and whoever waits at it gets no answer.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request};
use http_body_util::BodyExt as _;
use pool::clock::{Clock, Entropy};
use pool::lease::terms::Respite;
use pool::pool::{Habits, Keeper, Mode, Providers};
use pool::serve::metrics::Metrics;
use pool::serve::{Served, router};
use pool::state::{CommitFault, CommitFaults};
use pool_sim::{Call, CallFaults, Settings};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use tower::ServiceExt as _;

use crate::history::{Held, check, draws, now, time};
use crate::support::World;

const POOL: &str = "
pool_id: ci
worker_type: vm
provider: sim
fixed_size: 10
worker_config: {image: a, cpu_cores: 1, memory_mb: 1}
leases: {recycle: {reset: true}}
remediation: {max_in_flight: 4, max_unhealthy: 100%, backoff: 1ms}
";

/// How the server is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lie {
    None,
    /// It answers before the commit.
    AnswersEarly,
    /// It takes a worker whoever has it.
    TakesAnyway,
    /// It believes that leases end earlier than it says, by rounding down to a second.
    CutsExpiry,
}

impl Lie {
    /// What the database does by itself from now on.
    fn sql(self) -> &'static str {
        match self {
            Self::None | Self::AnswersEarly => "",
            Self::TakesAnyway => {
                "DROP INDEX lease_open;
                 CREATE TRIGGER lie AFTER UPDATE OF lease ON worker WHEN NEW.lease IS NOT NULL
                 BEGIN UPDATE worker SET lease = NULL WHERE id = NEW.id; END"
            }
            Self::CutsExpiry => {
                "CREATE TRIGGER lie AFTER INSERT ON lease
                 BEGIN UPDATE lease SET expires_at = expires_at / 1000 * 1000 WHERE id = NEW.id; END"
            }
        }
    }
}

/// Dies at a commit, if it is told to.
struct Dies {
    lie: Lie,
    left: usize,
    dead: Arc<AtomicBool>,
}

impl CommitFaults for Dies {
    fn before_commit(&mut self) -> CommitFault {
        self.left -= 1;
        if self.left > 0 {
            return CommitFault::None;
        }
        self.dead.store(true, Ordering::SeqCst);
        if self.lie == Lie::AnswersEarly { CommitFault::AnswerThenDie } else { CommitFault::Die }
    }

    fn after_commit(&mut self) -> CommitFault {
        CommitFault::None
    }
}

/// What the clients share.
struct Shared {
    router: Mutex<Router>,
    stop: AtomicBool,
    history: Mutex<Vec<Held>>,
    abandoned: AtomicUsize,
}

impl Shared {
    async fn call(&self, method: Method, path: &str, body: Value) -> (u16, Value) {
        let router = self.router.lock().unwrap().clone();
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        let request = Request::builder().method(method).uri(path).body(body).unwrap();
        let response = router.oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    /// Acquires, works, and releases, renews or forgets, until it is told to stop.
    async fn client(self: Arc<Self>, seed: u64) {
        let mut random = draws(seed);
        while !self.stop.load(Ordering::SeqCst) {
            let ttl = format!("{}ms", 200 + random(600));
            let body = json!({ "pool": "ci", "holder": "c", "ttl": ttl, "wait": "200ms" });
            let asked_at = now();
            let asking = self.call(Method::POST, "/v1/leases", body);
            let patience = if random(10) == 0 { random(1000) } else { 10_000_000 };
            let Ok((status, answer)) = timeout(Duration::from_micros(patience), asking).await
            else {
                self.abandoned.fetch_add(1, Ordering::SeqCst);
                continue;
            };
            if status != 201 {
                sleep(Duration::from_millis(2)).await;
                continue;
            }
            let mut held = Held::of(&answer, asked_at);
            if random(3) == 0 {
                let path = format!("/v1/leases/{}/renew", held.id);
                let body = json!({ "fence": held.fence, "ttl": "400ms" });
                if let (200, renewed) = self.call(Method::POST, &path, body).await {
                    held.until = time(&renewed["expires_at"]);
                }
            }
            sleep(Duration::from_millis(random(30))).await;
            if random(6) > 0 {
                held.until = held.until.min(now());
                self.call(Method::DELETE, &format!("/v1/leases/{}", held.id), Value::Null).await;
            }
            self.history.lock().unwrap().push(held);
        }
    }
}

/// Starts a server that dies at that commit.
fn start(world: &World, lie: Lie, die_at: usize) -> (Keeper, Router, Arc<AtomicBool>) {
    let dead: Arc<AtomicBool> = Arc::default();
    let faults = Dies { lie, left: die_at, dead: Arc::clone(&dead) };
    let process = world.start_with(world.provider(), Box::new(faults));
    let metrics: Arc<Metrics> = Arc::default();
    let watcher = Arc::clone(&metrics);
    let respite = Respite::of(Duration::from_millis(100));
    let keeper = Keeper::open(
        process.store.with_reader().unwrap(),
        Providers::given(process.providers),
        process.secrets,
        Clock::system(),
        watcher,
        Habits { mode: Mode::Heal, respite },
    );
    keeper.begin();
    let served = Served { keeper: keeper.clone(), metrics };
    (keeper, router(Arc::new(served), &Entropy::system()), dead)
}

/// Returns whether some lease that a client was told of is not there. The number of one that was lost is given
/// again; its random part is not.
fn lost(shared: &Shared, database: &rusqlite::Connection) -> bool {
    let sql = "SELECT count(*) FROM lease WHERE printf('%d-%08x', id, nonce) = ?1";
    shared.history.lock().unwrap().iter().any(|held| {
        let found: i64 = database.query_row(sql, [&held.id], |row| row.get(0)).unwrap();
        found == 0
    })
}

/// Returns whether the lie shows already: how soon it does is up to the machine.
fn is_found_out(lie: Lie, shared: &Shared, database: &rusqlite::Connection) -> bool {
    match lie {
        Lie::None => false,
        Lie::AnswersEarly => lost(shared, database),
        Lie::TakesAnyway | Lie::CutsExpiry => !check(&shared.history.lock().unwrap()).is_empty(),
    }
}

/// Runs clients against servers that die; returns how many leases they had, and what was wrong.
async fn run(lie: Lie, rounds: usize) -> (usize, Vec<String>) {
    let failing = CallFaults { fail_before: 0.1, lose_answer: 0.1, ..CallFaults::default() };
    let faults = [Call::Create, Call::Delete, Call::Reset].map(|call| (call, failing)).into();
    let world =
        World::told_by(Settings { seed: 11, faults, ..Settings::default() }, Clock::system());
    while !world.try_to_converge(POOL).await {}
    let database = rusqlite::Connection::open(world.state_path()).unwrap();
    database.execute_batch(lie.sql()).unwrap();
    let (mut keeper, first, mut dead) = start(&world, lie, 20);
    let shared = Arc::new(Shared {
        router: Mutex::new(first),
        stop: AtomicBool::new(false),
        history: Mutex::default(),
        abandoned: AtomicUsize::new(0),
    });
    let clients: Vec<_> =
        (1..=12).map(|seed| tokio::spawn(Arc::clone(&shared).client(seed * 0x9e37_79b9))).collect();
    for round in 1..=rounds {
        for _ in 0..1000 {
            if dead.load(Ordering::SeqCst) {
                break;
            }
            sleep(Duration::from_millis(2)).await;
        }
        keeper.close();
        let last = round == rounds || is_found_out(lie, &shared, &database);
        if last {
            shared.stop.store(true, Ordering::SeqCst);
        }
        world.bury_the_dead();
        let die_at = if last { usize::MAX } else { 15 + round * 37 % 60 };
        let (next, routes, died) = start(&world, lie, die_at);
        *shared.router.lock().unwrap() = routes;
        (keeper, dead) = (next, died);
        if last {
            break;
        }
    }
    for client in clients {
        client.await.unwrap();
    }
    let judged = judge(&shared, &database, lie).await;
    keeper.close();
    judged
}

/// Compares what was told with what is recorded, once everything that was leased has expired.
async fn judge(shared: &Shared, database: &rusqlite::Connection, lie: Lie) -> (usize, Vec<String>) {
    let history = std::mem::take(&mut *shared.history.lock().unwrap());
    let mut wrong = check(&history);
    for held in &history {
        let path = format!("/v1/leases/{}", held.id);
        let (status, told) = shared.call(Method::GET, &path, Value::Null).await;
        if status != 200 || told["worker"]["name"] != held.worker.as_str() {
            wrong.push(format!("{held:?} was lost"));
        }
    }
    let count = |sql: &str| database.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
    let open = "SELECT count(*) FROM lease WHERE ended_at IS NULL";
    for _ in 0..1000 {
        if count(open) == 0 {
            break;
        }
        sleep(Duration::from_millis(10)).await;
    }
    if count(open) > 0 {
        wrong.push("leases whose time is over are still open".to_owned());
    }
    let expired = count("SELECT count(*) FROM lease WHERE ending = 'expired'");
    if lie == Lie::None {
        assert!(expired > 5, "only {expired} of {} leases expired", history.len());
        assert!(shared.abandoned.load(Ordering::SeqCst) > 0);
    }
    let under_jobs = "SELECT count(*) FROM event JOIN lease
        ON lease.pool = event.pool AND lease.slot = event.slot AND lease.generation = event.generation
        WHERE event.to_phase = 'deleting' AND lease.granted_at < event.at
            AND (lease.ended_at IS NULL OR lease.ended_at > event.at)";
    if count(under_jobs) > 0 {
        wrong.push("workers were deleted under jobs".to_owned());
    }
    (history.len(), wrong)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn leases_expire_while_the_server_dies_again_and_again() {
    let (leases, wrong) = run(Lie::None, 8).await;
    assert_eq!(wrong, Vec::<String>::new());
    assert!(leases > 50, "only {leases} leases");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_server_that_answers_before_it_commits_is_found_out() {
    let (_, wrong) = run(Lie::AnswersEarly, 200).await;
    assert!(wrong.iter().any(|wrong| wrong.ends_with("was lost")), "{wrong:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_server_that_takes_workers_whoever_has_them_is_found_out() {
    let (_, wrong) = run(Lie::TakesAnyway, 200).await;
    assert!(wrong.iter().any(|wrong| wrong.contains("leased twice")), "{wrong:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_server_that_cuts_leases_short_is_found_out() {
    let (_, wrong) = run(Lie::CutsExpiry, 200).await;
    assert!(wrong.iter().any(|wrong| wrong.contains("leased twice")), "{wrong:?}");
}
