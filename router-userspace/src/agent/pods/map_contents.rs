//! The desired contents of the maps: the pod at each address, and the traffic class of each port.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use router_common::flow::{
    CLASS_BOOTSTRAP, CLASS_ENGINE, CLASS_KV_CONTROL, POD_BEHIND_BRIDGE, POD_BY_INTERFACE,
    POD_LOCAL, POD_SHARES_ADDRESS, Pod, PodAddress, PodPort, ROLE_DECODE, ROLE_NONE, ROLE_PREFILL,
    ROLE_UNIFIED, mapped,
};
use router_core::fleet::Role;
use router_core::fnv::fnv1a_nonzero;

use crate::agent::pods::listening_ports::ListeningPorts;
use crate::agent::pods::registered_pod::RegisteredPod;

/// Ports of pods that no manifest names, by UID.
#[derive(Clone, Debug, Default)]
pub(in crate::agent) struct LearnedPorts {
    /// Addresses at which the ranks of a prefill take control messages, as its bootstrap server lists
    /// them.
    pub(in crate::agent) control: BTreeMap<Arc<str>, BTreeSet<SocketAddr>>,
    /// Ports on which the processes of host-network pods listen.
    pub(in crate::agent) listening: ListeningPorts,
}

/// The contents of the maps PODS and PORT_CLASSES.
#[derive(Debug, Default)]
pub(in crate::agent) struct MapContents {
    pub(in crate::agent) pods: HashMap<PodAddress, Pod>,
    pub(in crate::agent) classes: HashMap<PodPort, u32>,
}

impl MapContents {
    pub(in crate::agent) fn new(
        pods: &BTreeMap<Arc<str>, RegisteredPod>,
        learned: &LearnedPorts,
    ) -> MapContents {
        let mut contents = MapContents::default();
        // First, so that a port belongs to the pod that listens on it even if the manifest of another
        // pod names it.
        for (uid, ports) in &learned.listening {
            let Some(pod) = pods.get(uid) else { continue };
            ports.iter().for_each(|port| contents.add_shared_port(pod, *port));
        }
        for pod in pods.values() {
            contents.add_pod(pod);
        }
        let by_address: HashMap<IpAddr, &RegisteredPod> = pods
            .values()
            .filter(|pod| !pod.placed.pod.host_network)
            .flat_map(|pod| pod.placed.pod.addresses().map(move |address| (address, pod)))
            .collect();
        for (uid, addresses) in &learned.control {
            let Some(prefill) = pods.get(uid) else { continue };
            for address in addresses {
                let is_own = prefill.placed.pod.addresses().any(|own| own == address.ip());
                let own = is_own.then_some(prefill);
                if let Some(pod) = own.or_else(|| by_address.get(&address.ip()).copied()) {
                    contents.add_control_port(pod, address.port());
                }
            }
        }
        contents
    }

    /// Adds the address and the ports that a pod's manifest names.
    fn add_pod(&mut self, pod: &RegisteredPod) {
        let known = &pod.placed.pod;
        let port_of = |port| PodPort { pod: pod.id, port, reserved: 0 };
        self.classes.extend(known.bootstrap.map(|port| (port_of(port), CLASS_BOOTSTRAP)));
        self.classes.extend(known.ports.iter().map(|port| (port_of(*port), CLASS_ENGINE)));
        let addresses = known.addresses().map(|address| PodAddress {
            address: mapped_address(address),
            port: 0,
            reserved: 0,
        });
        if !known.host_network {
            self.pods.extend(addresses.map(|address| (address, map_value(pod))));
            return;
        }
        let local = if pod.placed.local { POD_LOCAL } else { 0 };
        let shared = Pod { flags: POD_SHARES_ADDRESS | local, ..Pod::default() };
        self.pods.extend(addresses.map(|address| (address, shared)));
        known
            .ports
            .iter()
            .chain(&known.bootstrap)
            .for_each(|port| self.add_shared_port(pod, *port));
    }

    fn add_control_port(&mut self, pod: &RegisteredPod, port: u16) {
        let port_of_pod = PodPort { pod: pod.id, port, reserved: 0 };
        self.classes.entry(port_of_pod).or_insert(CLASS_KV_CONTROL);
        if pod.placed.pod.host_network {
            self.add_shared_port(pod, port);
        }
    }

    /// Adds a port of a pod that shares its address with others, unless another pod has the port.
    fn add_shared_port(&mut self, pod: &RegisteredPod, port: u16) {
        for address in pod.placed.pod.addresses() {
            let key = PodAddress { address: mapped_address(address), port, reserved: 0 };
            self.pods.entry(key).or_insert_with(|| map_value(pod));
        }
    }
}

