//! The engine as tests hold it: start, stop, kill, freeze, restart, and a look inside.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use crate::config::Config;
use crate::core::Core;
use crate::ledger::{Abort, KvTraffic, Received};
use crate::script::Script;

/// A running engine. Dropping it kills it.
pub struct Engine {
    core: Arc<Core>,
}

/// How many requests are where, now and at most, over all ranks.
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
    /// Legs that have not ended, wherever they are.
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
        Ok(Engine { core: Core::start(config).await? })
    }

    /// The HTTP address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.core.address
    }

    /// The address of the bootstrap server; only a prefill has one.
    #[must_use]
    pub fn bootstrap_address(&self) -> Option<SocketAddr> {
        self.core.bootstrap
    }

    /// Decode's data port in this life.
    #[must_use]
    pub fn data_address(&self) -> Option<SocketAddr> {
        self.core.life().data
    }

    #[must_use]
    pub fn config(&self) -> &Config {
        &self.core.config
    }

    /// `http://address`, for clients.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.core.address)
    }

    /// Adds a script; those in force before it come first.
    pub fn script(&self, script: Script) {
        self.core.playbook.add(script);
    }

    pub fn clear_scripts(&self) {
        self.core.playbook.clear();
    }

    /// Ends in order: listeners and connections are closed without resets.
    pub async fn stop(self) {
        let life = self.core.life();
        life.end();
        life.gone().await;
    }

    /// Ends as SIGKILL does; the ports are free when it returns.
    pub async fn kill(&self) {
        let life = self.core.life();
        life.die();
        life.gone().await;
    }

    /// Kills it if it lives, and starts it again on the same addresses with nothing remembered
    /// but what tests look at.
    ///
    /// # Errors
    /// A port has been taken by somebody else.
    pub async fn restart(&self) -> io::Result<()> {
        self.kill().await;
        self.core.restart(Duration::ZERO).await
    }

    /// Stops all reading, writing and accepting, as SIGSTOP does.
    pub fn freeze(&self) {
        self.core.life().valve.close();
    }

    pub fn thaw(&self) {
        self.core.life().valve.open();
    }

    /// Stops the scheduler alone: HTTP and registry answer, requests hang.
    pub fn freeze_scheduler(&self) {
        self.core.life().freeze_scheduler(true);
    }

    pub fn thaw_scheduler(&self) {
        self.core.life().freeze_scheduler(false);
    }

    /// Whether the engine runs, frozen or not.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        !self.core.life().is_over()
    }

    /// Returns when the engine has died and no script will bring it back.
    pub async fn died(&self) {
        loop {
            let life = self.core.life();
            life.over().await;
            let mut returning = self.core.returning.subscribe();
            // The sender lives in the core.
            let _ = returning.wait_for(|returning| !returning).await;
            if Arc::ptr_eq(&life, &self.core.life()) {
                return;
            }
        }
    }

    /// The requests so far, in order of arrival.
    #[must_use]
    pub fn received(&self) -> Vec<Received> {
        self.core.ledger.received()
    }

    /// The requests to one path.
    #[must_use]
    pub fn received_on(&self, path: &str) -> Vec<Received> {
        let mut received = self.received();
        received.retain(|received| received.path() == path);
        received
    }

    /// The calls of `/abort_request`.
    #[must_use]
    pub fn aborts(&self) -> Vec<Abort> {
        self.core.ledger.aborts()
    }

    /// The rooms of legs that were to meet a peer.
    #[must_use]
    pub fn rooms(&self) -> Vec<u64> {
        self.core.ledger.rooms()
    }

    /// KV moved, by the peer's address.
    #[must_use]
    pub fn kv(&self) -> BTreeMap<IpAddr, KvTraffic> {
        self.core.ledger.kv_traffic()
    }

    /// KV moved with all peers together.
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
        let life = self.core.life();
        let mut sum =
            Occupancy { legs: life.leg_count(), http: life.http.now(), ..Occupancy::default() };
        for counts in life.ranks.iter().map(|rank| &rank.counts) {
            sum.running += counts.running.now();
            sum.running_peak += counts.running.peak();
            sum.queued += counts.queued.now();
            sum.queued_peak += counts.queued.peak();
            sum.bootstrap += counts.bootstrap.now();
            sum.prealloc += counts.prealloc.now();
            sum.transfer += counts.transfer.now();
            sum.tokens += counts.tokens.now();
            sum.tokens_peak += counts.tokens.peak();
        }
        sum
    }

    /// Forgets requests, aborts, rooms and KV counts.
    pub fn reset(&self) {
        self.core.ledger.reset();
    }

    /// Waits until something holds of the engine; false if it did not within the limit.
    pub async fn until(&self, limit: Duration, holds: impl Fn(&Engine) -> bool) -> bool {
        let wait = async {
            loop {
                let changed = self.core.ledger.changed();
                if holds(self) {
                    return;
                }
                // Not every count notifies, so look again now and then.
                let _ = timeout(Duration::from_millis(20), changed).await;
            }
        };
        timeout(limit, wait).await.is_ok()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.core.life().die();
    }
}
