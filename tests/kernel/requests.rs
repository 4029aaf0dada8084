//! Requests as the kernel sees them: in flight at given moments, and their latencies.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use netns::{Node, Topology};
use router_tests::agent::{Agent, count, pod};
use router_tests::node_manifests::{ENGINE, prefill};
use router_tests::traffic::{joined, listen};
use serde_json::Value;

use crate::watch::{Seen, Watch};

const POST: &[u8] = b"POST /generate HTTP/1.1\r\nhost: e\r\ncontent-length: 9\r\n\r\n";
pub(crate) const CHUNKED: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
const SIZED: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n";
const ENDLESS: &[u8] = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n";

/// Sends bytes and waits until the other end has them, so that they have passed the programs.
pub(crate) fn pass(mut from: &TcpStream, mut to: &TcpStream, bytes: &[u8]) {
    from.write_all(bytes).expect("sending");
    let mut arrived = vec![0; bytes.len()];
    to.read_exact(&mut arrived).expect("receiving");
    assert_eq!(arrived, bytes);
}

fn gauges(loads: &Value) -> (u64, u64, u64) {
    let p0 = pod(loads, "p0");
    (count(&p0["in_flight"]), count(&p0["waiting"]), count(&p0["streaming"]))
}

#[test]
fn requests_in_flight_are_exact_at_every_moment() {
    let node = Node::new(Topology::Routed);
    let one = node.pod(2);
    let agent = Agent::start(&node, &[prefill("p0", one.address)]);
    let now = |in_flight, waiting, streaming| {
        let wanted = (in_flight, waiting, streaming);
        agent.until(&format!("{wanted:?}"), |loads| gauges(loads) == wanted);
    };
    let listener = listen(&one.netns, one.address, ENGINE);
    let connections: Vec<_> = (0..4).map(|_| joined(&node.outside, &listener)).collect();
    now(0, 0, 0);
    for (client, server) in &connections {
        // The body begins with a method and comes in a segment of its own.
        pass(client, server, POST);
        pass(client, server, b"GET / HTT");
    }
    now(4, 4, 0);
    let [(_, a), (_, b), (_, c), (_, d)] = &connections[..] else { panic!("four") };
    let clients: Vec<&TcpStream> = connections.iter().map(|(client, _)| client).collect();
    // A head is not a token yet.
    pass(a, clients[0], CHUNKED);
    now(4, 4, 0);
    pass(a, clients[0], b"5\r\nhello\r\n");
    now(4, 3, 1);
    pass(b, clients[1], SIZED);
    pass(b, clients[1], b"goo");
    now(4, 2, 1);
    pass(b, clients[1], b"d");
    now(3, 2, 1);
    pass(a, clients[0], b"0\r\n\r\n");
    now(2, 2, 0);
    // The same connection again: a request is due once more.
    pass(clients[0], a, b"GET /health HTTP/1.1\r\n\r\n");
    now(3, 3, 0);
    pass(a, clients[0], b"HTTP/1.1 204 No Content\r\n\r\n");
    now(2, 2, 0);
    // A client that goes away in the middle.
    pass(c, clients[2], CHUNKED);
    pass(c, clients[2], b"5\r\nhello\r\n");
    now(2, 1, 1);
    let loads = agent.loads();
    assert_eq!(count(&pod(&loads, "p0")["aborted"]), 0);
    _ = d;
    drop(connections);
    now(0, 0, 0);
    let loads = agent.loads();
    let p0 = pod(&loads, "p0");
    assert_eq!((count(&p0["started"]), count(&p0["finished"])), (5, 5));
    assert_eq!((count(&p0["aborted"]), count(&p0["reopened"])), (2, 0));
}

#[test]
fn an_answer_without_length_is_over_after_the_response_idle_timeout_or_with_its_connection() {
    let node = Node::new(Topology::Routed);
    let one = node.pod(2);
    let pods = [prefill("p0", one.address)];
    let agent = Agent::start_with(&node, &pods, &["--response-idle-timeout", "1500"]);
    let listener = listen(&one.netns, one.address, ENGINE);
    let (client, server) = joined(&node.outside, &listener);
    pass(&client, &server, b"GET / HTTP/1.1\r\n\r\n");
    pass(&server, &client, ENDLESS);
    pass(&server, &client, b"some");
    agent.until("in flight", |loads| gauges(loads).0 == 1);
    agent.until("held to be over", |loads| gauges(loads).0 == 0);
    // It was not: the next byte says so, and the end of the connection is exact.
    pass(&server, &client, b"more");
    agent.until("in flight after all", |loads| gauges(loads).0 == 1);
    drop(server);
    let loads = agent.until("over", |loads| gauges(loads).0 == 0);
    let p0 = pod(&loads, "p0");
    assert_eq!((count(&p0["finished"]), count(&p0["aborted"])), (1, 0));
}

