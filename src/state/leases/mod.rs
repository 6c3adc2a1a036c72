//! Grants, renews and ends leases, each in one transaction; the rules are [`crate::lease`]'s.
//!
//! The database is the only copy: a worker is found through the partial index of free ones and taken by a
//! conditional update, so that what another process did is seen without being told. The hot path has no
//! `RETURNING` (it opens a statement journal), and its statements stay prepared.
//!
//! | module  | holds                                              |
//! |---------|----------------------------------------------------|
//! | `grant` | finding and taking workers                            |
//! | `end`   | the end of a lease, and what becomes of its worker      |

mod end;
mod grant;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, Row};
use serde_json::{Map, Value};

use self::end::OpenLease;
pub use self::end::RECYCLE_ATTEMPTS;
use self::grant::Desk;
use super::Store;
use super::error::StateError;
use super::load::{from_ms, to_ms};
use super::offers::Offers;
use super::writer::JobError;
use crate::desired::Spec;
use crate::lease::ask::AskKey;
use crate::lease::{After, Ask, Ending, LeaseId, Requirement, terms};
use crate::worker::{Generation, PoolId, Slot, WorkerName};

/// Knows when workers were last known to be well.
pub trait Vouch: Send + Sync {
    /// Returns when the worker of this row last passed a probe, as far as anybody remembers.
    fn verified_at(&self, worker: i64) -> Option<Timestamp>;
}

/// Nobody probes: a worker is as well as it was when it became ready.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProbes;

impl Vouch for NoProbes {
    fn verified_at(&self, _worker: i64) -> Option<Timestamp> {
        None
    }
}

/// One lease, with the worker that it is of.
#[derive(Debug, Clone, PartialEq)]
pub struct Lease {
    /// Its name; its number is the fence.
    pub id: LeaseId,
    /// The row of the worker.
    pub worker: i64,
    /// Who the worker is.
    pub name: WorkerName,
    /// Who holds it.
    pub holder: String,
    /// What for.
    pub purpose: Option<String>,
    /// What the holder wants to find on it.
    pub metadata: Map<String, Value>,
    /// Since when.
    pub granted_at: Timestamp,
    /// Until when, unless it is renewed.
    pub expires_at: Timestamp,
    /// When the worker was last known to be well, at the grant.
    pub verified_at: Timestamp,
    /// What vouched for it.
    pub verified_by: String,
    /// How many leases the worker had, this one included.
    pub uses: u32,
    /// What became of the worker meanwhile, if something did.
    pub trouble: Option<String>,
    /// When it ended, and how.
    pub ended: Option<(Timestamp, String)>,
    /// What the worker is made from; `None` once it is forgotten.
    pub spec: Option<Arc<Spec>>,
    /// Where the worker can be reached.
    pub addresses: Vec<String>,
    /// What else its provider says of it.
    pub attributes: BTreeMap<String, String>,
}

/// What became of a request for workers.
#[derive(Debug, Clone, PartialEq)]
pub enum Granted {
    /// Here they are, for the first time.
    Leases(Vec<Lease>),
    /// Here they are again.
    Replay(Vec<Lease>),
    /// Not enough are free now; these rows would do if a probe vouched for them.
    NoneFree(Vec<i64>),
    /// The key was used for something else.
    KeyConflict,
    /// The key's leases have ended.
    KeyGone,
    /// There is no such pool.
    UnknownPool(PoolId),
    /// No worker could ever do; what none of them meets. Empty when there are just too few.
    Unsatisfiable(Vec<Requirement>),
    /// A lease of that pool cannot be so long.
    TtlTooLong(PoolId, Duration),
}

/// What became of a renewal.
#[derive(Debug, Clone, PartialEq)]
pub enum Renewed {
    /// It lasts until then.
    Lease(Box<Lease>),
    /// There is no such lease.
    Unknown,
    /// It has ended.
    Gone(Box<Lease>),
    /// The fence is not the lease's.
    WrongFence,
    /// It cannot be so long.
    TtlTooLong(Duration),
}

/// A lease that ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Of which worker.
    pub name: WorkerName,
    /// The worker's row.
    pub worker: i64,
    /// How.
    pub ending: Ending,
    /// What becomes of the worker.
    pub after: After,
}

