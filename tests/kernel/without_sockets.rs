//! A pod without sockets on the node, as a virtual machine is: its requests are counted on its interface,
//! until it has a socket.
#![expect(unsafe_code, reason = "the address of a packet socket")]

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;

use netns::{Namespace, Node, Topology};
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use router_tests::agent::{Agent, count, pod};
use router_tests::node_manifests::{ENGINE, prefill};
use router_tests::traffic::{joined, listen};

use crate::frames::{ethernet, tcp, v4};
use crate::requests::pass;

const GET: &[u8] = b"GET /health HTTP/1.1\r\nhost: e\r\n\r\n";
const SIZED: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood";

/// Sends a frame on `eth0` past every TCP socket, as a virtual machine does.
fn send_frame(netns: &Namespace, frame: Vec<u8>) {
    netns.run(move || {
        let interface = nix::net::if_::if_nametoindex("eth0").expect("the interface");
        let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), None);
        let socket = socket.expect("a packet socket");
        let to = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: 0x800u16.to_be(),
            sll_ifindex: interface.cast_signed(),
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 6,
            sll_addr: [0xff; 8],
        };
        // SAFETY: both pointers are of live values, with their lengths.
        let sent = unsafe {
            libc::sendto(
                socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const to).cast(),
                size_of_val(&to) as libc::socklen_t,
            )
        };
        assert_eq!(sent, frame.len() as isize, "{}", std::io::Error::last_os_error());
    });
}

/// A TCP segment with payload in a frame, from one address to another.
fn segment(from: IpAddr, to: IpAddr) -> Vec<u8> {
    const ACKNOWLEDGES: u8 = 0x10;
    let octets = |address| match address {
        IpAddr::V4(address) => Ipv4Addr::octets(&address),
        IpAddr::V6(_) => panic!("an IPv4 address"),
    };
    let mut frame = ethernet(0x800, &v4(6, 0, &[], &tcp(1, ACKNOWLEDGES, &[], b"some payload")));
    frame[26..30].copy_from_slice(&octets(from));
    frame[30..34].copy_from_slice(&octets(to));
    frame
}

#[test]
fn a_pod_is_counted_on_its_interface_until_it_has_a_socket() {
    let node = Node::new(Topology::Routed);
    let one = node.pod(2);
    let agent = Agent::start(&node, &[prefill("p0", one.address)]);
    let counted_at =
        |loads: &serde_json::Value, place: &str| pod(loads, "p0")["counted_at"] == place;
    assert!(counted_at(&agent.read_again(), "socket"));
    let frame = segment(one.address, node.addresses().1);
    agent.until("on its interface", |loads| {
        send_frame(&one.netns, frame.clone());
        counted_at(loads, "interface")
    });
    let listener = listen(&one.netns, one.address, ENGINE);
    let (client, server) = joined(&node.outside, &listener);
    let is_over = |loads: &serde_json::Value, requests: u64| {
        let p0 = pod(loads, "p0");
        (count(&p0["started"]), count(&p0["finished"])) == (requests, requests)
    };
    pass(&client, &server, GET);
    pass(&server, &client, SIZED);
    agent.until("counted on its interface", |loads| is_over(loads, 1));
    agent.until("at its sockets", |loads| counted_at(loads, "socket"));
    pass(&client, &server, GET);
    pass(&server, &client, SIZED);
    let loads = agent.until("counted at its socket", |loads| is_over(loads, 2));
    let p0 = pod(&loads, "p0");
    assert_eq!(["aborted", "reopened", "in_flight"].map(|name| count(&p0[name])), [0, 0, 0]);
}
