//! [`FleetHandle`]: the pointer to the current snapshot of the fleet.

use std::ops::Deref;
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use router_core::fleet::Fleet;
use tokio::sync::watch;

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
pub struct FleetHandle {
    current: ArcSwap<Snapshot>,
    published: watch::Sender<()>,
}

impl FleetHandle {
    /// The current snapshot, for a decision that does not wait.
    pub fn load(&self) -> Guard<Arc<Snapshot>> {
        self.current.load()
    }

    /// The current fleet, which may be held while waiting.
    pub fn snapshot(&self) -> Arc<Fleet> {
        Arc::clone(&self.current.load().fleet)
    }

    /// Replaces the fleet and its certificates in one step.
    pub fn publish(&self, fleet: Fleet, certificates: Certificates) {
        self.current.store(Arc::new(Snapshot { fleet: Arc::new(fleet), certificates }));
        self.published.send_replace(());
    }

    /// Is marked as changed whenever a fleet is published from now on.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.published.subscribe()
    }
}
