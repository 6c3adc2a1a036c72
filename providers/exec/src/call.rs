//! One call: what is sent, what is heard, and what that comes to.
//!
//! Without an answer, a call that may have changed something has an unknown outcome, and one that only looked has
//! failed for now. A line that is not of the protocol is no answer, and neither is a second one: whoever prints such
//! things may mean anything.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use pool_provider::{Mask, Progress, ProviderError, SecretSource};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{ChildStdout, Command};
use tokio::time::timeout;

use crate::config::Config;
use crate::logs::Logs;
use crate::protocol::{self, Line, Method, Request, SecretValues, VERSION};
use crate::provider::Settings;
use crate::unstarted;
use crate::warden::{Cut, Ended, Envelope, How, LONGEST_OUTPUT, written};

/// How much of a wrong line is told, in characters.
const SHOWN: usize = 120;
/// How much longer than an executable may take a warden is waited for.
const WARDEN: Duration = Duration::from_secs(5);
/// Whoever calls an executable.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) config: Config,
    pub(crate) settings: Arc<Settings>,
    pub(crate) logs: Logs,
}

/// What a method answered, and what must not be told of it.
pub(crate) struct Answer {
    pub(crate) value: Value,
    words: Words,
}

impl Answer {
    /// Understands the answer; what is wrong with it is told without secrets.
    pub(crate) fn understood<T>(
        self,
        read: impl FnOnce(Value) -> Result<T, ProviderError>,
    ) -> Result<T, ProviderError> {
        read(self.value).map_err(|error| self.words.said(error))
    }
}

/// Why a call came to nothing.
pub(crate) enum Failed {
    /// The executable could not be started, and why.
    NotStarted(String),
    /// As the contract names it.
    As(ProviderError),
}

impl From<ProviderError> for Failed {
    fn from(error: ProviderError) -> Self {
        Self::As(error)
    }
}

impl From<Failed> for ProviderError {
    fn from(failed: Failed) -> Self {
        match failed {
            // It was there when it was asked what it can do: it may be back soon.
            Failed::NotStarted(why) => Self::Transient(why),
            Failed::As(error) => error,
        }
    }
}

/// What was heard during a call.
#[derive(Default)]
struct Heard {
    answer: Option<Line>,
    /// Something that is not of the protocol, and why.
    stray: Option<String>,
    ended: Option<Ended>,
}

impl Caller {
    /// Runs the executable once. `secrets` are the worker's.
    pub(crate) async fn call(
        &self,
        method: Method,
        secrets: BTreeMap<String, String>,
        deadline: Duration,
        progress: &Progress,
    ) -> Result<Answer, Failed> {
        let envelope = self.envelope(&method, secrets, deadline)?;
        let nothing = |what: &str, error: &dyn std::fmt::Display| {
            ProviderError::Transient(format!("{what}: {error}"))
        };
        let (path, log) = match self.logs.open(&method) {
            Ok((path, log)) => (Some(path), Stdio::from(log)),
            Err(_) => (None, Stdio::null()),
        };
        let (program, arguments) = &self.settings.warden;
        let mut warden = Command::new(program)
            .args(arguments)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            // An interrupt from the terminal is for us: the warden has to live to end the call.
            .process_group(0)
            .spawn()
            .map_err(|error| nothing("starting a call", &error))?;
        // Held until the end: that it closes is how the warden hears that nobody waits.
        let mut lifeline = warden.stdin.take();
        let words = Words(envelope.secrets.mask());
        let hearing = async {
            let (Some(input), Some(output)) = (&mut lifeline, warden.stdout.take()) else {
                return Heard::default();
            };
            // One that did not read it all says so in how it ended.
            let _sent = input.write_all(&written(&envelope)).await.is_ok();
            hear(output, progress, &words).await
        };
        // A warden that cannot even start the executable, on a file system that hangs, knows no deadline.
        let longest = deadline.saturating_add(self.config.grace.get()).saturating_add(WARDEN);
        let heard = timeout(longest, hearing).await.unwrap_or_default();
        drop(lifeline);
        let judged = self.judge(&method, heard, deadline, path.as_deref());
        match judged {
            Ok(value) => Ok(Answer { value, words }),
            Err(Failed::NotStarted(why)) => Err(Failed::NotStarted(why)),
            Err(Failed::As(error)) => Err(Failed::As(words.said(error))),
        }
    }

