//! Packets of every shape, run through the programs one by one (BPF_PROG_TEST_RUN): what is counted,
//! and that every packet passes.

use std::path::Path;

use netns::Namespace;
use pd_router::agent::bpf::maps::Maps;
use pd_router::agent::bpf::programs::{Hook, Programs};
use pd_router::agent::flags::TcMode;
use router_common::flow::{
    POD_BY_INTERFACE, POD_LOCAL, Pod, PodAddress, PodHttp, PodTraffic, QueuePairStats, Uplink,
    mapped,
};

use crate::frames::{
    CLIENT, CLIENT6, ENGINE, ENGINE6, ethernet, roce, tcp, transport, udp, v4, v6, vlan,
};

const PINS: &str = "/sys/fs/bpf/table";
const POD: u32 = 1;
const XDP: &str = "pd_xdp";
/// The interface on which a test run's packets are: loopback.
const LOOPBACK: u32 = 1;
const NEXT: i32 = -1;
const XDP_PASS: i32 = 2;
const EINVAL: i32 = nix::errno::Errno::EINVAL as i32;

/// The programs with maps of their own that know one pod, at an IPv4 and an IPv6 address.
pub(crate) struct Table {
    maps: Maps,
    programs: Programs,
}

impl Table {
    fn load() -> Table {
        let object = std::env::var("PD_ROUTER_EBPF_OBJECT");
        let object = object.expect("PD_ROUTER_EBPF_OBJECT: run `cargo xtask test kernel`");
        let object = std::fs::read(object).expect("the object");
        let (programs, refused) =
            Programs::load(&object, Path::new(PINS), TcMode::Auto).expect("loading");
        assert!(refused.is_empty(), "{refused:?}");
        let maps = Maps::open(Path::new(PINS)).expect("the maps");
        for address in [mapped(ENGINE), ENGINE6] {
            let pod = Pod {
                id: POD,
                flags: POD_LOCAL | POD_BY_INTERFACE,
                ifindex: LOOPBACK,
                http_ports: [8000, 0, 0, 0],
                ..Pod::default()
            };
            maps.pods.set(&PodAddress { address, port: 0, reserved: 0 }, &pod).expect("a pod");
        }
        Table { maps, programs }
    }

    fn run(&self, program: &str, packet: &[u8]) -> std::io::Result<i32> {
        self.programs.test_run(program, packet, 1).map(|(verdict, _)| verdict)
    }

    /// What the packet adds to the pod's traffic when it is on its way to the pod.
    fn to_pod(&self, packet: &[u8]) -> PodTraffic {
        self.maps.pod_traffic.clear(&POD).expect("clearing");
        assert_eq!(self.run(Hook::PodEgress.program(), packet).expect("a run"), NEXT);
        self.traffic()
    }

    fn traffic(&self) -> PodTraffic {
        let cpus = self.maps.pod_traffic.get(&POD).expect("reading").expect("an entry");
        cpus.iter().copied().sum()
    }

    /// Packets so far whose headers could not be parsed.
    fn unreadable(&self) -> u64 {
        self.maps.losses.get(&0).expect("reading").expect("one").unreadable
    }

    fn http(&self) -> PodHttp {
        self.maps.pod_http.get(&POD).expect("reading").expect("an entry")
    }

    /// What is counted of RoCEv2 after `packet` alone came over XDP.
    fn roce(&self, packet: &[u8]) -> Option<QueuePairStats> {
        self.forget_roce();
        self.comes(packet)
    }

    pub(crate) fn forget_roce(&self) {
        for (key, _) in self.maps.queue_pairs.all(100).expect("reading") {
            self.maps.queue_pairs.remove(&key).expect("removing");
            self.maps.sequences.remove(&key).expect("removing");
        }
    }

    /// What is counted of RoCEv2 once `packet` came over XDP as well.
    pub(crate) fn comes(&self, packet: &[u8]) -> Option<QueuePairStats> {
        assert_eq!(self.run(XDP, packet).expect("a run"), XDP_PASS);
        let found = self.maps.queue_pairs.all(100).expect("reading");
        assert!(found.len() <= 1);
        found.first().map(|(key, stats)| {
            let ends = (key.source, key.destination);
            assert!(ends == (mapped(CLIENT), mapped(ENGINE)) || ends == (CLIENT6, ENGINE6));
            assert_eq!(key.queue_pair, 0x12_3456);
            *stats
        })
    }
}

