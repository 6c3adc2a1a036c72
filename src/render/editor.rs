//! What has to be written into an editor's settings so that it knows pool files.
//!
//! All three ask a language server of the file's kind, which reads the schema where `pool schema > pool.schema.json` has put
//! it: in the folder that is opened. Files are known by their names; any other file names its schema in its first line.

use serde_json::json;

/// An editor, by its settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Editor {
    /// VS Code's `settings.json`, with the YAML extension.
    VsCode,
    /// Helix's `languages.toml`.
    Helix,
    /// Neovim's Lua, from version 0.11 on.
    Neovim,
}

/// Where the schema is, from the folder that is opened.
const SCHEMA: &str = "./pool.schema.json";
/// The YAML files that are pool files by their names.
const YAML: [&str; 4] = ["*.pool.yaml", "*.pool.yml", "pools/**/*.yaml", "pools/**/*.yml"];
/// The JSON files.
const JSON: [&str; 2] = ["*.pool.json", "pools/**/*.json"];

/// Returns the settings, ready to be put into the editor's file.
pub fn editor_settings(editor: Editor) -> String {
    match editor {
        Editor::VsCode => {
            let settings = json!({
                "yaml.schemas": { SCHEMA: YAML },
                "json.schemas": [{ "fileMatch": JSON, "url": SCHEMA }],
            });
            format!("{settings:#}\n")
        }
        Editor::Helix => format!(
            "[language-server.yaml-language-server.config.yaml.schemas]\n\"{SCHEMA}\" = {yaml}\n\n\
             [[language-server.vscode-json-language-server.config.json.schemas]]\nfileMatch = {json}\nurl = \"{SCHEMA}\"\n",
            yaml = json!(YAML),
            json = json!(JSON),
        ),
        Editor::Neovim => format!(
            "vim.lsp.config(\"yamlls\", {{\n  settings = {{ yaml = {{ schemas = {{ [\"{SCHEMA}\"] = {{ {yaml} }} }} }} }},\n}})\n\
             vim.lsp.config(\"jsonls\", {{\n  settings = {{ json = {{\n    validate = {{ enable = true }},\n    schemas = {{ {{ \
             fileMatch = {{ {json} }}, url = \"{SCHEMA}\" }} }},\n  }} }},\n}})\nvim.lsp.enable({{ \"yamlls\", \"jsonls\" }})\n",
            yaml = quoted(&YAML),
            json = quoted(&JSON),
        ),
    }
}

fn quoted(words: &[&str]) -> String {
    words.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(", ")
}
