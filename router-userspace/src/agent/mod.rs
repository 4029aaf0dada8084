//! `pd-router agent`: loads the kernel half, tells it the pods, reads what it counts, serves it.
//!
//! Reading order: [`pods`] (who there is), [`attach`] (where they are), [`kernel`] (the programs),
//! [`registry`] (what the maps are told), [`sampler`] and [`loads`] (what they say).

mod attach;
pub mod bpf;
mod capabilities;
mod cgroup;
pub mod kernel;
mod link_speed;
mod links;
mod loads;
pub mod maps;
mod metrics;
mod netlink;
mod pods;
pub mod rdma;
mod recent;
mod registry;
mod sampler;
mod seed;
mod server;
pub mod settings;
mod view;
mod wire;

use std::borrow::Cow;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use router_common::flow::Settings;
use router_common::maps::LAYOUT;
use tokio::net::TcpListener;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use attach::{Attachments, Plan};
use kernel::Programs;
use maps::Maps;
use pods::{KnownPod, PodSource};
use rdma::ask::Kernel;
use rdma::{Rdma, Roots, Watcher};
use registry::Registry;
use sampler::Sampler;
use settings::AgentFlags;
use view::View;

use crate::control::POLL_INTERVAL;
use crate::feedback::publish::Publisher;
use crate::token::Guard;

/// How often pairs and links are read.
const PAIRS_EVERY: Duration = Duration::from_millis(25);
/// How often interfaces and routes are looked at again, and silent answers are looked for.
const FOLLOW_EVERY: Duration = Duration::from_secs(1);

/// The agent's parts, all on one thread but for the server's view.
struct Agent {
    flags: AgentFlags,
    programs: Programs,
    maps: Maps,
    registry: Registry,
    attachments: Attachments,
    source: Box<dyn PodSource>,
    /// Not known before the source has been read: what the maps say of them holds until then.
    pods: Option<Vec<KnownPod>>,
    /// What the start could not do.
    missing: Vec<String>,
    unseen: Vec<String>,
    view: Arc<Mutex<View>>,
    publisher: Publisher,
}

/// Removes every pin and program of these flags' directory.
///
/// # Errors
/// A pin cannot be removed.
pub fn cleanup(flags: &AgentFlags) -> Result<()> {
    let names = netlink::links()?.into_iter().map(|link| link.name);
    kernel::cleanup(&flags.pin_dir, names)
        .with_context(|| format!("removing {}", flags.pin_dir.display()))
}

/// Mounts what the node lacks, for an agent that may not.
///
/// # Errors
/// It cannot be mounted.
pub fn prepare_node(flags: &AgentFlags) -> Result<()> {
    let cgroup = flags.cgroup.as_ref().context("--cgroup names no directory")?;
    cgroup::prepare(&flags.pin_dir, cgroup)
}

/// Runs until what `shutdown` makes is ready. Programs and counters stay for the next agent.
///
/// To be called on a thread that starts no other before: privileges are given up here.
///
/// # Errors
/// The programs cannot be loaded, or the port not be bound.
pub fn run<S: Future<Output = ()>>(
    flags: AgentFlags,
    shutdown: impl FnOnce() -> Result<S>,
) -> Result<()> {
    cgroup::bpf_file_system(&flags.pin_dir)?;
    let mut missing = Vec::new();
    if let Err(error) = cgroup::trace_file_system() {
        missing.push(format!("tracefs: {error}; connections older than the agent are not seen"));
    }
    let cgroup = flags.cgroup.clone().map_or_else(cgroup::root, Ok);
    missing.extend(capabilities::reduce().context("giving up privileges")?);
    let mut agent = Agent::new(flags, missing)?;
    agent.start(cgroup);
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?
        .block_on(async { agent.serve(shutdown()?).await })
}

/// The object: the one that this binary carries, or the one that a flag names.
fn object(flags: &AgentFlags) -> Result<Cow<'static, [u8]>> {
    match &flags.object {
        Some(path) => Ok(std::fs::read(path)
            .with_context(|| format!("reading the kernel half from {}", path.display()))?
            .into()),
        None => match EMBEDDED {
            Some(object) => Ok(object.into()),
            None => bail!("this binary carries no kernel half: --object names one"),
        },
    }
}