/// Which leases are wanted.
#[derive(Debug, Clone, Default)]
pub struct LeaseFilter {
    /// Of this pool only.
    pub pool: Option<PoolId>,
    /// Of this holder only.
    pub holder: Option<String>,
}

impl Store {
    /// Grants what can be granted of `asks`, in their order: an earlier one that has to wait sets aside
    /// what it could use, so that later ones cannot overtake it. Each answer stands for itself.
    ///
    /// `wrap` gets the answers inside the transaction, before it is known whether they hold: what it
    /// returns comes back only if they do, and is dropped in any case when nobody waits for it any more.
    pub async fn grant<T: Send + 'static>(
        &self,
        asks: Vec<Arc<Ask>>,
        vouch: Arc<dyn Vouch>,
        wrap: impl FnOnce(Vec<Granted>) -> T + Send + 'static,
    ) -> Result<T, StateError> {
        let (now, offers, entropy) = (self.now(), Arc::clone(&self.offers), self.entropy.clone());
        self.writer
            .run_without_savepoint(move |connection| {
                let nonce = || u32::from_ne_bytes(entropy.bytes());
                let desk = Desk { connection, offers: &offers, now, vouch: &*vouch, nonce: &nonce };
                desk.grant_all(&asks).map(wrap)
            })
            .await
    }

    /// Returns what a repeated request was answered with before; `None` for one that is new.
    pub async fn replay(&self, key: AskKey) -> Result<Option<Granted>, StateError> {
        let offers = Arc::clone(&self.offers);
        self.read(move |connection| grant::replay(connection, &offers, key)).await
    }

    /// Makes a lease last for another while; it never gets shorter.
    pub async fn renew(
        &self,
        id: LeaseId,
        fence: i64,
        ttl: Option<Duration>,
    ) -> Result<Renewed, StateError> {
        let (now, offers) = (self.now(), Arc::clone(&self.offers));
        self.writer
            .run_without_savepoint(move |connection| {
                renew(connection, &offers, id, fence, ttl, now)
            })
            .await
    }

    /// Ends a lease; `None` when there is no such lease, or it ended before.
    pub async fn end_lease(
        &self,
        id: LeaseId,
        ending: Ending,
    ) -> Result<Option<Ended>, StateError> {
        let (now, offers) = (self.now(), Arc::clone(&self.offers));
        self.writer
            .run_without_savepoint(move |connection| {
                let open = end::open_lease(connection, id)?;
                open.map(|open| end::end(connection, &offers, &open, ending, now)).transpose()
            })
            .await
    }

    /// Ends the leases whose time has been over for `grace`, but none before `not_before`; at most so many
    /// at once, to keep the transaction short.
    pub async fn expire_leases(
        &self,
        now: Timestamp,
        not_before: Timestamp,
        grace: Duration,
    ) -> Result<Vec<Ended>, StateError> {
        const AT_ONCE: i64 = 100;
        let offers = Arc::clone(&self.offers);
        self.writer
            .run(move |connection| {
                if now < not_before {
                    return Ok(Vec::new());
                }
                let over = now.checked_sub(grace).unwrap_or(Timestamp::MIN);
                let mut statement = connection.prepare_cached(
                    "SELECT id, nonce, worker, pool, slot, generation, holder FROM lease
                     WHERE ended_at IS NULL AND expires_at < ?1 ORDER BY expires_at LIMIT ?2",
                )?;
                let due: Vec<OpenLease> = statement
                    .query_map((to_ms(over), AT_ONCE), OpenLease::of)?
                    .collect::<Result<_, _>>()?;
                due.iter()
                    .map(|open| end::end(connection, &offers, open, Ending::Expired, now))
                    .collect()
            })
            .await
    }

    /// Returns a lease, ended ones included while they are remembered.
    pub async fn lease(&self, id: LeaseId) -> Result<Option<Lease>, StateError> {
        let offers = Arc::clone(&self.offers);
        self.read(move |connection| by_id(connection, &offers, id)).await
    }

    /// Returns the open leases, oldest first.
    pub async fn leases(&self, filter: LeaseFilter) -> Result<Vec<Lease>, StateError> {
        let offers = Arc::clone(&self.offers);
        self.read(move |connection| {
            let mut statement = connection.prepare_cached(&format!(
                "{LEASE} WHERE lease.ended_at IS NULL AND (?1 IS NULL OR lease.pool = ?1)
                     AND (?2 IS NULL OR lease.holder = ?2) ORDER BY lease.id"
            ))?;
            let pool = filter.pool.as_ref().map(PoolId::as_str);
            let mut rows = statement.query((pool, filter.holder.as_deref()))?;
            let mut leases = Vec::new();
            while let Some(row) = rows.next()? {
                leases.push(lease(connection, &offers, row)?);
            }
            Ok(leases)
        })
        .await
    }
}

