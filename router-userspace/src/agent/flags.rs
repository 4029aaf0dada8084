//! Flags of `pd-router agent`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args, ValueEnum};

use crate::config::{milliseconds, socket_address};

/// Runs the node agent: counts the traffic of this node's pods in the kernel, and serves the counters.
#[derive(Clone, Debug, Args)]
#[command(group = ArgGroup::new("task").args(["kubernetes", "manifests", "prepare_node", "cleanup"]).required(true).multiple(true))]
pub struct AgentFlags {
    /// Watch the pods of this node, and the InferencePools and policies that give their roles, in a
    /// cluster: the one that the agent runs in, else that of $KUBECONFIG or ~/.kube/config.
    #[arg(long, help_heading = "Pods", conflicts_with = "manifests", requires = "node_name")]
    pub kubernetes: bool,
    /// Which pods of other nodes to watch with --kubernetes. Without them, traffic to other nodes
    /// counts as class `other` and without a peer.
    #[arg(long, help_heading = "Pods", value_enum, default_value_t = Peers::Pools)]
    pub peers: Peers,
    /// Directory of manifests to read pods from instead of a cluster. The gateway reads the same files.
    #[arg(long, help_heading = "Pods", value_name = "DIR")]
    pub manifests: Option<PathBuf>,
    /// Name of this node. Pods with this `spec.nodeName` are local. Without the flag, and for pods
    /// without a node name, a pod is local if the default route does not lead to it.
    #[arg(long, help_heading = "Pods", env = "NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,

    /// Interval in milliseconds at which the requests of local pods are read and published.
    #[arg(long, help_heading = "Counting", default_value = "10", value_name = "MS", value_parser = milliseconds)]
    pub sample_interval: Duration,
    /// Silence in milliseconds after which a response that ends only with its connection counts as
    /// finished.
    #[arg(long, help_heading = "Counting", default_value = "2000", value_name = "MS", value_parser = milliseconds)]
    pub response_idle_timeout: Duration,
    /// Ports that carry KV cache between prefill and decode. The default is Mooncake's range.
    #[arg(long, help_heading = "Counting", default_value = "15000-17000", value_name = "FIRST-LAST", value_parser = port_range)]
    pub kv_ports: (u16, u16),

    /// Interface of pods to attach to, instead of those that the routes to the pods name. May be
    /// repeated.
    #[arg(long, help_heading = "Interfaces", value_name = "INTERFACE")]
    pub attach: Vec<String>,
    /// Interface towards other nodes, instead of that of the default route. May be repeated.
    #[arg(long, help_heading = "Interfaces", value_name = "INTERFACE")]
    pub uplink: Vec<String>,
    /// Speed of an interface in Mbit/s, if its device does not report it, such as the uplink of a
    /// virtual machine or a pod's link with a limit. May be repeated.
    #[arg(long, help_heading = "Interfaces", value_name = "INTERFACE=MBIT", value_parser = link_speed)]
    pub link_speed: Vec<LinkSpeed>,
    /// Whether to use XDP on uplinks. `auto` uses it if the driver keeps its offloads or the interface
    /// has an RDMA device.
    #[arg(long, help_heading = "Interfaces", value_enum, default_value_t = XdpPolicy::Auto)]
    pub xdp: XdpPolicy,
    /// How to attach tc programs.
    #[arg(long, help_heading = "Interfaces", value_enum, default_value_t = TcMode::Auto)]
    pub tc: TcMode,
    /// Directory of the cgroup2 hierarchy whose sockets are counted. The default is the root of the
    /// first cgroup2 mount.
    #[arg(long, help_heading = "Interfaces", value_name = "DIR")]
    pub cgroup: Option<PathBuf>,

    /// Speed of RDMA links in Gbit/s, if their devices do not report it: of one device, or of all
    /// devices without a value of their own. May be repeated.
    #[arg(long, help_heading = "RDMA", value_name = "[DEVICE=]GBITS", value_parser = speed)]
    pub rdma_speed: Vec<(Option<String>, u64)>,
    /// Bytes of KV cache of one page on one rank. If RDMA devices do not report their bytes, they are
    /// estimated from the number of pages that decodes request.
    #[arg(long, help_heading = "RDMA", value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..=1 << 30))]
    pub kv_page_bytes: Option<u64>,
    /// Directory at which the sysfs of the host is mounted.
    #[arg(long, help_heading = "RDMA", default_value = "/sys", value_name = "DIR")]
    pub sysfs: PathBuf,

