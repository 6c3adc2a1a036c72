//! A plan for people: grouped, so that twenty equal replacements read as one block, with deletions
//! always named, and a last line that Terraform's users and tools know.

use std::collections::BTreeMap;

use similar::{ChangeTag, TextDiff};

use super::{Look, action_sign, action_verb, reason_text};
use crate::config::{self, HumanDuration};
use crate::plan::{Action, Drift, FieldChange, Plan, PoolPlan, ReplaceOrder, Step, Summary};
use crate::worker::{Address, Slot};

/// Longer values are shown line by line.
const INLINE: usize = 60;

/// Shows a plan to a person.
pub fn plan_text(plan: &Plan, look: Look) -> String {
    let mut text = String::new();
    for pool in &plan.pools {
        drift(pool, look, &mut text);
    }
    for pool in &plan.pools {
        pool_block(pool, look, &mut text);
    }
    text.push_str(&look.strong(&summary_line(plan)));
    text.push('\n');
    text
}

/// The last line: Terraform's, word for word, because tools look for it.
pub fn summary_line(plan: &Plan) -> String {
    let Summary { add, change, destroy } = plan.summary();
    let waiting: usize = plan.pools.iter().map(|pool| pool.waiting.len()).sum();
    if !plan.is_empty() || waiting > 0 {
        return format!("Plan: {add} to add, {change} to change, {destroy} to destroy.");
    }
    let workers: usize = plan.pools.iter().map(|pool| pool.unchanged.len()).sum();
    let why = match (plan.pools.len(), plan.observed) {
        (0, _) => "Nothing is recorded and nothing is asked for.".to_owned(),
        (pools, true) if !plan.complete => format!(
            "{} in {} are recorded as they should be; a provider could not see everything, and what it does not \
             see is left alone.",
            workers_of(workers),
            pools_of(pools)
        ),
        (pools, true) => {
            format!("{} in {} are as they should be.", workers_of(workers), pools_of(pools))
        }
        (pools, false) => format!(
            "{} in {} are recorded as they should be; the providers were not asked.",
            workers_of(workers),
            pools_of(pools)
        ),
    };
    format!("No changes. {why}")
}

fn workers_of(count: usize) -> String {
    if count == 1 { "1 worker".to_owned() } else { format!("{count} workers") }
}

fn pools_of(count: usize) -> String {
    if count == 1 { "1 pool".to_owned() } else { format!("{count} pools") }
}

fn drift(pool: &PoolPlan, look: Look, text: &mut String) {
    if pool.drift.is_empty() {
        return;
    }
    text.push_str(&look.strong(&format!("Pool {}: changed outside of pool\n", pool.pool)));
    for Drift { worker, changes } in &pool.drift {
        let address = Address::of_slot(pool.pool.clone(), worker.slot);
        if changes.is_empty() {
            text.push_str(&format!("  # {address}: worker {worker} is missing\n"));
        } else {
            text.push_str(&format!("  # {address}: worker {worker} was changed\n"));
            for change in changes {
                field(change, look, text);
            }
        }
    }
    text.push('\n');
}

fn pool_block(pool: &PoolPlan, look: Look, text: &mut String) {
    let quiet = pool.is_empty()
        && pool.waiting.is_empty()
        && pool.locked_by.is_none()
        && pool.unreadable.is_empty();
    if quiet {
        return;
    }
    let of = if pool.provider.is_empty() {
        String::new()
    } else {
        format!(" (provider {})", pool.provider)
    };
    let state = match (&pool.config, pool.serial) {
        (None, _) if !pool.records_config => "",
        (None, _) => ": to be removed",
        (Some(_), None) => ": new",
        (Some(_), Some(_)) => "",
    };
    text.push_str(&look.strong(&format!("Pool {}{of}{state}\n", pool.pool)));
    for (path, variable) in &pool.overridden {
        text.push_str(&look.faint(&format!("  {path} comes from {variable}\n")));
    }
    if let Some(holder) = &pool.locked_by {
        text.push_str(
            &look.changed(&format!("  locked by {holder}: this plan may be out of date\n")),
        );
    }
    let creates = pool.steps.iter().any(|step| step.create.is_some());
    let costs =
        if creates { "no worker is created without it" } else { "a change of it would not show" };
    for (name, why) in &pool.unreadable {
        text.push_str(
            &look.changed(&format!("  the secret {name} cannot be read now: {why}; {costs}\n")),
        );
    }
    for waiting in &pool.waiting {
        let until = match waiting.until {
            Some(until) => format!("it can be decided from {until:.0} on"),
            None => "it can be decided once the provider's listing is complete".to_owned(),
        };
        text.push_str(&format!(
            "  # {}: an interrupted create may still appear; {until}\n",
            waiting.worker
        ));
    }
    if !pool.settings.is_empty() {
        text.push_str("  # settings will be recorded\n");
        for change in &pool.settings {
            field(change, look, text);
        }
    }
    for group in groups(&pool.steps) {
        step_block(pool, &group, look, text);
    }
    text.push('\n');
}

