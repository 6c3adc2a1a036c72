//! From errors to people: one place decides message, hint and exit code.

use std::io;

use super::exit::Exit;
use crate::config::{self, Loaded, Misfit, Report};
use crate::plan::Refusal;
use crate::pool::PoolError;
use crate::render::{self, Look};
use crate::state::StateError;

/// Why a command failed.
#[derive(Debug)]
pub enum CliError {
    /// The config is wrong.
    Config(Report),
    /// Providers do not take what they are asked for.
    Misfits(Vec<Misfit>),
    /// A guard refuses.
    Refused(Vec<Refusal>),
    /// The command line or the surroundings are wrong.
    Usage {
        /// What is wrong.
        message: String,
        /// What to do.
        hint: String,
    },
    /// A plan that was made for another past.
    Stale(String),
    /// Anything else, with its causes.
    Failed(anyhow::Error),
}

impl CliError {
    /// Builds an error of usage with a hint.
    pub fn usage(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Usage { message: message.into(), hint: hint.into() }
    }

    /// Returns the error of a run that began with files: what a provider does not take of them is shown in them.
    #[must_use]
    pub fn shown_in(self, loaded: &Loaded) -> Self {
        match self {
            Self::Misfits(misfits) => {
                Self::Config(config::misfits_report(&misfits, &loaded.warnings.sources))
            }
            other => other,
        }
    }

    /// Returns the exit code.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Config(_) | Self::Misfits(_) | Self::Usage { .. } => Exit::Error,
            Self::Refused(_) => Exit::Refused,
            Self::Stale(_) => Exit::Stale,
            Self::Failed(error) => match state_error(error) {
                Some(StateError::Locked { .. } | StateError::Served { .. }) => Exit::Locked,
                Some(StateError::Moved { .. }) => Exit::Stale,
                _ => Exit::Error,
            },
        }
    }

    /// Returns what is wrong as diagnostics: summary and detail.
    pub fn diagnostics(&self) -> Vec<(String, String)> {
        match self {
            Self::Config(report) => report
                .diagnostics
                .iter()
                .map(|found| {
                    let place = found.location.as_ref().map(|at| report.sources.describe(at));
                    let summary = match place {
                        Some(place) => format!("{place}: {}", found.summary),
                        None => found.summary.clone(),
                    };
                    (summary, found.help.clone().unwrap_or_default())
                })
                .collect(),
            Self::Misfits(misfits) => {
                misfits.iter().map(|misfit| (misfit.to_string(), MISFIT.to_owned())).collect()
            }
            Self::Refused(refusals) => refusals
                .iter()
                .map(|refusal| {
                    (render::refusal_text(refusal), render::refusal_hint(refusal).to_owned())
                })
                .collect(),
            Self::Usage { message, hint } => {
                vec![(message.clone(), hint.clone())]
            }
            Self::Stale(message) => vec![(message.clone(), "make a new plan".to_owned())],
            Self::Failed(error) => {
                vec![(format!("{error:#}"), hint_of(error))]
            }
        }
    }

    /// Says what is wrong, why, and what to do.
    pub fn text(&self, look: Look) -> String {
        let head = |message: &str| format!("{} {message}\n", look.removed("error:"));
        let hint = |hint: &str| format!("{} {hint}\n", look.strong("hint:"));
        match self {
            Self::Config(report) => {
                let text = render::report_text(report, look);
                format!("{text}{}", head(&report.to_string()))
            }
            Self::Misfits(misfits) => {
                let heads: String =
                    misfits.iter().map(|misfit| head(&misfit.to_string())).collect();
                heads + &hint(MISFIT)
            }
            Self::Refused(refusals) => refusals
                .iter()
                .map(|refusal| {
                    head(&render::refusal_text(refusal)) + &hint(render::refusal_hint(refusal))
                })
                .collect(),
            Self::Usage { message, hint: what } => head(message) + &hint(what),
            Self::Stale(message) => head(message) + &hint("make a new plan"),
            Self::Failed(error) => {
                let mut text = head(&error.to_string());
                for cause in error.chain().skip(1) {
                    text.push_str(&format!("caused by: {cause}\n"));
                }
                text + &hint(&hint_of(error))
            }
        }
    }
}

/// Finds the state's error in a chain: it decides the exit code and knows what to do.
fn state_error(error: &anyhow::Error) -> Option<&StateError> {
    error.chain().find_map(|cause| {
        cause.downcast_ref::<StateError>().or(match cause.downcast_ref::<PoolError>() {
            Some(PoolError::State(error)) => Some(error),
            _ => None,
        })
    })
}

/// What to do about what a provider does not take.
const MISFIT: &str =
    "change that in the pool's file; `pool provider describe NAME` says what a provider takes";

/// Says what to do about an error in a chain.
fn hint_of(error: &anyhow::Error) -> String {
    if let Some(hint) = state_error(error).and_then(StateError::hint) {
        return hint;
    }
    let of_providers = |cause: &PoolError| matches!(cause, PoolError::Provider { .. });
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref::<PoolError>());
    if causes.any(of_providers) {
        return "mend what it says, or how the provider is declared (`providers` in your files), and run again".to_owned();
    }
    let kind =
        error.chain().find_map(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind);
    match kind {
        Some(io::ErrorKind::NotFound) => {
            "check how the path is written, and from where it counts (-C)"
        }
        Some(io::ErrorKind::PermissionDenied) => "check who may read and write there",
        Some(io::ErrorKind::StorageFull) => "free some space and run again",
        Some(io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory) => {
            "a file is where a folder is wanted, or the other way round"
        }
        _ => "-v tells what was done until then",
    }
    .to_owned()
}

impl From<Report> for CliError {
    fn from(report: Report) -> Self {
        Self::Config(report)
    }
}

impl From<StateError> for CliError {
    fn from(error: StateError) -> Self {
        Self::Failed(error.into())
    }
}

impl From<PoolError> for CliError {
    fn from(error: PoolError) -> Self {
        match error {
            PoolError::Refused(refusals) => Self::Refused(refusals),
            PoolError::Misfits(misfits) => Self::Misfits(misfits),
            unknown @ PoolError::UnknownProvider(_) => {
                Self::usage(unknown.to_string(), "declare it under `providers` in the files")
            }
            other => Self::Failed(other.into()),
        }
    }
}

impl From<anyhow::Error> for CliError {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}
