//! From errors to people: one place decides message, hint and exit code.

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
        hint: Option<String>,
    },
    /// A plan that was made for another past.
    Stale(String),
    /// Anything else, with its causes.
    Failed(anyhow::Error),
}

impl CliError {
    /// Builds an error of usage with a hint.
    pub fn usage(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Usage { message: message.into(), hint: Some(hint.into()) }
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
                misfits.iter().map(|misfit| (misfit.to_string(), String::new())).collect()
            }
            Self::Refused(refusals) => refusals
                .iter()
                .map(|refusal| {
                    (render::refusal_text(refusal), render::refusal_hint(refusal).to_owned())
                })
                .collect(),
            Self::Usage { message, hint } => {
                vec![(message.clone(), hint.clone().unwrap_or_default())]
            }
            Self::Stale(message) => vec![(message.clone(), "make a new plan".to_owned())],
            Self::Failed(error) => {
                let hint = hint_of(error).unwrap_or_default();
                vec![(format!("{error:#}"), hint)]
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
                misfits.iter().map(|misfit| head(&misfit.to_string())).collect()
            }
            Self::Refused(refusals) => refusals
                .iter()
                .map(|refusal| {
                    head(&render::refusal_text(refusal)) + &hint(render::refusal_hint(refusal))
                })
                .collect(),
            Self::Usage { message, hint: what } => {
                head(message) + &what.as_deref().map(hint).unwrap_or_default()
            }
            Self::Stale(message) => head(message) + &hint("make a new plan"),
            Self::Failed(error) => {
                let mut text = head(&error.to_string());
                for cause in error.chain().skip(1) {
                    text.push_str(&format!("caused by: {cause}\n"));
                }
                text + &hint_of(error).map(|what| hint(&what)).unwrap_or_default()
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

/// Says what to do about an error in a chain.
fn hint_of(error: &anyhow::Error) -> Option<String> {
    let is_providers = |cause: &PoolError| matches!(cause, PoolError::Provider { .. });
    let again = || {
        let causes = error.chain().filter_map(|cause| cause.downcast_ref::<PoolError>());
        let what = "mend it, or how it is declared, and run again";
        causes.into_iter().any(is_providers).then(|| what.to_owned())
    };
    state_error(error).and_then(StateError::hint).or_else(again)
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
