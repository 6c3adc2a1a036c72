//! Saved plans: JSON, private to their user, without any secret, recognised by their content.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use super::error::CliError;
use crate::plan::Plan;

const FORMAT: &str = "pool-plan";

/// What tells a plan file from a config.
#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    format: String,
    plan: T,
}

/// Only the version, so that a newer plan is refused for being newer.
#[derive(Deserialize)]
struct Versioned {
    format_version: String,
}

pub(super) fn write(path: &Path, plan: &Plan) -> Result<(), CliError> {
    let envelope = Envelope { format: FORMAT.to_owned(), plan };
    let text = serde_json::to_vec_pretty(&envelope).context("writing the plan")?;
    let write = || -> std::io::Result<()> {
        // Removed first: an existing file would keep its own, perhaps wider, permissions.
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(&text)?;
        file.sync_all()
    };
    Ok(write().with_context(|| format!("writing the plan file {}", path.display()))?)
}

/// Reads the file as a plan; `None` when it is something else.
pub(super) fn read(path: &Path) -> Result<Option<Plan>, CliError> {
    let Ok(text) = std::fs::read(path) else { return Ok(None) };
    let is_plan = serde_json::from_slice::<Envelope<serde::de::IgnoredAny>>(&text)
        .is_ok_and(|envelope| envelope.format == FORMAT);
    if !is_plan {
        return Ok(None);
    }
    let broken = |error: serde_json::Error| {
        CliError::usage(
            format!("the plan file {} is damaged: {error}", path.display()),
            "make a new plan",
        )
    };
    let versioned: Envelope<Versioned> = serde_json::from_slice(&text).map_err(broken)?;
    let version = versioned.plan.format_version;
    if !version.starts_with("1.") {
        return Err(CliError::usage(
            format!("the plan file {} has format {version}, this pool reads 1.x", path.display()),
            "use the version of pool that made it, or make a new plan",
        ));
    }
    let envelope: Envelope<Plan> = serde_json::from_slice(&text).map_err(broken)?;
    Ok(Some(envelope.plan))
}