#[cfg(feature = "embed-ebpf")]
const EMBEDDED: Option<&[u8]> = Some(kernel::EMBEDDED);
#[cfg(not(feature = "embed-ebpf"))]
const EMBEDDED: Option<&[u8]> = None;

impl Agent {
    fn new(flags: AgentFlags, mut missing: Vec<String>) -> Result<Agent> {
        let source = pods::open(&flags)?;
        let object = object(&flags)?;
        if maps::is_foreign(&flags.pin_dir) {
            warn!("the pinned maps are of another layout: counting starts anew");
            cleanup(&flags)?;
        }
        let (programs, refused) = Programs::load(&object, &flags.pin_dir, flags.tc)?;
        missing.extend(refused);
        let maps = Maps::open(&flags.pin_dir)?;
        let registry = Registry::adopt(&maps, flags.kv_ports)?;
        let view = View {
            sampler: Sampler::new(flags.idle_window),
            recent: recent::Recent::default(),
            links: links::Links::default(),
            entries: Vec::new(),
            devices: Vec::new(),
            missing: Vec::new(),
            node: flags.node_name.clone(),
            rdma: None,
        };
        Ok(Agent {
            source,
            programs,
            maps,
            registry,
            attachments: Attachments::default(),
            pods: None,
            missing,
            unseen: Vec::new(),
            view: Arc::new(Mutex::new(view)),
            publisher: Publisher::new(rand::random()),
            flags,
        })
    }

    /// Settings, pods, programs, older connections: in the order in which nothing counts twice.
    fn start(&mut self, cgroup: std::io::Result<std::path::PathBuf>) {
        let settings = |sock_ops| Settings {
            layout: LAYOUT,
            sock_ops,
            kv_first: self.flags.kv_ports.0,
            kv_last: self.flags.kv_ports.1,
        };
        // The tracepoint must not count what sock_ops is about to.
        let with = settings(1);
        let without = settings(0);
        self.told(with);
        self.pods = self.source.poll();
        self.follow(false);
        let sock_ops =
            cgroup.context("no cgroup2").and_then(|cgroup| self.programs.attach_sock_ops(&cgroup));
        if let Err(error) = sock_ops {
            self.told(without);
            self.missing.push(format!(
                "sock_ops: {error:#}; bytes, round trips and retransmits per peer are not counted"
            ));
        }
        if let Err(error) = self.programs.attach_sock_state() {
            let closed = if capabilities::events_are_closed() {
                " (kernel.perf_event_paranoid is over 2 here, which asks for CAP_SYS_ADMIN)"
            } else {
                ""
            };
            self.missing.push(format!(
                "inet_sock_set_state: {error:#}{closed}; ends of older connections are not seen"
            ));
        }
        if let Err(error) = capabilities::attached() {
            self.missing.push(format!("privileges are left that are not needed: {error}"));
        }
        let roots = Roots { sysfs: self.flags.sysfs.clone(), ..Roots::default() };
        let speeds = self.flags.rdma_speed.clone();
        let mut rdma = Rdma::new(Box::new(Kernel::default()), &roots, speeds);
        rdma.page_bytes(self.flags.kv_page_bytes);
        match Watcher::start(rdma) {
            Ok(watcher) => {
                self.view.lock().unwrap_or_else(PoisonError::into_inner).rdma = Some(watcher);
            }
            Err(error) => self.missing.push(format!("RDMA: no thread can be had: {error}")),
        }
        self.follow(true);
        for missing in &self.missing {
            warn!("{missing}");
        }
    }

    fn told(&mut self, settings: Settings) {
        if let Err(error) = self.maps.settings.set(&0, &settings) {
            self.missing.push(format!("settings cannot be written: {error}"));
        }
    }

