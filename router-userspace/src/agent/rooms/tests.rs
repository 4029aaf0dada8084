//! Messages of rooms, joined.

use router_common::control::CONTROL_WINDOW;
use router_common::flow::mapped;
use router_core::frame::RoomOutcome;

use super::*;

const PREFILL: u32 = 1;
const DECODE: u32 = 2;
/// The first sequence number of connections.
const FIRST: u32 = 7_000;

/// A connection from one pod to another, as one of them has it.
fn flow(local: (u8, u16), remote: (u8, u16)) -> FlowKey {
    FlowKey {
        local: mapped([10, 0, 0, local.0]),
        remote: mapped([10, 0, 0, remote.0]),
        local_port: local.1,
        remote_port: remote.1,
    }
}

fn message(parts: &[&[u8]]) -> Vec<u8> {
    let mut wire = Vec::new();
    for (at, part) in parts.iter().enumerate() {
        let more = u8::from(at + 1 < parts.len());
        match u8::try_from(part.len()) {
            Ok(length) => wire.extend([more, length]),
            Err(_) => {
                wire.push(more | 2);
                wire.extend((part.len() as u64).to_be_bytes());
            }
        }
        wire.extend(*part);
    }
    wire
}

fn indices(room: u64, port: u16, pages: usize) -> Vec<u8> {
    let (room, port) = (room.to_string(), port.to_string());
    let pages = vec![1; pages * 4];
    message(&[room.as_bytes(), b"10.0.0.2", port.as_bytes(), b"10.0.0.2:1", &pages, b"1", b"1"])
}

fn status(room: u64, status: &str, rank: u32) -> Vec<u8> {
    let (room, rank) = (room.to_string(), rank.to_string());
    message(&[room.as_bytes(), status.as_bytes(), rank.as_bytes()])
}

/// The first segment of a connection.
fn segment(at_ns: u64, pod: u32, flow: FlowKey, sent: bool, payload: &[u8]) -> ControlSegment {
    let mut bytes = [0xaa; CONTROL_WINDOW];
    let known = payload.len().min(CONTROL_WINDOW);
    bytes[..known].copy_from_slice(&payload[..known]);
    ControlSegment {
        at_ns,
        flow,
        pod,
        sequence: FIRST,
        length: payload.len() as u32,
        sent: sent.into(),
        reserved: 0,
        bytes,
    }
}

/// What decode's socket sends to a rank of prefill, and receives at one of its own.
fn at_decode(tracker: &mut RoomTracker, at_ns: u64, sent: bool, rank: u16, payload: &[u8]) {
    let flow = if sent { flow((2, 40_000), (1, rank)) } else { flow((2, rank), (1, 41_000)) };
    let mut next = segment(at_ns, DECODE, flow, sent, payload);
    if let Some(connection) = tracker.connections.get(&flow) {
        next.sequence = connection.next;
    }
    tracker.observe(&next);
}

fn updates(tracker: &mut RoomTracker) -> Vec<(u64, RoomOutcome, u64, u64)> {
    let of =
        |update: RoomUpdate| (update.room, update.outcome, update.admitted_ns, update.ended_ns);
    tracker.take_updates().map(of).collect()
}

#[test]
fn a_room_begins_with_its_indices_and_ends_with_its_status_once() {
    let mut tracker = RoomTracker::default();
    at_decode(&mut tracker, 100, true, 9_000, &indices(5, 9_100, 1_000));
    assert_eq!(updates(&mut tracker), [(5, RoomOutcome::Open, 100, 0)]);
    assert_eq!(tracker.open(), 1);
    at_decode(&mut tracker, 900, false, 9_100, &status(5, "4", 0));
    // A segment that is sent again, whole and in part.
    for start in [0, 3] {
        let mut again =
            segment(950, DECODE, flow((2, 9_100), (1, 41_000)), false, &status(5, "4", 0)[start..]);
        again.sequence = FIRST + start as u32;
        tracker.observe(&again);
    }
    assert_eq!((tracker.counts.repeated, tracker.counts.unread), (2, 0));
    assert_eq!(updates(&mut tracker), [(5, RoomOutcome::Success, 100, 900)]);
    assert_eq!(tracker.open(), 0);
    assert_eq!((tracker.counts.sent.indices, tracker.counts.received.succeeded), (1, 1));
}

