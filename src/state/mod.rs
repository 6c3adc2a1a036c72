//! The record of what we did: workers, operations, applied configs, locks, events.
//!
//! [`Store`] has coarse operations named by intention; SQL stays inside. Every change runs in a short
//! transaction on one writer thread and is durable before it is answered. Changes of a pool need the
//! pool's lock ([`PoolLock`]): a holder that was taken over can no longer commit.
//!
//! | module       | holds                                                       |
//! |--------------|-------------------------------------------------------------|
//! | `open`       | opening, checking, migrating the file                        |
//! | `writer`     | the writer thread and its group commit                        |
//! | [`holder`]   | who holds a lock, and whether that process lives               |
//! | `lock`       | one holder a pool, with a fence                                |
//! | `marks`      | what people decide about workers; pools in numbers              |
//! | `healing`    | what health checks find, and what is done about it               |
//! | `load`       | rows to [`RecordedPool`]s                                      |
//! | `lifecycle`  | the intent and the result of every provider call                |
//! | `draining`   | workers that are to go while jobs have them                      |
//! | `change`     | one transaction's view of a locked pool                       |
//! | `operation`  | the rows of provider calls                                     |
//! | [`leases`]   | who has which worker                                           |
//! | `offers`     | what pools offer to those who ask                               |
//! | `providers`  | how providers are reached, and how much is asked of them          |
//! | `names`      | what a person may mean who types a name                            |
//! | `reader`     | reads beside the writer                                         |
//! | `trials`     | workers that are other ones than the config asks for, on purpose        |
//! | `watch`      | what probes need to know, and what they found                    |
//! | `event`      | who, when, why, from where to where                             |
//!
//! Knows nothing of providers, config text or HTTP.

mod change;
mod draining;
mod error;
mod event;
mod healing;
pub mod holder;
pub mod leases;
mod lifecycle;
mod load;
mod lock;
mod marks;
mod moves;
mod names;
mod offers;
mod open;
mod operation;
mod providers;
mod reader;
mod trials;
mod watch;
mod writer;

pub use error::StateError;
pub use event::{EVENT_KINDS, Event, EventFilter};
pub use healing::{Health, PoolVersions, Retention, Used};
pub use holder::Holder;
pub use leases::{Ended, Granted, Lease, LeaseFilter, NoProbes, Renewed, Vouch};
pub use lifecycle::{NewCreate, OpenedOperation, WorkerKey};
pub use lock::PoolLock;
pub use marks::{Mark, PoolSummary};
pub use names::{Name, NamesOf, names};
pub use open::WhenMissing;
pub use watch::Watched;
pub use writer::{BatchObserver, CommitFault, CommitFaults};

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use jiff::Timestamp;

use self::offers::Offers;
use self::reader::Reader;
use self::writer::{JobError, Writer};
use crate::clock::{Clock, Entropy};
use crate::plan::RecordedPool;
use crate::worker::{DeploymentId, PoolId};

/// Where the digest of the files is kept that a server applied last.
const SERVED_CONFIG: &str = "served_config";

/// The way to one state; clones share it.
#[derive(Debug, Clone)]
pub struct Store {
    writer: Writer,
    reader: Option<Reader>,
    offers: Arc<Offers>,
    entropy: Entropy,
    clock: Clock,
    holder: Arc<Holder>,
    /// The pools that runs of this process have locked: the database tells processes apart, not runs.
    locked: Arc<Mutex<BTreeSet<PoolId>>>,
    deployment: DeploymentId,
    path: Arc<PathBuf>,
    ephemeral: bool,
    secret_key: SecretKey,
}

/// The key of secret hashes. It never leaves the state: no plan, export or tag contains it.
#[derive(Clone)]
pub struct SecretKey(Arc<[u8]>);

impl std::fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretKey")
    }
}

impl SecretKey {
    /// Hashes a secret with the key: equal secrets of one state hash alike, and nothing else is told.
    ///
    /// # Panics
    /// Never: HMAC takes keys of every length.
    pub fn hash(&self, secret: &str) -> String {
        use hmac::{Hmac, Mac as _};
        let mut mac =
            Hmac::<sha2::Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of every length");
        mac.update(secret.as_bytes());
        let bytes = mac.finalize().into_bytes();
        bytes[..16].iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// How a state is opened.
#[derive(Debug)]
pub struct OpenOptions<'a> {
    /// The database file.
    pub path: &'a Path,
    /// What to do when there is none.
    pub when_missing: WhenMissing,
    /// Stamps rows.
    pub clock: Clock,
    /// Makes the deployment id and the secret key.
    pub entropy: Entropy,
    /// What this process does, for those whom it keeps waiting: `pool apply`.
    pub what: &'a str,
    /// When the whole file is checked for damage.
    pub check: Check,
}

/// When a state is checked for damage: that reads all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// Before anything else.
    First,
    /// When [`Store::check`] is called: whoever waits for a server does not wait for this.
    Later,
}

impl Store {
    /// Opens a state.
    ///
    /// # Errors
    /// Everything that is wrong with the file, before anything else happens.
    pub fn open(options: OpenOptions<'_>) -> Result<Self, StateError> {
        Self::open_with_faults(options, None)
    }

