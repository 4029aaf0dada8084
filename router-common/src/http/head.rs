//! Reads the head of an answer: its status, whether it is chunked, how long it is, its end.

/// How much of one segment is searched for the end of the answer's head.
pub const HEAD_WINDOW: u32 = 512;

/// Up to [`HEAD_WINDOW`] bytes of a payload.
pub trait Window {
    /// The byte at `index`.
    fn byte(&self, index: u32) -> u8;
}

/// Reads an answer's head; it may be spread over segments.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeadScan {
    /// The last sixteen bytes.
    pub high: u64,
    pub low: u64,
    pub content_length: u64,
    pub bytes: u32,
    /// 0 if the status line was split over segments.
    pub status: u32,
    /// Bits [`HeadScan::DIGITS`] and following.
    pub found: u32,
    /// Of the segment at hand: bytes read, where a content-length begins, whether it is chunked.
    pub read: u32,
    pub length_at: u32,
    pub chunked: u32,
}

/// Bit 0x20 of every byte: sets letters to lower case, and the patterns below alike.
const FOLD: u64 = 0x2020_2020_2020_2020;
const CONTENT: u64 = u64::from_be_bytes(*b"\ncontent") | FOLD;
const LENGTH: u64 = u64::from_be_bytes(*b"-length:") | FOLD;
const CODING: u64 = u64::from_be_bytes(*b"oding: c") | FOLD;
const HUNKED: u64 = u64::from_be_bytes(*b"hunked\r\n") | FOLD;
pub(super) const HEAD_END: u64 = 0x0d0a_0d0a;
/// `\r\n0\r\n\r\n`, the last chunk after another or after the head.
pub(super) const LAST_CHUNK: u64 = 0x000d_0a30_0d0a_0d0a;
pub(super) const SEVEN_BYTES: u64 = 0x00ff_ffff_ffff_ffff;
/// Beyond this a length is no longer told from a sequence number that wrapped.
pub(super) const LONGEST: u64 = 1 << 30;

/// A content-length has fewer digits, with the space before it.
const DIGITS: u32 = 14;
const BUT_SIGN: u64 = u64::MAX >> 1;

/// All ones if `difference` is 0, else 0, by arithmetic alone: in a loop the kernel's verifier
/// follows both sides of every branch of every turn.
#[inline(always)]
fn none(difference: u64) -> u64 {
    ((((difference & BUT_SIGN) + BUT_SIGN) | difference) >> 63).wrapping_sub(1)
}

impl HeadScan {
    /// The next bytes go on with the content-length.
    pub const DIGITS: u32 = 1;
    pub const LENGTH: u32 = 2;
    pub const CHUNKED: u32 = 4;
    pub const END: u32 = 8;

    /// Reads on in `count` more bytes, to the head's end or theirs. [`HeadScan::settle`] follows:
    /// what comes after this loop is verified once for every turn in which it may end.
    #[inline(always)]
    pub fn search<W: Window>(&mut self, window: &mut W, count: u32) {
        let (mut high, mut low) = (self.high, self.low);
        let (mut length_at, mut chunked) = (0, 0);
        let mut at = 0;
        while at < HEAD_WINDOW {
            if at >= count {
                break;
            }
            high = (high << 8) | (low >> 56);
            low = (low << 8) | window.byte(at) as u64;
            at += 1;
            let folded = (high | FOLD, low | FOLD);
            length_at |= at as u64 & none((folded.0 ^ CONTENT) | (folded.1 ^ LENGTH));
            chunked |= none((folded.0 ^ CODING) | (folded.1 ^ HUNKED));
            if low & 0xffff_ffff == HEAD_END {
                break;
            }
        }
        (self.high, self.low) = (high, low);
        (self.read, self.length_at, self.chunked) = (at, length_at as u32, chunked as u32);
    }

    /// Takes up what the search in these `count` bytes found.
    #[inline(always)]
    pub fn settle<W: Window>(&mut self, window: &mut W, count: u32) {
        if self.bytes == 0 && count >= 12 {
            let digit = |index| (window.byte(index) & 15) as u32;
            self.status = digit(9) * 100 + digit(10) * 10 + digit(11);
        }
        self.bytes = self.bytes.wrapping_add(self.read);
        if self.low & 0xffff_ffff == HEAD_END {
            self.found |= Self::END;
        }
        if self.chunked != 0 {
            self.found |= Self::CHUNKED;
        }
        if self.length_at != 0 {
            self.found |= Self::LENGTH;
            self.content_length = 0;
            self.digits(window, self.length_at, count);
        } else if self.found & Self::DIGITS != 0 {
            self.digits(window, 0, count);
        }
    }

    /// Reads the content-length from `at` on, after spaces and up to what is neither.
    #[inline(always)]
    fn digits<W: Window>(&mut self, window: &mut W, mut at: u32, count: u32) {
        let mut length = self.content_length;
        let mut open = u64::MAX;
        for _ in 0..DIGITS {
            if at >= count {
                break;
            }
            let byte = window.byte(at);
            let digit = byte.wrapping_sub(b'0') as u64;
            let is_digit = none(digit / 10);
            open &= is_digit | none((byte ^ b' ') as u64);
            length =
                length.wrapping_add(length.wrapping_mul(9).wrapping_add(digit) & is_digit & open);
            at = at.wrapping_add(1);
        }
        self.content_length = length;
        self.found = (self.found & !Self::DIGITS) | (open as u32 & Self::DIGITS);
    }
}
