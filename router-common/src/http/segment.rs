//! A TCP segment and its payload, as input to the state of a connection.

use super::HeadScan;
use super::head::mask_if_zero;

/// One TCP segment.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    pub sequence: u32,
    pub acknowledged: u32,
    /// Payload bytes.
    pub length: u32,
    /// The flags byte of the TCP header.
    pub flags: u8,
}

pub const TCP_FIN: u8 = 1;
pub const TCP_SYN: u8 = 2;
pub const TCP_RST: u8 = 4;

impl Segment {
    #[inline(always)]
    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// The payload of a segment. Bytes are loaded only when they are needed.
pub trait Payload {
    /// The four bytes from `at` on; zeros beyond the end.
    fn four(&self, at: u32) -> [u8; 4];
    /// `value`, of which the verifier of the programs knows nothing any more: otherwise it would verify what
    /// follows once for each path that leads to the value.
    fn forget(&self, value: u32) -> u32 {
        value
    }
    /// Lets `head` read the payload from `skip` on; returns the number of bytes that it read.
    fn scan(&mut self, skip: u32, head: &mut HeadScan) -> u32;
    /// The last `count` bytes (1 to 8) as a big-endian number.
    fn last(&self, count: u32) -> u64;
}

/// Returns the time in nanoseconds. Called only when needed: it costs as much as a map lookup.
pub trait NanosecondClock: Fn() -> u64 + Copy {}

impl<F: Fn() -> u64 + Copy> NanosecondClock for F {}

/// The beginning of the preface of HTTP/2 (RFC 9113 3.4).
const HTTP2: u32 = u32::from_be_bytes(*b"PRI ");

/// Capitals, `-`, `_` and the space, as bits from the space on.
const METHOD_BYTES: u64 = 1 | 1 << 13 | 0x3ff_ffff << 33 | 1 << 63;

/// Whether the first `count` bytes (1 to 4) of `first` may begin a request with any method: methods are in
/// capitals by convention. Used only at the first byte of a connection, where no body can be.
///
/// Without branches, as [`begins_method`], because the verifier follows both sides of each.
#[inline(always)]
pub(super) fn may_begin_request(first: [u8; 4], count: u32) -> bool {
    let mut bad = mask_if_zero((first[0] ^ b' ') as u64);
    let mut index = 0;
    while index < 4 {
        let at = first[index as usize].wrapping_sub(b' ') as u64;
        let is_method = (METHOD_BYTES >> (at & 63)) & mask_if_zero(at >> 6);
        bad |= mask_if_zero(is_method & 1) & mask_if_zero(((index >= count) as u64) & 1);
        index += 1;
    }
    bad |= mask_if_zero((u32::from_be_bytes(first) ^ HTTP2) as u64);
    bad == 0
}

/// Whether a payload that begins with `first` begins an HTTP/1 request.
#[inline(always)]
pub fn begins_request(first: [u8; 4]) -> bool {
    begins_method(first, 4)
}

/// Whether the first `count` bytes (1 to 4) of `first` begin a method.
#[inline(always)]
pub(super) fn begins_method(first: [u8; 4], count: u32) -> bool {
    const METHODS: [[u8; 4]; 9] =
        [*b"POST", *b"GET ", *b"HEAD", *b"PUT ", *b"DELE", *b"OPTI", *b"PATC", *b"CONN", *b"TRAC"];
    let unknown = (4u32.wrapping_sub(count) & 3) * 8;
    let first = u32::from_be_bytes(first) >> unknown;
    let mut begins = 0;
    let mut index = 0;
    while index < METHODS.len() {
        begins |= mask_if_zero((first ^ (u32::from_be_bytes(METHODS[index]) >> unknown)) as u64);
        index += 1;
    }
    begins != 0
}
