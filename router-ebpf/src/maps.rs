//! The maps. All are pinned by the agent, and BTF gives their fields names in bpftool.

use aya_ebpf::btf_maps::{Array, HashMap, LruHashMap, PerCpuArray};
use aya_ebpf::macros::btf_map;
use router_common::flow::{
    Connection, Endpoint, FlowKey, Losses, PairKey, PairStats, Pod, PodHttp, PodPort, PodTraffic,
    QueuePairKey, QueuePairStats, Settings, Uplink,
};
use router_common::http::{HEAD_WINDOW, HeadScan, Stream};
use router_common::maps;
use router_common::roce::Sequences;

/// The pods that the agent knows, by address. Written by the agent.
#[btf_map]
pub static PODS: HashMap<Endpoint, Pod, { maps::PODS }> = HashMap::new();

/// Ports with a traffic class of their own. Written by the agent.
#[btf_map]
pub static PORT_CLASSES: HashMap<PodPort, u32, { maps::PORT_CLASSES }> = HashMap::new();

/// Written by the agent.
#[btf_map]
pub static SETTINGS: Array<Settings, 1> = Array::new();

/// Interfaces towards other nodes, by index. Written by the agent.
#[btf_map]
pub static UPLINKS: HashMap<u32, Uplink, { maps::UPLINKS }> = HashMap::new();

/// Open connections of local pods.
#[btf_map]
pub static CONNECTIONS: HashMap<FlowKey, Connection, { maps::CONNECTIONS }> = HashMap::new();

/// Connections that were open before the programs were, by pair. Written by the agent alone.
#[btf_map]
pub static SEEDS: HashMap<PairKey, u64, { maps::PAIRS }> = HashMap::new();

/// Totals of local pods by peer and traffic class.
#[btf_map]
pub static PAIRS: HashMap<PairKey, PairStats, { maps::PAIRS }> = HashMap::new();

/// Packets of local pods, by id.
#[btf_map]
pub static POD_TRAFFIC: PerCpuArray<PodTraffic, { maps::LOCAL_PODS }> = PerCpuArray::new();

/// Requests to local pods, by id.
#[btf_map]
pub static POD_HTTP: Array<PodHttp, { maps::LOCAL_PODS }> = Array::new();

/// HTTP connections to local engines.
#[btf_map]
pub static STREAMS: HashMap<FlowKey, Stream, { maps::STREAMS }> = HashMap::new();

/// RoCEv2 by queue pair.
#[btf_map]
pub static QUEUE_PAIRS: HashMap<QueuePairKey, QueuePairStats, { maps::QUEUE_PAIRS }> =
    HashMap::new();

/// Which packets of RoCEv2 came before. One that makes room for another begins anew.
#[btf_map]
pub static SEQUENCES: LruHashMap<QueuePairKey, Sequences, { maps::QUEUE_PAIRS }> =
    LruHashMap::new();

/// What was not counted in detail.
#[btf_map]
pub static LOSSES: Array<Losses, 1> = Array::new();

/// What would not fit on the stack. No program that uses it interrupts another on the same CPU:
/// tc and XDP run with bottom halves disabled.
#[repr(C)]
pub struct Scratch {
    /// Where a number passes through to lose its bounds.
    pub forgotten: u64,
    pub head: HeadScan,
    pub stream: Stream,
    /// The packet at hand, from the side of the pod that it may be to or from.
    pub flow: FlowKey,
    pub queue_pair: QueuePairKey,
    pub bytes: [u8; HEAD_WINDOW as usize],
}

#[btf_map]
pub static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();
