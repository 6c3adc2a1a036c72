//! The command tree as it is parsed and shown: with examples, on one screen, and what every command takes told once.
//!
//! `-h` and `--help` say the same, so that nobody has to know of two. The options of every command are in `pool
//! --help` alone, as Terraform has it.

use std::collections::BTreeMap;
use std::ffi::OsString;

use clap::builder::Resettable;
use clap::{Arg, ArgAction, CommandFactory as _};

use super::Cli;
use super::args::GLOBAL;
use super::exit::Exit;

/// Under which command stands what people do most with it.
const EXAMPLES: [(&str, &str); 28] = [
    (
        "pool",
        "pool plan pools/
pool apply pools/
pool serve
pool lease run --pool ci-linux -- make test",
    ),
    (
        "pool validate",
        "pool validate pools/
pool validate pools/ --format sarif=pool.sarif",
    ),
    (
        "pool plan",
        "pool plan pools/
pool plan pools/ --out next.plan
pool plan pools/ --format markdown=comment.md --detailed-exitcode
pool plan pools/ --target 'ci-linux[3]'",
    ),
    (
        "pool apply",
        "pool apply pools/
pool apply next.plan
pool apply pools/ --require-state --expect-digest \"$DIGEST\"",
    ),
    (
        "pool destroy",
        "pool destroy pools/old.yaml
pool destroy --auto-approve",
    ),
    (
        "pool show",
        "pool show next.plan
pool show next.plan --format markdown",
    ),
    (
        "pool status",
        "pool status
pool status ci-linux --watch
pool status --check",
    ),
    (
        "pool serve",
        "pool serve
pool serve pools/ --listen 127.0.0.1:7070 --log-format json",
    ),
    ("pool lease", "pool lease run --pool ci-linux -- make test"),
    (
        "pool lease acquire",
        "pool lease acquire --pool ci-linux --wait 5m
pool lease acquire --label os=linux --min-memory-mb 2048 --json",
    ),
    ("pool lease renew", "pool lease renew 1042-9c3b51d0 --ttl 30m"),
    ("pool lease list", "pool lease list --pool ci-linux"),
    ("pool lease release", "pool lease release 1042-9c3b51d0 --outcome infra_failed"),
    (
        "pool lease run",
        "pool lease run --pool ci-linux -- make test
pool lease run --label os=linux --wait 1h -- ./test-on-worker.sh",
    ),
    (
        "pool worker",
        "pool worker drain ci-linux-3-1
pool worker replace ci-linux-3-1 ci-linux-4-1",
    ),
    ("pool provider", "pool provider list pools/"),
    ("pool provider list", "pool provider list pools/"),
    ("pool provider describe", "pool provider describe docker"),
    ("pool provider test", "pool provider test docker pools/ --pool ci-linux"),
    ("pool state", "pool state show 'ci-linux[3]'"),
    (
        "pool state list",
        "pool state list
pool state list 'ci-linux[3]' --json",
    ),
    (
        "pool state show",
        "pool state show 'ci-linux[3]'
pool state show ci-linux-3-1 --json",
    ),
    ("pool state export", "pool state export > state.json"),
    (
        "pool config",
        "pool config pools/
POOL__CI_LINUX__FIXED_SIZE=8 pool config pools/",
    ),
    (
        "pool schema",
        "pool schema > pool.schema.json
pool schema --editor vscode",
    ),
    (
        "pool completions",
        "source <(pool completions bash)
source <(pool completions zsh)
pool completions fish > ~/.config/fish/completions/pool.fish",
    ),
    (
        "pool man",
        "pool man | man -l -
pool man ~/.local/share/man/man1",
    ),
    ("pool version", "pool version --json"),
];

/// Returns the command tree as it is parsed: its help is what people read on a screen. A variable that is set to
/// nothing, as builds do with what they do not know, is as one that is not set.
pub(super) fn command(environment: &BTreeMap<String, String>) -> clap::Command {
    let codes = Exit::MEANINGS.map(|(code, meaning)| {
        let short = meaning.split([';', '(']).next().unwrap_or_default().trim_end();
        format!("{code} {short}")
    });
    let mut tree = dressed(Cli::command(), "pool", &format!("Exit codes: {}.", codes.join(", ")));
    // Built first: only then have the commands what is taken by all of them, and it can be hidden there.
    tree.build();
    without_empty(tree.mut_subcommands(without_globals), environment)
}

fn without_empty(command: clap::Command, environment: &BTreeMap<String, String>) -> clap::Command {
    let is_empty = |name: &str| environment.get(name).is_some_and(String::is_empty);
    command
        .mut_args(|arg| {
            let name = arg.get_env().and_then(|name| name.to_str());
            if name.is_some_and(is_empty) { arg.env(Resettable::Reset) } else { arg }
        })
        .mut_subcommands(|inner| without_empty(inner, environment))
}

