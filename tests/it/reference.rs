//! `docs/reference` is made from the code, and is what the code says now. With `UPDATE_DOCS=1` it is written anew.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::sandbox::{Sandbox, asked_for};
use crate::schema::{fields, provider_types};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn json(file: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(root().join(file)).unwrap()).unwrap()
}

/// Compares a page with what it should be.
fn page(name: &str, title: &str, intro: &str, body: &str) {
    let path: PathBuf = root().join("docs/reference").join(name);
    let text = format!(
        "<!-- Made from the code: UPDATE_DOCS=1 cargo test --test it -- reference -->\n# {title}\n\n{intro}\n\n{}\n",
        body.trim()
    );
    if asked_for("UPDATE_DOCS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &text).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    let diff = similar::TextDiff::from_lines(&found, &text);
    assert!(found == text, "{} is stale:\n{}", path.display(), diff.unified_diff());
}

fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let head: Vec<String> = head.iter().map(|cell| (*cell).to_owned()).collect();
    let rule = vec!["---".to_owned(); head.len()];
    let rows: String = rows.iter().map(|row| line(row)).collect();
    format!("{}{}{rows}\n", line(&head), line(&rule))
}

#[test]
fn the_command_line() {
    let sandbox = Sandbox::new();
    let mut body = String::new();
    let mut left = vec![Vec::<String>::new()];
    while let Some(command) = left.pop() {
        let mut words: Vec<&str> = command.iter().map(String::as_str).collect();
        words.push("--help");
        let help = sandbox.pool(&words).exits(0).stdout;
        let path = [&["pool".to_owned()][..], &command].concat().join(" ");
        body.push_str(&format!("## {path}\n\n```text\n{}\n```\n\n", help.trim_end()));
        let list = help.split_once("Commands:\n").map_or("", |(_, list)| list);
        let listed = list.lines().take_while(|line| line.starts_with("  "));
        let names = listed.filter(|line| !line.starts_with("   "));
        let names = names.filter_map(|line| line.split_whitespace().next());
        let inner: Vec<Vec<String>> = names
            .filter(|name| *name != "help")
            .map(|name| [&command[..], &[name.to_owned()]].concat())
            .collect();
        left.extend(inner.into_iter().rev());
    }
    // Variables that take the place of a flag, as help has them.
    let mut variables = std::collections::BTreeMap::new();
    let flat = body.split_whitespace().collect::<Vec<_>>().join(" ");
    for (before, after) in
        flat.match_indices("[env: ").map(|(at, mark)| (&flat[..at], &flat[at + mark.len()..]))
    {
        let flag = before.rsplit(' ').find(|word| word.starts_with("--")).unwrap();
        variables.insert(after.split(']').next().unwrap().to_owned(), format!("`{flag}`"));
    }
    variables.retain(|name, _| !name.starts_with("POOL_LOG"));
    let others = [
        (
            "POOL__<POOL_ID>__<FIELD>",
            "overrides a field of a pool, such as `POOL__CI_LINUX__FIXED_SIZE=8`",
        ),
        ("POOL_LOG, POOL_LOG_FORMAT", "what any command logs, and how, when `-v` is not given"),
        ("POOL_SIM_DIR", "where the simulated cloud is; `.pool/sim` otherwise"),
        ("DOCKER_HOST", "where the engine is, for providers that name none"),
        ("NO_COLOR, CLICOLOR_FORCE, TERM", "whether there is colour, when `--color` is not given"),
        ("CI", "no progress line is drawn"),
    ];
    let rows: Vec<Vec<String>> = variables
        .into_iter()
        .map(|(name, flag)| vec![format!("`{name}`"), format!("takes the place of {flag}")])
        .chain(others.map(|(name, what)| vec![format!("`{name}`"), what.to_owned()]))
        .collect();
    body.push_str(&format!("## Environment\n\n{}", table(&["variable", "what it does"], &rows)));
    let intro = "What `--help` says of every command. Long flags may have one dash, as Terraform's do: `-auto-approve`.";
    page("cli.md", "Command line", intro, &body);
}

/// What kind of value a field takes, in a few words.
fn kind(field: &Value) -> String {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let pattern = field["pattern"].as_str().unwrap_or_default();
    if let Some(options) = field["enum"].as_array() {
        let options: Vec<String> = options.iter().map(|one| format!("`{}`", text(one))).collect();
        return options.join(" \\| ");
    }
    let types: Vec<&str> = match &field["type"] {
        Value::Array(types) => types.iter().filter_map(Value::as_str).collect(),
        one => one.as_str().into_iter().collect(),
    };
    let several: Vec<String> = types
        .iter()
        .filter(|one| **one != "null")
        .map(|one| match *one {
            "integer" | "number" => match (&field["minimum"], &field["maximum"]) {
                (Value::Number(least), Value::Number(most)) if types.len() == 1 => {
                    format!("{least}…{most}")
                }
                _ => "number".to_owned(),
            },
            "boolean" => "`true` \\| `false`".to_owned(),
            "object" => "mapping".to_owned(),
            "array" => "list".to_owned(),
            "string" if pattern.contains("ms)") => "duration".to_owned(),
            "string" if pattern.contains('%') => "`N%`".to_owned(),
            other => other.replace("string", "text"),
        })
        .collect();
    several.join(" or ")
}

