//! The files that make an attempt exclusive and remember which process it became.
//!
//! One file a claim, `<worker>.<attempt>.claim`, in a folder per deployment. It appears complete or not
//! at all: written aside, then hard-linked to its name, which fails when the name exists (link(2)).
//! A lock on `<worker>.<attempt>.reset` says that the worker is being stopped and started again.
//! A tombstone, `<worker>.deleted`, holds the latest attempt that was deleted and forbids claims up to it:
//! a launcher that was still on its way when the worker was deleted finds it and gives up.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use pool_provider::{DeploymentId, WorkerName};
use serde::{Deserialize, Serialize};

/// How long a tombstone is kept: longer than any launcher can be on its way.
const TOMBSTONE_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// What one attempt to start a worker became.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Who the worker is.
    pub name: WorkerName,
    /// Which attempt this is.
    pub attempt: u32,
    /// The operation that asked for it.
    pub operation: i64,
    /// The hash of its spec.
    pub spec_hash: String,
    /// Its labels; rewritten by an update.
    pub labels: BTreeMap<String, String>,
    /// Its tags; rewritten by an update.
    pub tags: Vec<String>,
    /// Its process id, in `pid_namespace`.
    pub pid: i32,
    /// When its process started, in clock ticks since boot.
    pub start_time: u64,
    /// The boot that `start_time` counts from.
    pub boot_id: String,
    /// The PID namespace that `pid` belongs to.
    pub pid_namespace: String,
    /// Which limits are in force, in words.
    pub limits: String,
}

/// The claims of one deployment.
#[derive(Debug, Clone)]
pub struct ClaimFolder {
    path: PathBuf,
}

impl ClaimFolder {
    /// Refers to the folder of `owner` below `root`, which need not exist to be read.
    pub fn of(root: &Path, owner: &DeploymentId) -> Self {
        Self { path: root.join(owner.as_str()) }
    }

