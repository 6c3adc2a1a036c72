//! `pool show`: a saved plan, from its file alone.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;

use super::context::Context;
use super::error::CliError;
use super::exit::Exit;
use super::formats::{self, Wanted};
use super::plan_file;
use super::plan_formats::{self, PlanFormat};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// A plan that `pool plan --out` wrote
    #[arg(value_name = "PLANFILE")]
    path: PathBuf,
    /// Print one document with Terraform's plan JSON: the same as --format json
    #[arg(long)]
    json: bool,
    /// How to show the plan: text, json, markdown or github; with =FILE into a file beside the text; may be repeated
    #[arg(long, value_name = "FORMAT[=FILE]", value_parser = formats::wanted::<PlanFormat>, add = formats::completer::<PlanFormat>())]
    format: Vec<Wanted<PlanFormat>>,
}

pub(super) fn run(context: &Context, arguments: &Arguments) -> Result<Exit, CliError> {
    let path = &arguments.path;
    std::fs::metadata(path).with_context(|| format!("reading {}", path.display()))?;
    let Some(plan) = plan_file::read(path)? else {
        return Err(CliError::usage(
            format!("{} is not a saved plan", path.display()),
            "make one with: pool plan CONFIG --out FILE",
        ));
    };
    let json = (PlanFormat::Json, arguments.json);
    let wanted = formats::settled(&arguments.format, json, PlanFormat::Text)?;
    plan_formats::show(context, &plan, &wanted)?;
    Ok(Exit::Done)
}
