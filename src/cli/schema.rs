//! `pool schema`: the JSON Schema of config files.

use clap::Args;

use super::context::Context;
use super::exit::Exit;
use crate::config;

#[derive(Debug, Args)]
pub(super) struct Arguments {}

pub(super) fn run(context: &Context, _arguments: &Arguments) -> Exit {
    context.printer.json(&config::schema::schema());
    Exit::Done
}
