//! A node: its pods, the interfaces that carry them, an uplink, and a machine outside.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nix::fcntl::{Flock, FlockArg};

use crate::{Namespace, lossy_link};

/// How pods are connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topology {
    /// Each by a veth of its own, with a route to it.
    Routed,
    /// By veths that are ports of one bridge.
    Bridged,
}

/// A node, and the machine outside that its uplink leads to.
#[derive(Debug)]
pub struct Node {
    pub netns: Namespace,
    pub outside: Namespace,
    pub topology: Topology,
    /// Part of every address of this node. No other node on this machine has it now: the BPF programs
    /// see every socket of the machine and distinguish connections by address alone.
    number: u8,
    _reserved: Flock<File>,
}

/// A pod's namespace and addresses.
#[derive(Debug)]
pub struct PodNetwork {
    pub netns: Namespace,
    pub address: IpAddr,
    pub v6: IpAddr,
    /// The host's end of its veth.
    pub link: String,
}

impl Node {
    /// A node whose uplink is a veth.
    ///
    /// # Panics
    /// As all functions of this type, where namespaces or interfaces cannot be made.
    #[must_use]
    pub fn new(topology: Topology) -> Node {
        Node::over(topology, |node, outside| {
            node.sh(&format!("ip link add up0 type veth peer name eth0 netns {}", outside.path()));
        })
    }

    /// A node whose uplink loses and reorders frames.
    #[must_use]
    pub fn with_lossy_uplink(topology: Topology) -> Node {
        Node::over(topology, |node, outside| {
            lossy_link::connect((node, "up0"), (outside, "eth0"));
        })
    }

    /// A node that is the machine's own network, the only one that has its RDMA devices.
    #[must_use]
    pub fn machine() -> Node {
        let (number, reserved) = reserve_number();
        let (netns, outside) = (Namespace::machine(), Namespace::new());
        Node { netns, outside, topology: Topology::Routed, number, _reserved: reserved }
    }

