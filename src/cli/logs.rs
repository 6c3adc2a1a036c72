//! What is logged: a server's work always, any other command's when somebody asks (`-v`, `POOL_LOG`). To standard
//! error, for people or as JSON lines.

use clap::{Args, ValueEnum};
use tracing::Level;
use tracing_subscriber::filter::{FilterExt as _, filter_fn};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

use super::context::Context;
use super::error::CliError;

#[derive(Debug, Args)]
pub(super) struct LogArgs {
    /// How log lines look
    #[arg(
        long,
        value_enum,
        default_value = "text",
        env = "POOL_LOG_FORMAT",
        hide_env_values = true,
        value_name = "FORMAT"
    )]
    log_format: LogFormat,
    /// What is logged: error, warn, info, debug or trace, or tracing's filters
    #[arg(
        long,
        default_value = "info",
        env = "POOL_LOG",
        hide_env_values = true,
        value_name = "FILTER"
    )]
    log: String,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

/// Begins a server's log: what `--log` says, or more when that was asked for.
pub(super) fn begin(context: &Context, arguments: &LogArgs) -> Result<(), CliError> {
    let filter = match context.global.verbose {
        0 => arguments.log.clone(),
        times => more(times).to_owned(),
    };
    start(context, &filter, arguments.log_format)
}

/// Tells what any other command does, when somebody asks for it.
pub(super) fn tell(context: &Context) -> Result<(), CliError> {
    let set = |name: &str| context.world.environment.get(name).filter(|value| !value.is_empty());
    let filter = match (context.global.verbose, set("POOL_LOG")) {
        (0, None) => return Ok(()),
        (0, Some(_)) if context.global.quiet => return Ok(()),
        (0, Some(filter)) => filter.clone(),
        (times, _) => more(times).to_owned(),
    };
    let format = match set("POOL_LOG_FORMAT") {
        None => LogFormat::Text,
        Some(format) => LogFormat::from_str(format, true).map_err(|_| {
            CliError::usage(
                format!("POOL_LOG_FORMAT cannot be `{format}`"),
                "write text or json, or unset it",
            )
        })?,
    };
    start(context, &filter, format)
}

/// Ours first; what the libraries below have to say last.
fn more(times: u8) -> &'static str {
    match times {
        1 => "info,pool=debug,pool_provider=debug",
        2 => "debug,pool=trace,pool_provider=trace",
        _ => "trace",
    }
}

fn start(context: &Context, filter: &str, format: LogFormat) -> Result<(), CliError> {
    let filter = EnvFilter::try_new(filter).map_err(|error| {
        CliError::usage(
            format!("`{filter}` is not a log filter: {error}"),
            "write a level, such as info, or levels by module: pool=debug,hyper=warn",
        )
    })?;
    let printer = context.printer.clone();
    // At this level AWS's crates tell requests and answers whole, credentials included.
    let is_safe =
        filter_fn(|told| *told.level() != Level::TRACE || !told.target().starts_with("aws_"));
    let filter = filter.and(is_safe);
    let log = tracing_subscriber::fmt::layer().with_writer(printer);
    let log = match format {
        LogFormat::Json => log.json().flatten_event(true).with_filter(filter).boxed(),
        LogFormat::Text => {
            log.with_ansi(context.printer.error_look.colour).with_filter(filter).boxed()
        }
    };
    let begun = tracing_subscriber::registry().with(log).try_init();
    begun.map_err(|error| anyhow::anyhow!("beginning to log: {error}").into())
}
