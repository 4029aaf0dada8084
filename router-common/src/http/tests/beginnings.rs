//! Where requests begin: odd first segments, Fast Open, other methods, pipelining, and odd heads.

use super::*;

fn whole(replay: &mut Replay, answered: u32) {
    replay.engine(answered, SIZED_ANSWER);
    let totals = &replay.totals;
    assert_eq!((totals.started, totals.finished, totals.aborted), (1, 1, 0));
    assert_eq!(totals.request_bytes, totals.answered_request_bytes);
}

#[test]
fn a_request_may_begin_with_any_number_of_bytes() {
    for cut in 1..6 {
        let mut replay = Replay::new();
        replay.client(0, &GET[..cut], 0);
        replay.now += 70;
        replay.client(cut as u32, &GET[cut..], 0);
        assert_eq!(replay.totals.started, 1, "cut at {cut}");
        assert_eq!(replay.totals.request_bytes, GET.len() as u32, "cut at {cut}");
        replay.now += 30;
        whole(&mut replay, 0);
        assert_eq!(replay.totals.ttft, [100], "from the first byte, cut at {cut}");
        replay.client(GET.len() as u32, GET, 0);
        assert_eq!(replay.totals.started, 2, "cut at {cut}");
    }
}

#[test]
fn a_request_may_come_byte_by_byte_and_its_beginning_twice() {
    let mut replay = Replay::new();
    for (at, byte) in GET.iter().enumerate() {
        replay.client(at as u32, &[*byte], 0);
        replay.client(at as u32, &[*byte], 0);
    }
    whole(&mut replay, 0);
    // The first bytes are sent again with more.
    let at = GET.len() as u32;
    replay.client(at, &GET[..2], 0);
    replay.client(at, &GET[..9], 0);
    assert_eq!(replay.totals.started, 2);
    assert_eq!(replay.totals.request_bytes, at + 9);
}

#[test]
fn empty_lines_before_a_request_are_not_part_of_it() {
    for blank in [&b"\r\n"[..], b"\n", b"\r\n\r\n"] {
        let mut replay = Replay::new();
        replay.client(0, &[blank, GET].concat(), 0);
        assert_eq!(replay.totals.started, 1);
        let mut apart = Replay::new();
        apart.client(0, blank, 0);
        apart.client(blank.len() as u32, GET, 0);
        for mut replay in [replay, apart] {
            assert_eq!(replay.totals.request_bytes, GET.len() as u32);
            whole(&mut replay, 0);
        }
    }
}

#[test]
fn data_of_a_syn_is_the_beginning_of_the_request() {
    let segment =
        Segment { sequence: 99, acknowledged: 0, length: GET.len() as u32, flags: TCP_SYN };
    let mut replay = Replay::new();
    replay.stream = HttpStream::from_syn(7, &segment);
    let change = replay.stream.on_client_segment(&segment, &Bytes(GET), || 1_000);
    replay.add(change);
    // The server did not take it: it comes again after the SYN.
    let again = Segment { sequence: 100, flags: 0, ..segment };
    let change = replay.stream.on_client_segment(&again, &Bytes(GET), || 1_000);
    replay.add(change);
    replay.engine_segment(0, b"", TCP_SYN);
    whole(&mut replay, 0);
}

#[test]
fn a_method_that_is_not_known_is_a_request_at_the_beginning_of_a_connection() {
    let mut replay = Replay::new();
    replay.client(0, b"PROPFIND / HTTP/1.1\r\n\r\n", 0);
    whole(&mut replay, 0);
    replay.client(23, GET, 0);
    assert_eq!(replay.totals.started, 2);
    // Later it is taken for the rest of a body.
    replay.engine(SIZED_ANSWER.len() as u32, SIZED_ANSWER);
    replay.client(23 + GET.len() as u32, b"BODY of the request before", 0);
    assert_eq!(replay.totals.started, 2);
}

#[test]
fn pipelined_requests_count_when_they_are_answered() {
    let mut replay = Replay::new();
    replay.client(0, &GET.repeat(3), 0);
    replay.now += 1;
    for number in 0..3 {
        replay.engine(number * SIZED_ANSWER.len() as u32, SIZED_ANSWER);
    }
    let totals = &replay.totals;
    assert_eq!((totals.started, totals.finished, totals.answered), (3, 3, 3));
    assert_eq!((totals.in_flight(), totals.reopened, totals.ttft.len()), (0, 0, 1));
    assert_eq!(totals.request_bytes, totals.answered_request_bytes);
}

#[test]
fn a_long_head_ends_where_it_ends() {
    for length in [400, 511, 512, 513, 1_500] {
        let head = std::format!("HTTP/1.1 200 OK\r\nx: {}\r\n", "y".repeat(length));
        for cut in [0, 300, 600] {
            let answer = std::format!("{head}content-length: 5\r\n\r\nhello");
            let mut replay = Replay::new();
            replay.client(0, GET, 0);
            let (one, two) = answer.as_bytes().split_at(cut.min(length));
            for (at, bytes) in [(0, one), (one.len() as u32, two)] {
                if !bytes.is_empty() {
                    replay.engine(at, bytes);
                }
            }
            let totals = &replay.totals;
            assert_eq!((totals.in_flight(), totals.finished), (0, 1), "{length}, {cut}");
        }
    }
}

#[test]
fn chunked_is_found_in_any_spelling() {
    for coding in [
        "TRANSFER-ENCODING: CHUNKED",
        "Transfer-Encoding:chunked",
        "transfer-encoding:  gzip, Chunked",
    ] {
        let head = std::format!("HTTP/1.1 200 OK\r\n{coding}\r\n\r\n");
        let mut replay = Replay::new();
        replay.client(0, GET, 0);
        replay.now += 1;
        replay.engine(0, head.as_bytes());
        replay.engine(head.len() as u32, b"1\r\na\r\n0\r\n\r\n");
        assert_eq!((replay.totals.finished, replay.totals.ttft.len()), (1, 1), "{coding}");
    }
}
