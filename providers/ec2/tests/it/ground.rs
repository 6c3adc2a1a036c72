//! A region of moto behind a proxy of its own, and boto3 as a witness.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pool_ec2::{Config, Ec2Provider, Settings};
use pool_provider::{
    CreateRequest, DeploymentId, Generation, HumanDuration, Progress, Slot, WorkerName, WorkerRef,
    WorkerSpec,
};
use serde_json::{Value, json};

/// moto knows this image.
pub(crate) const IMAGE: &str = "ami-12c6146b";

/// A region, a proxy, and how they are reached.
pub(crate) struct Ground {
    moto: String,
    proxy: Child,
    /// The proxy ends with it.
    _open: ChildStdin,
    pub(crate) config: Config,
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/ec2")
}

/// Where the services are comes from outside.
#[expect(clippy::disallowed_methods, reason = "where the services are comes from outside")]
fn asked_for(variable: &str) -> Option<String> {
    std::env::var(variable).ok()
}

impl Ground {
    /// Begins a proxy in front of `region`, or says that the test was not run.
    pub(crate) fn new(region: &str) -> Option<Self> {
        let Some(moto) = asked_for("POOL_TEST_EC2") else {
            assert!(asked_for("POOL_TEST_ENGINES").is_none(), "POOL_TEST_EC2 is not set");
            // Not by a macro: the test runner would keep it to itself.
            let told = "NOT RUN: needs an EC2; POOL_TEST_EC2 is not set\n";
            std::io::stderr().write_all(told.as_bytes()).unwrap();
            return None;
        };
        let mut proxy = Command::new(asked_for("POOL_TEST_PYTHON").unwrap())
            .arg(folder().join("proxy.py"))
            .arg(&moto)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut url = String::new();
        BufReader::new(proxy.stdout.take().unwrap()).read_line(&mut url).unwrap();
        let config = Config {
            region: Some(region.to_owned()),
            endpoint: Some(url.trim().to_owned()),
            profile: Some("pool-tests".to_owned()),
            settle: HumanDuration::from_secs(1),
            ..Config::default()
        };
        let open = proxy.stdin.take().unwrap();
        Some(Self { moto, proxy, _open: open, config })
    }

    pub(crate) fn provider(&self) -> Ec2Provider {
        provider_with(self.config.clone())
    }

    /// Replaces the faults, and forgets the calls.
    pub(crate) async fn faults(&self, faults: Value) {
        let url = format!("{}/-/faults", self.config.endpoint.as_ref().unwrap());
        let client = pool_provider::http::plain().build().unwrap();
        let answer = client.post(url).body(faults.to_string()).send().await.unwrap();
        assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
    }

    /// Returns the parameters of the calls of `action` since the faults were last replaced.
    pub(crate) async fn calls(&self, action: &str) -> Vec<Value> {
        let url = format!("{}/-/calls", self.config.endpoint.as_ref().unwrap());
        let client = pool_provider::http::plain().build().unwrap();
        let text = client.get(url).send().await.unwrap().text().await.unwrap();
        let calls: Vec<Value> = serde_json::from_str(&text).unwrap();
        calls.into_iter().filter(|call| call["action"] == action).collect()
    }

    /// Asks boto3, past the proxy.
    pub(crate) fn witness(&self, arguments: &[&str]) -> Value {
        let ran = Command::new(asked_for("POOL_TEST_PYTHON").unwrap())
            .arg(folder().join("witness.py"))
            .args([self.moto.as_str(), self.config.region.as_ref().unwrap()])
            .args(arguments)
            .output()
            .unwrap();
        assert!(ran.status.success(), "{ran:?}");
        serde_json::from_slice(&ran.stdout).unwrap_or(Value::Null)
    }

    /// Returns the live instances of a deployment, as boto3 sees them.
    pub(crate) fn seen(&self, owner: &DeploymentId) -> Vec<Value> {
        self.witness(&["list", owner.as_str()]).as_array().unwrap().clone()
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        let _ended = self.proxy.kill().and_then(|()| self.proxy.wait());
    }
}

/// Builds a provider with another config than the ground's.
#[expect(clippy::disallowed_methods, reason = "a test has no other clock")]
pub(crate) fn provider_with(config: Config) -> Ec2Provider {
    let now = Arc::new(SystemTime::now);
    let settings = Settings { name: "ec2".into(), now, identity: None };
    Ec2Provider::new(config, settings).unwrap()
}

/// A request for one worker; `owner` tells tests apart, and the process runs on one server.
pub(crate) fn request(owner: &str) -> CreateRequest {
    let mut bytes = [0; 16];
    bytes.iter_mut().zip(owner.bytes()).for_each(|(to, from)| *to = from);
    bytes[12..].copy_from_slice(&std::process::id().to_be_bytes());
    CreateRequest {
        owner: DeploymentId::from_random(bytes),
        name: WorkerName::new("t".parse().unwrap(), Slot(0), Generation(1)),
        attempt: 1,
        passed_over: 0,
        operation: 7,
        token: format!("{owner}-1"),
        spec: spec(&json!({ "instance_types": ["m7i.large", "m6i.large"] })),
        spec_hash: "v1:0".into(),
        progress: Progress::default(),
        timeout: Duration::from_secs(60),
    }
}

/// A worker with these attributes.
pub(crate) fn spec(attributes: &Value) -> WorkerSpec {
    WorkerSpec {
        image: IMAGE.into(),
        cpu_cores: 2,
        memory_mb: 8192,
        labels: [("os".to_owned(), "linux".to_owned())].into(),
        tags: ["z", "a"].map(str::to_owned).to_vec(),
        attributes: attributes.as_object().unwrap().clone(),
        ..WorkerSpec::default()
    }
}

/// Names the worker of a request.
pub(crate) fn reference(request: &CreateRequest, provider_id: Option<&str>) -> WorkerRef {
    WorkerRef {
        owner: request.owner.clone(),
        name: request.name.clone(),
        provider_id: provider_id.map(str::to_owned),
    }
}
