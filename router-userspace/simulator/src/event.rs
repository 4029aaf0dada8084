//! [`Event`]: what happens in the model, in order of time.

use std::cmp::Ordering;

#[derive(Clone, Copy, Debug)]
pub(crate) enum Event {
    Arrives(usize),
    /// An iteration ends, if it is still the one that was to end now.
    Prefilled(usize),
    Stepped(usize),
    /// A transfer ends, if nothing changed since this version.
    Moved(u64),
    /// An agent's frame about a transfer reaches the gateways.
    Heard {
        request: usize,
        bytes: f64,
        ms: f64,
    },
    /// Those who wait at a gateway look again: a frame may tell of room.
    Looks(usize),
    Begins(usize),
    Ends(usize),
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Timed {
    pub(crate) at_ms: f64,
    /// Events of one moment happen in the order they were thought of.
    pub(crate) order: u64,
    pub(crate) event: Event,
}

impl PartialEq for Timed {
    fn eq(&self, other: &Timed) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Timed {}

impl PartialOrd for Timed {
    fn partial_cmp(&self, other: &Timed) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Timed {
    /// The greatest of a heap is the next.
    fn cmp(&self, other: &Timed) -> Ordering {
        other.at_ms.total_cmp(&self.at_ms).then(other.order.cmp(&self.order))
    }
}
