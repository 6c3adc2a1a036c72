//! The description of the API, OpenAPI 3.1, generated from the types that go over the wire.

use axum::Json;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::problem::{ProblemBody, kinds};
use super::wire::{
    LeaseAnswer, LeaseBody, LeaseList, LeaseRequest, PoolBody, PoolList, RenewRequest,
};

pub(super) async fn answer() -> Json<Value> {
    Json(document())
}

/// Returns the description.
pub fn document() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut generator = settings.into_generator();
    let paths = paths(&mut generator);
    let _named = generator.subschema_for::<ProblemBody>();
    let mut schemas: Map<String, Value> = generator
        .take_definitions(true)
        .into_iter()
        .map(|(name, schema)| (name, without_rust_formats(schema)))
        .collect();
    schemas.sort_keys();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "pool",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Leases ready workers to jobs.",
            "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "security": [],
        "paths": paths,
        "components": { "schemas": schemas },
    })
}

/// Number formats such as `uint32` are Rust's.
fn without_rust_formats(mut value: Value) -> Value {
    match &mut value {
        Value::Object(fields) => {
            let rusts = |format: &Value| {
                format.as_str().is_some_and(|f| f.starts_with("uint") || f.starts_with("int"))
            };
            if fields.get("format").is_some_and(rusts) {
                fields.remove("format");
            }
            for field in fields.values_mut() {
                *field = without_rust_formats(field.take());
            }
        }
        Value::Array(items) => {
            for item in items {
                *item = without_rust_formats(item.take());
            }
        }
        _ => {}
    }
    value
}

fn schema<T: JsonSchema>(generator: &mut SchemaGenerator) -> Value {
    generator.subschema_for::<T>().to_value()
}

fn body<T: JsonSchema>(generator: &mut SchemaGenerator) -> Value {
    json!({ "required": true, "content": { "application/json": { "schema": schema::<T>(generator) } } })
}

fn answered<T: JsonSchema>(generator: &mut SchemaGenerator, description: &str) -> Value {
    let schema = schema::<T>(generator);
    json!({ "description": description, "content": { "application/json": { "schema": schema } } })
}

fn object(description: &str) -> Value {
    let schema = json!({ "type": "object" });
    json!({ "description": description, "content": { "application/json": { "schema": schema } } })
}

/// What every problem of these codes is answered with, by status.
fn problems(codes: &[&str]) -> Map<String, Value> {
    let mut by_status: Map<String, Value> = Map::new();
    for (code, status, title) in kinds().filter(|(code, ..)| codes.contains(code)) {
        let text = format!("`{code}`: {title}");
        let entry = by_status.entry(status.to_string()).or_insert_with(|| {
            json!({
                "description": "",
                "content": { "application/problem+json": {
                    "schema": { "$ref": "#/components/schemas/Problem" },
                } },
            })
        });
        let before = entry["description"].as_str().unwrap_or_default();
        let joined = if before.is_empty() { text } else { format!("{before}; {text}") };
        entry["description"] = json!(joined);
    }
    by_status
}

fn operation(id: &str, summary: &str, answers: &[(&str, Value)], codes: &[&str]) -> Value {
    let mut responses: Map<String, Value> =
        answers.iter().map(|(status, answer)| ((*status).to_owned(), answer.clone())).collect();
    responses.extend(problems(codes));
    json!({ "operationId": id, "summary": summary, "responses": responses })
}

fn with(mut operation: Value, name: &str, value: Value) -> Value {
    operation[name] = value;
    operation
}

fn query(name: &str, description: &str, schema: &Value) -> Value {
    json!({ "name": name, "in": "query", "description": description, "schema": schema })
}

fn path(name: &str, description: &str) -> Value {
    let schema = json!({ "type": "string" });
    json!({
        "name": name, "in": "path", "required": true, "description": description, "schema": schema,
    })
}

fn paths(generator: &mut SchemaGenerator) -> Value {
    let mut paths = leases(generator);
    paths.extend(pools(generator));
    paths.extend(signs());
    Value::Object(paths)
}

fn leases(generator: &mut SchemaGenerator) -> Map<String, Value> {
    let lease = answered::<LeaseBody>(generator, "The lease.");
    let (acquire, list) = (acquire(generator), list(generator));
    let id = json!([path("id", "The lease.")]);
    let show = operation(
        "getLease",
        "Look at a lease",
        &[("200", lease.clone())],
        &["lease_not_found", "state_unavailable"],
    );
    let outcome =
        json!({ "type": "string", "enum": ["ok", "job_failed", "infra_failed"], "default": "ok" });
    let release = operation(
        "releaseLease",
        "Give a lease back; one that ended before stays ended",
        &[("204", json!({ "description": "It has ended." }))],
        &["lease_not_found", "state_unavailable"],
    );
    let release = with(
        release,
        "parameters",
        json!([query("outcome", "How the job went; infra_failed blames the worker.", &outcome)]),
    );
    let renew = operation(
        "renewLease",
        "Make a lease last for another while",
        &[("200", lease)],
        &[
            "invalid_request",
            "lease_not_found",
            "lease_gone",
            "fence_mismatch",
            "state_unavailable",
        ],
    );
    let renew = with(renew, "requestBody", body::<RenewRequest>(generator));
    Map::from_iter([
        ("/v1/leases".to_owned(), json!({ "post": acquire, "get": list })),
        ("/v1/leases/{id}".to_owned(), json!({ "parameters": id, "get": show, "delete": release })),
        ("/v1/leases/{id}/renew".to_owned(), json!({ "parameters": id, "post": renew })),
    ])
}

