//! [`RoomState`]: what the messages of one side show of a room.

use std::net::SocketAddr;

use router_core::frame::{RoomOutcome, RoomSide};

/// Maximum number of ranks of a room on each side.
const MAX_RANKS: usize = 1_024;

/// Time within which the ranks of decode send the indices of a room: what was missed this long before the first
/// of them was of another room.
pub(super) const INDICES_SPREAD_NS: u64 = 1_000_000_000;

/// A room as it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::agent) struct RoomUpdate {
    pub(in crate::agent) room: u64,
    pub(in crate::agent) side: RoomSide,
    /// Id of the pod whose messages these are.
    pub(in crate::agent) pod: u32,
    pub(in crate::agent) outcome: RoomOutcome,
    /// When the first index message was seen, on CLOCK_MONOTONIC; 0 if none was.
    pub(in crate::agent) admitted_ns: u64,
    /// When it ended; 0 if it has not.
    pub(in crate::agent) ended_ns: u64,
}

#[derive(Debug)]
pub(super) struct RoomState {
    pod: u32,
    admitted_ns: u64,
    /// The decode rank and the prefill rank of each index message with pages.
    pairs: Vec<(SocketAddr, SocketAddr)>,
    /// The decode rank and the number of the prefill rank of each success.
    done: Vec<(SocketAddr, u32)>,
    ended_ns: u64,
    outcome: RoomOutcome,
}

impl RoomState {
    pub(super) fn new(pod: u32) -> RoomState {
        RoomState {
            pod,
            admitted_ns: 0,
            pairs: Vec::new(),
            done: Vec::new(),
            ended_ns: 0,
            outcome: RoomOutcome::Open,
        }
    }

    /// An index message; returns whether it is the first. A repeated segment changes nothing.
    pub(super) fn admit(
        &mut self,
        at_ns: u64,
        pair: (SocketAddr, SocketAddr),
        has_pages: bool,
    ) -> bool {
        if has_pages && self.pairs.len() < MAX_RANKS && !self.pairs.contains(&pair) {
            self.pairs.push(pair);
        }
        let is_first = self.admitted_ns == 0;
        if is_first {
            self.admitted_ns = at_ns;
        }
        is_first
    }

    /// A rank has transferred its part. The room ends with the last of them. `missed_ns`: when messages may
    /// last have been missed; 0 if they never were.
    pub(super) fn succeed(&mut self, at_ns: u64, rank: (SocketAddr, u32), missed_ns: u64) -> bool {
        if self.is_lost() || self.done.contains(&rank) || self.done.len() >= MAX_RANKS {
            return false;
        }
        self.done.push(rank);
        if self.done.len() < self.pairs.len() {
            return false;
        }
        let is_apart =
            missed_ns == 0 || missed_ns.saturating_add(INDICES_SPREAD_NS) < self.admitted_ns;
        let saw_all = self.done.len() == self.pairs.len() && is_apart;
        self.outcome = if saw_all { RoomOutcome::Success } else { RoomOutcome::SuccessOfSeen };
        self.ended_ns = at_ns;
        true
    }

    pub(super) fn fail(&mut self, at_ns: u64) -> bool {
        self.end(at_ns, RoomOutcome::Failed)
    }

    pub(super) fn abort(&mut self, at_ns: u64) -> bool {
        self.end(at_ns, RoomOutcome::Aborted)
    }

    /// Ends a room whose transfer has not ended.
    fn end(&mut self, at_ns: u64, outcome: RoomOutcome) -> bool {
        let is_open = self.is_open();
        if is_open {
            (self.ended_ns, self.outcome) = (at_ns, outcome);
        }
        is_open
    }

    fn is_lost(&self) -> bool {
        matches!(self.outcome, RoomOutcome::Failed | RoomOutcome::Aborted)
    }

    pub(super) fn is_open(&self) -> bool {
        self.outcome == RoomOutcome::Open
    }

    pub(super) fn update(&self, (room, side): (u64, RoomSide)) -> RoomUpdate {
        RoomUpdate {
            room,
            side,
            pod: self.pod,
            outcome: self.outcome,
            admitted_ns: self.admitted_ns,
            ended_ns: self.ended_ns,
        }
    }
}
