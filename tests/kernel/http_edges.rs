//! Requests that begin in unusual ways, and ends that no packet shows.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use netns::{Namespace, Node, Topology};
use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrIn, bind, connect, sendto, setsockopt,
    socket, sockopt,
};
use pd_router::agent::bpf::maps::Maps;
use router_common::flow::FlowKey;
use router_common::http::HttpStream;
use router_common::maps::STREAMS;
use router_tests::agent::{Agent, count, pod};
use router_tests::node_manifests::{ENGINE, prefill};
use router_tests::traffic::{accept, joined, listen};

use crate::requests::pass;
use crate::tcp_option::set_tcp_option;

const GET: &[u8] = b"GET /health HTTP/1.1\r\nhost: e\r\n\r\n";
const SIZED: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood";

/// Waits until the pod's requests have all ended, and returns how many began, ended, and were cut short.
fn ended(agent: &Agent<'_>, finished: u64) -> [u64; 3] {
    agent.until("all over", |loads| {
        let p0 = pod(loads, "p0");
        count(&p0["finished"]) >= finished && p0["in_flight"] == 0 && p0["waiting"] == 0
    });
    let loads = agent.read_again();
    ["started", "finished", "aborted"].map(|name| count(&pod(&loads, "p0")[name]))
}

#[test]
fn requests_cut_anywhere_and_after_empty_lines_count() {
    let node = Node::new(Topology::Routed);
    let one = node.pod(2);
    let agent = Agent::start(&node, &[prefill("p0", one.address)]);
    let listener = listen(&one.netns, one.address, ENGINE);
    let bytes: Vec<&[u8]> = GET.chunks(1).collect();
    let cases: [&[&[u8]]; 6] = [
        &[b"GET", b" /health HTTP/1.1\r\n\r\n"],
        &[b"G", b"E", b"T /health HTTP/1.1\r\n\r\n"],
        &bytes,
        &[b"\r\nGET /health HTTP/1.1\r\n\r\n"],
        &[b"\r\n", b"GET /health HTTP/1.1\r\n\r\n"],
        &[b"PROPFIND / HTTP/1.1\r\n\r\n"],
    ];
    for segments in cases {
        let (client, server) = joined(&node.outside, &listener);
        segments.iter().for_each(|segment| pass(&client, &server, segment));
        pass(&server, &client, SIZED);
        // The connection's next request counts too.
        pass(&client, &server, GET);
        pass(&server, &client, SIZED);
    }
    let all = 2 * cases.len() as u64;
    assert_eq!(ended(&agent, all), [all, all, 0]);
    assert_eq!(count(&pod(&agent.loads(), "p0")["ttft"]["samples"]), all);
}

#[test]
fn pipelined_requests_and_long_heads_count() {
    let node = Node::new(Topology::Routed);
    let one = node.pod(2);
    let agent = Agent::start(&node, &[prefill("p0", one.address)]);
    let listener = listen(&one.netns, one.address, ENGINE);
    let (client, server) = joined(&node.outside, &listener);
    pass(&client, &server, &GET.repeat(3));
    (0..3).for_each(|_| pass(&server, &client, SIZED));
    let long = format!(
        "HTTP/1.1 200 OK\r\nx: {}\r\nTransfer-Encoding:chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "y".repeat(1_200)
    );
    pass(&client, &server, GET);
    pass(&server, &client, long.as_bytes());
    assert_eq!(ended(&agent, 4), [4, 4, 0]);
}

/// Serves one request on each of `clients` connections.
fn serve(listener: TcpListener, clients: u64) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        for _ in 0..clients {
            let mut stream = accept(&listener);
            stream.read_exact(&mut [0; GET.len()]).expect("a request");
            stream.write_all(SIZED).expect("a response");
        }
    })
}

fn read_answer(mut stream: &TcpStream) {
    stream.read_exact(&mut [0; SIZED.len()]).expect("a response");
}

fn tcp_socket() -> OwnedFd {
    socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None).expect("a socket")
}

