//! What the maps are to hold of the pods: who is at which address, and what each port is for.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use router_common::flow::{
    CLASS_BOOTSTRAP, CLASS_ENGINE, CLASS_KV_CONTROL, Endpoint, POD_BEHIND_BRIDGE, POD_LOCAL,
    POD_SHARES_ADDRESS, Pod, PodPort, ROLE_DECODE, ROLE_NONE, ROLE_PLAIN, ROLE_PREFILL, mapped,
};
use router_core::fleet::Role;

use super::owners::Listening;
use super::registry::Entry;

/// What is learned of pods beside what their manifests say, by UID.
#[derive(Clone, Debug, Default)]
pub(super) struct Learned {
    /// Where the ranks of a prefill take control messages.
    pub(super) controls: BTreeMap<Arc<str>, BTreeSet<SocketAddr>>,
    /// Ports of pods with the host's network.
    pub(super) listening: Listening,
}

/// The contents of PODS and PORT_CLASSES.
#[derive(Debug, Default)]
pub(super) struct Described {
    pub(super) pods: HashMap<Endpoint, Pod>,
    pub(super) classes: HashMap<PodPort, u32>,
}

impl Described {
    pub(super) fn of(entries: &BTreeMap<Arc<str>, Entry>, learned: &Learned) -> Described {
        let mut described = Described::default();
        // Who listens has the port, whoever else's manifest names it.
        for (uid, ports) in &learned.listening {
            let Some(entry) = entries.get(uid) else { continue };
            ports.iter().for_each(|port| described.shared(entry, *port));
        }
        for entry in entries.values() {
            described.named(entry);
        }
        let by_address: HashMap<IpAddr, &Entry> = entries
            .values()
            .filter(|entry| !entry.placed.pod.host_network)
            .map(|entry| (entry.placed.pod.address, entry))
            .collect();
        for (uid, controls) in &learned.controls {
            let Some(asked) = entries.get(uid) else { continue };
            for control in controls {
                let own = (asked.placed.pod.address == control.ip()).then_some(asked);
                if let Some(owner) = own.or_else(|| by_address.get(&control.ip()).copied()) {
                    described.control(owner, control.port());
                }
            }
        }
        described
    }

    /// What the manifest says of a pod.
    fn named(&mut self, entry: &Entry) {
        let known = &entry.placed.pod;
        let class = |port| PodPort { pod: entry.id, port, reserved: 0 };
        self.classes.extend(known.bootstrap.map(|port| (class(port), CLASS_BOOTSTRAP)));
        self.classes.extend(known.ports.iter().map(|port| (class(*port), CLASS_ENGINE)));
        let address = Endpoint { address: bytes(known.address), port: 0, reserved: 0 };
        if !known.host_network {
            self.pods.insert(address, described(entry));
            return;
        }
        let local = if entry.placed.local { POD_LOCAL } else { 0 };
        self.pods.insert(address, Pod { flags: POD_SHARES_ADDRESS | local, ..Pod::default() });
        known.ports.iter().chain(&known.bootstrap).for_each(|port| self.shared(entry, *port));
    }

    fn control(&mut self, entry: &Entry, port: u16) {
        let port_of_pod = PodPort { pod: entry.id, port, reserved: 0 };
        self.classes.entry(port_of_pod).or_insert(CLASS_KV_CONTROL);
        if entry.placed.pod.host_network {
            self.shared(entry, port);
        }
    }

    /// A port of a pod that has no address of its own.
    fn shared(&mut self, entry: &Entry, port: u16) {
        let address = bytes(entry.placed.pod.address);
        let endpoint = Endpoint { address, port, reserved: 0 };
        self.pods.entry(endpoint).or_insert_with(|| described(entry));
    }
}

fn described(entry: &Entry) -> Pod {
    let Entry { id, placed } = entry;
    let mut http_ports = [0; 4];
    for (slot, port) in http_ports.iter_mut().zip(&placed.pod.ports) {
        *slot = *port;
    }
    let local = if placed.local { POD_LOCAL } else { 0 };
    let bridge = if placed.behind_bridge { POD_BEHIND_BRIDGE } else { 0 };
    Pod {
        id: *id,
        flags: local | bridge,
        role: match placed.pod.role {
            Some(Role::Prefill) => ROLE_PREFILL,
            Some(Role::Decode) => ROLE_DECODE,
            Some(Role::Unified) => ROLE_PLAIN,
            None => ROLE_NONE,
        },
        ifindex: placed.ifindex,
        uid: hash(&placed.pod.uid),
        http_ports,
    }
}

/// An address as the maps have it.
pub(super) fn bytes(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => mapped(v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// Hash of `text`: the same in every agent, never 0.
pub(super) fn hash(text: &str) -> u64 {
    router_core::fnv::fnv1a_nonzero(text.bytes())
}

#[cfg(test)]
mod tests {
    use super::super::pods::KnownPod;
    use super::super::registry::Placed;
    use super::*;

    const NODE: &str = "10.0.0.9";

    fn entry(id: u32, address: &str, host_network: bool, ports: &[u16]) -> (Arc<str>, Entry) {
        let uid: Arc<str> = format!("uid-{id}").into();
        let pod = KnownPod {
            uid: Arc::clone(&uid),
            name: format!("default/p{id}").into(),
            address: address.parse().unwrap(),
            node: None,
            host_network,
            role: Some(Role::Prefill),
            ports: ports.to_vec(),
            bootstrap: None,
        };
        let placed = Placed { pod, local: true, ifindex: 3, behind_bridge: false };
        (uid, Entry { id, placed })
    }

    fn at(described: &Described, address: &str, port: u16) -> Option<u32> {
        let address = bytes(address.parse().unwrap());
        described.pods.get(&Endpoint { address, port, reserved: 0 }).map(|pod| pod.id)
    }

    #[test]
    fn a_port_is_of_the_pod_that_listens_on_it() {
        let entries = [entry(1, NODE, true, &[8000]), entry(2, NODE, true, &[8000])].into();
        let mut learned = Learned::default();
        let by_manifest = Described::of(&entries, &learned);
        assert!(at(&by_manifest, NODE, 8000).is_some());
        learned.listening.insert("uid-2".into(), [8000, 50_000].into());
        let described = Described::of(&entries, &learned);
        assert_eq!((at(&described, NODE, 8000), at(&described, NODE, 50_000)), (Some(2), Some(2)));
        assert_eq!(at(&described, NODE, 0), Some(0), "the address alone is nobody's");
    }

    #[test]
    fn a_learned_port_is_of_the_pod_that_has_its_address() {
        let entries = [entry(1, "10.1.0.1", false, &[8000]), entry(2, "10.1.0.2", false, &[])];
        let entries = entries.into();
        let controls = ["10.1.0.1:50001", "10.1.0.2:50002", "10.1.0.3:50003", "10.1.0.1:8000"]
            .map(|address| address.parse().unwrap());
        let mut learned = Learned::default();
        learned.controls.insert("uid-1".into(), controls.into());
        let classes = Described::of(&entries, &learned).classes;
        let class = |pod, port| classes.get(&PodPort { pod, port, reserved: 0 }).copied();
        assert_eq!(class(1, 50_001), Some(CLASS_KV_CONTROL));
        assert_eq!(class(2, 50_002), Some(CLASS_KV_CONTROL), "a rank on another pod");
        assert_eq!(class(1, 8000), Some(CLASS_ENGINE), "what the manifest says goes first");
        assert_eq!(classes.len(), 3, "nobody has the address of the third");
    }
}
