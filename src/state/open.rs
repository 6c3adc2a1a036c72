//! Opens the database: checks that it is ours, whole and writable, and brings it to this version.
//!
//! Everything that can be wrong with the file is found here, before any provider is called. A backup is
//! made before each migration. Migrations are numbered and checksummed: one that changed after it was
//! applied is refused.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension as _};
use sha2::{Digest as _, Sha256};

use super::Check;
use super::error::StateError;
use crate::clock::{Entropy, Stopwatch};

/// Marks our databases in SQLite's header: the letters "pool".
const APPLICATION_ID: i32 = 0x706f_6f6c;

/// How long one process waits for another one's transaction; each is under 5 ms.
const BUSY_WAIT: Duration = Duration::from_secs(10);
/// How long it pauses between two tries. SQLite's own back-off starves the second process.
const BUSY_PAUSE: Duration = Duration::from_micros(50);

/// How large the write-ahead log stays once all of it is in the database.
const LOG_LIMIT: u32 = 16 << 20;

/// One step of the schema.
#[derive(Debug, Clone, Copy)]
pub(super) struct Migration {
    pub(super) version: u32,
    pub(super) sql: &'static str,
}

/// Every step, in order. Never change one that was released: add another.
pub(super) const MIGRATIONS: &[Migration] = &[
    Migration { version: 1, sql: include_str!("migrations/0001_initial.sql") },
    Migration { version: 2, sql: include_str!("migrations/0002_leases.sql") },
    Migration { version: 3, sql: include_str!("migrations/0003_providers.sql") },
    Migration { version: 4, sql: include_str!("migrations/0004_trials.sql") },
];

impl Migration {
    fn checksum(self) -> String {
        Sha256::digest(self.sql).iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Whether a state may be created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenMissing {
    /// Create an empty one.
    Create,
    /// Refuse.
    Refuse,
    /// Work on an empty one that leaves nothing behind.
    Pretend,
}

/// Opens the database at `path` with `migrations`.
pub(super) fn open(
    path: &Path,
    when_missing: WhenMissing,
    migrations: &[Migration],
    entropy: &Entropy,
    check: Check,
) -> Result<Connection, StateError> {
    let exists = exists(path)?;
    if !exists && when_missing == WhenMissing::Refuse {
        return Err(StateError::Missing(path.to_owned()));
    }
    let watch = Stopwatch::start();
    loop {
        match open_once(path, when_missing, migrations, entropy, check) {
            // Changing to write-ahead logging does not wait for others by itself (sqlite.org/wal.html).
            Err(StateError::Busy(_)) if watch.elapsed() < BUSY_WAIT => pause(),
            outcome => return outcome,
        }
    }
}

fn open_once(
    path: &Path,
    when_missing: WhenMissing,
    migrations: &[Migration],
    entropy: &Entropy,
    check: Check,
) -> Result<Connection, StateError> {
    let exists = exists(path)?;
    let pretend = !exists && when_missing == WhenMissing::Pretend;
    if !exists && !pretend {
        create_file(path)?;
    }
    let mut connection = connect(if pretend { Path::new(":memory:") } else { path })?;
    let ours = identify(&connection, path)?;
    if ours && check == Check::First {
        verify(&connection, path)?;
    }
    migrate(&mut connection, path, migrations, entropy)?;
    Ok(connection)
}

/// Returns whether there is a file. One that cannot be seen is not one that is not there: a plan would make a
/// second fleet.
pub(super) fn exists(path: &Path) -> Result<bool, StateError> {
    let unopenable = |error: std::io::Error| StateError::Unopenable {
        path: path.to_owned(),
        reason: error.to_string(),
    };
    path.try_exists().map_err(unopenable)
}

fn create_file(path: &Path) -> Result<(), StateError> {
    let unopenable = |error: std::io::Error| StateError::Unopenable {
        path: path.to_owned(),
        reason: error.to_string(),
    };
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(unopenable)?;
    }
    // SQLite gives its side files the mode of the database, so this one call protects them all.
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map(drop)
        .map_err(unopenable)
}

fn connect(path: &Path) -> Result<Connection, StateError> {
    let error = |error: rusqlite::Error| translate(&error, path);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags).map_err(error)?;
    let mut waiting: Option<Stopwatch> = None;
    connection
        .busy_handler(Some(move |tries: i32| {
            if tries == 0 {
                waiting = Some(Stopwatch::start());
            }
            pause();
            waiting.is_some_and(|since| since.elapsed() < BUSY_WAIT)
        }))
        .map_err(error)?;
    if connection.is_readonly(rusqlite::MAIN_DB).map_err(error)? {
        return Err(StateError::ReadOnly(path.to_owned()));
    }
    connection.set_prepared_statement_cache_capacity(128);
    // Otherwise every new value of a parameter in a query that a partial index could serve has the query
    // prepared again (sqlite.org/c3ref/c_dbconfig_defensive.html, SQLITE_DBCONFIG_ENABLE_QPSG).
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map_err(error)?;
    Ok(connection)
}

