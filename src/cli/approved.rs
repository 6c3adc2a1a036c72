//! What plans come to, remembered beside the state: so that `apply --expect-digest` can say what is not as it was
//! approved.
//!
//! Nothing depends on it: a digest that is not remembered is compared all the same. Where there is no state, or it may not
//! be written, nothing is remembered.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::context::Context;
use super::error::CliError;
use crate::plan::{Effects, Plan};
use crate::render;

/// How long plans are remembered: longer than a change waits for its review.
const KEPT: Duration = Duration::from_secs(90 * 24 * 3600);

/// Remembers what a plan comes to.
pub(super) fn remember(context: &Context, effects: &Effects) {
    let state = &context.global.state;
    if effects.is_empty() || !state.exists() {
        return;
    }
    let folder = folder(state);
    let write = || -> std::io::Result<()> {
        fs::create_dir_all(&folder)?;
        let path = folder.join(format!("{}.json", effects.digest()));
        // Two plans of the same have the same to say: whoever is last wins.
        let aside = folder.join(format!(".{}.{}", effects.digest(), std::process::id()));
        fs::write(&aside, serde_json::to_vec(effects)?)?;
        fs::rename(aside, path)
    };
    let _remembered = write().is_ok();
    forget(&folder);
}

fn forget(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let age = || entry.metadata().ok()?.modified().ok()?.elapsed().ok();
        if age().is_some_and(|age| age > KEPT) {
            // Somebody else may have been quicker.
            let _is_gone = fs::remove_file(entry.path()).is_ok();
        }
    }
}

fn folder(state: &Path) -> PathBuf {
    state.parent().unwrap_or(Path::new("")).join("plans")
}

/// Makes sure that a plan comes to what was approved.
///
/// # Errors
/// [`CliError::Stale`] with what is different.
pub(super) fn verify(context: &Context, plan: &Plan, expected: &str) -> Result<(), CliError> {
    let now = Effects::of(plan);
    if now.digest() == expected {
        return Ok(());
    }
    let path = folder(&context.global.state).join(format!("{expected}.json"));
    let known = || serde_json::from_slice::<Effects>(&fs::read(path).ok()?).ok();
    let told = match known() {
        Some(approved) => {
            let all = approved.differences(&now);
            all.iter().map(render::difference_text).collect::<Vec<_>>().join("\n")
        }
        None if now.is_empty() => "there is nothing to do any more".to_owned(),
        None => "what was approved is not remembered beside this state; look at the plan of now"
            .to_owned(),
    };
    Err(CliError::Stale(format!(
        "the plan is not the one that was approved: its effects have the digest {} now, not {expected}\n{told}",
        now.digest()
    )))
}

/// Reads a digest.
///
/// # Errors
/// When it cannot be one.
pub(super) fn digest(text: &str) -> Result<String, String> {
    let is_one = text
        .strip_prefix("e1-")
        .is_some_and(|hex| hex.len() == 32 && hex.chars().all(|c| c.is_ascii_hexdigit()));
    if is_one {
        Ok(text.to_owned())
    } else {
        Err("a digest is what `pool plan` prints: e1- and 32 hexadecimal digits".to_owned())
    }
}
