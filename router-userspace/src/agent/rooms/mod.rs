//! [`RoomTracker`]: joins the control messages of KV transfers by their rooms.
//!
//! A message is seen at each of its ends that is a pod of this node, with one clock. Each end is a side of its
//! own: a gateway takes decode's where it has both.

mod counts;
mod room;
#[cfg(test)]
mod tests;

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};

use router_common::control::ControlSegment;
use router_common::flow::FlowKey;
use router_core::frame::RoomSide;
use router_core::sglang::kv_messages::{
    KvMessage, KvOutcome, MAX_TAIL, SegmentRest, read_open_segment, read_segment,
};

pub(in crate::agent) use counts::ControlCounts;
#[cfg(test)]
use room::INDICES_SPREAD_NS;
use room::RoomState;
pub(in crate::agent) use room::RoomUpdate;

/// Maximum number of rooms. When it is reached, the oldest is forgotten.
const MAX_ROOMS: usize = 16_384;
/// Time after which a room is forgotten: SGLang ends a transfer after 5 minutes.
const MAX_AGE_NS: u64 = 600_000_000_000;
/// Maximum number of connections. When it is reached, all are forgotten.
const MAX_CONNECTIONS: usize = 16_384;
/// Maximum number of updates that wait for a tick. When it is reached, the oldest is dropped.
const MAX_UPDATES: usize = 4_096;
/// Longest distance within a connection: what is farther away belongs to an earlier one with the same ports.
const MAX_DISTANCE: u32 = 16 << 20;

type RoomKey = (u64, RoomSide);

/// The rooms whose messages were seen.
#[derive(Debug, Default)]
pub(in crate::agent) struct RoomTracker {
    rooms: HashMap<RoomKey, RoomState>,
    /// The rooms by the time at which they were first seen.
    order: VecDeque<(u64, RoomKey)>,
    connections: HashMap<FlowKey, ControlConnection>,
    /// When messages of a pod may last have been missed.
    missed_ns: HashMap<u32, u64>,
    /// When messages of any pod may last have been missed.
    all_missed_ns: u64,
    updates: VecDeque<RoomUpdate>,
    pub(in crate::agent) counts: ControlCounts,
}

/// How far a connection was read, by TCP sequence numbers.
#[derive(Clone, Copy, Debug)]
struct ControlConnection {
    /// The first byte that was not seen yet.
    next: u32,
    /// Where the last frame ends.
    frame_end: u32,
    /// Its message has further frames behind it.
    is_open: bool,
}

/// What a segment is to those before it on its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SegmentPlace {
    /// It begins with a message.
    Message,
    /// It begins with further frames of a message.
    Frames,
    /// It was seen before.
    Repeat,
    /// It begins within a message. `may_hide`: others may follow that one.
    Within { may_hide: bool },
}

/// A message, and where it was seen.
#[derive(Clone, Copy)]
struct SeenMessage {
    at_ns: u64,
    pod: u32,
    sent: bool,
    local: SocketAddr,
    remote: SocketAddr,
}

impl SeenMessage {
    fn of(segment: &ControlSegment) -> SeenMessage {
        let ControlSegment { flow, .. } = segment;
        SeenMessage {
            at_ns: segment.at_ns,
            pod: segment.pod,
            sent: segment.sent != 0,
            local: SocketAddr::new(address(flow.local), flow.local_port),
            remote: SocketAddr::new(address(flow.remote), flow.remote_port),
        }
    }

    /// The end that takes the message.
    fn receiver(&self) -> SocketAddr {
        if self.sent { self.remote } else { self.local }
    }

    /// The side of the pod, for a message that decode sends or that prefill sends.
    fn side(&self, from_decode: bool) -> RoomSide {
        if self.sent == from_decode { RoomSide::Decode } else { RoomSide::Prefill }
    }
}

fn address(bytes: [u8; 16]) -> IpAddr {
    IpAddr::from(bytes).to_canonical()
}

impl RoomTracker {
    /// Applies the messages of a segment.
    pub(in crate::agent) fn observe(&mut self, segment: &ControlSegment) {
        self.counts.segments += 1;
        let place = self.place(segment);
        match place {
            SegmentPlace::Message | SegmentPlace::Frames => {}
            SegmentPlace::Repeat => {
                self.counts.repeated += 1;
                return;
            }
            SegmentPlace::Within { may_hide } => {
                self.counts.continued += 1;
                if may_hide {
                    self.counts.cut += 1;
                    self.missed_ns.insert(segment.pod, segment.at_ns);
                }
                return;
            }
        }
        let seen = SeenMessage::of(segment);
        let (head, length) = (segment.head(), segment.length);
        let apply = |message| self.apply(&seen, message);
        let SegmentRest { continues, is_open, may_hide, is_unread } = match place {
            SegmentPlace::Frames => read_open_segment(head, length, apply),
            _ => read_segment(head, length, apply),
        };
        self.counts.unread += u64::from(is_unread);
        self.counts.cut += u64::from(may_hide);
        if is_unread || may_hide {
            self.missed_ns.insert(segment.pod, segment.at_ns);
        }
        if let Some(connection) = self.connections.get_mut(&segment.flow) {
            connection.frame_end = connection.next.wrapping_add(continues);
            connection.is_open = is_open;
        }
    }

