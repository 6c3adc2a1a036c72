//! `pool config`: the pools with all defaults, and where each value came from.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Map, Value, json};

use super::context::Context;
use super::error::CliError;
use super::exit::Exit;
use crate::config::{self, Loaded};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Files, folders of *.yaml, *.yml and *.json, or - for standard input
    #[arg(required = true, value_name = "CONFIG")]
    paths: Vec<PathBuf>,
    /// Print JSON, with the origins
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(context: &Context, arguments: &Arguments) -> Result<Exit, CliError> {
    let Loaded { pools, providers, .. } = context.load(&arguments.paths).await?;
    let printer = &context.printer;
    if arguments.json {
        let pools: Vec<Value> = pools
            .iter()
            .map(|pool| {
                let origins: Map<String, Value> = pool
                    .origins
                    .iter()
                    .map(|(pointer, origin)| (pointer.clone(), json!(origin.to_string())))
                    .collect();
                json!({ "config": pool.config, "place": pool.place, "origins": origins })
            })
            .collect();
        let document = json!({ "format_version": "1.0", "providers": providers, "pools": pools });
        printer.json(&document);
        return Ok(Exit::Done);
    }
    if !providers.is_empty() {
        let yaml = config::to_yaml(&json!({ "version": 1, "providers": providers }));
        printer.data(&format!("---\n{yaml}"));
    }
    for pool in &pools {
        let yaml = config::to_yaml(&pool.config);
        printer.data(&format!("---\n{yaml}# where each value came from:\n"));
        for (pointer, origin) in &pool.origins {
            printer.data(&printer.look.faint(&format!("#   {pointer}: {origin}\n")));
        }
    }
    Ok(Exit::Done)
}
