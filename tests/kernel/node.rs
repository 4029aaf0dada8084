//! A node: its pods, the interfaces that carry them, an uplink, and a machine outside.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nix::fcntl::{Flock, FlockArg};

use crate::space::Space;

/// How pods are connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Topology {
    /// Each by a veth of its own, with a route to it.
    Routed,
    /// By veths that are ports of one bridge.
    Bridged,
}

pub(crate) struct Node {
    pub(crate) space: Space,
    pub(crate) outside: Space,
    pub(crate) topology: Topology,
    /// Makes this node's addresses its own among all tests that run now: connections are told
    /// apart by address alone, and the programs see every socket of the machine.
    number: u8,
    _reserved: Flock<File>,
}

/// A pod's namespace and addresses.
pub(crate) struct Pod {
    pub(crate) space: Space,
    pub(crate) address: IpAddr,
    pub(crate) v6: IpAddr,
    /// The host's end of its veth.
    pub(crate) link: String,
}

impl Node {
    pub(crate) fn new(topology: Topology) -> Node {
        Node::over(topology, |node, outside| {
            node.sh(&format!("ip link add up0 type veth peer name eth0 netns {}", outside.path()));
        })
    }

    /// One whose uplink loses and reorders.
    pub(crate) fn with_lossy_uplink(topology: Topology) -> Node {
        Node::over(topology, |node, outside| crate::wire::lay((node, "up0"), (outside, "eth0")))
    }

    /// The machine's own network: RDMA devices are of no other.
    #[allow(dead_code, reason = "the bench has no such devices")]
    pub(crate) fn machine() -> Node {
        let (number, reserved) = reserve();
        let (space, outside) = (Space::machine(), Space::new());
        Node { space, outside, topology: Topology::Routed, number, _reserved: reserved }
    }

    fn over(topology: Topology, uplink: impl FnOnce(&Space, &Space)) -> Node {
        let (number, reserved) = reserve();
        let node = Node {
            space: Space::node(),
            outside: Space::new(),
            topology,
            number,
            _reserved: reserved,
        };
        uplink(&node.space, &node.outside);
        let (node_up, outside) = (node.ip(250, 1), node.ip(250, 2));
        let (node_up6, outside6) = (node.ip6(250, 1), node.ip6(250, 2));
        node.space.sh(&format!(
            "echo 1 > /proc/sys/net/ipv4/ip_forward
             echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
             ip link set up0 up
             ip addr add {node_up}/24 dev up0
             ip addr add {node_up6}/64 dev up0 nodad
             ip route add default via {outside} dev up0"
        ));
        node.outside.sh(&format!(
            "ip link set eth0 up
             ip addr add {outside}/24 dev eth0
             ip addr add {outside6}/64 dev eth0 nodad
             ip route add default via {node_up} dev eth0
             ip route add default via {node_up6} dev eth0"
        ));
        if topology == Topology::Bridged {
            node.space.sh(&format!(
                "ip link add cni0 type bridge
                 ip link set cni0 up
                 ip addr add {}/24 dev cni0
                 ip addr add {}/64 dev cni0 nodad",
                node.ip(1, 1),
                node.ip6(1, 1)
            ));
        }
        node
    }

    pub(crate) fn ip(&self, subnet: u8, host: u8) -> IpAddr {
        Ipv4Addr::new(10, self.number, subnet, host).into()
    }

    fn ip6(&self, subnet: u8, host: u8) -> IpAddr {
        let [number, subnet, host] = [self.number, subnet, host].map(u16::from);
        Ipv6Addr::new(0xfd00, 0, number, subnet, 0, 0, 0, host).into()
    }

    /// Its own address, and that of the machine outside.
    pub(crate) fn addresses(&self) -> (IpAddr, IpAddr) {
        (self.ip(250, 1), self.ip(250, 2))
    }

    /// A pod whose interface is its own and leads to the machine outside, past the node.
    pub(crate) fn pod_apart(&self, host: u8) -> Pod {
        let space = Space::new();
        let (address, v6, gateway) = (self.ip(2, host), self.ip6(2, host), self.ip(2, 1));
        self.outside.sh(&format!(
            "ip link add ens{host} type veth peer name eth0 netns {}
             ip link set ens{host} up
             ip addr add {gateway}/24 dev ens{host}
             echo 1 > /proc/sys/net/ipv4/ip_forward",
            space.path()
        ));
        space.sh(&format!(
            "ip link set eth0 up
             ip addr add {address}/24 dev eth0
             ip route add default via {gateway} dev eth0"
        ));
        Pod { space, address, v6, link: String::new() }
    }

    /// A new pod; `host` (2 to 254) makes its address.
    pub(crate) fn pod(&self, host: u8) -> Pod {
        self.pod_behind(host, |node, pod, link| {
            let pod = pod.path();
            node.sh(&format!("ip link add {link} type veth peer name eth0 netns {pod}"));
        })
    }

    /// The same behind a link that `lay` makes: it has a name in the node, and is `eth0` in the pod.
    pub(crate) fn pod_behind(&self, host: u8, lay: impl FnOnce(&Space, &Space, &str)) -> Pod {
        let space = Space::new();
        let (address, v6, link) = (self.ip(1, host), self.ip6(1, host), format!("veth{host}"));
        lay(&self.space, &space, &link);
        self.space.sh(&format!("ip link set {link} up"));
        match self.topology {
            Topology::Routed => {
                self.space.sh(&format!(
                    "ip addr add 169.254.1.1/32 dev {link}
                     ip -6 addr add fe80::1/64 dev {link} nodad
                     ip route add {address}/32 dev {link}
                     ip -6 route add {v6}/128 dev {link}"
                ));
                space.sh(&format!(
                    "ip link set eth0 up
                     ip addr add {address}/32 dev eth0
                     ip addr add {v6}/128 dev eth0 nodad
                     ip -6 addr add fe80::2/64 dev eth0 nodad
                     ip route add 169.254.1.1 dev eth0
                     ip route add default via 169.254.1.1 dev eth0
                     ip -6 route add default via fe80::1 dev eth0"
                ));
            }
            Topology::Bridged => {
                self.space.sh(&format!("ip link set {link} master cni0"));
                space.sh(&format!(
                    "ip link set eth0 up
                     ip addr add {address}/24 dev eth0
                     ip addr add {v6}/64 dev eth0 nodad
                     ip route add default via {} dev eth0
                     ip -6 route add default via {} dev eth0",
                    self.ip(1, 1),
                    self.ip6(1, 1)
                ));
            }
        }
        Pod { space, address, v6, link }
    }
}

/// A number that no other test of this machine has while the lock is held.
fn reserve() -> (u8, Flock<File>) {
    let folder = std::env::temp_dir().join("pd-router-nodes");
    std::fs::create_dir_all(&folder).expect("a folder for locks");
    for number in 64..=254 {
        let path = folder.join(number.to_string());
        let file = File::create(path).expect("a lock's file");
        if let Ok(lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            return (number, lock);
        }
    }
    panic!("no free addresses: 191 nodes run on this machine");
}