/// ZeroMQ sends a long frame apart from those before and behind it.
#[test]
fn a_message_in_pieces_is_whole_and_hides_none() {
    let whole = indices(5, 9_100, 14_000);
    let pages = 14_000 * 4;
    let (start, tail) = (whole.len() - pages - 6, whole.len() - 6);
    let mut tracker = RoomTracker::default();
    for (at, piece) in [
        &whole[..start],
        &whole[start..start + 32_768],
        &whole[start + 32_768..tail],
        &whole[tail..],
    ]
    .into_iter()
    .enumerate()
    {
        at_decode(&mut tracker, 100 + at as u64, true, 9_000, piece);
    }
    // The next message begins behind it.
    at_decode(&mut tracker, 200, true, 9_000, &indices(6, 9_100, 3));
    at_decode(&mut tracker, 900, false, 9_100, &status(5, "4", 0));
    let counts = &tracker.counts;
    assert_eq!((counts.unread, counts.cut, counts.continued), (0, 0, 2));
    assert_eq!(counts.sent.indices, 2);
    assert_eq!(tracker.missed_since(DECODE), 0);
    let ended: Vec<_> = updates(&mut tracker).into_iter().filter(|update| update.3 > 0).collect();
    assert_eq!(ended, [(5, RoomOutcome::Success, 100, 900)]);
}

#[test]
fn the_two_ends_of_a_message_are_two_sides() {
    let mut tracker = RoomTracker::default();
    at_decode(&mut tracker, 100, true, 9_000, &indices(5, 9_100, 3));
    let arrived = flow((1, 9_000), (2, 40_000));
    tracker.observe(&segment(130, PREFILL, arrived, false, &indices(5, 9_100, 3)));
    let left = flow((1, 41_000), (2, 9_100));
    tracker.observe(&segment(500, PREFILL, left, true, &status(5, "4", 0)));
    at_decode(&mut tracker, 540, false, 9_100, &status(5, "4", 0));
    let all: Vec<RoomUpdate> = tracker.take_updates().collect();
    let ended = |side, pod, admitted_ns, ended_ns| RoomUpdate {
        room: 5,
        side,
        pod,
        outcome: RoomOutcome::Success,
        admitted_ns,
        ended_ns,
    };
    assert_eq!(all.len(), 4);
    assert_eq!(all[2], ended(RoomSide::Prefill, PREFILL, 130, 500));
    assert_eq!(all[3], ended(RoomSide::Decode, DECODE, 100, 540));
}

#[test]
fn a_room_of_several_ranks_ends_with_the_last_of_those_that_take_part() {
    let mut tracker = RoomTracker::default();
    // Two ranks of decode with two ranks of prefill each, and one rank that takes no part.
    for (at, (prefill, decode)) in
        [(9_000, 9_100), (9_001, 9_100), (9_000, 9_101), (9_001, 9_101)].into_iter().enumerate()
    {
        at_decode(&mut tracker, 100 + at as u64, true, prefill, &indices(5, decode, 8));
    }
    at_decode(&mut tracker, 110, true, 9_002, &indices(5, 9_100, 0));
    assert_eq!(updates(&mut tracker), [(5, RoomOutcome::Open, 100, 0)]);
    for (at, (decode, rank)) in
        [(9_100, 0), (9_101, 0), (9_100, 1), (9_101, 1)].into_iter().enumerate()
    {
        assert_eq!(updates(&mut tracker), []);
        at_decode(&mut tracker, 200 + at as u64, false, decode, &status(5, "4", rank));
    }
    assert_eq!(updates(&mut tracker), [(5, RoomOutcome::Success, 100, 203)]);
}

#[test]
fn what_failed_or_was_given_up_does_not_succeed_later() {
    let mut tracker = RoomTracker::default();
    at_decode(&mut tracker, 100, true, 9_000, &indices(5, 9_100, 8));
    at_decode(&mut tracker, 200, false, 9_100, &status(5, "0", 0));
    at_decode(&mut tracker, 300, false, 9_100, &status(5, "4", 0));
    at_decode(&mut tracker, 400, true, 9_000, &indices(6, 9_100, 8));
    at_decode(&mut tracker, 500, true, 9_000, &message(&[b"ABORT", b"6", b"10.0.0.2", b"9100"]));
    at_decode(&mut tracker, 510, true, 9_000, &message(&[b"ABORT", b"7", b"10.0.0.2", b"9100"]));
    let all = updates(&mut tracker);
    assert_eq!(all[1], (5, RoomOutcome::Failed, 100, 200));
    assert_eq!(all[3], (6, RoomOutcome::Aborted, 400, 500));
    assert_eq!(all.len(), 4);
}