    fn envelope(
        &self,
        method: &Method,
        worker: BTreeMap<String, String>,
        deadline: Duration,
    ) -> Result<Envelope, ProviderError> {
        let mut provider = BTreeMap::new();
        for (name, source) in &self.config.secrets {
            let placed = match source {
                SecretSource::FromFile(path) => {
                    SecretSource::FromFile(self.config.path(path).display().to_string())
                }
                SecretSource::FromEnv(_) => source.clone(),
            };
            match (self.settings.read_secret)(&placed) {
                Ok(value) => drop(provider.insert(name.clone(), value)),
                // What it can do, it can say without.
                Err(_) if matches!(method, Method::Describe {}) => {}
                Err(why) => {
                    let why = format!("the provider's secret {name} ({source}): {why}");
                    return Err(ProviderError::Unauthenticated(why));
                }
            }
        }
        let deadline_ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
        let request = Request {
            protocol: VERSION,
            provider: self.settings.name.clone(),
            config: self.config.config.clone(),
            deadline_ms,
            method: method.clone(),
        };
        let own = self.settings.environment.iter();
        let own = own.filter(|(name, _)| self.config.passes(name));
        let own = own.map(|(name, value)| (name.clone(), value.clone()));
        let request = serde_json::to_string(&request)
            .map_err(|error| ProviderError::InvalidSpec(error.to_string()))?;
        let mut command = self.config.command.clone();
        if let Some(program) = command.first_mut().filter(|program| program.contains('/')) {
            *program = self.config.path(program).display().to_string();
        }
        Ok(Envelope {
            command,
            directory: self.config.directory.clone(),
            environment: own.chain(self.config.environment.clone()).collect(),
            method: method.name().to_owned(),
            request,
            secrets: SecretValues { provider, worker },
            deadline_ms,
            grace_ms: u64::try_from(self.config.grace.get().as_millis()).unwrap_or(u64::MAX),
        })
    }

    /// Says what a call came to.
    fn judge(
        &self,
        method: &Method,
        heard: Heard,
        deadline: Duration,
        log: Option<&Path>,
    ) -> Result<Value, Failed> {
        let Heard { answer, stray, ended } = heard;
        if let Some(Ended { how: How::NotStarted(why), .. }) = ended {
            return Err(Failed::NotStarted(format!("it cannot be started: {why}")));
        }
        let why = match (answer, stray) {
            (_, Some(stray)) => stray,
            (Some(Line::Result { result }), None) => return Ok(result),
            (Some(Line::Error { code, message, retry_after_ms }), None) => {
                return Err(code.with(message, retry_after_ms).into());
            }
            (Some(Line::Progress { .. }) | None, None) => {
                silence(ended.as_ref(), (method, deadline))
            }
        };
        let name = self.config.shown();
        let is_script = || {
            let program = self.config.command.first().filter(|program| program.contains('/'));
            program.is_some_and(|program| unstarted::has_windows_lines(&self.config.path(program)))
        };
        let ended_by_env = matches!(ended, Some(Ended { how: How::Exited(126 | 127), .. }));
        let why = if ended_by_env && is_script() {
            format!(
                "{why}; its first line has a carriage return at its end: save it with Unix line ends"
            )
        } else {
            why
        };
        let mut message = format!("`{name}` gave no answer to {}: {why}", method.name());
        let has_log = ended.as_ref().is_none_or(|ended| !ended.last_words.is_empty());
        if let Some(words) = ended.map(|ended| ended.last_words).filter(|words| !words.is_empty()) {
            let last = words.lines().next_back().unwrap_or_default();
            message.push_str(&format!("; the last that it said: {last}"));
        }
        // An empty log is not worth a look.
        if let Some(log) = log.filter(|_| has_log) {
            message.push_str(&format!("; its log: {}", log.display()));
        }
        Err(if method.changes() {
            ProviderError::UnknownOutcome(message)
        } else {
            ProviderError::Transient(message)
        }
        .into())
    }
}