    /// Address at which /v1/loads, /v1/loads/stream, /metrics, /livez and /readyz are served.
    #[arg(long, help_heading = "Server", default_value = "127.0.0.1:9911", value_parser = socket_address, value_name = "IP:PORT")]
    pub listen: SocketAddr,
    /// File with the bearer token that /v1/loads and /metrics require. Required if --listen is not a
    /// loopback address.
    #[arg(long, help_heading = "Server", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Serve every client that can reach --listen, without a token.
    #[arg(long, help_heading = "Server", conflicts_with = "token_file")]
    pub allow_unauthenticated: bool,

    /// Directory on a bpf file system in which maps and links are pinned.
    #[arg(
        long,
        help_heading = "Programs",
        default_value = "/sys/fs/bpf/pd-router",
        value_name = "DIR"
    )]
    pub pin_dir: PathBuf,
    /// File with the eBPF object, for a binary that does not carry it.
    #[arg(long, help_heading = "Programs", env = "PD_ROUTER_EBPF_OBJECT", value_name = "FILE")]
    pub ebpf_object: Option<PathBuf>,
    /// Mount the file systems that the node lacks (bpf, tracefs, and cgroup2 at --cgroup), then exit.
    /// Needs more privileges than the agent itself.
    #[arg(long, help_heading = "Programs", requires = "cgroup")]
    pub prepare_node: bool,
    /// Detach every program and remove every pin of --pin-dir, then exit.
    #[arg(long, help_heading = "Programs")]
    pub cleanup: bool,
}

/// The speed of an interface, as a flag gives it.
#[derive(Clone, Debug, PartialEq)]
pub struct LinkSpeed {
    pub interface: String,
    pub megabits: f64,
}

impl LinkSpeed {
    pub(super) fn bytes_per_second(&self) -> f64 {
        self.megabits * 1e6 / 8.0
    }
}

/// Use of XDP on uplinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum XdpPolicy {
    /// Native XDP if the driver keeps its offloads or the interface has an RDMA device.
    Auto,
    /// Native XDP.
    Native,
    /// Generic XDP, for drivers without native support. It is slow.
    Generic,
    /// No XDP: tc counts.
    Off,
}

/// Pods of other nodes that an agent watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Peers {
    /// Pods that a pool selects.
    Pools,
    /// No pods: traffic to other nodes counts as class `other` and without a peer.
    None,
}

/// How tc programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TcMode {
    /// tcx from Linux 6.6 on, clsact before.
    Auto,
    /// tcx links; an error if the kernel has none.
    Tcx,
    /// clsact filters.
    Clsact,
}

fn speed(text: &str) -> Result<(Option<String>, u64), String> {
    let (device, gigabits) = match text.split_once('=') {
        Some((device, gigabits)) if !device.is_empty() => (Some(device.to_owned()), gigabits),
        Some(_) => return Err("expected a device name before `=`".to_owned()),
        None => (None, text),
    };
    match gigabits.parse::<f64>() {
        Ok(gigabits) if (0.001..=10_000.0).contains(&gigabits) => {
            Ok((device, (gigabits * 1e9).round() as u64))
        }
        _ => Err("expected [DEVICE=]GBITS with 0.001 to 10000 Gbit/s".to_owned()),
    }
}

fn port_range(text: &str) -> Result<(u16, u16), String> {
    let ends = text
        .split_once('-')
        .and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
    ends.filter(|(first, last)| 0 < *first && first <= last)
        .ok_or_else(|| "expected FIRST-LAST, two ports in ascending order".to_owned())
}

fn link_speed(text: &str) -> Result<LinkSpeed, String> {
    let parts = text.split_once('=').and_then(|(name, speed)| Some((name, speed.parse().ok()?)));
    parts
        .filter(|(name, megabits)| !name.is_empty() && (1.0..=1e7).contains(megabits))
        .map(|(name, megabits)| LinkSpeed { interface: name.to_owned(), megabits })
        .ok_or_else(|| "expected INTERFACE=MBIT with a speed from 1 to 10000000".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_rdma_speed_is_for_one_device_or_for_all() {
        assert_eq!(speed("200"), Ok((None, 200_000_000_000)));
        assert_eq!(speed("erdma_0=2.5"), Ok((Some("erdma_0".to_owned()), 2_500_000_000)));
        for text in ["", "=5", "a=", "a=fast", "0", "-1", "inf", "nan", "10001"] {
            assert!(speed(text).is_err(), "{text}");
        }
    }
}
