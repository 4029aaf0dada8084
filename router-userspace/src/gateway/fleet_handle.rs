//! [`FleetHandle`]: the one swapped pointer to the current snapshot.

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use router_core::fleet::Fleet;

/// The current fleet. Published whole, read once a request.
#[derive(Debug, Default)]
pub struct FleetHandle(ArcSwap<Fleet>);

impl FleetHandle {
    /// A short look, for a decision that does not wait.
    pub fn load(&self) -> Guard<Arc<Fleet>> {
        self.0.load()
    }

    /// The snapshot, to be held over a wait.
    pub fn snapshot(&self) -> Arc<Fleet> {
        self.0.load_full()
    }

    pub fn publish(&self, fleet: Fleet) {
        self.0.store(Arc::new(fleet));
    }
}
