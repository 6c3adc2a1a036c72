//! `pool lease run`: holds a lease around a command.
//!
//! The command runs with the worker's name and address in its environment; signals are passed on to it,
//! the lease is renewed for as long as it runs, and released with how it went. A lease that is lost takes
//! the right to the worker with it: then the command is ended.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use jiff::Timestamp;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::{Value, json};
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal as Arrivals, SignalKind, signal};
use tokio::time::sleep;

use super::client::{Client, ClientError, ServerArgs};
use super::context::Context;
use super::error::CliError;
use super::exit::Exit;
use super::lease::{WantedArgs, request};
use crate::config::HumanDuration;

/// How long a command that lost its lease has to end by itself.
const GRACE: Duration = Duration::from_secs(10);
/// How soon a renewal or release is tried again that the server did not answer.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// How often a lease is renewed at least.
const LOOK: Duration = Duration::from_secs(15);
/// After how long of waiting for a worker it is said.
const MENTION: Duration = Duration::from_secs(1);
/// How often a release is tried: what is not released expires.
const RELEASES: u32 = 5;

#[derive(Debug, Args)]
pub(super) struct Run {
    #[command(flatten)]
    wanted: WantedArgs,
    /// How long to wait for a worker that is not free
    #[arg(long, value_name = "DURATION", default_value = "10m")]
    wait: HumanDuration,
    #[command(flatten)]
    server: ServerArgs,
    /// The command and its arguments
    #[arg(value_name = "CMD", required = true, last = true)]
    command: Vec<OsString>,
}

/// The lease, as far as it matters here.
struct Held {
    id: String,
    fence: i64,
    worker: String,
    address: String,
    expires_at: Timestamp,
    ttl: Duration,
}

impl Held {
    fn of(lease: &Value, ttl: Option<HumanDuration>) -> Option<Self> {
        let expires_at: Timestamp = lease["expires_at"].as_str()?.parse().ok()?;
        let granted_at: Timestamp = lease["granted_at"].as_str()?.parse().ok()?;
        let told = Duration::try_from(expires_at.duration_since(granted_at)).ok()?;
        Some(Self {
            id: lease["id"].as_str()?.to_owned(),
            fence: lease["fence"].as_i64()?,
            worker: lease["worker"]["name"].as_str()?.to_owned(),
            address: lease["worker"]["addresses"][0].as_str().unwrap_or("").to_owned(),
            expires_at,
            ttl: ttl.map_or(told, HumanDuration::get),
        })
    }
}

pub(super) async fn run(context: &Context, arguments: &Run) -> Result<Exit, CliError> {
    let client = Client::new(&arguments.server)?;
    let wait = arguments.wait.get();
    let body = request(context, &arguments.wanted, 1, wait)?;
    // From here on signals are the command's; until it runs they end the waiting.
    let mut signals = Signals::listen(context.world.stdin_is_terminal)?;
    let mut asking = Box::pin(client.acquire(&body, wait, None));
    let mut mentioned = false;
    let answer = loop {
        tokio::select! {
            answer = &mut asking => break answer?,
            (signal, _) = signals.arrived() => return Ok(stopped_by(signal)),
            () = sleep(MENTION), if !mentioned => {
                mentioned = true;
                context.printer.note(&format!("waiting for a worker, at most {}", arguments.wait));
            }
        }
    };
    let held = Held::of(&answer["leases"][0], arguments.wanted.ttl())
        .context("the server's answer is not a lease")?;
    let outcome = hold(context, arguments, &client, &held, &mut signals).await;
    let went = match &outcome {
        Ok(status) if status.success() => "ok",
        Ok(_) | Err(_) => "job_failed",
    };
    release(context, &client, &held.id, went).await;
    Ok(Exit::Command(code(outcome?)))
}

/// Runs the command for as long as the lease is held.
async fn hold(
    context: &Context,
    arguments: &Run,
    client: &Client,
    held: &Held,
    signals: &mut Signals,
) -> Result<ExitStatus, CliError> {
    let mut words = arguments.command.iter();
    let program = words.next().context("there is no command")?;
    let mut command = Command::new(program);
    // What the command starts gets its signals too. On a terminal it stays in the foreground's group: it may read
    // from there, and gets the terminal's own signals.
    if !signals.from_terminal {
        command.process_group(0);
    }
    let spawned = command
        .args(words)
        .env("POOL_WORKER", &held.worker)
        .env("POOL_LEASE", &held.id)
        .env("POOL_ADDRESS", &held.address)
        .env("POOL_FENCE", held.fence.to_string())
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => {
            let program = program.display();
            context.printer.error(&format!(
                "error: running {program}: {error}\n\
                 hint: check how it is written, and that it may be executed\n"
            ));
            return Ok(not_run(&error));
        }
    };
    let mut renewing = Box::pin(renew(context, client, held));
    let lost = loop {
        tokio::select! {
            status = child.wait() => return Ok(status.context("waiting for the command")?),
            arrived = signals.next() => signals.pass_on(&child, arrived),
            why = &mut renewing => break why,
        }
    };
    context.printer.error(&format!("error: the lease {} is lost: {lost}\n", held.id));
    context.printer.error("hint: the command is ended, because another one may have the worker\n");
    let group = child.id();
    signals.pass_on(&child, Signal::TERM);
    tokio::select! {
        _ = child.wait() => {}
        () = sleep(GRACE) => {
            signals.pass_on(&child, Signal::KILL);
            child.wait().await.context("ending the command")?;
        }
    }
    // What it started and left behind has no right to the worker either.
    signals.kill_group(group);
    let lost = CliError::usage("the lease was lost while the command ran", "run it again");
    Err(lost)
}

