//! The pinned maps, opened with their types, and whether they are of this layout.

use std::path::Path;

use anyhow::{Context, Result};
use router_common::flow::{
    Connection, Endpoint, FlowKey, Losses, PairKey, PairStats, Pod, PodHttp, PodPort, PodTraffic,
    QueuePairKey, QueuePairStats, Settings, Uplink,
};
use router_common::http::Stream;
use router_common::maps::LAYOUT;
use router_common::roce::Sequences;

use super::bpf::{PerCpu, Table};

/// Every map that userspace reads or writes.
#[derive(Debug)]
pub struct Maps {
    pub pods: Table<Endpoint, Pod>,
    pub port_classes: Table<PodPort, u32>,
    pub settings: Table<u32, Settings>,
    pub uplinks: Table<u32, Uplink>,
    pub connections: Table<FlowKey, Connection>,
    pub seeds: Table<PairKey, u64>,
    pub pairs: Table<PairKey, PairStats>,
    pub pod_traffic: PerCpu<u32, PodTraffic>,
    pub pod_http: Table<u32, PodHttp>,
    pub streams: Table<FlowKey, Stream>,
    pub queue_pairs: Table<QueuePairKey, QueuePairStats>,
    pub sequences: Table<QueuePairKey, Sequences>,
    pub losses: Table<u32, Losses>,
}

impl Maps {
    /// Opens the maps that are pinned under `pins`.
    ///
    /// # Errors
    /// One is missing or of another layout.
    pub fn open(pins: &Path) -> Result<Maps> {
        let at = |name: &str| pins.join(name);
        Ok(Maps {
            pods: Table::open(&at("PODS"))?,
            port_classes: Table::open(&at("PORT_CLASSES"))?,
            settings: Table::open(&at("SETTINGS"))?,
            uplinks: Table::open(&at("UPLINKS"))?,
            connections: Table::open(&at("CONNECTIONS"))?,
            seeds: Table::open(&at("SEEDS"))?,
            pairs: Table::open(&at("PAIRS"))?,
            pod_traffic: PerCpu::open(&at("POD_TRAFFIC"), possible_cpus()?)?,
            pod_http: Table::open(&at("POD_HTTP"))?,
            streams: Table::open(&at("STREAMS"))?,
            queue_pairs: Table::open(&at("QUEUE_PAIRS"))?,
            sequences: Table::open(&at("SEQUENCES"))?,
            losses: Table::open(&at("LOSSES"))?,
        })
    }
}

/// Whether maps are pinned under `pins` that this agent cannot go on with.
pub fn is_foreign(pins: &Path) -> bool {
    if !pins.join("SETTINGS").exists() {
        return false;
    }
    let settings = Table::<u32, Settings>::open(&pins.join("SETTINGS"));
    let layout = settings.and_then(|settings| settings.get(&0)).ok().flatten();
    layout.is_none_or(|found| found.layout != LAYOUT) || Maps::open(pins).is_err()
}

/// CPUs that the kernel keeps a value for: `0-3` is four.
fn possible_cpus() -> Result<usize> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    last_cpu(&text).map(|last| last + 1).context("reading the possible CPUs")
}

fn last_cpu(text: &str) -> Option<usize> {
    text.trim().rsplit([',', '-']).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_possible_cpu_is_the_last_number() {
        assert_eq!(last_cpu("0-3\n"), Some(3));
        assert_eq!(last_cpu("0\n"), Some(0));
        assert_eq!(last_cpu("0-3,8-15\n"), Some(15));
        assert_eq!(last_cpu("none"), None);
    }
}
