//! What is read of a Pod.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use router_core::fleet::{ObjectName, Phase};

use super::super::objects::{Kind, object_name};
use super::Source;
use super::build::{Build, Subject};

/// Pods of one fleet; the ones beyond, in the order of their names, are left out and counted.
pub(super) const MAX_PODS: usize = 10_000;

/// Labels that number the pods of one engine that spans nodes: LeaderWorkerSet's, and those of
/// RoleBasedGroup before and since its v1alpha2. Only number 0 serves HTTP.
const NODE_INDEX_LABELS: [&str; 5] = [
    "leaderworkerset.sigs.k8s.io/worker-index",
    "rbg.workloads.x-k8s.io/component-index",
    "rbg.workloads.x-k8s.io/component-id",
    "component.rolebasedgroup.workloads.x-k8s.io/index",
    "instance.workloads.x-k8s.io/component-id",
];

/// Labels that pods of one RoleBasedGroup share. Its name first: in one namespace it is as exact as
/// the keys, and the same in both generations of the labels.
const GROUP_LABELS: [&str; 4] = [
    "rbg.workloads.x-k8s.io/group-name",
    "rolebasedgroup.workloads.x-k8s.io/name",
    "rbg.workloads.x-k8s.io/group-uid",
    "rolebasedgroup.workloads.x-k8s.io/group-unique-key",
];

/// What is read of a pod, once and not for every fleet: a fleet is made anew for each pod that changes.
#[derive(Debug)]
pub(super) struct Card {
    pub(super) name: ObjectName,
    /// `namespace/name`.
    pub(super) full_name: Arc<str>,
    pub(super) uid: Arc<str>,
    pub(super) phase: Phase,
    /// The pod's address, or why it has none that serves HTTP.
    pub(super) address: Result<IpAddr, String>,
    /// The group whose pods are preferred for each other.
    pub(super) group: Option<Arc<str>>,
    /// The node that it runs on.
    pub(super) node: Option<Arc<str>>,
}

/// A pod as the later steps look at it.
pub(super) struct PodView<'a> {
    pub(super) source: &'a Source,
    pub(super) pod: &'a Pod,
    pub(super) card: &'a Card,
}

/// What makes a pod the same pod. Files may leave the UID out: then its name must do.
pub(super) fn uid(pod: &Pod) -> Arc<str> {
    match pod.metadata.uid.as_deref().filter(|uid| !uid.is_empty()) {
        Some(uid) => uid.into(),
        None => object_name(&pod.metadata).to_string().into(),
    }
}

pub(super) fn read(build: &mut Build<'_>) {
    let index = build.index;
    for (count, view) in index.pod_views().enumerate() {
        if count == MAX_PODS {
            let reason = format!(
                "is the first of {} beyond the limit of {MAX_PODS}: no workers",
                index.pod_views().count() - count
            );
            build.complain(view.subject(), "", "TooMany", reason);
            break;
        }
        match build.pods.get_mut(&view.card.name.namespace) {
            Some(pods) => pods.push(view),
            None => _ = build.pods.insert(Arc::clone(&view.card.name.namespace), vec![view]),
        }
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

impl Card {
    pub(super) fn read(pod: &Pod) -> Card {
        let name = object_name(&pod.metadata);
        let label = |name: &&str| pod.metadata.labels.as_ref()?.get(*name).map(String::as_str);
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        Card {
            full_name: name.to_string().into(),
            uid: uid(pod),
            phase: phase(pod),
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
        return Err(format!("has ended: {phase}"));
    }
    for name in NODE_INDEX_LABELS {
        let index = label(&name).and_then(|value| value.parse::<u32>().ok());
        if let Some(index @ 1..) = index {
            return Err(format!("is node {index} of its engine ({name}); node 0 serves"));
        }
    }
    let Some(text) = status.and_then(|s| s.pod_ip.as_deref()).filter(|ip| !ip.is_empty()) else {
        return Err("has no status.podIP yet".to_owned());
    };
    text.parse().map_err(|_| format!("status.podIP {text:?} is no IP address"))
}

impl<'a> PodView<'a> {
    pub(super) fn label(&self, name: &str) -> Option<&'a str> {
        self.pod.metadata.labels.as_ref()?.get(name).map(String::as_str)
    }

    pub(super) fn annotation(&self, name: &str) -> Option<&'a str> {
        self.pod.metadata.annotations.as_ref()?.get(name).map(String::as_str)
    }

    /// Whether every label of `selector` stands on the pod. An empty selector selects nothing:
    /// routing to a whole namespace is never meant.
    pub(super) fn selected_by(&self, selector: &BTreeMap<String, String>) -> bool {
        !selector.is_empty()
            && selector.iter().all(|(name, value)| self.label(name) == Some(value.as_str()))
    }

    pub(super) fn subject(&self) -> Subject<'a> {
        Subject { source: self.source, kind: Kind::Pod, name: &self.card.name }
    }
}
