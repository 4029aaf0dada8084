//! Names and capacities of the pinned maps, and the version of their layout.

/// Raised by every change to a struct in [`crate::flow`], [`crate::http`] or [`crate::roce`], or to a
/// capacity below: an agent that finds pins of another version replaces them.
pub const LAYOUT: u64 = 6;

/// The maps that are pinned, by their names under the pin directory.
pub const PINNED: [&str; 13] = [
    "PODS",
    "PORT_CLASSES",
    "SETTINGS",
    "UPLINKS",
    "CONNECTIONS",
    "SEEDS",
    "PAIRS",
    "POD_TRAFFIC",
    "POD_HTTP",
    "STREAMS",
    "QUEUE_PAIRS",
    "SEQUENCES",
    "LOSSES",
];

/// Pods known to the agent, local and remote.
pub const PODS: usize = 16_384;
/// Local pods: their ids are the indices of the per-pod arrays, and 0 is nobody.
pub const LOCAL_PODS: usize = 512;
/// Ports with a traffic class of their own.
pub const PORT_CLASSES: usize = 16_384;
/// Interfaces towards other nodes.
pub const UPLINKS: usize = 64;
/// TCP connections of local pods that are open.
pub const CONNECTIONS: usize = 65_536;
/// Connections between one local pod and one peer, by traffic class.
pub const PAIRS: usize = 16_384;
/// HTTP connections to the engines of local pods.
pub const STREAMS: usize = 65_536;
/// RoCEv2 flows, by source, destination and queue pair.
pub const QUEUE_PAIRS: usize = 16_384;
