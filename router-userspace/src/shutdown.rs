//! Signals that end a process, and one that does not.

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Returns a token that the first SIGTERM or SIGINT cancels. A second signal ends the process at
/// once with status 130. SIGHUP has no effect: manifests, certificates and tokens are read again when
/// they change, and by default the signal would end the process and cut every stream.
///
/// # Errors
/// A signal handler cannot be installed.
pub fn on_signal() -> Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    let mut hangup = signal(SignalKind::hangup()).context("SIGHUP")?;
    let shutdown = CancellationToken::new();
    let cancelled = shutdown.clone();
    // Not awaited: these tasks end with the process.
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            tracing::info!("SIGHUP ignored: changed files are reloaded without a signal");
        }
    });
    tokio::spawn(async move {
        for status in [None, Some(130)] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            cancelled.cancel();
            if let Some(status) = status {
                std::process::exit(status);
            }
        }
    });
    Ok(shutdown)
}