/// How often a namespace's TCP accepted the data of a SYN.
fn fast_opened(netns: &Namespace) -> u64 {
    let shown = netns.sh("cat /proc/self/net/netstat");
    let mut lines = shown.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let mut pairs = names.split(' ').zip(values.split(' '));
    let found = pairs.find(|(name, _)| *name == "TCPFastOpenPassive").expect("the counter");
    found.1.parse().expect("a number")
}

#[test]
fn data_that_comes_before_its_socket_counts() {
    const CLIENTS: u64 = 10;
    const TCP_DEFER_ACCEPT: i32 = 9;
    let node = Node::new(Topology::Routed);
    let one = node.pod(2);
    let agent = Agent::start(&node, &[prefill("p0", one.address)]);
    // Fast Open for clients and servers, without cookies.
    for netns in [&one.netns, &node.outside] {
        netns.sh("echo 519 > /proc/sys/net/ipv4/tcp_fastopen");
    }
    let std::net::IpAddr::V4(address) = one.address else { panic!("an IPv4 address") };
    let listener = listen(&one.netns, one.address, ENGINE);
    set_tcp_option(&listener, libc::TCP_FASTOPEN, [64]);
    let served = serve(listener, CLIENTS);
    for _ in 0..CLIENTS {
        let stream = node.outside.run(move || {
            let stream = tcp_socket();
            let to = SockaddrIn::from(SocketAddrV4::new(address, ENGINE));
            let flags = MsgFlags::from_bits_retain(libc::MSG_FASTOPEN);
            let sent = sendto(stream.as_raw_fd(), GET, &to, flags).expect("sending");
            assert_eq!(sent, GET.len());
            TcpStream::from(stream)
        });
        read_answer(&stream);
    }
    served.join().expect("the engine");
    assert_eq!(fast_opened(&one.netns), CLIENTS);
    assert_eq!(ended(&agent, CLIENTS), [CLIENTS, CLIENTS, 0]);
    // The handshake's last acknowledgement is ignored: the socket exists with the first data.
    let listener = listen(&one.netns, one.address, ENGINE);
    set_tcp_option(&listener, TCP_DEFER_ACCEPT, [5]);
    let served = serve(listener, CLIENTS);
    for _ in 0..CLIENTS {
        let mut stream = node.outside.run(move || TcpStream::connect((address, ENGINE)));
        let stream = stream.as_mut().expect("connecting");
        stream.write_all(GET).expect("asking");
        read_answer(stream);
    }
    served.join().expect("the engine");
    let all = 2 * CLIENTS;
    assert_eq!(ended(&agent, all), [all, all, 0]);
    assert_eq!(count(&pod(&agent.loads(), "p0")["ttft"]["samples"]), all);
}

/// Connects from a port. With `alone` the other side does not learn of it: the socket is set up as a
/// checkpointed one is restored.
fn connect_from(port: u16, to: SocketAddrV4, alone: bool) -> TcpStream {
    const TCP_REPAIR_WINDOW: i32 = 29;
    const OFF_WITHOUT_PROBE: i32 = -1;
    let stream = tcp_socket();
    setsockopt(&stream, sockopt::ReuseAddr, &true).expect("an option");
    bind(stream.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port)))
        .expect("the port");
    if alone {
        set_tcp_option(&stream, libc::TCP_REPAIR, [1]);
    }
    connect(stream.as_raw_fd(), &SockaddrIn::from(to)).expect("connecting");
    if alone {
        // Sequence number, window and largest window of the other side; window and number of this side.
        set_tcp_option(&stream, TCP_REPAIR_WINDOW, [0, 60_000, 60_000, 60_000, 0]);
        set_tcp_option(&stream, libc::TCP_REPAIR, [OFF_WITHOUT_PROBE]);
    }
    TcpStream::from(stream)
}

