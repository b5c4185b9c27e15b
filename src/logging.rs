//! Log output of a running node: standard error, for people or for programs.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::settings::{LogFormat, LogSettings};

/// Reads a level ("info") or a filter per module ("info,starling_net=debug").
///
/// # Errors
/// What is wrong with it.
pub fn filter(level: &str) -> Result<EnvFilter, String> {
    EnvFilter::try_new(level).map_err(|error| {
        format!(
            "{level:?} is neither error, warn, info, debug, trace nor a list like \"info,starling_net=debug\": {error}"
        )
    })
}

/// Sends everything the crates log to standard error. Later calls in the same process change nothing.
///
/// # Errors
/// A malformed level.
pub fn start(settings: &LogSettings) -> Result<(), String> {
    let filter = filter(&settings.level)?;
    let ansi = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(ansi);
    // A second start (tests, the demo) keeps the first one's output.
    let _ = match settings.format {
        LogFormat::Text => lines.with_target(false).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    Ok(())
}
