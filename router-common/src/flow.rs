//! The keys and counters that stand in the maps, as `bpftool map dump` shows them.
//!
//! IPv4 addresses are v4-mapped (`::ffff:a.b.c.d`); ports are in host order; counters only grow.

use crate::histogram::BUCKETS;

/// An address, and a port where the address alone does not name a pod (hostNetwork).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    pub address: [u8; 16],
    /// 0 for a pod with an address of its own.
    pub port: u16,
    pub reserved: u16,
}

/// The pod has its network on this node.
pub const POD_LOCAL: u32 = 1;
/// The address is a node's: the pod is found by address and port.
pub const POD_SHARES_ADDRESS: u32 = 2;
/// The pod is behind a bridge: the port that carries it is learned from what it sends.
pub const POD_BEHIND_BRIDGE: u32 = 4;

/// Not an engine.
pub const ROLE_NONE: u32 = 0;
/// Serves the prefill leg.
pub const ROLE_PREFILL: u32 = 1;
/// Serves the decode leg.
pub const ROLE_DECODE: u32 = 2;
/// An engine that serves both by itself.
pub const ROLE_PLAIN: u32 = 3;

/// One pod, as the agent tells the programs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Index into the per-pod arrays for a local pod; above them for a remote one.
    pub id: u32,
    pub flags: u32,
    pub role: u32,
    /// The interface that carries the pod, 0 while unknown.
    pub ifindex: u32,
    /// Hash of the pod's UID, so that a restarted agent knows its pods again.
    pub uid: u64,
    /// Ports on which the engine speaks HTTP; 0 where unused.
    pub http_ports: [u16; 4],
}

/// A port of one pod.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PodPort {
    pub pod: u32,
    pub port: u16,
    pub reserved: u16,
}

/// Neither of the others.
pub const CLASS_OTHER: u32 = 0;
/// Requests to an engine.
pub const CLASS_ENGINE: u32 = 1;
/// The bootstrap server of a prefill.
pub const CLASS_BOOTSTRAP: u32 = 2;
/// KV cache on its way from prefill to decode.
pub const CLASS_KV: u32 = 3;
/// What else a prefill and a decode tell each other: who waits for which pages, and how it went.
pub const CLASS_KV_CONTROL: u32 = 4;
/// How many classes there are.
pub const CLASSES: u32 = 5;

/// What the programs are told at the start, and the layout that the pins have.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    pub layout: u64,
    /// 1 while the sock_ops program counts connections; else the tracepoint does.
    pub sock_ops: u32,
    /// First and last port of connections that carry KV cache.
    pub kv_first: u16,
    pub kv_last: u16,
}

/// An interface towards other nodes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Uplink {
    /// 1 if XDP counts what arrives, so that tc must not.
    pub xdp: u32,
}

/// A TCP connection, from the side of a local pod.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    pub local: [u8; 16],
    pub remote: [u8; 16],
    pub local_port: u16,
    pub remote_port: u16,
}

/// A local pod, one peer and what they talk about. Peer 0 is everyone who is not a known pod.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PairKey {
    pub pod: u32,
    pub peer: u32,
    pub class: u32,
}

/// The sock_ops program closes the connection.
pub const OWNER_SOCK_OPS: u32 = 1;
/// The tracepoint closes it: older than the attach, or there is no sock_ops.
pub const OWNER_TRACEPOINT: u32 = 2;

/// An open connection: what of it is in the pair's counters already.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connection {
    pub pair: PairKey,
    pub owner: u32,
    pub established: u32,
    pub retransmits: u32,
    /// `bytes_acked` and `bytes_received` of the socket that are counted.
    pub acked: u64,
    pub received: u64,
    /// What `acked` had before the first payload byte: the SYN of the side that connects.
    pub acked_syn: u32,
    /// The TCP state that was last seen.
    pub state: u32,
    /// Eight times the smoothed round trip, as the socket had it last; 0 before the first.
    pub srtt_us_by_8: u32,
    pub reserved: u32,
    pub since_ns: u64,
}

/// Connections between a pod and a peer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PairStats {
    /// Connects begun and connections accepted.
    pub opened: u64,
    pub established: u64,
    /// Established ones that ended.
    pub closed: u64,
    /// Connects that never were established.
    pub failed: u64,
    /// Payload that the peer acknowledged.
    pub tx_bytes: u64,
    /// Payload that arrived in order.
    pub rx_bytes: u64,
    pub retransmits: u64,
    /// Sum and number of measured round-trip times.
    pub rtt_us_sum: u64,
    pub rtt_samples: u64,
    /// Sum of the socket's samples of what it delivered, and of the times that took: their ratio
    /// is the speed while something moves, whatever the pauses between.
    pub rate_bytes: u64,
    pub rate_us: u64,
}

