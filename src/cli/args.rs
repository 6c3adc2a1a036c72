//! The flags that several commands share, and Terraform's habit of one dash before long flags.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::FalseyValueParser;
use clap::{ArgAction, Args, ValueEnum};

use crate::config::HumanDuration;
use crate::worker::Address;

/// The heading of what every command takes.
pub(super) const GLOBAL: &str = "Global";

/// Where the state is unless somebody says otherwise.
pub(super) const STATE: &str = ".pool/state.db";

/// Where the state is, and how output looks.
#[derive(Debug, Clone, Args)]
pub(super) struct GlobalArgs {
    /// Change to this folder first
    #[arg(short = 'C', long = "chdir", global = true, value_name = "DIR", help_heading = GLOBAL)]
    pub chdir: Option<PathBuf>,
    /// The state
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "POOL_STATE",
        hide_env_values = true,
        default_value = STATE,
        help_heading = GLOBAL
    )]
    pub state: PathBuf,
    /// Refuse to start a fresh state
    #[arg(
        long,
        global = true,
        env = "POOL_REQUIRE_STATE",
        hide_env_values = true,
        value_parser = FalseyValueParser::new(),
        help_heading = GLOBAL
    )]
    pub require_state: bool,
    /// When to use colour: auto, always or never
    #[arg(long, global = true, value_enum, default_value = "auto", hide_default_value = true, hide_possible_values = true, help_heading = GLOBAL)]
    pub color: Colour,
    /// The same as --color never
    #[arg(long, global = true, help_heading = GLOBAL)]
    pub no_color: bool,
    /// Print errors and data only
    #[arg(short, long, global = true, help_heading = GLOBAL)]
    pub quiet: bool,
    /// Tell what is done meanwhile; -vv tells more
    #[arg(short, long, global = true, action = ArgAction::Count, conflicts_with = "quiet", help_heading = GLOBAL)]
    pub verbose: u8,
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
    /// Ask the providers what exists (the default), or with =false believe the record
    #[arg(
        long,
        default_value_t = true,
        default_missing_value = "true",
        num_args = 0..=1,
        require_equals = true,
        action = ArgAction::Set,
        value_name = "BOOL",
        hide_default_value = true,
        hide_possible_values = true
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
    /// Lift a guard for this run: max_destroy; may be repeated
    #[arg(long, value_name = "GUARD", value_parser = ["max_destroy"], hide_possible_values = true)]
    pub override_guard: Vec<String>,
}

/// How a plan is carried out.
#[derive(Debug, Clone, Args)]
pub(super) struct ApplyingArgs {
    /// Do not ask for approval
    #[arg(long)]
    pub auto_approve: bool,
    /// Approve the plan with this digest; exit with 3 when it would do anything else
    #[arg(long, value_name = "DIGEST", value_parser = super::approved::digest)]
    pub expect_digest: Option<String>,
    /// How long to wait for pools that somebody else works on
    #[arg(long, value_name = "DURATION", default_value = "60s")]
    pub lock_timeout: HumanDuration,
    /// How many provider calls may be under way at once [default: 100]
    #[arg(long, value_name = "N", default_value_t = 100, hide_default_value = true, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub parallelism: u32,
    /// Print events as JSON lines, with Terraform's names
    #[arg(long)]
    pub json: bool,
}

/// Gives every long flag that has one dash its second one, as Terraform's users write them.
pub(super) fn with_two_dashes(arguments: Vec<OsString>, tree: &clap::Command) -> Vec<OsString> {
    let mut known = Vec::new();
    collect(tree, &mut known);
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
            // One letter again and again is a flag that is given several times: -vvv.
            let is_repeated = name.chars().all(|c| name.starts_with(c));
            let is_word = name.len() > 2
                && !is_repeated
                && name.chars().all(|c| c.is_ascii_lowercase() || c == '-');
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
