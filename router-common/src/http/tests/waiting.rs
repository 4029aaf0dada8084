//! When a request and its bytes stop waiting.

use super::*;

#[test]
fn the_bytes_of_a_request_wait_until_its_answer_begins() {
    let mut replay = Replay::new();
    let waiting =
        |replay: &Replay| replay.totals.request_bytes - replay.totals.answered_request_bytes;
    replay.client(0, GET, 0);
    replay.client(GET.len() as u32, &[b'x'; 1_000], 0);
    assert_eq!(waiting(&replay), GET.len() as u32 + 1_000);
    replay.engine(0, SIZED_ANSWER);
    replay.client(GET.len() as u32 + 1_000, GET, 0);
    assert_eq!(waiting(&replay), GET.len() as u32);
    replay.engine_segment(SIZED_ANSWER.len() as u32, b"", TCP_RST);
    assert_eq!((waiting(&replay), replay.totals.aborted), (0, 1));
}

#[test]
fn a_request_with_only_a_response_head_stops_waiting_when_its_connection_ends() {
    let waits =
        |replay: &Replay| replay.totals.request_bytes - replay.totals.answered_request_bytes;
    for (head, flags) in
        [(STREAM_HEAD, TCP_RST), (&b"HTTP/1.1 200 OK\r\n\r\n"[..], TCP_FIN), (STREAM_HEAD, TCP_FIN)]
    {
        let mut replay = Replay::new();
        replay.client(0, GET, 0);
        replay.engine(0, head);
        assert_eq!((replay.totals.answered, waits(&replay)), (0, GET.len() as u32));
        replay.engine_segment(head.len() as u32, b"", flags);
        assert_eq!((replay.totals.answered, waits(&replay), replay.totals.in_flight()), (1, 0, 0));
    }
    let mut replay = Replay::new();
    replay.client(0, GET, 0);
    replay.engine(0, b"HTTP/1.1 204 No Content\r\n\r\n");
    assert_eq!((replay.totals.answered, waits(&replay), replay.totals.in_flight()), (1, 0, 0));
}

#[test]
fn the_last_byte_of_a_response_of_unknown_length_is_timed() {
    let mut replay = Replay::new();
    replay.client(0, GET, 0);
    replay.now += 500;
    let head = b"HTTP/1.1 200 OK\r\n\r\n";
    replay.engine(0, head);
    assert_eq!(replay.stream.last_ns, replay.now, "its head counts");
    for offset in 0..3 {
        replay.now += 500;
        replay.engine(head.len() as u32 + offset, b"x");
        assert_eq!(replay.stream.last_ns, replay.now);
    }
}
