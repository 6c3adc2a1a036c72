//! Who holds a lock or an operation, and whether that process still lives.
//!
//! A holder that is dead on this machine is taken over at once; one of another machine, or of another
//! PID namespace, when its heartbeat has been missing for [`EXPIRY`]. Nothing ever needs a manual
//! unlock.

use std::fs;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// How long a holder that cannot be looked at is trusted without a heartbeat.
pub const EXPIRY: Duration = Duration::from_secs(15);

/// How often a holder renews its locks: three times within [`EXPIRY`].
pub const HEARTBEAT: Duration = Duration::from_secs(5);

/// One process that works on pools.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Tells two holders apart even within one process.
    pub id: String,
    /// What it does, for people: `pool apply`.
    pub what: String,
    /// The machine, where it has an id.
    pub machine_id: String,
    /// The boot that `start_time` counts from.
    pub boot_id: String,
    /// The PID namespace that `pid` belongs to.
    pub pid_namespace: String,
    /// Its process id.
    pub pid: i32,
    /// When it started, in clock ticks since boot: a pid alone is reused.
    pub start_time: u64,
}

/// Whether a holder lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Alive,
    Dead,
    Unknown,
}

impl Holder {
    /// Describes this process; `id` comes from the caller's entropy.
    pub fn this_process(what: &str, id: String) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let namespace = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
        let pid = i32::try_from(std::process::id()).unwrap_or(0);
        Self {
            id,
            what: what.to_owned(),
            machine_id: read("/etc/machine-id"),
            boot_id: read("/proc/sys/kernel/random/boot_id"),
            pid_namespace: namespace.to_string_lossy().into_owned(),
            pid,
            start_time: start_time(pid).unwrap_or(0),
        }
    }

    /// Returns whether this holder, last heard of at `heartbeat_at`, still holds what it held.
    pub fn is_in_force(&self, own: &Self, heartbeat_at: Timestamp, now: Timestamp) -> bool {
        match self.life(own) {
            Life::Alive => true,
            Life::Dead => false,
            // A clock that runs ahead elsewhere does not make a living holder dead.
            Life::Unknown => {
                let silent = now.duration_since(heartbeat_at);
                Duration::try_from(silent).unwrap_or(Duration::ZERO) < EXPIRY
            }
        }
    }

    fn life(&self, own: &Self) -> Life {
        if self.boot_id != own.boot_id {
            let same_machine = !own.machine_id.is_empty() && self.machine_id == own.machine_id;
            return if same_machine { Life::Dead } else { Life::Unknown };
        }
        if self.pid_namespace != own.pid_namespace {
            return Life::Unknown;
        }
        if start_time(self.pid) == Some(self.start_time) { Life::Alive } else { Life::Dead }
    }

    /// Describes the holder to a person.
    pub fn describe(&self) -> String {
        format!("{} (process {})", self.what, self.pid)
    }
}

/// Returns when the process started, unless it is gone or a zombie.
fn start_time(pid: i32) -> Option<u64> {
    let stat = procfs::process::Process::new(pid).and_then(|process| process.stat()).ok()?;
    (!matches!(stat.state, 'Z' | 'X')).then_some(stat.starttime)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Holder {
        Holder::this_process("test", "a".into())
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_living_process_keeps_its_lock_without_any_heartbeat() {
        assert!(own().is_in_force(&own(), at(0), at(1_000_000)));
    }

    #[test]
    fn a_dead_process_of_this_machine_loses_it_at_once() {
        let reused_pid = Holder { start_time: own().start_time + 1, ..own() };
        let before_reboot = Holder { boot_id: "earlier".into(), ..own() };
        assert!(!reused_pid.is_in_force(&own(), at(0), at(0)));
        if !own().machine_id.is_empty() {
            assert!(!before_reboot.is_in_force(&own(), at(0), at(0)));
        }
    }

    #[test]
    fn a_process_that_cannot_be_seen_keeps_it_until_its_heartbeat_is_old() {
        let container = Holder { pid_namespace: "pid:[1]".into(), ..own() };
        let elsewhere = Holder { boot_id: "x".into(), machine_id: "y".into(), ..own() };
        for holder in [container, elsewhere] {
            assert!(holder.is_in_force(&own(), at(100), at(114)));
            assert!(!holder.is_in_force(&own(), at(100), at(115)));
        }
    }
}
