//! The keys and values of the maps, as `bpftool map dump` shows them.
//!
//! IPv4 addresses are v4-mapped (`::ffff:a.b.c.d`); ports are in host order; counters never decrease.

use crate::histogram::BUCKETS;
use crate::http::HttpStream;

/// The address of a pod, with a port if several pods share the address (hostNetwork).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, bytemuck::Pod, bytemuck::Zeroable)]
pub struct PodAddress {
    pub address: [u8; 16],
    /// 0 for a pod with an address of its own.
    pub port: u16,
    pub reserved: u16,
}

/// The pod runs on this node.
pub const POD_LOCAL: u32 = 1;
/// The address is that of a node: pods are looked up by address and port.
pub const POD_SHARES_ADDRESS: u32 = 2;
/// The pod is behind a bridge: its bridge port is learned from the packets it sends.
pub const POD_BEHIND_BRIDGE: u32 = 4;
/// Requests and KV cache of the pod are counted by the tc programs on its interface. Without this flag
/// the cgroup programs count them at its sockets. So no request counts twice.
pub const POD_BY_INTERFACE: u32 = 8;

/// Not an engine.
pub const ROLE_NONE: u32 = 0;
/// A prefill engine.
pub const ROLE_PREFILL: u32 = 1;
/// A decode engine.
pub const ROLE_DECODE: u32 = 2;
/// An engine that serves both legs itself.
pub const ROLE_UNIFIED: u32 = 3;

/// A pod, as the agent writes it for the programs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Pod {
    /// Index into the per-pod arrays for a local pod; a number above them for a remote one.
    pub id: u32,
    pub flags: u32,
    pub role: u32,
    /// Index of the interface that carries the pod; 0 while it is unknown.
    pub ifindex: u32,
    /// Hash of the UID, by which a restarted agent recognises its pods.
    pub uid: u64,
    /// HTTP ports of the engine; unused slots are 0.
    pub http_ports: [u16; 4],
}

/// A port of one pod.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, bytemuck::Pod, bytemuck::Zeroable)]
pub struct PodPort {
    pub pod: u32,
    pub port: u16,
    pub reserved: u16,
}

/// None of the other classes.
pub const CLASS_OTHER: u32 = 0;
/// Requests to an engine.
pub const CLASS_ENGINE: u32 = 1;
/// The bootstrap server of a prefill.
pub const CLASS_BOOTSTRAP: u32 = 2;
/// KV cache on its way from prefill to decode.
pub const CLASS_KV: u32 = 3;
/// Control messages of a KV transfer: which pages are wanted, and how it went.
pub const CLASS_KV_CONTROL: u32 = 4;
/// Number of classes.
pub const CLASSES: u32 = 5;

/// The settings of the programs, and the layout version of the pinned maps.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct ProgramSettings {
    pub layout: u64,
    /// 1 if the sock_ops program counts connections, 0 if the tracepoint does.
    pub sock_ops: u32,
    /// First and last port of connections that carry KV cache.
    pub kv_first: u16,
    pub kv_last: u16,
    /// Raised with every change of the pods and of their ports: a socket is then looked up again.
    pub generation: u32,
    /// 1 if the cgroup_skb programs count at sockets, 0 if the tc programs count for every pod.
    pub cgroup_skb: u32,
}

/// An interface towards other nodes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Uplink {
    /// 1 if XDP counts what arrives, so that tc must not.
    pub xdp: u32,
}

/// A TCP connection, from the side of a local pod.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, bytemuck::Pod, bytemuck::Zeroable)]
pub struct FlowKey {
    pub local: [u8; 16],
    pub remote: [u8; 16],
    pub local_port: u16,
    pub remote_port: u16,
}

/// A local pod, a peer and a traffic class. Peer 0 stands for all peers that are not known pods.
#[repr(C)]
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    bytemuck::Pod,
    bytemuck::Zeroable,
)]
pub struct PairKey {
    pub pod: u32,
    pub peer: u32,
    pub class: u32,
}

/// The sock_ops program closes the connection.
pub const OWNER_SOCK_OPS: u32 = 1;
/// The tracepoint closes it: it is older than the programs, or there is no sock_ops.
pub const OWNER_TRACEPOINT: u32 = 2;