/// Renews the lease until it is lost; says why.
async fn renew(context: &Context, client: &Client, held: &Held) -> String {
    // Often enough to notice soon that somebody else ended it.
    let every = (held.ttl / 3).min(LOOK);
    let mut trouble = None;
    let mut expires_at = held.expires_at;
    let mut pause = every;
    loop {
        sleep(pause).await;
        let ttl = format!("{}ms", held.ttl.as_millis().max(1));
        match client.renew(&held.id, &json!({ "fence": held.fence, "ttl": ttl })).await {
            Ok(lease) => {
                let told = lease["expires_at"].as_str().and_then(|at| at.parse().ok());
                expires_at = told.unwrap_or(expires_at);
                pause = every;
                let now = lease["trouble"].as_str().map(str::to_owned);
                if let Some(why) = now.as_ref().filter(|_| now != trouble) {
                    let worker = &held.worker;
                    context.printer.note(&format!("warning: worker {worker}: {why}"));
                }
                trouble = now;
            }
            Err(ClientError::Refused(refusal)) if matches!(refusal.status, 404 | 410 | 412) => {
                return refusal.to_string();
            }
            // A server that restarts keeps the lease for a minute at least.
            Err(error) => {
                if context.world.clock.now() > expires_at + Duration::from_secs(60) {
                    return error.to_string();
                }
                pause = TRY_AGAIN.min(every);
            }
        }
    }
}

async fn release(context: &Context, client: &Client, id: &str, outcome: &str) {
    for attempt in 1..=RELEASES {
        match client.release(id, outcome).await {
            Ok(()) | Err(ClientError::Refused(_)) => return,
            Err(error) if attempt == RELEASES => {
                context
                    .printer
                    .error(&format!("warning: the lease {id} was not released: {error}\n"));
            }
            Err(_) => sleep(TRY_AGAIN).await,
        }
    }
}

/// Signals that the command should have.
struct Signals {
    terminate: Arrivals,
    hang_up: Arrivals,
    interrupt: Arrivals,
    quit: Arrivals,
    user1: Arrivals,
    user2: Arrivals,
    /// A terminal sends its own to the command too.
    from_terminal: bool,
}

impl Signals {
    fn listen(from_terminal: bool) -> Result<Self, CliError> {
        let on = |kind: SignalKind| signal(kind).context("listening for signals");
        Ok(Self {
            terminate: on(SignalKind::terminate())?,
            hang_up: on(SignalKind::hangup())?,
            interrupt: on(SignalKind::interrupt())?,
            quit: on(SignalKind::quit())?,
            user1: on(SignalKind::user_defined1())?,
            user2: on(SignalKind::user_defined2())?,
            from_terminal,
        })
    }

    /// Returns the next signal, and whether a terminal may have sent it.
    async fn arrived(&mut self) -> (Signal, bool) {
        tokio::select! {
            _ = self.terminate.recv() => (Signal::TERM, false),
            _ = self.hang_up.recv() => (Signal::HUP, false),
            _ = self.interrupt.recv() => (Signal::INT, true),
            _ = self.quit.recv() => (Signal::QUIT, true),
            _ = self.user1.recv() => (Signal::USR1, false),
            _ = self.user2.recv() => (Signal::USR2, false),
        }
    }

    /// Returns the next signal that has to be passed on.
    async fn next(&mut self) -> Signal {
        loop {
            let (signal, also_from_terminal) = self.arrived().await;
            if !(also_from_terminal && self.from_terminal) {
                return signal;
            }
        }
    }

    /// Sends the command a signal, and everything that it started with it where it has a group of its own.
    fn pass_on(&self, child: &Child, signal: Signal) {
        let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let Some(pid) = pid else { return };
        let sent = if self.from_terminal {
            kill_process(pid, signal)
        } else {
            kill_process_group(pid, signal)
        };
        let _ended_already = sent.is_err();
    }

    /// Ends what is left of the group of a command that has ended.
    fn kill_group(&self, leader: Option<u32>) {
        let leader = leader.and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(leader) = leader.filter(|_| !self.from_terminal) {
            let _nothing_left = kill_process_group(leader, Signal::KILL).is_err();
        }
    }
}

/// Stopped before there was anything to hold: as a shell would say it.
fn stopped_by(signal: Signal) -> Exit {
    match signal {
        Signal::INT => Exit::Interrupted,
        other => Exit::Command(u8::try_from(128 + other.as_raw()).unwrap_or(1)),
    }
}

/// What a shell's status is for a command that is not there, or that cannot be run.
fn not_run(error: &std::io::Error) -> ExitStatus {
    let code = if error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 };
    ExitStatus::from_raw(code << 8)
}

/// What a shell would say: the command's code, or 128 and the signal that ended it.
fn code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}
