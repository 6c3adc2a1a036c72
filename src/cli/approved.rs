//! What plans come to, remembered beside the state: so that `apply --expect-digest` can say what is not as it was
//! approved.
//!
//! Nothing depends on it: a digest that is not remembered is compared all the same. Where there is no state, or it may not
//! be written, nothing is remembered.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::context::Context;
use super::error::CliError;
use crate::plan::{Effects, Plan};
use crate::render;

/// How long plans are remembered: longer than a change waits for its review.
const KEPT: Duration = Duration::from_secs(90 * 24 * 3600);

/// Returns what a plan comes to that is made in this folder.
pub(super) fn effects(plan: &Plan) -> Effects {
    let here = std::env::current_dir().unwrap_or_default();
    Effects::of(plan, &here)
}

/// Remembers what a plan comes to.
pub(super) fn remember(context: &Context, effects: &Effects) {
    let state = &context.global.state;
    if effects.is_empty() || !state.exists() {
        return;
    }
    let folder = folder(state);
    let write = || -> std::io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        let path = folder.join(format!("{}.json", effects.digest()));
        // Two plans of the same have the same to say: whoever is last wins.
        let aside = folder.join(format!(".{}.{}", effects.digest(), std::process::id()));
        let mut file =
            OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&aside)?;
        file.write_all(&serde_json::to_vec(effects)?)?;
        fs::rename(aside, path)
    };
    let _remembered = write().is_ok();
    forget(&folder);
}

fn forget(folder: &Path) {
    // The folder may be one of the user's, with files of theirs in it.
    let is_ours = |name: &str| {
        let bare = name.trim_start_matches('.').split('.').next().unwrap_or_default();
        digest(bare).is_ok()
    };
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name().to_str().is_some_and(is_ours)) {
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
    let now = effects(plan);
    if now.digest() == expected {
        return Ok(());
    }
    let path = folder(&context.global.state).join(format!("{expected}.json"));
    let known = || serde_json::from_slice::<Effects>(&fs::read(path).ok()?).ok();
    let told = match known() {
        Some(approved) => {
            let all = approved.differences(&now);
            let all = all.iter().map(render::difference_text).collect::<Vec<_>>().join("\n");
            if all.is_empty() { "  another version of pool made it".to_owned() } else { all }
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
    let is_one = text.strip_prefix("e1-").is_some_and(|hex| {
        hex.len() == 32 && hex.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'))
    });
    if is_one {
        Ok(text.to_owned())
    } else {
        Err("a digest is what `pool plan` prints: e1- and 32 digits of 0-9 and a-f".to_owned())
    }
}
