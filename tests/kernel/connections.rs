//! Connections and the payload that they move, counted by the sockets themselves.

use std::net::Shutdown;

use netns::{Node, Topology};
use router_tests::agent::{Agent, count, pair, pod};
use router_tests::node_manifests::{ENGINE, decode, prefill};
use router_tests::traffic::{connect, ended, joined, listen, receive, send};

const UP: u64 = 3_333_337;
const DOWN: u64 = 5_000_011;

/// A client outside and a pod on the same node both exchange bytes with a pod, and every counter
/// is exact.
fn exact(topology: Topology, v6: bool) {
    let node = Node::new(topology);
    let (one, other) = (node.pod(2), node.pod(3));
    let address = |pod: &netns::PodNetwork| if v6 { pod.v6 } else { pod.address };
    let named = [prefill("p0", address(&one)), decode("d0", address(&other))];
    let agent = Agent::start(&node, &named);
    let listener = listen(&one.netns, address(&one), ENGINE);
    for netns in [&node.outside, &other.netns] {
        let (client, server) = joined(netns, &listener);
        let sending = (send(&client, UP), send(&server, DOWN));
        assert_eq!(receive(&server, UP), sending.0.join().expect("the other thread"));
        assert_eq!(receive(&client, DOWN), sending.1.join().expect("the other thread"));
        client.shutdown(Shutdown::Write).expect("set up as meant");
        ended(&server);
        drop(server);
        ended(&client);
    }
    let loads = agent.until("both connections closed", |loads| {
        pair(loads, "p0", "", "engine")["closed"] == 1
            && pair(loads, "p0", "d0", "engine")["closed"] == 1
            && pair(loads, "d0", "p0", "engine")["closed"] == 1
    });
    for (name, peer, tx, rx) in
        [("p0", "", DOWN, UP), ("p0", "d0", DOWN, UP), ("d0", "p0", UP, DOWN)]
    {
        let pair = pair(&loads, name, peer, "engine");
        assert_eq!(pair["tx_bytes"], tx, "{name} to {peer}: {pair:#}");
        assert_eq!(pair["rx_bytes"], rx, "{name} to {peer}: {pair:#}");
        assert_eq!((&pair["opened"], &pair["open"]), (&1.into(), &0.into()));
        assert!(count(&pair["rtt_us"]) > 0);
    }
    // Packets count once where each pod is: nothing is lost on these wires, so nothing is sent
    // twice but what the sender thought lost.
    let p0 = pod(&loads, "p0");
    let again = |name, peer| count(&pair(&loads, name, peer, "engine")["retransmits"]);
    let spare = (again("p0", "") + again("p0", "d0")) * 65_536;
    let sent = count(&p0["tx"]["payload"]);
    assert!((2 * DOWN..=2 * DOWN + spare).contains(&sent), "{sent} is not {}", 2 * DOWN);
    let spare = 65_536 * (again("d0", "p0") + 8);
    let received = count(&p0["rx"]["payload"]);
    assert!((2 * UP..=2 * UP + spare).contains(&received), "{received} is not {}", 2 * UP);
    if topology == Topology::Routed && !v6 {
        // Over the uplink came the client's half alone.
        assert!(count(&p0["uplink_bytes"]) > UP && count(&p0["uplink_bytes"]) < 2 * UP);
    }
    assert!(loads["missing"].as_array().expect("a list").is_empty(), "{loads:#}");
}

#[test]
fn payload_is_exact_on_routed_pods() {
    exact(Topology::Routed, false);
}

#[test]
fn payload_is_exact_on_routed_pods_with_ipv6() {
    exact(Topology::Routed, true);
}

#[test]
fn payload_is_exact_on_bridged_pods() {
    exact(Topology::Bridged, false);
}

#[test]
fn payload_is_exact_on_bridged_pods_with_ipv6() {
    exact(Topology::Bridged, true);
}

