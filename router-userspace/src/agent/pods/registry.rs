//! The id of each pod, and the reconciliation of the maps with the pods.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;
use std::sync::Arc;

use router_common::flow::{
    CLASS_KV, CLASS_KV_CONTROL, CLASS_OTHER, CLASSES, FlowKey, POD_BEHIND_BRIDGE, POD_BY_INTERFACE,
    POD_LOCAL, POD_SHARES_ADDRESS, PairKey, PairStats, Pod, PodAddress, PodHttp, PodPort,
    QueuePairKey, QueuePairStats, ROLE_DECODE, ROLE_PREFILL,
};
use router_common::maps;
use tracing::{info, warn};

use crate::agent::bpf::maps::Maps;
use crate::agent::pods::map_contents::{LearnedPorts, MapContents, uid_hash};
use crate::agent::pods::registered_pod::{PlacedPod, RegisteredPod};

/// The pods that the maps hold.
#[derive(Debug, Default)]
pub(in crate::agent) struct Registry {
    /// By UID.
    pods: BTreeMap<Arc<str>, RegisteredPod>,
    /// Ids of the local pods.
    local: Vec<u32>,
    /// Contents of the map PODS.
    written: HashMap<PodAddress, Pod>,
    /// Contents of the map PORT_CLASSES.
    classes: HashMap<PodPort, u32>,
    /// First and last port of KV cache.
    kv_ports: (u16, u16),
    /// Whether the cgroup programs count at sockets; else the tc programs count for every pod.
    at_sockets: bool,
    /// Hashes of the UIDs of pods that have no socket on this node, so that the tc programs count.
    without_sockets: HashSet<u64>,
    pub(in crate::agent) learned_ports: LearnedPorts,
}

impl Registry {
    /// Starts from what an earlier agent wrote to the maps, so that its pods keep their ids.
    ///
    /// # Errors
    /// The kernel's, if a map cannot be read or written.
    pub(in crate::agent) fn adopt(maps: &Maps, kv_ports: (u16, u16)) -> io::Result<Registry> {
        // Queue pairs that do not fit into the map are counted in this entry, so it must exist first.
        maps.queue_pairs.add(&QueuePairKey::default(), &QueuePairStats::default())?;
        let written = maps.pods.all(maps::PODS)?;
        let classes = maps.port_classes.all(maps::PORT_CLASSES)?;
        // The earlier agent's decisions, unless it had no choice.
        let had_sockets = maps.settings.get(&0)?.is_some_and(|settings| settings.cgroup_skb != 0);
        let decided = |pod: &Pod| had_sockets && pod.flags & POD_BY_INTERFACE != 0;
        let without_sockets =
            written.iter().filter(|(_, pod)| decided(pod)).map(|(_, pod)| pod.uid);
        Ok(Registry {
            without_sockets: without_sockets.collect(),
            at_sockets: false,
            pods: BTreeMap::new(),
            local: Vec::new(),
            written: written.into_iter().collect(),
            classes: classes.into_iter().collect(),
            kv_ports,
            learned_ports: LearnedPorts::default(),
        })
    }

    pub(in crate::agent) fn pods(&self) -> impl Iterator<Item = &RegisteredPod> {
        self.pods.values()
    }

    /// Ids of the local pods.
    pub(in crate::agent) fn local(&self) -> &[u32] {
        &self.local
    }

    /// Sets whether the cgroup programs count at sockets.
    pub(in crate::agent) fn set_at_sockets(&mut self, at_sockets: bool) {
        self.at_sockets = at_sockets;
    }

    /// Sets whether a pod has no socket on this node, so that its requests are counted on its interface.
    pub(in crate::agent) fn set_without_sockets(&mut self, uid: &str, without: bool) {
        let uid = uid_hash(uid);
        if without {
            self.without_sockets.insert(uid);
        } else {
            self.without_sockets.remove(&uid);
        }
    }

    /// Whether the requests of a pod are counted on its interface, not at its sockets.
    fn is_by_interface(&self, uid: u64) -> bool {
        !self.at_sockets || self.without_sockets.contains(&uid)
    }

