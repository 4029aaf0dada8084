//! What the two legs of one attempt share: bootstrap address, room and request id.

use std::net::IpAddr;

use super::Endpoint;
use super::json::quote;
use crate::fleet::{RankAssignment, Ranks, Steering};
use crate::pair::Pair;

/// Identifies one rendezvous of a prefill and a decode server (SGLang's `bootstrap_room`).
///
/// Two concurrent requests in one room get each other's answers, and 2^63 crashes the prefill
/// server. Therefore a room cannot be cloned or taken from a client: every attempt draws its own.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Room(u64);

/// Maximum number of ranks that a room can select from.
const MAX_MODULUS: u32 = 1 << 16;

impl Room {
    /// The largest room that does not crash an engine.
    pub const MAX: u64 = i64::MAX as u64;

    /// A room in `[0, 2^63 - 1]` from 64 random bits.
    ///
    /// ```
    /// use router_core::sglang::Room;
    /// assert_eq!(Room::from_random(u64::MAX).value(), (1 << 63) - 1);
    /// ```
    pub fn from_random(random: u64) -> Room {
        Room(random & Room::MAX)
    }

    /// A room near `random` with `room % modulus == residue` for each `(modulus, residue)`. If no
    /// number fulfils both, the room fulfils the first.
    ///
    /// Engines that follow the bootstrap room send a request to data-parallel rank `room %
    /// dp_size`, in every version and without another field. 0.4.10 does so on both sides.
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
        // Of the rooms that fulfil the first, at most one of `second` consecutive ones fulfils
        // both.
        let (start, step) = (residue % first, first);
        let mut tries = (0..second).map(|turn| start + turn * step);
        let start = tries.find(|room| room % second == other % second).unwrap_or(start);
        let period = first * second;
        let random = random & Room::MAX;
        let room = random - random % period + start % period;
        Room(if room > Room::MAX { room - period } else { room })
    }

    /// A room that selects the assigned ranks on the engines that follow the room.
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

/// The id of one request at the engines: 32 lowercase hex digits.
///
/// The engine aborts every request whose id starts with the given one. All ids have the same
/// length, so none is a prefix of another.
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

/// The address of the prefill server's bootstrap registry, for decode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootstrapAddress {
    /// As the engine inserts it into a URL: IPv6 in brackets.
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

/// The ranks that must be set by a body field, because their engine does not follow the room.
pub fn ranks_by_field(ranks: &Pair<Option<RankAssignment>>) -> Pair<Option<u32>> {
    ranks.map(|rank| {
        rank.filter(|rank| rank.ranks.steering == Steering::Field).map(|rank| rank.rank)
    })
}

/// The fields that one attempt of one (sub-)request adds to both bodies.
#[derive(Clone, Copy, Debug)]
pub struct Attempt<'a> {
    pub bootstrap: &'a BootstrapAddress,
    /// As many as [`Request::rooms`](super::Request::rooms).
    pub rooms: &'a [Room],
    /// As many as rooms: the engine rejects a list of another length, and aborts by single ids
    /// only, never by a common prefix.
    pub rids: &'a [Rid],
    /// Data-parallel ranks to force. `None` lets the engine choose; an engine that follows the
    /// bootstrap room chooses by room. Such an engine accepts a forced prefill rank only if a
    /// second field confirms it, which is added. Engines up to 0.5.8 do not know these fields: use
    /// [`Room::steered`].
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

    /// Appends each leg's ranks. Prefill gets its own rank twice: a prefill server that follows the
    /// bootstrap room accepts another rank only with `disagg_prefill_dp_rank`.
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
    /// Appends the request id in the form of `endpoint`.
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

/// Writes the first item alone, or all items as a list.
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
            // If some number leads to both ranks, the room does.
            let (first, second) = ((first.0, common), (second.0, common));
            let room = Room::congruent(random, Pair { prefill: first, decode: second });
            prop_assert_eq!((at(&room, first), at(&room, second)), (rank(first), rank(second)));
        }

        #[test]
        fn a_rid_parses_as_the_number_it_was_made_from(random: u128) {
            prop_assert_eq!(u128::from_str_radix(Rid::from_random(random).as_str(), 16), Ok(random));
        }
    }
}
