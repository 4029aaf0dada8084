//! What outlives a kill: an engine's addresses, its memory, its scripts, and the way back to life.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::config::{Config, Role};
use crate::http::{self, Door};
use crate::kv::{control, data};
use crate::ledger::Ledger;
use crate::life::{Life, Seed};
use crate::peers;
use crate::playbook::Playbook;
use crate::rank::Rank;

/// An engine between and during its lives.
pub(crate) struct Core {
    pub(crate) config: Arc<Config>,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) playbook: Playbook,
    pub(crate) address: SocketAddr,
    pub(crate) bootstrap: Option<SocketAddr>,
    life: Mutex<Arc<Life>>,
    /// Set while the engine is down and will come back.
    pub(crate) returning: watch::Sender<bool>,
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
    core: &Weak<Core>,
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
    /// Opens the doors and begins the first life.
    pub(crate) async fn start(config: Config) -> io::Result<Arc<Core>> {
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
                returning: watch::Sender::new(false),
                config: Arc::clone(&config),
                ledger: Arc::clone(&ledger),
            }
        });
        match failed {
            None => Ok(core),
            Some(error) => Err(error),
        }
    }

    pub(crate) fn life(&self) -> Arc<Life> {
        Arc::clone(&self.life.lock().expect("nothing panics with the life"))
    }

    /// Begins a new life on the old addresses.
    pub(crate) async fn restart(self: &Arc<Self>, empty: Duration) -> io::Result<()> {
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

fn empty_life(config: &Arc<Config>, ledger: &Arc<Ledger>) -> Arc<Life> {
    Life::new(Seed {
        config: Arc::clone(config),
        ledger: Arc::clone(ledger),
        core: Weak::new(),
        ranks: Vec::new(),
        data: None,
        bootstrap: None,
        empty: Duration::ZERO,
    })
}