    /// Makes the maps hold exactly `pods`, and returns the ids of the new ones.
    ///
    /// # Errors
    /// The kernel's, if a map cannot be written; entries before the failing one are written.
    pub(in crate::agent) fn sync(
        &mut self,
        maps: &Maps,
        pods: Vec<PlacedPod>,
    ) -> io::Result<BTreeSet<u32>> {
        let known: HashMap<u64, u32> =
            self.written.values().filter(|pod| pod.id != 0).map(|pod| (pod.uid, pod.id)).collect();
        let mut used: BTreeSet<u32> = known.values().copied().collect();
        let mut registered = BTreeMap::new();
        let mut new = BTreeSet::new();
        for placed in pods {
            let uid = uid_hash(&placed.pod.uid);
            // A pod that became local or remote needs an id of the other range, and new counters.
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
                        warn!(pod = %placed.pod.name, "pod not counted: no free id");
                        continue;
                    }
                },
            };
            let by_interface = self.is_by_interface(uid);
            let pod = RegisteredPod { id, by_interface, placed };
            registered.insert(Arc::clone(&pod.placed.pod.uid), pod);
        }
        let present: HashSet<u64> = registered.keys().map(|uid| uid_hash(uid)).collect();
        self.without_sockets.retain(|uid| present.contains(uid));
        self.pods = registered;
        let local = self.pods.values().filter(|pod| pod.placed.local);
        self.local = local.map(|pod| pod.id).collect();
        self.write(maps, &used, &new)?;
        Ok(new)
    }

    fn write(&mut self, maps: &Maps, used: &BTreeSet<u32>, new: &BTreeSet<u32>) -> io::Result<()> {
        let MapContents { mut pods, classes } = MapContents::new(&self.pods, &self.learned_ports);
        let stale: Vec<PodAddress> =
            self.written.keys().filter(|key| !pods.contains_key(*key)).copied().collect();
        let mut changed = !stale.is_empty();
        for key in stale {
            maps.pods.remove(&key)?;
        }
        for id in new.iter().filter(|id| **id < maps::LOCAL_PODS as u32) {
            maps.pod_traffic.clear(id)?;
            maps.pod_http.set(id, &PodHttp::default())?;
            for class in 0..CLASSES {
                // Pairs that do not fit into the map are counted in this entry, so it must exist first.
                let any_peer = PairKey { pod: *id, peer: 0, class };
                maps.pairs.add(&any_peer, &PairStats::default())?;
            }
        }
        for (key, class) in &classes {
            if self.classes.get(key) != Some(class) {
                maps.port_classes.set(key, class)?;
                changed = true;
            }
        }
        for key in self.classes.keys().filter(|key| !classes.contains_key(*key)) {
            maps.port_classes.remove(key)?;
            changed = true;
        }
        let mut moved = BTreeSet::new();
        for (key, pod) in &mut pods {
            let before = self.written.get(key);
            if pod.flags & POD_BEHIND_BRIDGE != 0 && before.is_some_and(|old| old.id == pod.id) {
                // Keep the bridge port that the programs learned.
                let current = maps.pods.get(key)?;
                pod.ifindex = current.map_or(0, |current| current.ifindex);
            }
            if before != Some(pod) {
                maps.pods.set(key, pod)?;
                changed = true;
                let is_moved = |old: &Pod| (old.flags ^ pod.flags) & POD_BY_INTERFACE != 0;
                if before.is_some_and(|old| pod.id != 0 && old.id == pod.id && is_moved(old)) {
                    moved.insert(pod.id);
                }
            }
        }
        if changed {
            // Sockets that were looked up before are looked up again.
            let mut settings = maps.settings.get(&0)?.unwrap_or_default();
            settings.generation = settings.generation.wrapping_add(1);
            maps.settings.set(&0, &settings)?;
        }
        // Last: until the generation rises, sockets count for the pod that they were looked up for.
        let present: BTreeSet<u32> = self.pods.values().map(|pod| pod.id).collect();
        remove_counters(maps, &used.difference(&present).copied().collect())?;
        moved.iter().try_for_each(|id| end_requests(maps, *id))?;
        (self.written, self.classes) = (pods, classes);
        Ok(())
    }

    /// The counters that a connection of a local pod adds to: the same decision as in the programs.
    pub(in crate::agent) fn pair_of(&self, flow: &FlowKey) -> Option<PairKey> {
        let at = |address: [u8; 16], port: u16| {
            let found = self.written.get(&PodAddress { address, port: 0, reserved: 0 })?;
            if found.flags & POD_SHARES_ADDRESS == 0 {
                return Some(found);
            }
            self.written.get(&PodAddress { address, port, reserved: 0 })
        };
        let pod = at(flow.local, flow.local_port).filter(|pod| pod.flags & POD_LOCAL != 0)?;
        let unknown = Pod::default();
        let peer = at(flow.remote, flow.remote_port).unwrap_or(&unknown);
        let class_of = |pod: &Pod, port| {
            self.classes.get(&PodPort { pod: pod.id, port, reserved: 0 }).copied()
        };
        let is_kv_port = |port| (self.kv_ports.0..=self.kv_ports.1).contains(&port);
        let is_transfer = matches!(
            (pod.role, peer.role),
            (ROLE_PREFILL, ROLE_DECODE) | (ROLE_DECODE, ROLE_PREFILL)
        );
        let class = class_of(pod, flow.local_port)
            .or_else(|| class_of(peer, flow.remote_port))
            .unwrap_or(match is_transfer {
                true if is_kv_port(flow.local_port) || is_kv_port(flow.remote_port) => CLASS_KV,
                true => CLASS_KV_CONTROL,
                false => CLASS_OTHER,
            });
        Some(PairKey { pod: pod.id, peer: peer.id, class })
    }
}

