//! [`RdmaReport`]: the state of all devices at one moment, the source of `/v1/loads`, `/metrics` and
//! load frames.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use router_core::provenance::{Measured, Provenance};

use crate::agent::rdma::Rdma;
use crate::agent::rdma::attribution::{ArrivedTraffic, Owner, QueuePairStates};
use crate::agent::rdma::counters::{Counter, CounterValues, Freshness};
use crate::agent::rdma::device::RdmaDevice;
use crate::agent::rdma::port::{RdmaPort, ReadMethod, SpeedSource};

/// The state of all RDMA devices at one moment.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RdmaReport {
    pub devices: Vec<DeviceReport>,
    /// What cannot be measured, with the reason.
    #[serde(skip)]
    pub(in crate::agent) missing: Vec<String>,
    /// Estimated KV cache that pods received in total and per second, by UID.
    #[serde(skip)]
    pub(in crate::agent) estimates:
        std::collections::HashMap<Arc<str>, (Measured<f64>, Measured<f64>)>,
    /// Local and remote address of iWARP connections.
    #[serde(skip)]
    pub(in crate::agent) iwarp_endpoints: Vec<(std::net::SocketAddr, std::net::SocketAddr)>,
}

/// One port of one device.
#[derive(Clone, Debug, Serialize)]
pub struct DeviceReport {
    pub device: String,
    pub port: u32,
    pub driver: &'static str,
    /// `ib`, `roce`, `iw`; empty if unknown.
    protocol: String,
    pub(in crate::agent) interface: Option<String>,
    active: bool,
    /// Whether its packets also pass the host's network stack and are counted there.
    pub(in crate::agent) seen_by_host: bool,
    pub(in crate::agent) speed_bits_per_second: Option<u64>,
    speed_source: SpeedSource,
    read_method: ReadMethod,
    pub(in crate::agent) freshness: Freshness,
    /// Of `counters.tx_bytes` and `counters.rx_bytes`.
    pub(in crate::agent) bytes_provenance: Provenance,
    pub(in crate::agent) counters: CounterValues,
    pub(in crate::agent) rates: RateReport,
    /// Bytes sent and received per second, averaged over the interval of load frames.
    #[serde(skip)]
    pub(in crate::agent) frame_rates: (Measured<f64>, Measured<f64>),
    resets: u64,
    pub(in crate::agent) holders: Vec<HolderReport>,
    pub(in crate::agent) age_ms: f64,
}

/// Rates per second over the last second. Utilisation is a share of the link's speed.
#[derive(Clone, Copy, Debug, Serialize)]
pub(in crate::agent) struct RateReport {
    pub(in crate::agent) tx_bytes: Measured<f64>,
    pub(in crate::agent) rx_bytes: Measured<f64>,
    tx_packets: Measured<f64>,
    rx_packets: Measured<f64>,
    pub(in crate::agent) tx_utilisation: Measured<f64>,
    pub(in crate::agent) rx_utilisation: Measured<f64>,
}

/// An owner that has or had queue pairs on a device.
#[derive(Clone, Debug, Serialize)]
pub(in crate::agent) struct HolderReport {
    /// `pod`, `host` (a process outside any pod), `kernel` or `unseen`.
    owner: &'static str,
    /// The pod's name, if it is known.
    pub(in crate::agent) pod: Option<Arc<str>>,
    pub(in crate::agent) uid: Option<Arc<str>>,
    pub(in crate::agent) queue_pairs: QueuePairStates,
    pub(in crate::agent) share: Measured<f64>,
    /// Bytes since the agent first saw the device.
    pub(in crate::agent) tx_bytes: Measured<f64>,
    pub(in crate::agent) rx_bytes: Measured<f64>,
    pub(in crate::agent) tx_bytes_per_second: Measured<f64>,
    pub(in crate::agent) rx_bytes_per_second: Measured<f64>,
    /// RoCEv2 traffic that the eBPF programs counted. `rx_bytes` includes it if the device counts
    /// bytes.
    pub(in crate::agent) arrived: Option<ArrivedTraffic>,
    pub(in crate::agent) peers: Vec<PeerReport>,
}

/// A peer of a holder.
#[derive(Clone, Debug, Serialize)]
pub(in crate::agent) struct PeerReport {
    pub(in crate::agent) address: IpAddr,
    /// The name of the pod with this address, if known.
    pub(in crate::agent) pod: Option<Arc<str>>,
    /// Active queue pairs that the connection manager created.
    queue_pairs: u32,
    pub(in crate::agent) tx_bytes_per_second: Measured<f64>,
    pub(in crate::agent) rx_bytes_per_second: Measured<f64>,
    pub(in crate::agent) arrived: Option<ArrivedTraffic>,
}

