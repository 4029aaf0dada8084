//! A report with the pods' names: what `/v1/loads` has under `rdma`.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use router_core::provenance::Measured;

use super::rdma_report::{DeviceReport, HolderReport, RdmaReport};
use crate::agent::rdma::attribution::ArrivedTraffic;

/// RDMA by device, by pod and by pair. Rates of a device that the host sees (`seen_by_host`) are in
/// the pods' and pairs' TCP/IP figures as well: the two are not to be added up.
#[derive(Clone, Debug, Default, Serialize)]
pub(in crate::agent) struct RdmaLoad {
    pub(in crate::agent) devices: Vec<DeviceReport>,
    pub(in crate::agent) pods: Vec<PodRdma>,
    pub(in crate::agent) pairs: Vec<PairRdma>,
}

/// A pod that has queue pairs, or had.
#[derive(Clone, Debug, Serialize)]
pub(in crate::agent) struct PodRdma {
    pub(in crate::agent) pod: Arc<str>,
    pub(in crate::agent) uid: Arc<str>,
    pub(in crate::agent) devices: Vec<String>,
    /// That can move something.
    pub(in crate::agent) active_queue_pairs: u32,
    pub(in crate::agent) tx_bytes: Measured<f64>,
    pub(in crate::agent) rx_bytes: Measured<f64>,
    pub(in crate::agent) tx_bytes_per_second: Measured<f64>,
    pub(in crate::agent) rx_bytes_per_second: Measured<f64>,
    /// Of the busiest of its devices, whoever uses it.
    pub(in crate::agent) tx_utilisation: Measured<f64>,
    pub(in crate::agent) rx_utilisation: Measured<f64>,
    pub(in crate::agent) arrived: Option<ArrivedTraffic>,
}

/// A pod and a peer, where the connection manager or the packets tell of it.
#[derive(Clone, Debug, Serialize)]
pub(in crate::agent) struct PairRdma {
    pub(in crate::agent) pod: Arc<str>,
    pub(in crate::agent) peer: Option<Arc<str>>,
    pub(in crate::agent) peer_address: IpAddr,
    pub(in crate::agent) tx_bytes_per_second: Measured<f64>,
    pub(in crate::agent) rx_bytes_per_second: Measured<f64>,
    pub(in crate::agent) arrived: Option<ArrivedTraffic>,
}

/// Who is who: names of local pods by UID, and of all by address.
#[derive(Debug, Default)]
pub(in crate::agent) struct PodNames {
    pub(in crate::agent) by_uid: HashMap<Arc<str>, Arc<str>>,
    pub(in crate::agent) by_address: HashMap<IpAddr, Arc<str>>,
}

impl RdmaLoad {
    /// `report` as it was `ago`.
    pub(in crate::agent) fn new(report: &RdmaReport, ago: Duration, names: &PodNames) -> RdmaLoad {
        let mut load = RdmaLoad { devices: report.devices.clone(), ..RdmaLoad::default() };
        for device in &mut load.devices {
            device.age_ms += ago.as_secs_f64() * 1e3;
            for holder in &mut device.holders {
                holder.pod = holder.uid.as_ref().and_then(|uid| names.by_uid.get(uid)).cloned();
                for peer in &mut holder.peers {
                    peer.pod = names.by_address.get(&peer.address).cloned();
                }
            }
        }
        let mut pods = BTreeMap::new();
        let mut pairs = BTreeMap::new();
        for device in &load.devices {
            for holder in &device.holders {
                if let (Some(pod), Some(uid)) = (&holder.pod, &holder.uid) {
                    add_pod(&mut pods, pod, uid, device, holder);
                    add_pairs(&mut pairs, pod, holder);
                }
            }
        }
        load.pods = pods.into_values().collect();
        for pod in &mut load.pods {
            let Some((bytes, per_second)) = report.estimates.get(&pod.uid) else { continue };
            // Only where nothing was counted: the two are one transfer.
            if pod.rx_bytes_per_second.value().is_none() && pod.active_queue_pairs > 0 {
                (pod.rx_bytes, pod.rx_bytes_per_second) = (*bytes, *per_second);
            }
        }
        load.pairs = pairs.into_values().collect();
        load
    }
}

fn add_pod(
    pods: &mut BTreeMap<Arc<str>, PodRdma>,
    pod: &Arc<str>,
    uid: &Arc<str>,
    device: &DeviceReport,
    holder: &HolderReport,
) {
    let own = PodRdma {
        pod: Arc::clone(pod),
        uid: Arc::clone(uid),
        devices: vec![device.device.clone()],
        active_queue_pairs: holder.queue_pairs.active(),
        tx_bytes: holder.tx_bytes,
        rx_bytes: holder.rx_bytes,
        tx_bytes_per_second: holder.tx_bytes_per_second,
        rx_bytes_per_second: holder.rx_bytes_per_second,
        tx_utilisation: device.rates.tx_utilisation,
        rx_utilisation: device.rates.rx_utilisation,
        arrived: holder.arrived,
    };
    let Some(known) = pods.get_mut(uid) else {
        pods.insert(Arc::clone(uid), own);
        return;
    };
    known.devices.extend(own.devices);
    known.active_queue_pairs += own.active_queue_pairs;
    known.tx_bytes = known.tx_bytes.plus(own.tx_bytes);
    known.rx_bytes = known.rx_bytes.plus(own.rx_bytes);
    known.tx_bytes_per_second = known.tx_bytes_per_second.plus(own.tx_bytes_per_second);
    known.rx_bytes_per_second = known.rx_bytes_per_second.plus(own.rx_bytes_per_second);
    known.tx_utilisation = known.tx_utilisation.or_higher(own.tx_utilisation);
    known.rx_utilisation = known.rx_utilisation.or_higher(own.rx_utilisation);
    known.arrived = both(known.arrived, own.arrived);
}

fn add_pairs(
    pairs: &mut BTreeMap<(Arc<str>, IpAddr), PairRdma>,
    pod: &Arc<str>,
    holder: &HolderReport,
) {
    for peer in &holder.peers {
        let own = PairRdma {
            pod: Arc::clone(pod),
            peer: peer.pod.clone(),
            peer_address: peer.address,
            tx_bytes_per_second: peer.tx_bytes_per_second,
            rx_bytes_per_second: peer.rx_bytes_per_second,
            arrived: peer.arrived,
        };
        match pairs.get_mut(&(Arc::clone(pod), peer.address)) {
            None => _ = pairs.insert((Arc::clone(pod), peer.address), own),
            Some(known) => {
                known.tx_bytes_per_second = known.tx_bytes_per_second.plus(own.tx_bytes_per_second);
                known.rx_bytes_per_second = known.rx_bytes_per_second.plus(own.rx_bytes_per_second);
                known.arrived = both(known.arrived, own.arrived);
            }
        }
    }
}

fn both(one: Option<ArrivedTraffic>, other: Option<ArrivedTraffic>) -> Option<ArrivedTraffic> {
    one.into_iter().chain(other).reduce(ArrivedTraffic::plus)
}
