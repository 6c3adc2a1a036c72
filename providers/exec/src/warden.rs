//! The warden step: what runs between us and an executable.
//!
//! It is a process of its own because a call has to end even when its caller does not live to end it. The warden
//! starts the executable in a process group of its own, passes its lines on, and ends the group with SIGTERM and, a grace
//! later, SIGKILL: at the deadline, when it floods us, or as soon as the caller is gone, which shows in the end of standard
//! input. What is left of the group when the executable has ended is killed too: nothing works on behind an answer. Having one thread and one child, it is also where a file descriptor can be passed on without any
//! other child getting it: the request and the secrets arrive on standard input, so that no secret is ever in an
//! argument list, a variable or a file.
//!
//! What it prints is for `call` alone: `o` and a line of the executable's, any number of times, and in the end `e` and
//! an `Ended`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use pool_provider::MaskedStream;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{MemfdFlags, OFlags, fcntl_getfl, fcntl_setfl, memfd_create};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{
    Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, test_kill_process_group,
};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use serde::{Deserialize, Serialize};

use crate::protocol::{METHOD, SECRETS_FD, SecretValues};
use crate::unstarted;

/// How much an executable may print in one call, in bytes.
pub(crate) const LONGEST_OUTPUT: u64 = 64 * 1024 * 1024;
/// How much of what an executable prints on standard error is kept.
const LONGEST_LOG: usize = 512 * 1024;
/// How much is read of one stream at a time, in buffers: the deadline and the other stream have their turn too.
const TURN: usize = 16;
/// How much of its end is told.
const LAST_WORDS: usize = 1024;

/// What is written into the log when an executable left something behind.
const COMPANY: &str = "== what was left of its process group was killed: what outlives a call begins a session of its own (setsid)";

/// What a warden is asked to do.
#[derive(Serialize, Deserialize)]
pub(crate) struct Envelope {
    /// The executable and its arguments.
    pub(crate) command: Vec<String>,
    /// Where it runs.
    pub(crate) directory: Option<PathBuf>,
    /// All of its environment.
    pub(crate) environment: BTreeMap<String, String>,
    pub(crate) method: String,
    /// What it reads, as text.
    pub(crate) request: String,
    pub(crate) secrets: SecretValues,
    pub(crate) deadline_ms: u64,
    pub(crate) grace_ms: u64,
}

