//! The engine as tests hold it: start, stop, kill, freeze, restart, and a look inside.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};

use crate::config::{Config, Role};
use crate::http::{self, Door};
use crate::kv::{control, data};
use crate::ledger::{Abort, KvTraffic, Ledger, Received};
use crate::life::{Life, Seed};
use crate::peers;
use crate::rank::Rank;
use crate::script::{Playbook, Script};

/// What outlives a kill: addresses, memory and scripts.
pub(crate) struct Core {
    config: Arc<Config>,
    ledger: Arc<Ledger>,
    pub(crate) playbook: Playbook,
    address: SocketAddr,
    bootstrap: Option<SocketAddr>,
    life: Mutex<Arc<Life>>,
    /// Set while the engine is down and will come back.
    returning: tokio::sync::watch::Sender<bool>,
}

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

/// The listeners of one life.
struct Doors {
    api: TcpListener,
    bootstrap: Option<TcpListener>,
    data: Option<TcpListener>,
    control: Vec<TcpListener>,
}

impl Doors {
    async fn open(config: &Config, api: u16, bootstrap: u16) -> io::Result<Doors> {
        let at = |port| SocketAddr::new(config.host, port);
        let mut control = Vec::new();
        if config.disaggregated() {
            for _ in 0..config.dp_size.max(1) {
                control.push(TcpListener::bind(at(0)).await?);
            }
        }
        let decode = config.role == Role::Decode;
        Ok(Doors {
            api: TcpListener::bind(at(api)).await?,
            bootstrap: if config.role == Role::Prefill {
                Some(TcpListener::bind(at(bootstrap)).await?)
            } else {
                None
            },
            data: if decode { Some(data::bind(config.host).await?) } else { None },
            control,
        })
    }
}

/// The address that peers are told of a listener.
fn told(config: &Config, listener: &TcpListener) -> io::Result<SocketAddr> {
    Ok(SocketAddr::new(config.reachable_host(), listener.local_addr()?.port()))
}

/// Begins a life behind open doors.
fn live(
    core: &std::sync::Weak<Core>,
    seeds: (&Arc<Config>, &Arc<Ledger>),
    doors: Doors,
    empty: Duration,
) -> io::Result<Arc<Life>> {
    let (config, ledger) = seeds;
    let nowhere = SocketAddr::new(config.host, 0);
    let mut ranks = Vec::new();
    for rank in 0..config.dp_size.max(1) {
        let control = doors.control.get(rank).map(|l| told(config, l)).transpose()?;
        ranks.push(Arc::new(Rank::new(control.unwrap_or(nowhere), config)));
    }
    let life = Life::new(Seed {
        config: Arc::clone(config),
        ledger: Arc::clone(ledger),
        core: core.clone(),
        ranks,
        data: doors.data.as_ref().map(|l| told(config, l)).transpose()?,
        bootstrap: doors.bootstrap.as_ref().map(|l| told(config, l)).transpose()?,
        empty,
    });
    life.spawn(http::serve(Arc::clone(&life), Door::Api, doors.api));
    if let Some(listener) = doors.bootstrap {
        life.spawn(http::serve(Arc::clone(&life), Door::Bootstrap, listener));
    }
    if let Some(listener) = doors.data {
        life.spawn(data::serve(Arc::clone(&life), listener));
        life.spawn(peers::heartbeat(Arc::clone(&life)));
    }
    for (rank, listener) in doors.control.into_iter().enumerate() {
        life.spawn(control::serve(Arc::clone(&life), rank, listener));
    }
    Ok(life)
}

impl Core {
    fn life(&self) -> Arc<Life> {
        Arc::clone(&self.life.lock().expect("nothing panics with the life"))
    }

    /// Begins a new life on the old addresses.
    async fn restart(self: &Arc<Self>, empty: Duration) -> io::Result<()> {
        let bootstrap = self.bootstrap.map_or(0, |address| address.port());
        let doors = Doors::open(&self.config, self.address.port(), bootstrap).await?;
        let seeds = (&self.config, &self.ledger);
        let life = live(&Arc::downgrade(self), seeds, doors, empty)?;
        *self.life.lock().expect("nothing panics with the life") = life;
        self.ledger.notify();
        Ok(())
    }

    /// The scripted restart: dies now, lives again after `down`.
    pub(crate) fn restart_later(
        self: &Arc<Self>,
        life: &Arc<Life>,
        down: Duration,
        empty: Duration,
    ) {
        let (core, dying) = (Arc::downgrade(self), Arc::clone(life));
        self.returning.send_replace(true);
        dying.die();
        // Not a task of the life, which it ends; it ends itself if the engine is dropped.
        let task = async move {
            dying.gone().await;
            sleep(down).await;
            let Some(core) = core.upgrade() else { return };
            // The ports were this engine's own a moment ago; if another took one, it stays down.
            let _ = core.restart(empty).await;
            core.returning.send_replace(false);
        };
        tokio::spawn(task);
    }
}

impl Engine {
    /// Binds all listeners and serves on the current runtime.
    ///
    /// # Errors
    /// An address cannot be bound.
    pub async fn start(config: Config) -> io::Result<Engine> {
        let config = Arc::new(config);
        let ledger = Ledger::new(config.record_limit);
        let doors = Doors::open(&config, config.port, config.bootstrap_port).await?;
        let address = told(&config, &doors.api)?;
        let bootstrap = doors.bootstrap.as_ref().map(|l| told(&config, l)).transpose()?;
        let mut failed = None;
        let core = Arc::new_cyclic(|core| {
            let life = live(core, (&config, &ledger), doors, Duration::ZERO);
            let life = life.unwrap_or_else(|error| {
                failed = Some(error);
                empty_life(&config, &ledger)
            });
            Core {
                address,
                bootstrap,
                life: Mutex::new(life),
                playbook: Playbook::default(),
                returning: tokio::sync::watch::Sender::new(false),
                config: Arc::clone(&config),
                ledger: Arc::clone(&ledger),
            }
        });
        match failed {
            None => Ok(Engine { core }),
            Some(error) => Err(error),
        }
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

fn empty_life(config: &Arc<Config>, ledger: &Arc<Ledger>) -> Arc<Life> {
    Life::new(Seed {
        config: Arc::clone(config),
        ledger: Arc::clone(ledger),
        core: std::sync::Weak::new(),
        ranks: Vec::new(),
        data: None,
        bootstrap: None,
        empty: Duration::ZERO,
    })
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.core.life().die();
    }
}
