//! Parses answers of RDMA netlink: devices, ports, counters, queue pairs, connection identifiers.
//!
//! drivers/infiniband/core/nldev.c defines the attributes. A truncated or malformed answer yields
//! fewer entries, never a panic, and no list grows beyond the limits below.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::protocol::*;
use crate::agent::host::netlink_socket::{Message, attributes, messages, number, text};

/// Maximum number of entries taken from one answer.
pub(in crate::agent) const MAX_DEVICES: usize = 64;
pub(in crate::agent) const MAX_PORTS: usize = 16;
pub(in crate::agent) const MAX_COUNTERS: usize = 512;
pub(in crate::agent) const MAX_QUEUE_PAIRS: usize = 65_536;
pub(in crate::agent) const MAX_CONNECTION_IDS: usize = 65_536;

/// An RDMA device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::agent) struct DeviceInfo {
    pub(in crate::agent) index: u32,
    pub(in crate::agent) name: String,
    pub(in crate::agent) ports: u32,
    pub(in crate::agent) guid: u64,
    /// `ib`, `roce`, `iw`, `opa`, `usnic`; empty if the kernel does not report it.
    pub(in crate::agent) protocol: String,
}

/// One port of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::agent) struct PortInfo {
    pub(in crate::agent) number: u32,
    /// `enum ib_port_state`: 4 is active.
    pub(in crate::agent) state: u8,
    /// The index and name of the network interface, if it is in this network namespace.
    pub(in crate::agent) interface: Option<(u32, String)>,
}

/// A queue pair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::agent) struct QueuePair {
    pub(in crate::agent) number: u32,
    /// `enum ib_qp_type`.
    pub(in crate::agent) kind: u8,
    /// `enum ib_qp_state`.
    pub(in crate::agent) state: u8,
    /// Packet sequence numbers, which advance with traffic if the device reports them.
    pub(in crate::agent) send_sequence: u32,
    pub(in crate::agent) receive_sequence: u32,
    /// `None` for queue pairs of the kernel and of processes outside this PID namespace.
    pub(in crate::agent) pid: Option<u32>,
    pub(in crate::agent) is_kernel: bool,
}

/// A connection of the RDMA connection manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::agent) struct ConnectionId {
    pub(in crate::agent) queue_pair: Option<u32>,
    pub(in crate::agent) pid: Option<u32>,
    pub(in crate::agent) source: Option<SocketAddr>,
    pub(in crate::agent) destination: Option<SocketAddr>,
}

fn of(answer: &[u8], command: NldevCommand) -> impl Iterator<Item = Message<'_>> {
    // The kernel types the answer about one port as an answer about a device.
    let kinds = [command.kind(), NldevCommand::Devices.kind()];
    messages(answer).filter(move |message| kinds.contains(&message.kind))
}

/// The devices of a dump.
pub(in crate::agent) fn devices(answer: &[u8]) -> Vec<DeviceInfo> {
    of(answer, NldevCommand::Devices)
        .filter_map(|message| device(message.body))
        .take(MAX_DEVICES)
        .collect()
}

fn device(body: &[u8]) -> Option<DeviceInfo> {
    let mut device = DeviceInfo::default();
    let mut has_index = false;
    for (kind, value) in attributes(body) {
        match kind {
            DEV_INDEX => (device.index, has_index) = (number(value)?, true),
            DEV_NAME => device.name = text(value),
            PORT_INDEX => device.ports = number(value)?.min(MAX_PORTS as u32),
            NODE_GUID => device.guid = long(value)?,
            DEV_PROTOCOL => device.protocol = text(value),
            _ => {}
        }
    }
    (has_index && !device.name.is_empty()).then_some(device)
}

/// The ports of a device's dump.
pub(in crate::agent) fn ports(answer: &[u8]) -> Vec<PortInfo> {
    of(answer, NldevCommand::Ports)
        .filter_map(|message| port(message.body))
        .take(MAX_PORTS)
        .collect()
}

fn port(body: &[u8]) -> Option<PortInfo> {
    let mut port = PortInfo::default();
    let (mut index, mut name) = (None, None);
    for (kind, value) in attributes(body) {
        match kind {
            PORT_INDEX => port.number = number(value)?,
            PORT_STATE => port.state = *value.first()?,
            NDEV_INDEX => index = number(value),
            NDEV_NAME => name = Some(text(value)),
            _ => {}
        }
    }
    port.interface = index.zip(name);
    (port.number > 0).then_some(port)
}

/// A port's counters, by name.
pub(in crate::agent) fn counters(answer: &[u8]) -> Vec<(&str, u64)> {
    let tables =
        of(answer, NldevCommand::Counters).flat_map(|message| nested(message.body, HWCOUNTERS));
    let entries = tables.flat_map(|table| nested(table, HWCOUNTER_ENTRY));
    entries.filter_map(counter).take(MAX_COUNTERS).collect()
}