impl RdmaReport {
    /// Whether the pod of this UID has queue pairs on an iWARP device.
    pub(in crate::agent) fn uses_iwarp(&self, uid: &str) -> bool {
        let iwarp = self.devices.iter().filter(|device| device.protocol == "iw");
        let mut holders = iwarp.flat_map(|device| &device.holders);
        holders.any(|held| held.uid.as_deref() == Some(uid) && held.queue_pairs.active() > 0)
    }

    pub(in crate::agent) fn new(rdma: &Rdma, at: Duration) -> RdmaReport {
        let ports = rdma.devices.iter().flat_map(|device| {
            device.ports.iter().map(move |port| port_report(rdma, device, port, at))
        });
        let iwarp = rdma.devices.iter().filter(|device| device.info.protocol == "iw");
        RdmaReport {
            devices: ports.collect(),
            missing: missing(rdma),
            estimates: rdma.estimates.all(),
            iwarp_endpoints: iwarp.flat_map(|device| device.endpoints.iter().copied()).collect(),
        }
    }
}

fn port_report(rdma: &Rdma, device: &RdmaDevice, port: &RdmaPort, at: Duration) -> DeviceReport {
    let is_in_use = device.is_in_use();
    let rate = |counter| port.rate(counter, is_in_use);
    let provenance = port.bytes_provenance(is_in_use);
    let bytes = |counter| match provenance {
        Provenance::Unknown => Measured::unknown(),
        _ => rate(counter),
    };
    let used = |rate: Measured<f64>| match port.speed {
        0 => Measured::unknown(),
        speed => rate.times(Measured::exact(8.0 / speed as f64)),
    };
    let (tx_bytes, rx_bytes) = (bytes(Counter::TxBytes), bytes(Counter::RxBytes));
    let rates = RateReport {
        tx_bytes,
        rx_bytes,
        tx_packets: rate(Counter::TxPackets),
        rx_packets: rate(Counter::RxPackets),
        tx_utilisation: used(tx_bytes),
        rx_utilisation: used(rx_bytes),
    };
    DeviceReport {
        device: device.info.name.clone(),
        port: port.number,
        driver: device.driver,
        protocol: device.info.protocol.clone(),
        interface: port.interface.as_ref().map(|(_, name)| name.clone()),
        active: port.state == 4,
        seen_by_host: device.is_seen_by_host(),
        speed_bits_per_second: (port.speed > 0).then_some(port.speed),
        speed_source: port.speed_source,
        read_method: port.read_method,
        freshness: port.staleness.verdict(is_in_use),
        bytes_provenance: provenance,
        counters: port.history.counters().values(),
        rates,
        frame_rates: match provenance {
            Provenance::Unknown => (Measured::unknown(), Measured::unknown()),
            _ => {
                let recent = |counter| port.recent(counter, is_in_use);
                (recent(Counter::TxBytes), recent(Counter::RxBytes))
            }
        },
        resets: port.history.resets(),
        holders: holders(rdma, device, port, (tx_bytes, rx_bytes), provenance),
        age_ms: port.read_at.map_or(0.0, |read| at.saturating_sub(read).as_secs_f64() * 1e3),
    }
}