/// An open connection, and how much of it is already in the counters of its pair.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct OpenConnection {
    pub pair: PairKey,
    pub owner: u32,
    pub established: u32,
    pub retransmits: u32,
    /// The part of the socket's `bytes_acked` that is counted.
    pub acked: u64,
    /// The part of the socket's `bytes_received` that is counted.
    pub received: u64,
    /// Value of `bytes_acked` before the first payload byte: 1 on the side that connects, for its SYN.
    pub acked_syn: u32,
    /// The last TCP state.
    pub state: u32,
    /// Eight times the smoothed round-trip time of the socket; 0 before the first sample.
    pub srtt_us_by_8: u32,
    pub reserved: u32,
    pub since_ns: u64,
}

/// The socket is of an engine's HTTP port.
pub const SOCKET_ENGINE: u32 = 1;
/// The socket carries KV cache.
pub const SOCKET_KV: u32 = 2;
/// The state of the HTTP connection has begun.
pub const SOCKET_HTTP: u32 = 4;
/// The HTTP connection is listed in STREAMS: its response has no known end.
pub const SOCKET_LISTED: u32 = 8;
/// The socket may carry control messages of KV transfers: its class is not known yet.
pub const SOCKET_MAY_CONTROL: u32 = 16;
/// The socket carries control messages of KV transfers.
pub const SOCKET_CONTROL: u32 = 32;

/// A TCP socket of a local pod. It is removed with the socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct PodSocket {
    /// Id of the pod; 0 if its address is no pod's any more.
    pub pod: u32,
    /// Bits [`SOCKET_ENGINE`] and following.
    pub kind: u32,
    /// Generation of the settings at which `pod` and `kind` were looked up.
    pub generation: u32,
    pub reserved: u32,
    pub stream: HttpStream,
}

/// Counters of the connections between a pod and a peer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct PairStats {
    /// Connection attempts and accepted connections.
    pub opened: u64,
    pub established: u64,
    /// Established connections that ended.
    pub closed: u64,
    /// Connection attempts that failed.
    pub failed: u64,
    /// Payload that the peer acknowledged.
    pub tx_bytes: u64,
    /// Payload that arrived in order.
    pub rx_bytes: u64,
    pub retransmits: u64,
    /// Sum and number of measured round-trip times.
    pub rtt_us_sum: u64,
    pub rtt_samples: u64,
    /// Sum of the bytes in the socket's delivery rate samples. Divided by `rate_us` it is the speed
    /// while data is in flight, without pauses.
    pub rate_bytes: u64,
    /// Sum of the durations of the delivery rate samples.
    pub rate_us: u64,
}

/// Packets of a local pod on the interface that carries it, and payload at its sockets, including
/// retransmits.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct PodTraffic {
    pub rx_packets: u64,
    pub rx_bytes: u64,
    /// TCP payload.
    pub rx_payload: u64,
    /// Payload that a prefill or decode received on KV ports: at its sockets, or on its interface with
    /// [`POD_BY_INTERFACE`]. It is live, while a socket that only receives reports its bytes to sock_ops
    /// at its next change of state.
    pub rx_kv_payload: u64,
    pub tx_packets: u64,
    pub tx_bytes: u64,
    pub tx_payload: u64,
    /// Received packets that arrived over an uplink.
    pub uplink_packets: u64,
    pub uplink_bytes: u64,
    /// TCP payload at the pod's sockets.
    pub socket_rx_payload: u64,
    pub socket_tx_payload: u64,
}

impl core::iter::Sum for PodTraffic {
    fn sum<I: Iterator<Item = PodTraffic>>(traffic: I) -> PodTraffic {
        traffic.fold(PodTraffic::default(), |sum, one| PodTraffic {
            rx_packets: sum.rx_packets + one.rx_packets,
            rx_bytes: sum.rx_bytes + one.rx_bytes,
            rx_payload: sum.rx_payload + one.rx_payload,
            rx_kv_payload: sum.rx_kv_payload + one.rx_kv_payload,
            tx_packets: sum.tx_packets + one.tx_packets,
            tx_bytes: sum.tx_bytes + one.tx_bytes,
            tx_payload: sum.tx_payload + one.tx_payload,
            uplink_packets: sum.uplink_packets + one.uplink_packets,
            uplink_bytes: sum.uplink_bytes + one.uplink_bytes,
            socket_rx_payload: sum.socket_rx_payload + one.socket_rx_payload,
            socket_tx_payload: sum.socket_tx_payload + one.socket_tx_payload,
        })
    }
}

