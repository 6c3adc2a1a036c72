//! `pool completions`, and the completing itself: a shell calls this program with what was typed so far.
//!
//! That way completions know the state: pools, slots, workers, leases. They are asked for by the variable
//! `POOL_COMPLETE`, which the script of `pool completions` sets.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};
use clap_complete::env::{Bash, Elvish, EnvCompleter, Fish, Powershell, Zsh};

use super::context::Context;
use super::error::CliError;
use super::exit::Exit;
use super::output::Printer;
use super::{World, help};
use crate::config::ProviderConfig;
use crate::state::{self, Name, NamesOf};

/// Set by the scripts: which shell asks.
const ASKED: &str = "POOL_COMPLETE";

/// More slots than this are offered once their pool is typed only.
const FEW: usize = 100;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// A shell that completes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
    Elvish,
    #[value(name = "powershell")]
    Pwsh,
}

impl Shell {
    fn completer(self) -> &'static dyn EnvCompleter {
        match self {
            Self::Bash => &Bash,
            Self::Zsh => &Zsh,
            Self::Fish => &Fish,
            Self::Elvish => &Elvish,
            Self::Pwsh => &Powershell,
        }
    }
}

pub(super) fn run(context: &Context, arguments: &Arguments) -> Result<Exit, CliError> {
    let program = called_as(&context.world.arguments).context("finding this program")?;
    let mut script = Vec::new();
    arguments
        .shell
        .completer()
        .write_registration(ASKED, "pool", "pool", &program, &mut script)
        .context("writing the script")?;
    let script = String::from_utf8_lossy(&script).into_owned();
    context.printer.data(&match arguments.shell {
        Shell::Bash => without_globbing(&script),
        _ => script,
    });
    Ok(Exit::Done)
}

/// Answers are taken as they are: `ci[0]` is a slot, though a file is called `ci0`.
fn without_globbing(script: &str) -> String {
    let guard = "    if [[ \"${BASH_VERSINFO[0]}${BASH_VERSINFO[1]}\" -ge 44 ]]; then local - && set -o noglob; fi";
    script.replacen("    local IFS=", &format!("{guard}\n    local IFS="), 1)
}

/// Returns how this program is called again: by its name when it was found by that, else by its whole path.
fn called_as(arguments: &[OsString]) -> std::io::Result<String> {
    let called = Path::new(arguments.first().map_or(OsStr::new("pool"), OsString::as_os_str));
    let whole =
        if called.components().count() > 1 { called.canonicalize()? } else { called.into() };
    Ok(whole.to_string_lossy().into_owned())
}

/// Answers a shell that completes; `None` when nobody asks.
pub(super) fn answer(world: &World) -> Option<Exit> {
    let shell = world.environment.get(ASKED).filter(|asked| !asked.is_empty())?;
    let printer = Printer::plain();
    let Ok(shell) = Shell::from_str(shell, true) else {
        printer.error(&format!(
            "error: {ASKED} names no shell that is known here: {shell}\n\
             hint: leave it unset; `pool completions --help` names the shells\n"
        ));
        return Some(Exit::Error);
    };
    let words = world.arguments.iter().skip_while(|word| *word != "--").skip(1);
    let typed: Vec<OsString> = words.cloned().collect();
    let place = Place::of(&typed, world);
    let mut tree = with_names(help::whole(), &place);
    let mut answer = Vec::new();
    let folder = place.folder.as_deref();
    match shell.completer().write_complete(&mut tree, typed, folder, &mut answer) {
        Ok(()) => {
            printer.data(&String::from_utf8_lossy(&answer));
            Some(Exit::Done)
        }
        Err(_) => Some(Exit::Error),
    }
}

/// Where the state is, as far as it is typed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    folder: Option<PathBuf>,
    state: PathBuf,
}

impl Place {
    fn of(typed: &[OsString], world: &World) -> Self {
        // What stands behind `--` is a job's own.
        let own = typed.iter().take_while(|word| *word != "--");
        let words: Vec<&str> = own.filter_map(|word| word.to_str()).collect();
        let value = |names: &[&str]| {
            let place = words.iter().rposition(|word| {
                let name = word.split('=').next().unwrap_or_default();
                names.contains(&name)
            })?;
            match words[place].split_once('=') {
                Some((_, value)) => Some(value.to_owned()),
                // bash takes `=` for a word of its own.
                None => {
                    words[place + 1..].iter().find(|word| **word != "=").map(|v| (*v).to_owned())
                }
            }
        };
        let folder = value(&["-C", "--chdir", "-chdir"]).map(PathBuf::from);
        let recorded = value(&["--state", "-state"])
            .or_else(|| world.environment.get("POOL_STATE").cloned())
            .unwrap_or_else(|| super::args::STATE.to_owned());
        let state = folder.clone().unwrap_or_default().join(recorded);
        Self { folder: folder.or_else(|| std::env::current_dir().ok()), state }
    }

    fn names(&self, of: NamesOf, typed: &str) -> Vec<Name> {
        state::names(&self.state, of, typed)
    }

    fn addresses(&self, typed: &str) -> Vec<Name> {
        let mut found = self.names(NamesOf::Pools, typed);
        let slots = self.names(NamesOf::Slots, typed);
        if typed.contains('[') || slots.len() <= FEW {
            found.extend(slots);
        }
        found
    }

    fn providers(&self, typed: &str) -> Vec<Name> {
        let mut found = self.names(NamesOf::Providers, typed);
        let known: BTreeSet<String> = found.iter().map(|name| name.name.clone()).collect();
        let own = ProviderConfig::implicit_names().into_iter();
        let own = own.filter(|own| own.starts_with(typed) && !known.contains(*own));
        found.extend(own.map(|own| Name { name: own.to_owned(), what: String::new() }));
        found
    }
}

/// Has every argument that takes a name of the state be completed by it.
fn with_names(command: clap::Command, place: &Place) -> clap::Command {
    command
        .mut_args(|arg| {
            let value =
                arg.get_value_names().and_then(|names| names.first()).map(ToString::to_string);
            let look: fn(&Place, &str) -> Vec<Name> = match value.as_deref() {
                Some("POOL") => |place, typed| place.names(NamesOf::Pools, typed),
                Some("ADDR") => Place::addresses,
                Some("WORKER") => |place, typed| place.names(NamesOf::Workers, typed),
                Some("ADDR|WORKER") => |place, typed| {
                    let mut found = place.names(NamesOf::Slots, typed);
                    found.extend(place.names(NamesOf::Workers, typed));
                    found
                },
                Some("LEASE") => |place, typed| place.names(NamesOf::Leases, typed),
                Some("PROVIDER") => Place::providers,
                _ => return arg,
            };
            let place = place.clone();
            arg.add(ArgValueCompleter::new(move |typed: &OsStr| {
                let Some(typed) = typed.to_str() else { return Vec::new() };
                // zsh tells it as it stands in the line, quoted.
                let typed = typed.replace(['\\', '\'', '"'], "");
                look(&place, &typed).into_iter().map(candidate).collect()
            }))
        })
        .mut_subcommands(|inner| with_names(inner, place))
}

fn candidate(name: Name) -> CompletionCandidate {
    let what = Some(name.what).filter(|what| !what.is_empty());
    CompletionCandidate::new(name.name).help(what.map(Into::into))
}
