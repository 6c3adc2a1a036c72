//! Finds free workers for asks and takes them.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _};

use super::{Granted, LEASE, Lease, Vouch, lease};
use crate::desired::Spec;
use crate::lease::ask::AskKey;
use crate::lease::choose::{Candidate, is_fresh};
use crate::lease::{Ask, LeaseId, Picker, Selector, terms};
use crate::state::error::StateError;
use crate::state::event::{self, NewEvent};
use crate::state::load::{from_ms, to_ms};
use crate::state::offers::{Offer, Offers};
use crate::state::writer::JobError;
use crate::worker::{Generation, Slot, WorkerName};

/// How many stale workers beyond those that are needed are probed at once: one may hang.
const HEDGE: usize = 2;

/// What granting needs, inside one transaction.
pub(super) struct Desk<'a> {
    pub(super) connection: &'a Connection,
    pub(super) offers: &'a Offers,
    pub(super) now: Timestamp,
    pub(super) vouch: &'a dyn Vouch,
    pub(super) nonce: &'a dyn Fn() -> u32,
}

/// A worker that an ask gets.
struct Taken {
    row: i64,
    slot: u32,
    generation: u32,
    spec: i64,
    addresses: String,
    attributes: String,
    uses: u32,
    verified_at: Timestamp,
    verified_by: &'static str,
}

/// The workers that an ask gets in one pool.
struct TakenIn {
    offer: Arc<Offer>,
    workers: Vec<Taken>,
}

