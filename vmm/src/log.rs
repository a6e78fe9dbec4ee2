//! The log: one line an event, with the time since start.

use anyhow::{Context, Result};
use std::fs::File;
use std::path::Path;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::time::uptime;

/// Starts logging to `path`, or to standard error. `verbosity` 0 is warnings, 1 information, 2 debugging, 3
/// everything.
///
/// # Errors
/// When the file cannot be made.
pub fn start(path: Option<&Path>, verbosity: u8) -> Result<()> {
    let level = match verbosity {
        0 => LevelFilter::WARN,
        1 => LevelFilter::INFO,
        2 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    // A log that cannot be written is lost. The default is to say so on standard error, which panics if that is what
    // cannot be written: no guest may end the machine by having something logged.
    let format = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_timer(uptime())
        .with_ansi(false)
        .log_internal_errors(false);
    match path {
        Some(path) => {
            let file = File::options().create(true).append(true).open(path);
            let file = file.with_context(|| format!("--log-file {}", path.display()))?;
            format.with_writer(file).init();
        }
        None => format.with_writer(std::io::stderr).init(),
    }
    Ok(())
}
