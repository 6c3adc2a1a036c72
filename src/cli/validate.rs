//! `pool validate`: check config files, and report everything that is wrong at once.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::context::Context;
use super::error::CliError;
use super::exit::Exit;
use super::formats::{self, Wanted};
use crate::config::{Loaded, Report};
use crate::render;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Files, folders of *.yaml, *.yml and *.json, or - for standard input
    #[arg(required = true, value_name = "CONFIG")]
    paths: Vec<PathBuf>,
    /// Print Terraform's `validate -json`: the same as --format json
    #[arg(long)]
    json: bool,
    /// How to tell what is wrong: text, json, github, sarif or gitlab; with =FILE into a file beside the text; may be
    /// repeated
    #[arg(long, value_name = "FORMAT[=FILE]", value_parser = formats::wanted::<Format>, add = formats::completer::<Format>())]
    format: Vec<Wanted<Format>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    Text,
    /// Terraform's `validate -json`
    Json,
    /// Annotations of GitHub Actions
    Github,
    /// For code scanning
    Sarif,
    /// GitLab's code quality
    Gitlab,
}

pub(super) async fn run(context: &Context, arguments: &Arguments) -> Result<Exit, CliError> {
    let wanted = formats::settled(&arguments.format, (Format::Json, arguments.json), Format::Text)?;
    let outcome = context.read(&arguments.paths).await;
    let (report, pools) = match &outcome {
        Ok(Loaded { pools, warnings, .. }) => (warnings, Some(pools)),
        Err(CliError::Config(report)) => (report, None),
        // That is no finding about a file.
        Err(_) => return outcome.map(|_| Exit::Error),
    };
    let printer = &context.printer;
    for wanted in
        wanted.iter().filter(|wanted| wanted.format != Format::Text || wanted.file.is_some())
    {
        formats::write(printer, wanted, &told(report, wanted.format))?;
    }
    let is_for_people =
        wanted.iter().any(|wanted| wanted.format == Format::Text && wanted.file.is_none());
    match (pools, is_for_people) {
        (None, true) => outcome.map(|_| Exit::Error),
        (None, false) => Ok(Exit::Error),
        (Some(_), false) => Ok(Exit::Done),
        (Some(pools), true) => {
            let told = render::report_text(report, printer.error_look);
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
    }
}

fn told(report: &Report, format: Format) -> String {
    match format {
        Format::Text => render::report_text(report, render::Look::PLAIN),
        Format::Json => format!("{:#}\n", render::report_json(report)),
        Format::Github => render::report_github(report),
        Format::Sarif => format!("{:#}\n", render::report_sarif(report)),
        Format::Gitlab => format!("{:#}\n", render::report_gitlab(report)),
    }
}
