//! Many clients, a server that is killed at random, `pool apply` beside it, a provider that fails: what
//! everybody was told, and whether it can all be true.
//!
//! The checker is a function of the history alone; what it catches is tested with histories that lie.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::sandbox::{Sandbox, asked_for, pause};
use crate::serve::Server;

/// What a client was told, and when, in microseconds of the wall clock.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    pub(crate) id: String,
    pub(crate) fence: i64,
    pub(crate) worker: String,
    pub(crate) asked_at: i64,
    pub(crate) answered_at: i64,
    /// Until when it had the worker for sure: its release was sent, or its time was over.
    pub(crate) until: i64,
}

/// What the history proves to be wrong.
pub(crate) fn check(history: &[Held]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut by_worker: BTreeMap<&str, Vec<&Held>> = BTreeMap::new();
    for held in history {
        by_worker.entry(&held.worker).or_default().push(held);
    }
    for (worker, mut held) in by_worker {
        held.sort_by_key(|held| held.answered_at);
        for (number, one) in held.iter().enumerate() {
            for other in &held[number + 1..] {
                if one.id == other.id {
                    continue;
                }
                if other.answered_at < one.until && one.answered_at < other.until {
                    wrong.push(format!("{worker} was leased twice: {one:?} and {other:?}"));
                }
                if one.answered_at <= other.asked_at && one.fence >= other.fence {
                    wrong
                        .push(format!("the fence of {worker} did not grow: {one:?} and {other:?}"));
                }
            }
        }
    }
    wrong
}

#[test]
fn the_checker_catches_what_it_is_there_for() {
    let held = |id: &str, fence, asked_at, answered_at, until| Held {
        id: id.to_owned(),
        fence,
        worker: "w".to_owned(),
        asked_at,
        answered_at,
        until,
    };
    let one_after_the_other = [held("a", 1, 0, 10, 50), held("b", 2, 40, 50, 90)];
    assert_eq!(check(&one_after_the_other), Vec::<String>::new());
    let overlapping = [held("a", 1, 0, 10, 50), held("b", 2, 20, 49, 90)];
    assert!(check(&overlapping)[0].contains("leased twice"));
    let fences = [held("a", 2, 0, 10, 20), held("b", 2, 30, 40, 50)];
    assert!(check(&fences)[0].contains("did not grow"));
}

pub(crate) fn now() -> i64 {
    pool::clock::Clock::system().now().as_microsecond()
}

/// Draws numbers below what is asked for, the same ones for the same seed (xorshift, Marsaglia 2003).
pub(crate) fn draws(mut seed: u64) -> impl FnMut(u64) -> u64 {
    move |below| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % below
    }
}

impl Held {
    /// What the answer to an acquire says, for as long as the lease lasts.
    pub(crate) fn of(answer: &Value, asked_at: i64) -> Self {
        let lease = &answer["leases"][0];
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        Self {
            id: text(&lease["id"]),
            fence: lease["fence"].as_i64().unwrap(),
            worker: text(&lease["worker"]["name"]),
            asked_at,
            answered_at: now(),
            until: time(&lease["expires_at"]),
        }
    }
}

/// A time that a server told, in microseconds.
pub(crate) fn time(value: &Value) -> i64 {
    value.as_str().unwrap().parse::<Timestamp>().unwrap().as_microsecond()
}

/// One request, to a server that may not be there.
fn call(address: &str, method: &str, path: &str, body: &Value) -> Option<(u16, Value)> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let status = text.split(' ').nth(1)?.parse().ok()?;
    let (_, body) = text.split_once("\r\n\r\n")?;
    Some((status, serde_json::from_str(body).unwrap_or(Value::Null)))
}

struct Shared {
    address: Mutex<String>,
    stop: AtomicBool,
    history: Mutex<Vec<Held>>,
}

/// A client that acquires, renews, releases, or forgets, until it is told to stop.
fn client(shared: &Shared, seed: u64) {
    let mut random = draws(seed);
    while !shared.stop.load(Ordering::SeqCst) {
        let address = shared.address.lock().unwrap().clone();
        let ttl = format!("{}ms", 100 + random(400));
        let body = json!({ "pool": "ci", "holder": "c", "ttl": ttl, "wait": "200ms" });
        let asked_at = now();
        if random(10) == 0 {
            // Hangs up without reading the answer.
            if let Ok(mut stream) = TcpStream::connect(&address) {
                let text = body.to_string();
                let head =
                    format!("POST /v1/leases HTTP/1.1\r\nContent-Length: {}\r\n\r\n", text.len());
                let _gone = stream.write_all((head + &text).as_bytes());
            }
            continue;
        }
        let Some((201, answer)) = call(&address, "POST", "/v1/leases", &body) else {
            pause(Duration::from_millis(5));
            continue;
        };
        let mut held = Held::of(&answer, asked_at);
        if random(3) == 0 {
            let path = format!("/v1/leases/{}/renew", held.id);
            if let Some((200, renewed)) =
                call(&address, "POST", &path, &json!({ "fence": held.fence, "ttl": "500ms" }))
            {
                held.until = time(&renewed["expires_at"]);
            }
        }
        pause(Duration::from_millis(random(12)));
        if random(8) > 0 {
            held.until = held.until.min(now());
            let outcome = if random(4) == 0 { "job_failed" } else { "ok" };
            call(
                &address,
                "DELETE",
                &format!("/v1/leases/{}?outcome={outcome}", held.id),
                &Value::Null,
            );
        }
        shared.history.lock().unwrap().push(held);
    }
}