/// Runs `test` with the programs, in a namespace with a bpf file system of its own.
pub(crate) fn with_programs(test: impl FnOnce(&Table) + Send + 'static) {
    Namespace::node().run(move || test(&Table::load()));
}

/// Older kernels go through more than this one, and end at a million.
#[test]
fn the_verifier_is_far_from_its_limit() {
    const FAR: u32 = 220_000;
    with_programs(|table| {
        let verified = table.programs.verified().expect("loaded programs");
        eprintln!("{verified:?}");
        assert!(matches!(verified.len(), 0 | 10), "{verified:?}");
        let beyond: Vec<_> = verified.iter().filter(|(_, count)| *count > FAR).collect();
        assert!(beyond.is_empty(), "{beyond:?}");
    });
}

/// Shapes with the TCP payload that each carries to the pod.
fn shapes() -> Vec<(&'static str, Vec<u8>, u64)> {
    let plain = tcp(1, 16, &[], b"hello");
    let timed = tcp(1, 16, &[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2], b"hello world");
    let in_v4 = |rest: &[u8]| ethernet(0x800, &v4(6, 0, &[], rest));
    let in_v6 = |next, rest: &[u8]| ethernet(0x86dd, &v6(next, rest));
    // Next header, length in 8 bytes beyond the first 8, then options.
    let extended = |next: u8, rest: &[u8]| [&[next, 0, 1, 4, 0, 0, 0, 0][..], rest].concat();
    let fragment = |next: u8, offset: u16, rest: &[u8]| {
        [&[next, 0][..], &offset.to_be_bytes(), &[0, 0, 0, 7], rest].concat()
    };
    let authenticated = |next: u8, rest: &[u8]| [&[next, 4][..], &[0; 22], rest].concat();
    let mut padded = in_v4(&tcp(1, 16, &[], b""));
    padded.extend([0; 6]);
    vec![
        ("v4", in_v4(&plain), 5),
        ("v4, TCP options", in_v4(&timed), 11),
        ("v4, Ethernet padding is no payload", padded, 0),
        ("v4, IP options", ethernet(0x800, &v4(6, 0, &[1, 1, 1, 0], &plain)), 5),
        ("v4, most IP options", ethernet(0x800, &v4(6, 0, &[1; 40], &plain)), 5),
        ("v4, first fragment", ethernet(0x800, &v4(6, 0x2000, &[], &plain)), 5),
        ("v4, later fragment", ethernet(0x800, &v4(6, 0x2003, &[], &plain)), 0),
        ("v4, VLAN", vlan(0x8100, &in_v4(&plain)), 5),
        ("v4, two VLANs", vlan(0x88a8, &vlan(0x8100, &in_v4(&plain))), 5),
        ("v4, UDP", ethernet(0x800, &v4(17, 0, &[], &udp(53, b"query"))), 0),
        ("v6", in_v6(6, &plain), 5),
        ("v6, VLAN", vlan(0x8100, &in_v6(6, &timed)), 11),
        ("v6, hop by hop", in_v6(0, &extended(6, &plain)), 5),
        ("v6, hop by hop, routing", in_v6(0, &extended(43, &extended(6, &plain))), 5),
        ("v6, destination", in_v6(60, &extended(6, &plain)), 5),
        ("v6, first fragment", in_v6(44, &fragment(6, 1, &plain)), 5),
        ("v6, later fragment", in_v6(44, &fragment(6, 9, &plain)), 0),
        ("v6, authentication", in_v6(51, &authenticated(6, &plain)), 5),
        ("v6, no next header", in_v6(59, b""), 0),
    ]
}

#[test]
fn every_shape_of_header_counts_its_packet_and_its_payload() {
    with_programs(|table| {
        for (shape, packet, payload) in shapes() {
            let counted = table.to_pod(&packet);
            assert_eq!((counted.rx_packets, counted.rx_payload), (1, payload), "{shape}");
            let over = table.traffic().uplink_packets;
            assert_eq!(over, 0, "{shape} came over no uplink");
            assert_eq!(table.run(XDP, &packet).expect("a run"), XDP_PASS);
            assert_eq!(table.traffic().uplink_packets, 1, "{shape} by XDP");
        }
        // Packets of no pod.
        let mut elsewhere = ethernet(0x800, &v4(6, 0, &[], &tcp(1, 16, &[], b"hello")));
        elsewhere[14 + 19] += 1;
        for packet in [ethernet(0x806, &[0; 46]), elsewhere] {
            assert_eq!(table.to_pod(&packet), PodTraffic::default());
        }
        assert_eq!(table.unreadable(), 0);
    });
}