fn acquire(generator: &mut SchemaGenerator) -> Value {
    let key = json!({
        "name": "Idempotency-Key", "in": "header",
        "description": "Makes the request repeatable for 24 hours: the same key and body of the same \
                        holder are answered with the same leases.",
        "schema": { "type": "string", "minLength": 1, "maxLength": 256 },
    });
    let granted = answered::<LeaseAnswer>(generator, "The leases.");
    let again = answered::<LeaseAnswer>(generator, "The leases that this key was answered with.");
    let acquire = operation(
        "acquireLease",
        "Lease workers, waiting for them if they are not free",
        &[("201", granted), ("200", again)],
        &[
            "invalid_request",
            "pool_not_found",
            "idempotency_conflict",
            "lease_gone",
            "body_too_large",
            "unsatisfiable",
            "no_capacity",
            "state_unavailable",
        ],
    );
    let acquire = with(acquire, "parameters", json!([key]));
    with(acquire, "requestBody", body::<LeaseRequest>(generator))
}

fn list(generator: &mut SchemaGenerator) -> Value {
    let text = json!({ "type": "string" });
    let listed = answered::<LeaseList>(generator, "The open leases, oldest first.");
    let list =
        operation("listLeases", "List the open leases", &[("200", listed)], &["state_unavailable"]);
    with(
        list,
        "parameters",
        json!([
            query("pool", "Of this pool only.", &text),
            query("holder", "Of this holder only.", &text)
        ]),
    )
}

fn pools(generator: &mut SchemaGenerator) -> Map<String, Value> {
    let text = json!({ "type": "string" });
    let all = answered::<PoolList>(generator, "The pools, by name.");
    let list = operation("listPools", "List the pools", &[("200", all)], &["state_unavailable"]);
    let one = answered::<PoolBody>(generator, "The pool.");
    let show = operation(
        "getPool",
        "Look at a pool",
        &[("200", one)],
        &["pool_not_found", "state_unavailable"],
    );
    let workers = object("The workers, in order of pool, slot and generation.");
    let workers =
        operation("listWorkers", "List the workers", &[("200", workers)], &["state_unavailable"]);
    let workers = with(workers, "parameters", json!([query("pool", "Of this pool only.", &text)]));
    let worker = operation(
        "getWorker",
        "Look at a worker and its history",
        &[("200", object("The worker, with its latest events under `history`."))],
        &["worker_not_found", "state_unavailable"],
    );
    let verbs = ["cordon", "uncordon", "drain", "quarantine", "verify", "replace"];
    let act = operation(
        "actOnWorker",
        "Decide about a worker",
        &[("200", object("The worker afterwards; `verify` adds `healthy` and `why`."))],
        &["worker_not_found", "conflict", "provider_unavailable", "state_unavailable"],
    );
    let verb = json!({
        "name": "verb", "in": "path", "required": true, "description": "What is decided.",
        "schema": { "type": "string", "enum": verbs },
    });
    let stream = json!({
        "description": "Server-sent events: `id` is the event's number, `data` the event as JSON.",
        "content": { "text/event-stream": { "schema": { "type": "string" } } },
    });
    let events = operation(
        "streamEvents",
        "Be told what happens",
        &[("200", stream)],
        &["state_unavailable"],
    );
    let after = query("after", "Only events after this one.", &json!({ "type": "integer" }));
    let events = with(events, "parameters", json!([after]));
    let (id, name) = (path("id", "The pool."), path("name", "The worker."));
    Map::from_iter([
        ("/v1/pools".to_owned(), json!({ "get": list })),
        ("/v1/pools/{id}".to_owned(), json!({ "parameters": [id], "get": show })),
        ("/v1/workers".to_owned(), json!({ "get": workers })),
        ("/v1/workers/{name}".to_owned(), json!({ "parameters": [name], "get": worker })),
        (
            "/v1/workers/{name}/{verb}".to_owned(),
            json!({ "parameters": [name, verb], "post": act }),
        ),
        ("/v1/events".to_owned(), json!({ "get": events })),
    ])
}

fn signs() -> Map<String, Value> {
    let text = |description: &str| {
        let schema = json!({ "type": "string" });
        json!({ "description": description, "content": { "text/plain": { "schema": schema } } })
    };
    let alive =
        operation("healthz", "Whether the server is alive", &[("200", text("It is."))], &[]);
    let ready = operation(
        "readyz",
        "Whether every pool was looked at and probed",
        &[("200", text("Yes.")), ("503", text("Not yet."))],
        &[],
    );
    let verbose = query("verbose", "Tells of every pool, as JSON.", &json!({ "type": "string" }));
    let ready = with(ready, "parameters", json!([verbose]));
    let schema = json!({ "type": "string" });
    let content = json!({ "application/openmetrics-text": { "schema": schema } });
    let all = json!({ "description": "OpenMetrics text.", "content": content });
    let metrics = operation("metrics", "What is measured", &[("200", all)], &["state_unavailable"]);
    let own = operation("openapi", "This description", &[("200", object("OpenAPI 3.1."))], &[]);
    Map::from_iter([
        ("/healthz".to_owned(), json!({ "get": alive })),
        ("/readyz".to_owned(), json!({ "get": ready })),
        ("/metrics".to_owned(), json!({ "get": metrics })),
        ("/v1/openapi.json".to_owned(), json!({ "get": own })),
    ])
}
