//! The real server over a real socket: what it lets in, what survives it, and the client commands.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::sandbox::{Sandbox, pause, wait_until};

pub(crate) const POOL: &str = "
pool_id: web
worker_type: process
fixed_size: 3
worker_config: {image: /bin/sleep, command: [infinity], cpu_cores: 1, memory_mb: 16}
";

/// A server that is running.
pub(crate) struct Server {
    pub(crate) child: Child,
    pub(crate) address: String,
}

impl Server {
    /// Starts a server on a port of its own.
    pub(crate) fn start(sandbox: &Sandbox, arguments: &[&str]) -> Self {
        let mut all = vec!["serve", "--listen", "127.0.0.1:0", "--log-format", "json"];
        all.extend(arguments);
        let mut child =
            sandbox.command(&all).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let address = loop {
            let mut line = String::new();
            assert!(log.read_line(&mut line).unwrap() > 0, "the server ended before it listened");
            let told: Value = serde_json::from_str(&line).unwrap_or(Value::Null);
            if told["message"] == "serving" {
                break told["address"].as_str().unwrap().to_owned();
            }
        };
        let file = std::fs::File::create(sandbox.path().join("serve.log")).unwrap();
        // Somebody has to read on, or the server would stand still; tests look into the file.
        std::thread::spawn(move || std::io::copy(&mut log, &mut { file }).map(drop));
        Self { child, address }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    /// Makes one request on a connection of its own.
    pub(crate) fn call(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let mut stream = self.connect();
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let status = text.split(' ').nth(1).unwrap().parse().unwrap();
        let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        (status, serde_json::from_str(body).unwrap_or_else(|_| Value::String(body.to_owned())))
    }

    pub(crate) fn get(&self, path: &str) -> Value {
        self.call("GET", path, &Value::Null).1
    }

    pub(crate) fn acquire(&self, pool: &str) -> Value {
        let (status, body) =
            self.call("POST", "/v1/leases", &json!({ "pool": pool, "holder": "me" }));
        assert_eq!(status, 201, "{body}");
        body["leases"][0].clone()
    }

    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ended = self.child.kill().and_then(|()| self.child.wait());
    }
}

fn applied() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("web.yaml", POOL);
    sandbox.pool(&["apply", "web.yaml", "--auto-approve"]).exits(0);
    sandbox
}

#[test]
fn an_answered_lease_survives_kill_9_and_the_server_comes_back() {
    let sandbox = applied();
    let server = Server::start(&sandbox, &[]);
    let lease = server.acquire("web");
    server.kill();
    let server = Server::start(&sandbox, &[]);
    let path = format!("/v1/leases/{}", lease["id"].as_str().unwrap());
    assert_eq!(server.get(&path), lease);
    assert_ne!(server.acquire("web")["worker"], lease["worker"]);
    assert_eq!(server.call("DELETE", &path, &Value::Null).0, 204);
}

#[test]
fn a_server_logs_each_call_of_a_provider_once() {
    let sandbox = applied();
    let server = Server::start(&sandbox, &["-v"]);
    let (status, _) = server.call("POST", "/v1/workers/web-0-1/replace", &json!({}));
    assert!(status < 300, "{status}");
    let of = |call: &str, worker: &str| {
        let log = sandbox.read("serve.log");
        let (call, worker) = (format!("\"call\":\"{call}\""), format!("\"worker\":\"{worker}\""));
        log.lines().filter(|line| line.contains(&call) && line.contains(&worker)).count()
    };
    wait_until("it is replaced", || of("delete", "web-0-1") > 0 && of("create", "web-0-2") > 0);
    assert_eq!((of("delete", "web-0-1"), of("create", "web-0-2")), (1, 1));
}

