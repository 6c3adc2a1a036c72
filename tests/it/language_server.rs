//! A client of language servers: as much of the protocol as an editor needs to show what a server says of a file.
//!
//! The servers are real ones, over their standard streams. They ask questions of their own, for settings above all:
//! those are answered while something is waited for.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::{Value, json};

/// How long a server has for an answer, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(60);

/// Which server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Language {
    /// yaml-language-server: VS Code, Neovim and Helix have it.
    Yaml,
    /// The JSON language server of VS Code.
    Json,
}

impl Language {
    fn program(self) -> &'static str {
        match self {
            Self::Yaml => "yaml-language-server/bin/yaml-language-server",
            Self::Json => "vscode-langservers-extracted/bin/vscode-json-language-server",
        }
    }

    fn id(self) -> &'static str {
        match self {
            Self::Yaml => "yaml",
            Self::Json => "json",
        }
    }

    /// What the settings of an editor say in this section, with `more` of them.
    fn settings(self, section: &str, more: &Value) -> Value {
        let mut settings = match (self, section) {
            (Self::Yaml, "yaml") => json!({
                "validate": true, "completion": true, "hover": true, "schemaStore": { "enable": false },
            }),
            (Self::Json, "json") => json!({ "validate": { "enable": true } }),
            _ => return json!({}),
        };
        settings.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        settings
    }
}

/// A server, and what it said of files.
pub(crate) struct LanguageServer {
    language: Language,
    /// What the editor's settings say besides, for the section of the language.
    more: Value,
    child: Child,
    input: ChildStdin,
    messages: Receiver<Value>,
    /// Whether the server has asked for settings.
    is_set: bool,
    last_id: i64,
    /// By URI and version of the file.
    diagnostics: BTreeMap<String, Vec<Value>>,
}

impl Drop for LanguageServer {
    fn drop(&mut self) {
        let _gone = self.child.kill().is_ok() && self.child.wait().is_ok();
    }
}

impl LanguageServer {
    /// Starts the server that is installed in `modules` (a `node_modules`).
    pub(crate) fn start(language: Language, modules: &Path, root: &Path, more: Value) -> Self {
        let mut child = Command::new("node")
            .arg(modules.join(language.program()))
            .arg("--stdio")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let (sender, messages) = channel();
        std::thread::spawn(move || {
            while let Some(message) = read(&mut output) {
                if sender.send(message).is_err() {
                    break;
                }
            }
        });
        let diagnostics = BTreeMap::new();
        let mut server =
            Self { language, more, child, input, messages, is_set: false, last_id: 0, diagnostics };
        let capabilities = json!({
            "workspace": { "configuration": true, "didChangeConfiguration": { "dynamicRegistration": true } },
            "textDocument": {
                "publishDiagnostics": { "versionSupport": true },
                "hover": { "contentFormat": ["markdown", "plaintext"] },
                "completion": { "completionItem": {
                    "snippetSupport": true, "documentationFormat": ["markdown", "plaintext"],
                } },
            },
        });
        server.ask(
            "initialize",
            &json!({
                "processId": null, "rootUri": uri(root),
                "workspaceFolders": [{ "uri": uri(root), "name": "root" }], "capabilities": capabilities,
                "initializationOptions": { "handledSchemaProtocols": ["file"] },
            }),
        );
        server.tell("initialized", &json!({}));
        let settings: BTreeMap<&str, Value> = ["yaml", "json"]
            .map(|section| (section, language.settings(section, &server.more)))
            .into();
        server.tell("workspace/didChangeConfiguration", &json!({ "settings": settings }));
        // This one asks, the other one is told.
        while language == Language::Yaml && !server.is_set {
            server.hear();
        }
        server
    }

    /// Opens a file with this text, and returns what is wrong with it, as the server says. Each file has a name of its own:
    /// what a server said of one that was open before is not mistaken for what it says now.
    pub(crate) fn diagnose(&mut self, path: &Path, text: &str) -> Vec<Value> {
        let uri = uri(path);
        let document =
            json!({ "uri": uri, "languageId": self.language.id(), "version": 1, "text": text });
        self.tell("textDocument/didOpen", &json!({ "textDocument": document }));
        while !self.diagnostics.contains_key(&uri) {
            self.hear();
        }
        self.diagnostics.remove(&uri).unwrap()
    }

