//! Builds the real world, runs the command line, returns the exit code.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;

use console::Term;
use pool::cli::{self, World};
use pool::clock::{Clock, Entropy};

/// The hidden first argument that turns this program into the local provider's launcher step.
const LAUNCH: &str = "__launch-worker";

/// The hidden first argument that turns this program into the step that runs an executable of an `exec` provider.
const WARD: &str = "__run-provider";

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    if arguments.get(1).is_some_and(|first| first == LAUNCH) {
        return pool_local::launch::run();
    }
    if arguments.get(1).is_some_and(|first| first == WARD) {
        return pool_exec::warden::run();
    }
    let mut environment = BTreeMap::new();
    let mut unreadable = Vec::new();
    for (name, value) in std::env::vars_os() {
        let Ok(name) = name.into_string() else { continue };
        match value.into_string() {
            Ok(value) => drop(environment.insert(name, value)),
            Err(_) => unreadable.push(name),
        }
    }
    // Not by its path: a server outlives an upgrade of the file, and its steps have to be of its own version.
    let own = PathBuf::from("/proc/self/exe");
    let program = if own.exists() { own } else { std::env::current_exe().unwrap_or_default() };
    let world = World {
        launcher: (program.clone(), vec![LAUNCH.to_owned()]),
        warden: (program, vec![WARD.to_owned()]),
        arguments,
        environment,
        unreadable,
        stdin_is_terminal: std::io::stdin().is_terminal(),
        stdout_is_terminal: std::io::stdout().is_terminal(),
        stderr_is_terminal: std::io::stderr().is_terminal(),
        width: columns(&Term::stdout()),
        error_width: columns(&Term::stderr()),
        clock: Clock::system(),
        entropy: Entropy::system(),
    };
    cli::run(world).into()
}

fn columns(terminal: &Term) -> Option<usize> {
    terminal.size_checked().map(|(_, columns)| usize::from(columns))
}
