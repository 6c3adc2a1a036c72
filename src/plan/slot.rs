//! Decides what to do in one slot, from the workers that are recorded and observed in it.
//!
//! At most one worker stays. In this order it is: the newest that serves and fits; the newest on its way
//! that fits; none, and a new one comes. Whatever else is in the slot goes. Waves and order between
//! slots are not decided here; see [`super::order`].

use std::cmp::Reverse;

use jiff::Timestamp;

use pool_provider::ObservedWorker;

use super::compare::{self, Fit};
use super::input::RecordedWorker;
use super::judge::{Condition, Landing};
use super::types::{
    Action, FieldChange, NewWorker, NewWorkerOrigin, OldWorker, Reason, ReplaceOrder,
};
use crate::desired::DesiredPool;
use crate::worker::{Generation, Phase, Slot};

/// One worker of the slot, with everything that was found out about it.
#[derive(Debug, Clone)]
pub(super) struct Occupant<'a> {
    pub(super) recorded: &'a RecordedWorker,
    pub(super) seen: Option<&'a ObservedWorker>,
    pub(super) condition: Condition,
    pub(super) landing: Landing,
    pub(super) fit: Fit,
    pub(super) replacement_is_requested: bool,
}

/// An observed worker that nothing is recorded of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stray<'a> {
    pub(super) provider: &'a str,
    pub(super) worker: &'a ObservedWorker,
}

/// Everything in one slot.
#[derive(Debug, Clone)]
pub(super) struct SlotInput<'a> {
    pub(super) slot: Slot,
    /// Newest first.
    pub(super) occupants: Vec<Occupant<'a>>,
    pub(super) strays: Vec<Stray<'a>>,
    pub(super) last_generation: Generation,
}

/// What a slot needs; a step without its wave.
#[derive(Debug, Clone)]
pub(super) struct Need<'a> {
    pub(super) slot: Slot,
    pub(super) action: Action,
    pub(super) reason: Reason,
    pub(super) create: Option<NewWorker>,
    pub(super) update: Option<OldWorker>,
    pub(super) reap: Vec<OldWorker>,
    pub(super) delete: Vec<OldWorker>,
    pub(super) changes: Vec<FieldChange>,
    pub(super) before: Option<&'a RecordedWorker>,
    /// Whether a worker that serves now is replaced: these go in batches.
    pub(super) replaces_serving: bool,
}

/// What was decided for a slot.
#[derive(Debug, Clone, Default)]
pub(super) struct Decision<'a> {
    pub(super) needs: Vec<Need<'a>>,
    pub(super) waiting: Vec<(Generation, Option<Timestamp>)>,
    pub(super) stays: Option<Generation>,
}

impl Occupant<'_> {
    fn is_wanted(&self) -> bool {
        !self.replacement_is_requested && self.drift_of_spec().is_none()
    }

    /// The object carries another spec hash than we gave it: somebody rebuilt it.
    fn drift_of_spec(&self) -> Option<FieldChange> {
        let seen = self.seen?;
        let known = &self.recorded.spec.hash;
        (seen.spec_hash != *known).then(|| FieldChange {
            path: "spec_hash".to_owned(),
            before: Some(known.clone()),
            after: Some(seen.spec_hash.clone()),
            forces_replacement: true,
        })
    }

    pub(super) fn old(&self) -> OldWorker {
        OldWorker {
            generation: self.recorded.generation,
            provider: self.recorded.provider.clone(),
            provider_id: self
                .recorded
                .provider_id
                .clone()
                .or_else(|| self.seen.map(|seen| seen.provider_id.clone())),
            attempt: self.recorded.attempt,
            recorded: true,
            observed: self.seen.is_some(),
            leased: self.recorded.standing.lease.is_some(),
        }
    }
}

impl Stray<'_> {
    fn old(&self) -> OldWorker {
        OldWorker {
            generation: self.worker.name.generation,
            provider: self.provider.to_owned(),
            provider_id: Some(self.worker.provider_id.clone()),
            attempt: self.worker.attempt,
            recorded: false,
            observed: true,
            leased: false,
        }
    }

    /// Returns whether the slot can keep it: it is what is asked for, and newer than all that was there.
    fn is_adoptable(&self, desired: &DesiredPool, last_generation: Generation) -> bool {
        let worker = &desired.spec.worker;
        self.provider == desired.provider
            && self.worker.name.generation > last_generation
            && self.worker.spec_hash == desired.spec.hash()
            && self.worker.labels == worker.labels
            && self.worker.tags == worker.tags
    }
}

