//! Logs: one subscriber for the process, whose lines a thread of its own writes to stderr.

use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;

use crate::config::{self, LogFormat, Telemetry};

/// Maximum number of log lines that wait to be written. Further lines are dropped and counted: a
/// reader of stderr that has stopped, or a full disk, costs log lines and no request.
const MAX_WAITING_LINES: usize = 16_384;

/// The directive for the Kubernetes client. `--log` may name another level for it.
const QUIET: &str = "kube_client=error";

static DROPPED_LINES: OnceLock<ErrorCounter> = OnceLock::new();
static FAILED_WRITES: AtomicU64 = AtomicU64::new(0);
static PANICS: AtomicU64 = AtomicU64::new(0);

/// Starts logging to stderr with the filter and the format of the flags. Lines that wait are written
/// when the guard is dropped, for at most a second.
///
/// # Errors
/// `--log` is not a filter, or the process logs already.
pub fn start(telemetry: &Telemetry) -> Result<WorkerGuard> {
    let filter = filter(&telemetry.log)?;
    let (writer, guard) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(MAX_WAITING_LINES)
        .thread_name("log")
        .finish(Stderr);
    let dropped = writer.error_counter();
    // Without this, fmt reports a failed write with `eprintln!`, which panics as stderr failed.
    let lines = tracing_subscriber::fmt().log_internal_errors(false).with_ansi(is_coloured());
    let lines = lines.with_env_filter(filter).with_writer(writer);
    let started = match telemetry.log_format {
        LogFormat::Text => lines.with_target(false).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("cannot start logging: {error}"))?;
    _ = DROPPED_LINES.set(dropped);
    log_panics();
    Ok(guard)
}

/// Whether lines are coloured: for people, not for files and pipes (no-color.org).
fn is_coloured() -> bool {
    io::stderr().is_terminal() && !config::refuses_colour()
}

/// Reads `--log`: levels, and levels of modules. A bare word that is no level would be taken for a
/// module of that name, and all other events would be dropped.
fn filter(directives: &str) -> Result<EnvFilter> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let is_level = |word: &str| LEVELS.contains(&word.to_ascii_lowercase().as_str());
    let parts: Vec<&str> = directives.split(',').map(str::trim).collect();
    for directive in &parts {
        if !is_level(directive) && !directive.contains(['=', '[']) {
            bail!(
                "--log {directives}: `{directive}` is neither a level ({}) nor MODULE=LEVEL, such as \
                 pd_router=debug",
                LEVELS.join(", ")
            );
        }
    }
    // The client warns at every look-up of a kind that is not installed. All its errors are returned
    // to the caller, which logs them.
    let parts = [&[QUIET][..], &parts].concat();
    EnvFilter::try_new(parts.join(",")).with_context(|| format!("--log {directives}: not a filter"))
}

/// Number of log lines since the start that were not written, because too many waited or stderr
/// failed.
#[must_use]
pub fn lost_lines() -> u64 {
    let dropped = DROPPED_LINES.get().map_or(0, |counter| counter.dropped_lines() as u64);
    dropped + FAILED_WRITES.load(Ordering::Relaxed)
}

/// Number of panics since the start.
#[must_use]
pub fn panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

/// Logs a panic as an event instead of writing it to stderr, where a full pipe would block its thread.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        let at = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(at, reason = panic.payload_as_str().unwrap_or("not a text"), "panic");
    }));
}

/// stderr, which counts the lines that it cannot take.
struct Stderr;

impl Write for Stderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if io::stderr().write_all(line).is_err() {
            FAILED_WRITES.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directive_that_names_nothing_is_refused() {
        for accepted in ["info", "WARN", "info,pd_router=debug", "off, pd_router::gateway=trace"] {
            assert!(filter(accepted).is_ok(), "{accepted}");
        }
        for refused in ["", "verbose", "pd_router", "info,", "info,pd_router=loud"] {
            let error = filter(refused).expect_err(refused).to_string();
            assert!(error.starts_with("--log "), "{error}");
        }
    }
}
