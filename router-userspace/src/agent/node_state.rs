//! The latest readings of a node, and the views that the server and the publisher need of them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use router_common::flow::CLASS_KV_CONTROL;
use router_core::fleet::Role;
use router_core::frame::{self, PodRecord, RoomRecord};

use super::api::loads::{self, ControlLoad, Loads};
use super::counters::links::{NodeLinks, PodLinks};
use super::counters::rolling_stats::RollingStats;
use super::counters::sampler::{PodCounters, Sampler};
use super::flags::LinkSpeed;
use super::node_info::NodeInfo;
use super::pods::registered_pod::RegisteredPod;
use super::rdma::report::{PodNames, RdmaLoad, device_records, pod_rates};
use super::rdma::{Activity, IwarpConnections, RdmaWatcher};
use super::rooms::RoomTracker;

/// The latest readings of the counters, and the pods and interfaces they belong to.
#[derive(Debug)]
pub(super) struct NodeState {
    pub(super) sampler: Sampler,
    pub(super) stats: RollingStats,
    pub(super) links: NodeLinks,
    pub(super) node: NodeInfo,
    /// `None` if its thread could not be started.
    pub(super) rdma: Option<RdmaWatcher>,
    /// KV transfers, by their control messages.
    pub(super) rooms: RoomTracker,
}

impl NodeState {
    /// The answer to `/v1/loads`.
    pub(super) fn loads(&self) -> Loads {
        let links = self.pod_links();
        let score = |pod: &RegisteredPod, counters: &PodCounters| {
            self.stats.score_of(pod, counters, &links)
        };
        let mut loads = loads::snapshot(&self.sampler, &self.node, &self.stats.kv, score);
        loads.control = ControlLoad { counts: self.rooms.counts, open_rooms: self.rooms.open() };
        if let Some((report, ago)) = self.rdma.as_ref().map(RdmaWatcher::report) {
            loads.rdma = RdmaLoad::new(&report, ago, &self.rdma_names());
            loads.missing.extend(report.missing.iter().cloned());
        }
        loads
    }

    /// The report that load frames are made of, sorted.
    pub(super) fn report(&self) -> frame::LoadReport {
        let mut report = self.stats.report(&self.sampler, &self.node, &self.pod_links());
        if let Some((rdma, ago)) = self.rdma.as_ref().map(RdmaWatcher::report) {
            report.devices.extend(device_records(&rdma, ago));
        }
        report.sort();
        report
    }

    fn pod_links(&self) -> PodLinks<'_> {
        let report = self.rdma.as_ref().map(|watcher| watcher.report().0);
        let rdma = report.map(|report| pod_rates(&report)).unwrap_or_default();
        PodLinks { links: &self.links, rdma }
    }

    /// The records of the pods `ids`.
    pub(super) fn records(&self, ids: &[u32]) -> Vec<PodRecord> {
        // At most ticks no request has changed: the links need not be read.
        if ids.is_empty() {
            return Vec::new();
        }
        self.stats.records(ids, &self.sampler, &self.node, &self.pod_links())
    }

    /// Adds the latest request counts of the pods `ids` to the rolling statistics.
    pub(super) fn observe_requests(&mut self, ids: &[u32]) {
        self.stats.observe_requests(ids, &self.sampler);
    }

    /// Adds the latest readings of all counters to the rolling statistics, and reads the links.
    pub(super) fn observe_counters(&mut self) {
        self.stats.observe_pods(&self.sampler);
        self.stats.observe_pairs(&self.sampler);
        self.links.read();
    }

    pub(super) fn set_node(&mut self, node: NodeInfo, speeds: &[LinkSpeed]) {
        self.links.reconcile(&node.interfaces, speeds);
        let by_interface = node.pods.iter().filter(|pod| pod.by_interface);
        self.sampler.by_interface = by_interface.map(|pod| pod.id).collect();
        self.node = node;
    }

    /// What changed of KV transfers since the last call. `clock_us` turns a time of the kernel into one of the
    /// agent's clock.
    pub(super) fn room_records(&mut self, clock_us: impl Fn(u64) -> u64) -> Vec<RoomRecord> {
        let time = |at_ns| if at_ns == 0 { 0 } else { clock_us(at_ns).max(1) };
        let node = &self.node;
        let records = self.rooms.take_updates().filter_map(|update| {
            Some(RoomRecord {
                room: update.room,
                pod: frame::pod_id(&node.pod(update.pod)?.placed.pod.uid),
                side: update.side,
                outcome: update.outcome,
                admitted_us: time(update.admitted_ns),
                ended_us: time(update.ended_ns),
            })
        });
        records.collect()
    }

    fn rdma_names(&self) -> PodNames {
        let placed = self.node.pods.iter().map(|pod| &pod.placed);
        let local = placed.clone().filter(|placed| placed.local);
        let with_address = placed.filter(|placed| !placed.pod.host_network);
        PodNames {
            by_uid: local.map(|at| (Arc::clone(&at.pod.uid), Arc::clone(&at.pod.name))).collect(),
            by_address: with_address
                .flat_map(|at| {
                    at.pod.addresses().map(|address| (address, Arc::clone(&at.pod.name)))
                })
                .collect(),
        }
    }

    /// The TCP connections that RDMA has taken over (iWARP).
    pub(super) fn offloaded_connections(&self) -> IwarpConnections {
        let Some((report, _)) = self.rdma.as_ref().map(RdmaWatcher::report) else {
            return IwarpConnections::default();
        };
        let pods = self.node.pods.iter().filter(|pod| report.uses_iwarp(&pod.placed.pod.uid));
        IwarpConnections {
            endpoints: report.iwarp_endpoints.iter().copied().collect(),
            pods: pods.map(|pod| pod.id).collect(),
        }
    }

    /// Whether there are RDMA devices whose watcher needs the activity of the pods.
    pub(super) fn has_rdma(&self) -> bool {
        self.rdma.as_ref().is_some_and(RdmaWatcher::has_devices)
    }

    /// Passes the KV control traffic and the RoCEv2 arrivals to the RDMA watcher, which cannot see
    /// them itself.
    pub(super) fn report_activity_to_rdma(&self) {
        let Some(watcher) = self.rdma.as_ref().filter(|watcher| watcher.has_devices()) else {
            return;
        };
        let uids: HashMap<u32, &Arc<str>> =
            self.node.pods.iter().map(|pod| (pod.id, &pod.placed.pod.uid)).collect();
        let is_decode = |pod: &&RegisteredPod| pod.placed.pod.role == Some(Role::Decode);
        let decodes: HashSet<u32> =
            self.node.pods.iter().filter(is_decode).map(|pod| pod.id).collect();
        let mut activity = Activity::default();
        for (key, counters) in &self.sampler.pairs {
            if let Some(uid) = uids.get(&key.pod).filter(|_| key.class == CLASS_KV_CONTROL) {
                let bytes = counters.stats.tx_bytes.wrapping_add(counters.stats.rx_bytes);
                let total = activity.control.entry(Arc::clone(uid)).or_default();
                *total = total.wrapping_add(bytes);
                if decodes.contains(&key.pod) {
                    // The sender's count is live; the receiver's is not.
                    let requests = activity.kv_requests.entry(Arc::clone(uid)).or_default();
                    requests.control_bytes =
                        requests.control_bytes.wrapping_add(counters.stats.tx_bytes);
                    requests.requests =
                        self.sampler.pods.get(&key.pod).map_or(0, |pod| pod.http.started);
                }
            }
        }
        activity.arrivals = self.sampler.queue_pairs.arrivals().collect();
        watcher.set_activity(activity);
    }
}
