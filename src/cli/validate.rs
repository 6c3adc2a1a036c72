//! `pool validate`: check config files, and report everything that is wrong at once.

use std::path::PathBuf;

use clap::Args;

use super::context::Context;
use super::error::CliError;
use super::exit::Exit;
use crate::config::Loaded;
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
    match context.read(&arguments.paths).await {
        Ok(loaded) if arguments.json => {
            printer.json(&render::report_json(&loaded.warnings));
            Ok(Exit::Done)
        }
        Ok(Loaded { pools, warnings, .. }) => {
            let told = render::report_text(&warnings, printer.error_look);
            if !told.is_empty() {
                printer.note(told.trim_end());
            }
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
