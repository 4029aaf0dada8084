//! Signals that end a process, and some that do not.

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Returns a token that the first SIGTERM or SIGINT cancels. A second signal ends the process at
/// once with status 130. SIGHUP, SIGUSR1, SIGUSR2 and SIGALRM have no effect: manifests, certificates and
/// tokens are read again when they change, and by default each of these signals would end the process and
/// cut every stream.
///
/// # Errors
/// A signal handler cannot be installed.
pub fn on_signal() -> Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    let shutdown = CancellationToken::new();
    let cancelled = shutdown.clone();
    // Not awaited: these tasks end with the process.
    for (kind, name) in [
        (SignalKind::hangup(), "SIGHUP"),
        (SignalKind::user_defined1(), "SIGUSR1"),
        (SignalKind::user_defined2(), "SIGUSR2"),
        (SignalKind::alarm(), "SIGALRM"),
    ] {
        let mut ignored = signal(kind).context(name)?;
        tokio::spawn(async move {
            while ignored.recv().await.is_some() {
                tracing::info!("{name} ignored: changed files are reloaded without a signal");
            }
        });
    }
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