#[test]
fn one_server_serves_a_state_and_only_this_machine() {
    let sandbox = applied();
    let server = Server::start(&sandbox, &[]);
    let second = sandbox.pool(&["serve", "--listen", "127.0.0.1:0"]).exits(4);
    assert!(second.stderr.contains("is served by pool serve (process"), "{}", second.stderr);
    server.kill();
    let exposed = sandbox.pool(&["serve", "--listen", "0.0.0.0:0"]).exits(1);
    assert!(exposed.stderr.contains("can be reached from other machines"), "{}", exposed.stderr);
    assert!(exposed.stderr.contains("hint:"), "{}", exposed.stderr);
    let nothing = Sandbox::new();
    nothing.pool(&["serve"]).exits(1);
    let taken = Server::start(&sandbox, &[]);
    let other = applied();
    let refused = other.pool(&["serve", "--listen", &taken.address]).exits(1);
    assert!(refused.stderr.contains("in use"), "{}", refused.stderr);
    assert!(sandbox.pool(&["serve", "--log", "pool=="]).exits(1).stderr.contains("log filter"));
}

#[test]
fn it_stops_when_asked_answers_those_who_wait_and_gives_the_state_back() {
    let sandbox = applied();
    let mut server = Server::start(&sandbox, &[]);
    for _ in 0..3 {
        server.acquire("web");
    }
    let mut waiting = server.connect();
    let body = json!({ "pool": "web", "holder": "late", "wait": "1h" }).to_string();
    write!(
        waiting,
        "POST /v1/leases HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut events = server.connect();
    write!(events, "GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    wait_until("it waits", || server.get("/v1/pools/web")["queue"]["length"] == 1);
    server.signal("-TERM");
    let mut answer = String::new();
    waiting.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("stopping"), "{answer}");
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
    // Nothing is locked, and the leases are there.
    let server = Server::start(&sandbox, &[]);
    assert_eq!(server.get("/v1/leases")["leases"].as_array().unwrap().len(), 3);
}

#[test]
fn systemd_is_told_when_it_serves_that_it_lives_and_when_it_stops() {
    let mut sandbox = applied();
    let path = sandbox.path().join("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    sandbox.set("NOTIFY_SOCKET", path.to_str().unwrap());
    sandbox.set("WATCHDOG_USEC", "400000");
    let mut server = Server::start(&sandbox, &[]);
    let told = || {
        let mut text = [0; 256];
        let length = socket.recv(&mut text).unwrap();
        String::from_utf8(text[..length].to_vec()).unwrap().trim().to_owned()
    };
    assert_eq!(told(), "READY=1");
    assert_eq!(told(), "WATCHDOG=1");
    server.signal("-TERM");
    while told() != "STOPPING=1" {}
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_client_that_hangs_up_leaves_the_line() {
    let sandbox = applied();
    let server = Server::start(&sandbox, &[]);
    for _ in 0..3 {
        server.acquire("web");
    }
    let mut waiting = server.connect();
    let body = json!({ "pool": "web", "holder": "late", "wait": "1h" }).to_string();
    write!(
        waiting,
        "POST /v1/leases HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let length = || server.get("/v1/pools/web")["queue"]["length"].clone();
    wait_until("it waits", || length() == 1);
    drop(waiting);
    wait_until("it left", || length() == 0);
}

#[test]
fn a_slow_client_keeps_nobody_waiting_and_is_let_go() {
    let sandbox = applied();
    let server = Server::start(&sandbox, &[]);
    let mut slow = server.connect();
    write!(slow, "POST /v1/leases HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{{")
        .unwrap();
    server.acquire("web");
    // Its body does not come: it is told so, and the connection ends.
    let mut answer = String::new();
    let _ended = slow.read_to_string(&mut answer);
    assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
    let mut large = server.connect();
    let header = "x".repeat(200_000);
    let _refused =
        write!(large, "GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Large: {header}\r\n\r\n");
    let mut answer = Vec::new();
    let _ended = large.read_to_end(&mut answer);
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 431"), "{:?}", answer.get(..40));
    assert_eq!(server.get("/healthz"), "ok\n");
}

#[test]
fn events_are_streamed_and_can_be_resumed() {
    let sandbox = applied();
    let server = Server::start(&sandbox, &[]);
    let read = |after: &str, until: &str| {
        let mut stream = server.connect();
        write!(stream, "GET /v1/events{after} HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let mut lines = Vec::new();
        for line in BufReader::new(stream).lines() {
            let line = line.unwrap();
            let found = line.contains(until);
            lines.push(line);
            if found {
                break;
            }
        }
        lines
    };
    let lease = server.acquire("web");
    let all = read("?after=0", "\"lease_granted\"");
    let ids: Vec<i64> =
        all.iter().filter_map(|line| line.strip_prefix("id: ")?.parse().ok()).collect();
    assert!(ids.is_sorted() && ids.len() > 5, "{all:?}");
    server.call("DELETE", &format!("/v1/leases/{}", lease["id"].as_str().unwrap()), &Value::Null);
    let last = ids.last().unwrap();
    let more = read(&format!("?after={last}"), "\"lease_ended\"");
    assert!(!more.iter().any(|line| line.contains("lease_granted")), "{more:?}");
    assert!(more.iter().any(|line| line == "event: lease_ended"), "{more:?}");
}

#[test]
fn a_command_holds_a_lease_for_as_long_as_it_runs() {
    let sandbox = applied();
    let server = Server::start(&sandbox, &[]);
    let url = server.url();
    let run = |script: &str| {
        let arguments = [
            "lease", "run", "--server", &url, "--pool", "web", "--ttl", "300ms", "--", "sh", "-c",
            script,
        ];
        sandbox.pool(&arguments)
    };
    let told = run("echo $POOL_WORKER $POOL_LEASE $POOL_ADDRESS $POOL_FENCE; exit 7").exits(7);
    let words: Vec<&str> = told.stdout.split_whitespace().collect();
    assert_eq!((words[0], words[2]), ("web-0-1", "127.0.0.1"));
    assert!(words[1].starts_with(&format!("{}-", words[3])), "{words:?}");
    let lease = server.get(&format!("/v1/leases/{}", words[1]));
    assert_eq!(lease["ending"], "job_failed");
    run("kill -TERM $$").exits(128 + 15);
    // Longer than the lease: it was renewed.
    let id = run("sleep 1; echo $POOL_LEASE").exits(0).stdout;
    let lease = server.get(&format!("/v1/leases/{}", id.trim()));
    assert_eq!(lease["ending"], "ok");
    assert!(lease["expires_at"].as_str() > lease["granted_at"].as_str());
    let missing =
        sandbox.pool(&["lease", "run", "--server", &url, "--pool", "web", "--", "/no/such"]);
    assert!(missing.exits(127).stderr.contains("running /no/such"));
    assert_eq!(server.get("/v1/leases")["leases"], json!([]), "everything was released");
}

#[test]
fn signals_reach_the_command_and_the_lease_is_released() {
    let sandbox = applied();
    let server = Server::start(&sandbox, &[]);
    let script = "trap 'echo got it; exit 3' TERM; echo ready; while :; do sleep 0.05; done";
    let mut run = sandbox
        .command(&[
            "lease",
            "run",
            "--server",
            &server.url(),
            "--pool",
            "web",
            "--",
            "sh",
            "-c",
            script,
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(run.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    assert!(
        Command::new("kill").args(["-TERM", &run.id().to_string()]).status().unwrap().success()
    );
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert_eq!((rest.as_str(), run.wait().unwrap().code()), ("got it\n", Some(3)));
    assert_eq!(server.get("/v1/leases")["leases"], json!([]));
}

#[test]
fn what_a_command_started_ends_with_it_and_a_signal_while_waiting_is_told_as_one() {
    let sandbox = Sandbox::new();
    sandbox.write("web.yaml", &POOL.replace("fixed_size: 3", "fixed_size: 1"));
    sandbox.pool(&["apply", "web.yaml", "--auto-approve"]).exits(0);
    let server = Server::start(&sandbox, &[]);
    let url = server.url();
    let run = |script: &str| {
        let words = ["lease", "run", "--server", &url, "--pool", "web", "--", "sh", "-c", script];
        sandbox
            .command(&words)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    let terminate = |child: &Child| {
        let pid = child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    };
    let mut first = run("sleep 1000 & echo $!; wait; sleep 1000");
    let mut grandchild = String::new();
    BufReader::new(first.stdout.take().unwrap()).read_line(&mut grandchild).unwrap();
    let grandchild = format!("/proc/{}/stat", grandchild.trim());
    let mut second = run("true");
    let queue = || server.get("/v1/pools/web")["queue"]["length"].clone();
    wait_until("it waits in line", || queue() == 1);
    terminate(&second);
    assert_eq!(second.wait().unwrap().code(), Some(143), "as a shell would say");
    terminate(&first);
    assert_eq!(first.wait().unwrap().code(), Some(143));
    let runs = || std::fs::read_to_string(&grandchild).is_ok_and(|stat| !stat.contains(") Z "));
    wait_until("what it started is gone", || !runs());
    assert_eq!(server.get("/v1/leases")["leases"], json!([]));
}

#[test]
fn a_command_whose_lease_is_lost_is_ended() {
    let sandbox = applied();
    let server = Server::start(&sandbox, &[]);
    let mut run = sandbox
        .command(&[
            "lease",
            "run",
            "--server",
            &server.url(),
            "--pool",
            "web",
            "--ttl",
            "600ms",
            "--",
            "sleep",
            "60",
        ])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let leases = || server.get("/v1/leases")["leases"].clone();
    wait_until("it holds a lease", || leases() != json!([]));
    let id = leases()[0]["id"].as_str().unwrap().to_owned();
    server.call("DELETE", &format!("/v1/leases/{id}"), &Value::Null);
    let mut said = String::new();
    run.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(1));
    assert!(said.contains("is lost") && said.contains("has ended"), "{said}");
}

#[test]
fn scripts_acquire_renew_and_release() {
    let sandbox = applied();
    let server = Server::start(&sandbox, &[]);
    let url = server.url();
    let pool = |arguments: &[&str]| {
        let mut all = vec!["lease"];
        all.extend(arguments);
        all.extend(["--server", &url]);
        sandbox.pool(&all)
    };
    let line = pool(&["acquire", "--pool", "web", "--holder", "script"]).exits(0).stdout;
    let id = line.split(' ').next().unwrap();
    assert!(line.contains(" web-0-1 127.0.0.1 until "), "{line}");
    let json = pool(&["renew", id, "--ttl", "2h", "--json"]).exits(0).json();
    assert_eq!((&json["id"], &json["holder"]), (&json!(id), &json!("script")));
    assert!(pool(&["renew", id, "--fence", "99"]).exits(1).stderr.contains("fence"));
    pool(&["release", id, "--outcome", "job_failed"]).exits(0);
    pool(&["release", id]).exits(0);
    assert!(pool(&["renew", id]).exits(1).stderr.contains("has ended"));
    assert!(pool(&["acquire"]).exits(1).stderr.contains("--pool"));
    let never = pool(&["acquire", "--label", "os=mac"]).exits(1).stderr;
    assert!(never.contains("no worker meets labels.os = mac"), "{never}");
    let twice = ["acquire", "--pool", "web", "--idempotency-key", "k", "--json"];
    let (first, second) = (pool(&twice).exits(0).json(), pool(&twice).exits(0).json());
    assert_eq!((&first["leases"], &second["replay"]), (&second["leases"], &json!(true)));
    let worker = |arguments: &[&str]| {
        let mut all = vec!["worker"];
        all.extend(arguments);
        all.extend(["--server", &url]);
        sandbox.pool(&all)
    };
    assert_eq!(worker(&["cordon", "web-1-1"]).exits(0).stdout, "web-1-1 ready cordoned\n");
    let both = worker(&["uncordon", "web-0-1", "web-1-1"]).exits(0).stdout;
    assert!(both.contains(" leased to ") && both.ends_with("web-1-1 ready\n"), "{both}");
    assert_eq!(worker(&["verify", "web-1-1", "--json"]).exits(0).json()[0]["healthy"], true);
    assert!(worker(&["drain", "web-9-1"]).exits(1).stderr.contains("there is no worker `web-9-1`"));
    pool(&["acquire", "--pool", "web", "--count", "2"]).exits(0);
    let full = pool(&["acquire", "--pool", "web", "--wait", "100ms"]).exits(1).stderr;
    assert!(full.contains("no worker became free in time") && full.contains("3 leased"), "{full}");
    server.kill();
    let silent = pool(&["release", id]).exits(1).stderr;
    assert!(silent.contains("does not answer") && silent.contains("pool serve"), "{silent}");
    let tls = sandbox.pool(&["lease", "release", id, "--server", "https://x"]).exits(1).stderr;
    assert!(tls.contains("is not the URL of a server"), "{tls}");
    pause(Duration::from_millis(1));
}