/// Ends the requests in flight of a pod, because another hook counts from now on, which has not seen them.
fn end_requests(maps: &Maps, id: u32) -> io::Result<()> {
    let streams = maps.streams.all(maps::STREAMS)?;
    for (key, _) in streams.iter().filter(|(_, stream)| stream.pod == id) {
        maps.streams.remove(key)?;
    }
    let Some(mut http) = maps.pod_http.get(&id)? else { return Ok(()) };
    let in_flight = http.in_flight();
    if in_flight + http.waiting() > 0 {
        warn!(pod = id, in_flight, "another hook counts; requests in flight are counted as ended");
    }
    http.finished += in_flight;
    http.aborted += in_flight;
    http.answered = http.started;
    http.answered_request_bytes = http.request_bytes;
    http.streams_ended = http.streams_started;
    maps.pod_http.set(&id, &http)
}

/// Removes every counter of deleted pods, so that their ids can be used again.
fn remove_counters(maps: &Maps, deleted: &BTreeSet<u32>) -> io::Result<()> {
    if deleted.is_empty() {
        return Ok(());
    }
    info!(pods = deleted.len(), "removed counters of deleted pods");
    let concerns = |pair: &PairKey| deleted.contains(&pair.pod) || deleted.contains(&pair.peer);
    let connections = maps.connections.all(maps::CONNECTIONS)?;
    for (key, _) in connections.iter().filter(|(_, connection)| concerns(&connection.pair)) {
        maps.connections.remove(key)?;
    }
    let streams = maps.streams.all(maps::STREAMS)?;
    for (key, _) in streams.iter().filter(|(_, stream)| deleted.contains(&stream.pod)) {
        maps.streams.remove(key)?;
    }
    for (key, _) in maps.pairs.all(maps::PAIRS)?.iter().filter(|(key, _)| concerns(key)) {
        maps.pairs.remove(key)?;
    }
    for (key, _) in maps.preexisting.all(maps::PAIRS)?.iter().filter(|(key, _)| concerns(key)) {
        maps.preexisting.remove(key)?;
    }
    Ok(())
}

/// The lowest unused id: local pods index the per-pod arrays, remote pods have the ids above them.
fn free_id(used: &BTreeSet<u32>, local: bool) -> Option<u32> {
    let (first, end) = match local {
        true => (1, maps::LOCAL_PODS),
        false => (maps::LOCAL_PODS, maps::LOCAL_PODS + maps::PODS),
    };
    (first as u32..end as u32).find(|id| !used.contains(id))
}