/// How a call ended.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ended {
    pub(crate) how: How,
    /// Why it was ended, if it did not end by itself.
    pub(crate) cut: Option<Cut>,
    /// The last of what it printed on standard error.
    pub(crate) last_words: String,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum How {
    /// It was never started; nothing happened.
    NotStarted(String),
    /// It ended with this status.
    Exited(i32),
    /// This signal ended it.
    Killed(i32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Cut {
    /// Its time was over.
    Deadline,
    /// Nobody waits for it any more.
    Caller,
    /// It printed too much.
    Flood,
}

/// Runs the warden step.
pub fn run() -> ExitCode {
    match ward() {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn ward() -> io::Result<()> {
    // First, so that its number has one digit: shells redirect from no others.
    let mut secrets = memory("secrets")?;
    let mut caller = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut answers = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let envelope = read(&mut caller)?;
    fill(&mut secrets, &serde_json::to_vec(&envelope.secrets)?)?;
    let started = start(&envelope, &secrets);
    drop(secrets);
    let ended = match started {
        Ok(child) => Ward::new(child, &mut answers, &envelope)?.watch(&caller)?,
        Err(error) => {
            let program = envelope.command.first().map_or("", String::as_str);
            let search = envelope.environment.get("PATH").map(String::as_str);
            let why = unstarted::explained(program, envelope.directory.as_deref(), search, &error);
            Ended { how: How::NotStarted(why), cut: None, last_words: String::new() }
        }
    };
    frame(&mut answers, b'e', &serde_json::to_vec(&ended)?)
}

/// Reads an envelope, and no byte more: what comes after it is silence, until the caller is gone.
fn read(caller: &mut File) -> io::Result<Envelope> {
    let mut length = [0; 8];
    caller.read_exact(&mut length)?;
    let mut text = Vec::new();
    caller.take(u64::from_le_bytes(length)).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

/// Returns the envelope as it is read.
pub(crate) fn written(envelope: &Envelope) -> Vec<u8> {
    let text = serde_json::to_vec(envelope).unwrap_or_default();
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text);
    bytes
}

/// Returns a file that is nowhere but in memory.
fn memory(name: &str) -> io::Result<File> {
    Ok(File::from(memfd_create(name, MemfdFlags::CLOEXEC)?))
}

fn fill(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    file.write_all(bytes)?;
    file.rewind()
}

fn start(envelope: &Envelope, secrets: &File) -> io::Result<Child> {
    let (program, arguments) =
        envelope.command.split_first().ok_or_else(|| io::Error::other("no command"))?;
    // A file, not a pipe: an executable need not read all of it, or any.
    let mut request = memory("request")?;
    fill(&mut request, envelope.request.as_bytes())?;
    // The one child of this process gets it.
    fcntl_setfd(secrets, FdFlags::empty())?;
    let mut command = Command::new(program);
    if let Some(directory) = &envelope.directory {
        command.current_dir(directory);
    }
    command
        .args(arguments)
        .env_clear()
        .envs(&envelope.environment)
        .env(METHOD, &envelope.method)
        .env(SECRETS_FD, secrets.as_raw_fd().to_string())
        .stdin(request)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
}

fn frame(answers: &mut File, kind: u8, text: &[u8]) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(text.len() + 2);
    bytes.push(kind);
    bytes.extend_from_slice(text);
    bytes.push(b'\n');
    answers.write_all(&bytes)
}

/// An executable that runs.
struct Ward<'a> {
    child: Child,
    ended: OwnedFd,
    timer: OwnedFd,
    lines: Lines,
    log: Log,
    answers: &'a mut File,
    grace: Duration,
}

/// What is looked out for.
#[expect(clippy::struct_excessive_bools, reason = "each may be so beside the others")]
struct Signs {
    lines: bool,
    log: bool,
    caller: bool,
    time: bool,
    end: bool,
}

impl<'a> Ward<'a> {
    fn new(mut child: Child, answers: &'a mut File, envelope: &Envelope) -> io::Result<Self> {
        let ward = Self::around(&mut child, envelope);
        match ward {
            Ok((ended, timer, lines, log)) => {
                let grace = Duration::from_millis(envelope.grace_ms);
                Ok(Self { child, ended, timer, lines, log, answers, grace })
            }
            Err(error) => {
                // Nobody would end it.
                end(&mut child);
                Err(error)
            }
        }
    }

    fn around(
        child: &mut Child,
        envelope: &Envelope,
    ) -> io::Result<(OwnedFd, OwnedFd, Lines, Log)> {
        let ended = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?;
        set(&timer, Duration::from_millis(envelope.deadline_ms))?;
        let piped = || io::Error::other("its output is not there");
        let lines = Lines::new(child.stdout.take().ok_or_else(piped)?.into())?;
        let log = Log::new(child.stderr.take().ok_or_else(piped)?.into(), &envelope.secrets)?;
        Ok((ended, timer, lines, log))
    }

    /// Passes on what the executable says until it has ended, or is ended.
    fn watch(mut self, caller: &File) -> io::Result<Ended> {
        let cut = match self.watch_over(caller) {
            Ok(cut) => cut,
            Err(error) => {
                end(&mut self.child);
                return Err(error);
            }
        };
        // Its group may have outlived it. Until it is waited for, no other group has its number.
        self.signal(Signal::KILL);
        let status = self.child.wait()?;
        // Its number is the group's for as long as anything of that is there.
        let had_company = test_kill_process_group(Pid::from_child(&self.child)).is_ok();
        self.log.pump();
        self.log.finish();
        if had_company && cut.is_none() {
            let _is_kept = writeln!(io::stderr(), "{COMPANY}").is_ok();
        }
        // What it said at last counts, whether or not anybody listens.
        let _heard = self.lines.finish(self.answers).is_ok();
        let how = match (status.code(), status.signal()) {
            (Some(code), _) => How::Exited(code),
            (None, signal) => How::Killed(signal.unwrap_or(0)),
        };
        Ok(Ended { how, cut, last_words: self.log.last_words() })
    }

    fn watch_over(&mut self, caller: &File) -> io::Result<Option<Cut>> {
        let mut cut = None;
        loop {
            let signs = self.wait(cut.is_none().then(|| caller.as_fd()))?;
            if signs.log {
                self.log.pump();
            }
            // Whoever listened is gone.
            let gone = (signs.lines && self.lines.pump(self.answers).is_err()) || signs.caller;
            if signs.end {
                return Ok(cut);
            }
            match cut {
                None if gone || signs.time || self.lines.is_flood() => {
                    cut = Some(if signs.time {
                        Cut::Deadline
                    } else if gone {
                        Cut::Caller
                    } else {
                        Cut::Flood
                    });
                    self.signal(Signal::TERM);
                    set(&self.timer, self.grace)?;
                }
                Some(_) if signs.time => {
                    self.signal(Signal::KILL);
                    // It is the kernel's now; its end is what is waited for.
                    set(&self.timer, Duration::from_secs(3600))?;
                }
                None | Some(_) => {}
            }
        }
    }

    fn wait(&self, caller: Option<BorrowedFd<'_>>) -> io::Result<Signs> {
        let (lines, log) = (self.lines.source(), self.log.source());
        let nothing = self.timer.as_fd();
        let sources = [Some(self.ended.as_fd()), Some(self.timer.as_fd()), lines, log, caller];
        let mut polled: Vec<PollFd<'_>> = sources
            .iter()
            .map(|source| match source {
                Some(source) => PollFd::from_borrowed_fd(*source, PollFlags::IN),
                None => PollFd::from_borrowed_fd(nothing, PollFlags::empty()),
            })
            .collect();
        match poll(&mut polled, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let is_ready = |n: usize| sources[n].is_some() && !polled[n].revents().is_empty();
        Ok(Signs {
            end: is_ready(0),
            time: is_ready(1),
            lines: is_ready(2),
            log: is_ready(3),
            caller: is_ready(4),
        })
    }

    /// Signals the group. One that runs as somebody else by now cannot be signalled: its end is waited for.
    fn signal(&self, signal: Signal) {
        let _is_signalled = kill_process_group(Pid::from_child(&self.child), signal).is_ok();
    }
}

/// Ends an executable that cannot be looked after.
fn end(child: &mut Child) {
    let group = Pid::from_child(child);
    if kill_process_group(group, Signal::KILL).is_ok() {
        let _ended = child.wait().is_ok();
    }
}

/// Sets a timer that rings once.
fn set(timer: &OwnedFd, after: Duration) -> io::Result<()> {
    // Zero would stop it.
    let after = after.max(Duration::from_nanos(1));
    let value =
        Timespec { tv_sec: after.as_secs().cast_signed(), tv_nsec: after.subsec_nanos().into() };
    let interval = Timespec { tv_sec: 0, tv_nsec: 0 };
    let spec = Itimerspec { it_interval: interval, it_value: value };
    timerfd_settime(timer, TimerfdTimerFlags::empty(), &spec)?;
    Ok(())
}

/// Reads what is there without waiting for more; `None` at the end.
fn read_now(source: &mut File, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    match source.read(buffer) {
        Ok(0) => Ok(None),
        Ok(count) => Ok(Some(count)),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Some(0)),
        Err(error) => Err(error),
    }
}

fn without_waiting(source: OwnedFd) -> io::Result<File> {
    fcntl_setfl(&source, fcntl_getfl(&source)? | OFlags::NONBLOCK)?;
    Ok(File::from(source))
}

/// What the executable prints on standard output.
struct Lines {
    source: Option<File>,
    /// A line whose end has not come yet.
    begun: Vec<u8>,
    /// How much was printed in all, in bytes.
    printed: u64,
}

impl Lines {
    fn new(source: OwnedFd) -> io::Result<Self> {
        Ok(Self { source: Some(without_waiting(source)?), begun: Vec::new(), printed: 0 })
    }

    fn source(&self) -> Option<BorrowedFd<'_>> {
        self.source.as_ref().map(AsFd::as_fd)
    }

    /// Returns whether it printed more than it may; the rest is thrown away.
    fn is_flood(&self) -> bool {
        self.printed > LONGEST_OUTPUT
    }

    /// Passes on the lines that are there, for one turn.
    ///
    /// # Errors
    /// When nobody takes them.
    fn pump(&mut self, answers: &mut File) -> io::Result<()> {
        let mut buffer = [0; 16 * 1024];
        for _ in 0..TURN {
            let Some(source) = &mut self.source else { return Ok(()) };
            match read_now(source, &mut buffer) {
                Ok(Some(count)) => self.take(&buffer[..count], answers)?,
                // Nothing more is there now, or ever.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Ok(None) | Err(_) => self.source = None,
            }
        }
        Ok(())
    }

    fn take(&mut self, text: &[u8], answers: &mut File) -> io::Result<()> {
        self.printed += text.len() as u64;
        if self.is_flood() {
            self.begun = Vec::new();
            return Ok(());
        }
        for part in text.split_inclusive(|byte| *byte == b'\n') {
            self.begun.extend_from_slice(part);
            if self.begun.pop_if(|last| *last == b'\n').is_some() {
                let line = std::mem::take(&mut self.begun);
                frame(answers, b'o', &line)?;
            }
        }
        Ok(())
    }

    /// Passes on the rest, the line without an end included. Whoever else holds the pipe open is not waited for.
    fn finish(&mut self, answers: &mut File) -> io::Result<()> {
        self.pump(answers)?;
        if self.begun.is_empty() {
            return Ok(());
        }
        frame(answers, b'o', &std::mem::take(&mut self.begun))
    }
}

/// What the executable prints on standard error: it goes to ours, which is the log, without secrets.
struct Log {
    source: Option<File>,
    mask: MaskedStream,
    kept: usize,
    end: Vec<u8>,
}

impl Log {
    fn new(source: OwnedFd, secrets: &SecretValues) -> io::Result<Self> {
        let source = Some(without_waiting(source)?);
        Ok(Self { source, mask: secrets.mask().stream(), kept: 0, end: Vec::new() })
    }

    fn source(&self) -> Option<BorrowedFd<'_>> {
        self.source.as_ref().map(AsFd::as_fd)
    }

    fn pump(&mut self) {
        let mut buffer = [0; 16 * 1024];
        for _ in 0..TURN {
            let Some(source) = &mut self.source else { return };
            match read_now(source, &mut buffer) {
                Ok(Some(count)) => {
                    let told = self.mask.push(&buffer[..count]);
                    self.keep(&told);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Ok(None) | Err(_) => self.source = None,
            }
        }
    }

    /// Keeps what might have been the beginning of a secret: nothing more comes.
    fn finish(&mut self) {
        let rest = self.mask.finish();
        self.keep(&rest);
    }

    fn keep(&mut self, text: &[u8]) {
        self.end.extend_from_slice(text);
        let surplus = self.end.len().saturating_sub(LAST_WORDS);
        self.end.drain(..surplus);
        let room = LONGEST_LOG.saturating_sub(self.kept);
        let kept = &text[..text.len().min(room)];
        self.kept += kept.len();
        let mut log = io::stderr();
        // A full disk costs the log, not the call.
        let mut written = log.write_all(kept);
        if kept.len() < text.len() && room > 0 {
            written = written.and(log.write_all(b"\n== the rest is left out\n"));
        }
        let _is_kept = written.is_ok();
    }

    fn last_words(&self) -> String {
        String::from_utf8_lossy(&self.end).trim().to_owned()
    }
}
