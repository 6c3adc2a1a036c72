//! What executables print on standard error: one file for each operation, kept for a while.
//!
//! A repeat of an operation goes into the same file, after what was there: why the first try failed is worth
//! knowing. Calls that only look share one file for each method, which holds the latest one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::PathBuf;
use std::time::Duration;

use crate::protocol::Method;

/// How long logs are kept.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
/// How large a file may be to be gone on with; larger ones are begun anew.
const LARGEST: u64 = 1024 * 1024;

/// The logs of one provider.
#[derive(Debug, Clone)]
pub(crate) struct Logs(PathBuf);

impl Logs {
    pub(crate) fn at(folder: PathBuf) -> Self {
        Self(folder)
    }

    /// Opens the log of a call, and notes there what is called. Where none can be kept there is none: that costs no
    /// call.
    pub(crate) fn open(&self, method: &Method) -> io::Result<(PathBuf, File)> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.0)?;
        let (name, goes_on) = match (method, method.worker()) {
            (Method::Create(create), _) => {
                (format!("{}.create.{}.log", create.worker.object_name, create.attempt), true)
            }
            (_, Some(worker)) if method.changes() => {
                (format!("{}.{}.log", worker.object_name, method.name()), true)
            }
            (_, Some(_) | None) => (format!("{}.log", method.name()), false),
        };
        let path = self.0.join(name);
        let is_small = path.metadata().is_ok_and(|found| found.len() < LARGEST);
        let mut file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path)?;
        if !goes_on || !is_small {
            file.set_len(0)?;
        }
        match method {
            Method::Create(create) => {
                writeln!(
                    file,
                    "== create, operation {}, token {}",
                    create.operation, create.token
                )?;
            }
            other => writeln!(file, "== {}", other.name())?,
        }
        Ok((path, file))
    }

    /// Removes logs that nobody wants any more.
    pub(crate) fn forget(&self) {
        let Ok(entries) = fs::read_dir(&self.0) else { return };
        for entry in entries.flatten() {
            let is_old = || {
                let age = entry.metadata().ok()?.modified().ok()?.elapsed().ok()?;
                Some(age > KEPT)
            };
            if is_old().unwrap_or(false) {
                // Somebody else may have removed it already.
                let _is_gone = fs::remove_file(entry.path()).is_ok();
            }
        }
    }
}
