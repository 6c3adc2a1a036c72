//! In which formats a command tells what it found, and where to: `--format json --format markdown=plan.md`.

use std::ffi::OsStr;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::ValueEnum;
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};

use super::error::CliError;
use super::output::Printer;

/// A format, and the file that it is written to; without one, standard output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted<F> {
    pub(super) format: F,
    pub(super) file: Option<PathBuf>,
}

/// Reads `FORMAT` or `FORMAT=FILE`.
///
/// # Errors
/// When the format is not known.
pub(super) fn wanted<F: ValueEnum>(text: &str) -> Result<Wanted<F>, String> {
    let (name, file) = match text.split_once('=') {
        Some((_, "")) => return Err("there is no file after the `=`".to_owned()),
        Some((name, file)) => (name, Some(PathBuf::from(file))),
        None => (text, None),
    };
    let format = F::from_str(name, false).map_err(|_| {
        let known = F::value_variants().iter().filter_map(ValueEnum::to_possible_value);
        let known: Vec<String> = known.map(|value| value.get_name().to_owned()).collect();
        format!("the formats are: {}; each may be written to a file: {name}=FILE", known.join(", "))
    })?;
    Ok(Wanted { format, file })
}

/// Completes the formats' names.
pub(super) fn completer<F: ValueEnum + Send + Sync + 'static>() -> ArgValueCompleter {
    ArgValueCompleter::new(|typed: &OsStr| {
        let typed = typed.to_str().unwrap_or_default();
        let known = F::value_variants().iter().filter_map(ValueEnum::to_possible_value);
        let names = known.map(|value| value.get_name().to_owned());
        names.filter(|name| name.starts_with(typed)).map(CompletionCandidate::new).collect()
    })
}

/// Returns what is wanted: `plain` on standard output unless something else is to be there.
///
/// # Errors
/// When two formats are to be on standard output, where nobody could tell them apart, or in one file.
pub(super) fn settled<F: Copy + PartialEq>(
    asked: &[Wanted<F>],
    (json, is_json): (F, bool),
    plain: F,
) -> Result<Vec<Wanted<F>>, CliError> {
    let mut all = asked.to_vec();
    if is_json {
        all.push(Wanted { format: json, file: None });
    }
    for (number, wanted) in all.iter().enumerate() {
        let file = wanted
            .file
            .as_ref()
            .filter(|file| all[..number].iter().any(|one| one.file.as_ref() == Some(*file)));
        if let Some(file) = file {
            return Err(CliError::usage(
                format!("two formats cannot both be written to {}", file.display()),
                "give each a file of its own",
            ));
        }
    }
    match all.iter().filter(|wanted| wanted.file.is_none()).count() {
        0 => all.insert(0, Wanted { format: plain, file: None }),
        1 => {}
        _ => {
            return Err(CliError::usage(
                "two formats cannot both be written to standard output",
                "write one of them to a file: --format json=plan.json",
            ));
        }
    }
    Ok(all)
}

/// Writes a text where it is wanted.
pub(super) fn write<F>(printer: &Printer, wanted: &Wanted<F>, text: &str) -> Result<(), CliError> {
    if let Some(file) = &wanted.file {
        std::fs::write(file, text).with_context(|| format!("writing {}", file.display()))?;
    } else {
        printer.data(text);
    }
    Ok(())
}
