//! Pods that are agents of pd-router: whom to ask what the kernel of a node measured.

use std::net::SocketAddr;
use std::sync::Arc;

use router_core::fleet::{AgentAddress, Phase};

use super::Source;
use super::build::Build;

/// The labels of an agent's pod, as the recommended labels of Kubernetes have them.
pub(in crate::control) const AGENT_LABELS: [(&str, &str); 2] =
    [("app.kubernetes.io/name", "pd-router"), ("app.kubernetes.io/component", "agent")];
/// The name of the container port on which an agent answers, and the port where none is named.
const PORT_NAME: &str = "loads";
const PORT: u16 = 9911;
/// Agents of one fleet; what is beyond is left out and told.
const MAX_AGENTS: usize = 1_000;

/// Every agent with an address, ready or not: one that cannot answer is tried again.
pub(super) fn find(build: &mut Build<'_>) -> Vec<AgentAddress> {
    let mut agents = Vec::new();
    let mut beyond = None;
    for pod in build.pods.values().flatten() {
        let is_agent = AGENT_LABELS.iter().all(|(name, value)| pod.label(name) == Some(*value));
        if !is_agent {
            continue;
        }
        let card = pod.card;
        let Ok(ip) = card.address else { continue };
        let trusted = *pod.source != Source::Cluster
            || build.index.agents_of.as_ref() == Some(&card.name.namespace);
        if !trusted || card.phase == Phase::Draining {
            continue;
        }
        if agents.len() == MAX_AGENTS {
            beyond = Some(pod.subject());
            break;
        }
        let address = SocketAddr::new(ip, port(pod.pod));
        let (node, name) = (card.node.clone(), Arc::clone(&card.full_name));
        agents.push(AgentAddress { address, node, name });
    }
    if let Some(subject) = beyond {
        let reason = format!("is an agent beyond the limit of {MAX_AGENTS}: nobody asks it");
        build.complain(subject, "", "TooMany", reason);
    }
    agents.sort();
    agents.dedup_by(|a, b| a.address == b.address);
    agents
}

fn port(pod: &k8s_openapi::api::core::v1::Pod) -> u16 {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
    let named = ports.find(|port| port.name.as_deref() == Some(PORT_NAME));
    named.and_then(|port| u16::try_from(port.container_port).ok()).unwrap_or(PORT)
}