    /// Opens a state whose commits go wrong as `faults` says; for tests of what survives that.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_with_faults(
        options: OpenOptions<'_>,
        faults: Option<Box<dyn CommitFaults>>,
    ) -> Result<Self, StateError> {
        let OpenOptions { path, when_missing, clock, entropy, what, check } = options;
        let ephemeral = when_missing == WhenMissing::Pretend && !open::exists(path)?;
        let connection = open::open(path, when_missing, open::MIGRATIONS, &entropy, check)?;
        let (deployment, secret_key) = load::identity(&connection, path)?;
        let id: String = entropy.bytes::<8>().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self {
            writer: Writer::start(connection, path.to_owned(), faults),
            reader: None,
            offers: Arc::default(),
            entropy,
            clock,
            holder: Arc::new(Holder::this_process(what, id)),
            locked: Arc::default(),
            deployment,
            path: Arc::new(path.to_owned()),
            ephemeral,
            secret_key: SecretKey(secret_key.into()),
        })
    }

    /// Returns the same state with a connection of its own for reading, so that long reads do not keep the
    /// writer. A state that leaves nothing behind has none.
    ///
    /// # Errors
    /// When the file cannot be opened once more.
    pub fn with_reader(self) -> Result<Self, StateError> {
        if self.ephemeral {
            return Ok(self);
        }
        Ok(Self { reader: Some(Reader::start(&self.path)?), ..self })
    }

    /// Checks the whole file for damage.
    ///
    /// # Errors
    /// [`StateError::Damaged`] when there is some.
    pub async fn check(&self) -> Result<(), StateError> {
        let path = Arc::clone(&self.path);
        // By a connection of its own: it reads everything, and nobody is to wait for that.
        let checking = tokio::task::spawn_blocking(move || {
            let connection = open::connect_to_read(&path)?;
            open::verify(&connection, &path)
        });
        checking.await.unwrap_or(Err(StateError::Closed))
    }

    /// Reads what is committed.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&rusqlite::Connection) -> Result<T, JobError> + Send + 'static,
    ) -> Result<T, StateError> {
        match &self.reader {
            Some(reader) => reader.run(read).await,
            None => self.writer.run(read).await,
        }
    }

    /// Has `observer` told how many changes each transaction has.
    pub fn observe_batches(&self, observer: BatchObserver) {
        self.writer.observe(observer);
    }

    /// Returns whose state it is.
    pub fn deployment(&self) -> &DeploymentId {
        &self.deployment
    }

    /// Returns whether nothing of it will be left.
    pub fn is_ephemeral(&self) -> bool {
        self.ephemeral
    }

    /// Returns where the database is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the key of secret hashes; a state that leaves nothing behind has none worth using.
    pub fn secret_key(&self) -> Option<SecretKey> {
        (!self.ephemeral).then(|| self.secret_key.clone())
    }

    /// Returns what the state's clock tells.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Returns every pool, those that are gone included: their slots' generations are not forgotten.
    pub async fn load(&self) -> Result<Vec<RecordedPool>, StateError> {
        let (own, now) = (Arc::clone(&self.holder), self.now());
        self.read(move |connection| load::pools(connection, &own, now)).await
    }

    /// Returns one pool; `None` when nothing is recorded of it.
    pub async fn load_pool(&self, pool: &PoolId) -> Result<Option<RecordedPool>, StateError> {
        let (own, now, pool) = (Arc::clone(&self.holder), self.now(), pool.clone());
        self.read(move |connection| Ok(load::some(connection, Some(&pool), &own, now)?.pop())).await
    }

    /// Returns what the files said that a server applied last; `None` before the first time.
    pub async fn served_config(&self) -> Result<Option<String>, StateError> {
        self.read(|connection| load::meta(connection, SERVED_CONFIG)).await
    }

    /// Remembers what the files said that a server applied.
    pub async fn set_served_config(&self, digest: String) -> Result<(), StateError> {
        self.writer
            .run(move |connection| {
                let sql = "INSERT INTO meta (key, value) VALUES (?1, CAST(?2 AS BLOB))
                           ON CONFLICT (key) DO UPDATE SET value = excluded.value";
                connection.prepare_cached(sql)?.execute((SERVED_CONFIG, digest))?;
                Ok(())
            })
            .await
    }

    /// Returns the size of the write-ahead log in bytes; 0 when there is none.
    pub fn log_size(&self) -> u64 {
        let mut path = self.path.as_os_str().to_owned();
        path.push("-wal");
        std::fs::metadata(path).map_or(0, |log| log.len())
    }

    /// Returns the pools that are recorded and not gone.
    pub async fn pool_ids(&self) -> Result<BTreeSet<PoolId>, StateError> {
        self.read(load::pool_ids).await
    }

    /// Returns the names of the providers that workers ever came from, those that are gone included: a
    /// late call may still bring something there.
    pub async fn provider_names(&self) -> Result<BTreeSet<String>, StateError> {
        self.read(load::provider_names).await
    }

    /// Returns events in order.
    pub async fn events(&self, filter: EventFilter) -> Result<Vec<Event>, StateError> {
        self.read(move |connection| event::read(connection, &filter)).await
    }
}