fn counter(entry: &[u8]) -> Option<(&str, u64)> {
    let (mut name, mut value) = (None, None);
    for (kind, bytes) in attributes(entry) {
        match kind {
            HWCOUNTER_NAME => name = std::str::from_utf8(bytes).ok(),
            HWCOUNTER_VALUE => value = long(bytes),
            _ => {}
        }
    }
    Some((name?.trim_end_matches('\0'), value?))
}

/// A device's queue pairs.
pub(in crate::agent) fn queue_pairs(answer: &[u8]) -> Vec<QueuePair> {
    let tables =
        of(answer, NldevCommand::QueuePairs).flat_map(|message| nested(message.body, RES_QP));
    let entries = tables.flat_map(|table| nested(table, RES_QP_ENTRY));
    entries.filter_map(queue_pair).take(MAX_QUEUE_PAIRS).collect()
}

fn queue_pair(entry: &[u8]) -> Option<QueuePair> {
    let mut pair = QueuePair::default();
    let mut has_state = false;
    for (kind, value) in attributes(entry) {
        match kind {
            RES_LQPN => pair.number = number(value)?,
            RES_TYPE => pair.kind = *value.first()?,
            RES_STATE => (pair.state, has_state) = (*value.first()?, true),
            RES_SQ_PSN => pair.send_sequence = number(value)?,
            RES_RQ_PSN => pair.receive_sequence = number(value)?,
            RES_PID => pair.pid = number(value).filter(|pid| *pid != 0),
            RES_KERN_NAME => pair.is_kernel = true,
            _ => {}
        }
    }
    has_state.then_some(pair)
}

/// A device's connections.
pub(in crate::agent) fn connection_ids(answer: &[u8]) -> Vec<ConnectionId> {
    let of_answer = of(answer, NldevCommand::ConnectionIds);
    let tables = of_answer.flat_map(|message| nested(message.body, RES_CM_ID));
    let entries = tables.flat_map(|table| nested(table, RES_CM_ID_ENTRY));
    entries.map(connection_id).take(MAX_CONNECTION_IDS).collect()
}

fn connection_id(entry: &[u8]) -> ConnectionId {
    let mut id = ConnectionId { queue_pair: None, pid: None, source: None, destination: None };
    for (kind, value) in attributes(entry) {
        match kind {
            RES_LQPN => id.queue_pair = number(value),
            RES_PID => id.pid = number(value).filter(|pid| *pid != 0),
            RES_SRC_ADDR => id.source = socket_address(value),
            RES_DST_ADDR => id.destination = socket_address(value),
            _ => {}
        }
    }
    id
}

/// The driver's name by `enum rdma_driver_id` (ib_user_ioctl_verbs.h).
pub(in crate::agent) fn driver(answer: &[u8]) -> Option<&'static str> {
    let message = of(answer, NldevCommand::Driver).next()?;
    let (_, value) = attributes(message.body).find(|(kind, _)| *kind == UVERBS_DRIVER_ID)?;
    // The kernel writes 32 bits, although the header documents 64.
    Some(match number(value)? {
        1 => "mlx5",
        2 => "mlx4",
        4 => "cxgb4",
        6 => "bnxt_re",
        9 => "irdma",
        11 => "qedr",
        12 => "hns",
        14 => "rxe",
        17 => "efa",
        18 => "siw",
        19 => "erdma",
        _ => return None,
    })
}

/// The values of the attributes of one kind.
fn nested(bytes: &[u8], wanted: u16) -> impl Iterator<Item = &[u8]> {
    attributes(bytes).filter(move |(kind, _)| *kind == wanted).map(|(_, value)| value)
}

fn long(value: &[u8]) -> Option<u64> {
    Some(u64::from_ne_bytes(value.get(..8)?.try_into().ok()?))
}

