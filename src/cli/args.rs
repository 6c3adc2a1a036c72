//! The flags that several commands share, and Terraform's habit of one dash before long flags.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::FalseyValueParser;
use clap::{ArgAction, Args, CommandFactory, ValueEnum};

use crate::config::HumanDuration;
use crate::worker::Address;

/// Where the state is, and how output looks.
#[derive(Debug, Clone, Args)]
pub(super) struct GlobalArgs {
    /// Change to this folder first
    #[arg(short = 'C', long = "chdir", global = true, value_name = "DIR", help_heading = "Global")]
    pub chdir: Option<PathBuf>,
    /// The state's database
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "POOL_STATE",
        default_value = ".pool/state.db",
        help_heading = "Global"
    )]
    pub state: PathBuf,
    /// Refuse to start a fresh state: a pipeline on a throw-away machine would build a second fleet
    #[arg(
        long,
        global = true,
        env = "POOL_REQUIRE_STATE",
        value_parser = FalseyValueParser::new(),
        help_heading = "Global"
    )]
    pub require_state: bool,
    /// When to use colour
    #[arg(long, global = true, value_enum, default_value = "auto", help_heading = "Global")]
    pub color: Colour,
    /// The same as --color never
    #[arg(long, global = true, help_heading = "Global")]
    pub no_color: bool,
    /// Print errors and data only
    #[arg(short, long, global = true, help_heading = "Global")]
    pub quiet: bool,
}

/// When to use colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Colour {
    /// On a terminal, unless NO_COLOR is set
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// What a plan is narrowed or widened by.
#[derive(Debug, Clone, Args)]
pub(super) struct PlanningArgs {
    /// Ask the providers what exists; with false, take what is recorded for real
    #[arg(
        long,
        default_value_t = true,
        default_missing_value = "true",
        num_args = 0..=1,
        require_equals = true,
        action = ArgAction::Set,
        value_name = "BOOL"
    )]
    pub refresh: bool,
    /// Only this pool or slot: `ci-linux`, `ci-linux[3]`; may be repeated
    #[arg(long, value_name = "ADDR")]
    pub target: Vec<Address>,
    /// Replace this pool's or slot's workers, changed or not; may be repeated
    #[arg(long, value_name = "ADDR")]
    pub replace: Vec<Address>,
    /// Let an empty set of files delete every recorded pool
    #[arg(long)]
    pub allow_empty: bool,
    /// Lift a guard for this run; may be repeated
    #[arg(long, value_name = "GUARD", value_parser = ["max_destroy"])]
    pub override_guard: Vec<String>,
}

/// How a plan is carried out.
#[derive(Debug, Clone, Args)]
pub(super) struct ApplyingArgs {
    /// Do not ask for approval
    #[arg(long)]
    pub auto_approve: bool,
    /// Go on without asking when the effects are those of the plan with this digest, and exit with 3 when not
    #[arg(long, value_name = "DIGEST", value_parser = super::approved::digest)]
    pub expect_digest: Option<String>,
    /// How long to wait for pools that somebody else works on
    #[arg(long, value_name = "DURATION", default_value = "60s")]
    pub lock_timeout: HumanDuration,
    /// How many provider calls may be under way in all pools together
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub parallelism: u32,
    /// Print events as JSON lines, with Terraform's names
    #[arg(long)]
    pub json: bool,
}

/// Gives every long flag that has one dash its second one, as Terraform's users write them.
pub(super) fn with_two_dashes<C: CommandFactory>(arguments: Vec<OsString>) -> Vec<OsString> {
    let mut known = Vec::new();
    collect(&C::command(), &mut known);
    let mut literal = false;
    arguments
        .into_iter()
        .map(|argument| {
            literal |= argument == "--";
            let Some(text) = argument.to_str().filter(|_| !literal) else { return argument };
            let Some(rest) = text.strip_prefix('-').filter(|rest| !rest.starts_with('-')) else {
                return argument;
            };
            let name = rest.split('=').next().unwrap_or_default();
            // Three letters or more were meant as a word, known or not: the message is about the word then.
            let is_word =
                name.len() > 2 && name.chars().all(|c| c.is_ascii_lowercase() || c == '-');
            let is_known = known.iter().any(|long| long == name);
            if is_known || is_word { format!("-{text}").into() } else { argument }
        })
        .collect()
}

fn collect(command: &clap::Command, known: &mut Vec<String>) {
    known.extend(command.get_arguments().filter_map(|a| a.get_long()).map(str::to_owned));
    known.extend(["help".to_owned(), "version".to_owned()]);
    for inner in command.get_subcommands() {
        collect(inner, known);
    }
}
