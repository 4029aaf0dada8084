//! The pods that the agent knows, from a source behind one interface.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use router_core::fleet::{Fleet, ObjectName, Role};

use crate::control::Index;
use crate::control::files::Directory;

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

/// Where pods come from. The Kubernetes watch is another.
pub(super) trait PodSource: Send {
    /// The pods, if they changed since the last look. Blocks on the source.
    fn poll(&mut self) -> Option<Vec<KnownPod>>;
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
        Some(self.index.pods().filter_map(|pod| known(pod, &self.fleet)).collect())
    }
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
