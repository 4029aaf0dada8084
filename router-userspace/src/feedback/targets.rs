//! Whom agents tell of: the workers of each pod, as the snapshot in force has them.

use std::collections::HashMap;
use std::sync::Arc;

use router_core::fleet::{Fleet, RateEstimators, Role, Worker};
use router_core::frame::pod_id;

/// One worker of a pod.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) worker: Arc<Worker>,
    /// Of its pool.
    pub(super) pool: Arc<RateEstimators>,
    pub(super) role: Role,
    pub(super) node: Option<Arc<str>>,
}

/// The workers of every pod of a snapshot.
#[derive(Debug, Default)]
pub(super) struct Targets {
    pub(super) generation: u64,
    pods: HashMap<u64, Vec<Target>>,
}

impl Targets {
    pub(super) fn of(fleet: &Fleet) -> Targets {
        let mut pods: HashMap<u64, Vec<Target>> = HashMap::new();
        for (pool, member) in fleet.members() {
            let workers = pods.entry(pod_id(&member.worker.key.uid)).or_default();
            // A worker of two pools is still one.
            if !workers.iter().any(|known| Arc::ptr_eq(&known.worker, &member.worker)) {
                workers.push(Target {
                    worker: Arc::clone(&member.worker),
                    pool: Arc::clone(&pool.rate_estimators),
                    role: member.role,
                    node: member.node.clone(),
                });
            }
        }
        Targets { generation: fleet.generation, pods }
    }

    /// The workers of a pod; none for a pod of no pool.
    pub(super) fn of_pod(&self, pod: u64) -> &[Target] {
        self.pods.get(&pod).map_or(&[], Vec::as_slice)
    }
}
