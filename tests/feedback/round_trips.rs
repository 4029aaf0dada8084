//! Round trips that sockets measure, not smoothed ones: a change shows at once.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use router_tests::site::{Site, TOKEN, ask, enter, wait};
use serde_json::Value;

const DELAY: Duration = Duration::from_millis(60);
const EXCHANGES: usize = 8;

/// The mean round trip of the pod's connection to the machine outside, in microseconds.
fn round_trip(site: &Site) -> Option<u64> {
    let (outside, agent) = (site.node.outside.path(), site.agent_address());
    let asked = std::thread::spawn(move || {
        enter(&outside);
        let request = format!(
            "GET /v1/loads HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {TOKEN}\r\n\
             connection: close\r\n\r\n"
        );
        ask(agent, request.as_bytes()).ok()
    });
    let (_, body) = asked.join().ok()??;
    let loads: Value = serde_json::from_str(&body).ok()?;
    let mut pairs = loads["pairs"].as_array()?.iter();
    let pair = pairs.find(|pair| pair["class"] == "other" && pair["closed"] == 1)?;
    pair["rtt_us"].as_u64()
}

#[test]
fn a_path_that_becomes_slow_has_long_round_trips_at_once() {
    let mut site = Site::new();
    site.engine("prefill", true, "");
    site.agent("");
    wait("the agent answers", || {
        let (outside, agent) = (site.node.outside.path(), site.agent_address());
        let tried = std::thread::spawn(move || {
            enter(&outside);
            TcpStream::connect(agent).is_ok()
        });
        tried.join().ok()?.then_some(())
    });
    let IpAddr::V4(peer) = site.node.ip(250, 2) else { panic!("IPv4") };
    let at = SocketAddr::new(peer.into(), 7_000);
    let listener = site.node.outside.run(move || TcpListener::bind(at).expect("binding"));
    let engine = &site.engines[0];
    let trouble = engine.impairment.clone().expect("a wired pod");
    let mut client = engine.pod.netns.run(move || TcpStream::connect(at).expect("connecting"));
    let (mut server, _) = listener.accept().expect("accepting");
    client.set_nodelay(true).expect("a socket");
    server.set_nodelay(true).expect("a socket");
    // The connection was made while the way was fast.
    trouble.between(peer, DELAY, 0);
    let start = Instant::now();
    for _ in 0..EXCHANGES {
        let mut byte = [0];
        client.write_all(b"x").expect("sending");
        server.read_exact(&mut byte).expect("receiving");
        server.write_all(&byte).expect("sending");
        client.read_exact(&mut byte).expect("receiving");
    }
    let took = start.elapsed();
    drop((client, server));
    let mean = wait("the connection is counted", || round_trip(&site));
    // Both ways are late. A smoothed round trip nears that only after many samples: its mean is less
    // than half. A busy machine makes an exchange longer, which the test measures itself.
    let slow_us = 2 * u64::try_from(DELAY.as_micros()).expect("a short time");
    let exchange_us = u64::try_from(took.as_micros()).expect("a short time") / EXCHANGES as u64;
    let expected = slow_us * 3 / 4..slow_us.max(exchange_us) * 2;
    assert!(expected.contains(&mean), "{mean} us is not in {expected:?}");
}