    fn over(topology: Topology, uplink: impl FnOnce(&Namespace, &Namespace)) -> Node {
        let (number, reserved) = reserve_number();
        let node = Node {
            netns: Namespace::node(),
            outside: Namespace::new(),
            topology,
            number,
            _reserved: reserved,
        };
        uplink(&node.netns, &node.outside);
        let (node_up, outside) = (node.ip(250, 1), node.ip(250, 2));
        let (node_up6, outside6) = (node.ip6(250, 1), node.ip6(250, 2));
        node.netns.sh(&format!(
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
            node.netns.sh(&format!(
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

    /// The IPv4 address of a host of a subnet of this node.
    #[must_use]
    pub fn ip(&self, subnet: u8, host: u8) -> IpAddr {
        Ipv4Addr::new(10, self.number, subnet, host).into()
    }

    fn ip6(&self, subnet: u8, host: u8) -> IpAddr {
        let [number, subnet, host] = [self.number, subnet, host].map(u16::from);
        Ipv6Addr::new(0xfd00, 0, number, subnet, 0, 0, 0, host).into()
    }

    /// The node's own address, and that of the machine outside.
    #[must_use]
    pub fn addresses(&self) -> (IpAddr, IpAddr) {
        (self.ip(250, 1), self.ip(250, 2))
    }

    /// A pod whose interface is its own and leads to the machine outside, past the node.
    #[must_use]
    pub fn pod_apart(&self, host: u8) -> PodNetwork {
        let netns = Namespace::new();
        let (address, v6, gateway) = (self.ip(2, host), self.ip6(2, host), self.ip(2, 1));
        self.outside.sh(&format!(
            "ip link add ens{host} type veth peer name eth0 netns {}
             ip link set ens{host} up
             ip addr add {gateway}/24 dev ens{host}
             echo 1 > /proc/sys/net/ipv4/ip_forward",
            netns.path()
        ));
        netns.sh(&format!(
            "ip link set eth0 up
             ip addr add {address}/24 dev eth0
             ip route add default via {gateway} dev eth0"
        ));
        PodNetwork { netns, address, v6, link: String::new() }
    }

    /// A pod whose interface is a child of the uplink, of a kind as `ip link add` takes it (`macvlan mode
    /// bridge`); `host` (3 to 254) makes its address in the uplink's subnet.
    #[must_use]
    pub fn pod_on_uplink(&self, host: u8, kind: &str) -> PodNetwork {
        let netns = Namespace::new();
        let (address, v6, gateway) = (self.ip(250, host), self.ip6(250, host), self.addresses().1);
        self.netns.sh(&format!(
            "ip link add child{host} link up0 type {kind}
             ip link set child{host} netns {} name eth0",
            netns.path()
        ));
        netns.sh(&format!(
            "ip link set eth0 up
             ip addr add {address}/24 dev eth0
             ip addr add {v6}/64 dev eth0 nodad
             ip route add default via {gateway} dev eth0"
        ));
        PodNetwork { netns, address, v6, link: String::new() }
    }

    /// A new pod; `host` (2 to 254) makes its address.
    #[must_use]
    pub fn pod(&self, host: u8) -> PodNetwork {
        self.pod_behind(host, |node, pod, link| {
            let pod = pod.path();
            node.sh(&format!("ip link add {link} type veth peer name eth0 netns {pod}"));
        })
    }

    /// A new pod whose own link loses and reorders frames: what the node sees is not what the pod sees.
    #[must_use]
    pub fn pod_with_lossy_link(&self, host: u8) -> PodNetwork {
        self.pod_behind(host, |node, pod, link| lossy_link::connect((node, link), (pod, "eth0")))
    }

    /// A new pod behind a link that `connect` makes: it has a name in the node, and is `eth0` in the
    /// pod.
    pub fn pod_behind(
        &self,
        host: u8,
        connect: impl FnOnce(&Namespace, &Namespace, &str),
    ) -> PodNetwork {
        let netns = Namespace::new();
        let (address, v6, link) = (self.ip(1, host), self.ip6(1, host), format!("veth{host}"));
        connect(&self.netns, &netns, &link);
        match self.topology {
            Topology::Routed => {
                route_pod((&self.netns, &link), &netns, address).expect("routes to a pod");
                self.netns.sh(&format!(
                    "ip -6 addr add fe80::1/64 dev {link} nodad
                     ip -6 route add {v6}/128 dev {link}"
                ));
                netns.sh(&format!(
                    "ip addr add {v6}/128 dev eth0 nodad
                     ip -6 addr add fe80::2/64 dev eth0 nodad
                     ip -6 route add default via fe80::1 dev eth0"
                ));
            }
            Topology::Bridged => {
                self.netns.sh(&format!("ip link set {link} up; ip link set {link} master cni0"));
                netns.sh(&format!(
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
        PodNetwork { netns, address, v6, link }
    }
}

/// Gives a pod an IPv4 address and the node a route to it, as network plugins with a link for each
/// pod do. The link is up afterwards; it is `eth0` in the pod.
///
/// # Errors
/// An interface is missing, or `ip` refuses something.
pub fn route_pod(
    (node, link): (&Namespace, &str),
    pod: &Namespace,
    address: IpAddr,
) -> io::Result<()> {
    node.try_sh(&format!(
        "ip link set {link} up
         ip addr add 169.254.1.1/32 dev {link}
         ip route add {address}/32 dev {link}"
    ))?;
    pod.try_sh(&format!(
        "ip link set eth0 up
         ip addr add {address}/32 dev eth0
         ip route add 169.254.1.1 dev eth0
         ip route add default via 169.254.1.1 dev eth0"
    ))?;
    Ok(())
}

/// A number that no other node of this machine has while the lock is held: the second byte of its
/// addresses, 10.NUMBER.x.y.
///
/// # Panics
/// 191 nodes run on this machine.
#[must_use]
pub fn reserve_number() -> (u8, Flock<File>) {
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
