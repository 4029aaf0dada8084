//! Where a fleet runs: each engine in a pod of one node and the gateways outside, in network namespaces;
//! without root everything on loopback addresses; or, before engines that exist, the gateways alone.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use netns::{Namespace, reserve_number, route_pod};
use nix::fcntl::Flock;
use nix::sched::{CloneFlags, setns};

use crate::process::Process;

/// A process that holds this UDP port of a loopback address holds the address.
const CLAIM_PORT: u16 = 65_521;
/// The first host of the pods' subnet.
const FIRST_HOST: u8 = 2;
/// Addresses of gateways: one loopback address each.
pub(crate) const MAX_GATEWAYS: usize = 16;
pub(crate) const MAX_ENGINES: usize = 200;

/// The networks of a run. Dropping it removes them.
#[derive(Debug)]
pub(crate) struct Site {
    networks: Networks,
    /// Gets the logs of all processes.
    pub(crate) logs: PathBuf,
}

#[derive(Debug)]
enum Networks {
    Namespaces(Box<NodeNetworks>),
    Loopback { engines: Vec<Claim>, gateways: Vec<Claim> },
}

/// A node, its pods, and the machine outside where the gateways are. IPv4 alone: not every machine that
/// has GPUs has IPv6.
#[derive(Debug)]
struct NodeNetworks {
    node: Namespace,
    address: IpAddr,
    outside: Namespace,
    pods: Vec<(Namespace, IpAddr)>,
    _number: Flock<File>,
}

/// A loopback address that no other run has.
#[derive(Debug)]
struct Claim {
    address: Ipv4Addr,
    _socket: UdpSocket,
}

impl Site {
    /// Networks for engines of this number: namespaces for root, else loopback.
    ///
    /// # Errors
    /// Namespaces cannot be made here, or too many engines.
    pub(crate) fn new(engines: usize, logs: &Path) -> Result<Site> {
        if engines > MAX_ENGINES {
            bail!("--prefills and --decodes: at most {MAX_ENGINES} engines fit on one node");
        }
        if !nix::unistd::geteuid().is_root() {
            println!("without root all engines share loopback, and there is no agent");
            return Site::loopback(engines, logs);
        }
        let networks =
            NodeNetworks::new(engines).context("network namespaces (`ip` makes them)")?;
        Ok(Site { networks: Networks::Namespaces(Box::new(networks)), logs: logs.to_owned() })
    }

    /// Loopback addresses of this machine's own network.
    ///
    /// # Errors
    /// None is free.
    pub(crate) fn loopback(engines: usize, logs: &Path) -> Result<Site> {
        let claims = |count: usize| (0..count).map(|_| Claim::new()).collect::<Result<Vec<_>>>();
        let networks =
            Networks::Loopback { engines: claims(engines)?, gateways: claims(MAX_GATEWAYS)? };
        Ok(Site { networks, logs: logs.to_owned() })
    }

    /// The address of an engine by its number.
    pub(crate) fn engine_ip(&self, number: usize) -> IpAddr {
        match &self.networks {
            Networks::Namespaces(networks) => networks.pods[number].1,
            Networks::Loopback { engines, .. } => engines[number].address.into(),
        }
    }

    /// The address of a gateway by its number.
    pub(crate) fn gateway_ip(&self, number: usize) -> IpAddr {
        match &self.networks {
            Networks::Namespaces(_) => Ipv4Addr::new(127, 0, 0, number as u8 + 1).into(),
            Networks::Loopback { gateways, .. } => gateways[number].address.into(),
        }
    }

    /// The address of the node, if the fleet has one of its own.
    pub(crate) fn node_ip(&self) -> Option<IpAddr> {
        match &self.networks {
            Networks::Namespaces(networks) => Some(networks.address),
            Networks::Loopback { .. } => None,
        }
    }

    /// Starts the engine of this number in its pod.
    pub(crate) fn start_engine(
        &self,
        number: usize,
        name: &str,
        command: Command,
    ) -> Result<Process> {
        let netns = match &self.networks {
            Networks::Namespaces(networks) => Some(&networks.pods[number].0),
            Networks::Loopback { .. } => None,
        };
        Process::start(name, netns, &self.logs, command)
    }

    /// Starts a program on the node.
    ///
    /// # Errors
    /// There is no node, or as [`Process::start`].
    pub(crate) fn start_on_node(&self, name: &str, command: Command) -> Result<Process> {
        let Networks::Namespaces(networks) = &self.networks else {
            bail!("{name} needs network namespaces, and those need root");
        };
        Process::start(name, Some(&networks.node), &self.logs, command)
    }

