//! One holder a pool, with a fence that only grows; of one process, one run.

use std::collections::BTreeSet;
use std::sync::{Arc, MutexGuard, PoisonError};

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _};

use super::Store;
use super::error::StateError;
use super::holder::Holder;
use super::load::{from_ms, to_ms};
use super::writer::JobError;
use crate::worker::PoolId;

/// The right to change one pool, until it is released or taken over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolLock {
    /// The pool.
    pub pool: PoolId,
    /// Larger than that of every holder before.
    pub fence: i64,
}

impl Store {
    /// Takes the lock on `pool`, or says who holds it: somebody else, or another run of this process.
    ///
    /// # Errors
    /// [`StateError::Locked`] when a holder that is alive has it.
    pub async fn lock(&self, pool: &PoolId) -> Result<PoolLock, StateError> {
        let (pool, own, now) = (pool.clone(), Arc::clone(&self.holder), self.now());
        if !self.locked().insert(pool.clone()) {
            return Err(StateError::Locked { pool, holder: own.describe() });
        }
        let reserved = Reserved { store: self, pool: &pool };
        let asked = pool.clone();
        let lock = self.writer.run(move |connection| acquire(connection, asked, &own, now)).await?;
        std::mem::forget(reserved);
        Ok(lock)
    }

    /// Returns whether some run of this process has the lock on `pool`.
    pub fn has_locked(&self, pool: &PoolId) -> bool {
        self.locked().contains(pool)
    }

    fn locked(&self) -> MutexGuard<'_, BTreeSet<PoolId>> {
        self.locked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that the holder still lives.
    ///
    /// # Errors
    /// [`StateError::Fenced`] when it was taken over.
    pub async fn heartbeat(&self, lock: &PoolLock) -> Result<(), StateError> {
        let (lock, own, now) = (lock.clone(), Arc::clone(&self.holder), self.now());
        self.writer
            .run(move |connection| {
                verify(connection, &lock, &own)?;
                let sql = "UPDATE lock SET heartbeat_at = ?2 WHERE pool = ?1";
                connection.prepare_cached(sql)?.execute((lock.pool.as_str(), to_ms(now)))?;
                Ok(())
            })
            .await
    }

    /// Gives the lock back; one that was taken over is not ours to give.
    pub async fn unlock(&self, lock: &PoolLock) -> Result<(), StateError> {
        let (own, given) = (Arc::clone(&self.holder), lock.clone());
        self.writer
            .run(move |connection| {
                if verify(connection, &given, &own).is_ok() {
                    let sql = "UPDATE lock SET holder = NULL WHERE pool = ?1";
                    connection.prepare_cached(sql)?.execute([given.pool.as_str()])?;
                }
                Ok(())
            })
            .await?;
        self.locked().remove(&lock.pool);
        Ok(())
    }
}

/// A lock that this process is about to have.
struct Reserved<'a> {
    store: &'a Store,
    pool: &'a PoolId,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.store.locked().remove(self.pool);
    }
}

/// The name of the lock of whoever serves the state; no pool can have it.
const SERVING: &str = "/serve";

impl Store {
    /// Takes the right to serve the state, or says who has it; `renew_serving` keeps it.
    ///
    /// # Errors
    /// [`StateError::Served`] when another server that is alive has it.
    pub async fn serve(&self) -> Result<(), StateError> {
        let (own, now) = (Arc::clone(&self.holder), self.now());
        self.writer.hurry();
        self.writer
            .run(move |connection| match held_by(connection, SERVING, &own, now)? {
                Some(holder) => Err(StateError::Served { holder: holder.describe() }.into()),
                None => take(connection, SERVING, &own, now).map(drop),
            })
            .await
    }

    /// Returns whether this process still serves the state; says so to others.
    pub async fn renew_serving(&self) -> Result<bool, StateError> {
        let (own, now) = (Arc::clone(&self.holder), self.now());
        self.writer
            .run(move |connection| {
                let sql =
                    "UPDATE lock SET heartbeat_at = ?2 WHERE pool = ?1 AND holder ->> 'id' = ?3";
                let changed =
                    connection.prepare_cached(sql)?.execute((SERVING, to_ms(now), &own.id))?;
                Ok(changed > 0)
            })
            .await
    }

    /// Gives the right to serve back.
    pub async fn stop_serving(&self) -> Result<(), StateError> {
        let own = Arc::clone(&self.holder);
        self.writer.run(move |connection| give(connection, SERVING, &own)).await
    }

    /// Returns whether a server that is alive serves the state.
    pub async fn is_served(&self) -> Result<bool, StateError> {
        let (own, now) = (Arc::clone(&self.holder), self.now());
        self.read(move |connection| Ok(held_by(connection, SERVING, &own, now)?.is_some())).await
    }
}

/// The name of the mark that a run waits for jobs of a pool; no pool can have it.
fn waiting(pool: &PoolId) -> String {
    format!("{pool}/waiting")
}

impl Store {
    /// Says that this process waits for jobs that have workers of these pools which are to go, without a lock.
    /// It counts for as long as a lock would. The latest one to say so counts.
    pub async fn say_waiting(&self, pools: BTreeSet<PoolId>) -> Result<(), StateError> {
        let (own, now) = (Arc::clone(&self.holder), self.now());
        self.writer
            .run(move |connection| {
                let mark = |pool: &PoolId| take(connection, &waiting(pool), &own, now).map(drop);
                pools.iter().try_for_each(mark)
            })
            .await
    }