/// What looks like the end of a body may be part of it.
#[test]
fn an_answer_that_continues_after_its_end_is_in_flight_again() {
    let node = Node::new(Topology::Routed);
    let one = node.pod(2);
    let agent = Agent::start(&node, &[prefill("p0", one.address)]);
    let now = |in_flight, waiting, streaming| {
        let wanted = (in_flight, waiting, streaming);
        agent.until(&format!("{wanted:?}"), |loads| gauges(loads) == wanted)
    };
    let listener = listen(&one.netns, one.address, ENGINE);
    let (client, server) = joined(&node.outside, &listener);
    pass(&client, &server, b"GET / HTTP/1.1\r\n\r\n");
    pass(&server, &client, CHUNKED);
    // One chunk of text, whose first segment ends as a body does.
    pass(&server, &client, b"c\r\n\r\n0\r\n\r\n");
    now(0, 0, 0);
    pass(&server, &client, b"hello");
    let loads = now(1, 0, 1);
    let p0 = pod(&loads, "p0");
    assert_eq!((count(&p0["started"]), count(&p0["reopened"]), count(&p0["finished"])), (1, 1, 1));
    pass(&server, &client, b"\r\n0\r\n\r\n");
    now(0, 0, 0);
    // And the connection's next request is one as any other.
    pass(&client, &server, b"GET / HTTP/1.1\r\n\r\n");
    now(1, 1, 0);
    pass(&server, &client, b"HTTP/1.1 204 No Content\r\n\r\n");
    let loads = now(0, 0, 0);
    let p0 = pod(&loads, "p0");
    assert_eq!((count(&p0["started"]), count(&p0["reopened"]), count(&p0["finished"])), (2, 1, 3));
    assert_eq!(count(&p0["aborted"]), 0);
}

/// One connection as a packet socket sees it: requests that begin, and bodies' segments.
pub(crate) fn by_packets(seen: &[Seen]) -> (Vec<Duration>, Vec<Duration>) {
    let (mut ttft, mut itl) = (Vec::new(), Vec::new());
    let mut asked = None;
    let mut last: Option<Duration> = None;
    for Seen { at, source_port, payload, .. } in seen {
        if *source_port != ENGINE {
            asked = Some(*at);
            last = None;
            continue;
        }
        if payload.starts_with(b"HTTP/1.1") {
            continue;
        }
        match (last, asked) {
            (None, Some(asked)) => ttft.push(*at - asked),
            (Some(last), _) => itl.push(*at - last),
            (None, None) => {}
        }
        last = Some(*at);
    }
    (ttft, itl)
}

#[test]
fn latencies_are_those_of_a_packet_socket_within_a_millisecond() {
    const REQUESTS: usize = 20;
    const TOKENS: usize = 10;
    let node = Node::new(Topology::Routed);
    let one = node.pod(2);
    let agent = Agent::start(&node, &[prefill("p0", one.address)]);
    let listener = listen(&one.netns, one.address, ENGINE);
    let watch = Watch::start(&node, &one.link);
    let (client, server) = joined(&node.outside, &listener);
    for request in 0..REQUESTS {
        pass(&client, &server, b"POST /generate HTTP/1.1\r\n\r\n");
        // The engine's own times, which are what is measured here.
        std::thread::sleep(Duration::from_millis(1 + request as u64 % 7));
        pass(&server, &client, CHUNKED);
        for token in 0..TOKENS {
            std::thread::sleep(Duration::from_millis(token as u64 % 4));
            pass(&server, &client, b"5\r\nhello\r\n");
        }
        pass(&server, &client, b"0\r\n\r\n");
    }
    let loads =
        agent.until("all over", |loads| count(&pod(loads, "p0")["finished"]) == REQUESTS as u64);
    let (ttft, itl) = by_packets(&watch.stop());
    let p0 = pod(&loads, "p0");
    for (name, packets) in [("ttft", &ttft), ("itl", &itl)] {
        let kernel = &p0[name];
        assert_eq!(count(&kernel["samples"]), packets.len() as u64, "{name}");
        // The sums differ by less than a millisecond in all, so each time does by far less.
        let sum: Duration = packets.iter().sum();
        let apart = kernel["sum_ms"].as_f64().expect("a sum") - sum.as_secs_f64() * 1e3;
        let each = apart / packets.len() as f64;
        assert!(each.abs() < 1.0, "{name}: {each} ms apart on average");
        eprintln!("{name}: {} times, {:.1} us apart on average", packets.len(), each * 1e3);
    }
    assert_eq!((ttft.len(), itl.len()), (REQUESTS, REQUESTS * TOKENS));
}