    /// Starts a program in this thread's network, for which see [`Site::enter`].
    pub(crate) fn start_here(&self, name: &str, command: Command) -> Result<Process> {
        Process::start(name, None, &self.logs, command)
    }

    /// Moves this thread to where the gateways and the clients are. Threads and programs that it starts
    /// later are there too.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn enter(&self) -> Result<()> {
        let Networks::Namespaces(networks) = &self.networks else { return Ok(()) };
        let namespace = File::open(networks.outside.path()).context("a network namespace")?;
        setns(namespace, CloneFlags::CLONE_NEWNET).context("entering a network namespace")
    }
}

impl NodeNetworks {
    fn new(engines: usize) -> Result<NodeNetworks> {
        // The first that is made is the one whose error says what is missing.
        let outside = Namespace::try_new()?;
        let (number, reserved) = reserve_number();
        let ip =
            |subnet: u8, host: u8| -> IpAddr { Ipv4Addr::new(10, number, subnet, host).into() };
        let node = Namespace::node();
        let (address, client) = (ip(250, 1), ip(250, 2));
        node.try_sh(&format!(
            "ip link add up0 type veth peer name eth0 netns {}
             echo 1 > /proc/sys/net/ipv4/ip_forward
             ip link set up0 up
             ip addr add {address}/24 dev up0
             ip route add default via {client} dev up0",
            outside.path()
        ))?;
        outside.try_sh(&format!(
            "ip link set eth0 up
             ip addr add {client}/24 dev eth0
             ip route add default via {address} dev eth0"
        ))?;
        let mut pods = Vec::new();
        for host in (FIRST_HOST..).take(engines) {
            let pod = Namespace::try_new()?;
            let link = format!("veth{host}");
            let path = pod.path();
            node.try_sh(&format!("ip link add {link} type veth peer name eth0 netns {path}"))?;
            route_pod((&node, &link), &pod, ip(1, host))?;
            pods.push((pod, ip(1, host)));
        }
        Ok(NodeNetworks { node, address, outside, pods, _number: reserved })
    }
}

/// Ports of an address that are free now, in this thread's network.
///
/// # Errors
/// None is.
pub(crate) fn free_ports<const N: usize>(ip: IpAddr) -> Result<[u16; N]> {
    let listeners = [(); N].map(|()| TcpListener::bind(SocketAddr::new(ip, 0)));
    let mut ports = [0; N];
    // All stay bound until all ports are known, so that they differ.
    for (port, listener) in ports.iter_mut().zip(&listeners) {
        let bound = listener.as_ref().ok().and_then(|listener| listener.local_addr().ok());
        *port = bound.with_context(|| format!("no free port at {ip}"))?.port();
    }
    Ok(ports)
}

impl Claim {
    fn new() -> Result<Claim> {
        let start = std::process::id().wrapping_mul(97);
        for step in 0..100_000 {
            let [_, low, third, last] = start.wrapping_add(step).to_be_bytes();
            // 127.0.x.y is where people listen.
            let address = Ipv4Addr::new(127, low.max(1), third, last.clamp(1, 254));
            if let Ok(socket) = UdpSocket::bind((address, CLAIM_PORT)) {
                return Ok(Claim { address, _socket: socket });
            }
        }
        bail!("no loopback address is free")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_addresses_are_given_out_once() {
        let logs = std::env::temp_dir();
        let sites: Vec<Site> = (0..2).map(|_| Site::loopback(3, &logs).unwrap()).collect();
        let mut addresses: Vec<IpAddr> = sites
            .iter()
            .flat_map(|site| {
                let engines = (0..3).map(|at| site.engine_ip(at));
                engines.chain((0..MAX_GATEWAYS).map(|at| site.gateway_ip(at)))
            })
            .collect();
        addresses.sort();
        addresses.dedup();
        assert_eq!(addresses.len(), 2 * (3 + MAX_GATEWAYS));
        let [a, b] = free_ports(sites[0].engine_ip(0)).unwrap();
        assert_ne!(a, b);
    }

    #[test]
    fn a_program_on_a_node_needs_one() {
        let site = Site::loopback(0, &std::env::temp_dir()).unwrap();
        let error = site.start_on_node("agent", Command::new("true")).unwrap_err();
        assert!(error.to_string().contains("root"), "{error}");
    }
}