fn cell(field: &Value, key: &str) -> String {
    let text = field[key].as_str().unwrap_or_default();
    text.lines().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

#[test]
fn the_configuration() {
    let schema = json("schema/pool.schema.json");
    let row = |path: &str, field: &Value, is_required: bool| -> Option<Vec<String>> {
        let name = path.trim_start_matches('.');
        if name.ends_with("$schema") || name.contains("from_") || field == &Value::Bool(true) {
            return None;
        }
        let default = match field.get("default") {
            _ if is_required => "required".to_owned(),
            None | Some(Value::Object(_)) => String::new(),
            Some(Value::String(text)) => format!("`{text}`"),
            Some(other) => format!("`{other}`"),
        };
        Some(vec![format!("`{name}`"), kind(field), default, cell(field, "description")])
    };
    let head = ["field", "type", "default", "meaning"];
    let mut rows = Vec::new();
    fields(&schema["else"], "", &mut |path, field, required| {
        rows.extend(row(path, field, required));
    });
    assert!(rows.len() > 50, "only {} fields", rows.len());
    let mut body = format!("## A pool\n\n{}", table(&head, &rows));
    body.push_str(
        "## Providers\n\nUnder `providers: {NAME: {type: TYPE, …}}` in a document with `version: 1`; \
         `providers[docker].host` is the key `host` of one of that type, `[*]` of any.\n\n",
    );
    let (mut own, mut common) = (Vec::new(), Vec::<Vec<String>>::new());
    for (name, settings) in provider_types(&schema) {
        fields(settings, &format!("providers[{name}]"), &mut |path, field, required| {
            let is_common = path.contains("].max_concurrency") || path.contains("].rate_limit");
            let shown = if is_common { path.replace(name, "*") } else { path.to_owned() };
            let Some(row) = row(&shown, field, required) else { return };
            if !is_common {
                own.push(row);
            } else if !common.contains(&row) {
                common.push(row);
            }
        });
    }
    own.extend(common);
    body.push_str(&table(&head, &own));
    body.push_str("## Rules\n\nWhat a file can break, by the name that every tool shows.\n\n");
    let rules = pool::config::rules::RULES
        .map(|(name, meaning)| vec![format!("`{name}`"), meaning.replace('|', "\\|")]);
    body.push_str(&table(&["rule", "what it asks for"], &rules));
    let intro = "Every field of a pool file. Durations are texts with units: `120s`, `1h30m`, `250ms`. The same, for machines: \
                 `pool schema`.";
    page("config.md", "Configuration", intro, &body);
}

/// The fields of a schema of the API, as a table; of what it refers to, only the name.
fn api_fields(schema: &Value) -> String {
    let required: Vec<&str> =
        schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let rows: Vec<Vec<String>> = schema["properties"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, field)| {
            let inner =
                [field, &field["items"], &field["anyOf"][0], &field["additionalProperties"]];
            let named = inner
                .iter()
                .find_map(|one| one["$ref"].as_str())
                .map(|path| path.rsplit('/').next().unwrap());
            let kind = match named {
                Some(named) if field["items"].is_object() => {
                    format!("list of [{named}](#{})", named.to_lowercase())
                }
                Some(named) => format!("[{named}](#{})", named.to_lowercase()),
                None => kind(field),
            };
            let is_required = if required.contains(&name.as_str()) { "always" } else { "" };
            vec![format!("`{name}`"), kind, is_required.to_owned(), cell(field, "description")]
        })
        .collect();
    table(&["field", "type", "there", "meaning"], &rows)
}

#[test]
fn the_http_api() {
    let api = json("schema/openapi.json");
    let mut body = String::new();
    for (path, item) in api["paths"].as_object().unwrap() {
        for (method, operation) in
            item.as_object().unwrap().iter().filter(|(name, _)| *name != "parameters")
        {
            let summary = operation["summary"].as_str().unwrap();
            body.push_str(&format!("## {} {path}\n\n{summary}.\n\n", method.to_uppercase()));
            let parameters = [&item["parameters"], &operation["parameters"]];
            let rows: Vec<Vec<String>> = parameters
                .iter()
                .flat_map(|list| list.as_array().into_iter().flatten())
                .map(|one| {
                    vec![
                        format!("`{}`", one["name"].as_str().unwrap()),
                        cell(one, "in"),
                        cell(one, "description"),
                    ]
                })
                .collect();
            if !rows.is_empty() {
                body.push_str(&table(&["parameter", "in", "meaning"], &rows));
            }
            if let Some(name) =
                operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].as_str()
            {
                let name = name.rsplit('/').next().unwrap();
                body.push_str(&format!("Body: [{name}](#{}).\n\n", name.to_lowercase()));
            }
            let rows: Vec<Vec<String>> = operation["responses"]
                .as_object()
                .unwrap()
                .iter()
                .map(|(status, answer)| vec![status.clone(), cell(answer, "description")])
                .collect();
            body.push_str(&table(&["answer", "means"], &rows));
        }
    }
    for (name, schema) in api["components"]["schemas"].as_object().unwrap() {
        body.push_str(&format!("## {name}\n\n{}\n\n", cell(schema, "description")));
        if schema["properties"].is_object() {
            body.push_str(&api_fields(schema));
        } else {
            let options: Vec<String> = schema["oneOf"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|one| format!("`{}`", one["const"].as_str().unwrap_or_default()))
                .collect();
            body.push_str(&format!(
                "{}\n\n",
                if options.is_empty() { kind(schema) } else { options.join(" \\| ") }
            ));
        }
    }
    let intro = "What `pool serve` answers. The same, for machines: `schema/openapi.json`, and `/v1/openapi.json` of a server. \
                 Errors are problems as RFC 9457 has them; their `code` is stable.";
    page("http.md", "HTTP API", intro, &body);
}

