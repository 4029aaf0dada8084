//! Finds the pods that are gateways of the same installation.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use k8s_openapi::api::core::v1::Pod;
use router_core::fleet::Phase;

use super::build::{Build, Subject};
use super::{Source, agents};
use crate::config::Labels;

/// The name of the container port that is a gateway's admin port, and the default port.
const PORT_NAME: &str = "admin";
const PORT: u16 = 9901;
/// Maximum number of gateways in a fleet. Each asks all others. The rest is ignored and reported.
const MAX_GATEWAYS: usize = 64;

/// The default of the labels by which gateways find each other's pods.
pub(in crate::control) fn default_labels() -> BTreeMap<String, String> {
    Labels::of_gateways().0
}

/// Returns the admin ports of all gateways, this one among them. As with agents, those of another
/// namespace of a cluster are not trusted: they would be sent the token.
pub(super) fn find(build: &mut Build<'_>) -> Vec<SocketAddr> {
    let labels = &build.index.gateway_labels;
    if labels.is_empty() {
        return Vec::new();
    }
    let mut gateways = Vec::new();
    let mut over_limit = None;
    for pod in build.pods.values().flatten() {
        let is_gateway = labels.iter().all(|(name, value)| pod.label(name) == Some(value));
        let trusted = *pod.source != Source::Cluster
            || build.index.agent_namespace.as_ref() == Some(&pod.summary.name.namespace);
        if !is_gateway || !trusted || pod.summary.phase == Phase::Draining {
            continue;
        }
        let Ok(ip) = pod.summary.address else { continue };
        if gateways.len() == MAX_GATEWAYS {
            over_limit = Some(Subject::of_pod(pod));
            break;
        }
        gateways.push(SocketAddr::new(ip, port(pod.pod)));
    }
    if let Some(subject) = over_limit {
        let reason = format!("is a gateway over the limit of {MAX_GATEWAYS}; it is ignored");
        build.add_problem(subject, "", "TooMany", reason);
    }
    gateways.sort();
    gateways.dedup();
    gateways
}

fn port(pod: &Pod) -> u16 {
    agents::named_port(pod, PORT_NAME).unwrap_or(PORT)
}