    /// Segments may have been lost before `at_ns`.
    pub(in crate::agent) fn lost_segments(&mut self, at_ns: u64) {
        self.all_missed_ns = at_ns;
    }

    /// Finds the place of a segment on its connection, and moves on to its end.
    fn place(&mut self, segment: &ControlSegment) -> SegmentPlace {
        let (start, end) = (segment.sequence, segment.sequence.wrapping_add(segment.length));
        let is_ahead = |distance: u32| (1..=MAX_DISTANCE).contains(&distance);
        if self.connections.len() >= MAX_CONNECTIONS {
            self.connections.clear();
        }
        let connection = match self.connections.entry(segment.flow) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                new.insert(ControlConnection { next: end, frame_end: end, is_open: false });
                return SegmentPlace::Message;
            }
        };
        let ControlConnection { next, frame_end, is_open } = *connection;
        let seen = next.wrapping_sub(start);
        if is_ahead(seen) && segment.length <= seen {
            return SegmentPlace::Repeat;
        }
        connection.next = end;
        if is_ahead(seen) {
            // A part of it was seen: where the next message begins is not known.
            return SegmentPlace::Within { may_hide: true };
        }
        if is_ahead(start.wrapping_sub(next)) {
            // What lies between may come later, as a repeat.
            self.missed_ns.insert(segment.pod, segment.at_ns);
        }
        let rest = frame_end.wrapping_sub(start);
        if rest == 0 && is_open {
            return SegmentPlace::Frames;
        }
        if !is_ahead(rest) {
            return SegmentPlace::Message;
        }
        // What follows the frame in this segment is not known: with few bytes, it is the message's end.
        connection.is_open &= segment.length <= rest;
        SegmentPlace::Within { may_hide: segment.length.saturating_sub(rest) > MAX_TAIL }
    }

    fn apply(&mut self, seen: &SeenMessage, message: KvMessage) {
        self.counts.message(seen.sent, &message);
        match message {
            KvMessage::Indices { room, decode, has_pages } => {
                let pair = (decode, seen.receiver());
                self.change((room, seen.side(true)), seen, |state| {
                    state.admit(seen.at_ns, pair, has_pages)
                });
            }
            KvMessage::Status { room, outcome, rank } => {
                let missed = self.missed_since(seen.pod);
                let rank = (seen.receiver(), rank);
                self.change((room, seen.side(false)), seen, |state| match outcome {
                    KvOutcome::Running => false,
                    KvOutcome::Failed => state.fail(seen.at_ns),
                    KvOutcome::Success => state.succeed(seen.at_ns, rank, missed),
                });
            }
            KvMessage::Abort { room } => {
                let key = (room, seen.side(true));
                if self.rooms.contains_key(&key) {
                    self.change(key, seen, |state| state.abort(seen.at_ns));
                }
            }
            KvMessage::Registration | KvMessage::AbortAcknowledged | KvMessage::Other => {}
        }
    }

    fn missed_since(&self, pod: u32) -> u64 {
        self.missed_ns.get(&pod).copied().unwrap_or_default().max(self.all_missed_ns)
    }

    /// Changes a room, and queues an update if that changes what is known of it.
    fn change(
        &mut self,
        key: RoomKey,
        seen: &SeenMessage,
        change: impl FnOnce(&mut RoomState) -> bool,
    ) {
        self.forget_old(seen.at_ns);
        let state = match self.rooms.entry(key) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                self.order.push_back((seen.at_ns, key));
                new.insert(RoomState::new(seen.pod))
            }
        };
        if change(state) {
            if self.updates.len() >= MAX_UPDATES {
                self.updates.pop_front();
                self.counts.dropped += 1;
            }
            self.updates.push_back(state.update(key));
        }
    }

    fn forget_old(&mut self, now_ns: u64) {
        while let Some((first_ns, key)) = self.order.front() {
            let is_old = now_ns.saturating_sub(*first_ns) > MAX_AGE_NS;
            if !is_old && self.order.len() < MAX_ROOMS {
                return;
            }
            if self.rooms.remove(key).is_some_and(|state| state.is_open()) {
                self.counts.forgotten += 1;
            }
            self.order.pop_front();
        }
    }

    /// The updates since the last call, the oldest first.
    pub(in crate::agent) fn take_updates(&mut self) -> impl Iterator<Item = RoomUpdate> + '_ {
        self.updates.drain(..)
    }

    /// The number of rooms whose transfer has not ended.
    pub(in crate::agent) fn open(&self) -> usize {
        self.rooms.values().filter(|state| state.is_open()).count()
    }
}