impl Desk<'_> {
    pub(super) fn grant_all(&self, asks: &[Arc<Ask>]) -> Result<Vec<Granted>, JobError> {
        let mut set_aside = BTreeSet::new();
        let mut in_vain: HashSet<&Selector> = HashSet::new();
        let mut answers = Vec::with_capacity(asks.len());
        for ask in asks {
            // Who wants the same as somebody before who has to wait finds everything set aside.
            if in_vain.contains(&ask.selector) && ask.key.is_none() {
                answers.push(Granted::NoneFree(Vec::new()));
                continue;
            }
            let answer = self.grant(ask, &mut set_aside)?;
            let in_vain_too = matches!(&answer, Granted::NoneFree(stale) if stale.is_empty());
            if in_vain_too && ask.avoid.is_empty() {
                in_vain.insert(&ask.selector);
            }
            answers.push(answer);
        }
        Ok(answers)
    }

    fn grant(&self, ask: &Ask, set_aside: &mut BTreeSet<i64>) -> Result<Granted, JobError> {
        if let Some(key) = ask.key
            && let Some(answer) = replay(self.connection, self.offers, key)?
        {
            return Ok(answer);
        }
        let offers = match &ask.selector.pool {
            Some(pool) => match self.offers.of_pool(self.connection, pool)? {
                Some(offer) => vec![offer],
                None => return Ok(Granted::UnknownPool(pool.clone())),
            },
            None => self.offers.of_all_pools(self.connection)?,
        };
        if let Some(refusal) = self.refuse(ask, &offers)? {
            return Ok(refusal);
        }
        let mut picker = Picker::new(ask.count, &ask.avoid, set_aside);
        let mut taken: Vec<TakenIn> = Vec::new();
        for offer in &offers {
            if picker.is_done() {
                break;
            }
            let workers = self.pick(ask, offer, &mut picker)?;
            if !workers.is_empty() {
                taken.push(TakenIn { offer: Arc::clone(offer), workers });
            }
        }
        let missing = picker.missing();
        let (rows, mut stale) = picker.into_parts();
        if missing > 0 {
            // Only as many as it needs: those behind may have the others probed.
            stale.truncate(missing + HEDGE);
            set_aside.extend(rows);
            set_aside.extend(&stale);
            return Ok(Granted::NoneFree(stale));
        }
        let mut leases = Vec::new();
        for TakenIn { offer, workers } in taken {
            for worker in workers {
                leases.push(self.take(ask, &offer, &worker)?);
            }
        }
        self.remember(ask, &leases)?;
        Ok(Granted::Leases(leases))
    }

    /// Says why the ask could not be met even if every worker were free.
    fn refuse(&self, ask: &Ask, offers: &[Arc<Offer>]) -> Result<Option<Granted>, JobError> {
        for offer in offers {
            if let Err(most) = terms::ttl(ask.ttl, &offer.config.leases) {
                return Ok(Some(Granted::TtlTooLong(offer.pool.clone(), most)));
            }
        }
        let size = |offer: &Arc<Offer>| u64::from(offer.config.fixed_size);
        if ask.selector.takes_any() {
            let most: u64 = offers.iter().map(size).sum();
            let too_few = u64::from(ask.count) > most;
            return Ok(too_few.then(|| Granted::Unsatisfiable(Vec::new())));
        }
        let mut specs: Vec<Arc<Spec>> = Vec::new();
        let mut most = 0;
        for offer in offers {
            let live = self.offers.live_specs(self.connection, &offer.pool)?;
            let all = live.into_iter().map(|(_, spec)| spec).chain([Arc::clone(&offer.spec)]);
            let before = specs.len();
            specs.extend(all);
            if specs[before..].iter().any(|spec| ask.selector.is_met_by(spec)) {
                most += size(offer);
            }
        }
        let borrowed: Vec<&Spec> = specs.iter().map(|spec| &**spec).collect();
        let unmet = ask.selector.unmet(&borrowed);
        let impossible = most == 0 || u64::from(ask.count) > most;
        Ok(impossible.then_some(Granted::Unsatisfiable(unmet)))
    }

    /// Finds free workers of one pool, in the order of its pick.
    fn pick(
        &self,
        ask: &Ask,
        offer: &Offer,
        picker: &mut Picker<'_>,
    ) -> Result<Vec<Taken>, JobError> {
        let meeting: Option<BTreeSet<i64>> = if ask.selector.takes_any() {
            None
        } else {
            let live = self.offers.live_specs(self.connection, &offer.pool)?;
            let meets = |(id, spec): (i64, Arc<Spec>)| ask.selector.is_met_by(&spec).then_some(id);
            Some(live.into_iter().filter_map(meets).collect())
        };
        if meeting.as_ref().is_some_and(BTreeSet::is_empty) {
            return Ok(Vec::new());
        }
        let mut statement = self.connection.prepare_cached(
            "SELECT id, slot, generation, spec, addresses, attributes, uses, phase_since
             FROM worker INDEXED BY worker_free
             WHERE pool = ?1 AND phase = 'ready' AND cordoned = 0 AND suspect = 0 AND lease IS NULL
             ORDER BY rank",
        )?;
        let mut rows = statement.query([offer.pool.as_str()])?;
        let mut taken = Vec::new();
        while !picker.is_done() {
            let Some(row) = rows.next()? else { break };
            let id: i64 = row.get(0)?;
            let spec: i64 = row.get(3)?;
            let (slot, generation): (u32, u32) = (row.get(1)?, row.get(2)?);
            let name = if ask.avoid.is_empty() {
                String::new()
            } else {
                format!("{}-{slot}-{generation}", offer.pool)
            };
            let ready_since = from_ms(row.get(7)?);
            let probed = self.vouch.verified_at(id);
            // The latest that is not in the future: the clock may have been set back since.
            let known = [probed, Some(ready_since)].into_iter().flatten();
            let verified_at = known.clone().filter(|at| *at <= self.now).max();
            let verified_at = verified_at.or(known.max()).unwrap_or(ready_since);
            let candidate = Candidate {
                row: id,
                name: &name,
                is_met: meeting.as_ref().is_none_or(|specs| specs.contains(&spec)),
                is_fresh: is_fresh(verified_at, self.now, offer.freshness()),
            };
            if picker.consider(&candidate) {
                taken.push(Taken {
                    row: id,
                    slot,
                    generation,
                    spec,
                    addresses: row.get(4)?,
                    attributes: row.get(5)?,
                    uses: row.get::<_, u32>(6)? + 1,
                    verified_at,
                    verified_by: offer.verified_by(),
                });
            }
        }
        Ok(taken)
    }

    fn take(&self, ask: &Ask, offer: &Offer, worker: &Taken) -> Result<Lease, JobError> {
        let ttl = terms::ttl(ask.ttl, &offer.config.leases).unwrap_or_else(|most| most);
        let expires_at = terms::expires_at(self.now, ttl);
        let id = self.open(ask, offer, worker, expires_at)?;
        let (slot, generation) = (Slot(worker.slot), Generation(worker.generation));
        let name = WorkerName::new(offer.pool.clone(), slot, generation);
        let changed = self
            .connection
            .prepare_cached(
                "UPDATE worker SET lease = ?2, uses = ?3
                 WHERE id = ?1 AND phase = 'ready' AND cordoned = 0 AND lease IS NULL",
            )?
            .execute((worker.row, id.number, worker.uses))?;
        if changed != 1 {
            return Err(StateError::Conflict(format!("worker {name} is not free")).into());
        }
        let why = match &ask.purpose {
            Some(purpose) => format!("lease {id}: {purpose}"),
            None => format!("lease {id}"),
        };
        event::write(
            self.connection,
            &NewEvent {
                at: self.now,
                pool: offer.pool.as_str(),
                worker: Some((slot, generation)),
                kind: "lease_granted",
                who: &ask.holder,
                why: &why,
                phases: (None, None),
            },
        )?;
        Ok(Lease {
            id,
            worker: worker.row,
            name,
            holder: ask.holder.clone(),
            purpose: ask.purpose.clone(),
            metadata: ask.metadata.clone(),
            granted_at: from_ms(to_ms(self.now)),
            expires_at,
            verified_at: from_ms(to_ms(worker.verified_at)),
            verified_by: worker.verified_by.to_owned(),
            uses: worker.uses,
            trouble: None,
            ended: None,
            spec: Some(self.offers.spec(self.connection, worker.spec)?),
            addresses: serde_json::from_str(&worker.addresses).unwrap_or_default(),
            attributes: serde_json::from_str(&worker.attributes).unwrap_or_default(),
        })
    }

    /// Writes the lease's row, whose number is the fence.
    fn open(
        &self,
        ask: &Ask,
        offer: &Offer,
        worker: &Taken,
        expires_at: Timestamp,
    ) -> Result<LeaseId, JobError> {
        let nonce = (self.nonce)();
        let metadata = serde_json::to_string(&ask.metadata).unwrap_or_default();
        self.connection
            .prepare_cached(
                "INSERT INTO lease (nonce, worker, pool, slot, generation, holder, purpose, metadata,
                     granted_at, expires_at, verified_at, verified_by, uses)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
            )?
            .execute((
                nonce,
                worker.row,
                offer.pool.as_str(),
                worker.slot,
                worker.generation,
                &ask.holder,
                &ask.purpose,
                metadata,
                to_ms(self.now),
                to_ms(expires_at),
                to_ms(worker.verified_at),
                worker.verified_by,
                worker.uses,
            ))?;
        Ok(LeaseId { number: self.connection.last_insert_rowid(), nonce })
    }

    fn remember(&self, ask: &Ask, leases: &[Lease]) -> Result<(), JobError> {
        let Some(key) = ask.key else { return Ok(()) };
        let numbers: Vec<i64> = leases.iter().map(|lease| lease.id.number).collect();
        let numbers = serde_json::to_string(&numbers).unwrap_or_default();
        self.connection
            .prepare_cached(
                "INSERT INTO request_key (at, key, body, leases) VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute((to_ms(self.now), &key.key[..], &key.body[..], numbers))?;
        Ok(())
    }
}

/// Answers a repeated request as it was answered before.
pub(super) fn replay(
    connection: &Connection,
    offers: &Offers,
    key: AskKey,
) -> Result<Option<Granted>, JobError> {
    let sql = "SELECT body, leases FROM request_key WHERE key = ?1";
    let known: Option<(Vec<u8>, String)> = connection
        .prepare_cached(sql)?
        .query_row([&key.key[..]], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((body, leases)) = known else { return Ok(None) };
    if body != key.body {
        return Ok(Some(Granted::KeyConflict));
    }
    let numbers: Vec<i64> = serde_json::from_str(&leases).unwrap_or_default();
    let mut found = Vec::new();
    for number in numbers {
        let sql = format!("{LEASE} WHERE lease.id = ?1 AND lease.ended_at IS NULL");
        let mut statement = connection.prepare_cached(&sql)?;
        let mut rows = statement.query([number])?;
        match rows.next()? {
            Some(row) => found.push(lease(connection, offers, row)?),
            None => return Ok(Some(Granted::KeyGone)),
        }
    }
    Ok(Some(Granted::Replay(found)))
}