/// Opens a state that is there, to read it.
pub(super) fn connect_to_read(path: &Path) -> Result<Connection, StateError> {
    let connection = connect(path)?;
    connection.pragma_update(None, "query_only", true).map_err(|error| translate(&error, path))?;
    Ok(connection)
}

#[expect(clippy::disallowed_methods, reason = "SQLite's busy handler is synchronous")]
fn pause() {
    std::thread::sleep(BUSY_PAUSE);
}

/// Returns whether the file is a state already; an empty one is not yet.
fn identify(connection: &Connection, path: &Path) -> Result<bool, StateError> {
    let error = |error: rusqlite::Error| translate(&error, path);
    // Both of one moment: another process may be making the state just now.
    let moment = connection.unchecked_transaction().map_err(error)?;
    let id: i32 =
        moment.pragma_query_value(None, "application_id", |row| row.get(0)).map_err(error)?;
    let tables: i64 = moment
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .map_err(error)?;
    drop(moment);
    match (id, tables) {
        (APPLICATION_ID, _) => Ok(true),
        (0, 0) => Ok(false),
        _ => Err(StateError::Foreign(path.to_owned())),
    }
}

pub(super) fn verify(connection: &Connection, path: &Path) -> Result<(), StateError> {
    let verdict: String = connection
        .pragma_query_value(None, "quick_check", |row| row.get(0))
        .map_err(|error| translate(&error, path))?;
    if verdict == "ok" {
        Ok(())
    } else {
        Err(StateError::Damaged { path: path.to_owned(), reason: verdict })
    }
}

fn migrate(
    connection: &mut Connection,
    path: &Path,
    migrations: &[Migration],
    entropy: &Entropy,
) -> Result<(), StateError> {
    let error = |error: rusqlite::Error| translate(&error, path);
    connection.pragma_update(None, "journal_mode", "WAL").map_err(error)?;
    // The log is as large as its largest moment otherwise, long after that.
    connection.pragma_update(None, "journal_size_limit", LOG_LIMIT).map_err(error)?;
    // FULL: an answered intent survives a power cut, not only a kill.
    connection.pragma_update(None, "synchronous", "FULL").map_err(error)?;
    connection.pragma_update(None, "foreign_keys", true).map_err(error)?;
    let known = migrations.last().map_or(0, |last| last.version);
    let found = version(connection).map_err(error)?;
    if found > known {
        return Err(StateError::Newer { path: path.to_owned(), found, known });
    }
    if found < known {
        bring_up(connection, path, migrations, entropy)?;
    }
    for migration in migrations {
        verify_checksum(connection, path, *migration)?;
    }
    Ok(())
}

/// Makes every step that is left in one transaction: nobody ever sees a version in between, and of two
/// processes one waits for the other.
fn bring_up(
    connection: &mut Connection,
    path: &Path,
    migrations: &[Migration],
    entropy: &Entropy,
) -> Result<(), StateError> {
    let error = |error: rusqlite::Error| translate(&error, path);
    let transaction = connection
        .transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)
        .map_err(error)?;
    // Another process may have been faster.
    let found = version(&transaction).map_err(error)?;
    let left = migrations.iter().filter(|migration| migration.version > found);
    if found > 0 && left.clone().next().is_some() {
        // Read by a connection of its own: one that writes cannot be copied from.
        back_up(&connect(path)?, path, found)?;
    }
    for migration in left {
        step(&transaction, path, *migration, entropy)?;
    }
    transaction.commit().map_err(error)
}

fn version(connection: &Connection) -> rusqlite::Result<u32> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

fn verify_checksum(
    connection: &Connection,
    path: &Path,
    migration: Migration,
) -> Result<(), StateError> {
    let key = format!("migration_{}", migration.version);
    let recorded: Option<String> = connection
        .query_row("SELECT CAST(value AS TEXT) FROM meta WHERE key = ?1", [key], |row| row.get(0))
        .optional()
        .map_err(|error| translate(&error, path))?;
    if recorded.as_deref() == Some(migration.checksum().as_str()) {
        return Ok(());
    }
    let reason =
        format!("its schema version {} is not the one that this pool makes", migration.version);
    Err(StateError::Damaged { path: path.to_owned(), reason })
}

