//! What `/proc` says of one process, and of this machine.
//!
//! A process is `(pid, start time)`: a pid alone is reused. Start times count clock ticks since boot,
//! so they are only comparable within one boot.

use std::collections::BTreeMap;
use std::fs;
use std::io;

/// One process at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) pid: i32,
    pub(crate) session: i32,
    pub(crate) start_time: u64,
    /// A zombie holds its pid and runs no more: it is dead to us.
    pub(crate) dead: bool,
}

/// Reads `/proc/<pid>/stat`; `None` when there is no such process.
pub(crate) fn stat(pid: i32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The second field is the program's name in parentheses and may hold anything, so fields are counted
/// from the last parenthesis on (proc_pid_stat(5)).
fn parse_stat(text: &str) -> Option<Stat> {
    let (head, tail) = text.rsplit_once(')')?;
    let pid = head.split_once(' ')?.0.parse().ok()?;
    let fields: Vec<&str> = tail.split_ascii_whitespace().collect();
    Some(Stat {
        pid,
        session: fields.get(3)?.parse().ok()?,
        start_time: fields.get(19)?.parse().ok()?,
        dead: matches!(*fields.first()?, "Z" | "X"),
    })
}

/// Returns whether this very process still runs.
pub(crate) fn is_alive(pid: i32, start_time: u64) -> bool {
    stat(pid).is_some_and(|stat| stat.start_time == start_time && !stat.dead)
}

/// Returns the process's `POOL_*` variables; empty when it is gone or belongs to another user.
pub(crate) fn tags(pid: i32) -> BTreeMap<String, String> {
    let Ok(environ) = fs::read(format!("/proc/{pid}/environ")) else { return BTreeMap::new() };
    environ
        .split(|byte| *byte == 0)
        .filter(|entry| entry.starts_with(b"POOL_"))
        .filter_map(|entry| std::str::from_utf8(entry).ok()?.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

/// Returns the pids of all processes that this namespace shows.
pub(crate) fn pids() -> io::Result<Vec<i32>> {
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc")? {
        if let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) {
            pids.push(pid);
        }
    }
    Ok(pids)
}

/// Returns the id of this boot of this machine.
pub(crate) fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Returns the identity of this PID namespace; pids of another one mean nothing here.
pub(crate) fn pid_namespace() -> io::Result<String> {
    Ok(fs::read_link("/proc/self/ns/pid")?.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_name_with_parentheses_and_spaces_does_not_shift_the_fields() {
        let text = "42 (a) Z b) (c) S 1 42 41 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 777 1 1 1";
        let stat = parse_stat(text).unwrap();
        assert_eq!(stat, Stat { pid: 42, session: 41, start_time: 777, dead: false });
        assert!(parse_stat("43 (x) Z 1 43 43 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 9 0").unwrap().dead);
    }

    #[test]
    fn this_process_is_alive_and_its_pid_with_another_start_time_is_not() {
        let own = stat(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(is_alive(own.pid, own.start_time));
        assert!(!is_alive(own.pid, own.start_time + 1));
    }
}
