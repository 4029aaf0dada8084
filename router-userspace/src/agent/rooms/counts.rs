//! [`ControlCounts`]: the segments and messages that were read.

use router_core::sglang::kv_messages::{KvMessage, KvOutcome};
use serde::Serialize;

/// Control messages by kind, as a pod of this node sent or received them. A message between two pods of the
/// node counts as both; a segment that is sent again does not count again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(in crate::agent) struct MessageCounts {
    pub(in crate::agent) indices: u64,
    pub(in crate::agent) succeeded: u64,
    pub(in crate::agent) failed: u64,
    pub(in crate::agent) aborts: u64,
    /// Registrations, acknowledgements, handshakes and heartbeats.
    pub(in crate::agent) other: u64,
}

/// What was read of control messages since the agent started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(in crate::agent) struct ControlCounts {
    pub(in crate::agent) sent: MessageCounts,
    pub(in crate::agent) received: MessageCounts,
    /// Segments that were handed up, those of the next kinds too.
    pub(in crate::agent) segments: u64,
    /// Segments that were seen before.
    pub(in crate::agent) repeated: u64,
    /// Segments that continue a message of the one before.
    pub(in crate::agent) continued: u64,
    /// Segments that begin with no known message, or have one after a known one.
    pub(in crate::agent) unread: u64,
    /// Segments that may have further messages beyond the bytes that are known.
    pub(in crate::agent) cut: u64,
    /// Updates of rooms that were dropped because too many waited.
    pub(in crate::agent) dropped: u64,
    /// Rooms that were forgotten before their transfer ended.
    pub(in crate::agent) forgotten: u64,
}

impl ControlCounts {
    pub(super) fn message(&mut self, sent: bool, message: &KvMessage) {
        let counts = if sent { &mut self.sent } else { &mut self.received };
        let counter = match message {
            KvMessage::Indices { .. } => &mut counts.indices,
            KvMessage::Status { outcome: KvOutcome::Success, .. } => &mut counts.succeeded,
            KvMessage::Status { outcome: KvOutcome::Failed, .. } => &mut counts.failed,
            KvMessage::Abort { .. } => &mut counts.aborts,
            KvMessage::Status { outcome: KvOutcome::Running, .. }
            | KvMessage::Registration
            | KvMessage::AbortAcknowledged
            | KvMessage::Other => &mut counts.other,
        };
        *counter += 1;
    }
}