/// Packets of a local pod on the interface that carries it, retransmits included.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodTraffic {
    pub rx_packets: u64,
    pub rx_bytes: u64,
    /// TCP payload.
    pub rx_payload: u64,
    /// What of it came to a prefill or decode on ports of KV cache: live, where the socket that only
    /// receives tells of its bytes at its next change of state.
    pub rx_kv_payload: u64,
    pub tx_packets: u64,
    pub tx_bytes: u64,
    pub tx_payload: u64,
    /// What of it came over an uplink.
    pub uplink_packets: u64,
    pub uplink_bytes: u64,
}

/// HTTP requests to a local pod's engine.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodHttp {
    pub started: u64,
    /// Requests whose answer began, or that ended without one.
    pub answered: u64,
    /// Bytes of requests, heads included, and those of them whose answer began since.
    pub asked_bytes: u64,
    pub answered_bytes: u64,
    pub finished: u64,
    /// Of the finished, those that a connection's end cut short.
    pub aborted: u64,
    /// Answers that went on after they were held to be finished.
    pub reopened: u64,
    /// Chunked answers whose body began and ended.
    pub streams_started: u64,
    pub streams_ended: u64,
    /// From the first byte of a request to the first byte of the answer's body.
    pub ttft_ns_sum: u64,
    pub ttft_samples: u64,
    /// From one segment of a chunked answer's body to the next.
    pub itl_ns_sum: u64,
    pub itl_samples: u64,
    /// From the first byte of a request to the last byte of its answer.
    pub duration_ns_sum: u64,
    pub duration_samples: u64,
    pub ttft_us: [u64; BUCKETS],
    pub itl_us: [u64; BUCKETS],
}

impl Default for PodHttp {
    fn default() -> Self {
        PodHttp {
            started: 0,
            answered: 0,
            asked_bytes: 0,
            answered_bytes: 0,
            finished: 0,
            aborted: 0,
            reopened: 0,
            streams_started: 0,
            streams_ended: 0,
            ttft_ns_sum: 0,
            ttft_samples: 0,
            itl_ns_sum: 0,
            itl_samples: 0,
            duration_ns_sum: 0,
            duration_samples: 0,
            ttft_us: [0; BUCKETS],
            itl_us: [0; BUCKETS],
        }
    }
}

impl PodHttp {
    /// Requests whose answer has not ended.
    pub fn in_flight(&self) -> u64 {
        (self.started + self.reopened).saturating_sub(self.finished)
    }

    /// Requests whose answer has not begun.
    pub fn waiting(&self) -> u64 {
        self.started.saturating_sub(self.answered)
    }

    /// Bytes of the requests whose answer has not begun.
    pub fn waiting_bytes(&self) -> u64 {
        self.asked_bytes.saturating_sub(self.answered_bytes)
    }

    /// Chunked answers whose body is under way.
    pub fn streaming(&self) -> u64 {
        self.streams_started.saturating_sub(self.streams_ended)
    }
}

/// A RoCEv2 queue pair as its packets name it. All zero stands for those that found no room.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct QueuePairKey {
    pub source: [u8; 16],
    pub destination: [u8; 16],
    pub queue_pair: u32,
}

/// RoCEv2 packets to one queue pair.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueuePairStats {
    pub packets: u64,
    /// Of the packets, those that came before: they count in nothing that follows.
    pub repeated: u64,
    /// Payload without headers, padding and ICRC.
    pub payload_bytes: u64,
    /// Last packets of messages, SENDs and WRITEs and READ responses alike.
    pub messages: u64,
    /// WRITE requests and the bytes that their RETH announces.
    pub writes: u64,
    pub write_bytes: u64,
    pub reads: u64,
    pub read_bytes: u64,
}

/// What could not be counted in detail because a map was full.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Counted when they closed, not while they were open.
    pub connections: u64,
    /// Counted under peer 0.
    pub pairs: u64,
    /// HTTP connections whose requests were not seen.
    pub streams: u64,
    /// Counted under the queue pair of nobody.
    pub queue_pairs: u64,
    /// Packets whose headers are of no known shape.
    pub unreadable: u64,
}

/// The v4-mapped form of an IPv4 address.
#[inline(always)]
pub const fn mapped(v4: [u8; 4]) -> [u8; 16] {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, v4[0], v4[1], v4[2], v4[3]]
}

const _: () = {
    assert!(size_of::<Endpoint>() == 20);
    assert!(size_of::<Pod>() == 32);
    assert!(size_of::<PodPort>() == 8);
    assert!(size_of::<Settings>() == 16);
    assert!(size_of::<FlowKey>() == 36);
    assert!(size_of::<PairKey>() == 12);
    assert!(size_of::<Connection>() == 64);
    assert!(size_of::<PairStats>() == 88);
    assert!(size_of::<PodTraffic>() == 72);
    assert!(size_of::<PodHttp>() == 15 * 8 + 2 * 8 * BUCKETS);
    assert!(size_of::<QueuePairKey>() == 36);
    assert!(size_of::<QueuePairStats>() == 64);
    assert!(size_of::<Losses>() == 40);
};
