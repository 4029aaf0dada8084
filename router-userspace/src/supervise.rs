//! What happens when a background task panics: it restarts, or the process drains and ends.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;

/// Time between a panic of a task and its next start.
const RESTART_DELAY: Duration = Duration::from_secs(1);

/// Watches the tasks that the process cannot serve without.
#[derive(Clone, Debug)]
pub(crate) struct Supervisor {
    shutdown: CancellationToken,
    failed: Arc<OnceLock<&'static str>>,
}

impl Supervisor {
    /// A panic of an essential task cancels `shutdown`, so that the process drains and ends.
    pub(crate) fn new(shutdown: CancellationToken) -> Supervisor {
        Supervisor { shutdown, failed: Arc::default() }
    }

    /// Runs a task that cannot start a second time. When it panics, the process drains and ends.
    pub(crate) async fn essential(self, task: &'static str, run: impl Future<Output = ()>) {
        if let Err(panic) = AssertUnwindSafe(run).catch_unwind().await {
            let reason = reason(&*panic);
            tracing::error!(task, reason, "essential task panicked, draining to end the process");
            _ = self.failed.set(task);
            self.shutdown.cancel();
        }
    }

    /// Names the essential task that panicked.
    pub(crate) fn failed(&self) -> Option<&'static str> {
        self.failed.get().copied()
    }
}

/// Runs the task that `start` makes, and a new one a second after each panic, until one returns.
pub(crate) async fn restarted<F: Future<Output = ()>>(
    task: &'static str,
    mut start: impl FnMut() -> F,
) {
    while let Err(panic) = AssertUnwindSafe(start()).catch_unwind().await {
        tracing::error!(task, reason = reason(&*panic), "task panicked, restarting");
        tokio::time::sleep(RESTART_DELAY).await;
    }
}

fn reason(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("not a text")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_essential_task_that_panics_cancels_the_process() {
        let shutdown = CancellationToken::new();
        let supervisor = Supervisor::new(shutdown.clone());
        supervisor.clone().essential("quiet", async {}).await;
        assert!(!shutdown.is_cancelled() && supervisor.failed().is_none());
        supervisor.clone().essential("loud", async { panic!("on purpose") }).await;
        assert!(shutdown.is_cancelled());
        assert_eq!(supervisor.failed(), Some("loud"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_restarts_after_each_panic_until_it_returns() {
        let mut starts = 0;
        restarted("probe", || {
            starts += 1;
            let panics = starts < 3;
            async move { assert!(!panics, "on purpose") }
        })
        .await;
        assert_eq!(starts, 3);
    }
}
