//! What the agent's server shows: what was read last, of whom.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use router_common::flow::CLASS_KV_CONTROL;
use router_core::fleet::Role;

use router_core::frame::{self, PodRecord};

use super::links::{Links, Ways};
use super::loads::{self, Loads};
use super::rdma::report::{PodNames, RdmaLoad, device_records, pod_rates};
use super::rdma::{Activity, IwarpConnections, RdmaWatcher};
use super::recent::Recent;
use super::registry::Entry;
use super::sampler::{PodCounters, Sampler};
use super::settings::LinkSpeed;

/// What the server shows: what was read last, of whom.
#[derive(Debug)]
pub(super) struct View {
    pub(super) sampler: Sampler,
    pub(super) recent: Recent,
    pub(super) links: Links,
    pub(super) names: loads::Names,
    /// `None` if its thread could not be had.
    pub(super) rdma: Option<RdmaWatcher>,
}

impl View {
    pub(super) fn loads(&self) -> Loads {
        let ways = self.ways();
        let score =
            |entry: &Entry, counters: &PodCounters| self.recent.score_of(entry, counters, &ways);
        let mut loads = loads::snapshot(&self.sampler, &self.names, &self.recent.kv, score);
        if let Some((report, ago)) = self.rdma.as_ref().map(RdmaWatcher::report) {
            loads.rdma = RdmaLoad::new(&report, ago, &self.names());
            loads.missing.extend(report.missing.iter().cloned());
        }
        loads
    }

    /// What load frames tell, sorted.
    pub(super) fn report(&self) -> frame::LoadReport {
        let mut report = self.recent.report(&self.sampler, &self.names, &self.ways());
        if let Some((rdma, ago)) = self.rdma.as_ref().map(RdmaWatcher::report) {
            report.devices.extend(device_records(&rdma, ago));
        }
        report.sort();
        report
    }

    fn ways(&self) -> Ways<'_> {
        let report = self.rdma.as_ref().map(|watcher| watcher.report().0);
        let rdma = report.map(|report| pod_rates(&report)).unwrap_or_default();
        Ways { links: &self.links, rdma }
    }

    /// What they tell of these pods alone.
    pub(super) fn records(&self, ids: &[u32]) -> Vec<PodRecord> {
        self.recent.records(ids, &self.sampler, &self.names, &self.ways())
    }

    /// Takes in what the sampler read of these pods' requests.
    pub(super) fn read_requests(&mut self, ids: &[u32]) {
        self.recent.read_requests(ids, &self.sampler);
    }

    /// Takes in what the sampler read of everything, and reads the links.
    pub(super) fn read_all(&mut self) {
        self.recent.read_pods(&self.sampler);
        self.recent.read_pairs(&self.sampler);
        self.links.read();
    }

    pub(super) fn shows(&mut self, names: loads::Names, speeds: &[LinkSpeed]) {
        self.links.follow(&names.devices, speeds);
        self.names = names;
    }

    fn names(&self) -> PodNames {
        let known = self.names.entries.iter().map(|entry| &entry.placed);
        let local = known.clone().filter(|placed| placed.local);
        let own = known.filter(|placed| !placed.pod.host_network);
        PodNames {
            by_uid: local.map(|at| (Arc::clone(&at.pod.uid), Arc::clone(&at.pod.name))).collect(),
            by_address: own.map(|at| (at.pod.address, Arc::clone(&at.pod.name))).collect(),
        }
    }

    /// TCP connections that RDMA has taken over.
    pub(super) fn taken(&self) -> IwarpConnections {
        let Some((report, _)) = self.rdma.as_ref().map(RdmaWatcher::report) else {
            return IwarpConnections::default();
        };
        let pods =
            self.names.entries.iter().filter(|entry| report.uses_iwarp(&entry.placed.pod.uid));
        IwarpConnections {
            ends: report.taken.iter().copied().collect(),
            pods: pods.map(|entry| entry.id).collect(),
        }
    }

    /// Whether there are RDMA devices whose watcher is to be told.
    pub(super) fn has_rdma(&self) -> bool {
        self.rdma.as_ref().is_some_and(RdmaWatcher::has_devices)
    }

    /// What the watcher of RDMA cannot see itself.
    pub(super) fn tell_rdma(&self) {
        let Some(watcher) = self.rdma.as_ref().filter(|watcher| watcher.has_devices()) else {
            return;
        };
        let uids: HashMap<u32, &Arc<str>> =
            self.names.entries.iter().map(|entry| (entry.id, &entry.placed.pod.uid)).collect();
        let decodes: HashSet<u32> = self
            .names
            .entries
            .iter()
            .filter(|entry| entry.placed.pod.role == Some(Role::Decode))
            .map(|entry| entry.id)
            .collect();
        let mut activity = Activity::default();
        for (key, counters) in &self.sampler.pairs {
            if let Some(uid) = uids.get(&key.pod).filter(|_| key.class == CLASS_KV_CONTROL) {
                let moved = counters.stats.tx_bytes.wrapping_add(counters.stats.rx_bytes);
                let total = activity.control.entry(Arc::clone(uid)).or_default();
                *total = total.wrapping_add(moved);
                if decodes.contains(&key.pod) {
                    // The sender's count is the live one.
                    let asked = activity.asked.entry(Arc::clone(uid)).or_default();
                    asked.control_bytes = asked.control_bytes.wrapping_add(counters.stats.tx_bytes);
                    asked.requests =
                        self.sampler.pods.get(&key.pod).map_or(0, |pod| pod.http.started);
                }
            }
        }
        activity.arrivals = self.sampler.queue_pairs.arrivals().collect();
        watcher.tell(activity);
    }
}
