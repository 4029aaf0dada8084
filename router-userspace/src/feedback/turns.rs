//! [`Turns`]: the thread that reads the streams of all agents, many frames at each waking.
//!
//! A hundred agents send thousands of small frames a second. To wake for each of them costs more
//! than to read it: what is sent within a moment is read at once.

use std::io;
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::{CancellationToken, DropGuard};

/// How long frames gather before they are read: by so much, at most, they are older then. What is to be in
/// the view within 15 ms is a tick of 10 ms old already.
const MOMENT: Duration = Duration::from_millis(2);

/// A runtime of one thread, which ends when this is dropped or stopped.
pub(super) struct Turns {
    handle: Handle,
    _end: DropGuard,
}

impl Turns {
    /// # Errors
    /// Where no thread or no runtime can be started.
    pub(super) fn start(stop: &CancellationToken) -> io::Result<Turns> {
        // It sleeps in earnest, on a thread where nothing else runs.
        let runtime = Builder::new_current_thread()
            .enable_all()
            .on_thread_park(|| thread::sleep(MOMENT))
            .build()?;
        let (handle, stop) = (runtime.handle().clone(), stop.child_token());
        let stopped = stop.clone();
        thread::Builder::new()
            .name("feedback".to_owned())
            .spawn(move || runtime.block_on(stopped.cancelled()))?;
        Ok(Turns { handle, _end: stop.drop_guard() })
    }

    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }
}