/// A listener also gets data of connections that it does not know: those of the engine before it.
#[test]
fn data_of_an_unknown_connection_is_no_request_of_the_next_one() {
    const PORT: u16 = 40_123;
    let node = Node::new(Topology::Routed);
    let one = node.pod(2);
    let agent = Agent::start(&node, &[prefill("p0", one.address)]);
    let std::net::IpAddr::V4(address) = one.address else { panic!("an IPv4 address") };
    let to = SocketAddrV4::new(address, ENGINE);
    let listener = listen(&one.netns, one.address, ENGINE);
    let mut unknown = node.outside.run(move || connect_from(PORT, to, true));
    unknown.write_all(GET).expect("asking");
    let refused = unknown.read(&mut [0]).expect_err("no connection");
    assert_eq!(refused.kind(), ErrorKind::ConnectionReset);
    drop(unknown);
    // The next connection from this port sends no request, and another one does.
    let client = node.outside.run(move || connect_from(PORT, to, false));
    let server = accept(&listener);
    pass(&client, &server, b"no request\r\n\r\n");
    pass(&server, &client, b"no response\r\n\r\n");
    let (client, server) = joined(&node.outside, &listener);
    pass(&client, &server, GET);
    pass(&server, &client, SIZED);
    let loads = agent.until("the request", |loads| count(&pod(loads, "p0")["finished"]) > 0);
    let p0 = pod(&loads, "p0");
    assert_eq!(["started", "waiting", "aborted"].map(|name| count(&p0[name])), [1, 0, 0]);
}

#[test]
fn a_response_for_which_the_map_has_no_space_is_reported_once_and_counted() {
    let node = Node::new(Topology::Routed);
    let one = node.pod(2);
    let agent = Agent::start(&node, &[prefill("p0", one.address)]);
    node.netns.run(|| {
        let maps = Maps::open(Path::new("/sys/fs/bpf/pd-router")).expect("the agent's maps");
        for number in 0..STREAMS as u32 {
            let mut key =
                FlowKey { local: [0; 16], remote: [0; 16], local_port: 0, remote_port: 0 };
            key.remote[..4].copy_from_slice(&number.to_ne_bytes());
            maps.streams.set(&key, &HttpStream::default()).expect("space");
        }
    });
    let listener = listen(&one.netns, one.address, ENGINE);
    let (client, server) = joined(&node.outside, &listener);
    pass(&client, &server, GET);
    // Its end is not known, so that every segment is one for the map.
    pass(&server, &client, b"HTTP/1.1 200 OK\r\n\r\nsome");
    (0..3).for_each(|_| pass(&server, &client, b"more"));
    let loads = agent.until("reported", |loads| count(&loads["lost"]["streams"]) > 0);
    assert_eq!(pod(&loads, "p0")["in_flight"], 1);
    drop((client, server));
    assert_eq!(ended(&agent, 1), [1, 1, 0]);
    assert_eq!(agent.loads()["lost"]["streams"], 1);
}

#[test]
fn a_socket_that_closes_without_a_packet_ends_its_request() {
    let node = Node::new(Topology::Routed);
    let one = node.pod(2);
    let agent = Agent::start(&node, &[prefill("p0", one.address)]);
    let listener = listen(&one.netns, one.address, ENGINE);
    // The second response has no known end.
    let heads: [&[u8]; 2] = [b"", b"HTTP/1.1 200 OK\r\n\r\nsome"];
    let open: Vec<_> = heads
        .map(|head| {
            let (client, server) = joined(&node.outside, &listener);
            pass(&client, &server, GET);
            if !head.is_empty() {
                pass(&server, &client, head);
            }
            // The engine waits for an acknowledgement that cannot come.
            set_tcp_option(&server, libc::TCP_USER_TIMEOUT, [1_000]);
            (client, server)
        })
        .into();
    agent.until("in flight", |loads| pod(loads, "p0")["in_flight"] == 2);
    one.netns.sh("ip link set eth0 down; ip link set lo down");
    for (_, server) in &open {
        (&mut &*server).write_all(b"more").expect("into the buffer");
    }
    assert_eq!(ended(&agent, 2), [2, 2, 2]);
    agent.until("unlisted", |loads| loads["streams"] == 0);
    open.iter().for_each(|(client, _)| _ = client.shutdown(Shutdown::Both));
}
