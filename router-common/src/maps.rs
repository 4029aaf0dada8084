//! Names and capacities of the pinned maps, and the version of their layout.

/// Version of the layout. Raise it with every change to a struct in [`crate::flow`], [`crate::http`] or
/// [`crate::roce`], to a name or to a capacity below: an agent replaces pins of another version.
pub const LAYOUT: u64 = 9;

/// The maps that are pinned, by their names under the pin directory.
pub const PINNED: [&str; 14] = [
    "PODS",
    "PORT_CLASSES",
    "SETTINGS",
    "UPLINKS",
    "CONNECTIONS",
    "PREEXISTING",
    "PAIRS",
    "POD_TRAFFIC",
    "POD_HTTP",
    "SOCKETS",
    "STREAMS",
    "QUEUE_PAIRS",
    "SEQUENCES",
    "LOSSES",
];

/// Pods known to the agent, local and remote.
pub const PODS: usize = 16_384;
/// Local pods: their ids are the indices of the per-pod arrays, and 0 means no pod.
pub const LOCAL_PODS: usize = 512;
/// Ports with a traffic class of their own.
pub const PORT_CLASSES: usize = 16_384;
/// Interfaces towards other nodes.
pub const UPLINKS: usize = 64;
/// Open TCP connections of local pods.
pub const CONNECTIONS: usize = 65_536;
/// Pairs of a local pod and a peer, by traffic class.
pub const PAIRS: usize = 16_384;
/// HTTP connections to the engines of local pods that are counted on interfaces, and those whose response
/// has no known end.
pub const STREAMS: usize = 65_536;
/// Connections whose first data came before their socket existed (TCP Fast Open, deferred accepts).
pub const EARLY: usize = 4_096;
/// RoCEv2 flows, by source, destination and queue pair.
pub const QUEUE_PAIRS: usize = 16_384;
/// Bytes of the ring with segments of control messages: 1,310 segments. The agent empties it at every tick,
/// so it bounds how many are read a second.
pub const CONTROL_BYTES: usize = 256 << 10;