/// Decides for a slot that the pool keeps.
pub(super) fn keep<'a>(input: &SlotInput<'a>, desired: &DesiredPool) -> Decision<'a> {
    let mut decision = Decision::default();
    let fits = |occupant: &&Occupant<'a>| {
        occupant.is_wanted() && !matches!(occupant.fit, Fit::Outdated(_))
    };
    let serving = input
        .occupants
        .iter()
        .filter(|occupant| occupant.condition == Condition::Serving)
        .find(fits);
    let coming = input
        .occupants
        .iter()
        .filter(|occupant| occupant.condition.is_unfinished() && occupant.fit == Fit::Current)
        .find(fits);
    // What may still land is neither deleted nor followed by another create: both would miss it.
    let keeper = serving.or(coming).map(|keeper| keeper.recorded.generation);
    decision.waiting = landing(input, keeper);
    if let Some(keeper) = serving {
        stay(input, keeper, &mut decision);
    } else if !decision.waiting.is_empty() {
        // Decided once it has landed, or cannot any more.
    } else if let Some(keeper) = coming {
        decision.needs.push(finish(input, keeper));
    } else {
        decision.needs.push(begin(input, desired));
    }
    strays(input, desired, &mut decision);
    decision
}

/// Returns the workers, but for the one that is kept, whose create call may still have an effect, and the
/// kept one when nothing makes sending it again safe.
fn landing(
    input: &SlotInput<'_>,
    keeper: Option<Generation>,
) -> Vec<(Generation, Option<Timestamp>)> {
    input
        .occupants
        .iter()
        .filter_map(|occupant| {
            let generation = occupant.recorded.generation;
            match (occupant.condition, occupant.landing) {
                (Condition::Waiting(until), _) => Some((generation, until)),
                _ if Some(generation) == keeper => None,
                (_, Landing::Until(until)) => Some((generation, Some(until))),
                (_, Landing::Unseen) => Some((generation, None)),
                (_, Landing::Over) => None,
            }
        })
        .collect()
}

/// The slot's worker serves and fits, perhaps after an update in place.
fn stay<'a>(input: &SlotInput<'a>, keeper: &Occupant<'a>, decision: &mut Decision<'a>) {
    let drift = keeper.seen.map_or_else(Vec::new, |seen| {
        compare::drifted(&keeper.recorded.spec, &seen.labels, &seen.tags)
    });
    let interrupted_update = keeper.recorded.operation.is_some();
    let update = match &keeper.fit {
        Fit::InPlace(changes) => Some((Reason::UpdateBecauseChanged, changes.clone())),
        _ if interrupted_update => Some((Reason::UpdateBecauseChanged, drift)),
        // Told the other way round: what the update changes, from what is there to what was recorded.
        _ if !drift.is_empty() => Some((Reason::UpdateBecauseDrift, reversed(drift))),
        _ => None,
    };
    decision.stays = Some(keeper.recorded.generation).filter(|_| update.is_none());
    if let Some((reason, changes)) = update {
        decision.needs.push(Need {
            update: Some(keeper.old()),
            changes,
            before: Some(keeper.recorded),
            ..need(input.slot, Action::Update, reason)
        });
    }
    let rest = others(input, keeper);
    if !rest.is_empty() {
        let left = rest.iter().all(|other| other.condition == Condition::Leaving);
        let reason =
            if left { Reason::DeleteBecauseInterrupted } else { Reason::DeleteBecauseSuperseded };
        decision.needs.push(delete(input.slot, reason, &rest));
    }
}

