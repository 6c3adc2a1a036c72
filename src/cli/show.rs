//! `pool show`: a saved plan, from its file alone.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;

use super::context::Context;
use super::error::CliError;
use super::exit::Exit;
use super::plan_file;
use crate::render;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// A plan that `pool plan --out` wrote
    #[arg(value_name = "PLANFILE")]
    path: PathBuf,
    /// Print one document with Terraform's plan JSON
    #[arg(long)]
    json: bool,
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
    let printer = &context.printer;
    if arguments.json {
        printer.json(&render::plan_json(&plan));
    } else {
        printer.data(&render::plan_text(&plan, printer.look));
    }
    Ok(Exit::Done)
}
