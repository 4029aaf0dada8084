//! [`HealthMonitor`]: the one place where changes of a worker's health are logged and kept, with the pools
//! that start or stop to serve.

use std::collections::{HashMap, HashSet};
use std::fmt::Display;
use std::sync::Arc;

use parking_lot::Mutex;
use router_core::fleet::{Fleet, HealthChange, ObjectName, Phase, Verdict, Worker, WorkerKey};
use serde::Serialize;

use crate::clock::MonotonicClock;
use crate::gateway::fleet_handle::FleetHandle;
use crate::gateway::timeline::summary::shortened;

/// A worker's health, as the admin port shows it.
#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct HealthReport {
    verdict: Verdict,
    /// Time since the verdict changed; `None` before the first change.
    for_ms: Option<u64>,
    /// Why it changed.
    reason: Option<Arc<str>>,
}

/// The last change of a worker's health.
#[derive(Debug)]
struct LastChange {
    at_ms: u64,
    reason: Arc<str>,
}

/// Logs changes of health that probes and requests have observed.
pub(crate) struct HealthMonitor {
    pub(super) fleet: Arc<FleetHandle>,
    pub(super) clock: MonotonicClock,
    /// Called when a worker comes up: requests may wait for it.
    returned: Box<dyn Fn() + Send + Sync>,
    /// Whether each pool could serve when it was checked last.
    pools: Mutex<HashMap<ObjectName, bool>>,
    /// Of the workers of the snapshot.
    changes: Mutex<HashMap<WorkerKey, LastChange>>,
}

impl HealthMonitor {
    pub(crate) fn new(
        fleet: Arc<FleetHandle>,
        clock: MonotonicClock,
        returned: impl Fn() + Send + Sync + 'static,
    ) -> HealthMonitor {
        let (pools, changes) = (Mutex::default(), Mutex::default());
        HealthMonitor { fleet, clock, returned: Box::new(returned), pools, changes }
    }

    /// A worker's health, and since when and why it is so.
    pub(crate) fn report(&self, worker: &Worker) -> HealthReport {
        let changes = self.changes.lock();
        let last = changes.get(&worker.key);
        HealthReport {
            verdict: worker.health.verdict(),
            for_ms: last.map(|last| self.clock.now_ms().saturating_sub(last.at_ms)),
            reason: last.map(|last| Arc::clone(&last.reason)),
        }
    }

    /// Forgets the workers that a new snapshot no longer has.
    pub(crate) fn retain_workers_of(&self, fleet: &Fleet) {
        let stays: HashSet<&WorkerKey> = fleet.workers().map(|worker| &worker.key).collect();
        self.changes.lock().retain(|worker, _| stays.contains(worker));
    }

    /// Logs the change of a worker's health that an observation has made, if it has made one.
    pub(crate) fn observed(
        &self,
        worker: &Arc<Worker>,
        change: Option<HealthChange>,
        reason: impl Display,
    ) {
        let Some(HealthChange { before, after }) = change else { return };
        let (at_ms, reason) = (self.clock.now_ms(), reason.to_string());
        let lasted_ms = worker.health.mark_changed(at_ms);
        let kept = LastChange { at_ms, reason: shortened(&reason).into() };
        self.changes.lock().insert(worker.key.clone(), kept);
        let fleet = self.fleet.snapshot();
        let serves = after.serves() || after == Verdict::Unknown;
        let (worker_name, address) = (&worker.name, worker.address());
        if serves || !is_wanted(&fleet, worker) {
            tracing::info!(
                worker = %worker_name, %address, ?before, ?after, %reason, lasted_ms,
                "worker health changed"
            );
        } else {
            tracing::warn!(
                worker = %worker_name, %address, ?before, ?after, %reason, lasted_ms,
                "worker health changed"
            );
        }
        if after.serves() {
            (self.returned)();
        }
        self.check_pools(&fleet);
    }

    /// Logs the pools that have started or stopped to serve since the last check.
    pub(crate) fn check_pools(&self, fleet: &Fleet) {
        let mut known = self.pools.lock();
        known.retain(|name, _| fleet.pool(name).is_some());
        for pool in &fleet.pools {
            let serves = pool.can_serve();
            let before = known.insert(pool.name.clone(), serves);
            match (before, serves) {
                (Some(true) | None, false) => {
                    let reason = pool.shortage();
                    tracing::warn!(pool = %pool.name, reason, "pool cannot serve requests");
                }
                (Some(false), true) => {
                    tracing::info!(pool = %pool.name, "pool can serve requests again");
                }
                _ => {}
            }
        }
    }
}

/// Whether the worker is an endpoint of a Service, or of a pool and its pod is not about to leave: one
/// that leaves is expected to stop.
fn is_wanted(fleet: &Fleet, worker: &Arc<Worker>) -> bool {
    let is_it = |other: &Arc<Worker>| Arc::ptr_eq(other, worker);
    let mut members = fleet.members();
    let mut endpoints = fleet.services.iter().flat_map(|service| &service.endpoints);
    members.any(|(_, member)| is_it(&member.worker) && member.phase != Phase::Draining)
        || endpoints.any(is_it)
}

#[cfg(test)]
mod tests {
    use router_core::fleet::{ServiceBackend, WorkerKey};

    use super::*;

    #[test]
    fn an_endpoint_of_a_service_is_wanted() {
        let key = WorkerKey { uid: "uid".into(), address: ([127, 0, 0, 1], 8000).into() };
        let worker = Arc::new(Worker::new(key, "default/pod"));
        assert!(!is_wanted(&Fleet::default(), &worker), "it has left");
        let service = ServiceBackend {
            name: ObjectName { namespace: "default".into(), name: "plain".into() },
            port: 80,
            h2c: false,
            tls: None,
            endpoints: vec![Arc::clone(&worker)],
        };
        let fleet = Fleet { services: vec![Arc::new(service)], ..Fleet::default() };
        assert!(is_wanted(&fleet, &worker));
    }
}
