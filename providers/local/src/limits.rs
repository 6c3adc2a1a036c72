//! Processor and memory limits by control groups, where this system lets us.
//!
//! Version 2 is used where the whole hierarchy is version 2, version 1 where it has the two
//! controllers. Every limit that cannot be set is named with the reason: a worker without limits is
//! allowed, a worker with limits that silently do not hold is not.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The period that processor quotas are counted in, in microseconds (the kernel's default).
const CPU_PERIOD_US: u64 = 100_000;

/// What to limit.
pub(crate) struct Limits<'a> {
    pub(crate) object_name: &'a str,
    pub(crate) cpu_cores: u32,
    pub(crate) memory_mb: u32,
}

/// The two hierarchies below `root`, by the version in use.
enum Hierarchy {
    V1 { cpu: PathBuf, memory: PathBuf },
    V2 { unified: PathBuf },
    Missing,
}

fn hierarchy(root: &Path) -> Hierarchy {
    if root.join("cgroup.controllers").exists() {
        Hierarchy::V2 { unified: root.to_owned() }
    } else if root.join("cpu").is_dir() && root.join("memory").is_dir() {
        Hierarchy::V1 { cpu: root.join("cpu"), memory: root.join("memory") }
    } else {
        Hierarchy::Missing
    }
}

/// Moves this process into groups with `limits`, and says in words what holds and what does not.
pub(crate) fn enter(root: &Path, limits: &Limits<'_>) -> String {
    let memory = u64::from(limits.memory_mb) * 1024 * 1024;
    let quota = u64::from(limits.cpu_cores) * CPU_PERIOD_US;
    let (cpu, memory) = match hierarchy(root) {
        Hierarchy::Missing => return "not limited: no control groups on this system".to_owned(),
        Hierarchy::V1 { cpu, memory: memory_root } => (
            enter_group(&cpu, limits, &[("cpu.cfs_quota_us", quota.to_string())]),
            enter_group(&memory_root, limits, &[("memory.limit_in_bytes", memory.to_string())]),
        ),
        Hierarchy::V2 { unified } => {
            let settings = [
                ("cpu.max", format!("{quota} {CPU_PERIOD_US}")),
                ("memory.max", memory.to_string()),
            ];
            let entered = enter_group(&unified, limits, &settings);
            (entered.as_ref().copied().map_err(|error| error.kind().into()), entered)
        }
    };
    let words = |what: String, result: io::Result<()>| match result {
        Ok(()) => what,
        Err(error) => format!("{what} not enforced ({error})"),
    };
    format!(
        "{}, {}",
        words(format!("cpu {} cores", limits.cpu_cores), cpu),
        words(format!("memory {} MiB", limits.memory_mb), memory)
    )
}

fn enter_group(
    controller: &Path,
    limits: &Limits<'_>,
    settings: &[(&str, String)],
) -> io::Result<()> {
    let parent = controller.join("pool");
    let group = parent.join(limits.object_name);
    fs::create_dir_all(&group)?;
    // Version 2 hands controllers down level by level; version 1 has no such file.
    for level in [controller, &parent] {
        let hand_down = level.join("cgroup.subtree_control");
        if hand_down.exists() {
            fs::write(hand_down, "+cpu +memory")?;
        }
    }
    for (file, value) in settings {
        fs::write(group.join(file), value)?;
    }
    fs::write(group.join("cgroup.procs"), "0")
}

/// Removes the worker's groups. They go only when empty; one left behind is harmless.
pub(crate) fn remove(root: &Path, object_name: &str) {
    let controllers = match hierarchy(root) {
        Hierarchy::V1 { cpu, memory } => vec![cpu, memory],
        Hierarchy::V2 { unified } => vec![unified],
        Hierarchy::Missing => Vec::new(),
    };
    for controller in controllers {
        // A group can only be removed once its last process is reaped; the next delete tries again.
        let _gone_or_busy = fs::remove_dir(controller.join("pool").join(object_name)).is_ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_is_not_enforced_and_why() {
        let root = tempfile::tempdir().unwrap();
        let limits = Limits { object_name: "ci-0-1-abcdef", cpu_cores: 2, memory_mb: 64 };
        assert_eq!(enter(root.path(), &limits), "not limited: no control groups on this system");
        fs::create_dir(root.path().join("cpu")).unwrap();
        fs::write(root.path().join("memory"), "").unwrap();
        assert!(enter(root.path(), &limits).starts_with("not limited"));
        fs::remove_file(root.path().join("memory")).unwrap();
        fs::create_dir(root.path().join("memory")).unwrap();
        assert_eq!(enter(root.path(), &limits), "cpu 2 cores, memory 64 MiB");
        let written = root.path().join("memory/pool/ci-0-1-abcdef/memory.limit_in_bytes");
        assert_eq!(fs::read_to_string(written).unwrap(), "67108864");
    }
}
