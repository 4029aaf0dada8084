//! Which id each pod has, and what the maps are told of it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::sync::Arc;

use router_common::flow::{
    CLASS_KV, CLASS_KV_CONTROL, CLASS_OTHER, CLASSES, Endpoint, FlowKey, POD_BEHIND_BRIDGE,
    POD_LOCAL, POD_SHARES_ADDRESS, PairKey, PairStats, Pod, PodHttp, PodPort, QueuePairKey,
    QueuePairStats, ROLE_DECODE, ROLE_PREFILL,
};
use router_common::maps;
use tracing::{info, warn};

use super::described::{Described, Learned, hash};
use super::maps::Maps;
use super::pods::KnownPod;

/// A pod and how it is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Placed {
    pub(super) pod: KnownPod,
    pub(super) local: bool,
    /// The interface that carries a local pod, 0 if it is to be learned or not known.
    pub(super) ifindex: u32,
    pub(super) behind_bridge: bool,
}

/// A pod with its id.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) id: u32,
    pub(super) placed: Placed,
}

/// The pods that the maps know.
#[derive(Debug, Default)]
pub(super) struct Registry {
    entries: BTreeMap<Arc<str>, Entry>,
    /// The ids of local pods.
    local: Vec<u32>,
    /// What stands in PODS, by key.
    written: HashMap<Endpoint, Pod>,
    classes: HashMap<PodPort, u32>,
    kv_ports: (u16, u16),
    /// What the engines and the node's processes tell beside the manifests.
    pub(super) learned: Learned,
}

impl Registry {
    /// Takes up what an agent before wrote, so that its pods keep their ids.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn adopt(maps: &Maps, kv_ports: (u16, u16)) -> io::Result<Registry> {
        // Where a queue pair counts that finds no room: it must be there before it is needed.
        maps.queue_pairs.add(&QueuePairKey::default(), &QueuePairStats::default())?;
        let written = maps.pods.all(maps::PODS)?;
        let classes = maps.port_classes.all(maps::PORT_CLASSES)?;
        Ok(Registry {
            entries: BTreeMap::new(),
            local: Vec::new(),
            written: written.into_iter().collect(),
            classes: classes.into_iter().collect(),
            kv_ports,
            learned: Learned::default(),
        })
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    pub(super) fn local(&self) -> &[u32] {
        &self.local
    }

    /// Makes the maps say what `pods` say; the ids of pods that are new.
    ///
    /// # Errors
    /// The kernel's; what could be written is.
    pub(super) fn sync(&mut self, maps: &Maps, pods: Vec<Placed>) -> io::Result<BTreeSet<u32>> {
        let known: HashMap<u64, u32> =
            self.written.values().filter(|pod| pod.id != 0).map(|pod| (pod.uid, pod.id)).collect();
        let mut used: BTreeSet<u32> = known.values().copied().collect();
        let mut entries = BTreeMap::new();
        let mut new = BTreeSet::new();
        for placed in pods {
            let uid = hash(&placed.pod.uid);
            // A pod that moved between "here" and "elsewhere" is counted anew.
            let fits = |id: &u32| placed.local == (*id < maps::LOCAL_PODS as u32);
            let id = match known.get(&uid).copied().filter(fits) {
                Some(id) => id,
                None => match free_id(&used, placed.local) {
                    Some(id) => {
                        used.insert(id);
                        new.insert(id);
                        id
                    }
                    None => {
                        warn!(pod = %placed.pod.name, "more pods than fit: not counted");
                        continue;
                    }
                },
            };
            entries.insert(Arc::clone(&placed.pod.uid), Entry { id, placed });
        }
        self.entries = entries;
        let local = self.entries.values().filter(|entry| entry.placed.local);
        self.local = local.map(|entry| entry.id).collect();
        self.write(maps, &used, &new)?;
        Ok(new)
    }

