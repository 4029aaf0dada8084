//! Where the agent reads pods from: a directory of manifests, or a watch of the cluster.

use std::net::IpAddr;
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use router_core::fleet::{Fleet, ObjectName, Role};
use tokio::sync::oneshot;

use crate::agent::flags::{AgentFlags, Peers};
use crate::control::files::Directory;
use crate::control::kube::Cluster;
use crate::control::watch::WatchCache;
use crate::control::{DEFAULT_BOOTSTRAP_PORT, Index};

/// The parts of a pod that the agent needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::agent) struct KnownPod {
    pub(in crate::agent) uid: Arc<str>,
    /// `namespace/pod`.
    pub(in crate::agent) name: Arc<str>,
    pub(in crate::agent) address: IpAddr,
    /// The address of the other family, if the pod has both.
    pub(in crate::agent) other_address: Option<IpAddr>,
    pub(in crate::agent) node: Option<Arc<str>>,
    pub(in crate::agent) host_network: bool,
    /// The role of the pod in its pool; `None` if no pool selects the pod.
    pub(in crate::agent) role: Option<Role>,
    /// HTTP ports of the engine.
    pub(in crate::agent) ports: Vec<u16>,
    /// Port of the bootstrap server of a prefill.
    pub(in crate::agent) bootstrap: Option<u16>,
}

impl KnownPod {
    /// All addresses of the pod.
    pub(in crate::agent) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        [Some(self.address), self.other_address].into_iter().flatten()
    }
}

/// A source of pods.
pub(in crate::agent) trait PodSource: Send {
    /// Returns the pods if they changed since the last call. Returns `None` until they have been read
    /// once. May block on the source.
    fn poll(&mut self) -> Option<Vec<KnownPod>>;
}

/// Opens the source that the flags name.
///
/// # Errors
/// The directory or the cluster cannot be opened.
pub(in crate::agent) fn open(flags: &AgentFlags) -> Result<Box<dyn PodSource>> {
    if flags.kubernetes {
        let node = flags.node_name.as_deref().context("--kubernetes needs --node-name")?;
        return Ok(Box::new(ClusterPods::start(node, flags.peers == Peers::Pools)?));
    }
    let manifests = flags.manifests.as_ref().context("--manifests names no directory")?;
    let directory =
        Directory::open(manifests).with_context(|| format!("opening {}", manifests.display()))?;
    Ok(Box::new(ManifestPods::new(directory)))
}

/// Pods of a directory of manifests, which the gateway reads too.
#[derive(Debug)]
pub(in crate::agent) struct ManifestPods {
    directory: Directory,
    index: Index,
    fleet: Fleet,
}

impl ManifestPods {
    pub(in crate::agent) fn new(directory: Directory) -> ManifestPods {
        ManifestPods { directory, index: Index::default(), fleet: Fleet::default() }
    }
}

impl PodSource for ManifestPods {
    fn poll(&mut self) -> Option<Vec<KnownPod>> {
        if !self.directory.poll(&mut self.index) {
            return None;
        }
        self.fleet = self.index.build(&self.fleet);
        Some(known_pods(&self.index, &self.fleet))
    }
}

/// Pods of a cluster, watched by a thread of its own, so that a burst of changes does not delay the
/// reading of counters. While the API server is unreachable the last pods stay.
#[derive(Debug)]
pub(in crate::agent) struct ClusterPods {
    /// The latest pods, until `poll` takes them.
    latest: Arc<Mutex<Option<Vec<KnownPod>>>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl ClusterPods {
    /// Watches the pods of `node`; with `peers` also those that pools select, on any node.
    ///
    /// # Errors
    /// There is neither an in-cluster configuration nor a kubeconfig, or the thread cannot be started.
    pub(in crate::agent) fn start(node: &str, peers: bool) -> Result<ClusterPods> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let open = Cluster::read_only(WatchCache::of_node(node, peers));
        let cluster = runtime.block_on(open).context("--kubernetes")?;
        let latest = Arc::default();
        let (stop, stopped) = oneshot::channel();
        let watch = watch(cluster, Arc::clone(&latest), stopped);
        let thread = std::thread::Builder::new().name("pods".to_owned());
        let thread = thread.spawn(move || runtime.block_on(watch)).context("starting a thread")?;
        Ok(ClusterPods { latest, stop: Some(stop), thread: Some(thread) })
    }
}

async fn watch(
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
            let pods = known_pods(&index, &fleet);
            *latest.lock() = Some(pods);
        }
    }
}

impl PodSource for ClusterPods {
    fn poll(&mut self) -> Option<Vec<KnownPod>> {
        self.latest.lock().take()
    }
}

impl Drop for ClusterPods {
    fn drop(&mut self) {
        // Dropping the sender stops the thread.
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("pod watch thread panicked");
        }
    }
}

fn known_pods(index: &Index, fleet: &Fleet) -> Vec<KnownPod> {
    index.pods().filter_map(|pod| known_pod(pod, fleet)).collect()
}

/// The pod, if it has an address and has not ended. The members of the fleet give its role and ports.
fn known_pod(pod: &Pod, fleet: &Fleet) -> Option<KnownPod> {
    let status = pod.status.as_ref()?;
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return None;
    }
    let address: IpAddr = status.pod_ip.as_deref()?.parse().ok()?;
    let all = status.pod_ips.iter().flatten().filter_map(|pod_ip| pod_ip.ip.parse().ok());
    let other_address = all.into_iter().find(|other: &IpAddr| other.is_ipv4() != address.is_ipv4());
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
        other_address,
        node: spec.and_then(|spec| spec.node_name.as_deref()).map(Into::into),
        host_network: spec.and_then(|spec| spec.host_network).unwrap_or(false),
        role: None,
        ports: Vec::new(),
        bootstrap: None,
        name,
    };
    for (_, member) in fleet.members().filter(|(_, member)| *member.worker.key.uid == *known.uid) {
        known.role = Some(member.role);
        // The agent does not ask engines: of a port that is not configured it knows SGLang's default.
        let default = (member.role == Role::Prefill).then_some(DEFAULT_BOOTSTRAP_PORT);
        let configured = member.bootstrap.map(|address| address.port());
        known.bootstrap = configured.or(known.bootstrap).or(default);
        let port = member.worker.address().port();
        if !known.ports.contains(&port) {
            known.ports.push(port);
        }
    }
    Some(known)
}
