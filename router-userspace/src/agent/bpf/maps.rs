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

use crate::agent::bpf::programs;
use crate::agent::bpf::syscall::{MapTable, PerCpuTable};

/// Every map that userspace reads or writes.
#[derive(Debug)]
pub struct Maps {
    pub pods: MapTable<PodAddress, Pod>,
    pub port_classes: MapTable<PodPort, u32>,
    pub settings: MapTable<u32, ProgramSettings>,
    pub uplinks: MapTable<u32, Uplink>,
    pub connections: MapTable<FlowKey, OpenConnection>,
    pub preexisting: MapTable<PairKey, u64>,
    pub pairs: MapTable<PairKey, PairStats>,
    pub pod_traffic: PerCpuTable<u32, PodTraffic>,
    pub pod_http: MapTable<u32, PodHttp>,
    pub streams: MapTable<FlowKey, HttpStream>,
    pub queue_pairs: MapTable<QueuePairKey, QueuePairStats>,
    pub sequences: MapTable<QueuePairKey, Sequences>,
    pub losses: MapTable<u32, Losses>,
}

impl Maps {
    /// Opens the maps that are pinned under `pins`.
    ///
    /// # Errors
    /// A map is missing or has another layout.
    pub fn open(pins: &Path) -> Result<Maps> {
        let at = |name: &str| pins.join(name);
        Ok(Maps {
            pods: MapTable::open(&at("PODS"))?,
            port_classes: MapTable::open(&at("PORT_CLASSES"))?,
            settings: MapTable::open(&at("SETTINGS"))?,
            uplinks: MapTable::open(&at("UPLINKS"))?,
            connections: MapTable::open(&at("CONNECTIONS"))?,
            preexisting: MapTable::open(&at("PREEXISTING"))?,
            pairs: MapTable::open(&at("PAIRS"))?,
            pod_traffic: PerCpuTable::open(&at("POD_TRAFFIC"), programs::possible_cpus()?)?,
            pod_http: MapTable::open(&at("POD_HTTP"))?,
            streams: MapTable::open(&at("STREAMS"))?,
            queue_pairs: MapTable::open(&at("QUEUE_PAIRS"))?,
            sequences: MapTable::open(&at("SEQUENCES"))?,
            losses: MapTable::open(&at("LOSSES"))?,
        })
    }
}

/// Whether `pins` holds maps of another layout, which this agent cannot use.
pub fn has_other_layout(pins: &Path) -> bool {
    if !pins.join("SETTINGS").exists() {
        return false;
    }
    let settings = MapTable::<u32, ProgramSettings>::open(&pins.join("SETTINGS"));
    let layout = settings.and_then(|settings| settings.get(&0)).ok().flatten();
    layout.is_none_or(|found| found.layout != LAYOUT) || Maps::open(pins).is_err()
}
