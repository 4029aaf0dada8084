//! Requests over a wire that loses and reorders.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Barrier};

use netns::{Node, PodNetwork, Topology};
use router_tests::agent::{Agent, count, pair, pod};
use router_tests::node_manifests::{ENGINE, prefill};
use router_tests::traffic::{joined, listen};

const CONNECTIONS: usize = 16;
const REQUESTS: usize = 15;
const HEAD: &[u8] = b"POST /generate HTTP/1.1\r\nhost: e\r\n\r\n";
/// Several segments, of which some begin with a method wherever they are cut.
fn body() -> Vec<u8> {
    b"POST GET PUT ".repeat(400)
}

/// Reads a request and answers, with a size or in chunks; waits at the barrier for number 5.
fn serve(mut stream: &TcpStream, number: usize, held: &Barrier) {
    let mut request = vec![0; HEAD.len() + body().len()];
    stream.read_exact(&mut request).expect("a request");
    if number == 5 {
        held.wait();
        held.wait();
    }
    let answer = b"data: token\n\n".repeat(100 + number);
    if number.is_multiple_of(2) {
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", answer.len());
        stream.write_all(&[head.as_bytes(), &answer].concat()).expect("an answer");
        return;
    }
    stream
        .write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        .expect("an answer's head");
    for chunk in answer.chunks(130) {
        let chunk = [format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat();
        stream.write_all(&chunk).expect("a chunk");
    }
    stream.write_all(b"0\r\n\r\n").expect("the end");
}

/// Asks, and reads an answer whose last bytes are known.
fn ask(mut stream: &TcpStream, number: usize) {
    stream.write_all(&[HEAD, &body()].concat()).expect("asking");
    let end: &[u8] = if number.is_multiple_of(2) { b"token\n\n" } else { b"\r\n0\r\n\r\n" };
    let length = 13 * (100 + number);
    let mut answer = Vec::new();
    let mut part = [0; 4096];
    while answer.len() < length || !answer.ends_with(end) {
        let read = stream.read(&mut part).expect("an answer");
        assert!(read > 0, "the answer ended early");
        answer.extend(&part[..read]);
    }
}

#[test]
fn loss_and_reordering_on_the_uplink_change_no_count() {
    let node = Node::with_lossy_uplink(Topology::Routed);
    changes_no_count(&node, &node.pod(2));
}

/// Between the node and the pod: segments are lost after the node saw them.
#[test]
fn loss_and_reordering_on_the_pods_link_change_no_count() {
    let node = Node::new(Topology::Routed);
    changes_no_count(&node, &node.pod_with_lossy_link(2));
}

fn changes_no_count(node: &Node, one: &PodNetwork) {
    let agent = Agent::start(node, &[prefill("p0", one.address)]);
    let listener = listen(&one.netns, one.address, ENGINE);
    let held = Arc::new(Barrier::new(CONNECTIONS + 1));
    let threads: Vec<_> = (0..CONNECTIONS)
        .flat_map(|_| {
            let (client, server) = joined(&node.outside, &listener);
            let held = Arc::clone(&held);
            [
                std::thread::spawn(move || {
                    (0..REQUESTS).for_each(|number| serve(&server, number, &held));
                }),
                std::thread::spawn(move || (0..REQUESTS).for_each(|number| ask(&client, number))),
            ]
        })
        .collect();
    // Every engine has read its sixth request and answers none.
    held.wait();
    agent.until("all in flight", |loads| {
        let p0 = pod(loads, "p0");
        (count(&p0["in_flight"]), count(&p0["waiting"])) == (CONNECTIONS as u64, CONNECTIONS as u64)
    });
    held.wait();
    for thread in threads {
        thread.join().expect("the other thread");
    }
    let all = (CONNECTIONS * REQUESTS) as u64;
    let loads = agent.until("all over", |loads| {
        count(&pod(loads, "p0")["finished"]) == all
            && pair(loads, "p0", "", "engine")["closed"] == CONNECTIONS
    });
    let p0 = pod(&loads, "p0");
    assert_eq!((count(&p0["started"]), count(&p0["in_flight"])), (all, 0));
    assert_eq!((count(&p0["aborted"]), count(&p0["reopened"])), (0, 0));
    assert_eq!(count(&p0["ttft"]["samples"]), all);
    let counted = pair(&loads, "p0", "", "engine");
    assert!(count(&counted["retransmits"]) > 0, "nothing was lost: {counted:#}");
    let asked = HEAD.len() + body().len();
    assert_eq!(counted["rx_bytes"], all * asked as u64);
}
