//! [`Event`]: the events of the model, ordered by time.

use std::cmp::Ordering;

#[derive(Clone, Copy, Debug)]
pub(crate) enum Event {
    RequestArrived(usize),
    /// The iteration of a prefill ended. Ignored if another iteration runs by now.
    PrefillIterationEnded(usize),
    DecodeStepEnded(usize),
    /// A transfer ended. Ignored if the network has changed since this version.
    TransferEnded(u64),
    /// An agent's frame about a transfer reaches the gateways.
    TransferReported {
        request: usize,
        bytes: f64,
        ms: f64,
    },
    /// A gateway with waiting requests checks whether load frames show capacity.
    QueuePolled(usize),
    FaultStarted(usize),
    FaultEnded(usize),
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct ScheduledEvent {
    pub(crate) at_ms: f64,
    /// Events at the same time are handled in the order in which they were scheduled.
    pub(crate) order: u64,
    pub(crate) event: Event,
}

impl PartialEq for ScheduledEvent {
    fn eq(&self, other: &ScheduledEvent) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for ScheduledEvent {}

impl PartialOrd for ScheduledEvent {
    fn partial_cmp(&self, other: &ScheduledEvent) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ScheduledEvent {
    /// Reversed, since a heap returns its greatest element first.
    fn cmp(&self, other: &ScheduledEvent) -> Ordering {
        other.at_ms.total_cmp(&self.at_ms).then(other.order.cmp(&self.order))
    }
}
