//! The server's log: to standard error, for people or as JSON lines.

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

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
        value_name = "FORMAT"
    )]
    log_format: LogFormat,
    /// What is logged: error, warn, info, debug or trace, or tracing's filters
    #[arg(long, default_value = "info", env = "POOL_LOG", value_name = "FILTER")]
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

/// Begins to log.
pub(super) fn begin(context: &Context, arguments: &LogArgs) -> Result<(), CliError> {
    let filter = EnvFilter::try_new(&arguments.log).map_err(|error| {
        CliError::usage(
            format!("`{}` is not a log filter: {error}", arguments.log),
            "write a level, such as info, or levels by module: pool=debug,hyper=warn",
        )
    })?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let begun = match arguments.log_format {
        LogFormat::Json => log.json().flatten_event(true).try_init(),
        LogFormat::Text => log.with_ansi(context.printer.error_look.colour).try_init(),
    };
    begun.map_err(|error| anyhow::anyhow!("beginning to log: {error}").into())
}
