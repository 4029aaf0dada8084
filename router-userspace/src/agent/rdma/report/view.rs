//! [`RdmaLoad`]: a report with pod names, shown under `rdma` in `/v1/loads`.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use router_core::provenance::Measured;

use super::rdma_report::{DeviceReport, HolderReport, RdmaReport};
use crate::agent::rdma::attribution::ArrivedTraffic;

/// RDMA by device, by pod and by pair. The TCP/IP rates of pods and pairs include the traffic of
/// devices with `seen_by_host`, so do not add the two.
#[derive(Clone, Debug, Default, Serialize)]
pub(in crate::agent) struct RdmaLoad {
    pub(in crate::agent) devices: Vec<DeviceReport>,
    pub(in crate::agent) pods: Vec<PodRdma>,
    pub(in crate::agent) pairs: Vec<PairRdma>,
}

/// A pod that has or had queue pairs.
#[derive(Clone, Debug, Serialize)]
pub(in crate::agent) struct PodRdma {
    pub(in crate::agent) pod: Arc<str>,
    pub(in crate::agent) uid: Arc<str>,
    pub(in crate::agent) devices: Vec<String>,
    /// Queue pairs that can move data.
    pub(in crate::agent) active_queue_pairs: u32,
    pub(in crate::agent) tx_bytes: Measured<f64>,
    pub(in crate::agent) rx_bytes: Measured<f64>,
    pub(in crate::agent) tx_bytes_per_second: Measured<f64>,
    pub(in crate::agent) rx_bytes_per_second: Measured<f64>,
    /// Utilisation of the busiest of its devices, by all of their users.
    pub(in crate::agent) tx_utilisation: Measured<f64>,
    pub(in crate::agent) rx_utilisation: Measured<f64>,
    pub(in crate::agent) arrived: Option<ArrivedTraffic>,
}

/// A pod and a peer, from the connection manager or from packets.
#[derive(Clone, Debug, Serialize)]
pub(in crate::agent) struct PairRdma {
    pub(in crate::agent) pod: Arc<str>,
    pub(in crate::agent) peer: Option<Arc<str>>,
    pub(in crate::agent) peer_address: IpAddr,
    pub(in crate::agent) tx_bytes_per_second: Measured<f64>,
    pub(in crate::agent) rx_bytes_per_second: Measured<f64>,
    pub(in crate::agent) arrived: Option<ArrivedTraffic>,
}

/// Pod names: of local pods by UID, and of all pods by address.
#[derive(Debug, Default)]
pub(in crate::agent) struct PodNames {
    pub(in crate::agent) by_uid: HashMap<Arc<str>, Arc<str>>,
    pub(in crate::agent) by_address: HashMap<IpAddr, Arc<str>>,
}

impl RdmaLoad {
    /// Adds names to a report that is `ago` old.
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
            // The estimate replaces a missing count; both describe the same transfer.
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
    let Some(sum) = pods.get_mut(uid) else {
        pods.insert(Arc::clone(uid), own);
        return;
    };
    sum.devices.extend(own.devices);
    sum.active_queue_pairs += own.active_queue_pairs;
    sum.tx_bytes = sum.tx_bytes.plus(own.tx_bytes);
    sum.rx_bytes = sum.rx_bytes.plus(own.rx_bytes);
    sum.tx_bytes_per_second = sum.tx_bytes_per_second.plus(own.tx_bytes_per_second);
    sum.rx_bytes_per_second = sum.rx_bytes_per_second.plus(own.rx_bytes_per_second);
    sum.tx_utilisation = sum.tx_utilisation.or_higher(own.tx_utilisation);
    sum.rx_utilisation = sum.rx_utilisation.or_higher(own.rx_utilisation);
    sum.arrived = both(sum.arrived, own.arrived);
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
            Some(sum) => {
                sum.tx_bytes_per_second = sum.tx_bytes_per_second.plus(own.tx_bytes_per_second);
                sum.rx_bytes_per_second = sum.rx_bytes_per_second.plus(own.rx_bytes_per_second);
                sum.arrived = both(sum.arrived, own.arrived);
            }
        }
    }
}

fn both(one: Option<ArrivedTraffic>, other: Option<ArrivedTraffic>) -> Option<ArrivedTraffic> {
    one.into_iter().chain(other).reduce(ArrivedTraffic::plus)
}
