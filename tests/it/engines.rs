//! One scenario from end to end on every provider with real workers: created, killed behind our back, replaced,
//! interrupted, resized, leased while rolling, destroyed. What is there is asked of the engine's own client, and
//! of `/proc`, never of `pool`.
//!
//! `POOL_TEST_DOCKER` and `POOL_TEST_PODMAN` say where engines listen (`tests/engines.sh`); without them these tests
//! say that they were not run.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::Command;

use serde_json::Value;

use crate::ec2::{IMAGES, Region};
use crate::sandbox::{Sandbox, asked_for, pause, wait_until};
use crate::serve::Server;

/// How long an apply runs before it is killed: in the midst of its calls.
const MIDST: std::time::Duration = std::time::Duration::from_millis(400);

/// Where workers are, and how they are looked at from outside.
enum Ground {
    Local,
    Docker(String),
    /// One of `examples/providers`, and where its workers are kept.
    Exec(&'static str, tempfile::TempDir),
    Ec2(Region),
}

/// Says that a test was not run, and what it needs. Not by a macro: the test runner would keep it to itself.
pub(crate) fn not_run(needs: &str) {
    let told = format!("NOT RUN: needs {needs}\n");
    std::io::stderr().write_all(told.as_bytes()).unwrap();
}

/// A worker as the outside sees it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Seen {
    worker: String,
    image: String,
    /// A pid, or a container's id.
    handle: String,
}

impl Ground {
    /// Returns the engine that `variable` names, or says that the test was not run.
    fn engine(variable: &str) -> Option<Self> {
        if let Some(host) = asked_for(variable) {
            return Some(Self::Docker(host));
        }
        assert!(asked_for("POOL_TEST_ENGINES").is_none(), "{variable} is not set");
        not_run(&format!("an engine; {variable} is not set"));
        None
    }

    /// Returns an example provider, or says that the test was not run.
    fn example(file: &'static str, needs: &str) -> Option<Self> {
        if Command::new(needs).arg("--version").output().is_ok_and(|ran| ran.status.success()) {
            return Some(Self::Exec(file, tempfile::tempdir().unwrap()));
        }
        assert!(asked_for("POOL_TEST_ENGINES").is_none(), "{needs} is not installed");
        not_run(needs);
        None
    }

    /// Returns a folder whose commands have the credentials that are needed.
    fn sandbox(&self) -> Sandbox {
        match self {
            Self::Ec2(_) => Region::sandbox(),
            Self::Local | Self::Docker(_) | Self::Exec(..) => Sandbox::new(),
        }
    }

    /// Waits until a listing is believed that does not show a worker which became ready a moment ago.
    fn settle(&self) {
        if let Self::Ec2(_) = self {
            pause(crate::ec2::SETTLE);
        }
    }

    fn yaml(&self, size: u32, version: u8) -> String {
        let (kind, provider, worker) = match self {
            Self::Local | Self::Exec(..) => {
                let image = ["/bin/sleep", "/usr/bin/sleep"][usize::from(version) - 1];
                let provider = match self {
                    Self::Exec(file, folder) => format!(
                        "type: exec, command: ['{}/examples/providers/{file}'], config: {{folder: {}}}",
                        env!("CARGO_MANIFEST_DIR"),
                        folder.path().display()
                    ),
                    Self::Local | Self::Docker(_) | Self::Ec2(_) => "type: local".to_owned(),
                };
                ("process", provider, format!("image: {image}, command: ['600']"))
            }
            Self::Docker(host) => (
                "container",
                format!("type: docker, host: '{host}', stop_grace: 0s, pull: never"),
                format!("image: 'pool-test:{version}'"),
            ),
            Self::Ec2(region) => (
                "vm",
                region.settings("eu-central-1"),
                format!("image: {}", IMAGES[usize::from(version) - 1]),
            ),
        };
        format!(
            "version: 1\nproviders: {{ground: {{{provider}}}}}\npools:\n- pool_id: e2e\n  worker_type: \
             {kind}\n  provider: ground\n  fixed_size: {size}\n  worker_config: {{{worker}, cpu_cores: 1, \
             memory_mb: 16}}\n  update: {{max_surge: 3}}\n  remediation: {{backoff: 1s}}\n"
        )
    }

