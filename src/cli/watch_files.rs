//! Hears of config files that change: from the file system, and from SIGHUP.
//!
//! Folders are watched, not files: editors, git and Kubernetes put another file in a file's place.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

use super::error::CliError;

/// What is watched for as long as this is there.
pub(super) struct WatchedFiles {
    _watcher: RecommendedWatcher,
}

/// Watches what `paths` name; `changed` is told when something there changes, and at SIGHUP.
pub(super) fn watch(paths: &[PathBuf], changed: &Arc<Notify>) -> Result<WatchedFiles, CliError> {
    let mut folders: BTreeSet<PathBuf> = BTreeSet::new();
    let mut names: BTreeSet<OsString> = BTreeSet::new();
    let mut whole: BTreeSet<PathBuf> = BTreeSet::new();
    for path in paths {
        if path == Path::new("-") {
            return Err(CliError::usage(
                "standard input cannot be followed",
                "name files or folders, or apply it with `pool apply -` and serve the state",
            ));
        }
        let path = path.canonicalize().with_context(|| format!("finding {}", path.display()))?;
        if path.is_dir() {
            whole.insert(path.clone());
            folders.insert(path);
        } else {
            names.extend(path.file_name().map(OsString::from));
            folders.extend(path.parent().map(Path::to_owned));
        }
    }
    let tell = Arc::clone(changed);
    let matters = move |path: &PathBuf| {
        let named = path.file_name().is_some_and(|name| names.contains(name));
        let kinds = ["yaml", "yml", "json"];
        let kind = path.extension().and_then(|kind| kind.to_str());
        let inside = path.parent().is_some_and(|folder| whole.contains(folder));
        // Kubernetes moves a link of this name when it changes mounted files.
        let moved = path.file_name().is_some_and(|name| name == "..data");
        named || moved || (inside && kind.is_some_and(|kind| kinds.contains(&kind)))
    };
    let told = move |event: notify::Result<Event>| match event {
        Ok(event) if event.kind.is_access() => {}
        Ok(event) if event.paths.iter().any(&matters) => tell.notify_one(),
        Ok(_) => {}
        Err(error) => {
            tracing::warn!(%error, "changes of files may go unseen; SIGHUP has them read");
        }
    };
    let mut watcher = notify::recommended_watcher(told).context("watching files")?;
    for folder in folders {
        watcher
            .watch(&folder, RecursiveMode::NonRecursive)
            .with_context(|| format!("watching {}", folder.display()))?;
    }
    let mut hang_up = signal(SignalKind::hangup()).context("listening for SIGHUP")?;
    let tell = Arc::clone(changed);
    tokio::spawn(async move {
        while hang_up.recv().await.is_some() {
            tracing::info!("SIGHUP: reading the files again");
            tell.notify_one();
        }
    });
    Ok(WatchedFiles { _watcher: watcher })
}