fn renew(
    connection: &Connection,
    offers: &Offers,
    id: LeaseId,
    fence: i64,
    ttl: Option<Duration>,
    now: Timestamp,
) -> Result<Renewed, JobError> {
    let Some(lease) = by_id(connection, offers, id)? else { return Ok(Renewed::Unknown) };
    if lease.ended.is_some() {
        return Ok(Renewed::Gone(Box::new(lease)));
    }
    if fence != id.number {
        return Ok(Renewed::WrongFence);
    }
    let offer = offers.of_pool(connection, &lease.name.pool)?;
    let ttl = match offer.map(|offer| terms::ttl(ttl, &offer.config.leases)) {
        Some(Err(most)) => return Ok(Renewed::TtlTooLong(most)),
        Some(Ok(ttl)) => ttl,
        // The pool goes: what was agreed on stays.
        None => Duration::ZERO,
    };
    // Two renewals may arrive in the wrong order.
    let expires_at = terms::expires_at(now, ttl).max(lease.expires_at);
    connection
        .prepare_cached("UPDATE lease SET expires_at = ?2 WHERE id = ?1")?
        .execute((id.number, to_ms(expires_at)))?;
    Ok(Renewed::Lease(Box::new(Lease { expires_at, ..lease })))
}

/// What every read of leases selects, in the order of [`lease`].
const LEASE: &str =
    "SELECT lease.id, lease.nonce, lease.worker, lease.pool, lease.slot, lease.generation,
            lease.holder, lease.purpose, lease.metadata, lease.granted_at, lease.expires_at,
            lease.verified_at, lease.verified_by, lease.uses, lease.trouble, lease.ended_at,
            lease.ending, worker.spec, worker.addresses, worker.attributes
     FROM lease LEFT JOIN worker ON worker.id = lease.worker";

fn by_id(connection: &Connection, offers: &Offers, id: LeaseId) -> Result<Option<Lease>, JobError> {
    let sql = format!("{LEASE} WHERE lease.id = ?1 AND lease.nonce = ?2");
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query((id.number, id.nonce))?;
    rows.next()?.map(|row| lease(connection, offers, row)).transpose()
}

fn lease(connection: &Connection, offers: &Offers, row: &Row<'_>) -> Result<Lease, JobError> {
    let pool: String = row.get(3)?;
    let pool: PoolId = pool.parse().map_err(|error| StateError::Conflict(format!("{error}")))?;
    let ended: Option<i64> = row.get(15)?;
    let spec: Option<i64> = row.get(17)?;
    let parsed = |column: usize| -> Result<Option<String>, JobError> { Ok(row.get(column)?) };
    let addresses = parsed(18)?.and_then(|text| serde_json::from_str(&text).ok());
    let attributes = parsed(19)?.and_then(|text| serde_json::from_str(&text).ok());
    Ok(Lease {
        id: LeaseId { number: row.get(0)?, nonce: row.get(1)? },
        worker: row.get(2)?,
        name: WorkerName::new(pool, Slot(row.get(4)?), Generation(row.get(5)?)),
        holder: row.get(6)?,
        purpose: row.get(7)?,
        metadata: serde_json::from_str(&row.get::<_, String>(8)?).unwrap_or_default(),
        granted_at: from_ms(row.get(9)?),
        expires_at: from_ms(row.get(10)?),
        verified_at: from_ms(row.get(11)?),
        verified_by: row.get(12)?,
        uses: row.get(13)?,
        trouble: row.get(14)?,
        ended: match ended {
            Some(at) => Some((from_ms(at), row.get::<_, Option<String>>(16)?.unwrap_or_default())),
            None => None,
        },
        spec: spec.map(|spec| offers.spec(connection, spec)).transpose()?,
        addresses: addresses.unwrap_or_default(),
        attributes: attributes.unwrap_or_default(),
    })
}
