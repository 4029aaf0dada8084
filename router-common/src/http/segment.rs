//! A TCP segment and its payload, as input to the state of a connection.

use super::HeadScan;

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
    /// The first four bytes; zeros if there are fewer.
    fn first(&self) -> [u8; 4];
    /// Lets `head` read the payload from `skip` on; returns the number of bytes that it read.
    fn scan(&mut self, skip: u32, head: &mut HeadScan) -> u32;
    /// The last `count` bytes (1 to 8) as a big-endian number.
    fn last(&self, count: u32) -> u64;
}

/// Returns the time in nanoseconds. Called only when needed: it costs as much as a map lookup.
pub trait NanosecondClock: Fn() -> u64 + Copy {}

impl<F: Fn() -> u64 + Copy> NanosecondClock for F {}

/// Whether a payload that begins with `first` begins an HTTP/1 request.
#[inline(always)]
pub fn begins_request(first: [u8; 4]) -> bool {
    // The preface of HTTP/2 is "PRI ", which is none of these.
    const METHODS: [[u8; 4]; 9] =
        [*b"POST", *b"GET ", *b"HEAD", *b"PUT ", *b"DELE", *b"OPTI", *b"PATC", *b"CONN", *b"TRAC"];
    let first = u32::from_be_bytes(first);
    let mut index = 0;
    while index < METHODS.len() {
        if first == u32::from_be_bytes(METHODS[index]) {
            return true;
        }
        index += 1;
    }
    false
}
