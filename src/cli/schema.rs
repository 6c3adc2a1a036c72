//! `pool schema`: the JSON Schema of config files, and of what executables of `exec` providers read and print.

use clap::Args;

use super::context::Context;
use super::exit::Exit;
use crate::config;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Print the schema of the provider protocol instead: requests, answers and secrets of `exec` providers
    #[arg(long)]
    provider_protocol: bool,
}

pub(super) fn run(context: &Context, arguments: &Arguments) -> Exit {
    let schema = if arguments.provider_protocol {
        config::schema::provider_protocol()
    } else {
        config::schema::schema()
    };
    context.printer.json(&schema);
    Exit::Done
}
