//! [`PodWorkers`]: the workers of each pod in the current snapshot of the fleet.

use std::collections::HashMap;
use std::sync::Arc;

use router_core::fleet::{Fleet, RateEstimators, Role, Worker};
use router_core::frame::pod_id;

/// One worker of a pod.
#[derive(Clone, Debug)]
pub(super) struct PodWorker {
    pub(super) worker: Arc<Worker>,
    /// The estimators of the worker's pool.
    pub(super) pool: Arc<RateEstimators>,
    pub(super) role: Role,
    pub(super) node: Option<Arc<str>>,
}

/// The workers of every pod of a snapshot.
#[derive(Debug, Default)]
pub(super) struct PodWorkers {
    pub(super) generation: u64,
    pods: HashMap<u64, Vec<PodWorker>>,
}

impl PodWorkers {
    pub(super) fn of(fleet: &Fleet) -> PodWorkers {
        let mut pods: HashMap<u64, Vec<PodWorker>> = HashMap::new();
        for (pool, member) in fleet.members() {
            let workers = pods.entry(pod_id(&member.worker.key.uid)).or_default();
            // A worker that belongs to two pools is listed once.
            if !workers.iter().any(|known| Arc::ptr_eq(&known.worker, &member.worker)) {
                workers.push(PodWorker {
                    worker: Arc::clone(&member.worker),
                    pool: Arc::clone(&pool.rate_estimators),
                    role: member.role,
                    node: member.node.clone(),
                });
            }
        }
        PodWorkers { generation: fleet.generation, pods }
    }

    /// The workers of a pod; empty if the pod belongs to no pool.
    pub(super) fn of_pod(&self, pod: u64) -> &[PodWorker] {
        self.pods.get(&pod).map_or(&[], Vec::as_slice)
    }
}
