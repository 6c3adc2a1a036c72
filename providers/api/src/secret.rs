//! Where a secret is read. Its value is nowhere but where it is used.

use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// Where a secret is read: when planning to hash it, when it is needed to use it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum SecretSource {
    /// An environment variable of `pool` itself.
    FromEnv(String),
    /// A file; one line end at its end is left out.
    FromFile(String),
}

impl fmt::Display for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FromEnv(name) => write!(f, "from_env: {name}"),
            Self::FromFile(path) => write!(f, "from_file: {path}"),
        }
    }
}

impl JsonSchema for SecretSource {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "SecretSource".into()
    }

    fn inline_schema() -> bool {
        true
    }

    // One schema without alternatives: validators then name the very key that is wrong.
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "Where to read a secret: {from_env: NAME} or {from_file: PATH}.",
            "type": "object",
            "properties": {
                "from_env": {
                    "description": "The environment variable of `pool` that holds the secret.",
                    "type": "string",
                    "pattern": "^[A-Za-z_][A-Za-z0-9_]*$",
                    "examples": ["CI_TOKEN"]
                },
                "from_file": {
                    "description": "The file that holds the secret; one line end at its end is left out.",
                    "type": "string",
                    "minLength": 1,
                    "examples": ["/run/secrets/ci-token"]
                }
            },
            "additionalProperties": false,
            "minProperties": 1,
            "maxProperties": 1
        })
    }
}
