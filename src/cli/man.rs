//! `pool man`: the manual pages, made from the same words as `--help`.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;

use super::context::Context;
use super::error::CliError;
use super::exit::Exit;
use super::help;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Write the pages of all commands into this folder; without it, the page of `pool` is printed
    #[arg(value_name = "FOLDER")]
    folder: Option<PathBuf>,
}

pub(super) fn run(context: &Context, arguments: &Arguments) -> Result<Exit, CliError> {
    let command = help::whole();
    let Some(folder) = &arguments.folder else {
        let mut page = Vec::new();
        clap_mangen::Man::new(command).render(&mut page).context("writing the page")?;
        context.printer.data(&String::from_utf8_lossy(&page));
        return Ok(Exit::Done);
    };
    let write = || -> std::io::Result<()> {
        std::fs::create_dir_all(folder)?;
        clap_mangen::generate_to(command, folder)
    };
    write().with_context(|| format!("writing the pages into {}", folder.display()))?;
    context.printer.note(&format!("Read them with: man -l {}", folder.join("pool.1").display()));
    Ok(Exit::Done)
}
