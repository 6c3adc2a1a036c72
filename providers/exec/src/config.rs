//! What a pool file says of a provider of type `exec`. Field documentation is user documentation.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use pool_provider::{HumanDuration, SecretSource};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// How much of a command is told, in characters.
const LONGEST_SHOWN: usize = 60;

/// Any executable that speaks the provider protocol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Config {
    /// The executable and its arguments: a path from `directory` on when there is a slash in it, else a name that is
    /// looked for in `PATH`. Nothing secret belongs here.
    #[schemars(length(min = 1), inner(length(min = 1)), example = ["./providers/processes.sh"])]
    pub command: Vec<String>,
    /// Where the executable runs: paths in `command` and of `from_file` count from there. By default where `pool` ran
    /// when it read the file, which is recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(min = 1), example = &"/etc/pool/providers")]
    pub directory: Option<PathBuf>,
    /// Whatever the executable wants to be told: it is part of each request. It is checked by what the executable
    /// says of itself. Nothing secret belongs here.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    #[schemars(example = json!({ "folder": "/var/lib/workers" }))]
    pub config: Map<String, Value>,
    /// Variables of the executable's environment. Of `pool`'s own it gets `PATH`, `HOME`, `LANG` and `TMPDIR`. Nothing
    /// secret belongs here.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(example = json!({ "AWS_REGION": "eu-central-1" }))]
    pub environment: BTreeMap<String, String>,
    /// Which other variables of `pool`'s environment the executable gets: names, or beginnings of names with a `*`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(inner(regex(pattern = r"^[A-Za-z_][A-Za-z0-9_]*\*?$")), example = ["HTTPS_PROXY", "AWS_*"])]
    pub pass_environment: Vec<String>,
    /// Secrets that the executable needs: `{from_env: NAME}` or `{from_file: PATH}`. It reads them from a file
    /// descriptor; they are never stored, and in no argument or variable.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(example = json!({ "token": { "from_env": "RACK_TOKEN" } }))]
    pub secrets: BTreeMap<String, SecretSource>,
    /// How long a call may take that looks or updates. A create may take `provisioning.timeout`, a reset
    /// `leases.recycle.timeout`, a delete what the executable says.
    #[serde(default = "timeout")]
    #[schemars(example = &"30s")]
    pub timeout: HumanDuration,
    /// How long the executable and its process group have between SIGTERM, at its deadline, and SIGKILL.
    #[serde(default = "grace")]
    #[schemars(example = &"5s")]
    pub grace: HumanDuration,
    /// Where its workers are, as the executable said: recorded, never written in a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(skip)]
    pub place: Option<String>,
}

fn timeout() -> HumanDuration {
    HumanDuration::from_secs(30)
}

fn grace() -> HumanDuration {
    HumanDuration::from_secs(5)
}

impl Config {
    /// Returns the config with a `directory`, below where this process runs if it is a relative one.
    #[must_use]
    pub fn in_directory(mut self) -> Self {
        let given = self.directory.take().unwrap_or_else(|| PathBuf::from("."));
        // Without a working directory there is nothing to be relative to: the call will say so.
        self.directory = Some(std::path::absolute(&given).unwrap_or(given));
        self
    }

    /// Returns the path as it is from where the executable runs.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        let joined = self.directory.as_ref().map_or_else(|| path.into(), |own| own.join(path));
        // `./` is how it is written, not where it is; alone it would name a program in `PATH`.
        if joined.is_absolute() { joined.components().collect() } else { joined }
    }

    /// Returns the command as it is told to people: an interpreter alone says little.
    pub(crate) fn shown(&self) -> String {
        let program = self.command.first().map_or("", String::as_str);
        let own = Path::new(program).file_name().and_then(|name| name.to_str()).unwrap_or(program);
        let words = std::iter::once(own).chain(self.command.iter().skip(1).map(String::as_str));
        let whole = words.collect::<Vec<_>>().join(" ");
        match whole.char_indices().nth(LONGEST_SHOWN) {
            Some((end, _)) => format!("{}…", &whole[..end]),
            None => whole,
        }
    }

    /// Returns whether the executable gets this variable of `pool`'s environment.
    pub(crate) fn passes(&self, name: &str) -> bool {
        const ALWAYS: [&str; 4] = ["PATH", "HOME", "LANG", "TMPDIR"];
        ALWAYS.contains(&name)
            || self.pass_environment.iter().any(|passed| match passed.strip_suffix('*') {
                Some(begin) => name.starts_with(begin),
                None => name == passed,
            })
    }
}