/// Steps that read alike: the same action, for the same reason, with the same differences.
pub(super) fn groups(steps: &[Step]) -> Vec<Vec<&Step>> {
    let mut order: Vec<Vec<&Step>> = Vec::new();
    let mut known: BTreeMap<String, usize> = BTreeMap::new();
    for step in steps {
        let verb = action_verb(step.action);
        let key = format!("{verb}|{:?}|{:?}", step.reason, step.changes);
        let number = *known.entry(key).or_insert_with(|| {
            order.push(Vec::new());
            order.len() - 1
        });
        order[number].push(step);
    }
    // Deletions come last, where a reader looks before saying yes.
    order.sort_by_key(|group| group.first().is_some_and(|step| step.action == Action::Delete));
    order
}

pub(super) fn step_block(pool: &PoolPlan, group: &[&Step], look: Look, text: &mut String) {
    let Some(first) = group.first() else { return };
    let verb = action_verb(first.action);
    let sign = action_sign(first.action);
    let paint = |line: &str| match first.action {
        Action::Create | Action::Adopt => look.added(line),
        Action::Update => look.changed(line),
        Action::Replace(_) | Action::Delete => look.removed(line),
    };
    let slots: Vec<Slot> = group.iter().map(|step| step.slot).collect();
    // Terraform's line, word for word: what comments on pull requests looks for it.
    let will = if verb == "replaced" { "must" } else { "will" };
    text.push_str(&format!("  # {}[{}] {will} be {verb}\n", pool.pool, ranges(&slots)));
    let count = if group.len() == 1 { String::new() } else { format!("{} workers, ", group.len()) };
    let why = format!("      {count}because {}{}\n", reason_text(first.reason), how(group));
    text.push_str(&look.faint(&why));
    let leased: Vec<String> = group
        .iter()
        .flat_map(|step| step.reap.iter().chain(&step.delete).map(|old| (step.slot, old)))
        .filter(|(_, old)| old.leased)
        .map(|(slot, old)| pool.worker(slot, old.generation).to_string())
        .collect();
    if !leased.is_empty() {
        let names = match leased.as_slice() {
            few @ ([_] | [_, _] | [_, _, _]) => few.join(", "),
            many => format!("{} workers", many.len()),
        };
        let limit = HumanDuration::from_secs(pool.drain_timeout.as_secs());
        text.push_str(&look.faint(&format!(
            "      when the lease of {names} has ended; waits for that at most {limit}\n"
        )));
    }
    for step in group {
        for old in step.reap.iter().filter(|old| old.observed) {
            let name = pool.worker(step.slot, old.generation);
            text.push_str(&look.removed(&format!("  - worker {name} (left over)\n")));
        }
    }
    match first.action {
        Action::Create => {
            for line in
                pool.spec().map(|spec| config::to_yaml(&spec.worker)).unwrap_or_default().lines()
            {
                text.push_str(&paint(&format!("  {sign} {line}\n")));
            }
        }
        Action::Update | Action::Replace(_) | Action::Adopt => {
            for change in &first.changes {
                field(change, look, text);
            }
        }
        // Deletions are always named, each of them.
        Action::Delete => {
            for step in group {
                for old in &step.delete {
                    let name = pool.worker(step.slot, old.generation);
                    let there = if old.observed { "" } else { " (not there any more)" };
                    text.push_str(&paint(&format!("  {sign} worker {name}{there}\n")));
                }
            }
        }
    }
}

