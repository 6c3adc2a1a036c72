//! `pool validate`: check config files, and report everything that is wrong at once.

use std::path::PathBuf;

use clap::Args;

use super::context::Context;
use super::error::CliError;
use super::exit::Exit;
use crate::config::{Loaded, Report};
use crate::render;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Files, folders of *.yaml, *.yml and *.json, or - for standard input
    #[arg(required = true, value_name = "CONFIG")]
    paths: Vec<PathBuf>,
    /// Print Terraform's `validate -json`
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(context: &Context, arguments: &Arguments) -> Result<Exit, CliError> {
    let printer = &context.printer;
    match context.load(&arguments.paths).await {
        Ok(_) if arguments.json => {
            printer.json(&render::report_json(&Report::default()));
            Ok(Exit::Done)
        }
        Ok(Loaded { pools, .. }) => {
            let names: Vec<&str> = pools.iter().map(|pool| pool.config.pool_id.as_str()).collect();
            printer.data(&match names.as_slice() {
                [] => "Valid: no pools.\n".to_owned(),
                names => format!("Valid: {}.\n", names.join(", ")),
            });
            Ok(Exit::Done)
        }
        Err(CliError::Config(report)) if arguments.json => {
            printer.json(&render::report_json(&report));
            Ok(Exit::Error)
        }
        Err(error) => Err(error),
    }
}
