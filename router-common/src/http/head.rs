//! Reads the head of a response: its status, its length, whether it is chunked, and where it ends.

/// Number of bytes of a response's head that are searched at once.
pub const HEAD_WINDOW: u32 = 512;
/// Maximum number of windows of one segment in which the end of a response's head is searched.
pub(super) const HEAD_WINDOWS: u32 = 4;

/// Up to [`HEAD_WINDOW`] bytes of a payload.
pub trait HeadBytes {
    /// The byte at `index`.
    fn byte(&self, index: u32) -> u8;
}

/// The state of reading the head of a response, which may span several segments.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct HeadScan {
    /// The last sixteen bytes, as two numbers.
    pub high: u64,
    pub low: u64,
    pub content_length: u64,
    pub bytes: u32,
    /// HTTP status; 0 if the status line was split over segments.
    pub status: u32,
    /// Bits [`HeadScan::DIGITS`] and following.
    pub found: u32,
    /// Bytes read of the current segment.
    pub read: u32,
    /// Where a content-length begins in the current segment; 0 if there is none.
    pub length_at: u32,
    /// Not 0 if the current segment has a chunked coding.
    pub chunked: u32,
}

/// Bit 0x20 of every byte. It turns letters to lower case; the patterns below have it too.
const FOLD: u64 = 0x2020_2020_2020_2020;
const CONTENT: u64 = u64::from_be_bytes(*b"\ncontent") | FOLD;
const LENGTH: u64 = u64::from_be_bytes(*b"-length:") | FOLD;
/// The last coding of a response is chunked in any spelling of the header (RFC 9112 6.1): spaces and
/// other codings may stand before it.
const C: u64 = b'c' as u64;
const HUNKED: u64 = u64::from_be_bytes(*b"hunked\r\n") | FOLD;
pub(super) const HEAD_END: u64 = 0x0d0a_0d0a;
/// `\r\n0\r\n\r\n`, the last chunk after another or after the head.
pub(super) const LAST_CHUNK: u64 = 0x000d_0a30_0d0a_0d0a;
pub(super) const SEVEN_BYTES: u64 = 0x00ff_ffff_ffff_ffff;
/// Maximum length that is distinguished from a sequence number that wrapped.
pub(super) const MAX_LENGTH: u64 = 1 << 30;

/// Maximum number of characters of a content-length, including spaces before it.
const MAX_DIGITS: u32 = 14;
const BUT_SIGN: u64 = u64::MAX >> 1;

/// All ones if `difference` is 0, else 0. Without a branch, because the verifier follows both sides of
/// every branch in every iteration of a loop.
#[inline(always)]
pub(super) fn mask_if_zero(difference: u64) -> u64 {
    ((((difference & BUT_SIGN) + BUT_SIGN) | difference) >> 63).wrapping_sub(1)
}

impl HeadScan {
    /// The content-length continues in the next segment.
    pub const DIGITS: u32 = 1;
    pub const LENGTH: u32 = 2;
    pub const CHUNKED: u32 = 4;
    pub const END: u32 = 8;

    /// Searches the next `count` bytes, up to the end of the head. Call [`HeadScan::settle`] after it: it
    /// is separate because the verifier processes the code after a loop once for each possible exit.
    #[inline(always)]
    pub fn search<W: HeadBytes>(&mut self, window: &mut W, count: u32) {
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
            length_at |= at as u64 & mask_if_zero((folded.0 ^ CONTENT) | (folded.1 ^ LENGTH));
            chunked |= mask_if_zero(((folded.0 & 0xff) ^ C) | (folded.1 ^ HUNKED));
            if low & 0xffff_ffff == HEAD_END {
                break;
            }
        }
        (self.high, self.low) = (high, low);
        (self.read, self.length_at, self.chunked) = (at, length_at as u32, chunked as u32);
    }

    /// Applies what the search of these `count` bytes found.
    #[inline(always)]
    pub fn settle<W: HeadBytes>(&mut self, window: &mut W, count: u32) {
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

    /// Reads the content-length from `at`: skips spaces, and stops at the first byte that is not a digit.
    #[inline(always)]
    fn digits<W: HeadBytes>(&mut self, window: &mut W, mut at: u32, count: u32) {
        let mut length = self.content_length;
        let mut open = u64::MAX;
        for _ in 0..MAX_DIGITS {
            if at >= count {
                break;
            }
            let byte = window.byte(at);
            let digit = byte.wrapping_sub(b'0') as u64;
            let is_digit = mask_if_zero(digit / 10);
            open &= is_digit | mask_if_zero((byte ^ b' ') as u64);
            length =
                length.wrapping_add(length.wrapping_mul(9).wrapping_add(digit) & is_digit & open);
            at = at.wrapping_add(1);
        }
        self.content_length = length;
        self.found = (self.found & !Self::DIGITS) | (open as u32 & Self::DIGITS);
    }
}
