//! `pd-router agent`: loads the kernel half, tells it the pods, reads what it counts, serves it.
//!
//! Reading order: [`follow`] and [`ticks`] (what the agent does), [`pods`] (who there is),
//! [`attach`] (where they are), [`kernel`] (the programs),
//! [`registry`] and [`described`] (what the maps are told; [`learn`] and [`owners`] know the ports
//! that no manifest names), [`sampler`], [`pairs`] and [`loads`] (what they say).

mod attach;
pub mod bpf;
mod capabilities;
mod cgroup;
mod described;
mod follow;
pub mod kernel;
mod kubepods;
mod kv;
mod learn;
mod link_speed;
mod links;
mod loads;
pub mod maps;
mod metrics;
mod netlink;
mod owners;
mod pairs;
mod pods;
mod queue_pairs;
pub mod rdma;
mod recent;
mod registry;
mod sampler;
mod seed;
mod server;
pub mod settings;
mod ticks;
mod view;
mod wire;

use std::borrow::Cow;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use parking_lot::Mutex;
use tokio::sync::watch;
use tracing::warn;

use attach::Attachments;
use kernel::Programs;
use learn::Bootstrap;
use loads::Names;
use maps::Maps;
use owners::Listening;
use pods::{KnownPod, PodSource};
use registry::Registry;
use sampler::Sampler;
use settings::AgentFlags;
use view::View;

use crate::feedback::publish::Publisher;

/// How often all is read that is a rate or a time over the last moment, at ticks: twice before what goes on
/// is told again. What requests a pod has is read at every tick.
const RATES_EVERY: Duration = Duration::from_millis(50);
/// How often interfaces and routes are looked at again, and silent answers are looked for.
const FOLLOW_EVERY: Duration = Duration::from_secs(1);

/// What the tasks beside the ticks tell.
enum News {
    Controls(learn::Told),
    Listening(Listening),
}

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
    /// The maps have been told the pods once: what is asked before knows of none.
    ready: Arc<AtomicBool>,
    /// What the start could not do.
    missing: Vec<String>,
    unseen: Vec<String>,
    /// Whose bootstrap servers are asked, and whose listening ports are looked for.
    bootstraps: watch::Sender<Vec<Bootstrap>>,
    hosted: watch::Sender<Vec<Arc<str>>>,
    view: Arc<Mutex<View>>,
    publisher: Publisher,
}

/// Removes every pin and program of these flags' directory.
///
/// # Errors
/// A pin cannot be removed.
pub fn cleanup(flags: &AgentFlags) -> Result<()> {
    let names = netlink::Netlink::default().links()?.into_iter().map(|link| link.name);
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
        let names = Names { node: flags.node_name.clone(), ..Names::default() };
        let view = View {
            sampler: Sampler::new(flags.idle_window),
            recent: recent::Recent::default(),
            links: links::Links::default(),
            names,
            rdma: None,
        };
        Ok(Agent {
            source,
            programs,
            maps,
            registry,
            attachments: Attachments::default(),
            pods: None,
            ready: Arc::default(),
            missing,
            unseen: Vec::new(),
            bootstraps: watch::Sender::default(),
            hosted: watch::Sender::default(),
            view: Arc::new(Mutex::new(view)),
            publisher: Publisher::new(rand::random()),
            flags,
        })
    }
}
