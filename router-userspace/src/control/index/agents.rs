//! Finds the pods that are pd-router's node agents.

use std::net::SocketAddr;
use std::sync::Arc;

use router_core::fleet::{AgentAddress, Phase};

use super::Source;
use super::build::{Build, Subject};

/// The labels of an agent's pod.
pub(in crate::control) const AGENT_LABELS: [(&str, &str); 2] =
    [("app.kubernetes.io/name", "pd-router"), ("app.kubernetes.io/component", "agent")];
/// The name of the container port that an agent listens on, and the default port.
const PORT_NAME: &str = "loads";
const PORT: u16 = 9911;
/// Maximum number of agents in a fleet. The rest is ignored and reported.
const MAX_AGENTS: usize = 1_000;

/// Returns every agent with an address. Readiness does not matter, because subscriptions are retried.
pub(super) fn find(build: &mut Build<'_>) -> Vec<AgentAddress> {
    let mut agents = Vec::new();
    let mut over_limit = None;
    for pod in build.pods.values().flatten() {
        let is_agent = AGENT_LABELS.iter().all(|(name, value)| pod.label(name) == Some(*value));
        if !is_agent {
            continue;
        }
        let summary = pod.summary;
        let Ok(ip) = summary.address else { continue };
        let trusted = *pod.source != Source::Cluster
            || build.index.agent_namespace.as_ref() == Some(&summary.name.namespace);
        if !trusted || summary.phase == Phase::Draining {
            continue;
        }
        if agents.len() == MAX_AGENTS {
            over_limit = Some(Subject::of_pod(pod));
            break;
        }
        let port = named_port(pod.pod, PORT_NAME).unwrap_or(PORT);
        let address = SocketAddr::new(ip, port);
        let (node, name) = (summary.node.clone(), Arc::clone(&summary.full_name));
        agents.push(AgentAddress { address, node, name });
    }
    if let Some(subject) = over_limit {
        let reason = format!("is an agent over the limit of {MAX_AGENTS}; it is ignored");
        build.add_problem(subject, "", "TooMany", reason);
    }
    agents.sort();
    agents.dedup_by(|a, b| a.address == b.address);
    agents
}

/// The port of a container with this name.
pub(super) fn named_port(pod: &k8s_openapi::api::core::v1::Pod, name: &str) -> Option<u16> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
    let named = ports.find(|port| port.name.as_deref() == Some(name));
    named.and_then(|port| u16::try_from(port.container_port).ok())
}