/// Returns the command tree with all that there is to say, for manual pages and completions.
pub(super) fn whole() -> clap::Command {
    let codes = Exit::MEANINGS.map(|(code, meaning)| format!("  {code:<4} {meaning}\n"));
    dressed(Cli::command(), "pool", &format!("Exit codes:\n{}", codes.concat()))
}

/// Gives a command and all below it their examples, and one help for `-h` and `--help`.
fn dressed(command: clap::Command, path: &str, end: &str) -> clap::Command {
    let help = Arg::new("help")
        .short('h')
        .long("help")
        .action(ArgAction::HelpShort)
        .help("Print help")
        .display_order(1000);
    let mut after: Vec<String> = command.get_positionals().filter_map(meanings).collect();
    if let Some((_, examples)) = EXAMPLES.iter().find(|(of, _)| *of == path) {
        after.push(indented("Examples", examples.lines()));
    }
    after.push(end.to_owned());
    command.disable_help_flag(true).arg(help).after_help(after.join("\n\n")).mut_subcommands(
        |inner| {
            let path = format!("{path} {}", inner.get_name());
            dressed(inner, &path, "What every command takes, such as -C and --state: pool --help")
        },
    )
}

/// What the words mean that may stand in an argument's place.
fn meanings(arg: &Arg) -> Option<String> {
    let words = arg.get_possible_values();
    let told = words.iter().filter_map(|word| Some((word.get_name(), word.get_help()?)));
    let lines: Vec<String> = told.map(|(name, help)| format!("{name:<12} {help}")).collect();
    let heading = arg.get_value_names()?.first()?.to_string();
    (!lines.is_empty()).then(|| indented(&heading, lines.iter().map(String::as_str)))
}

fn indented<'a>(heading: &str, lines: impl Iterator<Item = &'a str>) -> String {
    lines.fold(format!("{heading}:"), |text, line| format!("{text}\n  {line}"))
}

fn without_globals(command: clap::Command) -> clap::Command {
    command
        .mut_args(|arg| {
            let is_global = arg.get_help_heading() == Some(GLOBAL);
            if is_global { arg.hide(true) } else { arg }
        })
        .mut_subcommands(without_globals)
}

/// `pool help plan` is `pool plan --help`.
pub(super) fn asked_by_word(mut arguments: Vec<OsString>) -> Vec<OsString> {
    if arguments.get(1).is_some_and(|first| first == "help") {
        arguments.remove(1);
        arguments.push("--help".into());
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As many lines and columns as help may have.
    const SCREEN: (usize, usize) = (45, 80);

    fn each(
        command: &mut clap::Command,
        path: &str,
        see: &mut impl FnMut(&str, &mut clap::Command),
    ) {
        see(path, command);
        let names: Vec<String> =
            command.get_subcommands().map(|c| c.get_name().to_owned()).collect();
        for name in names {
            let inner = command.find_subcommand_mut(&name).unwrap();
            each(inner, &format!("{path} {name}"), see);
        }
    }

    #[test]
    fn every_help_fits_on_a_screen_and_has_examples() {
        let mut tree = command(&BTreeMap::new());
        each(&mut tree, "pool", &mut |path, command| {
            if path.split(' ').any(|word| word == "help") {
                return;
            }
            let text = command.clone().term_width(SCREEN.1).render_help().to_string();
            let size = (text.lines().count(), text.lines().map(str::len).max().unwrap());
            assert!(size.0 <= SCREEN.0 && size.1 <= SCREEN.1, "{path}: {size:?}\n{text}");
            assert!(text.contains("Examples:"), "{path}\n{text}");
            assert!(text.is_ascii(), "{path}\n{text}");
        });
    }

    #[test]
    fn every_example_is_a_command_line_that_is_understood() {
        for (of, examples) in EXAMPLES {
            for line in examples.lines() {
                let shown = line.split(['|', '>']).next().unwrap().trim();
                let shown = shown.trim_start_matches("source <(").trim_end_matches(')');
                let words = shown.split_whitespace().skip_while(|word| word.contains('='));
                let unquoted = words.map(|word| word.trim_matches(['\'', '"']));
                let unquoted = unquoted
                    .map(|word| word.replace("$DIGEST", "e1-0123456789abcdef0123456789abcdef"));
                let words: Vec<OsString> = unquoted.map(Into::into).collect();
                assert_eq!(words[0], "pool", "{line}");
                let told = command(&BTreeMap::new()).try_get_matches_from(&words);
                assert!(told.is_ok(), "{of}: {line}: {}", told.unwrap_err());
            }
        }
    }

    #[test]
    fn what_every_command_takes_is_told_once_and_taken_everywhere() {
        let mut tree = command(&BTreeMap::new());
        assert!(tree.render_help().to_string().contains("--require-state"));
        let plan = tree.find_subcommand_mut("plan").unwrap();
        assert!(!plan.render_help().to_string().contains("--require-state"));
        assert!(
            command(&BTreeMap::new())
                .try_get_matches_from(["pool", "plan", "x", "--require-state"])
                .is_ok()
        );
    }
}
