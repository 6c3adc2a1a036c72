//! The real binary in a folder of its own, with an environment of its own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A folder, and the binary run in it.
pub(crate) struct Sandbox {
    folder: tempfile::TempDir,
    environment: BTreeMap<String, String>,
}

/// What a command printed, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    /// Asserts how it ended.
    #[track_caller]
    pub(crate) fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{}\n{}", self.stdout, self.stderr);
        self
    }

    /// Returns what it printed as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// A command that runs beside a test, and ends with it: one that is left behind would keep the runner waiting.
pub(crate) struct Beside(pub(crate) Option<Child>);

impl Beside {
    /// Returns whether it still runs.
    pub(crate) fn runs(&mut self) -> bool {
        self.0.as_mut().unwrap().try_wait().unwrap().is_none()
    }

    /// Waits for its end; returns its exit code, and what it printed.
    pub(crate) fn ends(mut self) -> Ran {
        let output = self.0.take().unwrap().wait_with_output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let (stdout, stderr) = (text(output.stdout), text(output.stderr));
        Ran { code: output.status.code(), stdout, stderr }
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ended = child.kill().and_then(|()| child.wait());
        }
    }
}

impl Sandbox {
    /// Begins a command beside the test.
    pub(crate) fn beside(&self, arguments: &[&str]) -> Beside {
        let mut command = self.command(arguments);
        Beside(Some(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()))
    }

    pub(crate) fn new() -> Self {
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        let environment = BTreeMap::from([
            ("PATH".to_owned(), path.to_owned()),
            // A fixed width, so that output does not depend on where tests run.
            ("COLUMNS".to_owned(), "100".to_owned()),
        ]);
        Self { folder: tempfile::tempdir().unwrap(), environment }
    }

    /// The environment that commands have.
    pub(crate) fn variables(&self) -> &BTreeMap<String, String> {
        &self.environment
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Sets a variable for every later command.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.environment.insert(name.to_owned(), value.to_owned());
    }

    /// Writes a file.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Reads a file.
    pub(crate) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path().join(name)).unwrap()
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pool"));
        command
            .args(arguments)
            .current_dir(self.path())
            .env_clear()
            .envs(&self.environment)
            .stdin(Stdio::null());
        command
    }

    /// Runs the binary to its end.
    pub(crate) fn pool(&self, arguments: &[&str]) -> Ran {
        let output = self.command(arguments).output().unwrap();
        Ran {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Starts the binary and lets it run.
    pub(crate) fn spawn(&self, arguments: &[&str]) -> Child {
        self.command(arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Runs a shell script in the folder, with `pool` on its path.
    pub(crate) fn shell(&self, script: &str) -> Ran {
        let bin = Path::new(env!("CARGO_BIN_EXE_pool")).parent().unwrap().display().to_string();
        let path = format!("{bin}:{}", self.environment["PATH"]);
        let output = Command::new("/bin/sh")
            .args(["-c", script])
            .current_dir(self.path())
            .env_clear()
            .envs(&self.environment)
            .env("PATH", path)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        Ran {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Returns the pids of all worker processes whose tags are of a state in this folder, as `/proc`
    /// shows them: not by our own eyes.
    pub(crate) fn workers(&self) -> Vec<i32> {
        let local = self.path().join(".pool/local");
        let deployments: Vec<String> = std::fs::read_dir(local)
            .into_iter()
            .flatten()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        Self::processes_of(&deployments, "POOL_PROCESS=")
    }

    /// The deployment of the state in this folder.
    pub(crate) fn deployment(&self) -> Option<String> {
        let database = rusqlite::Connection::open(self.path().join(".pool/state.db")).ok()?;
        let sql = "SELECT CAST(value AS TEXT) FROM meta WHERE key = 'deployment'";
        database.query_row(sql, [], |row| row.get(0)).ok()
    }

    /// The processes that have the tag of one of these deployments and `mark` in their environment.
    fn processes_of(deployments: &[String], mark: &str) -> Vec<i32> {
        let mut pids = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let environ = std::fs::read(entry.path().join("environ")).unwrap_or_default();
            let environ = String::from_utf8_lossy(&environ).into_owned();
            let ours = deployments.iter().any(|deployment| {
                ["POOL_DEPLOYMENT", "WORKER_OWNER"]
                    .iter()
                    .any(|tag| environ.contains(&format!("{tag}={deployment}")))
            });
            if ours && environ.contains(mark) {
                pids.push(pid);
            }
        }
        pids
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // A failed test must not leave processes behind.
        let executables = self.deployment().into_iter().collect::<Vec<_>>();
        for pid in
            self.workers().into_iter().chain(Self::processes_of(&executables, "WORKER_NAME="))
        {
            let _gone = Command::new("kill").args(["-9", &pid.to_string()]).status();
        }
    }
}

/// Waits until `condition` holds; fails after a time that no healthy machine needs.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..3000 {
        if condition() {
            return;
        }
        pause(Duration::from_millis(10));
    }
    panic!("waited in vain until {what}");
}

/// Lets another process get on.
#[expect(clippy::disallowed_methods, reason = "other processes run in real time")]
pub(crate) fn pause(duration: Duration) {
    std::thread::sleep(duration);
}

/// Returns a variable by which somebody asks the tests for more, or for something else.
#[expect(clippy::disallowed_methods, reason = "tests are asked through the environment")]
pub(crate) fn asked_for(name: &str) -> Option<String> {
    std::env::var(name).ok()
}
