//! What the gateway asks of every worker at intervals: health, engine information and load.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use router_core::fleet::Worker;

pub(crate) mod engine_load;
pub(crate) mod health_monitor;
mod outliers;
pub(crate) mod probe;

/// A worker as the key of what follows it. Two workers are equal if they are one object: a task that
/// followed a name or a UID would go on with an engine that the pool no longer has.
#[derive(Clone, Debug)]
struct FollowedWorker(Arc<Worker>);

impl PartialEq for FollowedWorker {
    fn eq(&self, other: &FollowedWorker) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for FollowedWorker {}

impl Hash for FollowedWorker {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).hash(state);
    }
}
