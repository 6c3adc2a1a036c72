//! A plan in the formats that are asked for.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write as _;

use anyhow::Context as _;
use clap::ValueEnum;

use super::approved;
use super::context::Context;
use super::error::CliError;
use super::formats::{self, Wanted};
use crate::plan::{Effects, Plan, Summary};
use crate::render::{self, Look};

/// How a plan is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum PlanFormat {
    /// For people
    Text,
    /// Terraform's plan JSON
    Json,
    /// For a comment on a pull request
    Markdown,
    /// Annotations of GitHub Actions; the comment goes to the job's summary, and numbers to its outputs
    Github,
}

/// Shows a plan in every format that is wanted.
pub(super) fn show(
    context: &Context,
    plan: &Plan,
    wanted: &[Wanted<PlanFormat>],
) -> Result<(), CliError> {
    let printer = &context.printer;
    let effects = &approved::effects(plan);
    for wanted in wanted {
        let look = if wanted.file.is_none() { printer.look } else { Look::PLAIN };
        let text = match wanted.format {
            PlanFormat::Text => text(plan, effects, look),
            // On one line, as Terraform's: there are readers that take nothing else.
            PlanFormat::Json => format!("{}\n", render::plan_json(plan, effects)),
            PlanFormat::Markdown => render::plan_markdown(plan, effects),
            PlanFormat::Github => {
                for_the_job(&context.world.environment, plan, effects)?;
                render::plan_github(plan)
            }
        };
        formats::write(printer, wanted, &text)?;
    }
    Ok(())
}

fn text(plan: &Plan, effects: &Effects, look: Look) -> String {
    let mut text = render::plan_text(plan, look);
    if !effects.is_empty() {
        let digest = effects.digest();
        text.push_str(&format!("Effects: {digest} (for pool apply --expect-digest)\n"));
    }
    text
}

/// Writes what the steps after this one of a GitHub job want to know.
fn for_the_job(
    environment: &BTreeMap<String, String>,
    plan: &Plan,
    effects: &Effects,
) -> Result<(), CliError> {
    let append = |variable: &str, text: &str| -> anyhow::Result<()> {
        let Some(file) = environment.get(variable).filter(|file| !file.is_empty()) else {
            return Ok(());
        };
        let mut file = OpenOptions::new().create(true).append(true).open(file)?;
        Ok(file.write_all(text.as_bytes())?)
    };
    append("GITHUB_STEP_SUMMARY", &render::plan_markdown(plan, effects))
        .context("writing the summary of the job (GITHUB_STEP_SUMMARY)")?;
    let Summary { add, change, destroy } = plan.summary();
    let outputs = format!(
        "add={add}\nchange={change}\ndestroy={destroy}\nchanges={}\ndigest={}\n",
        !plan.is_empty(),
        effects.digest()
    );
    append("GITHUB_OUTPUT", &outputs).context("writing the outputs of the step (GITHUB_OUTPUT)")?;
    Ok(())
}
