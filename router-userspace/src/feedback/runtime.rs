//! [`FeedbackRuntime`]: the thread that reads the streams of all agents, many frames per wake-up.
//!
//! A hundred agents send thousands of small frames a second. A wake-up costs more than reading a
//! frame, so the thread sleeps for a moment and then reads everything that arrived.

use std::io;
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Time for which frames gather before they are read; they get older by at most this much. An
/// agent's tick takes 10 ms, and a change must be visible to the scheduler within 15 ms.
const BATCH_INTERVAL: Duration = Duration::from_millis(2);

/// A runtime of one thread, which ends when this is dropped or stopped.
pub(super) struct FeedbackRuntime {
    handle: Handle,
    _end: DropGuard,
}

impl FeedbackRuntime {
    /// # Errors
    /// The thread or the runtime cannot be started.
    pub(super) fn start(stop: &CancellationToken) -> io::Result<FeedbackRuntime> {
        // A blocking sleep is safe: nothing else runs on this thread.
        let runtime = Builder::new_current_thread()
            .enable_all()
            .on_thread_park(|| thread::sleep(BATCH_INTERVAL))
            .build()?;
        let (handle, stop) = (runtime.handle().clone(), stop.child_token());
        let stopped = stop.clone();
        thread::Builder::new()
            .name("feedback".to_owned())
            .spawn(move || runtime.block_on(stopped.cancelled()))?;
        Ok(FeedbackRuntime { handle, _end: stop.drop_guard() })
    }

    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }
}
