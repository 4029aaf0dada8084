//! Pods: the properties that are read from them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use router_core::fleet::{ObjectName, Phase};

use super::super::objects::object_name;
use super::{Index, Source};

/// Labels with the index of a pod in a multi-node engine: those of LeaderWorkerSet, and of
/// RoleBasedGroup before and since v1alpha2. Only the pod with index 0 serves HTTP.
const NODE_INDEX_LABELS: [&str; 5] = [
    "leaderworkerset.sigs.k8s.io/worker-index",
    "rbg.workloads.x-k8s.io/component-index",
    "rbg.workloads.x-k8s.io/component-id",
    "component.rolebasedgroup.workloads.x-k8s.io/index",
    "instance.workloads.x-k8s.io/component-id",
];

/// Labels that the pods of one RoleBasedGroup share. Its name comes first: it is unique within a
/// namespace, and the same in both generations of labels.
const GROUP_LABELS: [&str; 4] = [
    "rbg.workloads.x-k8s.io/group-name",
    "rolebasedgroup.workloads.x-k8s.io/name",
    "rbg.workloads.x-k8s.io/group-uid",
    "rolebasedgroup.workloads.x-k8s.io/group-unique-key",
];

/// The properties of a pod. They are parsed once per change of the pod, not for every build.
#[derive(Debug)]
pub(super) struct PodSummary {
    pub(super) name: ObjectName,
    /// `namespace/name`.
    pub(super) full_name: Arc<str>,
    pub(super) uid: Arc<str>,
    pub(super) phase: Phase,
    /// Restarts of its containers.
    pub(super) restarts: u32,
    /// Whether no container is known to wait, to start or to have ended.
    pub(super) runs: bool,
    /// The pod's address, or the reason why it serves no HTTP.
    pub(super) address: Result<IpAddr, String>,
    /// The RoleBasedGroup of the pod. Prefills and decodes of one group are preferred for each other.
    pub(super) group: Option<Arc<str>>,
    /// The node that the pod runs on.
    pub(super) node: Option<Arc<str>>,
}

/// A pod with its source and its properties.
pub(super) struct PodView<'a> {
    pub(super) source: &'a Source,
    pub(super) pod: &'a Pod,
    pub(super) summary: &'a PodSummary,
}

/// The UID of a pod. Files may omit it; then the pod's name is used.
pub(super) fn uid(pod: &Pod) -> Arc<str> {
    match pod.metadata.uid.as_deref().filter(|uid| !uid.is_empty()) {
        Some(uid) => uid.into(),
        None => object_name(&pod.metadata).to_string().into(),
    }
}

fn phase(pod: &Pod) -> Phase {
    if pod.metadata.deletion_timestamp.is_some() {
        return Phase::Draining;
    }
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref());
    let ready = |condition: &k8s_openapi::api::core::v1::PodCondition| {
        condition.type_ == "Ready" && condition.status == "True"
    };
    match conditions.unwrap_or_default().iter().any(ready) {
        true => Phase::Ready,
        false => Phase::NotReady,
    }
}

fn containers(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten())
}

fn runs(container: &ContainerStatus) -> bool {
    let state = container.state.as_ref();
    let ended = state.is_some_and(|state| state.terminated.is_some() || state.waiting.is_some());
    !ended && container.started != Some(false)
}

impl PodSummary {
    pub(super) fn read(pod: &Pod) -> PodSummary {
        let name = object_name(&pod.metadata);
        let label = |name: &&str| pod.metadata.labels.as_ref()?.get(*name).map(String::as_str);
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        PodSummary {
            full_name: name.to_string().into(),
            uid: uid(pod),
            phase: phase(pod),
            restarts: containers(pod)
                .map(|container| u32::try_from(container.restart_count).unwrap_or_default())
                .sum(),
            runs: containers(pod).all(runs),
            address: address(pod, label),
            group: GROUP_LABELS.iter().find_map(label).map(Into::into),
            node: node.filter(|node| !node.is_empty()).map(Into::into),
            name,
        }
    }
}

fn address<'p>(pod: &'p Pod, label: impl Fn(&&str) -> Option<&'p str>) -> Result<IpAddr, String> {
    let status = pod.status.as_ref();
    if let Some(phase @ ("Succeeded" | "Failed")) = status.and_then(|s| s.phase.as_deref()) {
        return Err(format!("pod phase is {phase}"));
    }
    for name in NODE_INDEX_LABELS {
        let index = label(&name).and_then(|value| value.parse::<u32>().ok());
        if let Some(index @ 1..) = index {
            return Err(format!(
                "is node {index} of a multi-node engine ({name}); only node 0 serves HTTP"
            ));
        }
    }
    let Some(text) = status.and_then(|s| s.pod_ip.as_deref()).filter(|ip| !ip.is_empty()) else {
        return Err("has no status.podIP yet".to_owned());
    };
    text.parse().map_err(|_| format!("status.podIP {text:?} is not an IP address"))
}

impl<'a> PodView<'a> {
    /// The phase as Kubernetes reports it. A pod that has vanished without a deletion is not ready.
    pub(super) fn phase(&self, index: &Index) -> Phase {
        match index.has_vanished(&self.summary.name) {
            true => Phase::NotReady,
            false => self.summary.phase,
        }
    }

    pub(super) fn label(&self, name: &str) -> Option<&'a str> {
        self.pod.metadata.labels.as_ref()?.get(name).map(String::as_str)
    }

    pub(super) fn annotation(&self, name: &str) -> Option<&'a str> {
        self.pod.metadata.annotations.as_ref()?.get(name).map(String::as_str)
    }

    /// Whether the pod has every label of `selector`. An empty selector selects nothing, because
    /// routing to a whole namespace is never intended.
    pub(super) fn selected_by(&self, selector: &BTreeMap<String, String>) -> bool {
        !selector.is_empty()
            && selector.iter().all(|(name, value)| self.label(name) == Some(value.as_str()))
    }
}