/// The variants of an enum with their doc comments, in the words that JSON has for them.
fn variants(file: &str, name: &str) -> Vec<Vec<String>> {
    let source = std::fs::read_to_string(root().join(file)).unwrap();
    let after = source.split_once(&format!("pub enum {name} {{\n")).unwrap().1;
    let mut rows = Vec::new();
    let mut said = Vec::new();
    for line in after.lines().take_while(|line| *line != "}").map(str::trim) {
        if let Some(words) = line.strip_prefix("/// ") {
            said.push(words.to_owned());
        } else if let Some(variant) =
            line.strip_suffix(',').filter(|word| word.chars().all(char::is_alphanumeric))
        {
            let snake = variant.chars().fold(String::new(), |snake, c| {
                let gap = if c.is_uppercase() && !snake.is_empty() { "_" } else { "" };
                format!("{snake}{gap}{}", c.to_ascii_lowercase())
            });
            rows.push(vec![format!("`{snake}`"), std::mem::take(&mut said).join(" ")]);
        }
    }
    assert!(rows.len() > 5, "{rows:?}");
    rows
}

#[test]
fn the_events() {
    let kinds = pool::state::EVENT_KINDS
        .map(|(kind, meaning)| vec![format!("`{kind}`"), meaning.to_owned()]);
    let lines = pool::render::LINE_TYPES.map(|(kind, meaning, fields)| {
        vec![format!("`{kind}`"), meaning.to_owned(), fields.to_owned()]
    });
    let body = format!(
        "## What a state remembers\n\n`GET /v1/events` of a server, `pool state show` and `pool state export`. Each has `seq`, `at`, \
         `pool`, `slot`, `generation`, `kind`, `who`, `why`, `from_phase`, `to_phase`. They are kept for 30 days.\n\n{}\
         ## What a run tells\n\nThe lines of `pool apply --json` and `pool destroy --json`, with the names of Terraform's machine-readable UI. \
         Each has `@level`, `@message`, `@module`, `@timestamp` and `type`.\n\n{}\
         ## Reasons\n\nOf a step in plans, in `change.reason`, `hook.reason` and the metric `pool_replacements_total`.\n\n{}\
         ## Phases\n\nOf a worker, in `from_phase`, `to_phase`, `pool status` and the metric `pool_workers`.\n\n{}",
        table(&["kind", "meaning"], &kinds),
        table(&["type", "meaning", "fields"], &lines),
        table(&["reason", "meaning"], &variants("src/plan/types.rs", "Reason")),
        table(&["phase", "meaning"], &variants("src/worker.rs", "Phase")),
    );
    page("events.md", "Events", "What is told of what happens, by its stable names.", &body);
}

#[test]
fn the_exit_codes() {
    let rows =
        pool::cli::Exit::MEANINGS.map(|(code, meaning)| vec![code.to_string(), meaning.to_owned()]);
    let body = table(&["code", "meaning"], &rows);
    let more = "`pool lease run` ends with its command's code: 128 and the number of the signal that ended it, 127 when it is not \
                there, 126 when it cannot be run.";
    page("exit-codes.md", "Exit codes", "How every command ends.", &format!("{body}{more}"));
}

#[test]
fn the_metrics() {
    let metrics = pool::serve::metrics::Metrics::default();
    let rows: Vec<Vec<String>> = metrics
        .described()
        .iter()
        .map(|metric| {
            let total = if metric.kind == "counter" { "_total" } else { "" };
            let name = format!("`{}_{}{total}`", pool::serve::metrics::PREFIX, metric.name);
            vec![name, metric.kind.clone(), metric.labels.to_owned(), format!("{}.", metric.help)]
        })
        .collect();
    let intro = "What `pool serve` measures at `/metrics`, in OpenMetrics' text format, which Prometheus reads. Rules for alerts on them: \
                 [`deploy/pool.alerts.yml`](../../deploy/pool.alerts.yml).";
    page("metrics.md", "Metrics", intro, &table(&["metric", "kind", "labels", "meaning"], &rows));
}