    /// Returns the live workers of the state in `sandbox`.
    fn seen(&self, sandbox: &Sandbox) -> BTreeSet<Seen> {
        match self {
            Self::Local | Self::Exec(..) => processes(&sandbox.deployment().unwrap()),
            Self::Docker(host) => containers(host, &sandbox.deployment().unwrap(), false),
            Self::Ec2(region) => instances(region, &sandbox.deployment().unwrap()),
        }
    }

    /// Returns everything that is left of the state in `sandbox`, dead or alive.
    fn left(&self, sandbox: &Sandbox) -> BTreeSet<Seen> {
        match self {
            Self::Local | Self::Exec(..) => processes(&sandbox.deployment().unwrap()),
            Self::Docker(host) => containers(host, &sandbox.deployment().unwrap(), true),
            // What is terminated is shown for another hour.
            Self::Ec2(region) => instances(region, &sandbox.deployment().unwrap()),
        }
    }

    fn kill(&self, worker: &Seen) {
        let mut command = match self {
            Self::Ec2(region) => {
                drop(region.witness("eu-central-1", &["terminate", &worker.handle]));
                return;
            }
            Self::Local | Self::Exec(..) => {
                let mut kill = Command::new("kill");
                kill.args(["-9", &worker.handle]);
                kill
            }
            Self::Docker(host) => {
                let mut docker = Command::new("docker");
                docker.args(["-H", host, "kill", &worker.handle]);
                docker
            }
        };
        let ran = command.output().unwrap();
        assert!(ran.status.success(), "{ran:?}");
    }
}

fn instances(region: &Region, deployment: &str) -> BTreeSet<Seen> {
    let found = region.witness("eu-central-1", &["list", deployment]);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let seen = |instance: &Value| Seen {
        worker: text(&instance["Tags"]["pool.worker"]),
        image: text(&instance["ImageId"]),
        handle: text(&instance["InstanceId"]),
    };
    found.as_array().unwrap().iter().map(seen).collect()
}

fn containers(host: &str, deployment: &str, dead_too: bool) -> BTreeSet<Seen> {
    let filter = format!("label=pool.deployment={deployment}");
    let format = "{{.Label \"pool.worker\"}}\t{{.Image}}\t{{.ID}}";
    let mut docker = Command::new("docker");
    docker.args(["-H", host, "ps", "--filter", &filter, "--format", format]);
    if dead_too {
        docker.arg("-a");
    }
    let ran = docker.output().unwrap();
    assert!(ran.status.success(), "{ran:?}");
    let seen = |line: &str| {
        let mut parts = line.split('\t').map(str::to_owned);
        let mut next = || parts.next().unwrap();
        Seen { worker: next(), image: next(), handle: next() }
    };
    String::from_utf8(ran.stdout).unwrap().lines().map(seen).collect()
}

fn processes(deployment: &str) -> BTreeSet<Seen> {
    let mut seen = BTreeSet::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let handle = entry.file_name().into_string().unwrap();
        let read = |file: &str| std::fs::read(entry.path().join(file)).unwrap_or_default();
        let environ = String::from_utf8_lossy(&read("environ")).into_owned();
        let tag = |name: &str| {
            let mut all = environ.split('\0');
            all.find_map(|entry| entry.strip_prefix(name)?.strip_prefix('=').map(str::to_owned))
        };
        // What is about to become a worker, and what creates one, is none.
        let arguments = String::from_utf8_lossy(&read("cmdline")).into_owned();
        let is_worker = arguments.split('\0').next().is_some_and(|name| name.ends_with("/sleep"));
        let own = |name: &str, example: &str| tag(name).or_else(|| tag(example));
        if own("POOL_DEPLOYMENT", "WORKER_OWNER").as_deref() != Some(deployment) || !is_worker {
            continue;
        }
        let stat = String::from_utf8_lossy(&read("stat")).into_owned();
        if let Some(worker) = own("POOL_WORKER", "WORKER_NAME").filter(|_| !stat.contains(") Z ")) {
            let image = arguments.split('\0').next().unwrap_or_default().to_owned();
            seen.insert(Seen { worker, image, handle });
        }
    }
    seen
}

fn apply(sandbox: &Sandbox) {
    sandbox.pool(&["apply", "pool.yaml", "--auto-approve"]).exits(0);
}

#[track_caller]
fn assert_all(seen: &BTreeSet<Seen>, size: usize, image: &str) {
    assert_eq!(seen.len(), size, "{seen:?}");
    assert!(seen.iter().all(|one| one.image.ends_with(image)), "{seen:?}");
    let workers: BTreeSet<&String> = seen.iter().map(|one| &one.worker).collect();
    assert_eq!(workers.len(), size, "a worker is there twice: {seen:?}");
}