#[test]
fn packets_with_unreadable_headers_are_counted_as_such_and_pass() {
    with_programs(|table| {
        let plain = tcp(1, 16, &[], b"hello");
        let in_v4 = ethernet(0x800, &v4(6, 0, &[], &plain));
        let (mut version, mut short) = (in_v4.clone(), in_v4.clone());
        version[14] = 0x55;
        short[14] = 0x44;
        let seven = (0..7).fold((6, plain), |(next, rest), _| {
            (60, [&[next, 0, 1, 4, 0, 0, 0, 0][..], &rest].concat())
        });
        for (number, packet) in [
            version,
            short,
            vlan(0x88a8, &vlan(0x8100, &vlan(0x8100, &in_v4))),
            ethernet(0x86dd, &v6(seven.0, &seven.1)),
        ]
        .iter()
        .enumerate()
        {
            assert_eq!(table.to_pod(packet).rx_payload, 0);
            assert_eq!(table.unreadable(), number as u64 + 1);
        }
        table.to_pod(&in_v4);
        table.to_pod(&ethernet(0x806, &[0; 46]));
        assert_eq!(table.unreadable(), 4);
    });
}

#[test]
fn packets_cut_off_at_any_byte_pass() {
    with_programs(|table| {
        let mut runs = 0;
        for (shape, packet, _) in shapes() {
            for length in 14..packet.len() {
                let cut = &packet[..length];
                let tc = [Hook::PodEgress, Hook::PodIngress, Hook::LinkIngress];
                let tc = tc.map(|hook| (hook.program(), NEXT));
                for (program, verdict) in tc.into_iter().chain([(XDP, XDP_PASS)]) {
                    match table.run(program, cut) {
                        Ok(result) => assert_eq!(result, verdict, "{shape} cut at {length}"),
                        // The kernel itself wants a whole IP header for tc.
                        Err(error) if error.raw_os_error() == Some(EINVAL) => continue,
                        Err(error) => panic!("{shape} cut at {length}: {error}"),
                    }
                    runs += 1;
                }
            }
        }
        assert!(runs > 3_000, "{runs} runs");
    });
}

#[test]
fn tc_does_not_count_uplink_packets_that_xdp_counts() {
    with_programs(|table| {
        let packet = ethernet(0x800, &v4(6, 0, &[], &tcp(1, 16, &[], b"hello")));
        let arrive = || {
            let verdict = table.run(Hook::LinkIngress.program(), &packet).expect("a run");
            assert_eq!(verdict, NEXT);
            table.traffic()
        };
        assert_eq!(arrive().uplink_packets, 1);
        table.maps.uplinks.set(&LOOPBACK, &Uplink { xdp: 1 }).expect("an uplink");
        let counted = arrive();
        // The pod is carried by this interface: its own count goes on.
        assert_eq!((counted.uplink_packets, counted.rx_packets), (1, 2));
    });
}

const SYN: u8 = 2;
const ACK: u8 = 16;
const REQUEST: &[u8] = b"POST / HTTP/1.1\r\n\r\n";

fn segment(sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    ethernet(0x800, &v4(6, 0, &[], &tcp(sequence, flags, &[], payload)))
}

#[test]
fn a_request_counts_in_the_kernel_as_it_does_in_the_model() {
    with_programs(|table| {
        table.to_pod(&segment(100, SYN, b""));
        table.to_pod(&segment(101, ACK, REQUEST));
        table.to_pod(&segment(101, ACK, REQUEST));
        table.to_pod(&segment(101 + REQUEST.len() as u32, ACK, REQUEST));
        let http = table.http();
        assert_eq!((http.started, http.in_flight(), http.waiting()), (1, 1, 1));
        table.to_pod(&segment(101, 4, b""));
        let http = table.http();
        assert_eq!((http.aborted, http.in_flight(), http.waiting()), (1, 0, 0));
        assert!(table.maps.streams.all(10).expect("reading").is_empty());
    });
}

