//! What the two legs of one attempt agree on: where to meet, in which room, under which name.

use std::net::IpAddr;

use super::Endpoint;
use super::json::quote;
use crate::fleet::{RankAssignment, Ranks, Steering};
use crate::pair::Pair;

/// Names one rendezvous between a prefill and a decode server.
///
/// Two live requests in one room get each other's answers and 2^63 kills the prefill server, so a
/// room is neither cloned nor made from a client's number: every attempt draws its own.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Room(u64);

/// Engines of more ranks are not steered by room.
const MAX_MODULUS: u32 = 1 << 16;

impl Room {
    /// The largest room an engine survives.
    pub const MAX: u64 = i64::MAX as u64;

    /// The room in `[0, 2^63 - 1]` that 64 random bits give.
    ///
    /// ```
    /// use router_core::sglang::Room;
    /// assert_eq!(Room::from_random(u64::MAX).value(), (1 << 63) - 1);
    /// ```
    pub fn from_random(random: u64) -> Room {
        Room(random & Room::MAX)
    }

    /// A room near `random` with `room % modulus == residue` for each `(modulus, residue)`, as
    /// far as one number can be congruent to both: the first one always is.
    ///
    /// Engines that follow the bootstrap room send the request to data-parallel rank
    /// `room % dp_size`, in every version and without a field of its own; 0.4.10 does so on both
    /// sides.
    ///
    /// ```
    /// use router_core::sglang::Room;
    /// let room = Room::congruent(1 << 40, Pair { prefill: (4, 3), decode: (6, 1) }).value();
    /// assert_eq!((room % 4, room % 6), (3, 1));
    /// # use router_core::pair::Pair;
    /// ```
    pub fn congruent(random: u64, wanted: Pair<(u32, u32)>) -> Room {
        let count = |count: u32| u64::from(count.clamp(1, MAX_MODULUS));
        let (first, residue) = (count(wanted.prefill.0), u64::from(wanted.prefill.1));
        let (second, other) = (count(wanted.decode.0), u64::from(wanted.decode.1));
        // Of the numbers that are right for the first, one in `second` at most is right for both.
        let (start, step) = (residue % first, first);
        let mut tries = (0..second).map(|turn| start + turn * step);
        let start = tries.find(|room| room % second == other % second).unwrap_or(start);
        let period = first * second;
        let random = random & Room::MAX;
        let room = random - random % period + start % period;
        Room(if room > Room::MAX { room - period } else { room })
    }

    /// A room that leads to the ranks that go by it.
    pub fn steered(random: u64, ranks: &Pair<Option<RankAssignment>>) -> Room {
        Room::congruent(
            random,
            ranks.map(|rank| match rank {
                Some(RankAssignment { ranks: Ranks { count, steering: Steering::Room }, rank }) => {
                    (count, rank)
                }
                _ => (1, 0),
            }),
        )
    }

    pub fn value(&self) -> u64 {
        self.0
    }
}

/// The name of one request at the engines: 32 lowercase hex digits.
///
/// The engine aborts every request whose name starts with the given one, so all names have the
/// same length and none is a prefix of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rid([u8; 32]);

impl Rid {
    /// ```
    /// use router_core::sglang::Rid;
    /// assert_eq!(Rid::from_random(0xab).as_str(), "000000000000000000000000000000ab");
    /// ```
    pub fn from_random(random: u128) -> Rid {
        let mut digits = [0; 32];
        for (i, digit) in digits.iter_mut().enumerate() {
            *digit = b"0123456789abcdef"[(random >> (124 - 4 * i) & 0xf) as usize];
        }
        Rid(digits)
    }

    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("hex digits are ASCII")
    }
}

/// Where decode finds the prefill server's bootstrap registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootstrapAddress {
    /// As the engine puts it into a URL: IPv6 in brackets.
    pub host: String,
    pub port: u16,
}

impl BootstrapAddress {
    /// ```
    /// use router_core::sglang::BootstrapAddress;
    /// assert_eq!(BootstrapAddress::new("fd00::1".parse().unwrap(), 8998).host, "[fd00::1]");
    /// assert_eq!(BootstrapAddress::new("::ffff:10.0.0.1".parse().unwrap(), 8998).host, "10.0.0.1");
    /// ```
    pub fn new(address: IpAddr, port: u16) -> BootstrapAddress {
        let host = match address.to_canonical() {
            IpAddr::V4(v4) => v4.to_string(),
            IpAddr::V6(v6) => format!("[{v6}]"),
        };
        BootstrapAddress { host, port }
    }
}

