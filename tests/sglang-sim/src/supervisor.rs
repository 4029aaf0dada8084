//! What survives a kill: addresses, records, scripts. Starts and restarts the engine process.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::active_scripts::ActiveScripts;
use crate::config::{Config, Role};
use crate::discovery;
use crate::http::{self, HttpServer};
use crate::kv::{control, data};
use crate::process::{Process, ProcessParts};
use crate::rank::Rank;
use crate::recorder::Recorder;

/// Owns the current engine process and restarts it.
pub(crate) struct Supervisor {
    pub(crate) config: Arc<Config>,
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) scripts: ActiveScripts,
    pub(crate) address: SocketAddr,
    pub(crate) bootstrap: Option<SocketAddr>,
    process: Mutex<Arc<Process>>,
    /// True while the engine is down and a script will restart it.
    pub(crate) restarting: watch::Sender<bool>,
}

/// The listeners of one engine process.
struct Listeners {
    api: TcpListener,
    bootstrap: Option<TcpListener>,
    data: Option<TcpListener>,
    control: Vec<TcpListener>,
}

impl Listeners {
    async fn open(config: &Config, api: u16, bootstrap: u16) -> io::Result<Listeners> {
        let at = |port| SocketAddr::new(config.host, port);
        let mut control = Vec::new();
        if config.disaggregated() {
            for _ in 0..config.dp_size.max(1) {
                control.push(TcpListener::bind(at(0)).await?);
            }
        }
        // An engine that may switch its role needs the listeners of both.
        let has = |role| config.role == role || config.role_switch;
        Ok(Listeners {
            api: TcpListener::bind(at(api)).await?,
            bootstrap: if has(Role::Prefill) {
                Some(TcpListener::bind(at(bootstrap)).await?)
            } else {
                None
            },
            data: if has(Role::Decode) { Some(data::bind(config.host).await?) } else { None },
            control,
        })
    }
}

/// The address of a listener as peers are given it.
fn advertised(config: &Config, listener: &TcpListener) -> io::Result<SocketAddr> {
    Ok(SocketAddr::new(config.reachable_host(), listener.local_addr()?.port()))
}

/// Starts a process on open listeners.
fn start_process(
    supervisor: &Weak<Supervisor>,
    shared: (&Arc<Config>, &Arc<Recorder>),
    listeners: Listeners,
    registry_delay: Duration,
) -> io::Result<Arc<Process>> {
    let (config, recorder) = shared;
    let unused = SocketAddr::new(config.host, 0);
    let mut ranks = Vec::new();
    for rank in 0..config.dp_size.max(1) {
        let control = listeners.control.get(rank).map(|l| advertised(config, l)).transpose()?;
        ranks.push(Arc::new(Rank::new(control.unwrap_or(unused), config)));
    }
    let process = Process::new(ProcessParts {
        config: Arc::clone(config),
        recorder: Arc::clone(recorder),
        supervisor: supervisor.clone(),
        ranks,
        data: listeners.data.as_ref().map(|l| advertised(config, l)).transpose()?,
        bootstrap: listeners.bootstrap.as_ref().map(|l| advertised(config, l)).transpose()?,
        registry_delay,
    });
    process.spawn(http::serve(Arc::clone(&process), HttpServer::Api, listeners.api));
    if let Some(listener) = listeners.bootstrap {
        process.spawn(http::serve(Arc::clone(&process), HttpServer::Bootstrap, listener));
    }
    if let Some(listener) = listeners.data {
        process.spawn(data::serve(Arc::clone(&process), listener));
        process.spawn(discovery::heartbeat(Arc::clone(&process)));
    }
    for (rank, listener) in listeners.control.into_iter().enumerate() {
        process.spawn(control::serve(Arc::clone(&process), rank, listener));
    }
    Ok(process)
}

impl Supervisor {
    /// Opens the listeners and starts the first process.
    pub(crate) async fn start(config: Config) -> io::Result<Arc<Supervisor>> {
        let config = Arc::new(config);
        let recorder = Recorder::new(config.record_limit);
        let listeners = Listeners::open(&config, config.port, config.bootstrap_port).await?;
        let address = advertised(&config, &listeners.api)?;
        let bootstrap = listeners.bootstrap.as_ref().map(|l| advertised(&config, l)).transpose()?;
        let mut failed = None;
        let supervisor = Arc::new_cyclic(|supervisor| {
            let process =
                start_process(supervisor, (&config, &recorder), listeners, Duration::ZERO);
            let process = process.unwrap_or_else(|error| {
                failed = Some(error);
                empty_process(&config, &recorder)
            });
            Supervisor {
                address,
                bootstrap,
                process: Mutex::new(process),
                scripts: ActiveScripts::default(),
                restarting: watch::Sender::new(false),
                config: Arc::clone(&config),
                recorder: Arc::clone(&recorder),
            }
        });
        match failed {
            None => Ok(supervisor),
            Some(error) => Err(error),
        }
    }

    pub(crate) fn process(&self) -> Arc<Process> {
        Arc::clone(&self.process.lock())
    }

    /// Starts a new process on the old addresses.
    pub(crate) async fn restart(self: &Arc<Self>, registry_delay: Duration) -> io::Result<()> {
        let bootstrap = self.bootstrap.map_or(0, |address| address.port());
        let listeners = Listeners::open(&self.config, self.address.port(), bootstrap).await?;
        let shared = (&self.config, &self.recorder);
        let process = start_process(&Arc::downgrade(self), shared, listeners, registry_delay)?;
        *self.process.lock() = process;
        self.recorder.notify();
        Ok(())
    }

    /// Kills the process now and starts a new one after `down`.
    pub(crate) fn restart_later(
        self: &Arc<Self>,
        process: &Arc<Process>,
        down: Duration,
        registry_delay: Duration,
    ) {
        let (supervisor, old_process) = (Arc::downgrade(self), Arc::clone(process));
        self.restarting.send_replace(true);
        old_process.kill();
        // Not a task of the process, because it outlives it. It ends when the engine is dropped.
        let task = async move {
            old_process.tasks_finished().await;
            sleep(down).await;
            let Some(supervisor) = supervisor.upgrade() else { return };
            // The ports were free a moment ago. If another process took one, the engine stays down.
            let _ = supervisor.restart(registry_delay).await;
            supervisor.restarting.send_replace(false);
        };
        tokio::spawn(task);
    }
}

fn empty_process(config: &Arc<Config>, recorder: &Arc<Recorder>) -> Arc<Process> {
    Process::new(ProcessParts {
        config: Arc::clone(config),
        recorder: Arc::clone(recorder),
        supervisor: Weak::new(),
        ranks: Vec::new(),
        data: None,
        bootstrap: None,
        registry_delay: Duration::ZERO,
    })
}