/// A client uses its port again, after an end that no packet showed.
#[test]
fn a_connection_between_the_same_ports_ends_the_one_before() {
    with_programs(|table| {
        table.to_pod(&segment(100, SYN, b""));
        table.to_pod(&segment(101, ACK, REQUEST));
        // Sent again it is the same connection.
        table.to_pod(&segment(100, SYN, b""));
        let http = table.http();
        assert_eq!((http.started, http.aborted, http.waiting()), (1, 0, 1));
        table.to_pod(&segment(70_000, SYN, b""));
        let http = table.http();
        assert_eq!((http.started, http.aborted, http.finished), (1, 1, 1));
        assert_eq!((http.waiting(), http.waiting_bytes()), (0, 0));
        table.to_pod(&segment(101, ACK, REQUEST));
        assert_eq!(table.http().started, 1, "what is left of the one before");
        table.to_pod(&segment(70_001, ACK, REQUEST));
        let http = table.http();
        assert_eq!((http.started, http.in_flight(), http.waiting()), (2, 1, 1));
        assert_eq!(table.maps.streams.all(10).expect("reading").len(), 1);
    });
}

#[test]
fn rocev2_is_counted_as_the_ibta_lays_it_out() {
    with_programs(|table| {
        let mut reth = [0; 16];
        reth[12..].copy_from_slice(&65_536u32.to_be_bytes());
        let count = |packets, payload_bytes, messages, writes, write_bytes, reads, read_bytes| {
            QueuePairStats {
                packets,
                repeated: 0,
                payload_bytes,
                messages,
                writes,
                write_bytes,
                reads,
                read_bytes,
            }
        };
        for (what, packet, wanted) in [
            ("SEND first", roce(0, &[], 1024), count(1, 1024, 0, 0, 0, 0, 0)),
            ("SEND middle", roce(1, &[], 1024), count(1, 1024, 0, 0, 0, 0, 0)),
            ("SEND last", roce(2, &[], 13), count(1, 13, 1, 0, 0, 0, 0)),
            ("SEND only", roce(4, &[], 64), count(1, 64, 1, 0, 0, 0, 0)),
            ("SEND only, immediate", roce(5, &[0; 4], 64), count(1, 64, 1, 0, 0, 0, 0)),
            ("WRITE first", roce(6, &reth, 1024), count(1, 1024, 0, 1, 65_536, 0, 0)),
            ("WRITE middle", roce(7, &[], 1024), count(1, 1024, 0, 0, 0, 0, 0)),
            ("WRITE last", roce(8, &[], 1), count(1, 1, 1, 0, 0, 0, 0)),
            ("WRITE last, immediate", roce(9, &[0; 4], 2), count(1, 2, 1, 0, 0, 0, 0)),
            ("WRITE only", roce(10, &reth, 512), count(1, 512, 1, 1, 65_536, 0, 0)),
            ("READ request", roce(12, &reth, 0), count(1, 0, 0, 0, 0, 1, 65_536)),
            ("READ response first", roce(13, &[0; 4], 1024), count(1, 1024, 0, 0, 0, 0, 0)),
            ("READ response middle", roce(14, &[], 1024), count(1, 1024, 0, 0, 0, 0, 0)),
            ("READ response last", roce(15, &[0; 4], 8), count(1, 8, 1, 0, 0, 0, 0)),
            ("READ response only", roce(16, &[0; 4], 8), count(1, 8, 1, 0, 0, 0, 0)),
            ("ACK", roce(17, &[0; 4], 0), count(1, 0, 0, 0, 0, 0, 0)),
            ("UC WRITE only", roce(0x2a, &reth, 512), count(1, 512, 1, 1, 65_536, 0, 0)),
            ("UD SEND only", roce(0x64, &[0; 8], 64), count(1, 0, 0, 0, 0, 0, 0)),
            ("congestion notice", roce(0x81, &[], 16), count(1, 0, 0, 0, 0, 0, 0)),
        ] {
            assert_eq!(table.roce(&packet), Some(wanted), "{what}");
            for length in 14..packet.len() {
                let run = table.run(XDP, &packet[..length]);
                assert_eq!(run.expect("a run"), XDP_PASS, "{what} cut at {length}");
            }
        }
        let other = ethernet(0x800, &v4(17, 0, &[], &udp(4790, &[0; 64])));
        assert_eq!(table.roce(&other), None);
        let datagram = udp(4791, &transport(10, &reth, 512));
        for (what, packet) in [
            ("VLAN", vlan(0x8100, &roce(10, &reth, 512))),
            ("IP options", ethernet(0x800, &v4(17, 0, &[1; 8], &datagram))),
            ("IPv6", ethernet(0x86dd, &v6(17, &datagram))),
            ("IPv6, VLAN", vlan(0x8100, &ethernet(0x86dd, &v6(17, &datagram)))),
        ] {
            assert_eq!(table.roce(&packet), Some(count(1, 512, 1, 1, 65_536, 0, 0)), "{what}");
        }
    });
}
