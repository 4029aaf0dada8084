//! The handle that tests use: start, stop, kill, freeze, restart and inspect an engine.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use crate::config::Config;
use crate::recorder::{Abort, KvTraffic, Received};
use crate::script::Script;
use crate::supervisor::Supervisor;

/// A running engine. Dropping it kills it.
pub struct Engine {
    supervisor: Arc<Supervisor>,
}

/// How many requests are in each state, now and at the peak, over all ranks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Occupancy {
    pub running: usize,
    pub running_peak: usize,
    pub queued: usize,
    pub queued_peak: usize,
    /// Prefill: waiting for a decode.
    pub bootstrap: usize,
    /// Decode: waiting for a prefill's registry or for KV tokens.
    pub prealloc: usize,
    /// Decode: waiting for KV.
    pub transfer: usize,
    pub tokens: usize,
    pub tokens_peak: usize,
    /// Legs that have not ended, in any state.
    pub legs: usize,
    /// HTTP requests in progress.
    pub http: usize,
}

impl Engine {
    /// Binds all listeners and serves on the current runtime.
    ///
    /// # Errors
    /// An address cannot be bound.
    pub async fn start(config: Config) -> io::Result<Engine> {
        Ok(Engine { supervisor: Supervisor::start(config).await? })
    }

    /// The HTTP address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.supervisor.address
    }

    /// The address of the bootstrap server; only a prefill has one.
    #[must_use]
    pub fn bootstrap_address(&self) -> Option<SocketAddr> {
        self.supervisor.bootstrap
    }

    /// The data port of a decode, until the next restart.
    #[must_use]
    pub fn data_address(&self) -> Option<SocketAddr> {
        self.supervisor.process().data
    }

    #[must_use]
    pub fn config(&self) -> &Config {
        &self.supervisor.config
    }

    /// `http://address`, for clients.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.supervisor.address)
    }

    /// Adds a script. Scripts that were added before take precedence.
    pub fn script(&self, script: Script) {
        self.supervisor.scripts.add(script);
    }

    pub fn clear_scripts(&self) {
        self.supervisor.scripts.clear();
    }

    /// Shuts down cleanly: listeners and connections are closed without resets.
    pub async fn stop(self) {
        let process = self.supervisor.process();
        process.end();
        process.tasks_finished().await;
    }

    /// Ends as by SIGKILL. The ports are free when it returns.
    pub async fn kill(&self) {
        let process = self.supervisor.process();
        process.kill();
        process.tasks_finished().await;
    }

    /// Kills the engine if it runs and starts it again on the same addresses. Records survive, all
    /// other state is lost.
    ///
    /// # Errors
    /// Another process has taken a port.
    pub async fn restart(&self) -> io::Result<()> {
        self.kill().await;
        self.supervisor.restart(Duration::ZERO).await
    }

    /// Stops all reading, writing and accepting, as by SIGSTOP.
    pub fn freeze(&self) {
        self.supervisor.process().sockets.freeze();
    }

    pub fn thaw(&self) {
        self.supervisor.process().sockets.thaw();
    }

    /// Freezes only the scheduler: HTTP and registry answer, requests hang.
    pub fn freeze_scheduler(&self) {
        self.supervisor.process().freeze_scheduler(true);
    }

    pub fn thaw_scheduler(&self) {
        self.supervisor.process().freeze_scheduler(false);
    }

    /// Whether the engine runs. A frozen engine runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        !self.supervisor.process().has_ended()
    }

    /// Returns when the engine has died and no script will restart it.
    pub async fn died(&self) {
        loop {
            let process = self.supervisor.process();
            process.ended().await;
            let mut restarting = self.supervisor.restarting.subscribe();
            // The sender lives as long as the supervisor.
            let _ = restarting.wait_for(|restarting| !restarting).await;
            if Arc::ptr_eq(&process, &self.supervisor.process()) {
                return;
            }
        }
    }

    /// All recorded requests, in order of arrival.
    #[must_use]
    pub fn received(&self) -> Vec<Received> {
        self.supervisor.recorder.received()
    }

    /// The recorded requests to one path.
    #[must_use]
    pub fn received_on(&self, path: &str) -> Vec<Received> {
        let mut received = self.received();
        received.retain(|received| received.path() == path);
        received
    }

    /// The calls of `/abort_request`.
    #[must_use]
    pub fn aborts(&self) -> Vec<Abort> {
        self.supervisor.recorder.aborts()
    }

    /// The rooms of all legs that waited for a peer.
    #[must_use]
    pub fn rooms(&self) -> Vec<u64> {
        self.supervisor.recorder.rooms()
    }

    /// KV traffic by peer address.
    #[must_use]
    pub fn kv(&self) -> BTreeMap<IpAddr, KvTraffic> {
        self.supervisor.recorder.kv_traffic()
    }

    /// KV traffic with all peers together.
    #[must_use]
    pub fn kv_total(&self) -> KvTraffic {
        self.kv().values().fold(KvTraffic::default(), |sum, one| KvTraffic {
            sent_bytes: sum.sent_bytes + one.sent_bytes,
            received_bytes: sum.received_bytes + one.received_bytes,
            sent_transfers: sum.sent_transfers + one.sent_transfers,
            received_transfers: sum.received_transfers + one.received_transfers,
            connections: sum.connections + one.connections,
            corrupt_transfers: sum.corrupt_transfers + one.corrupt_transfers,
        })
    }

    #[must_use]
    pub fn occupancy(&self) -> Occupancy {
        let process = self.supervisor.process();
        let mut sum = Occupancy {
            legs: process.leg_count(),
            http: process.http.now(),
            ..Occupancy::default()
        };
        for gauges in process.ranks.iter().map(|rank| &rank.gauges) {
            sum.running += gauges.running.now();
            sum.running_peak += gauges.running.peak();
            sum.queued += gauges.queued.now();
            sum.queued_peak += gauges.queued.peak();
            sum.bootstrap += gauges.bootstrap.now();
            sum.prealloc += gauges.prealloc.now();
            sum.transfer += gauges.transfer.now();
            sum.tokens += gauges.tokens.now();
            sum.tokens_peak += gauges.tokens.peak();
        }
        sum
    }

    /// Clears the recorded requests, aborts, rooms and KV traffic.
    pub fn reset(&self) {
        self.supervisor.recorder.reset();
    }

    /// Waits until `holds` is true; false if it was not within `limit`.
    pub async fn until(&self, limit: Duration, holds: impl Fn(&Engine) -> bool) -> bool {
        let wait = async {
            loop {
                let changed = self.supervisor.recorder.changed();
                if holds(self) {
                    return;
                }
                // Some gauges do not notify, so poll as well.
                let _ = timeout(Duration::from_millis(20), changed).await;
            }
        };
        timeout(limit, wait).await.is_ok()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.supervisor.process().kill();
    }
}