    /// Brings the maps and the interfaces up to the pods; `seeds` once the programs count.
    fn follow(&mut self, seeds: bool) {
        let Some(pods) = &self.pods else { return };
        let plan = match attach::plan(&self.flags, pods) {
            Ok(plan) => plan,
            Err(error) => {
                warn!(%error, "interfaces are unknown");
                Plan::default()
            }
        };
        if plan.unseen != self.unseen {
            plan.unseen.iter().for_each(|unseen| warn!("{unseen}"));
            self.unseen.clone_from(&plan.unseen);
        }
        self.attachments.follow(&plan, &self.flags, &mut self.programs, &self.maps);
        let fresh = match self.registry.sync(&self.maps, plan.placed) {
            Ok(fresh) => fresh,
            Err(error) => {
                warn!(%error, "the maps cannot be told the pods");
                return;
            }
        };
        if seeds || !fresh.is_empty() {
            match seed::seed(&self.maps, &self.registry) {
                Ok(0) => {}
                Ok(count) => info!(count, "connections older than the programs"),
                Err(error) => warn!(%error, "older connections are unknown"),
            }
        }
        let mut view = self.view.lock().unwrap_or_else(PoisonError::into_inner);
        view.entries = self.registry.entries().cloned().collect();
        view.shows(&self.attachments.devices, &self.flags.link_speed);
        view.missing = self.missing.iter().chain(&self.unseen).cloned().collect();
    }

    /// Reads at every tick, and serves, until `shutdown`.
    async fn serve(&mut self, shutdown: impl Future<Output = ()>) -> Result<()> {
        let guard = Guard::new(self.flags.token_file.as_deref(), self.flags.without_token);
        let address = self.flags.listen;
        if !server::may_listen(address, &guard) {
            bail!("--listen {address} is not loopback: --token-file is needed");
        }
        self.read_all();
        let listener =
            TcpListener::bind(address).await.with_context(|| format!("binding {address}"))?;
        info!(address = %listener.local_addr()?, "serving");
        let view = Arc::clone(&self.view);
        let snapshot = move || view.lock().unwrap_or_else(PoisonError::into_inner).loads();
        let publisher = self.publisher.clone();
        let server = server::Server { guard, snapshot, publisher }.serve(listener);
        tokio::select! {
            () = shutdown => {}
            () = server => {}
            () = self.ticks() => {}
        }
        info!("ending; programs and counters stay for the next agent");
        Ok(())
    }

    async fn ticks(&mut self) {
        let every = |period| {
            let mut ticks = interval(period);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
            ticks
        };
        let (mut pods, mut pairs) = (every(self.flags.tick), every(PAIRS_EVERY));
        let (mut source, mut follow) = (every(POLL_INTERVAL), every(FOLLOW_EVERY));
        loop {
            tokio::select! {
                biased;
                _ = pairs.tick() => self.read_pairs(),
                _ = pods.tick() => {
                    self.read_pods();
                    self.publish();
                }
                _ = source.tick() => {
                    if let Some(pods) = self.source.poll() {
                        self.pods = Some(pods);
                        self.follow(false);
                    }
                }
                _ = follow.tick() => {
                    self.follow(false);
                    self.sweep();
                }
            }
        }
    }

    fn read_all(&mut self) {
        self.sweep();
        self.read_pods();
        self.read_pairs();
    }

    fn read_pods(&mut self) {
        self.read(|sampler, maps, ids| sampler.read_pods(maps, ids));
        self.view.lock().unwrap_or_else(PoisonError::into_inner).read_pods();
    }

    fn read_pairs(&mut self) {
        self.read(|sampler, maps, _| sampler.read_pairs(maps));
        self.view.lock().unwrap_or_else(PoisonError::into_inner).read_pairs();
        self.tell_rdma();
    }

    /// Tells the gateways what changed.
    fn publish(&self) {
        let (report, read) = {
            let view = self.view.lock().unwrap_or_else(PoisonError::into_inner);
            (view.report(), view.sampler.read)
        };
        self.publisher.tick(report, read, Instant::now());
    }

    fn sweep(&mut self) {
        let taken = self.view.lock().unwrap_or_else(PoisonError::into_inner).taken();
        self.read(|sampler, maps, _| sampler.sweep(maps, &taken));
    }

    fn tell_rdma(&self) {
        let view = self.view.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = view.tell_rdma(&self.maps) {
            warn!(%error, "the counters of queue pairs cannot be read");
        }
    }

    fn read(&mut self, read: impl FnOnce(&mut Sampler, &Maps, &[u32]) -> std::io::Result<()>) {
        let local = self.registry.entries().filter(|entry| entry.placed.local);
        let ids: Vec<u32> = local.map(|entry| entry.id).collect();
        let mut view = self.view.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = read(&mut view.sampler, &self.maps, &ids) {
            warn!(%error, "the counters cannot be read");
        }
    }
}
