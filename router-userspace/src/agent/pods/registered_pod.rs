//! [`RegisteredPod`]: a pod, how it is reached, and its id in the maps.

use crate::agent::pods::source::KnownPod;

/// A pod and how it is reached from this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::agent) struct PlacedPod {
    pub(in crate::agent) pod: KnownPod,
    /// The pod runs on this node.
    pub(in crate::agent) local: bool,
    /// Index of the interface that carries a local pod; 0 if it is unknown or the programs find it.
    pub(in crate::agent) ifindex: u32,
    pub(in crate::agent) behind_bridge: bool,
}

/// A pod with its id in the maps.
#[derive(Clone, Debug)]
pub(in crate::agent) struct RegisteredPod {
    pub(in crate::agent) id: u32,
    /// Requests are counted on the pod's interface, not at its sockets.
    pub(in crate::agent) by_interface: bool,
    pub(in crate::agent) placed: PlacedPod,
}
