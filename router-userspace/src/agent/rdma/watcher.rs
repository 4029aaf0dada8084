//! [`RdmaWatcher`]: samples RDMA on a thread of its own, since a driver's firmware may be slow.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::{info, warn};

use super::report::RdmaReport;
use super::{Activity, Rdma};

/// Interval between two samples while the node has devices.
const SAMPLING_INTERVAL: Duration = Duration::from_millis(25);
/// Interval between two searches while the node has none.
const IDLE_INTERVAL: Duration = Duration::from_secs(5);
/// A scan of the queue pairs may take 1/25 of the time: on some devices each queue pair is a command
/// to the firmware.
const SCAN_COST_DIVISOR: u32 = 25;
/// Bounds of the interval between two scans.
const MIN_SCAN_INTERVAL: Duration = Duration::from_millis(100);
const MAX_SCAN_INTERVAL: Duration = Duration::from_secs(2);

/// State shared by the thread and the agent.
#[derive(Debug, Default)]
struct WatcherState {
    activity: Mutex<Arc<Activity>>,
    report: Mutex<(Option<Instant>, Arc<RdmaReport>)>,
}

/// Owns the thread, which stops when this is dropped.
#[derive(Debug)]
pub(in crate::agent) struct RdmaWatcher {
    shared: Arc<WatcherState>,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl RdmaWatcher {
    /// # Errors
    /// The thread cannot be started.
    pub(in crate::agent) fn start(rdma: Rdma) -> std::io::Result<RdmaWatcher> {
        let shared = Arc::new(WatcherState::default());
        let (stop, stopped) = channel::<()>();
        let for_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("rdma".to_owned()).spawn(move || {
            let mut sampling = SamplingLoop { rdma, start: Instant::now(), missing: Vec::new() };
            let mut wait = Duration::ZERO;
            while stopped.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
                wait = sampling.next(&for_thread);
            }
        })?;
        Ok(RdmaWatcher { shared, stop: Some(stop), thread: Some(thread) })
    }

    /// Passes on what the rest of the agent observed.
    pub(in crate::agent) fn set_activity(&self, activity: Activity) {
        *self.shared.activity.lock() = Arc::new(activity);
    }

    pub(in crate::agent) fn has_devices(&self) -> bool {
        !self.report().0.devices.is_empty()
    }

    /// The last report, and its age.
    pub(in crate::agent) fn report(&self) -> (Arc<RdmaReport>, Duration) {
        let report = self.shared.report.lock();
        (Arc::clone(&report.1), report.0.map(|made_at| made_at.elapsed()).unwrap_or_default())
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
    /// Takes one sample. Returns the time to wait before the next.
    fn next(&mut self, shared: &WatcherState) -> Duration {
        let activity = Arc::clone(&shared.activity.lock());
        let started = Instant::now();
        if self.rdma.sample(started - self.start, &activity) {
            let took = started.elapsed();
            self.rdma.set_scan_interval(
                (took * SCAN_COST_DIVISOR).clamp(MIN_SCAN_INTERVAL, MAX_SCAN_INTERVAL),
            );
        }
        let report = self.rdma.report(self.start.elapsed());
        if report.missing != self.missing {
            let added = report.missing.iter().filter(|reason| !self.missing.contains(reason));
            added.for_each(|reason| warn!(reason, "RDMA measurement is incomplete"));
            let resolved = self.missing.iter().filter(|reason| !report.missing.contains(reason));
            resolved.for_each(|reason| info!(reason, "RDMA measurement is restored"));
            self.missing.clone_from(&report.missing);
        }
        let made_at = Some(Instant::now());
        *shared.report.lock() = (made_at, Arc::new(report));
        if self.rdma.has_devices() { SAMPLING_INTERVAL } else { IDLE_INTERVAL }
    }
}
