//! `pd-router agent`: loads the eBPF programs, gives them the pods, reads their counters, serves them.
//!
//! Reading order: [`reconcile`] and [`tick_loop`] (what the agent does), [`pods`] (the pods and what
//! the maps hold of them), [`attachments`] (the interfaces), [`bpf`] (programs and maps),
//! [`counters`] (what was counted, and rates), [`rdma`] (RDMA devices), [`node_state`] and [`api`]
//! (what is served), [`host`] (privileges, file systems and netlink), [`rooms`] (KV transfers by their
//! control messages).

mod api;
mod attachments;
pub mod bpf;
mod counters;
pub mod flags;
mod host;
mod node_info;
mod node_state;
mod pods;
pub mod rdma;
mod reconcile;
mod rooms;
mod tick_loop;

use std::borrow::Cow;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use parking_lot::Mutex;
use router_common::control::ControlSegment;
use tokio::sync::watch;
use tracing::warn;

use attachments::Attachments;
use bpf::maps::{self, Maps};
use bpf::programs::{self, Programs};
use bpf::tables::RingTable;
use counters::coverage::Coverage;
use counters::links::NodeLinks;
use counters::rolling_stats::RollingStats;
use counters::sampler::Sampler;
use flags::AgentFlags;
use host::netlink::Netlink;
use host::{capabilities, mounts};
use node_info::NodeInfo;
use node_state::NodeState;
use pods::control_ports::{BootstrapServer, ControlPorts};
use pods::listening_ports::ListeningPorts;
use pods::registry::Registry;
use pods::source::{self, KnownPod, PodSource};
use rooms::RoomTracker;

use crate::feedback::publish::Publisher;

/// Interval between two readings of every counter. It is half of the interval at which gateways get
/// the values of active streams again. The requests of pods are read at every tick.
const FULL_READ_INTERVAL: Duration = Duration::from_millis(50);
/// Interval at which interfaces and routes are read again, and silent responses are looked for.
const RECONCILE_INTERVAL: Duration = Duration::from_secs(1);

/// Ports that a task beside the ticks has found.
enum PortUpdate {
    Control(ControlPorts),
    Listening(ListeningPorts),
}

/// The agent's parts. All stay on one thread but for the state, which the server reads too.
struct Agent {
    flags: AgentFlags,
    programs: Programs,
    maps: Maps,
    /// `None` if the object has none.
    control_ring: Option<RingTable<ControlSegment>>,
    registry: Registry,
    attachments: Attachments,
    source: Box<dyn PodSource>,
    /// `None` until the source has been read once; the maps keep their contents until then.
    pods: Option<Vec<KnownPod>>,
    /// True once the maps hold the pods.
    ready: Arc<AtomicBool>,
    /// What could not be set up at the start, and what is not counted for that reason.
    missing: Vec<String>,
    /// Pods whose packets or requests cannot be counted, and why.
    uncounted_pods: Vec<String>,
    coverage: Coverage,
    /// Reads the counters of the pods' interfaces, to compare.
    netlink: Netlink,
    /// Whether connections that are older than the programs are entered even if no pod is new.
    must_enter_existing: bool,
    /// Bootstrap servers to ask for control ports.
    bootstrap_servers: watch::Sender<Vec<BootstrapServer>>,
    /// UIDs of the host-network pods whose listening ports are to be found.
    host_network_pods: watch::Sender<Vec<Arc<str>>>,
    state: Arc<Mutex<NodeState>>,
    publisher: Publisher,
}

/// Detaches every program and removes every pin of the directory that the flags name.
///
/// # Errors
/// A pin cannot be removed.
pub fn cleanup(flags: &AgentFlags) -> Result<()> {
    let names = Netlink::default().interfaces()?.into_iter().map(|interface| interface.name);
    programs::cleanup(&flags.pin_dir, names)
        .with_context(|| format!("removing {}", flags.pin_dir.display()))
}

/// Mounts the file systems that the node lacks, for an agent that has no privilege to mount them.
///
/// # Errors
/// A file system cannot be mounted.
pub fn prepare_node(flags: &AgentFlags) -> Result<()> {
    let cgroup = flags.cgroup.as_ref().context("--cgroup names no directory")?;
    mounts::prepare(&flags.pin_dir, cgroup)
}

/// Runs until the future that `shutdown` returns is ready. Programs and counters stay for the next
/// agent.
///
/// Call it before the process starts other threads: it drops privileges of the calling thread.
///
/// # Errors
/// The programs cannot be loaded, or the port cannot be bound.
pub fn run<S: Future<Output = ()>>(
    flags: AgentFlags,
    shutdown: impl FnOnce() -> Result<S>,
) -> Result<()> {
    mounts::bpf_file_system(&flags.pin_dir)?;
    let mut missing = Vec::new();
    if let Err(error) = mounts::trace_file_system() {
        missing.push(format!("tracefs: {error}; connections older than the agent are not counted"));
    }
    let cgroup = flags.cgroup.clone().map_or_else(mounts::cgroup_root, Ok);
    missing.extend(capabilities::reduce().context("dropping privileges")?);
    let mut agent = Agent::new(flags, missing)?;
    agent.start(cgroup);
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?
        .block_on(async { agent.serve(shutdown()?).await })
}

/// The eBPF object: the file that a flag names, else the one that the binary carries.
fn object(flags: &AgentFlags) -> Result<Cow<'static, [u8]>> {
    match &flags.ebpf_object {
        Some(path) => Ok(std::fs::read(path)
            .with_context(|| format!("reading the eBPF object {}", path.display()))?
            .into()),
        None => match EMBEDDED {
            Some(object) => Ok(object.into()),
            None => bail!("this binary carries no eBPF object: name one with --ebpf-object"),
        },
    }
}

#[cfg(feature = "embed-ebpf")]
const EMBEDDED: Option<&[u8]> = Some(programs::EMBEDDED);
#[cfg(not(feature = "embed-ebpf"))]
const EMBEDDED: Option<&[u8]> = None;

impl Agent {
    fn new(flags: AgentFlags, mut missing: Vec<String>) -> Result<Agent> {
        let source = source::open(&flags)?;
        let object = object(&flags)?;
        if maps::has_other_layout(&flags.pin_dir) {
            warn!("pinned maps have another layout; counters start from zero");
            cleanup(&flags)?;
        }
        let (mut programs, refused) = Programs::load(&object, &flags.pin_dir, flags.tc)?;
        missing.extend(refused);
        let control_ring = programs
            .control_ring()
            .map_err(|error| missing.push(format!("control messages of KV transfers: {error:#}")))
            .ok();
        let maps = Maps::open(&flags.pin_dir)?;
        let registry = Registry::adopt(&maps, flags.kv_ports)?;
        let state = NodeState {
            sampler: Sampler::new(flags.response_idle_timeout),
            stats: RollingStats::default(),
            links: NodeLinks::default(),
            node: NodeInfo { name: flags.node_name.clone(), ..NodeInfo::default() },
            rdma: None,
            rooms: RoomTracker::default(),
        };
        Ok(Agent {
            source,
            programs,
            maps,
            control_ring,
            registry,
            attachments: Attachments::default(),
            pods: None,
            ready: Arc::default(),
            missing,
            uncounted_pods: Vec::new(),
            coverage: Coverage::default(),
            netlink: Netlink::default(),
            must_enter_existing: false,
            bootstrap_servers: watch::Sender::default(),
            host_network_pods: watch::Sender::default(),
            state: Arc::new(Mutex::new(state)),
            publisher: Publisher::new(rand::random()),
            flags,
        })
    }
}
