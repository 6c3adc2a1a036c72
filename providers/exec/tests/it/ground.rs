//! What the tests stand on: a folder, scripts in it, and providers that run them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pool_exec::{Config, ExecProvider, OpenError, Settings};
use pool_provider::{
    CreateRequest, DeploymentId, Generation, Progress, SecretSource, Slot, WorkerName, WorkerRef,
    WorkerSpec,
};
use serde_json::{Value, json};

/// How long anything may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// What a well-behaved executable says of itself.
pub(crate) const DESCRIBED: &str = r#"{"type":"result","result":{"protocol_versions":[1],"worker_types":["vm"],
    "idempotency":"token","consistency":"strong","methods":["get","update","probe","reset"],"in_place":["labels"]}}"#;

pub(crate) struct Ground {
    pub(crate) folder: tempfile::TempDir,
    /// The environment of `pool`.
    pub(crate) environment: BTreeMap<String, String>,
}

impl Ground {
    pub(crate) fn new() -> Self {
        let environment = BTreeMap::from([
            ("PATH".to_owned(), "/usr/local/bin:/usr/bin:/bin".to_owned()),
            ("TOKEN".to_owned(), "the-providers-secret".to_owned()),
            ("AWS_PROFILE".to_owned(), "ci".to_owned()),
        ]);
        Self { folder: tempfile::tempdir().unwrap(), environment }
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    pub(crate) fn read(&self, file: &str) -> String {
        std::fs::read_to_string(self.path(file)).unwrap_or_default()
    }

    fn settings(&self) -> Settings {
        let environment = Arc::new(self.environment.clone());
        let own = Arc::clone(&environment);
        Settings {
            name: "racks".to_owned(),
            warden: (env!("CARGO_BIN_EXE_pool-exec-call").into(), Vec::new()),
            logs: self.path("logs"),
            environment,
            read_secret: Arc::new(move |source| match source {
                SecretSource::FromEnv(name) => {
                    own.get(name).cloned().ok_or_else(|| format!("the variable {name} is not set"))
                }
                SecretSource::FromFile(path) => Err(format!("{path}: no such file")),
            }),
        }
    }

    /// A config with this command; everything else is as in a file that says no more.
    pub(crate) fn config(command: &[&str]) -> Config {
        serde_json::from_value(json!({ "command": command, "grace": "100ms", "timeout": "20s" }))
            .unwrap()
    }

    /// Opens a provider whose executable answers `describe` well, and runs `script` for everything else.
    pub(crate) async fn script(&self, script: &str) -> ExecProvider {
        self.open(self.scripted(script)).await.unwrap()
    }

    pub(crate) fn scripted(&self, script: &str) -> Config {
        let described = DESCRIBED.replace('\n', "");
        let text = format!(
            "#!/bin/sh\nif [ $POOL_METHOD = describe ]; then echo '{described}'; exit; fi\n{script}\n"
        );
        Self::config(&["/bin/sh", self.write("provider.sh", &text).to_str().unwrap()])
    }

    pub(crate) fn write(&self, file: &str, text: &str) -> PathBuf {
        let path = self.path(file);
        std::fs::write(&path, text).unwrap();
        path
    }

    pub(crate) async fn open(&self, config: Config) -> Result<ExecProvider, OpenError> {
        ExecProvider::open(config, self.settings()).await
    }
}

pub(crate) fn owner() -> DeploymentId {
    DeploymentId::from_random([7; 16])
}

pub(crate) fn name() -> WorkerName {
    WorkerName::new("ci".parse().unwrap(), Slot(3), Generation(2))
}

pub(crate) fn reference() -> WorkerRef {
    WorkerRef { owner: owner(), name: name(), provider_id: None }
}

pub(crate) fn request() -> CreateRequest {
    CreateRequest {
        owner: owner(),
        name: name(),
        attempt: 1,
        passed_over: 0,
        operation: 17,
        token: "token".to_owned(),
        spec: WorkerSpec {
            image: "image".to_owned(),
            environment: [("PLAIN", "in-the-open"), ("SECRET", "the-workers-secret")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            secrets: ["SECRET".to_owned()].into(),
            ..WorkerSpec::default()
        },
        spec_hash: "v1:00".to_owned(),
        progress: Progress::default(),
        timeout: PATIENCE,
    }
}

/// The answer to a create of [`request`], with some of it changed.
pub(crate) fn created(changes: &Value) -> String {
    let mut worker = json!({
        "owner": owner(), "name": "ci-3-2", "provider_id": "i-1", "attempt": 1, "operation": 17,
        "spec_hash": "v1:00", "status": "running", "addresses": ["10.0.0.1"],
    });
    for (key, value) in changes.as_object().unwrap() {
        worker[key] = value.clone();
    }
    json!({ "type": "result", "result": worker }).to_string()
}

/// Returns the processes whose command line has `mark` in it.
pub(crate) fn running(mark: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let read = |file: &str| std::fs::read(entry.path().join(file)).unwrap_or_default();
        let line = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
        let is_dead = String::from_utf8_lossy(&read("stat")).contains(") Z ");
        if line.contains(mark) && !is_dead {
            found.push(line);
        }
    }
    found
}

pub(crate) async fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, waiting).await.is_ok(), "{what}");
}

pub(crate) fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}
