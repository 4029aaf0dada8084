//! What load frames tell of RDMA: a pod's part in it, and the devices.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use router_core::fleet::Role;
use router_core::frame::{DeviceKind, DeviceRecord, PodRecord, Value};

use super::super::links::LinkUse;
use super::known::{Figure, Known};
use super::report::{DeviceReport, HolderReport, Report};

/// A pod's part in what RDMA devices move.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(in crate::agent) struct PodPart {
    /// It has queue pairs on a device whose traffic the host does not see.
    pub(in crate::agent) is_offloaded: bool,
    pub(in crate::agent) tx: Value,
    pub(in crate::agent) rx: Value,
    /// What it sent since it is known, where that is.
    pub(in crate::agent) sent: Option<u64>,
    /// The devices together that carry its transfers past the host; `None` where their speed or
    /// their use is not known.
    pub(in crate::agent) link: Option<LinkUse>,
}

/// Parts by the pods' UIDs.
pub(in crate::agent) fn parts(report: &Report) -> HashMap<Arc<str>, PodPart> {
    let mut parts: HashMap<Arc<str>, (Sum, Sum)> = HashMap::new();
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
    let part = |(uid, (all, past)): (Arc<str>, (Sum, Sum))| {
        let guessed = report.estimates.get(&uid).map(|(_, rate)| *rate).unwrap_or_default();
        let rx = if all.rx.value.is_some() { all.rx } else { guessed };
        let sent = all.sent.value.filter(|_| all.sent.known == Known::Exact);
        let part = PodPart {
            is_offloaded: past.devices > 0,
            tx: value(all.tx),
            rx: value(rx),
            sent: sent.map(|sent| sent as u64),
            link: past.link(),
        };
        (uid, part)
    };
    parts.into_iter().map(part).collect()
}

/// Devices that a pod holds, added up.
#[derive(Clone, Copy, Debug)]
struct Sum {
    devices: u32,
    tx: Figure,
    rx: Figure,
    sent: Figure,
    speed: Figure,
    tx_used: Figure,
    rx_used: Figure,
}

impl Default for Sum {
    fn default() -> Sum {
        let none = Figure::new(Some(0.0), Known::Exact);
        Sum {
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

impl Sum {
    fn add(&mut self, device: &DeviceReport, holder: &HolderReport) {
        self.devices += 1;
        let share = (holder.share.value.unwrap_or_default(), holder.share.known);
        let (tx, rx) = device.recent;
        self.tx = self.tx.plus(tx.part(share));
        self.rx = self.rx.plus(rx.part(share));
        self.sent = self.sent.plus(holder.tx_bytes);
        self.speed = self.speed.plus(speed(device));
        self.tx_used = self.tx_used.plus(tx);
        self.rx_used = self.rx_used.plus(rx);
    }

    fn link(&self) -> Option<LinkUse> {
        let (tx, rx) = (self.tx_used.value?, self.rx_used.value?);
        self.speed.value.filter(|speed| *speed > 0.0).map(|speed| LinkUse { speed, tx, rx })
    }
}

/// Bytes a second.
fn speed(device: &DeviceReport) -> Figure {
    let speed = device.speed_bits_per_second.map(|bits| bits as f64 / 8.0);
    Figure::new(speed, Known::Exact)
}

/// The devices as `ago` after the report.
pub(in crate::agent) fn devices(report: &Report, ago: Duration) -> Vec<DeviceRecord> {
    let record = |device: &DeviceReport| {
        let (tx, rx) = device.recent;
        let busier = tx.or_higher(rx);
        let known = busier.value.zip(speed(device).value).filter(|(_, speed)| *speed > 0.0);
        let utilisation = known.map(|(used, speed)| (used / speed).min(1.0));
        let age_us = device.age_ms * 1e3 + ago.as_secs_f64() * 1e6;
        DeviceRecord {
            name: format!("{}/{}", device.device, device.port),
            kind: DeviceKind::Rdma,
            age_us: age_us as u32,
            speed_bytes_per_s: value(speed(device)),
            tx_bytes_per_s: value(tx),
            rx_bytes_per_s: value(rx),
            utilisation: value(Figure::new(utilisation, busier.known)),
        }
    };
    report.devices.iter().map(record).collect()
}

fn value(figure: Figure) -> Value {
    match (figure.value, figure.known) {
        (Some(value), Known::Exact) => Value::exact(value as f32),
        (Some(value), Known::Estimated) => Value::estimated(value as f32),
        _ => Value::UNKNOWN,
    }
}

/// What RDMA moves for a prefill or a decode is KV cache, as far as anybody knows: an estimate.
pub(in crate::agent) fn with_rdma(
    mut record: PodRecord,
    role: Option<Role>,
    rdma: PodPart,
) -> PodRecord {
    if rdma == PodPart::default() {
        return record;
    }
    (record.rdma_tx_bytes_per_s, record.rdma_rx_bytes_per_s) = (rdma.tx, rdma.rx);
    let both = |tcp: Value, rdma: Value| match (tcp.known(), rdma.known()) {
        (Some(tcp), Some(rdma)) => Value::estimated(tcp + rdma),
        _ => Value::UNKNOWN,
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
