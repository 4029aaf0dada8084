//! RDMA in load frames: the rates of each pod, and the devices.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use router_core::fleet::Role;
use router_core::frame::{DeviceKind, DeviceRecord, PodRecord};
use router_core::provenance::{Measured, Provenance};

use super::rdma_report::{DeviceReport, HolderReport, RdmaReport};
use crate::agent::host::link_use::LinkUse;

/// A pod's share of the traffic of RDMA devices.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(in crate::agent) struct PodRdmaRates {
    /// Whether it has queue pairs on a device whose traffic bypasses the host's network stack.
    pub(in crate::agent) is_offloaded: bool,
    pub(in crate::agent) tx: Measured<f32>,
    pub(in crate::agent) rx: Measured<f32>,
    /// Bytes that it sent since the agent first saw it, if counted exactly.
    pub(in crate::agent) sent: Option<u64>,
    /// Speed and use of the devices that carry its transfers past the host's network stack; `None` if
    /// unknown.
    pub(in crate::agent) link: Option<LinkUse>,
}

/// The rates of each pod, by UID.
pub(in crate::agent) fn pod_rates(report: &RdmaReport) -> HashMap<Arc<str>, PodRdmaRates> {
    let mut sums: HashMap<Arc<str>, (DeviceSum, DeviceSum)> = HashMap::new();
    for device in &report.devices {
        for holder in &device.holders {
            let Some(uid) = &holder.uid else { continue };
            let (all, offloaded) = sums.entry(Arc::clone(uid)).or_default();
            all.add(device, holder);
            if !device.seen_by_host && holder.queue_pairs.active() > 0 {
                offloaded.add(device, holder);
            }
        }
    }
    let rates = |(uid, (all, offloaded)): (Arc<str>, (DeviceSum, DeviceSum))| {
        let estimated = report.estimates.get(&uid).map(|(_, rate)| *rate).unwrap_or_default();
        let rx = if all.rx.value().is_some() { all.rx } else { estimated };
        let is_exact = all.sent.provenance() == Provenance::Exact;
        let sent = all.sent.value().filter(|_| is_exact);
        let rates = PodRdmaRates {
            is_offloaded: offloaded.devices > 0,
            tx: narrowed(all.tx),
            rx: narrowed(rx),
            sent: sent.map(|sent| sent as u64),
            link: offloaded.link(),
        };
        (uid, rates)
    };
    sums.into_iter().map(rates).collect()
}

/// The sum of the devices on which a pod has queue pairs.
#[derive(Clone, Copy, Debug)]
struct DeviceSum {
    devices: u32,
    tx: Measured<f64>,
    rx: Measured<f64>,
    sent: Measured<f64>,
    speed: Measured<f64>,
    tx_used: Measured<f64>,
    rx_used: Measured<f64>,
}

impl Default for DeviceSum {
    fn default() -> DeviceSum {
        let none = Measured::exact(0.0);
        DeviceSum {
            devices: 0,
            tx: none,
            rx: none,
            sent: none,
            speed: none,
            tx_used: none,
            rx_used: none,
        }
    }
}

impl DeviceSum {
    fn add(&mut self, device: &DeviceReport, holder: &HolderReport) {
        self.devices += 1;
        let (tx, rx) = device.frame_rates;
        self.tx = self.tx.plus(tx.times(holder.share));
        self.rx = self.rx.plus(rx.times(holder.share));
        self.sent = self.sent.plus(holder.tx_bytes);
        self.speed = self.speed.plus(speed(device));
        self.tx_used = self.tx_used.plus(tx);
        self.rx_used = self.rx_used.plus(rx);
    }

    fn link(&self) -> Option<LinkUse> {
        let (tx, rx) = (self.tx_used.value()?, self.rx_used.value()?);
        self.speed.value().filter(|speed| *speed > 0.0).map(|speed| LinkUse { speed, tx, rx })
    }
}

/// The link's speed in bytes per second.
fn speed(device: &DeviceReport) -> Measured<f64> {
    let speed = device.speed_bits_per_second.map(|bits| bits as f64 / 8.0);
    Measured::new(speed, Provenance::Exact)
}

/// The device records of a report that is `ago` old.
pub(in crate::agent) fn device_records(report: &RdmaReport, ago: Duration) -> Vec<DeviceRecord> {
    let record = |device: &DeviceReport| {
        let (tx, rx) = device.frame_rates;
        let busier = tx.or_higher(rx);
        let known = busier.value().zip(speed(device).value()).filter(|(_, speed)| *speed > 0.0);
        let utilisation = known.map(|(used, speed)| (used / speed).min(1.0));
        let age_us = device.age_ms * 1e3 + ago.as_secs_f64() * 1e6;
        DeviceRecord {
            name: format!("{}/{}", device.device, device.port),
            kind: DeviceKind::Rdma,
            age_us: age_us as u32,
            speed_bytes_per_s: narrowed(speed(device)),
            tx_bytes_per_s: narrowed(tx),
            rx_bytes_per_s: narrowed(rx),
            utilisation: narrowed(Measured::new(utilisation, busier.provenance())),
        }
    };
    report.devices.iter().map(record).collect()
}

fn narrowed(measured: Measured<f64>) -> Measured<f32> {
    measured.map(|value| value as f32)
}

/// Adds the RDMA rates to a pod's record. RDMA traffic of a prefill or decode is taken to be KV cache,
/// so the sum is an estimate.
pub(in crate::agent) fn with_rdma(
    mut record: PodRecord,
    role: Option<Role>,
    rdma: PodRdmaRates,
) -> PodRecord {
    if rdma == PodRdmaRates::default() {
        return record;
    }
    (record.rdma_tx_bytes_per_s, record.rdma_rx_bytes_per_s) = (rdma.tx, rdma.rx);
    let both = |tcp: Measured<f32>, rdma: Measured<f32>| match (tcp.value(), rdma.value()) {
        (Some(tcp), Some(rdma)) => Measured::estimated(tcp + rdma),
        _ => Measured::unknown(),
    };
    match role {
        Some(Role::Prefill) => {
            record.kv_tx_bytes_per_s = both(record.kv_tx_bytes_per_s, rdma.tx);
            record.kv_tx_bytes += rdma.sent.unwrap_or_default();
        }
        Some(Role::Decode) => {
            record.kv_rx_bytes_per_s = both(record.kv_rx_bytes_per_s, rdma.rx);
        }
        _ => {}
    }
    record
}
