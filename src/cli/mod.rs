//! The command line: one file a command, each with its flags and its steps.
//!
//! A command gathers inputs, calls the rooms below and hands the result to `render`; it decides nothing
//! that another door would have to decide again. Exit codes are [`Exit`]; errors become text in
//! `error`; output leaves through `output`.

mod apply;
mod approved;
mod args;
mod client;
mod completions;
mod config;
mod context;
mod error;
mod exit;
mod formats;
mod help;
mod interrupt;
mod lease;
mod lease_run;
mod logs;
mod man;
mod output;
mod plan;
mod plan_file;
mod plan_formats;
mod progress;
mod provider;
mod schema;
mod serve;
mod show;
mod state;
mod status;
mod validate;
mod version;
mod watch_files;
mod worker;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::{FromArgMatches as _, Parser, Subcommand};

pub use error::CliError;
pub use exit::Exit;

use self::args::{Colour, GlobalArgs};
use self::context::Context;
use self::interrupt::Interrupt;
use self::output::Printer;
use crate::clock::{Clock, Entropy};
use crate::render::{self, Look};

/// Everything outside, read once.
#[derive(Debug, Clone)]
pub struct World {
    /// The command line, the program's name first.
    pub arguments: Vec<OsString>,
    /// The environment.
    pub environment: BTreeMap<String, String>,
    /// Variables whose values are no text.
    pub unreadable: Vec<String>,
    /// Whether a person can answer.
    pub stdin_is_terminal: bool,
    /// Whether a person reads data.
    pub stdout_is_terminal: bool,
    /// Whether a person reads messages.
    pub stderr_is_terminal: bool,
    /// The columns of the terminal that data goes to.
    pub width: Option<usize>,
    /// The columns of the terminal that messages go to.
    pub error_width: Option<usize>,
    /// Tells the time.
    pub clock: Clock,
    /// Gives random bytes.
    pub entropy: Entropy,
    /// The program and arguments of the local provider's launcher step.
    pub launcher: (PathBuf, Vec<String>),
    /// The program and arguments of the step that runs an `exec` provider's executable.
    pub warden: (PathBuf, Vec<String>),
}

/// Keeps a fixed number of workers ready, as YAML or JSON files say.
#[derive(Debug, Parser)]
#[command(name = "pool", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: GlobalArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check config files, and report everything that is wrong at once
    Validate(validate::Arguments),
    /// Show what apply would do; changes nothing
    Plan(plan::Arguments),
    /// Make everything as the files say
    Apply(apply::Arguments),
    /// Delete the files' pools, or all recorded ones
    Destroy(apply::DestroyArguments),
    /// Show a saved plan; needs neither state nor providers
    Show(show::Arguments),
    /// Show the pools as they are recorded
    Status(status::Arguments),
    /// Lease ready workers to jobs over HTTP, and heal what breaks
    Serve(serve::Arguments),
    /// Lease workers from a server
    Lease(lease::Arguments),
    /// Decide about single workers, at a server
    Worker(worker::Arguments),
    /// List, describe and test what workers come from
    Provider(provider::Arguments),
    /// Look into the state
    State(state::Arguments),
    /// Show the pools with all defaults, and where each value came from
    Config(config::Arguments),
    /// Print the JSON Schema of config files
    Schema(schema::Arguments),
    /// Print completions for a shell
    Completions(completions::Arguments),
    /// Print the manual page, or write those of all commands
    Man(man::Arguments),
    /// Print the version
    Version(version::Arguments),
}

impl Command {
    /// Whether the command takes care of signals itself.
    fn handles_signals(&self) -> bool {
        match self {
            Self::Serve(_) => true,
            Self::Lease(arguments) => arguments.handles_signals(),
            Self::Provider(arguments) => arguments.handles_signals(),
            Self::Status(arguments) => arguments.handles_signals(),
            _ => false,
        }
    }

    /// Whether errors are wanted as event lines too, beside what people read.
    fn wants_json(&self) -> bool {
        match self {
            Self::Apply(arguments) => arguments.wants_json(),
            Self::Destroy(arguments) => arguments.wants_json(),
            _ => false,
        }
    }
}

/// Runs the command line.
pub fn run(mut world: World) -> Exit {
    if let Some(exit) = completions::answer(&world) {
        return exit;
    }
    let tree = help::command(&world.environment);
    let arguments = help::asked_by_word(std::mem::take(&mut world.arguments));
    let arguments = args::with_two_dashes(arguments, &tree);
    world.arguments.clone_from(&arguments);
    let parsed = tree.try_get_matches_from(arguments);
    let cli = match parsed.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) => return usage(&error, &world),
    };
    let printer = printer(&cli.global, &world);
    let json = cli.command.wants_json();
    let clock = world.clock.clone();
    let outcome = start(world, cli, printer.clone());
    printer.end_bar();
    let exit = outcome.unwrap_or_else(|error| {
        if json {
            let lines = render::diagnostic_events(&error.diagnostics(), clock.now());
            for line in lines {
                printer.json_line(&line);
            }
        }
        printer.error(&error.text(printer.error_look));
        error.exit()
    });
    match printer.failure() {
        Some(why) => {
            printer.error(&format!("error: writing the output: {why}\n"));
            Exit::Error
        }
        None => exit,
    }
}

