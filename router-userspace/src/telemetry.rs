//! Logs: one subscriber for the process, made once.

use anyhow::{Context, Result};
use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, Telemetry};

/// Sends log lines to stderr as the flags ask.
///
/// # Errors
/// Where `--log` cannot be read, or a subscriber exists already.
pub fn start(telemetry: &Telemetry) -> Result<()> {
    let filter = EnvFilter::try_new(&telemetry.log)
        .with_context(|| format!("--log {}: not a filter", telemetry.log))?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match telemetry.log_format {
        LogFormat::Text => lines.with_target(false).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("cannot start logging: {error}"))
}