    fn write(&mut self, maps: &Maps, used: &BTreeSet<u32>, new: &BTreeSet<u32>) -> io::Result<()> {
        let Described { mut pods, classes } = Described::of(&self.entries, &self.learned);
        let stale: Vec<Endpoint> =
            self.written.keys().filter(|key| !pods.contains_key(*key)).copied().collect();
        for key in stale {
            maps.pods.remove(&key)?;
        }
        let living: BTreeSet<u32> = self.entries.values().map(|entry| entry.id).collect();
        forget(maps, &used.difference(&living).copied().collect())?;
        for id in new.iter().filter(|id| **id < maps::LOCAL_PODS as u32) {
            maps.pod_traffic.clear(id)?;
            maps.pod_http.set(id, &PodHttp::default())?;
            for class in 0..CLASSES {
                // Where a pair counts that finds no room: it must be there before it is needed.
                let anyone = PairKey { pod: *id, peer: 0, class };
                maps.pairs.add(&anyone, &PairStats::default())?;
            }
        }
        for (key, class) in &classes {
            if self.classes.get(key) != Some(class) {
                maps.port_classes.set(key, class)?;
            }
        }
        for key in self.classes.keys().filter(|key| !classes.contains_key(*key)) {
            maps.port_classes.remove(key)?;
        }
        for (key, pod) in &mut pods {
            let was = self.written.get(key);
            if pod.flags & POD_BEHIND_BRIDGE != 0 && was.is_some_and(|was| was.id == pod.id) {
                // What the kernel learned stays.
                let learned = maps.pods.get(key)?;
                pod.ifindex = learned.map_or(0, |learned| learned.ifindex);
            }
            if was != Some(pod) {
                maps.pods.set(key, pod)?;
            }
        }
        (self.written, self.classes) = (pods, classes);
        Ok(())
    }

    /// The counters that a connection of a local pod adds to, as the kernel half decides it.
    pub(super) fn pair_of(&self, flow: &FlowKey) -> Option<PairKey> {
        let at = |address: [u8; 16], port: u16| {
            let found = self.written.get(&Endpoint { address, port: 0, reserved: 0 })?;
            if found.flags & POD_SHARES_ADDRESS == 0 {
                return Some(found);
            }
            self.written.get(&Endpoint { address, port, reserved: 0 })
        };
        let pod = at(flow.local, flow.local_port).filter(|pod| pod.flags & POD_LOCAL != 0)?;
        let nobody = Pod::default();
        let peer = at(flow.remote, flow.remote_port).unwrap_or(&nobody);
        let class_of = |pod: &Pod, port| {
            self.classes.get(&PodPort { pod: pod.id, port, reserved: 0 }).copied()
        };
        let carries = |port| (self.kv_ports.0..=self.kv_ports.1).contains(&port);
        let transfer = matches!(
            (pod.role, peer.role),
            (ROLE_PREFILL, ROLE_DECODE) | (ROLE_DECODE, ROLE_PREFILL)
        );
        let class = class_of(pod, flow.local_port)
            .or_else(|| class_of(peer, flow.remote_port))
            .unwrap_or(match transfer {
                true if carries(flow.local_port) || carries(flow.remote_port) => CLASS_KV,
                true => CLASS_KV_CONTROL,
                false => CLASS_OTHER,
            });
        Some(PairKey { pod: pod.id, peer: peer.id, class })
    }
}

/// Removes every counter of pods that are gone, so that their ids can be given again.
fn forget(maps: &Maps, gone: &BTreeSet<u32>) -> io::Result<()> {
    if gone.is_empty() {
        return Ok(());
    }
    info!(pods = gone.len(), "pods that are gone are forgotten");
    let names = |pair: &PairKey| gone.contains(&pair.pod) || gone.contains(&pair.peer);
    let connections = maps.connections.all(maps::CONNECTIONS)?;
    for (key, _) in connections.iter().filter(|(_, connection)| names(&connection.pair)) {
        maps.connections.remove(key)?;
    }
    let streams = maps.streams.all(maps::STREAMS)?;
    for (key, _) in streams.iter().filter(|(_, stream)| gone.contains(&stream.pod)) {
        maps.streams.remove(key)?;
    }
    for (key, _) in maps.pairs.all(maps::PAIRS)?.iter().filter(|(key, _)| names(key)) {
        maps.pairs.remove(key)?;
    }
    for (key, _) in maps.seeds.all(maps::PAIRS)?.iter().filter(|(key, _)| names(key)) {
        maps.seeds.remove(key)?;
    }
    Ok(())
}

fn free_id(used: &BTreeSet<u32>, local: bool) -> Option<u32> {
    let (first, end) = match local {
        true => (1, maps::LOCAL_PODS),
        false => (maps::LOCAL_PODS, maps::LOCAL_PODS + maps::PODS),
    };
    (first as u32..end as u32).find(|id| !used.contains(id))
}
