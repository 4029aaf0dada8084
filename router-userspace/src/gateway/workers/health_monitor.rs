//! [`HealthMonitor`]: the one place where changes of a worker's health are logged, with the pools that
//! start or stop to serve.

use std::collections::HashMap;
use std::fmt::Display;
use std::sync::Arc;

use parking_lot::Mutex;
use router_core::fleet::{Fleet, HealthChange, ObjectName, Phase, Verdict, Worker};

use crate::clock::MonotonicClock;
use crate::gateway::fleet_handle::FleetHandle;

/// Logs changes of health that probes and requests have observed.
pub(crate) struct HealthMonitor {
    pub(super) fleet: Arc<FleetHandle>,
    pub(super) clock: MonotonicClock,
    /// Called when a worker comes up: requests may wait for it.
    returned: Box<dyn Fn() + Send + Sync>,
    /// Whether each pool could serve when it was checked last.
    pools: Mutex<HashMap<ObjectName, bool>>,
}

impl HealthMonitor {
    pub(crate) fn new(
        fleet: Arc<FleetHandle>,
        clock: MonotonicClock,
        returned: impl Fn() + Send + Sync + 'static,
    ) -> HealthMonitor {
        HealthMonitor { fleet, clock, returned: Box::new(returned), pools: Mutex::default() }
    }

    /// Logs the change of a worker's health that an observation has made, if it has made one.
    pub(crate) fn observed(
        &self,
        worker: &Arc<Worker>,
        change: Option<HealthChange>,
        reason: impl Display,
    ) {
        let Some(HealthChange { before, after }) = change else { return };
        let lasted_ms = worker.health.mark_changed(self.clock.now_ms());
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
