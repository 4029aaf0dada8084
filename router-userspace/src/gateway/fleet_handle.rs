//! [`FleetHandle`]: the pointer to the current snapshot of the fleet.

use std::ops::Deref;
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use router_core::fleet::Fleet;

use crate::certificates::Certificates;

/// A fleet and the certificates of its listeners.
#[derive(Debug, Default)]
pub struct Snapshot {
    fleet: Arc<Fleet>,
    pub(crate) certificates: Certificates,
}

impl Deref for Snapshot {
    type Target = Fleet;

    fn deref(&self) -> &Fleet {
        &self.fleet
    }
}

/// The current snapshot. Replaced as a whole, read once per attempt of a request.
#[derive(Debug, Default)]
pub struct FleetHandle(ArcSwap<Snapshot>);

impl FleetHandle {
    /// The current snapshot, for a decision that does not wait.
    pub fn load(&self) -> Guard<Arc<Snapshot>> {
        self.0.load()
    }

    /// The current fleet, which may be held while waiting.
    pub fn snapshot(&self) -> Arc<Fleet> {
        Arc::clone(&self.0.load().fleet)
    }

    /// Replaces the fleet and its certificates in one step.
    pub fn publish(&self, fleet: Fleet, certificates: Certificates) {
        self.0.store(Arc::new(Snapshot { fleet: Arc::new(fleet), certificates }));
    }
}
