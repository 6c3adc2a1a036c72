//! Providers, and what became of their tests, as text and JSON.

use pool_provider::conformance::{Finding, Outcome};
use serde_json::{Value, json};

use super::look::Look;
use super::status::table;
use crate::config::{LimitsConfig, ProviderConfig};

/// One line of the list of providers.
#[derive(Debug)]
pub struct ProviderRow<'a> {
    /// Its name.
    pub name: &'a str,
    /// How it is reached.
    pub config: &'a ProviderConfig,
    /// Who says so.
    pub from: &'a str,
    /// How many workers it has.
    pub workers: usize,
}

/// Writes providers as a table.
pub fn provider_table(rows: &[ProviderRow<'_>], look: Look) -> String {
    let heads = ["NAME", "TYPE", "WORKERS", "LIMITS", "FROM"];
    let mut cells = vec![heads.map(str::to_owned).to_vec()];
    cells.extend(rows.iter().map(|row| {
        vec![
            row.name.to_owned(),
            row.config.kind.name().to_owned(),
            row.workers.to_string(),
            limits(row.config),
            row.from.to_owned(),
        ]
    }));
    table(&cells, look)
}

fn limits(config: &ProviderConfig) -> String {
    let LimitsConfig { max_concurrency, rate_limit } = &config.limits;
    let at_a_time = max_concurrency.map(|most| format!("{most} at a time"));
    // It has to be asked for that, and a list asks nobody.
    let own = (at_a_time.is_none() && config.kind.is_asked()).then(|| "its own".to_owned());
    let rate = rate_limit.map(|limit| format!("{} in {}", limit.calls, limit.per));
    let said: Vec<String> = at_a_time.into_iter().chain(own).chain(rate).collect();
    if said.is_empty() { "none".to_owned() } else { said.join(", ") }
}

/// Writes what became of a rule.
pub fn finding_text(finding: &Finding, look: Look) -> String {
    let Finding { rule, advice, outcome, left } = finding;
    let (verdict, more) = match outcome {
        Outcome::Kept => (look.added("kept      "), Vec::new()),
        Outcome::NotTried(why) => (look.faint("not tried "), vec![(*why).to_owned()]),
        Outcome::Broken(how) => {
            let left = left.iter().map(|left| {
                format!("workers of the deployment {} are left: {}", left.owner, left.why)
            });
            let told = [how.clone(), (*advice).to_owned()];
            (look.removed("BROKEN    "), told.into_iter().chain(left).collect())
        }
    };
    let more: String = more.iter().map(|line| format!("           {line}\n")).collect();
    format!("{verdict} {rule}\n{more}")
}

/// Writes what became of a rule as one JSON value.
pub fn finding_json(finding: &Finding) -> Value {
    let (outcome, how) = match &finding.outcome {
        Outcome::Kept => ("kept", None),
        Outcome::NotTried(why) => ("not_tried", Some(*why)),
        Outcome::Broken(how) => ("broken", Some(how.as_str())),
    };
    let left: Vec<Value> =
        finding.left.iter().map(|left| json!({ "owner": left.owner, "why": left.why })).collect();
    json!({
        "rule": finding.rule, "outcome": outcome, "how": how, "advice": finding.advice, "left": left,
    })
}