/// HTTP requests to a local pod's engine.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct PodHttp {
    pub started: u64,
    /// Requests whose response began, and requests that ended without one.
    pub answered: u64,
    /// Bytes of requests, heads included.
    pub request_bytes: u64,
    /// Bytes of the requests whose response has begun.
    pub answered_request_bytes: u64,
    pub finished: u64,
    /// Finished requests that were cut short by the end of their connection.
    pub aborted: u64,
    /// Responses that continued after they were counted as finished.
    pub reopened: u64,
    /// Chunked responses whose body began and ended.
    pub streams_started: u64,
    pub streams_ended: u64,
    /// From the first byte of a request to the first byte of the response's body.
    pub ttft_ns_sum: u64,
    pub ttft_samples: u64,
    /// From one segment of a chunked response's body to the next.
    pub itl_ns_sum: u64,
    pub itl_samples: u64,
    /// From the first byte of a request to the last byte of its response.
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
            request_bytes: 0,
            answered_request_bytes: 0,
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
    /// Requests whose response has not ended.
    pub fn in_flight(&self) -> u64 {
        (self.started + self.reopened).saturating_sub(self.finished)
    }

    /// Requests whose response has not begun.
    pub fn waiting(&self) -> u64 {
        self.started.saturating_sub(self.answered)
    }

    /// Bytes of the requests whose response has not begun.
    pub fn waiting_bytes(&self) -> u64 {
        self.request_bytes.saturating_sub(self.answered_request_bytes)
    }

    /// Chunked responses whose body has begun and not ended.
    pub fn streaming(&self) -> u64 {
        self.streams_started.saturating_sub(self.streams_ended)
    }
}

/// A RoCEv2 queue pair as its packets name it. All zero stands for those that do not fit into the map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, bytemuck::Pod, bytemuck::Zeroable)]
pub struct QueuePairKey {
    pub source: [u8; 16],
    pub destination: [u8; 16],
    pub queue_pair: u32,
}

/// RoCEv2 packets to one queue pair.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct QueuePairStats {
    pub packets: u64,
    /// Retransmitted packets. They are not in the counters below.
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

/// Numbers of details that were not counted because a map was full, or a header unknown.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Losses {
    /// Connections that were counted when they closed, not while they were open.
    pub connections: u64,
    /// Pairs that were counted under peer 0.
    pub pairs: u64,
    /// HTTP connections whose requests were not counted.
    pub streams: u64,
    /// Queue pairs that were counted under the all-zero queue pair.
    pub queue_pairs: u64,
    /// Packets whose headers cannot be parsed.
    pub unreadable: u64,
    /// Segments with control messages that the ring had no space for.
    pub control: u64,
}

/// The v4-mapped form of an IPv4 address.
#[inline(always)]
pub const fn mapped(v4: [u8; 4]) -> [u8; 16] {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, v4[0], v4[1], v4[2], v4[3]]
}

const _: () = {
    assert!(size_of::<PodAddress>() == 20);
    assert!(size_of::<Pod>() == 32);
    assert!(size_of::<PodPort>() == 8);
    assert!(size_of::<ProgramSettings>() == 24);
    assert!(size_of::<PodSocket>() == 16 + size_of::<HttpStream>());
    assert!(size_of::<FlowKey>() == 36);
    assert!(size_of::<PairKey>() == 12);
    assert!(size_of::<OpenConnection>() == 64);
    assert!(size_of::<PairStats>() == 88);
    assert!(size_of::<PodTraffic>() == 88);
    assert!(size_of::<PodHttp>() == 15 * 8 + 2 * 8 * BUCKETS);
    assert!(size_of::<QueuePairKey>() == 36);
    assert!(size_of::<QueuePairStats>() == 64);
    assert!(size_of::<Losses>() == 48);
};