/// The slot's new worker was begun by an earlier run.
fn finish<'a>(input: &SlotInput<'a>, keeper: &Occupant<'a>) -> Need<'a> {
    let rest = others(input, keeper);
    let serving = rest.iter().find(|other| other.condition == Condition::Serving);
    let (action, reason) = match (serving.is_some(), keeper.condition) {
        (true, _) => {
            (Action::Replace(ReplaceOrder::CreateFirst), Reason::ReplaceBecauseInterrupted)
        }
        (false, Condition::Resendable) => (Action::Create, Reason::CreateBecauseInterrupted),
        (false, _) => (Action::Adopt, Reason::AdoptInterrupted),
    };
    let origin = match keeper.condition {
        Condition::Found => NewWorkerOrigin::Interrupted,
        Condition::Unverified => NewWorkerOrigin::Unverified,
        _ => NewWorkerOrigin::Resend,
    };
    Need {
        create: Some(NewWorker {
            generation: keeper.recorded.generation,
            origin,
            provider_id: keeper.old().provider_id,
        }),
        reap: old_workers(&rest, |other| other.condition != Condition::Serving),
        delete: old_workers(&rest, |other| other.condition == Condition::Serving),
        before: serving.map(|other| other.recorded),
        replaces_serving: serving.is_some(),
        ..need(input.slot, action, reason)
    }
}

/// The slot needs a new worker.
fn begin<'a>(input: &SlotInput<'a>, desired: &DesiredPool) -> Need<'a> {
    let strays = input.strays.iter().map(|stray| stray.worker.name.generation);
    if let Some(stray) = adoptable(input, desired) {
        return Need {
            create: Some(NewWorker {
                generation: stray.worker.name.generation,
                origin: NewWorkerOrigin::Orphan,
                provider_id: Some(stray.worker.provider_id.clone()),
            }),
            ..need(input.slot, Action::Adopt, Reason::AdoptOrphan)
        };
    }
    let newest = strays.chain([input.last_generation]).max().unwrap_or_default();
    let create =
        NewWorker { generation: newest.next(), origin: NewWorkerOrigin::Fresh, provider_id: None };
    let rest: Vec<&Occupant<'a>> = input.occupants.iter().collect();
    let serving = rest.iter().find(|other| other.condition == Condition::Serving);
    let leftover = rest.iter().find(|other| other.seen.is_some()).or(rest.first());
    let (action, reason) = match (serving, leftover) {
        (Some(old), _) => (Action::Replace(ReplaceOrder::CreateFirst), why_replace(old)),
        (None, Some(old)) if old.seen.is_some() => {
            (Action::Replace(ReplaceOrder::DestroyFirst), why_replace(old))
        }
        (None, Some(old)) => (Action::Create, why_create(old)),
        (None, None) => (Action::Create, Reason::CreateBecauseEmpty),
    };
    // One that serves goes as the action says; without one, all go first in any case.
    let goes_by_the_action =
        |other: &Occupant<'a>| serving.is_none() || other.condition == Condition::Serving;
    let before = serving.or(leftover).filter(|_| matches!(action, Action::Replace(_)));
    let changes = match before.map(|old| (&old.fit, old.drift_of_spec())) {
        Some((_, Some(drift))) => vec![drift],
        Some((Fit::InPlace(changes) | Fit::Outdated(changes), None)) => changes.clone(),
        Some((Fit::Current, None)) | None => Vec::new(),
    };
    Need {
        create: Some(create),
        reap: old_workers(&rest, |other| !goes_by_the_action(other)),
        delete: old_workers(&rest, goes_by_the_action),
        changes,
        before: before.map(|old| old.recorded),
        replaces_serving: serving.is_some(),
        ..need(input.slot, action, reason)
    }
}

fn old_workers<'a>(
    occupants: &[&Occupant<'a>],
    wanted: impl Fn(&Occupant<'a>) -> bool,
) -> Vec<OldWorker> {
    occupants.iter().filter(|occupant| wanted(occupant)).map(|occupant| occupant.old()).collect()
}

fn why_replace(old: &Occupant<'_>) -> Reason {
    match old.condition {
        Condition::Unhealthy => Reason::ReplaceBecauseUnhealthy,
        Condition::Failed => Reason::ReplaceBecauseFailed,
        Condition::Leaving if is_retired(old) => Reason::ReplaceBecauseRetired,
        Condition::Leaving => Reason::ReplaceBecauseInterrupted,
        _ if old.replacement_is_requested => Reason::ReplaceByRequest,
        _ if old.drift_of_spec().is_some() => Reason::ReplaceBecauseDrift,
        _ => Reason::ReplaceBecauseSpecChanged,
    }
}

/// Nobody interrupted the deletion of a worker that is used up: it has yet to begin.
fn is_retired(old: &Occupant<'_>) -> bool {
    let untouched = old.recorded.operation.is_none();
    let not_clean = old.recorded.phase == Phase::Recycling;
    untouched && (old.recorded.standing.retired.is_some() || not_clean)
}

fn why_create(gone: &Occupant<'_>) -> Reason {
    match gone.condition {
        Condition::Failed => Reason::CreateBecauseFailed,
        Condition::Missing | Condition::Unhealthy => Reason::CreateBecauseMissing,
        // It ended by itself before anybody deleted it.
        Condition::Leaving if is_retired(gone) => Reason::ReplaceBecauseRetired,
        _ => Reason::CreateBecauseInterrupted,
    }
}

fn adoptable<'a>(input: &SlotInput<'a>, desired: &DesiredPool) -> Option<Stray<'a>> {
    let alone = input.occupants.is_empty();
    let last = input.last_generation;
    let fitting = input.strays.iter().filter(|stray| stray.is_adoptable(desired, last));
    fitting.max_by_key(|stray| stray.worker.name.generation).copied().filter(|_| alone)
}

