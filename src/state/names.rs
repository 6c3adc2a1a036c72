//! The names in a state, for whoever completes what a person types: read in an instant, changing nothing.
//!
//! A state that is not there, is older than this program, or is busy for more than a moment, has no names. Nobody who presses a key wants
//! an error, and a migration least of all.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use crate::lease::LeaseId;

/// How long a key press may wait for another process's transaction.
const BUSY_WAIT: Duration = Duration::from_millis(200);

/// How many names are offered: more are of no use to whoever chooses one.
const MOST: u32 = 1_000;

/// A name, and a word about what it names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    /// As it is typed.
    pub name: String,
    /// What there is to know of it, in a few words.
    pub what: String,
}

/// Of what the names are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NamesOf {
    /// The recorded pools.
    Pools,
    /// Slots that have a worker, as `pool[slot]`.
    Slots,
    /// Workers that are not gone.
    Workers,
    /// Leases that have not ended.
    Leases,
    /// Providers as last applied.
    Providers,
}

/// Returns names that begin with `prefix`, in their natural order.
pub fn names(path: &Path, of: NamesOf, prefix: &str) -> Vec<Name> {
    let mut found = read(path, of, prefix).unwrap_or_default();
    found.retain(|name| name.name.starts_with(prefix));
    found
}

fn read(path: &Path, of: NamesOf, prefix: &str) -> rusqlite::Result<Vec<Name>> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_WAIT)?;
    // Narrowed before it is limited: whoever typed the beginning of a name wants its end. `substr` and not `LIKE`, for
    // which `_` would be any letter.
    let sql = match of {
        NamesOf::Pools => {
            "SELECT id, ready || ' of ' || max(live, coalesce(json_extract(config, '$.fixed_size'), 0)) || ' ready' \
             FROM pool WHERE (config IS NOT NULL OR live > 0) AND substr(id, 1, length(?1)) = ?1 \
             ORDER BY id LIMIT ?2"
        }
        NamesOf::Slots => {
            "SELECT pool || '[' || slot || ']', group_concat(pool || '-' || slot || '-' || generation, ', ') \
             FROM worker WHERE phase <> 'deleted' AND substr(pool || '[' || slot || ']', 1, length(?1)) = ?1 \
             GROUP BY pool, slot ORDER BY pool, slot LIMIT ?2"
        }
        NamesOf::Workers => {
            "SELECT w.pool || '-' || w.slot || '-' || w.generation, \
             iif(w.lease IS NULL, w.phase, 'leased to ' || coalesce(lease.holder, '')) \
             FROM worker AS w LEFT JOIN lease ON lease.id = w.lease \
             WHERE w.phase <> 'deleted' \
               AND substr(w.pool || '-' || w.slot || '-' || w.generation, 1, length(?1)) = ?1 \
             ORDER BY w.pool, w.slot, w.generation LIMIT ?2"
        }
        NamesOf::Leases => return leases(&connection, prefix),
        NamesOf::Providers => {
            "SELECT name, coalesce(json_extract(config, '$.type'), '') FROM provider \
             WHERE substr(name, 1, length(?1)) = ?1 ORDER BY name LIMIT ?2"
        }
    };
    let mut statement = connection.prepare(sql)?;
    let rows = statement
        .query_map((prefix, MOST), |row| Ok(Name { name: row.get(0)?, what: row.get(1)? }))?;
    rows.collect()
}

fn leases(connection: &Connection, prefix: &str) -> rusqlite::Result<Vec<Name>> {
    let sql = "SELECT id, nonce, pool || '-' || slot || '-' || generation, holder FROM lease \
               WHERE ended_at IS NULL AND substr(id || printf('-%08x', nonce), 1, length(?1)) = ?1 \
               ORDER BY id LIMIT ?2";
    let mut statement = connection.prepare(sql)?;
    let rows = statement.query_map((prefix, MOST), |row| {
        let id = LeaseId { number: row.get(0)?, nonce: row.get(1)? };
        let (worker, holder): (String, String) = (row.get(2)?, row.get(3)?);
        Ok(Name { name: id.to_string(), what: format!("{worker}, {holder}") })
    })?;
    rows.collect()
}