/// The ranks that a field must name, since no room leads there.
pub fn ranks_by_field(ranks: &Pair<Option<RankAssignment>>) -> Pair<Option<u32>> {
    ranks.map(|rank| {
        rank.filter(|rank| rank.ranks.steering == Steering::Field).map(|rank| rank.rank)
    })
}

/// What one attempt of one (sub-)request puts into both bodies.
#[derive(Clone, Copy, Debug)]
pub struct Attempt<'a> {
    pub bootstrap: &'a BootstrapAddress,
    /// As many as [`Request::rooms`](super::Request::rooms) says.
    pub rooms: &'a [Room],
    /// As many as rooms: the engine refuses a list of another length, and aborts by the single
    /// names only, never by what they have in common.
    pub rids: &'a [Rid],
    /// Data-parallel ranks to force. `None` lets the engine choose, which is by room where it
    /// follows the bootstrap room; such an engine takes a forced prefill rank only if the request
    /// says so twice, and it does. Unknown to engines up to 0.5.8: use [`Room::steered`].
    pub dp: Pair<Option<u32>>,
}

impl Attempt<'_> {
    /// Appends the members that both legs share: single values, or lists for a batch.
    pub(super) fn write(&self, endpoint: Endpoint, list: bool, out: &mut Vec<u8>) {
        out.extend_from_slice(b"\"bootstrap_host\":");
        each(self.rooms, list, out, |_, out| quote(out, &self.bootstrap.host));
        out.extend_from_slice(b",\"bootstrap_port\":");
        each(self.rooms, list, out, |_, out| integer(self.bootstrap.port.into(), out));
        out.extend_from_slice(b",\"bootstrap_room\":");
        each(self.rooms, list, out, |room, out| integer(room.value(), out));
        out.push(b',');
        Rid::write(self.rids, endpoint, list, out);
    }

    /// Appends each leg's ranks. Prefill's own rank goes to prefill twice: a prefill server that
    /// follows the bootstrap room accepts another rank only from a request that carries
    /// `disagg_prefill_dp_rank` too.
    pub(super) fn write_ranks(&self, prefill: &mut Vec<u8>, decode: &mut Vec<u8>) {
        if let Some(rank) = self.dp.prefill {
            member("routed_dp_rank", rank, prefill);
            member("disagg_prefill_dp_rank", rank, prefill);
            member("disagg_prefill_dp_rank", rank, decode);
        }
        if let Some(rank) = self.dp.decode {
            member("routed_dp_rank", rank, decode);
        }
    }
}

impl Rid {
    /// Appends the member that names the request, as `endpoint` takes it.
    pub(super) fn write(rids: &[Rid], endpoint: Endpoint, list: bool, out: &mut Vec<u8>) {
        out.extend_from_slice(b"\"rid\":");
        each(rids, list, out, |rid, out| quote(out, rid.as_str()));
        if let (Endpoint::Responses, [rid, ..]) = (endpoint, rids) {
            out.extend_from_slice(b",\"request_id\":\"resp_");
            out.extend_from_slice(rid.as_str().as_bytes());
            out.push(b'"');
        }
    }
}

/// The first item alone, or all as a list.
fn each<T>(items: &[T], list: bool, out: &mut Vec<u8>, mut one: impl FnMut(&T, &mut Vec<u8>)) {
    if !list {
        match items.first() {
            Some(item) => one(item, out),
            None => out.extend_from_slice(b"null"),
        }
        return;
    }
    out.push(b'[');
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        one(item, out);
    }
    out.push(b']');
}

fn integer(value: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

fn member(name: &str, value: u32, out: &mut Vec<u8>) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
    integer(value.into(), out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_congruent_room_is_in_range_and_congruent(
            random: u64,
            first in (0u32..65, 0u32..100),
            second in (0u32..65, 0u32..100),
            common in 0u32..5000,
        ) {
            let rank = |wanted: (u32, u32)| u64::from(wanted.1 % wanted.0.max(1));
            let at = |room: &Room, wanted: (u32, u32)| room.value() % u64::from(wanted.0.max(1));
            let room = Room::congruent(random, Pair { prefill: first, decode: second });
            prop_assert!(room.value() <= Room::MAX);
            prop_assert_eq!(at(&room, first), rank(first));
            // Ranks that some number leads to are met both.
            let (first, second) = ((first.0, common), (second.0, common));
            let room = Room::congruent(random, Pair { prefill: first, decode: second });
            prop_assert_eq!((at(&room, first), at(&room, second)), (rank(first), rank(second)));
        }

        #[test]
        fn a_rid_reads_as_the_number_it_was_made_from(random: u128) {
            prop_assert_eq!(u128::from_str_radix(Rid::from_random(random).as_str(), 16), Ok(random));
        }
    }
}