/// Says how a group of replacements goes.
fn how(group: &[&Step]) -> String {
    let waves: std::collections::BTreeSet<u32> = group.iter().map(|step| step.wave).collect();
    let order = |wanted: ReplaceOrder| {
        group.iter().filter(|step| step.action == Action::Replace(wanted)).count()
    };
    let words = match (order(ReplaceOrder::CreateFirst), order(ReplaceOrder::DestroyFirst)) {
        (0, 0) => return String::new(),
        (_, 0) => "new before old",
        (0, _) => "old before new",
        (_, _) => "some new before old, some old before new",
    };
    match waves.len() {
        0 | 1 => format!("; {words}"),
        batches => format!("; {words}, in {batches} batches"),
    }
}

/// Writes slots as `0-19,23`.
pub(super) fn ranges(slots: &[Slot]) -> String {
    let mut numbers: Vec<u32> = slots.iter().map(|slot| slot.0).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let runs = numbers.chunk_by(|a, b| *b == a + 1);
    let written: Vec<String> = runs
        .map(|run| match run {
            [one] => one.to_string(),
            [first, .., last] => format!("{first}-{last}"),
            [] => String::new(),
        })
        .collect();
    written.join(",")
}

fn field(change: &FieldChange, look: Look, text: &mut String) {
    let FieldChange { path, before, after, forces_replacement } = change;
    let forces = if *forces_replacement { " # forces replacement" } else { "" };
    let long = |value: &Option<String>| {
        value.as_ref().is_some_and(|value| value.len() > INLINE || value.contains('\n'))
    };
    if long(before) || long(after) {
        text.push_str(&look.changed(&format!("      ~ {path}:{forces}\n")));
        lines(before.as_deref().unwrap_or(""), after.as_deref().unwrap_or(""), look, text);
        return;
    }
    let line = match (before, after) {
        (Some(before), Some(after)) => {
            look.changed(&format!("      ~ {path}: {before} -> {after}"))
        }
        (None, Some(after)) => look.added(&format!("      + {path}: {after}")),
        (Some(before), None) => look.removed(&format!("      - {path}: {before}")),
        (None, None) => return,
    };
    text.push_str(&format!("{line}{}\n", look.faint(forces)));
}

/// Shows a long value as a difference of lines; a list is one item a line.
fn lines(before: &str, after: &str, look: Look, text: &mut String) {
    let (before, after) = (one_item_a_line(before), one_item_a_line(after));
    for change in TextDiff::from_lines(before.as_str(), after.as_str()).iter_all_changes() {
        let line = change.to_string_lossy();
        let line = line.trim_end_matches('\n');
        let shown = match change.tag() {
            ChangeTag::Equal => format!("            {line}"),
            ChangeTag::Delete => look.removed(&format!("          - {line}")),
            ChangeTag::Insert => look.added(&format!("          + {line}")),
        };
        text.push_str(&shown);
        text.push('\n');
    }
}

fn one_item_a_line(value: &str) -> String {
    match serde_json::from_str::<serde_json::Value>(value) {
        Ok(list @ serde_json::Value::Array(_)) => {
            serde_json::to_string_pretty(&list).unwrap_or_default() + "\n"
        }
        Ok(_) | Err(_) => format!("{value}\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_written_as_ranges() {
        let slots = |numbers: &[u32]| numbers.iter().copied().map(Slot).collect::<Vec<_>>();
        assert_eq!(ranges(&slots(&[0, 1, 2, 5, 7, 8])), "0-2,5,7-8");
        assert_eq!(ranges(&slots(&[3])), "3");
        assert_eq!(ranges(&slots(&[2, 0, 1])), "0-2");
    }

    #[test]
    fn a_long_list_is_shown_item_by_item() {
        let mut text = String::new();
        let long = |last: &str| format!("[{},\"{last}\"]", ["\"--some-argument\""; 5].join(","));
        let change = FieldChange {
            path: "worker_config.command".into(),
            before: Some(long("a")),
            after: Some(long("b")),
            forces_replacement: true,
        };
        field(&change, Look::PLAIN, &mut text);
        assert!(text.contains("          -   \"a\"\n          +   \"b\"\n"), "{text}");
    }
}
