//! The pinned maps with their types, and the check of their layout.

use std::path::Path;

use anyhow::Result;
use router_common::flow::{
    FlowKey, Losses, OpenConnection, PairKey, PairStats, Pod, PodAddress, PodHttp, PodPort,
    PodTraffic, ProgramSettings, QueuePairKey, QueuePairStats, Uplink,
};
use router_common::http::HttpStream;
use router_common::maps::LAYOUT;
use router_common::roce::Sequences;

use crate::agent::bpf::tables::{ArrayTable, HashTable, PerCpuTable};

/// Every map that userspace reads or writes.
pub struct Maps {
    pub pods: HashTable<PodAddress, Pod>,
    pub port_classes: HashTable<PodPort, u32>,
    pub settings: ArrayTable<ProgramSettings>,
    pub uplinks: HashTable<u32, Uplink>,
    pub connections: HashTable<FlowKey, OpenConnection>,
    pub preexisting: HashTable<PairKey, u64>,
    pub pairs: HashTable<PairKey, PairStats>,
    pub pod_traffic: PerCpuTable<PodTraffic>,
    pub pod_http: ArrayTable<PodHttp>,
    pub streams: HashTable<FlowKey, HttpStream>,
    pub queue_pairs: HashTable<QueuePairKey, QueuePairStats>,
    pub sequences: HashTable<QueuePairKey, Sequences>,
    pub losses: ArrayTable<Losses>,
}

impl Maps {
    /// Opens the maps that are pinned under `pins`.
    ///
    /// # Errors
    /// A map is missing or has another layout.
    pub fn open(pins: &Path) -> Result<Maps> {
        let at = |name: &str| pins.join(name);
        Ok(Maps {
            pods: HashTable::open(&at("PODS"))?,
            port_classes: HashTable::open(&at("PORT_CLASSES"))?,
            settings: ArrayTable::open(&at("SETTINGS"))?,
            uplinks: HashTable::open(&at("UPLINKS"))?,
            connections: HashTable::open(&at("CONNECTIONS"))?,
            preexisting: HashTable::open(&at("PREEXISTING"))?,
            pairs: HashTable::open(&at("PAIRS"))?,
            pod_traffic: PerCpuTable::open(&at("POD_TRAFFIC"))?,
            pod_http: ArrayTable::open(&at("POD_HTTP"))?,
            streams: HashTable::open(&at("STREAMS"))?,
            queue_pairs: HashTable::open(&at("QUEUE_PAIRS"))?,
            sequences: HashTable::open(&at("SEQUENCES"))?,
            losses: ArrayTable::open(&at("LOSSES"))?,
        })
    }
}

/// Whether `pins` holds maps of another layout, which this agent cannot use.
pub fn has_other_layout(pins: &Path) -> bool {
    if !pins.join("SETTINGS").exists() {
        return false;
    }
    let settings = ArrayTable::<ProgramSettings>::open(&pins.join("SETTINGS"));
    let layout = settings.and_then(|settings| settings.get(&0)).ok().flatten();
    layout.is_none_or(|found| found.layout != LAYOUT) || Maps::open(pins).is_err()
}
