//! Logs: one subscriber for the process, whose lines a thread of its own writes to stderr.

use std::io::{self, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, Telemetry};

/// Maximum number of log lines that wait to be written. Further lines are dropped and counted: a
/// reader of stderr that has stopped, or a full disk, costs log lines and no request.
const MAX_WAITING_LINES: usize = 16_384;

static DROPPED_LINES: OnceLock<ErrorCounter> = OnceLock::new();
static FAILED_WRITES: AtomicU64 = AtomicU64::new(0);
static PANICS: AtomicU64 = AtomicU64::new(0);

/// Starts logging to stderr with the filter and the format of the flags. Lines that wait are written
/// when the guard is dropped, for at most a second.
///
/// # Errors
/// `--log` is not a filter, or the process logs already.
pub fn start(telemetry: &Telemetry) -> Result<WorkerGuard> {
    let filter = EnvFilter::try_new(&telemetry.log)
        .with_context(|| format!("--log {}: not a filter", telemetry.log))?;
    let (writer, guard) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(MAX_WAITING_LINES)
        .thread_name("log")
        .finish(Stderr);
    let dropped = writer.error_counter();
    // Without this, fmt reports a failed write with `eprintln!`, which panics as stderr failed.
    let lines = tracing_subscriber::fmt().log_internal_errors(false);
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