fn pool(size: u32, image: &str) -> String {
    format!(
        "pool_id: ci\nworker_type: vm\nprovider: sim\nfixed_size: {size}\n\
         worker_config: {{image: {image}, cpu_cores: 1, memory_mb: 1}}\n\
         update: {{drain_timeout: 300ms, max_surge: 2}}\nremediation: {{max_in_flight: 3, backoff: 1ms}}\n"
    )
}

#[test]
fn everything_that_was_told_under_kills_applies_and_faults_can_be_true() {
    let seconds = asked_for("POOL_HISTORY_SECONDS").map_or(6, |text| text.parse().unwrap());
    let sandbox = Sandbox::new();
    let faults = json!({ "fail_before": 0.1, "lose_answer": 0.1 });
    let settings = json!({ "seed": 7, "faults": { "create": faults, "delete": faults } });
    sandbox.write(".pool/sim/settings.json", &settings.to_string());
    sandbox.write("ci.yaml", &pool(6, "a"));
    let converge = || {
        for _ in 0..20 {
            if sandbox.pool(&["apply", "ci.yaml", "--auto-approve"]).code == Some(0) {
                return;
            }
        }
        panic!("it never converged");
    };
    converge();
    let mut server = Server::start(&sandbox, &[]);
    let shared = Arc::new(Shared {
        address: Mutex::new(server.address.clone()),
        stop: AtomicBool::new(false),
        history: Mutex::default(),
    });
    let clients: Vec<_> = (1..=8)
        .map(|seed| {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || client(&shared, seed * 0x9e37_79b9))
        })
        .collect();
    let images = ["a", "b", "c"];
    for round in 0..seconds {
        pause(Duration::from_millis(400));
        let size = 4 + round % 4;
        sandbox.write("ci.yaml", &pool(size, images[round as usize % images.len()]));
        // Busy workers may outlast it: that is a run to be repeated, not an error.
        let ran = sandbox.pool(&["apply", "ci.yaml", "--auto-approve", "--lock-timeout", "5s"]);
        assert!(matches!(ran.code, Some(0 | 4 | 5)), "{ran:?}");
        server.kill();
        server = Server::start(&sandbox, &[]);
        shared.address.lock().unwrap().clone_from(&server.address);
    }
    shared.stop.store(true, Ordering::SeqCst);
    for client in clients {
        client.join().unwrap();
    }
    let history = shared.history.lock().unwrap().clone();
    assert!(history.len() > 50, "only {} leases", history.len());
    assert_eq!(check(&history), Vec::<String>::new());
    // Whatever was answered is remembered.
    for held in &history {
        let (status, told) =
            call(&server.address, "GET", &format!("/v1/leases/{}", held.id), &Value::Null)
                .expect("the server is there");
        assert_eq!(status, 200, "{held:?} was lost");
        assert_eq!(told["worker"]["name"], held.worker.as_str());
    }
    // No worker began to go while somebody had it.
    let database = rusqlite::Connection::open(sandbox.path().join(".pool/state.db")).unwrap();
    let sql = "SELECT count(*) FROM event JOIN lease
               ON lease.pool = event.pool AND lease.slot = event.slot
                   AND lease.generation = event.generation
               WHERE event.to_phase = 'deleting' AND lease.granted_at < event.at
                   AND (lease.ended_at IS NULL OR lease.ended_at > event.at)";
    let taken: i64 = database.query_row(sql, [], |row| row.get(0)).unwrap();
    assert_eq!(taken, 0, "workers were deleted under jobs");
    let twice: i64 = database
        .query_row(
            "SELECT count(*) FROM (SELECT worker FROM lease WHERE ended_at IS NULL
                    GROUP BY worker HAVING count(*) > 1)",
            [],
            |row| row.get(0),
        )
        .unwrap();
    assert_eq!(twice, 0);
}

#[test]
fn every_answer_is_on_the_disk_before_it_is_given() {
    let strace = std::process::Command::new("strace").arg("-V").output().is_ok();
    if !strace {
        assert!(asked_for("CI").is_none(), "strace is not installed");
        let _said = writeln!(std::io::stderr(), "not run: strace is not installed");
        return;
    }
    let sandbox = Sandbox::new();
    sandbox.write("ci.yaml", &pool(6, "a"));
    sandbox.pool(&["apply", "ci.yaml", "--auto-approve"]).exits(0);
    let server = Server::start(&sandbox, &["--reconcile", "off"]);
    let trace = sandbox.path().join("trace");
    let mut strace = std::process::Command::new("strace")
        .args(["-f", "-e", "trace=fsync,fdatasync", "-o"])
        .arg(&trace)
        .args(["-p", &server.child.id().to_string()])
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    // Attached once its own leases leave a mark in the file.
    let synced = || {
        let text = std::fs::read_to_string(&trace).unwrap_or_default();
        text.lines().filter(|line| line.contains("sync(") && !line.contains("resumed")).count()
    };
    let cycle = || {
        let lease = server.acquire("ci");
        let path = format!("/v1/leases/{}", lease["id"].as_str().unwrap());
        assert_eq!(server.call("DELETE", &path, &Value::Null).0, 204);
    };
    for _ in 0..1000 {
        if synced() > 0 {
            break;
        }
        cycle();
    }
    assert!(synced() > 0, "strace sees nothing");
    pause(Duration::from_millis(50));
    let before = synced();
    for _ in 0..50 {
        cycle();
    }
    pause(Duration::from_millis(50));
    let counted = synced() - before;
    // One after the other: a batch each, two a cycle. The heartbeat and the look at expiry add a few.
    assert!((100..150).contains(&counted), "{counted} syncs for 100 batches");
    strace.kill().unwrap();
    strace.wait().unwrap();
}