#[test]
fn ten_thousand_short_connections_leave_exact_counts() {
    const CONNECTIONS: u64 = 10_000;
    const KEPT: usize = 7;
    let node = Node::new(Topology::Routed);
    let one = node.pod(2);
    let agent = Agent::start(&node, &[prefill("p0", one.address)]);
    let listener = listen(&one.netns, one.address, ENGINE);
    let kept: Vec<_> = (0..KEPT).map(|_| joined(&node.outside, &listener)).collect();
    let server = std::thread::spawn(move || {
        for number in 0..CONNECTIONS {
            let (stream, _) = listener.accept().expect("set up as meant");
            // Both sides close first in turn: each leaves other states behind.
            if number % 2 == 0 {
                ended(&stream);
            }
        }
        listener
    });
    let address = one.address;
    node.outside.run(move || {
        for number in 0..CONNECTIONS {
            let stream = std::net::TcpStream::connect((address, ENGINE)).expect("set up as meant");
            if number % 2 == 1 {
                ended(&stream);
            }
        }
    });
    let listener = server.join().expect("the other thread");
    let all = CONNECTIONS + KEPT as u64;
    let loads = agent.until("all short connections closed", |loads| {
        pair(loads, "p0", "", "engine")["closed"] == CONNECTIONS
    });
    let counted = pair(&loads, "p0", "", "engine");
    assert_eq!((&counted["opened"], &counted["established"]), (&all.into(), &all.into()));
    assert_eq!((&counted["open"], &counted["failed"]), (&KEPT.into(), &0.into()));
    assert_eq!((&counted["tx_bytes"], &counted["rx_bytes"]), (&0.into(), &0.into()));
    drop((kept, listener));
    agent.until("none open", |loads| pair(loads, "p0", "", "engine")["open"] == 0);
}

#[test]
fn a_refused_connect_counts_as_failed() {
    let node = Node::new(Topology::Routed);
    let (one, other) = (node.pod(2), node.pod(3));
    let agent = Agent::start(&node, &[prefill("p0", one.address), decode("d0", other.address)]);
    let address = one.address;
    let refused = other.netns.run(move || std::net::TcpStream::connect((address, ENGINE)));
    assert!(refused.is_err());
    let loads = agent.until("a failure", |loads| pair(loads, "d0", "p0", "engine")["failed"] == 1);
    let counted = pair(&loads, "d0", "p0", "engine");
    assert_eq!((&counted["opened"], &counted["established"]), (&1.into(), &0.into()));
    assert_eq!(counted["open"], 0);
}

#[test]
fn connections_older_than_the_agent_are_open_until_they_end() {
    let node = Node::new(Topology::Routed);
    let one = node.pod(2);
    let listener = listen(&one.netns, one.address, ENGINE);
    let mut old: Vec<_> = (0..5).map(|_| joined(&node.outside, &listener)).collect();
    let agent = Agent::start(&node, &[prefill("p0", one.address)]);
    let open = |loads: &serde_json::Value| pair(loads, "p0", "", "engine")["open"].as_u64();
    let loads = agent.until("existing connections", |loads| open(loads) == Some(5));
    assert_eq!(pair(&loads, "p0", "", "engine")["opened"], 0);
    let new = connect(&node.outside, one.address, ENGINE);
    agent.until("a new one beside them", |loads| open(loads) == Some(6));
    old.truncate(2);
    agent.until("three of them ended", |loads| open(loads) == Some(3));
    drop((old, new, listener));
    agent.until("all ended", |loads| open(loads) == Some(0));
}

/// A listener on `::` has sockets of IPv6 whose addresses are mapped ones.
#[test]
fn a_listener_of_both_families_counts_a_client_of_either() {
    let node = Node::new(Topology::Routed);
    let one = node.pod(2);
    let agent = Agent::start(&node, &[prefill("p0", one.address)]);
    let listener = listen(&one.netns, std::net::Ipv6Addr::UNSPECIFIED.into(), ENGINE);
    let client = connect(&node.outside, one.address, ENGINE);
    let server = router_tests::traffic::accept(&listener);
    assert!(server.peer_addr().expect("an address").is_ipv6(), "the socket is no mapped one");
    let sending = (send(&client, UP), send(&server, DOWN));
    assert_eq!(receive(&server, UP), sending.0.join().expect("the other thread"));
    assert_eq!(receive(&client, DOWN), sending.1.join().expect("the other thread"));
    drop((client, server));
    let loads = agent.until("closed", |loads| pair(loads, "p0", "", "engine")["closed"] == 1);
    let counted = pair(&loads, "p0", "", "engine");
    assert_eq!((&counted["tx_bytes"], &counted["rx_bytes"]), (&DOWN.into(), &UP.into()));
}
