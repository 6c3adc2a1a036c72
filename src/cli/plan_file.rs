//! Saved plans: JSON, private to their user, without any secret, recognised by their content.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
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

/// Returns whether the file is a saved plan; one that was cut short is still meant to be one.
pub(super) fn is_one(path: &Path) -> bool {
    // Reading a pipe would take from whoever reads it next.
    if !std::fs::metadata(path).is_ok_and(|found| found.is_file()) {
        return false;
    }
    let mut head = [0; 64];
    let read = File::open(path).and_then(|mut file| file.read(&mut head));
    let head = String::from_utf8_lossy(&head[..read.unwrap_or(0)]).into_owned();
    let bare: String = head.chars().filter(|c| !c.is_whitespace()).collect();
    bare.starts_with(&format!("{{\"format\":\"{FORMAT}\""))
}

/// Reads the file as a plan; `None` when it is something else.
pub(super) fn read(path: &Path) -> Result<Option<Plan>, CliError> {
    if !is_one(path) {
        return Ok(None);
    }
    let text = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
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