fn strays<'a>(input: &SlotInput<'a>, desired: &DesiredPool, decision: &mut Decision<'a>) {
    let adopted = adoptable(input, desired).map(|stray| &stray.worker.provider_id);
    let goes = |stray: &&Stray<'a>| Some(&stray.worker.provider_id) != adopted;
    decision.needs.extend(delete_strays(input, goes));
}

/// A generation that this state meant to create is what a run left behind; a later one tells that the
/// state is older than the world, and guards have a say.
fn delete_strays<'a>(input: &SlotInput<'a>, goes: impl Fn(&&Stray<'a>) -> bool) -> Vec<Need<'a>> {
    let last = input.last_generation;
    let (known, unknown): (Vec<&Stray<'a>>, Vec<&Stray<'a>>) =
        input.strays.iter().filter(goes).partition(|stray| stray.worker.name.generation <= last);
    [(known, Reason::DeleteBecauseOrphan), (unknown, Reason::DeleteBecauseUnknown)]
        .into_iter()
        .filter(|(strays, _)| !strays.is_empty())
        .map(|(strays, reason)| {
            let delete = strays.into_iter().map(Stray::old).collect();
            Need { delete, ..need(input.slot, Action::Delete, reason) }
        })
        .collect()
}

/// Decides for a slot that the pool gives up.
pub(super) fn give_up<'a>(input: &SlotInput<'a>, reason: Reason) -> Decision<'a> {
    let mut needs = Vec::new();
    let all: Vec<&Occupant<'a>> =
        input.occupants.iter().filter(|occupant| occupant.landing == Landing::Over).collect();
    if !all.is_empty() {
        needs.push(delete(input.slot, reason, &all));
    }
    needs.extend(delete_strays(input, |_| true));
    Decision { needs, waiting: landing(input, None), stays: None }
}

/// Returns whether a stray is what the slot needs.
pub(super) fn has_adoptable(input: &SlotInput<'_>, desired: &DesiredPool) -> bool {
    adoptable(input, desired).is_some()
}

/// Everybody in the slot but its keeper, and but those who may still land.
fn others<'o, 'a>(input: &'o SlotInput<'a>, keeper: &Occupant<'a>) -> Vec<&'o Occupant<'a>> {
    let mut rest: Vec<&Occupant<'a>> = input
        .occupants
        .iter()
        .filter(|other| other.recorded.generation != keeper.recorded.generation)
        .filter(|other| other.landing == Landing::Over)
        .collect();
    rest.sort_by_key(|other| Reverse(other.recorded.generation));
    rest
}

fn delete<'a>(slot: Slot, reason: Reason, occupants: &[&Occupant<'a>]) -> Need<'a> {
    Need {
        delete: occupants.iter().map(|occupant| occupant.old()).collect(),
        before: occupants.first().map(|occupant| occupant.recorded),
        ..need(slot, Action::Delete, reason)
    }
}

fn need<'a>(slot: Slot, action: Action, reason: Reason) -> Need<'a> {
    Need {
        slot,
        action,
        reason,
        create: None,
        update: None,
        reap: Vec::new(),
        delete: Vec::new(),
        changes: Vec::new(),
        before: None,
        replaces_serving: false,
    }
}

fn reversed(changes: Vec<FieldChange>) -> Vec<FieldChange> {
    changes
        .into_iter()
        .map(|change| FieldChange { before: change.after, after: change.before, ..change })
        .collect()
}
