//! `pool version`.

use clap::Args;
use serde_json::json;

use super::context::Context;
use super::exit::Exit;
use crate::render;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(context: &Context, arguments: &Arguments) -> Exit {
    let version = env!("CARGO_PKG_VERSION");
    if arguments.json {
        context.printer.json(&json!({ "version": version, "plan_format": render::FORMAT_VERSION }));
    } else {
        context.printer.data(&format!("pool {version}\n"));
    }
    Exit::Done
}