/// clap's own exit code for wrong usage is 2, which means "changes" here.
fn usage(error: &clap::Error, world: &World) -> Exit {
    let colour = coloured(Colour::Auto, world, world.stderr_is_terminal);
    let text = if colour { error.render().ansi().to_string() } else { error.render().to_string() };
    let look = Look { colour, width: world.error_width.unwrap_or(80) };
    let printer = Printer::new(look, look, false);
    if error.use_stderr() {
        printer.error(&text);
        Exit::Error
    } else {
        printer.data(&text);
        Exit::Done
    }
}

fn start(world: World, cli: Cli, printer: Printer) -> Result<Exit, CliError> {
    let messages = printer.clone();
    if let Some(name) =
        world.unreadable.iter().find(|name| name.to_uppercase().starts_with("POOL__"))
    {
        return Err(CliError::usage(
            format!("the value of the variable {name} is not UTF-8"),
            "set it again in UTF-8, or unset it: it would override what files say",
        ));
    }
    if let Some(folder) = &cli.global.chdir {
        std::env::set_current_dir(folder)
            .with_context(|| format!("changing to the folder {}", folder.display()))?;
    }
    let context = Context { world, global: cli.global, printer };
    if !matches!(cli.command, Command::Serve(_)) {
        logs::tell(&context)?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let outcome = runtime.block_on(async {
        if cli.command.handles_signals() {
            return dispatch(&context, cli.command).await;
        }
        let mut interrupt = Interrupt::listen()?;
        // Dropping a run is safe at any moment: what is in flight is recorded, and found next time.
        tokio::select! {
            outcome = dispatch(&context, cli.command) => return outcome,
            () = interrupt.asked() => {}
        }
        messages.end_bar();
        messages.error("interrupted; run again to go on from here\n");
        Ok(Exit::Interrupted)
    });
    runtime.shutdown_background();
    outcome
}

async fn dispatch(context: &Context, command: Command) -> Result<Exit, CliError> {
    match command {
        Command::Validate(arguments) => validate::run(context, &arguments).await,
        Command::Plan(arguments) => plan::run(context, &arguments).await,
        Command::Apply(arguments) => apply::run(context, &arguments).await,
        Command::Destroy(arguments) => apply::destroy(context, &arguments).await,
        Command::Show(arguments) => show::run(context, &arguments),
        Command::Status(arguments) => status::run(context, &arguments).await,
        Command::Serve(arguments) => serve::run(context, &arguments).await,
        Command::Lease(arguments) => lease::run(context, &arguments).await,
        Command::Worker(arguments) => worker::run(context, &arguments).await,
        Command::Provider(arguments) => provider::run(context, &arguments).await,
        Command::State(arguments) => state::run(context, &arguments).await,
        Command::Config(arguments) => config::run(context, &arguments).await,
        Command::Schema(arguments) => Ok(schema::run(context, &arguments)),
        Command::Completions(arguments) => completions::run(context, &arguments),
        Command::Man(arguments) => man::run(context, &arguments),
        Command::Version(arguments) => Ok(version::run(context, &arguments)),
    }
}

fn printer(global: &GlobalArgs, world: &World) -> Printer {
    let wanted = if global.no_color { Colour::Never } else { global.color };
    let look = |is_terminal, width: Option<usize>| Look {
        colour: coloured(wanted, world, is_terminal),
        width: width.unwrap_or(100),
    };
    let look_of_data = look(world.stdout_is_terminal, world.width);
    Printer::new(look_of_data, look(world.stderr_is_terminal, world.error_width), global.quiet)
}

/// Flag, then NO_COLOR (no-color.org), then CLICOLOR_FORCE, then the terminal.
fn coloured(wanted: Colour, world: &World, is_terminal: bool) -> bool {
    let set = |name: &str| world.environment.get(name).is_some_and(|value| !value.is_empty());
    match wanted {
        Colour::Always => true,
        Colour::Never => false,
        Colour::Auto if set("NO_COLOR") => false,
        Colour::Auto if world.environment.get("CLICOLOR_FORCE").is_some_and(|v| v != "0") => true,
        Colour::Auto => is_terminal && world.environment.get("TERM").is_none_or(|t| t != "dumb"),
    }
}