#[test]
fn where_messages_may_be_missed_the_success_is_that_of_the_ranks_seen() {
    let mut tracker = RoomTracker::default();
    let hidden = [indices(5, 9_100, 1_000), indices(6, 9_100, 1_000)].concat();
    at_decode(&mut tracker, 100, true, 9_000, &hidden);
    at_decode(&mut tracker, 200, false, 9_100, &status(5, "4", 0));
    let ends: Vec<_> = updates(&mut tracker).into_iter().filter(|update| update.3 > 0).collect();
    assert_eq!(ends, [(5, RoomOutcome::SuccessOfSeen, 100, 200)]);
    // Its indices were not seen at all.
    at_decode(&mut tracker, 300, false, 9_100, &status(6, "4", 0));
    assert_eq!(updates(&mut tracker), [(6, RoomOutcome::SuccessOfSeen, 0, 300)]);
    // What was missed before may be indices of another rank.
    at_decode(&mut tracker, 400, true, 9_000, &indices(7, 9_100, 8));
    at_decode(&mut tracker, 500, false, 9_100, &status(7, "4", 0));
    assert_eq!(updates(&mut tracker)[1], (7, RoomOutcome::SuccessOfSeen, 400, 500));
    let later = 101 + INDICES_SPREAD_NS;
    at_decode(&mut tracker, later, true, 9_000, &indices(8, 9_100, 8));
    at_decode(&mut tracker, later + 10, false, 9_100, &status(8, "4", 0));
    assert_eq!(updates(&mut tracker)[1], (8, RoomOutcome::Success, later, later + 10));
    at_decode(&mut tracker, later + 20, true, 9_000, &indices(9, 9_100, 8));
    tracker.lost_segments(later + 30);
    at_decode(&mut tracker, later + 40, false, 9_100, &status(9, "4", 0));
    let seen = (9, RoomOutcome::SuccessOfSeen, later + 20, later + 40);
    assert_eq!(updates(&mut tracker)[1], seen);
}

#[test]
fn the_rest_of_a_long_message_is_not_read() {
    let mut tracker = RoomTracker::default();
    let long = indices(5, 9_100, 1_000);
    let to_rank = flow((2, 40_000), (1, 9_000));
    for (start, part) in long.chunks(1_448).enumerate() {
        let mut piece = segment(100, DECODE, to_rank, true, part);
        // Across the end of the sequence numbers.
        piece.sequence = 0u32.wrapping_sub(1_000).wrapping_add(start as u32 * 1_448);
        tracker.observe(&piece);
    }
    let mut next = segment(300, DECODE, to_rank, true, &indices(6, 9_100, 3));
    next.sequence = 0u32.wrapping_sub(1_000).wrapping_add(long.len() as u32);
    tracker.observe(&next);
    assert_eq!((tracker.counts.continued, tracker.counts.unread, tracker.counts.cut), (2, 0, 0));
    assert_eq!(updates(&mut tracker).len(), 2);
}

#[test]
fn rooms_and_updates_are_bounded() {
    let mut tracker = RoomTracker::default();
    for room in 0..MAX_ROOMS as u64 + 10 {
        at_decode(&mut tracker, 100 + room, true, 9_000, &indices(room, 9_100, 3));
    }
    assert!(tracker.rooms.len() <= MAX_ROOMS && tracker.order.len() <= MAX_ROOMS);
    assert!(tracker.counts.forgotten >= 10);
    assert_eq!(updates(&mut tracker).len(), MAX_UPDATES);
    assert_eq!(tracker.counts.dropped, (MAX_ROOMS + 10 - MAX_UPDATES) as u64);
    at_decode(&mut tracker, MAX_AGE_NS * 2, true, 9_000, &indices(1 << 40, 9_100, 3));
    assert_eq!(tracker.rooms.len(), 1);
}