fn step(
    transaction: &Connection,
    path: &Path,
    migration: Migration,
    entropy: &Entropy,
) -> Result<(), StateError> {
    let error = |error: rusqlite::Error| translate(&error, path);
    transaction.execute_batch(migration.sql).map_err(error)?;
    let set = |key: &str, value: &[u8]| {
        let sql = "INSERT INTO meta (key, value) VALUES (?1, ?2)";
        transaction.execute(sql, (key, value)).map(drop).map_err(error)
    };
    if migration.version == 1 {
        let deployment = crate::worker::DeploymentId::from_random(entropy.bytes());
        set("deployment", deployment.as_str().as_bytes())?;
        set("secret_key", &entropy.bytes::<32>())?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID).map_err(error)?;
    }
    set(&format!("migration_{}", migration.version), migration.checksum().as_bytes())?;
    transaction.pragma_update(None, "user_version", migration.version).map_err(error)
}

/// Copies the database aside, private like itself, as `<path>.v<version>.bak`.
fn back_up(connection: &Connection, path: &Path, version: u32) -> Result<(), StateError> {
    let beside = |ending: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".v{version}.{ending}"));
        std::path::PathBuf::from(name)
    };
    let unopenable = |error: std::io::Error| StateError::Unopenable {
        path: path.to_owned(),
        reason: format!("backing it up: {error}"),
    };
    // Written aside: a backup that was cut short must not be taken for one.
    let (aside, backup) = (beside("tmp"), beside("bak"));
    create_file(&aside)?;
    connection
        .backup(rusqlite::MAIN_DB, &aside, None::<fn(rusqlite::backup::Progress)>)
        .map_err(|error| translate(&error, path))?;
    fs::File::open(&aside).and_then(|file| file.sync_all()).map_err(unopenable)?;
    fs::rename(&aside, &backup).map_err(unopenable)
}

/// Gives SQLite's errors the names that a person can act on.
pub(super) fn translate(error: &rusqlite::Error, path: &Path) -> StateError {
    let path = path.to_owned();
    let reason = error.to_string();
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => StateError::Full(path),
        Some(ErrorCode::ReadOnly) => StateError::ReadOnly(path),
        Some(ErrorCode::DatabaseCorrupt) => StateError::Damaged { path, reason },
        Some(ErrorCode::NotADatabase) => StateError::Foreign(path),
        Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => {
            StateError::Unopenable { path, reason }
        }
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StateError::Busy(path),
        Some(ErrorCode::ConstraintViolation) => StateError::Conflict(reason),
        _ => StateError::Other(reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Migration =
        Migration { version: 2, sql: "ALTER TABLE pool ADD COLUMN note TEXT" };

    const FIRST: &[Migration] = MIGRATIONS.split_at(1).0;

    fn opened(path: &Path, migrations: &[Migration]) -> Result<Connection, StateError> {
        open(path, WhenMissing::Create, migrations, &Entropy::system(), Check::First)
    }

    #[test]
    fn a_backup_is_made_before_each_migration_and_can_be_gone_back_to() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        let first = opened(&path, FIRST).unwrap();
        first.execute("INSERT INTO pool (id, serial) VALUES ('ci', 7)", []).unwrap();
        drop(first);
        let both = [MIGRATIONS[0], SECOND];
        let second = opened(&path, &both).unwrap();
        second.execute("UPDATE pool SET note = 'x'", []).unwrap();
        drop(second);
        let backup = folder.path().join("state.db.v1.bak");
        let restored = opened(&backup, FIRST).unwrap();
        let serial: i64 =
            restored.query_row("SELECT serial FROM pool", [], |row| row.get(0)).unwrap();
        assert_eq!(serial, 7);
        assert!(matches!(opened(&path, FIRST), Err(StateError::Newer { found: 2, known: 1, .. })));
        assert!(!folder.path().join("state.db.v1.tmp").exists());
    }

    #[test]
    fn a_migration_that_fails_leaves_the_state_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        drop(opened(&path, FIRST).unwrap());
        let broken = Migration { version: 2, sql: "CREATE TABLE extra (x); SELECT nonsense" };
        assert!(opened(&path, &[MIGRATIONS[0], broken]).is_err());
        let connection = opened(&path, FIRST).unwrap();
        let sql = "SELECT count(*) FROM sqlite_schema WHERE name = 'extra'";
        let extra: i64 = connection.query_row(sql, [], |row| row.get(0)).unwrap();
        assert_eq!(extra, 0);
    }

    #[test]
    fn a_migration_that_changed_after_it_was_applied_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        drop(opened(&path, &[MIGRATIONS[0], SECOND]).unwrap());
        let changed = Migration { sql: "ALTER TABLE pool ADD COLUMN other TEXT", ..SECOND };
        assert!(matches!(
            opened(&path, &[MIGRATIONS[0], changed]),
            Err(StateError::Damaged { .. })
        ));
    }
}
