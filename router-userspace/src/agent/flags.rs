//! Flags of `pd-router agent`.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

/// Counts in the kernel what this node's pods do on the network, and serves it.
#[derive(Clone, Debug, Args)]
pub struct AgentFlags {
    /// Watch the pods of this node, and the pools and policies that say what they are, in the
    /// cluster that this runs in, else that of $KUBECONFIG or ~/.kube/config.
    #[arg(long, conflicts_with = "manifests", requires = "node_name")]
    pub kubernetes: bool,
    /// With --kubernetes: which pods of other nodes are watched, to tell KV cache from other
    /// traffic and to name who it moves between.
    #[arg(long, value_enum, default_value_t = Peers::Pools)]
    pub peers: Peers,
    /// Directory of manifests: the same as the gateway's.
    #[arg(long, value_name = "DIR", required_unless_present_any = ["cleanup", "kubernetes", "prepare_node"])]
    pub manifests: Option<PathBuf>,
    /// Name of this node: pods with this `spec.nodeName` are local. Without it, and for pods
    /// without one, local is what is not behind the default route.
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,
    /// This node's address, which pods with hostNetwork share.
    #[arg(long, env = "NODE_IP", value_name = "IP")]
    pub node_ip: Option<IpAddr>,

    /// How often the counters of local pods are read.
    #[arg(long, default_value = "10", value_name = "MS", value_parser = milliseconds)]
    pub tick: Duration,
    /// How long a sized nothing may say: an answer that ends with its connection alone is held
    /// to be over after this silence.
    #[arg(long, default_value = "2000", value_name = "MS", value_parser = milliseconds)]
    pub idle_window: Duration,
    /// Ports of connections between prefill and decode that carry KV cache; Mooncake's by default.
    #[arg(long, default_value = "15000-17000", value_name = "FIRST-LAST", value_parser = port_range)]
    pub kv_ports: (u16, u16),

    /// Interfaces of pods to attach to, instead of those that the routes to them name.
    #[arg(long, value_name = "INTERFACE")]
    pub attach: Vec<String>,
    /// Interface towards other nodes, instead of the default route's.
    #[arg(long, value_name = "INTERFACE")]
    pub uplink: Vec<String>,
    /// Speed of an interface in Mbit/s, for one whose device does not tell it: an uplink of a
    /// virtual machine, or a pod's link with a limit. May be repeated.
    #[arg(long, value_name = "INTERFACE=MBIT", value_parser = link_speed)]
    pub link_speed: Vec<LinkSpeed>,
    /// XDP on uplinks: auto takes it where the driver keeps its offloads or RoCEv2 is in use.
    #[arg(long, value_enum, default_value_t = XdpWish::Auto)]
    pub xdp: XdpWish,
    /// How tc programs are attached.
    #[arg(long, value_enum, default_value_t = TcMode::Auto)]
    pub tc: TcMode,
    /// The cgroup2 directory whose sockets are seen; the root of a mount by default.
    #[arg(long, value_name = "DIR")]
    pub cgroup: Option<PathBuf>,

    /// Bits a second of RDMA links, in Gbit/s, where devices do not tell: of one device, or of all
    /// that are not named. May be repeated.
    #[arg(long, value_name = "[DEVICE=]GBITS", value_parser = speed)]
    pub rdma_speed: Vec<(Option<String>, u64)>,
    /// Bytes of KV cache of one page on one rank. Where RDMA devices do not tell what they move,
    /// it is estimated by the pages that decodes ask their prefills for.
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..=1 << 30))]
    pub kv_page_bytes: Option<u64>,
    /// Where the host's sysfs is mounted.
    #[arg(long, default_value = "/sys", value_name = "DIR")]
    pub sysfs: PathBuf,

    /// Where /v1/loads, /metrics, /livez and /readyz are served.
    #[arg(long, default_value = "127.0.0.1:9911", value_name = "IP:PORT")]
    pub listen: SocketAddr,
    /// File with the token that /v1/loads and /metrics ask for. Needed beyond loopback.
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Answer everyone who reaches --listen.
    #[arg(long, conflicts_with = "token_file")]
    pub without_token: bool,

    /// Where maps and links are pinned, on a bpf file system.
    #[arg(long, default_value = "/sys/fs/bpf/pd-router", value_name = "DIR")]
    pub pin_dir: PathBuf,
    /// The kernel half's object, for a binary that does not carry it.
    #[arg(long, env = "PD_ROUTER_EBPF_OBJECT", value_name = "FILE")]
    pub object: Option<PathBuf>,
    /// Mount what the node lacks (a bpf file system, tracefs, cgroup2 in --cgroup), then end. Needs
    /// more privileges than counting.
    #[arg(long, requires = "cgroup")]
    pub prepare_node: bool,
    /// Detach every program and remove every pin of this directory, then end.
    #[arg(long)]
    pub cleanup: bool,
}

/// What is known of an interface's speed from outside.
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum XdpWish {
    Auto,
    Native,
    Generic,
    Off,
}

/// Pods of other nodes that an agent watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Peers {
    /// Those that a pool selects.
    Pools,
    /// None: what goes to another node then counts as `other`, to nobody in particular.
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TcMode {
    /// tcx from 6.6 on, clsact before.
    Auto,
    Tcx,
    Clsact,
}

fn milliseconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(milliseconds @ 1..=60_000) => Ok(Duration::from_millis(milliseconds)),
        _ => Err("not milliseconds from 1 to 60000".to_owned()),
    }
}

fn speed(text: &str) -> Result<(Option<String>, u64), String> {
    let (device, gigabits) = match text.split_once('=') {
        Some((device, gigabits)) if !device.is_empty() => (Some(device.to_owned()), gigabits),
        Some(_) => return Err("no device before `=`".to_owned()),
        None => (None, text),
    };
    match gigabits.parse::<f64>() {
        Ok(gigabits) if (0.001..=10_000.0).contains(&gigabits) => {
            Ok((device, (gigabits * 1e9).round() as u64))
        }
        _ => Err("not [DEVICE=]GBITS, from 0.001 to 10000 Gbit/s".to_owned()),
    }
}

fn port_range(text: &str) -> Result<(u16, u16), String> {
    let ends = text
        .split_once('-')
        .and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
    ends.filter(|(first, last)| 0 < *first && first <= last)
        .ok_or_else(|| "not FIRST-LAST, two ports in order".to_owned())
}

fn link_speed(text: &str) -> Result<LinkSpeed, String> {
    let parts = text.split_once('=').and_then(|(name, speed)| Some((name, speed.parse().ok()?)));
    parts
        .filter(|(name, megabits)| !name.is_empty() && (1.0..=1e7).contains(megabits))
        .map(|(name, megabits)| LinkSpeed { interface: name.to_owned(), megabits })
        .ok_or_else(|| "not INTERFACE=MBIT, with a speed from 1 to 10000000".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_speed_is_of_one_device_or_of_all() {
        assert_eq!(speed("200"), Ok((None, 200_000_000_000)));
        assert_eq!(speed("erdma_0=2.5"), Ok((Some("erdma_0".to_owned()), 2_500_000_000)));
        for text in ["", "=5", "a=", "a=fast", "0", "-1", "inf", "nan", "10001"] {
            assert!(speed(text).is_err(), "{text}");
        }
    }
}