    /// Returns what the server offers to write at the mark `▮` in the text.
    pub(crate) fn complete(&mut self, path: &Path, text: &str) -> Vec<Value> {
        let answer = self.at_mark("textDocument/completion", path, text);
        let items = answer.get("items").unwrap_or(&answer);
        items.as_array().cloned().unwrap_or_default()
    }

    /// Returns what the server says about the word at the mark `▮` in the text.
    pub(crate) fn hover(&mut self, path: &Path, text: &str) -> String {
        let answer = self.at_mark("textDocument/hover", path, text);
        let contents = &answer["contents"];
        let one =
            |part: &Value| part["value"].as_str().or(part.as_str()).unwrap_or_default().to_owned();
        match contents.as_array() {
            Some(parts) => parts.iter().map(one).collect::<Vec<_>>().join("\n"),
            None => one(contents),
        }
    }

    fn at_mark(&mut self, method: &str, path: &Path, text: &str) -> Value {
        let (before, after) = text.split_once('▮').expect("the text has a mark");
        self.diagnose(path, &format!("{before}{after}"));
        let line = before.matches('\n').count();
        let character = before.rsplit('\n').next().unwrap_or_default().chars().count();
        let position = json!({ "line": line, "character": character });
        self.ask(method, &json!({ "textDocument": { "uri": uri(path) }, "position": position }))
    }

    /// Sends a request and waits for its answer.
    fn ask(&mut self, method: &str, parameters: &Value) -> Value {
        self.last_id += 1;
        let id = self.last_id;
        self.send(&json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": parameters }));
        loop {
            if let Some(answer) = self.hear().filter(|message| message["id"] == json!(id)) {
                assert!(answer.get("error").is_none(), "{method}: {answer}");
                return answer["result"].clone();
            }
        }
    }

    fn tell(&mut self, method: &str, parameters: &Value) {
        self.send(&json!({ "jsonrpc": "2.0", "method": method, "params": parameters }));
    }

    /// Takes one message; answers it when it is a question, returns it when it is an answer.
    #[track_caller]
    fn hear(&mut self) -> Option<Value> {
        let message = self.messages.recv_timeout(PATIENCE).expect("the server says something");
        let parameters = &message["params"];
        match (message["method"].as_str(), message.get("id")) {
            (None, _) => Some(message),
            (Some("textDocument/publishDiagnostics"), _) => {
                let uri = parameters["uri"].as_str().unwrap().to_owned();
                let found = parameters["diagnostics"].as_array().unwrap().clone();
                self.diagnostics.insert(uri, found);
                None
            }
            (Some(method), Some(id)) => {
                let items = parameters["items"].as_array().cloned().unwrap_or_default();
                let section = |item: &Value| {
                    let name = item["section"].as_str().unwrap_or_default();
                    self.language.settings(name, &self.more)
                };
                let result = match method {
                    "workspace/configuration" => items.iter().map(section).collect(),
                    _ => Value::Null,
                };
                let answer = json!({ "jsonrpc": "2.0", "id": id, "result": result });
                self.send(&answer);
                self.is_set |= method == "workspace/configuration";
                None
            }
            (Some(_), None) => None,
        }
    }

    fn send(&mut self, message: &Value) {
        let text = message.to_string();
        write!(self.input, "Content-Length: {}\r\n\r\n{text}", text.len()).unwrap();
        self.input.flush().unwrap();
    }
}

fn read(output: &mut BufReader<ChildStdout>) -> Option<Value> {
    let mut length = 0;
    loop {
        let mut header = String::new();
        if output.read_line(&mut header).ok()? == 0 {
            return None;
        }
        match header.trim_end().split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.parse().ok()?;
            }
            Some(_) => {}
            None => break,
        }
    }
    let mut body = vec![0; length];
    output.read_exact(&mut body).ok()?;
    serde_json::from_slice(&body).ok()
}

fn uri(path: &Path) -> String {
    format!("file://{}", path.display())
}
