//! Where a request begins: the bytes at the position of the next one, whole or in parts.

use super::flags::PER_REQUEST;
use super::segment::{begins_method, may_begin_request};
use super::{
    BODILESS, BODY, HttpChange, HttpStream, NanosecondClock, OPAQUE, Payload, SEEN, WAITING, after,
};

impl HttpStream {
    /// Applies a segment, its sequence number and length, if it is at the position of the next request.
    #[inline(always)]
    pub(super) fn begin<P: Payload>(
        &mut self,
        change: &mut HttpChange,
        payload: &P,
        (sequence, length): (u32, u32),
        now: impl NanosecondClock,
    ) {
        // A segment that begins with the bytes that were kept is a retransmit with more of them.
        let kept = if sequence == self.next_request { 0 } else { self.lead & 0xff };
        if sequence != self.next_request.wrapping_add(kept) {
            return;
        }
        let mut first = payload.four(0);
        let mut blank = 0;
        if kept == 0 {
            blank = payload.forget(blank_bytes(first, payload.forget(length)));
            if blank > 0 {
                self.next_request = self.next_request.wrapping_add(blank);
                first = payload.four(blank);
            }
        }
        let rest = payload.forget(length.wrapping_sub(blank));
        let (word, count) = self.with_lead(kept, first, rest);
        let (word, count) = (payload.forget(word), payload.forget(count));
        if count == 0 {
            return;
        }
        let first = word.to_be_bytes();
        let begins = begins_method(first, count)
            || (self.flags & SEEN == 0 && may_begin_request(first, count));
        let begins = payload.forget(begins.into()) != 0;
        if begins && self.lead == 0 {
            self.started_ns = now();
        }
        if begins && count < 4 {
            self.lead = word | count;
            return;
        }
        self.lead = 0;
        let end = sequence.wrapping_add(length);
        let known = if after(self.client_end, end) { self.client_end } else { end };
        if begins {
            if self.phase == BODY {
                self.finish(change, now);
            }
            self.flags = (self.flags & !PER_REQUEST) | SEEN;
            if first[0] == b'H' {
                self.flags |= BODILESS;
            }
            self.phase = WAITING;
            change.started = true;
            // Later segments of it may have arrived before its first.
            self.add_waiting(change, known.wrapping_sub(self.next_request));
        } else if self.flags & SEEN == 0 {
            self.flags |= OPAQUE;
        } else {
            // The rest of a request whose response began before its end.
            self.next_request = known;
        }
    }

    /// The first bytes of a request as a big-endian number, and their number (0 to 4): `kept` bytes of
    /// earlier segments, then `first`, of which `length` are of this segment.
    #[inline(always)]
    fn with_lead(&self, kept: u32, first: [u8; 4], length: u32) -> (u32, u32) {
        let missing = 4u32.wrapping_sub(kept) & 7;
        let fresh = if length < missing { length } else { missing };
        let count = kept.wrapping_add(fresh) & 7;
        let before = if kept == 0 { 0 } else { self.lead & 0xffff_ff00 };
        let word = before | (u32::from_be_bytes(first) >> ((kept & 3) * 8));
        // The lowest byte is of this request only if there are four.
        (if count < 4 { word & 0xffff_ff00 } else { word }, count)
    }
}

/// Number of bytes of empty lines at the beginning of a segment, which may stand before a request (RFC
/// 9112 2.2).
#[inline(always)]
fn blank_bytes(first: [u8; 4], length: u32) -> u32 {
    let mut blank = 0;
    for byte in first {
        if blank >= length || (byte != b'\r' && byte != b'\n') {
            break;
        }
        blank += 1;
    }
    blank
}
