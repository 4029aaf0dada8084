//! The pods that the agent knows, from a source behind one interface.

use std::net::IpAddr;
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use router_core::fleet::{Fleet, ObjectName, Role};
use tokio::sync::oneshot;

use super::settings::{AgentFlags, Peers};
use crate::control::Index;
use crate::control::files::Directory;
use crate::control::kube::Cluster;
use crate::control::watched::Watched;

/// A pod as far as the kernel half needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KnownPod {
    pub(super) uid: Arc<str>,
    /// `namespace/pod`.
    pub(super) name: Arc<str>,
    pub(super) address: IpAddr,
    pub(super) node: Option<Arc<str>>,
    pub(super) host_network: bool,
    /// What it is in its pool; `None` for a pod of no pool.
    pub(super) role: Option<Role>,
    /// Where the engine speaks HTTP.
    pub(super) ports: Vec<u16>,
    pub(super) bootstrap: Option<u16>,
}

/// Where pods come from.
pub(super) trait PodSource: Send {
    /// The pods, if they changed since the last look; never before they have been read once.
    /// Blocks on the source.
    fn poll(&mut self) -> Option<Vec<KnownPod>>;
}

/// The source that the flags name.
///
/// # Errors
/// It cannot be opened.
pub(super) fn open(flags: &AgentFlags) -> Result<Box<dyn PodSource>> {
    if flags.kubernetes {
        let node = flags.node_name.as_deref().context("--kubernetes needs --node-name")?;
        return Ok(Box::new(Watching::start(node, flags.peers == Peers::Pools)?));
    }
    let manifests = flags.manifests.as_ref().context("--manifests names no directory")?;
    let directory =
        Directory::open(manifests).with_context(|| format!("opening {}", manifests.display()))?;
    Ok(Box::new(Manifests::new(directory)))
}

/// The directory of manifests that the gateway reads as well.
#[derive(Debug)]
pub(super) struct Manifests {
    directory: Directory,
    index: Index,
    fleet: Fleet,
}

impl Manifests {
    pub(super) fn new(directory: Directory) -> Manifests {
        Manifests { directory, index: Index::default(), fleet: Fleet::default() }
    }
}

impl PodSource for Manifests {
    fn poll(&mut self) -> Option<Vec<KnownPod>> {
        if !self.directory.poll(&mut self.index) {
            return None;
        }
        self.fleet = self.index.build(&self.fleet);
        Some(all(&self.index, &self.fleet))
    }
}

/// The pods of this node, by a watch of its own thread: what comes in bursts must not hold up the
/// reading of counters. What was read goes on while the API server is away.
#[derive(Debug)]
pub(super) struct Watching {
    /// Told and not yet looked at.
    latest: Arc<Mutex<Option<Vec<KnownPod>>>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watching {
    /// Watches the pods of `node`; with `peers` also those that pools select, on any node.
    ///
    /// # Errors
    /// There is neither a cluster around nor a kubeconfig, or no thread to be had.
    pub(super) fn start(node: &str, peers: bool) -> Result<Watching> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let open = Cluster::read_only(Watched::of_node(node, peers));
        let cluster = runtime.block_on(open).context("--kubernetes")?;
        let latest = Arc::default();
        let (stop, stopped) = oneshot::channel();
        let follow = follow(cluster, Arc::clone(&latest), stopped);
        let thread = std::thread::Builder::new().name("pods".to_owned());
        let thread = thread.spawn(move || runtime.block_on(follow)).context("the pods' thread")?;
        Ok(Watching { latest, stop: Some(stop), thread: Some(thread) })
    }
}

async fn follow(
    mut cluster: Cluster,
    latest: Arc<Mutex<Option<Vec<KnownPod>>>>,
    mut stopped: oneshot::Receiver<()>,
) {
    let (mut index, mut fleet) = (Index::default(), Fleet::default());
    loop {
        tokio::select! {
            _ = &mut stopped => return,
            () = cluster.changed() => {}
        }
        if cluster.poll(&mut index) {
            fleet = index.build(&fleet);
            let pods = all(&index, &fleet);
            *latest.lock() = Some(pods);
        }
    }
}

impl PodSource for Watching {
    fn poll(&mut self) -> Option<Vec<KnownPod>> {
        self.latest.lock().take()
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        // The thread ends when it is told to, and when nobody can tell it any more.
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the pods' thread has failed");
        }
    }
}

fn all(index: &Index, fleet: &Fleet) -> Vec<KnownPod> {
    index.pods().filter_map(|pod| known(pod, fleet)).collect()
}

/// A pod with an address; one of a pool has its role and ports from there.
fn known(pod: &Pod, fleet: &Fleet) -> Option<KnownPod> {
    let status = pod.status.as_ref()?;
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return None;
    }
    let address = status.pod_ip.as_deref()?.parse().ok()?;
    let metadata = &pod.metadata;
    let name = ObjectName {
        namespace: metadata.namespace.as_deref().unwrap_or("default").into(),
        name: metadata.name.as_deref().unwrap_or_default().into(),
    };
    let name: Arc<str> = name.to_string().into();
    let uid = metadata.uid.as_deref().filter(|uid| !uid.is_empty()).unwrap_or(&name);
    let spec = pod.spec.as_ref();
    let mut known = KnownPod {
        uid: uid.into(),
        address,
        node: spec.and_then(|spec| spec.node_name.as_deref()).map(Into::into),
        host_network: spec.and_then(|spec| spec.host_network).unwrap_or(false),
        role: None,
        ports: Vec::new(),
        bootstrap: None,
        name,
    };
    for (_, member) in fleet.members().filter(|(_, member)| *member.worker.key.uid == *known.uid) {
        known.role = Some(member.role);
        known.bootstrap = member.bootstrap.map(|address| address.port()).or(known.bootstrap);
        if !known.ports.contains(&member.worker.key.port) {
            known.ports.push(member.worker.key.port);
        }
    }
    Some(known)
}
