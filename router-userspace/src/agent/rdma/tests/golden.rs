//! Hand-built answers of RDMA netlink in the layout of nldev.c.

use std::net::SocketAddr;

/// One netlink message of nldev; nested attributes carry no flag, as before 5.3, or one.
pub(crate) struct Answer {
    bytes: Vec<u8>,
    flag: u16,
}

/// `NLA_F_NESTED`.
const NESTED: u16 = 1 << 15;

impl Answer {
    pub(crate) fn new(command: u16) -> Answer {
        let kind = (5u16 << 10) + command;
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([2, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        Answer { bytes, flag: 0 }
    }

    pub(crate) fn flagged(command: u16) -> Answer {
        Answer { flag: NESTED, ..Answer::new(command) }
    }

    pub(crate) fn put(mut self, kind: u16, value: &[u8]) -> Answer {
        self.bytes.extend((4 + value.len() as u16).to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }

    pub(crate) fn u8(self, kind: u16, value: u8) -> Answer {
        self.put(kind, &[value])
    }

    pub(crate) fn u32(self, kind: u16, value: u32) -> Answer {
        self.put(kind, &value.to_ne_bytes())
    }

    pub(crate) fn u64(self, kind: u16, value: u64) -> Answer {
        self.put(kind, &value.to_ne_bytes())
    }

    pub(crate) fn text(self, kind: u16, value: &str) -> Answer {
        self.put(kind, format!("{value}\0").as_bytes())
    }

    pub(crate) fn nest(mut self, kind: u16, fill: impl FnOnce(Answer) -> Answer) -> Answer {
        let start = self.bytes.len();
        self.bytes.extend([0; 2]);
        self.bytes.extend((kind | self.flag).to_ne_bytes());
        let mut filled = fill(self);
        let length = (filled.bytes.len() - start) as u16;
        filled.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        filled
    }

    pub(crate) fn done(mut self) -> Vec<u8> {
        let length = self.bytes.len() as u32;
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes
    }
}

/// `RDMA_NLDEV_CMD_GET` of one device with one port.
pub(crate) fn device(index: u32, name: &str, guid: u64, protocol: &str) -> Vec<u8> {
    let answer = Answer::new(1).u32(1, index).text(2, name).u32(3, 1).u64(4, 0x22_1c36);
    answer.u64(6, guid).u64(7, guid).u8(14, 1).u8(84, 0).text(67, protocol).done()
}

/// `RDMA_NLDEV_CMD_PORT_GET` of an active port on an interface.
pub(crate) fn port(index: u32, name: &str, interface: (u32, &str)) -> Vec<u8> {
    let answer = Answer::new(5).u32(1, index).text(2, name).u32(3, 1).u8(12, 4).u8(13, 5);
    answer.u32(50, interface.0).text(51, interface.1).done()
}

/// `RDMA_NLDEV_CMD_GET_CHARDEV` of uverbs.
pub(crate) fn driver(id: u32) -> Vec<u8> {
    Answer::new(15).u64(72, 0xe7_0000).u64(71, 1).text(70, "uverbs0").u32(73, id).done()
}

/// `RDMA_NLDEV_CMD_STAT_GET` of a port.
pub(crate) fn counters(index: u32, name: &str, values: &[(&str, u64)]) -> Vec<u8> {
    let answer = Answer::flagged(17).u32(1, index).text(2, name).u32(3, 1);
    let entry = |table: Answer, (name, value): &(&str, u64)| {
        table.nest(81, |entry| entry.text(82, name).u64(83, *value))
    };
    answer.nest(80, |table| values.iter().fold(table, entry)).done()
}

/// A queue pair of a process; of the kernel if `pid` is 0, without an owner if it is `u32::MAX`.
#[derive(Clone, Copy)]
pub(crate) struct Pair {
    pub(crate) number: u32,
    pub(crate) kind: u8,
    pub(crate) state: u8,
    pub(crate) sent: u32,
    pub(crate) pid: u32,
}

/// `RDMA_NLDEV_CMD_RES_QP_GET`: as many messages as the kernel needs for them.
pub(crate) fn queue_pairs(index: u32, name: &str, pairs: &[Pair]) -> Vec<u8> {
    let entry = |table: Answer, pair: &Pair| {
        table.nest(20, |entry| {
            let entry = entry.u32(3, 1).u32(21, pair.number);
            let entry = match pair.pid {
                0 => entry.text(29, "rdma_cm"),
                u32::MAX => entry.u32(54, 7),
                pid => entry.u32(54, 7).u32(28, pid),
            };
            let entry = entry.u32(22, pair.number + 1).u32(23, 9).u32(24, pair.sent).u8(25, 0);
            entry.u8(26, pair.kind).u8(27, pair.state)
        })
    };
    let message = |pairs: &[Pair]| {
        let answer = Answer::new(10).u32(1, index).text(2, name);
        answer.nest(19, |table| pairs.iter().fold(table, entry)).done()
    };
    // The kernel fills messages of 4 KiB.
    pairs.chunks(40).flat_map(message).collect()
}

/// `RDMA_NLDEV_CMD_RES_CM_ID_GET` with connected identifiers.
pub(crate) fn connections(
    index: u32,
    name: &str,
    ids: &[(u32, u32, SocketAddr, SocketAddr)],
) -> Vec<u8> {
    type Id = (u32, u32, SocketAddr, SocketAddr);
    let entry = |table: Answer, (number, pid, source, destination): &Id| {
        table.nest(31, |entry| {
            let entry = entry.u32(3, 1).u32(21, *number).u8(26, 2).u32(32, 0x106).u8(27, 10);
            let entry = entry.put(33, &storage(*source)).put(34, &storage(*destination));
            entry.u32(63, 1).u32(28, *pid)
        })
    };
    let answer = Answer::new(11).u32(1, index).text(2, name);
    answer.nest(30, |table| ids.iter().fold(table, entry)).done()
}

/// `struct sockaddr_storage`.
fn storage(address: SocketAddr) -> [u8; 128] {
    let mut bytes = [0; 128];
    bytes[2..4].copy_from_slice(&address.port().to_be_bytes());
    match address {
        SocketAddr::V4(v4) => {
            bytes[..2].copy_from_slice(&2u16.to_ne_bytes());
            bytes[4..8].copy_from_slice(&v4.ip().octets());
        }
        SocketAddr::V6(v6) => {
            bytes[..2].copy_from_slice(&10u16.to_ne_bytes());
            bytes[8..24].copy_from_slice(&v6.ip().octets());
        }
    }
    bytes
}
