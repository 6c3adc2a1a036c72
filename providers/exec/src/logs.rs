//! What executables print on standard error: one file for each operation, kept for a while.
//!
//! A repeat of an operation goes into the same file, after what was there: why the first try failed is worth
//! knowing. Calls that only look share one file for each method, which holds the latest one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::protocol::Method;

/// How long logs are kept.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
/// How large a file may be to be gone on with; larger ones are begun anew.
const LARGEST: u64 = 512 * 1024;

/// How often it is looked for old ones: a server runs for months.
const LOOKED: Duration = Duration::from_secs(3600);

/// The logs of one provider; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Logs {
    folder: PathBuf,
    /// When old ones were looked for.
    looked: Arc<Mutex<Option<Instant>>>,
}

impl Logs {
    pub(crate) fn at(folder: PathBuf) -> Self {
        Self { folder, looked: Arc::default() }
    }

    /// Opens the log of a call, and notes there what is called. Where none can be kept there is none: that costs no
    /// call.
    pub(crate) fn open(&self, method: &Method) -> io::Result<(PathBuf, File)> {
        self.forget_now_and_then();
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        let (name, goes_on) = match (method, method.worker()) {
            (Method::Create(create), _) => {
                (format!("{}.create.{}.log", create.worker.object_name, create.attempt), true)
            }
            (_, Some(worker)) if method.changes() => {
                (format!("{}.{}.log", worker.object_name, method.name()), true)
            }
            (_, Some(_) | None) => (format!("{}.log", method.name()), false),
        };
        let path = self.folder.join(name);
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

    fn forget_now_and_then(&self) {
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        if looked.is_none_or(|looked| looked.elapsed() > LOOKED) {
            *looked = Some(Instant::now());
            self.forget();
        }
    }

    /// Removes logs that nobody wants any more.
    fn forget(&self) {
        let Ok(entries) = fs::read_dir(&self.folder) else { return };
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
