//! `pool schema`: the JSON Schema of config files, of what executables of `exec` providers read and print, and how editors
//! are told of it.

use clap::{Args, ValueEnum};

use super::context::Context;
use super::exit::Exit;
use crate::config;
use crate::render::{self, Editor};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Print the schema of the provider protocol instead: requests, answers and secrets of `exec` providers
    #[arg(long, conflicts_with = "editor")]
    provider_protocol: bool,
    /// Print an editor's settings instead; they look for the schema in `pool.schema.json`
    #[arg(long, value_enum, value_name = "EDITOR")]
    editor: Option<EditorName>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum EditorName {
    /// For `.vscode/settings.json`
    Vscode,
    /// For `.helix/languages.toml`
    Helix,
    /// For `init.lua`
    Neovim,
}

pub(super) fn run(context: &Context, arguments: &Arguments) -> Exit {
    let editor = arguments.editor.map(|editor| match editor {
        EditorName::Vscode => Editor::VsCode,
        EditorName::Helix => Editor::Helix,
        EditorName::Neovim => Editor::Neovim,
    });
    match editor {
        Some(editor) => context.printer.data(&render::editor_settings(editor)),
        None if arguments.provider_protocol => {
            context.printer.json(&config::schema::provider_protocol());
        }
        None => context.printer.json(&config::schema::schema()),
    }
    Exit::Done
}
