//! The thread that asks for RDMA: a driver's firmware may take its time, and nothing else waits.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::{info, warn};

use super::report::RdmaReport;
use super::{Activity, Rdma};

/// Between two rounds while there are devices, and while there are none.
const ROUND: Duration = Duration::from_millis(25);
const LOOKOUT: Duration = Duration::from_secs(5);
/// Looking at queue pairs may take one part in this many of the time, within these bounds: on some
/// devices each of them is a command to the firmware.
const PART: u32 = 25;
const LOOKS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// What the thread and the agent share.
#[derive(Debug, Default)]
struct WatcherState {
    activity: Mutex<Arc<Activity>>,
    report: Mutex<(Option<Instant>, Arc<RdmaReport>)>,
}

/// Owns the thread; it ends with this.
#[derive(Debug)]
pub(in crate::agent) struct RdmaWatcher {
    shared: Arc<WatcherState>,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl RdmaWatcher {
    /// # Errors
    /// No thread can be had.
    pub(in crate::agent) fn start(rdma: Rdma) -> std::io::Result<RdmaWatcher> {
        let shared = Arc::new(WatcherState::default());
        let (stop, stopped) = channel::<()>();
        let for_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("rdma".to_owned()).spawn(move || {
            let mut rounds = SamplingLoop { rdma, start: Instant::now(), missing: Vec::new() };
            let mut wait = Duration::ZERO;
            while stopped.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
                wait = rounds.next(&for_thread);
            }
        })?;
        Ok(RdmaWatcher { shared, stop: Some(stop), thread: Some(thread) })
    }

    /// Tells what the rest of the agent saw.
    pub(in crate::agent) fn tell(&self, activity: Activity) {
        *self.shared.activity.lock() = Arc::new(activity);
    }

    pub(in crate::agent) fn has_devices(&self) -> bool {
        !self.report().0.devices.is_empty()
    }

    /// What is known, and how long ago that was.
    pub(in crate::agent) fn report(&self) -> (Arc<RdmaReport>, Duration) {
        let report = self.shared.report.lock();
        (Arc::clone(&report.1), report.0.map(|made| made.elapsed()).unwrap_or_default())
    }
}

impl Drop for RdmaWatcher {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            _ = thread.join();
        }
    }
}

struct SamplingLoop {
    rdma: Rdma,
    start: Instant,
    missing: Vec<String>,
}

impl SamplingLoop {
    /// One round; how long to wait for the next.
    fn next(&mut self, shared: &WatcherState) -> Duration {
        let activity = Arc::clone(&shared.activity.lock());
        let begun = Instant::now();
        if self.rdma.round(begun - self.start, &activity) {
            let took = begun.elapsed();
            self.rdma.look_every((took * PART).clamp(LOOKS.0, LOOKS.1));
        }
        let report = self.rdma.report(self.start.elapsed());
        if report.missing != self.missing {
            let news = report.missing.iter().filter(|line| !self.missing.contains(line));
            news.for_each(|line| warn!("{line}"));
            let healed = self.missing.iter().filter(|line| !report.missing.contains(line));
            healed.for_each(|line| info!(was = line, "no longer so"));
            self.missing.clone_from(&report.missing);
        }
        let made = Some(Instant::now());
        *shared.report.lock() = (made, Arc::new(report));
        if self.rdma.has_devices() { ROUND } else { LOOKOUT }
    }
}
