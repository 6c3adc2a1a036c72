//! A connection that only reads, on a thread of its own: a long listing must not keep leases waiting.
//!
//! Each read is one short transaction of its own: a read that stays open would keep the write-ahead log
//! from being emptied.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rusqlite::Connection;
use tokio::sync::oneshot;

use super::error::StateError;
use super::open::{connect_to_read, translate};
use super::writer::JobError;

type Read = Box<dyn FnOnce(&Connection) + Send>;

/// The way to the thread; clones share it.
#[derive(Debug, Clone)]
pub(super) struct Reader {
    reads: Arc<Mutex<Sender<Read>>>,
    path: Arc<PathBuf>,
}

impl Reader {
    /// Opens the database and starts the thread.
    pub(super) fn start(path: &Path) -> Result<Self, StateError> {
        let connection = connect_to_read(path)?;
        let (reads, received) = channel::<Read>();
        thread::spawn(move || {
            for read in received {
                read(&connection);
            }
        });
        Ok(Self { reads: Arc::new(Mutex::new(reads)), path: Arc::new(path.to_owned()) })
    }

    /// Runs `read` on what is committed.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T, JobError> + Send + 'static,
    ) -> Result<T, StateError> {
        let (answer, answered) = oneshot::channel();
        let path = Arc::clone(&self.path);
        let job: Read = Box::new(move |connection| {
            let outcome = in_transaction(connection, read).map_err(|error| match error {
                JobError::State(error) => error,
                JobError::Sql(error) => translate(&error, &path),
            });
            let _nobody_waits = answer.send(outcome).is_err();
        });
        let sent = self.reads.lock().unwrap_or_else(PoisonError::into_inner).send(job);
        sent.map_err(|_| StateError::Closed)?;
        answered.await.map_err(|_| StateError::Closed)?
    }
}

/// Everything that one read sees is of one moment.
fn in_transaction<T>(
    connection: &Connection,
    read: impl FnOnce(&Connection) -> Result<T, JobError>,
) -> Result<T, JobError> {
    connection.prepare_cached("BEGIN")?.execute([])?;
    let outcome = read(connection);
    connection.prepare_cached("COMMIT")?.execute([])?;
    outcome
}