fn holders(
    rdma: &Rdma,
    device: &RdmaDevice,
    port: &RdmaPort,
    rates: (Measured<f64>, Measured<f64>),
    provenance: Provenance,
) -> Vec<HolderReport> {
    // Shares belong to the device; only its first port lists them, so that nothing counts twice.
    let is_first = device.ports.first().is_some_and(|first| first.number == port.number);
    let Some(held) = device.holders.as_ref().filter(|_| is_first) else { return Vec::new() };
    let mut owners: BTreeMap<&Owner, QueuePairStates> = held.iter().map(|(o, s)| (o, *s)).collect();
    for (owner, _) in device.ledger.iter() {
        owners.entry(owner).or_default();
    }
    let of_device = |owner: &Owner| rdma.arrivals.of(&device.info.name, owner).collect::<Vec<_>>();
    let report = |(owner, queue_pairs): (&Owner, QueuePairStates)| {
        let share = held.share(owner);
        let moved = device.ledger.of(owner);
        let split = if moved.is_estimated { Provenance::Estimated } else { Provenance::Exact };
        let total = |bytes: u64| Measured::new(Some(bytes as f64), provenance.and(split));
        let (tx, rx) = (rates.0.times(share), rates.1.times(share));
        let arrivals = of_device(owner);
        let all = arrivals.iter().map(|(_, arrived)| *arrived).reduce(ArrivedTraffic::plus);
        let (kind, uid) = match owner {
            Owner::Pod(uid) => ("pod", Some(Arc::clone(uid))),
            Owner::Host => ("host", None),
            Owner::Kernel => ("kernel", None),
            Owner::Unseen => ("unseen", None),
        };
        HolderReport {
            owner: kind,
            pod: None,
            uid,
            queue_pairs,
            share,
            tx_bytes: total(moved.tx),
            rx_bytes: total(moved.rx),
            tx_bytes_per_second: tx,
            rx_bytes_per_second: rx,
            arrived: all,
            peers: peers(device, owner, queue_pairs.active(), (tx, rx), &arrivals),
        }
    };
    owners.into_iter().map(report).collect()
}

fn peers(
    device: &RdmaDevice,
    owner: &Owner,
    active: u32,
    rates: (Measured<f64>, Measured<f64>),
    arrivals: &[(IpAddr, ArrivedTraffic)],
) -> Vec<PeerReport> {
    let first = (owner.clone(), IpAddr::from([0; 4]));
    let connected = device.peers.range(first..).take_while(|((whose, _), _)| whose == owner);
    let mut peers: BTreeMap<IpAddr, u32> =
        connected.map(|((_, address), count)| (*address, *count)).collect();
    for (address, _) in arrivals {
        peers.entry(*address).or_default();
    }
    let report = |(address, queue_pairs): (IpAddr, u32)| {
        let share = match queue_pairs {
            0 => Measured::unknown(),
            all if all == active => Measured::exact(1.0),
            some => Measured::estimated(f64::from(some) / f64::from(active.max(some))),
        };
        let arrived = arrivals.iter().find(|(from, _)| *from == address);
        PeerReport {
            address,
            pod: None,
            queue_pairs,
            tx_bytes_per_second: rates.0.times(share),
            rx_bytes_per_second: rates.1.times(share),
            arrived: arrived.map(|(_, arrived)| *arrived),
        }
    };
    peers.into_iter().map(report).collect()
}

/// What cannot be measured, as sentences for logs and `/v1/loads`.
fn missing(rdma: &Rdma) -> Vec<String> {
    let mut missing = Vec::new();
    if rdma.devices.is_empty() {
        return missing;
    }
    let is_in_netlink = rdma.devices.iter().any(|device| device.is_in_netlink);
    if is_in_netlink && !rdma.processes.sees_all() {
        missing.push(
            "RDMA by pod: this PID namespace does not show the processes that own queue pairs; set \
             hostPID in the agent's pod"
                .to_owned(),
        );
    }
    for device in &rdma.devices {
        let name = &device.info.name;
        if !device.is_in_netlink {
            let why = rdma.netlink_error.as_deref().unwrap_or("it does not list the device");
            missing.push(format!(
                "RDMA netlink: {why}; {name} is read from sysfs, and its traffic cannot be split by pod"
            ));
        } else if device.holders.is_none() {
            missing.push(format!("RDMA by pod: queue pairs of {name} cannot be listed"));
        }
        for port in &device.ports {
            let what = format!("RDMA bytes of {name}, port {}", port.number);
            if port.read_at.is_some() && !port.history.counters().has_bytes() {
                let driver = if device.driver.is_empty() { "unknown" } else { device.driver };
                missing.push(format!("{what}: the driver ({driver}) does not count them"));
                continue;
            }
            let reason = match port.staleness.verdict(device.is_in_use()) {
                Freshness::Stale => "the counters do not advance although queue pairs are active",
                Freshness::Unproven => {
                    "the counters do not advance, and it is unknown whether the device is idle"
                }
                Freshness::Unread | Freshness::Moving | Freshness::Idle => continue,
            };
            missing.push(format!("{what}: {reason}{}", refresh_error(rdma)));
        }
    }
    missing
}

fn refresh_error(rdma: &Rdma) -> String {
    let refusal = rdma.erdma.refusal();
    refusal
        .map_or_else(String::new, |refusal| format!("; the driver cannot refresh them: {refusal}"))
}