fn scenario(ground: &Ground) {
    let images = match ground {
        Ground::Local | Ground::Exec(..) => ["/bin/sleep", "/usr/bin/sleep"],
        Ground::Docker(_) => ["pool-test:1", "pool-test:2"],
        Ground::Ec2(_) => IMAGES,
    };
    // Another state on the same engine, with the same pool: nobody touches its workers.
    let neighbour = ground.sandbox();
    neighbour.write("pool.yaml", &ground.yaml(2, 1));
    apply(&neighbour);
    let neighbours = ground.seen(&neighbour);
    assert_all(&neighbours, 2, images[0]);

    let sandbox = ground.sandbox();
    sandbox.write("pool.yaml", &ground.yaml(10, 1));
    apply(&sandbox);
    assert_all(&ground.seen(&sandbox), 10, images[0]);

    // One is killed behind our back: the plan says so, and apply brings another one.
    let victim = ground.seen(&sandbox).first().unwrap().clone();
    ground.kill(&victim);
    // An engine has the signal sent and says so before the process is gone.
    wait_until("it is gone", || !ground.seen(&sandbox).contains(&victim));
    ground.settle();
    let plan = sandbox.pool(&["plan", "pool.yaml", "--detailed-exitcode"]).exits(2).stdout;
    assert!(plan.contains("its worker is recorded and no longer there"), "{plan}");
    apply(&sandbox);
    assert_all(&ground.seen(&sandbox), 10, images[0]);

    // Another image, and the run is killed in its midst: the next one goes on from there.
    sandbox.write("pool.yaml", &ground.yaml(10, 2));
    let mut interrupted = sandbox.spawn(&["apply", "pool.yaml", "--auto-approve"]);
    pause(MIDST);
    interrupted.kill().unwrap();
    interrupted.wait().unwrap();
    apply(&sandbox);
    assert_all(&ground.seen(&sandbox), 10, images[1]);

    for size in [4, 6] {
        sandbox.write("pool.yaml", &ground.yaml(size, 2));
        apply(&sandbox);
        assert_all(&ground.seen(&sandbox), size as usize, images[1]);
    }

    rolls_around_a_lease(ground, &sandbox);
    assert_all(&ground.seen(&sandbox), 6, images[0]);

    assert_eq!(ground.seen(&neighbour), neighbours, "another state's workers were touched");
    sandbox.pool(&["destroy", "--auto-approve"]).exits(0);
    assert_eq!(ground.left(&sandbox), BTreeSet::new());
    assert_eq!(ground.seen(&neighbour), neighbours, "another state's workers were touched");
    neighbour.pool(&["destroy", "--auto-approve"]).exits(0);
    assert_eq!(ground.left(&neighbour), BTreeSet::new());
}

/// A server leases, heals what is killed, and lets an apply wait for the job.
fn rolls_around_a_lease(ground: &Ground, sandbox: &Sandbox) {
    let server = Server::start(sandbox, &[]);
    let lease = server.acquire("e2e");
    let address = lease["worker"]["addresses"][0].as_str().unwrap();
    assert!(address.parse::<std::net::IpAddr>().is_ok(), "{lease}");
    let leased = lease["worker"]["name"].as_str().unwrap().to_owned();
    let is_leased = |one: &&Seen| one.worker == leased;
    let has_it = ground.seen(sandbox).iter().find(is_leased).cloned().unwrap();

    let victim = ground.seen(sandbox).into_iter().find(|one| !is_leased(&one)).unwrap();
    ground.kill(&victim);
    wait_until("what was killed is replaced", || {
        let seen = ground.seen(sandbox);
        seen.len() == 6 && !seen.contains(&victim)
    });

    sandbox.write("pool.yaml", &ground.yaml(6, 1));
    let mut rolling = sandbox.beside(&["apply", "pool.yaml", "--auto-approve"]);
    let old = &has_it.image;
    wait_until("all others are new", || {
        ground.seen(sandbox).iter().filter(|one| one.image == *old).count() == 1
    });
    assert!(ground.seen(sandbox).contains(&has_it), "a job lost its worker");
    assert!(rolling.runs(), "the run waits for the job");
    let path = format!("/v1/leases/{}", lease["id"].as_str().unwrap());
    assert_eq!(server.call("DELETE", &path, &Value::Null).0, 204);
    rolling.ends().exits(0);
}