/// `struct sockaddr_in` or `sockaddr_in6` in a `sockaddr_storage`.
fn socket_address(bytes: &[u8]) -> Option<SocketAddr> {
    let family = i32::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
    let port = u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?);
    let address: IpAddr = match family {
        libc::AF_INET => {
            let octets: [u8; 4] = bytes.get(4..8)?.try_into().ok()?;
            Ipv4Addr::from(octets).into()
        }
        libc::AF_INET6 => {
            let octets: [u8; 16] = bytes.get(8..24)?.try_into().ok()?;
            Ipv6Addr::from(octets).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(address, port))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::agent::rdma::tests::golden::{self, Pair};

    fn all(answer: &[u8]) -> usize {
        let counts = [
            devices(answer).len(),
            ports(answer).len(),
            counters(answer).len(),
            queue_pairs(answer).len(),
            connection_ids(answer).len(),
            usize::from(driver(answer).is_some()),
        ];
        counts.into_iter().sum()
    }

    fn golden() -> Vec<Vec<u8>> {
        let pair = Pair { number: 17, kind: 2, state: 3, sent: 5, pid: 4_711 };
        let v4 = ("10.0.0.1:18515".parse().unwrap(), "10.0.0.2:40000".parse().unwrap());
        vec![
            golden::device(3, "erdma_0", 0x0216_3eff_fe00_0102, "iw"),
            golden::port(3, "erdma_0", (7, "eth0")),
            golden::counters(3, "erdma_0", &[("tx_bytes_cnt", 1 << 40), ("rx_bytes_cnt", 9)]),
            golden::queue_pairs(3, "erdma_0", &[pair, Pair { number: 18, pid: 0, ..pair }]),
            golden::connections(3, "erdma_0", &[(17, 4_711, v4.0, v4.1)]),
            golden::driver(19),
        ]
    }

    #[test]
    fn a_device_and_its_port_are_read() {
        let [found] = &devices(&golden()[0])[..] else { panic!("one device") };
        assert_eq!((found.index, &*found.name, found.ports), (3, "erdma_0", 1));
        assert_eq!((found.guid, &*found.protocol), (0x0216_3eff_fe00_0102, "iw"));
        let [port] = &ports(&golden()[1])[..] else { panic!("one port") };
        assert_eq!((port.number, port.state), (1, 4));
        assert_eq!(port.interface, Some((7, "eth0".to_owned())));
        assert_eq!(driver(&golden()[5]), Some("erdma"));
        assert_eq!(driver(&golden::driver(14)), Some("rxe"));
        assert_eq!(driver(&golden::driver(200)), None);
    }

    #[test]
    fn counters_are_read_by_name() {
        let expected = [("tx_bytes_cnt", 1 << 40), ("rx_bytes_cnt", 9)];
        assert_eq!(counters(&golden()[2]), expected);
    }

    #[test]
    fn queue_pairs_have_an_owner_or_are_the_kernels() {
        let found = queue_pairs(&golden()[3]);
        let own = QueuePair { number: 17, kind: 2, state: 3, send_sequence: 5, ..found[0] };
        assert_eq!((found[0], found[0].pid, found[0].is_kernel), (own, Some(4_711), false));
        assert_eq!((found[1].pid, found[1].is_kernel), (None, true));
        let many: Vec<Pair> =
            (1..=1_000).map(|n| Pair { number: n, kind: 2, state: 3, sent: 0, pid: 9 }).collect();
        let answer = golden::queue_pairs(0, "mlx5_0", &many);
        assert!(messages(&answer).count() > 1, "a dump of many parts");
        let numbers: Vec<u32> = queue_pairs(&answer).iter().map(|pair| pair.number).collect();
        assert_eq!(numbers, (1..=1_000).collect::<Vec<u32>>());
    }

    #[test]
    fn connections_have_both_ends() {
        let [id] = connection_ids(&golden()[4])[..] else { panic!("one connection") };
        assert_eq!((id.queue_pair, id.pid), (Some(17), Some(4_711)));
        assert_eq!(id.source, Some("10.0.0.1:18515".parse().unwrap()));
        assert_eq!(id.destination, Some("10.0.0.2:40000".parse().unwrap()));
        let v6: SocketAddr = "[2001:db8::1]:5".parse().unwrap();
        let mapped: SocketAddr = "[::ffff:10.0.0.9]:6".parse().unwrap();
        let answer = golden::connections(1, "a", &[(1, 2, v6, mapped)]);
        let [id] = connection_ids(&answer)[..] else { panic!("one connection") };
        assert_eq!(id.source, Some(v6));
        assert_eq!(id.destination, Some("10.0.0.9:6".parse().unwrap()));
    }

    #[test]
    fn an_answer_cut_anywhere_gives_less() {
        for answer in golden() {
            let whole = all(&answer);
            assert!(whole > 0);
            for cut in 0..answer.len() {
                assert_eq!(all(&answer[..cut]), 0, "a message that is not whole is none");
                // The same cut with lengths that admit it: attributes end early.
                let mut shorter = answer[..cut].to_vec();
                if let Some(length) = shorter.get_mut(..4) {
                    length.copy_from_slice(&(cut as u32).to_ne_bytes());
                }
                assert!(all(&shorter) <= whole);
            }
        }
    }

    proptest! {
        #[test]
        fn bytes_of_any_kind_are_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..2_048)) {
            all(&bytes);
        }

        #[test]
        fn an_answer_with_any_byte_changed_is_no_panic(
            which in 0..6usize,
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
        ) {
            let mut answer = golden().swap_remove(which);
            let at = at.index(answer.len());
            answer[at] = byte;
            prop_assert!(all(&answer) <= 8);
        }
    }
}