/// Says why there is no answer.
fn silence(ended: Option<&Ended>, (method, deadline): (&Method, Duration)) -> String {
    match ended {
        None => "it was lost sight of".to_owned(),
        Some(Ended { cut: Some(Cut::Deadline), .. }) => {
            let by = match method {
                Method::Create(_) => "provisioning.timeout, less the provider's grace",
                Method::Reset(_) => "leases.recycle.timeout, less the provider's grace",
                Method::Delete(_) => "slowest_delete_ms of describe",
                _ => "timeout of the provider",
            };
            format!("it was ended at its deadline, after {deadline:?} ({by})")
        }
        Some(Ended { cut: Some(Cut::Caller), .. }) => "it was ended".to_owned(),
        Some(Ended { cut: Some(Cut::Flood), .. }) => {
            format!("it printed more than {} MiB", LONGEST_OUTPUT / 1024 / 1024)
        }
        Some(Ended { how: How::Exited(code), .. }) => format!("it exited with {code}"),
        Some(Ended { how: How::Killed(signal), .. }) => format!("signal {signal} ended it"),
        Some(Ended { how: How::NotStarted(why), .. }) => why.clone(),
    }
}

/// Listens until the warden has nothing more to say.
async fn hear(output: ChildStdout, progress: &Progress, words: &Words) -> Heard {
    let mut heard = Heard::default();
    let mut reader = BufReader::new(output);
    let mut line = Vec::new();
    loop {
        line.clear();
        match reader.read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
        let Some((kind, text)) = line.split_first() else { continue };
        let text = text.trim_ascii_end();
        match kind {
            b'e' => heard.ended = serde_json::from_slice(text).ok(),
            _ if text.is_empty() => {}
            _ => heard.take(text, progress, words),
        }
    }
    heard
}

/// Makes what executables say fit to be told: without secrets, and without what terminals obey.
struct Words(Mask);

impl Words {
    fn fit_to_tell(&self, text: &str) -> String {
        self.0.text(text).replace(|c: char| c.is_control() && c != '\n', " ")
    }

    fn said(&self, error: ProviderError) -> ProviderError {
        let tell = |text: String| self.fit_to_tell(&text);
        match error {
            ProviderError::NotFound(why) => ProviderError::NotFound(tell(why)),
            ProviderError::AlreadyExists(why) => ProviderError::AlreadyExists(tell(why)),
            ProviderError::Spent(why) => ProviderError::Spent(tell(why)),
            ProviderError::OutOfCapacity { message, elsewhere } => {
                ProviderError::OutOfCapacity { message: tell(message), elsewhere }
            }
            ProviderError::Quota(why) => ProviderError::Quota(tell(why)),
            ProviderError::RateLimited { message, retry_after } => {
                ProviderError::RateLimited { message: tell(message), retry_after }
            }
            ProviderError::Unauthenticated(why) => ProviderError::Unauthenticated(tell(why)),
            ProviderError::InvalidSpec(why) => ProviderError::InvalidSpec(tell(why)),
            ProviderError::Transient(why) => ProviderError::Transient(tell(why)),
            ProviderError::UnknownOutcome(why) => ProviderError::UnknownOutcome(tell(why)),
        }
    }
}

impl Heard {
    fn take(&mut self, text: &[u8], progress: &Progress, words: &Words) {
        match protocol::line(text) {
            Ok(Line::Progress { message }) => progress.tell(&words.fit_to_tell(&message)),
            Ok(_) if self.answer.is_some() => {
                self.stray.get_or_insert_with(|| "it answered twice".to_owned());
            }
            Ok(answer) => self.answer = Some(answer),
            Err(why) => {
                // Before it is cut: half a secret is not found.
                let text = words.fit_to_tell(&String::from_utf8_lossy(text));
                let begin: String = text.chars().take(SHOWN).collect();
                self.stray.get_or_insert_with(|| {
                    format!("it printed {begin:?}, which is no line of the protocol: {why}")
                });
            }
        }
    }
}
