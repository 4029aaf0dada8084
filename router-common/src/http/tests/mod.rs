//! Replays connections segment by segment, and checks the counters after each.

mod beginnings;
mod waiting;

use proptest::prelude::*;
use std::vec::Vec;

use super::*;

struct Bytes<'a>(&'a [u8]);

impl HeadBytes for Bytes<'_> {
    fn byte(&self, index: u32) -> u8 {
        self.0[index as usize]
    }
}

impl Payload for Bytes<'_> {
    fn four(&self, at: u32) -> [u8; 4] {
        let rest = &self.0[at as usize..];
        let mut four = [0; 4];
        let count = rest.len().min(4);
        four[..count].copy_from_slice(&rest[..count]);
        four
    }

    fn scan(&mut self, skip: u32, head: &mut HeadScan) -> u32 {
        let window = &self.0[skip as usize..];
        let count = window.len().min(HEAD_WINDOW as usize) as u32;
        head.search(&mut Bytes(window), count);
        head.settle(&mut Bytes(window), count);
        head.read
    }

    fn last(&self, count: u32) -> u64 {
        self.0[self.0.len() - count as usize..].iter().fold(0, |n, byte| (n << 8) | *byte as u64)
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Totals {
    started: u32,
    answered: u32,
    request_bytes: u32,
    answered_request_bytes: u32,
    finished: u32,
    aborted: u32,
    reopened: u32,
    streams: i32,
    ended: bool,
    ttft: Vec<u64>,
    itl: Vec<u64>,
    durations: Vec<u64>,
}

impl Totals {
    fn in_flight(&self) -> u32 {
        self.started + self.reopened - self.finished
    }
}

/// A connection whose sequence numbers wrap soon.
struct Replay {
    stream: HttpStream,
    totals: Totals,
    now: u64,
}

const CLIENT: u32 = u32::MAX - 100;
const ENGINE: u32 = u32::MAX - 50;

impl Replay {
    fn new() -> Replay {
        let syn = Segment { sequence: CLIENT - 1, acknowledged: 0, length: 0, flags: TCP_SYN };
        let mut replay =
            Replay { stream: HttpStream::from_syn(7, &syn), totals: Totals::default(), now: 1_000 };
        replay.engine_segment(0, b"", TCP_SYN);
        replay
    }

    fn add(&mut self, change: HttpChange) {
        let totals = &mut self.totals;
        totals.started += change.started as u32;
        totals.answered += change.answered as u32;
        totals.request_bytes += change.request_bytes;
        totals.answered_request_bytes += change.answered_request_bytes;
        totals.finished += change.finished as u32;
        totals.aborted += change.aborted as u32;
        totals.reopened += change.reopened as u32;
        totals.streams += change.stream_started as i32 - change.stream_ended as i32;
        totals.ended |= change.ended;
        totals.ttft.extend((change.ttft_ns > 0).then_some(change.ttft_ns));
        totals.itl.extend((change.itl_ns > 0).then_some(change.itl_ns));
        totals.durations.extend((change.duration_ns > 0).then_some(change.duration_ns));
    }

    fn client(&mut self, offset: u32, bytes: &[u8], flags: u8) {
        let segment = Segment {
            sequence: CLIENT.wrapping_add(offset),
            acknowledged: 0,
            length: bytes.len() as u32,
            flags,
        };
        let change = self.stream.on_client_segment(&segment, &Bytes(bytes), || self.now);
        self.add(change);
    }

    fn engine_segment(&mut self, offset: u32, bytes: &[u8], flags: u8) {
        let syn = (flags & TCP_SYN != 0) as u32;
        let segment = Segment {
            sequence: ENGINE.wrapping_add(offset).wrapping_sub(syn),
            acknowledged: 0,
            length: bytes.len() as u32,
            flags,
        };
        let mut payload = Bytes(bytes);
        let head = self.stream.read_head(&segment, &mut payload);
        let change = self.stream.on_engine_segment(&segment, head, &payload, || self.now);
        self.add(change);
    }

    /// The engine sends `bytes`, cut into `segments` at the given lengths.
    fn engine(&mut self, offset: u32, bytes: &[u8]) {
        self.engine_segment(offset, bytes, 0);
    }
}

const GET: &[u8] = b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n";
const SIZED_ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
const STREAM_HEAD: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";

#[test]
fn a_sized_answer_ends_with_its_last_byte() {
    let mut replay = Replay::new();
    replay.client(0, GET, 0);
    assert_eq!((replay.totals.in_flight(), replay.totals.answered), (1, 0));
    replay.now += 500;
    replay.engine(0, &SIZED_ANSWER[..SIZED_ANSWER.len() - 2]);
    assert_eq!((replay.totals.in_flight(), replay.totals.answered), (1, 1));
    replay.now += 100;
    replay.engine(SIZED_ANSWER.len() as u32 - 2, b"lo");
    assert_eq!(replay.totals.in_flight(), 0);
    assert_eq!(replay.totals.ttft, [500]);
    assert_eq!(replay.totals.durations, [600]);
    assert_eq!(replay.totals.itl, [0; 0]);
}

#[test]
fn a_stream_times_its_first_chunk_and_the_gaps_and_ends_with_the_empty_chunk() {
    let mut replay = Replay::new();
    replay.client(0, b"POST /generate HTTP/1.1\r\n\r\n", 0);
    replay.now += 10;
    replay.engine(0, STREAM_HEAD);
    assert_eq!(replay.totals.ttft, [0; 0], "a head is not a token");
    let waits =
        |replay: &Replay| replay.totals.request_bytes - replay.totals.answered_request_bytes;
    assert_eq!((replay.totals.answered, waits(&replay)), (0, 27), "and it waits for one");
    let mut at = STREAM_HEAD.len() as u32;
    for gap in [90, 20, 30] {
        replay.now += gap;
        replay.engine(at, b"5\r\nhello\r\n");
        at += 10;
    }
    assert_eq!((replay.totals.in_flight(), replay.totals.streams), (1, 1));
    assert_eq!((replay.totals.answered, waits(&replay)), (1, 0));
    replay.now += 40;
    replay.engine(at, b"0\r\n\r\n");
    assert_eq!((replay.totals.in_flight(), replay.totals.streams), (0, 0));
    assert_eq!(replay.totals.ttft, [100]);
    assert_eq!(replay.totals.itl, [20, 30, 40]);
    assert_eq!(replay.totals.durations, [190]);
}

#[test]
fn an_empty_chunk_split_over_segments_still_ends_the_answer() {
    for cut in 1..5 {
        let mut replay = Replay::new();
        replay.client(0, GET, 0);
        replay.engine(0, STREAM_HEAD);
        let at = STREAM_HEAD.len() as u32;
        replay.engine(at, b"1\r\na\r\n");
        let (one, two) = b"0\r\n\r\n".split_at(cut);
        replay.engine(at + 6, one);
        assert_eq!(replay.totals.in_flight(), 1, "cut at {cut}");
        replay.engine(at + 6 + cut as u32, two);
        assert_eq!(replay.totals.in_flight(), 0, "cut at {cut}");
    }
}

#[test]
fn a_head_split_anywhere_is_read_as_if_it_were_whole() {
    for cut in 1..SIZED_ANSWER.len() {
        let mut replay = Replay::new();
        replay.client(0, GET, 0);
        replay.engine(0, &SIZED_ANSWER[..cut]);
        assert_eq!(replay.totals.in_flight(), 1, "cut at {cut}");
        replay.engine(cut as u32, &SIZED_ANSWER[cut..]);
        assert_eq!(replay.totals.in_flight(), 0, "cut at {cut}");
        assert_eq!((replay.totals.started, replay.totals.answered), (1, 1), "cut at {cut}");
    }
}

#[test]
fn a_body_that_begins_with_a_method_is_not_a_request() {
    let mut replay = Replay::new();
    replay.client(0, b"POST /generate HTTP/1.1\r\ncontent-length: 10\r\n\r\n", 0);
    replay.client(47, b"POST /fake", 0);
    assert_eq!(replay.totals.started, 1);
    replay.engine(0, SIZED_ANSWER);
    assert_eq!(replay.totals.in_flight(), 0);
    replay.client(57, GET, 0);
    assert_eq!(replay.totals.started, 2);
}

#[test]
fn segments_that_come_twice_or_late_count_once() {
    let mut replay = Replay::new();
    // The second half of the request overtakes the first.
    replay.client(16, b"POST x 123456789", 0);
    assert_eq!(replay.totals.started, 0);
    replay.client(0, b"POST / HTTP/1.1\n", 0);
    replay.client(0, b"POST / HTTP/1.1\n", 0);
    assert_eq!(replay.totals.started, 1);
    replay.engine(0, SIZED_ANSWER);
    replay.engine(0, SIZED_ANSWER);
    replay.client(0, b"POST / HTTP/1.1\n", 0);
    assert_eq!((replay.totals.started, replay.totals.finished), (1, 1));
    assert_eq!(replay.totals.reopened, 0);
}

#[test]
fn an_interim_answer_is_not_the_answer() {
    let mut replay = Replay::new();
    replay.client(0, b"POST / HTTP/1.1\r\nexpect: 100-continue\r\n\r\n", 0);
    replay.engine(0, b"HTTP/1.1 100 Continue\r\n\r\n");
    assert_eq!((replay.totals.in_flight(), replay.totals.answered), (1, 0));
    replay.now += 3;
    replay.engine(25, SIZED_ANSWER);
    assert_eq!((replay.totals.in_flight(), replay.totals.answered), (0, 1));
    assert_eq!(replay.totals.ttft, [3]);
}

#[test]
fn answers_without_a_body_end_with_their_head() {
    for (request, answer) in [
        (&b"HEAD / HTTP/1.1\r\n\r\n"[..], &b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n"[..]),
        (GET, b"HTTP/1.1 204 No Content\r\n\r\n"),
        (GET, b"HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n"),
        (GET, b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"),
    ] {
        let mut replay = Replay::new();
        replay.client(0, request, 0);
        replay.engine(0, answer);
        assert_eq!((replay.totals.in_flight(), replay.totals.finished), (0, 1));
        replay.client(request.len() as u32, GET, 0);
        assert_eq!(replay.totals.started, 2);
    }
}

#[test]
fn an_answer_without_length_ends_with_the_connection_or_the_next_request() {
    const ENDLESS_ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\n\r\nsome";
    let mut replay = Replay::new();
    replay.client(0, GET, 0);
    replay.engine(0, ENDLESS_ANSWER);
    assert_eq!(replay.totals.in_flight(), 1);
    replay.client(GET.len() as u32, GET, 0);
    assert_eq!((replay.totals.started, replay.totals.finished), (2, 1));
    replay.engine(ENDLESS_ANSWER.len() as u32, ENDLESS_ANSWER);
    replay.engine_segment(2 * ENDLESS_ANSWER.len() as u32, b"", TCP_FIN);
    assert_eq!((replay.totals.finished, replay.totals.aborted), (2, 0));
    assert!(!replay.totals.ended);
    replay.client(2 * GET.len() as u32, b"", TCP_FIN);
    assert!(replay.totals.ended);
}

#[test]
fn a_reset_ends_what_is_outstanding_as_aborted() {
    let mut replay = Replay::new();
    replay.client(0, GET, 0);
    replay.client(GET.len() as u32, b"", TCP_RST);
    let totals = &replay.totals;
    assert_eq!((totals.in_flight(), totals.aborted, totals.answered), (0, 1, 1));
    assert!(totals.ended);
}

#[test]
fn a_data_chunk_that_looks_like_the_last_one_reopens_the_answer() {
    let mut replay = Replay::new();
    replay.client(0, GET, 0);
    replay.engine(0, STREAM_HEAD);
    let at = STREAM_HEAD.len() as u32;
    replay.engine(at, b"5\r\n\r\n0\r\n\r\n");
    assert_eq!(replay.totals.in_flight(), 0);
    replay.engine(at + 10, b"1\r\na\r\n");
    assert_eq!((replay.totals.in_flight(), replay.totals.streams), (1, 1));
    replay.engine(at + 16, b"0\r\n\r\n");
    assert_eq!((replay.totals.in_flight(), replay.totals.streams), (0, 0));
}

#[test]
fn other_protocols_are_not_counted() {
    for first in [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], b"\x16\x03\x01\x02\x00"] {
        let mut replay = Replay::new();
        replay.client(0, first, 0);
        replay.engine(0, b"\x00\x00\x12\x04HTTP/1.1 200 OK");
        replay.client(first.len() as u32, GET, 0);
        assert_eq!(replay.totals, Totals::default());
    }
}

#[test]
fn reusing_a_port_ends_the_request_of_the_older_connection() {
    let mut replay = Replay::new();
    replay.client(0, GET, 0);
    let syn = Segment { sequence: 5, acknowledged: 0, length: 0, flags: TCP_SYN };
    let change = replay.stream.on_client_segment(&syn, &Bytes(b""), || 2_000);
    assert!(change.finished && change.aborted);
    assert_eq!(replay.stream, HttpStream::from_syn(7, &syn));
}

#[test]
fn an_early_answer_leaves_the_rest_of_the_body_uncounted() {
    let mut replay = Replay::new();
    replay.client(0, b"POST / HTTP/1.1\r\n\r\n", 0);
    replay.engine(0, SIZED_ANSWER);
    replay.client(19, b"rest of the body", 0);
    replay.client(35, GET, 0);
    assert_eq!((replay.totals.started, replay.totals.finished), (2, 1));
}

/// The segments of a conversation: whether the client sends it, its offset and its bytes.
fn conversation(requests: usize, body: usize) -> Vec<(bool, u32, Vec<u8>)> {
    let (mut asked, mut answered) = (0, 0);
    let mut segments = Vec::new();
    for request in 0..requests {
        for bytes in [b"POST / HTTP/1.1\r\n\r\n".to_vec(), b"POST body".to_vec()] {
            let length = bytes.len() as u32;
            segments.push((true, asked, bytes));
            asked += length;
        }
        let mut answer = std::vec![STREAM_HEAD.to_vec()];
        answer.extend((0..body + request % 3).map(|_| b"3\r\nabc\r\n".to_vec()));
        answer.push(b"0\r\n\r\n".to_vec());
        for bytes in answer {
            let length = bytes.len() as u32;
            segments.push((false, answered, bytes));
            answered += length;
        }
    }
    segments
}

proptest! {
    /// Segments may be repeated any time after they were first seen, and the two segments of a
    /// request may come in either order: the counters are those of the clean conversation.
    #[test]
    fn retransmits_and_reordering_change_no_count(
        requests in 1usize..6,
        body in 0usize..4,
        choices in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 80),
    ) {
        let mut segments = conversation(requests, body);
        for (index, (swap, _)) in (0..segments.len() - 1).zip(&choices) {
            if *swap && segments[index].0 && segments[index + 1].0 {
                segments.swap(index, index + 1);
            }
        }
        let asked: u32 = segments.iter().filter(|s| s.0).map(|s| s.2.len() as u32).sum();
        let mut replay = Replay::new();
        for (index, (repeat, past)) in (0..segments.len()).zip(&choices) {
            let (client, offset, bytes) = &segments[index];
            replay.now += 1;
            if *client { replay.client(*offset, bytes, 0) } else { replay.engine(*offset, bytes) }
            if *repeat {
                let (client, offset, bytes) = &segments[past.index(index + 1)];
                if *client {
                    replay.client(*offset, bytes, 0)
                } else {
                    replay.engine(*offset, bytes)
                }
            }
        }
        let requests = requests as u32;
        prop_assert_eq!(replay.totals.started, requests);
        prop_assert_eq!(replay.totals.finished, requests);
        prop_assert_eq!(replay.totals.answered, requests);
        prop_assert_eq!([replay.totals.request_bytes, replay.totals.answered_request_bytes], [asked; 2]);
        prop_assert_eq!((replay.totals.aborted, replay.totals.reopened), (0, 0));
        prop_assert_eq!(replay.totals.ttft.len() as u32, requests);
    }
}