/// The value of PODS for a pod.
fn map_value(pod: &RegisteredPod) -> Pod {
    let RegisteredPod { id, placed, by_interface } = pod;
    let mut http_ports = [0; 4];
    for (slot, port) in http_ports.iter_mut().zip(&placed.pod.ports) {
        *slot = *port;
    }
    let local = if placed.local { POD_LOCAL } else { 0 };
    let bridge = if placed.behind_bridge { POD_BEHIND_BRIDGE } else { 0 };
    Pod {
        id: *id,
        flags: local | bridge | if *by_interface { POD_BY_INTERFACE } else { 0 },
        role: match placed.pod.role {
            Some(Role::Prefill) => ROLE_PREFILL,
            Some(Role::Decode) => ROLE_DECODE,
            Some(Role::Unified) => ROLE_UNIFIED,
            None => ROLE_NONE,
        },
        ifindex: placed.ifindex,
        uid: uid_hash(&placed.pod.uid),
        http_ports,
    }
}

/// An address as the maps hold it: IPv4 is v4-mapped.
fn mapped_address(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => mapped(v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// An address that the maps hold. The reverse of [`mapped_address`].
pub(in crate::agent) fn canonical_address(bytes: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(bytes).to_canonical()
}

/// Hash of a UID. It is the same in every agent, and never 0, which stands for no pod.
pub(in crate::agent) fn uid_hash(uid: &str) -> u64 {
    fnv1a_nonzero(uid.bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::pods::registered_pod::PlacedPod;
    use crate::agent::pods::source::KnownPod;

    const NODE: &str = "10.0.0.9";

    fn registered(
        id: u32,
        address: &str,
        host_network: bool,
        ports: &[u16],
    ) -> (Arc<str>, RegisteredPod) {
        let uid: Arc<str> = format!("uid-{id}").into();
        let pod = KnownPod {
            uid: Arc::clone(&uid),
            name: format!("default/p{id}").into(),
            address: address.parse().unwrap(),
            other_address: None,
            node: None,
            host_network,
            role: Some(Role::Prefill),
            ports: ports.to_vec(),
            bootstrap: None,
        };
        let placed = PlacedPod { pod, local: true, ifindex: 3, behind_bridge: false };
        (uid, RegisteredPod { id, by_interface: false, placed })
    }

    fn id_at(contents: &MapContents, address: &str, port: u16) -> Option<u32> {
        let address = mapped_address(address.parse().unwrap());
        contents.pods.get(&PodAddress { address, port, reserved: 0 }).map(|pod| pod.id)
    }

    #[test]
    fn a_shared_port_belongs_to_the_pod_that_listens_on_it() {
        let pods = [registered(1, NODE, true, &[8000]), registered(2, NODE, true, &[8000])].into();
        let mut learned = LearnedPorts::default();
        let by_manifest = MapContents::new(&pods, &learned);
        assert!(id_at(&by_manifest, NODE, 8000).is_some());
        learned.listening.insert("uid-2".into(), [8000, 50_000].into());
        let contents = MapContents::new(&pods, &learned);
        let found = (id_at(&contents, NODE, 8000), id_at(&contents, NODE, 50_000));
        assert_eq!(found, (Some(2), Some(2)));
        assert_eq!(id_at(&contents, NODE, 0), Some(0), "the address alone belongs to no pod");
    }

    #[test]
    fn a_control_port_belongs_to_the_pod_at_its_address() {
        let pods =
            [registered(1, "10.1.0.1", false, &[8000]), registered(2, "10.1.0.2", false, &[])];
        let pods = pods.into();
        let addresses = ["10.1.0.1:50001", "10.1.0.2:50002", "10.1.0.3:50003", "10.1.0.1:8000"]
            .map(|address| address.parse().unwrap());
        let mut learned = LearnedPorts::default();
        learned.control.insert("uid-1".into(), addresses.into());
        let classes = MapContents::new(&pods, &learned).classes;
        let class = |pod, port| classes.get(&PodPort { pod, port, reserved: 0 }).copied();
        assert_eq!(class(1, 50_001), Some(CLASS_KV_CONTROL));
        assert_eq!(class(2, 50_002), Some(CLASS_KV_CONTROL), "a rank on another pod");
        assert_eq!(class(1, 8000), Some(CLASS_ENGINE), "the manifest takes precedence");
        assert_eq!(classes.len(), 3, "no pod has the third address");
    }
}
