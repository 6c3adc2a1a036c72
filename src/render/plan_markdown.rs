//! A plan as Markdown: a comment on a pull request.
//!
//! What goes away comes first. Everything but the head is folded, and left out from the end on where a comment would
//! become longer than GitHub takes.

use super::look::Look;
use super::plan_text::{groups, step_block, summary_line};
use super::{findings, refusal_text};
use crate::plan::{Action, Effects, Plan, PoolPlan, Step, Summary};

/// The longest comment, in characters: GitHub takes 65,536, and whoever posts it may add a line.
const LONGEST: usize = 65_000;
/// What tells our comment from others, for whoever replaces it.
const MARK: &str = "<!-- pool plan";

/// The longest block, in lines: a long one must not keep a short one out.
const LONGEST_BLOCK: usize = 200;

/// Writes a plan for a pull request. Its first line tells the digest to machines: nothing of a config can stand there.
pub fn plan_markdown(plan: &Plan, effects: &Effects) -> String {
    let digest = effects.digest();
    let mut text = format!("{MARK} {digest} -->\n### {}\n", summary_line(plan));
    let foot = format!(
        "\nEffects: `{digest}`. To carry out exactly this: `pool apply --expect-digest {digest}`.\n"
    );
    let pools: Vec<&PoolPlan> = plan.pools.iter().filter(|pool| !pool.is_empty()).collect();
    let refused = plan
        .refusals
        .iter()
        .map(|refusal| format!("\n> **Refused:** {}\n", plain(&refusal_text(refusal))));
    let head =
        "\n| pool | to add | to change | to destroy |\n| --- | ---: | ---: | ---: |\n".to_owned();
    let rows = pools.iter().map(|pool| row(pool));
    let table = (!pools.is_empty()).then_some(head).into_iter().chain(rows);
    let parts: Vec<String> = refused.chain(table).chain(details(&pools)).collect();
    // A note on what is left out needs room, too.
    let room = LONGEST - foot.chars().count() - 200;
    let mut length = text.chars().count();
    let fits = |part: &&String| {
        length += part.chars().count();
        length <= room
    };
    let kept: Vec<&String> = parts.iter().take_while(fits).collect();
    let left_out = parts.len() - kept.len();
    text.extend(kept.into_iter().map(String::as_str));
    if left_out > 0 {
        text.push_str(&format!(
            "\n{left_out} parts are left out here: the text of the plan has all of it.\n"
        ));
    }
    text + &foot
}

fn row(pool: &PoolPlan) -> String {
    let Summary { add, change, destroy } = pool.steps.iter().map(Step::summary).sum();
    format!("| {} | {add} | {change} | {destroy} |\n", pool.pool)
}

/// Every group of steps as a block that can be opened: what is destroyed before what is replaced before the rest.
fn details(pools: &[&PoolPlan]) -> Vec<String> {
    let mut parts: Vec<(u8, String)> = Vec::new();
    for pool in pools {
        for group in groups(&pool.steps) {
            let Some(first) = group.first() else { continue };
            let rank = match first.action {
                Action::Delete => 0,
                Action::Replace(_) => 1,
                Action::Create | Action::Adopt => 2,
                Action::Update => 3,
            };
            let mut text = String::new();
            step_block(pool, &group, Look::PLAIN, &mut text);
            parts.push((rank, folded(&text)));
        }
        if !pool.settings.is_empty() {
            let lines = pool.settings.iter().map(|change| {
                let value = |value: &Option<String>| {
                    value.clone().unwrap_or_else(|| "(not set)".to_owned())
                };
                format!(
                    "! {}: {} -> {}\n",
                    change.path,
                    value(&change.before),
                    value(&change.after)
                )
            });
            let text = format!(
                "  # {}: settings that are recorded\n{}",
                pool.pool,
                lines.collect::<String>()
            );
            parts.push((4, folded(&text)));
        }
    }
    parts.sort_by_key(|(rank, _)| *rank);
    parts.into_iter().map(|(_, part)| part).collect()
}

/// Folds a block away under its first line, with signs where `diff` colours them.
fn folded(text: &str) -> String {
    let mut lines = text.lines();
    let title = lines.next().unwrap_or_default().trim_start_matches([' ', '#']);
    let mut body: Vec<String> = lines.map(at_the_margin).collect();
    let more = body.len().saturating_sub(LONGEST_BLOCK);
    if more > 0 {
        body.truncate(LONGEST_BLOCK);
        body.push(format!("  … {more} more lines"));
    }
    let body = body.join("\n");
    // A fence is longer than any in what it holds.
    let longest = body.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest.max(2) + 1);
    format!(
        "\n<details><summary>{}</summary>\n\n{fence}diff\n{body}\n{fence}\n\n</details>\n",
        plain(title)
    )
}

fn at_the_margin(line: &str) -> String {
    let bare = line.trim_start();
    match bare.split_once(' ') {
        Some(("+", rest)) => format!("+ {rest}"),
        Some(("-" | "-/+" | "+/-", rest)) => format!("- {rest}"),
        Some(("~", rest)) => format!("! {rest}"),
        _ => line.strip_prefix("  ").unwrap_or(line).to_owned(),
    }
}

/// Keeps a text from being Markdown or HTML.
fn plain(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Writes a plan as GitHub's annotations: one for each pool that changes, where its file says so.
pub fn plan_github(plan: &Plan) -> String {
    let mut text = String::new();
    for refusal in &plan.refusals {
        text.push_str(&findings::command("error", "", "refused", &refusal_text(refusal)));
    }
    for pool in plan.pools.iter().filter(|pool| !pool.is_empty()) {
        let Summary { add, change, destroy } = pool.steps.iter().map(Step::summary).sum();
        let level = if destroy > 0 { "warning" } else { "notice" };
        let message =
            format!("{}: {add} to add, {change} to change, {destroy} to destroy", pool.pool);
        text.push_str(&findings::command(level, &at(&pool.place), "pool plan", &message));
    }
    text
}

/// `file:line:column` as properties of a workflow command.
fn at(place: &str) -> String {
    let mut parts = place.rsplitn(3, ':');
    let mut number = || parts.next()?.parse::<u32>().ok();
    match (number(), number(), parts.next()) {
        (Some(column), Some(line), Some(file)) => {
            format!("file={},line={line},col={column},", findings::property(file))
        }
        _ => String::new(),
    }
}