#[test]
fn everything_works_on_local_processes() {
    scenario(&Ground::Local);
}

#[test]
fn everything_works_on_a_shell_script() {
    if let Some(ground) = Ground::example("processes.sh", "jq") {
        scenario(&ground);
    }
}

#[test]
fn everything_works_on_a_python_program() {
    if let Some(ground) = Ground::example("processes.py", "python3") {
        scenario(&ground);
    }
}

#[test]
fn everything_works_on_dockerd() {
    if let Some(ground) = Ground::engine("POOL_TEST_DOCKER") {
        scenario(&ground);
    }
}

#[test]
fn everything_works_on_instances() {
    if let Some(region) = Region::new() {
        scenario(&Ground::Ec2(region));
    }
}

#[test]
fn everything_works_on_podman() {
    if let Some(ground) = Ground::engine("POOL_TEST_PODMAN") {
        scenario(&ground);
    }
}

/// Pulls an image from a registry that wants a password.
fn pulls(ground: &Ground) {
    let Ground::Docker(host) = ground else { return };
    let image = format!("{}/pool-test:1", asked_for("POOL_TEST_REGISTRY").unwrap());
    let yaml = ground.yaml(3, 1).replace("pool-test:1", &image).replace("never", "missing");
    let mut sandbox = Sandbox::new();
    sandbox.write("pool.yaml", &yaml);
    let refused = sandbox.pool(&["apply", "pool.yaml", "--auto-approve"]).exits(5);
    assert!(refused.stderr.contains("unauthenticated: pulling"), "{}", refused.stderr);
    assert!(refused.stderr.contains("`docker login`"), "{}", refused.stderr);

    sandbox.set("DOCKER_CONFIG", &asked_for("POOL_TEST_LOGIN").unwrap());
    let pulled = sandbox.pool(&["apply", "pool.yaml", "--auto-approve"]).exits(0);
    let told = pulled.stderr.matches(&format!("pulling {image}")).count();
    assert!(told >= 1, "progress is told: {}", pulled.stderr);
    let done = pulled.stderr.matches(&format!("pulled {image}")).count();
    assert_eq!(done, 1, "three workers want it, one pull brings it: {}", pulled.stderr);
    assert_eq!(ground.seen(&sandbox).len(), 3);
    // No credential is in the state, or in anything that is shown.
    let state = std::fs::read(sandbox.path().join(".pool/state.db")).unwrap();
    for secret in ["tester", "dGVzdGVyOnNlY3JldA"] {
        assert!(!state.windows(secret.len()).any(|part| part == secret.as_bytes()), "{secret}");
        assert!(!pulled.stderr.contains(secret) && !pulled.stdout.contains(secret), "{secret}");
    }
    sandbox.pool(&["destroy", "--auto-approve"]).exits(0);
    assert_eq!(ground.left(&sandbox), BTreeSet::new());
    let gone = Command::new("docker").args(["-H", host, "rmi", &image]).status().unwrap();
    assert!(gone.success());
}

#[test]
fn what_an_engine_is_sent_is_in_no_log() {
    let Some(Ground::Docker(host)) = Ground::engine("POOL_TEST_DOCKER") else { return };
    let mut sandbox = Sandbox::new();
    sandbox.set("DOCKER_HOST", &host);
    sandbox.set("TOKEN", "not-for-any-log");
    sandbox.write(
        "ci.yaml",
        "pool_id: quiet\nworker_type: container\nfixed_size: 1\nworker_config: {image: 'pool-test:1', cpu_cores: 1, \
         memory_mb: 64, environment: {T: {from_env: TOKEN}}}\n",
    );
    let applied = sandbox.pool(&["apply", "ci.yaml", "--auto-approve", "-vvv"]).exits(0);
    sandbox.pool(&["destroy", "--auto-approve", "-q"]).exits(0);
    assert!(applied.stderr.contains("call=\"create\""), "{}", applied.stderr);
    assert!(!applied.stderr.contains("not-for-any-log"), "{}", applied.stderr);
}

#[test]
fn dockerd_pulls_with_the_credentials_of_docker_login_and_tells_how_it_goes() {
    if let Some(ground) = Ground::engine("POOL_TEST_DOCKER") {
        pulls(&ground);
    }
}

#[test]
fn podman_pulls_with_the_credentials_of_docker_login_and_tells_how_it_goes() {
    if let Some(ground) = Ground::engine("POOL_TEST_PODMAN") {
        pulls(&ground);
    }
}