    /// Takes that back.
    pub async fn say_not_waiting(&self, pools: BTreeSet<PoolId>) -> Result<(), StateError> {
        let own = Arc::clone(&self.holder);
        self.writer
            .run(move |connection| {
                pools.iter().try_for_each(|pool| give(connection, &waiting(pool), &own))
            })
            .await
    }

    /// Returns whether a process that is alive waits for jobs of the pool, this one included.
    pub async fn somebody_waits(&self, pool: &PoolId) -> Result<bool, StateError> {
        let (own, now, name) = (Arc::clone(&self.holder), self.now(), waiting(pool));
        self.read(move |connection| {
            let marked = holder_of(connection, &name)?;
            let alive = |(holder, at): &(Holder, Timestamp)| {
                holder.id == own.id || holder.is_in_force(&own, *at, now)
            };
            Ok(marked.as_ref().is_some_and(alive))
        })
        .await
    }
}

/// Who has the lock on `pool`, if somebody else who is alive has.
pub(super) fn held_by(
    connection: &Connection,
    pool: &str,
    own: &Holder,
    now: Timestamp,
) -> Result<Option<Holder>, JobError> {
    let Some((holder, heartbeat_at)) = holder_of(connection, pool)? else { return Ok(None) };
    let in_force = holder.id != own.id && holder.is_in_force(own, heartbeat_at, now);
    Ok(in_force.then_some(holder))
}

/// Who took the lock of that name last and did not give it back, and when it was last heard of.
fn holder_of(connection: &Connection, name: &str) -> Result<Option<(Holder, Timestamp)>, JobError> {
    let sql = "SELECT holder, heartbeat_at FROM lock WHERE pool = ?1 AND holder IS NOT NULL";
    let row: Option<(String, i64)> = connection
        .prepare_cached(sql)?
        .query_row([name], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((holder, heartbeat_at)) = row else { return Ok(None) };
    let holder: Holder = serde_json::from_str(&holder)
        .map_err(|error| StateError::Conflict(format!("the lock of {name}: {error}")))?;
    Ok(Some((holder, from_ms(heartbeat_at))))
}

fn acquire(
    connection: &Connection,
    pool: PoolId,
    own: &Holder,
    now: Timestamp,
) -> Result<PoolLock, JobError> {
    if let Some(holder) = held_by(connection, pool.as_str(), own, now)? {
        return Err(StateError::Locked { pool, holder: holder.describe() }.into());
    }
    let fence = take(connection, pool.as_str(), own, now)?;
    // Whoever was in a call is in none any more, since a moment that nobody noted: what that call may still bring is
    // counted from here.
    let sql = "UPDATE operation SET state = 'unknown', error = 'its run ended during the call', sent_at = ?2
               WHERE pool = ?1 AND kind = 'create' AND state IN ('intended', 'unknown')
                   AND state = 'intended'";
    let cut_off = connection.prepare_cached(sql)?.execute((pool.as_str(), to_ms(now)))?;
    if cut_off > 0 {
        // A plan that was made before counts from an earlier moment.
        let sql = "UPDATE pool SET serial = serial + 1 WHERE id = ?1";
        connection.prepare_cached(sql)?.execute([pool.as_str()])?;
    }
    Ok(PoolLock { pool, fence })
}

/// Gives a lock that is free to `own`; returns the new fence.
fn take(
    connection: &Connection,
    name: &str,
    own: &Holder,
    now: Timestamp,
) -> Result<i64, JobError> {
    let holder = serde_json::to_string(own).unwrap_or_default();
    connection
        .prepare_cached(
            "INSERT INTO lock (pool, fence, holder, heartbeat_at) VALUES (?1, 1, ?2, ?3)
             ON CONFLICT (pool) DO UPDATE
             SET fence = fence + 1, holder = excluded.holder, heartbeat_at = excluded.heartbeat_at",
        )?
        .execute((name, holder, to_ms(now)))?;
    let sql = "SELECT fence FROM lock WHERE pool = ?1";
    Ok(connection.prepare_cached(sql)?.query_row([name], |row| row.get(0))?)
}

/// Gives back what `own` has under that name; what somebody else has by now stays theirs.
fn give(connection: &Connection, name: &str, own: &Holder) -> Result<(), JobError> {
    let sql = "UPDATE lock SET holder = NULL WHERE pool = ?1 AND holder ->> 'id' = ?2";
    connection.prepare_cached(sql)?.execute((name, &own.id))?;
    Ok(())
}

/// Refuses whoever no longer holds the lock.
pub(super) fn verify(
    connection: &Connection,
    lock: &PoolLock,
    own: &Holder,
) -> Result<(), JobError> {
    let sql = "SELECT fence FROM lock WHERE pool = ?1 AND holder ->> 'id' = ?2";
    let fence: Option<i64> = connection
        .prepare_cached(sql)?
        .query_row((lock.pool.as_str(), &own.id), |row| row.get(0))
        .optional()?;
    if fence == Some(lock.fence) {
        Ok(())
    } else {
        Err(StateError::Fenced(lock.pool.clone()).into())
    }
}
