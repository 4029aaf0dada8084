//! What load frames tell of RDMA: a pod's part in it, and the devices.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use router_core::fleet::Role;
use router_core::frame::{DeviceKind, DeviceRecord, PodRecord};
use router_core::provenance::{Measured, Provenance};

use super::rdma_report::{DeviceReport, HolderReport, RdmaReport};
use crate::agent::host::link_use::LinkUse;

/// A pod's part in what RDMA devices move.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(in crate::agent) struct PodRdmaRates {
    /// It has queue pairs on a device whose traffic the host does not see.
    pub(in crate::agent) is_offloaded: bool,
    pub(in crate::agent) tx: Measured<f32>,
    pub(in crate::agent) rx: Measured<f32>,
    /// What it sent since it is known, where that is.
    pub(in crate::agent) sent: Option<u64>,
    /// The devices together that carry its transfers past the host; `None` where their speed or
    /// their use is not known.
    pub(in crate::agent) link: Option<LinkUse>,
}

/// Parts by the pods' UIDs.
pub(in crate::agent) fn pod_rates(report: &RdmaReport) -> HashMap<Arc<str>, PodRdmaRates> {
    let mut parts: HashMap<Arc<str>, (DeviceSum, DeviceSum)> = HashMap::new();
    for device in &report.devices {
        for holder in &device.holders {
            let Some(uid) = &holder.uid else { continue };
            let (all, past) = parts.entry(Arc::clone(uid)).or_default();
            all.add(device, holder);
            if !device.seen_by_host && holder.queue_pairs.active() > 0 {
                past.add(device, holder);
            }
        }
    }
    let part = |(uid, (all, past)): (Arc<str>, (DeviceSum, DeviceSum))| {
        let guessed = report.estimates.get(&uid).map(|(_, rate)| *rate).unwrap_or_default();
        let rx = if all.rx.value().is_some() { all.rx } else { guessed };
        let is_exact = all.sent.provenance() == Provenance::Exact;
        let sent = all.sent.value().filter(|_| is_exact);
        let part = PodRdmaRates {
            is_offloaded: past.devices > 0,
            tx: narrowed(all.tx),
            rx: narrowed(rx),
            sent: sent.map(|sent| sent as u64),
            link: past.link(),
        };
        (uid, part)
    };
    parts.into_iter().map(part).collect()
}

/// Devices that a pod holds, added up.
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
        let (tx, rx) = device.recent;
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

/// Bytes a second.
fn speed(device: &DeviceReport) -> Measured<f64> {
    let speed = device.speed_bits_per_second.map(|bits| bits as f64 / 8.0);
    Measured::new(speed, Provenance::Exact)
}

/// The devices as `ago` after the report.
pub(in crate::agent) fn device_records(report: &RdmaReport, ago: Duration) -> Vec<DeviceRecord> {
    let record = |device: &DeviceReport| {
        let (tx, rx) = device.recent;
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

/// What RDMA moves for a prefill or a decode is KV cache, as far as anybody knows: an estimate.
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
