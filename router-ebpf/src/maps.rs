//! The maps. The agent pins most of them, and BTF gives their fields names in bpftool.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf, SkStorage};
use aya_ebpf::macros::btf_map;
use router_common::control::ControlSegment;
use router_common::flow::{
    FlowKey, Losses, OpenConnection, PairKey, PairStats, Pod, PodAddress, PodHttp, PodPort,
    PodSocket, PodTraffic, ProgramSettings, QueuePairKey, QueuePairStats, Uplink,
};
use router_common::http::{HEAD_WINDOW, HeadScan, HttpStream};
use router_common::maps;
use router_common::roce::Sequences;

/// The pods that the agent knows, by address. Written by the agent.
#[btf_map]
pub static PODS: HashMap<PodAddress, Pod, { maps::PODS }> = HashMap::new();

/// Ports with a traffic class of their own. Written by the agent.
#[btf_map]
pub static PORT_CLASSES: HashMap<PodPort, u32, { maps::PORT_CLASSES }> = HashMap::new();

/// Settings of the programs. Written by the agent.
#[btf_map]
pub static SETTINGS: Array<ProgramSettings, 1> = Array::new();

/// Interfaces towards other nodes, by index. Written by the agent.
#[btf_map]
pub static UPLINKS: HashMap<u32, Uplink, { maps::UPLINKS }> = HashMap::new();

/// Open connections of local pods.
#[btf_map]
pub static CONNECTIONS: HashMap<FlowKey, OpenConnection, { maps::CONNECTIONS }> = HashMap::new();

/// Number of connections that are older than the programs, by pair. Written by the agent alone.
#[btf_map]
pub static PREEXISTING: HashMap<PairKey, u64, { maps::PAIRS }> = HashMap::new();

/// Totals of local pods by peer and traffic class.
#[btf_map]
pub static PAIRS: HashMap<PairKey, PairStats, { maps::PAIRS }> = HashMap::new();

/// Packets of local pods, by id.
#[btf_map]
pub static POD_TRAFFIC: PerCpuArray<PodTraffic, { maps::LOCAL_PODS }> = PerCpuArray::new();

/// Requests to local pods, by id.
#[btf_map]
pub static POD_HTTP: Array<PodHttp, { maps::LOCAL_PODS }> = Array::new();

/// TCP sockets of local pods, with the state of their HTTP connections. An entry is removed with its socket.
#[btf_map]
pub static SOCKETS: SkStorage<PodSocket> = SkStorage::new();

/// HTTP connections to local engines that are counted on interfaces, and those whose response has no known
/// end. Memory is allocated by use.
#[btf_map]
pub static STREAMS: HashMap<
    FlowKey,
    HttpStream,
    { maps::STREAMS },
    { BPF_F_NO_PREALLOC as usize },
> = HashMap::new();

/// HTTP connections whose first data came before their socket existed. Not pinned.
#[btf_map]
pub static EARLY: LruHashMap<FlowKey, HttpStream, { maps::EARLY }> = LruHashMap::new();

/// Memory in which the head of a response is read.
#[repr(C)]
pub struct HeadScratch {
    pub head: HeadScan,
    pub bytes: [u8; HEAD_WINDOW as usize],
}

/// Memory in which the head of a response is read, for each socket of an engine: a program that runs when
/// a socket sends may be interrupted by another on the same CPU. Not pinned.
#[btf_map]
pub static HEADS: SkStorage<HeadScratch> = SkStorage::new();

/// RoCEv2 by queue pair.
#[btf_map]
pub static QUEUE_PAIRS: HashMap<QueuePairKey, QueuePairStats, { maps::QUEUE_PAIRS }> =
    HashMap::new();

/// Sequence numbers of RoCEv2 packets that arrived. A queue pair that is evicted starts from none.
#[btf_map]
pub static SEQUENCES: LruHashMap<QueuePairKey, Sequences, { maps::QUEUE_PAIRS }> =
    LruHashMap::new();

/// Segments with control messages of KV transfers, for the agent that loaded the programs. Not pinned.
#[btf_map]
pub static CONTROL: RingBuf<ControlSegment, { maps::CONTROL_BYTES }> = RingBuf::new();

/// Numbers of details that were not counted.
#[btf_map]
pub static LOSSES: Array<Losses, 1> = Array::new();

/// Memory that does not fit on the stack. No program that uses it interrupts another on the same CPU:
/// tc, XDP and cgroup_skb on ingress run with bottom halves disabled.
#[repr(C)]
pub struct ProgramScratch {
    /// A number is passed through it so that the verifier forgets its bounds.
    pub unbounded: u64,
    pub head: HeadScratch,
    pub stream: HttpStream,
    /// The connection of the current packet, with the possible local pod as `local`.
    pub flow: FlowKey,
    pub queue_pair: QueuePairKey,
}

#[btf_map]
pub static SCRATCH: PerCpuArray<ProgramScratch, 1> = PerCpuArray::new();
