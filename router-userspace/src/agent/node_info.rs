//! What the agent knows of its node beside the counters.

use super::attachments::AttachedInterface;
use super::pods::map_contents::LearnedPorts;
use super::pods::registered_pod::RegisteredPod;

/// The pods, ports and interfaces of this node, and what cannot be measured.
#[derive(Debug, Default)]
pub(super) struct NodeInfo {
    /// The registered pods, sorted by id.
    pub(super) pods: Vec<RegisteredPod>,
    pub(super) learned_ports: LearnedPorts,
    pub(super) interfaces: Vec<AttachedInterface>,
    /// What cannot be measured on this node, and why.
    pub(super) missing: Vec<String>,
    /// The name of this node; `None` if no flag gives it.
    pub(super) name: Option<String>,
}

impl NodeInfo {
    pub(super) fn pod(&self, id: u32) -> Option<&RegisteredPod> {
        let at = self.pods.binary_search_by_key(&id, |pod| pod.id);
        at.ok().and_then(|at| self.pods.get(at))
    }
}