    /// Creates the folder, private to this user, when it is missing.
    pub fn create(&self) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.path)
    }

    /// Refers to a folder that exists, by its own path.
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// Returns the folder's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns where the worker's standard output and error go.
    pub fn log_path(&self, name: &WorkerName) -> PathBuf {
        self.path.join(format!("{name}.log"))
    }

    fn claim_path(&self, name: &WorkerName, attempt: u32) -> PathBuf {
        self.path.join(format!("{name}.{attempt}.claim"))
    }

    fn reset_path(&self, name: &WorkerName, attempt: u32) -> PathBuf {
        self.path.join(format!("{name}.{attempt}.reset"))
    }

    fn tombstone_path(&self, name: &WorkerName) -> PathBuf {
        self.path.join(format!("{name}.deleted"))
    }

    /// Takes the attempt, or returns false when it is taken or deleted.
    pub fn take(&self, claim: &Claim) -> io::Result<bool> {
        let path = self.claim_path(&claim.name, claim.attempt);
        let aside = self.write_aside(claim)?;
        let linked = fs::hard_link(&aside, &path);
        fs::remove_file(&aside)?;
        match linked {
            Ok(()) if self.buried(&claim.name)? >= claim.attempt => {
                fs::remove_file(&path)?;
                Ok(false)
            }
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Takes an attempt over from whoever had it; false when it is deleted. Only under [`Self::lock_reset`].
    pub fn take_over(&self, claim: &Claim) -> io::Result<bool> {
        self.rewrite(claim)?;
        if self.buried(&claim.name)? >= claim.attempt {
            fs::remove_file(self.claim_path(&claim.name, claim.attempt))?;
            remove_if_present(&self.reset_path(&claim.name, claim.attempt))?;
            return Ok(false);
        }
        Ok(true)
    }

    /// Waits until nobody else resets the attempt. The lock ends with the file, or with this process, or
    /// when it executes another program.
    pub fn lock_reset(&self, name: &WorkerName, attempt: u32) -> io::Result<File> {
        let file = private_file(&self.reset_path(name, attempt))?;
        file.lock()?;
        Ok(file)
    }

    /// The same without waiting: `None` while somebody resets the attempt.
    pub fn try_lock_reset(&self, name: &WorkerName, attempt: u32) -> io::Result<Option<File>> {
        let file = private_file(&self.reset_path(name, attempt))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Returns whether somebody resets the attempt: whether or not it runs now, it will.
    pub fn is_being_reset(&self, name: &WorkerName, attempt: u32) -> io::Result<bool> {
        match File::open(self.reset_path(name, attempt)) {
            Ok(file) => match file.try_lock_shared() {
                Ok(()) => Ok(false),
                Err(TryLockError::WouldBlock) => Ok(true),
                Err(TryLockError::Error(error)) => Err(error),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Replaces the claim's content.
    pub fn rewrite(&self, claim: &Claim) -> io::Result<()> {
        let aside = self.write_aside(claim)?;
        fs::rename(aside, self.claim_path(&claim.name, claim.attempt))
    }

    fn write_aside(&self, claim: &Claim) -> io::Result<PathBuf> {
        let own = std::process::id();
        let aside = self.path.join(format!(".{}.{}.{own}", claim.name, claim.attempt));
        let mut file = private_file(&aside)?;
        file.write_all(&serde_json::to_vec(claim)?)?;
        // A claim that a power cut emptied would be an error in every later listing.
        file.sync_data()?;
        Ok(aside)
    }

    /// Returns the claim of one attempt.
    pub fn read(&self, name: &WorkerName, attempt: u32) -> io::Result<Option<Claim>> {
        read_claim(&self.claim_path(name, attempt))
    }

    /// Returns every claim of `name`, or of all workers.
    pub fn read_all(&self, name: Option<&WorkerName>) -> io::Result<Vec<Claim>> {
        let prefix = name.map(|name| format!("{name}."));
        let mut claims = Vec::new();
        let entries = match fs::read_dir(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(claims),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let file_name = entry.file_name();
            let Some(file_name) = file_name.to_str() else { continue };
            let wanted = prefix.as_ref().is_none_or(|prefix| file_name.starts_with(prefix));
            // A file still being written aside starts with a dot.
            if wanted && has_extension(&entry.path(), "claim") && !file_name.starts_with('.') {
                claims.extend(read_claim(&entry.path())?);
            }
        }
        Ok(claims)
    }

    /// Forbids claims of `name` up to `attempt`. Comes before the search for what is to be stopped.
    pub fn bury(&self, name: &WorkerName, attempt: u32) -> io::Result<()> {
        self.create()?;
        let latest = attempt.max(self.buried(name)?);
        let aside = self.path.join(format!(".{name}.{}.buried", std::process::id()));
        private_file(&aside)?.write_all(latest.to_string().as_bytes())?;
        fs::rename(aside, self.tombstone_path(name))
    }

    /// Returns the latest attempt that was deleted; 0 when none was.
    fn buried(&self, name: &WorkerName) -> io::Result<u32> {
        match fs::read_to_string(self.tombstone_path(name)) {
            Ok(text) => Ok(text.trim().parse().unwrap_or(u32::MAX)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Removes those claims of `name` of which nothing runs any more, and every tombstone that is out
    /// of date together with the log of its worker.
    pub fn clear(&self, name: &WorkerName, gone: impl Fn(u32) -> bool) -> io::Result<()> {
        let all = self.read_all(Some(name))?;
        for claim in all.into_iter().filter(|claim| gone(claim.attempt)) {
            remove_if_present(&self.claim_path(name, claim.attempt))?;
        }
        let prefix = format!("{name}.");
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let file = entry.file_name().into_string().unwrap_or_default();
            let attempt = file.strip_prefix(&prefix).and_then(|rest| rest.strip_suffix(".reset"));
            if attempt.and_then(|text| text.parse().ok()).is_some_and(&gone) {
                remove_if_present(&entry.path())?;
            }
            if has_extension(&entry.path(), "deleted") {
                let age = entry.metadata()?.modified()?.elapsed().unwrap_or_default();
                if age > TOMBSTONE_AGE {
                    remove_if_present(&entry.path())?;
                    remove_if_present(&entry.path().with_extension("log"))?;
                }
            }
        }
        Ok(())
    }
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found == extension)
}

fn read_claim(path: &Path) -> io::Result<Option<Claim>> {
    match fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| {
            io::Error::new(io::ErrorKind::InvalidData, format!("{}: {error}", path.display()))
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn remove_if_present(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Opens a file for writing that only this user can read: it may hold what a worker prints.
pub(crate) fn private_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pool_provider::{Generation, Slot};

    fn claim(pid: i32) -> Claim {
        Claim {
            name: WorkerName::new("ci".parse().unwrap(), Slot(0), Generation(1)),
            attempt: 1,
            operation: 7,
            spec_hash: "v1:00".into(),
            labels: BTreeMap::new(),
            tags: Vec::new(),
            pid,
            start_time: 1,
            boot_id: "boot".into(),
            pid_namespace: "pid:[1]".into(),
            limits: String::new(),
        }
    }

    fn folder() -> (tempfile::TempDir, ClaimFolder) {
        let root = tempfile::tempdir().unwrap();
        let folder = ClaimFolder::of(root.path(), &DeploymentId::from_random([1; 16]));
        assert_eq!(folder.read_all(None).unwrap(), []);
        folder.create().unwrap();
        (root, folder)
    }

    #[test]
    fn the_second_to_take_an_attempt_loses() {
        let (_root, folder) = folder();
        assert!(folder.take(&claim(1)).unwrap());
        assert!(!folder.take(&claim(2)).unwrap());
        assert_eq!(folder.read(&claim(1).name, 1).unwrap().unwrap().pid, 1);
    }

    #[test]
    fn nobody_takes_a_deleted_attempt_and_somebody_takes_the_next_one() {
        let (_root, folder) = folder();
        folder.bury(&claim(1).name, 1).unwrap();
        assert!(!folder.take(&claim(1)).unwrap());
        assert_eq!(folder.read_all(None).unwrap(), []);
        folder.bury(&claim(1).name, 0).unwrap();
        assert!(!folder.take(&claim(1)).unwrap());
        assert!(folder.take(&Claim { attempt: 2, ..claim(1) }).unwrap());
    }
}
