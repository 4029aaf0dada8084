//! The state of one HTTP/1.1 connection as its TCP sequence shows it, packet by packet.
//!
//! A request counts only where one is due: at the sequence number that follows the last request,
//! and only while no answer is outstanding. So a segment that is sent twice, comes late or is a
//! body that begins with a method counts nothing. Nothing here waits, allocates or can fail.

mod change;
mod flags;
mod head;
mod segment;

pub use change::Change;
pub use flags::{
    BEGUN, BODILESS, BODY, CHUNKED, ENDLESS, FIN_FROM_POD, FIN_TO_POD, HEAD, IDLE, OPAQUE, SEEN,
    SIZED, UNTIMED, WAITING,
};
pub use head::{HEAD_WINDOW, HeadScan, Window};
pub use segment::{Now, Payload, Segment, TCP_FIN, TCP_RST, TCP_SYN, begins_request};

use flags::PER_REQUEST;
use head::{HEAD_END, LAST_CHUNK, LONGEST, SEVEN_BYTES};

/// One HTTP connection to a local pod's engine.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stream {
    pub pod: u32,
    pub phase: u32,
    pub flags: u32,
    /// Sequence of the client's SYN.
    pub syn: u32,
    /// Where the next request must begin.
    pub due: u32,
    /// The client's highest sequence so far, and the engine's.
    pub asked: u32,
    pub answered: u32,
    /// Where a sized answer ends.
    pub answer_end: u32,
    /// Bytes of the request whose answer has not begun, and nothing.
    pub waiting_bytes: u32,
    pub reserved: u32,
    pub started_ns: u64,
    /// The last new byte of the answer, where its size does not tell when it ends.
    pub last_ns: u64,
    /// The last eight bytes of the answer's body.
    pub tail: u64,
    pub head: HeadScan,
}

const _: () = assert!(size_of::<Stream>() == 112);

#[inline(always)]
fn after(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) > 0
}

impl Stream {
    /// A connection that begins with `syn`, sent by the client.
    #[inline(always)]
    pub fn opened(pod: u32, syn: &Segment) -> Stream {
        let due = syn.sequence.wrapping_add(1);
        Stream { pod, syn: syn.sequence, due, asked: due, ..Stream::default() }
    }

    /// A connection older than the attach, met at a segment that begins a request.
    #[inline(always)]
    pub fn resumed(pod: u32, request: &Segment) -> Stream {
        Stream {
            pod,
            due: request.sequence,
            asked: request.sequence,
            answered: request.acknowledged,
            ..Stream::default()
        }
    }

    /// A segment from the client.
    #[inline(always)]
    pub fn asks<P: Payload>(&mut self, segment: &Segment, payload: &P, now: impl Now) -> Change {
        let mut change = Change::default();
        if segment.has(TCP_RST) {
            self.cut(&mut change, now);
            change.gone = true;
            return change;
        }
        if segment.has(TCP_SYN) {
            if self.syn != segment.sequence {
                // The port is used again: the older connection ended unseen.
                self.cut(&mut change, now);
                *self = Stream::opened(self.pod, segment);
            }
            return change;
        }
        if segment.length > 0 {
            let end = segment.sequence.wrapping_add(segment.length);
            let open = self.phase == IDLE || (self.phase == BODY && self.flags & ENDLESS != 0);
            if open && segment.sequence == self.due && self.flags & OPAQUE == 0 {
                self.begin(&mut change, payload, end, now);
            }
            if after(end, self.asked) {
                if !change.started && (self.phase == WAITING || self.phase == HEAD) {
                    self.wait_for(&mut change, end.wrapping_sub(self.asked));
                }
                self.asked = end;
            }
        }
        if segment.has(TCP_FIN) {
            self.flags |= FIN_TO_POD;
            change.gone = self.flags & FIN_FROM_POD != 0;
        }
        change
    }

    /// Bytes of a request without an answer.
    #[inline(always)]
    fn wait_for(&mut self, change: &mut Change, bytes: u32) {
        self.waiting_bytes = self.waiting_bytes.wrapping_add(bytes);
        change.asked_bytes = bytes;
    }

    /// The answer begins with its body, or will never come. Not with its head: an engine sends that of
    /// a stream at once, and the request waits all the same.
    #[inline(always)]
    fn answer(&mut self, change: &mut Change) {
        change.answered = true;
        change.answered_bytes = self.waiting_bytes;
        self.waiting_bytes = 0;
    }

    /// New bytes where a request is due.
    #[inline(always)]
    fn begin<P: Payload>(&mut self, change: &mut Change, payload: &P, end: u32, now: impl Now) {
        let first = payload.first();
        if begins_request(first) {
            if self.phase == BODY {
                self.finish(change, now);
            }
            self.flags = (self.flags & !PER_REQUEST) | SEEN;
            if first[0] == b'H' {
                self.flags |= BODILESS;
            }
            self.phase = WAITING;
            self.started_ns = now();
            change.started = true;
            // The rest of it may have come before its beginning.
            let known = if after(self.asked, end) { self.asked } else { end };
            self.wait_for(change, known.wrapping_sub(self.due));
        } else if self.flags & SEEN == 0 {
            self.flags |= OPAQUE;
        } else {
            // The rest of a body whose answer came before its end.
            self.due = if after(self.asked, end) { self.asked } else { end };
        }
    }

    /// Reads what a segment from the engine has of an answer's head, before
    /// [`Stream::answers`] takes the segment; how many bytes that is.
    ///
    /// Apart from it so that the kernel's verifier meets the loop on one path only.
    #[inline(always)]
    pub fn reads_head<P: Payload>(&mut self, segment: &Segment, payload: &mut P) -> u32 {
        let begins = self.phase == WAITING || (self.phase == IDLE && self.asked != self.due);
        if self.flags & OPAQUE != 0 || !(begins || self.phase == HEAD) {
            return 0;
        }
        let end = segment.sequence.wrapping_add(segment.length);
        if segment.length == 0 || !after(end, self.answered) {
            return 0;
        }
        if begins {
            self.head = HeadScan::default();
        }
        let known = self.known_of(segment);
        payload.scan(known, &mut self.head)
    }

    /// How many of the engine's segment's bytes were seen before.
    #[inline(always)]
    fn known_of(&self, segment: &Segment) -> u32 {
        let known = self.answered.wrapping_sub(segment.sequence);
        if known < segment.length { known } else { 0 }
    }

    /// A segment from the engine, of which `head` bytes are an answer's head.
    #[inline(always)]
    pub fn answers<P: Payload>(
        &mut self,
        segment: &Segment,
        head: u32,
        payload: &P,
        now: impl Now,
    ) -> Change {
        let mut change = Change::default();
        if segment.has(TCP_RST) {
            self.cut(&mut change, now);
            change.gone = true;
            return change;
        }
        if segment.has(TCP_SYN) {
            self.answered = segment.sequence.wrapping_add(1);
            return change;
        }
        if segment.length > 0 && self.flags & OPAQUE == 0 {
            let end = segment.sequence.wrapping_add(segment.length);
            if after(end, self.answered) {
                let length = segment.length.wrapping_sub(self.known_of(segment));
                self.answered = end;
                self.fresh(&mut change, length, head, payload, now);
            }
        }
        if segment.has(TCP_FIN) {
            if self.phase == BODY && self.flags & ENDLESS != 0 {
                self.finish(&mut change, now);
            } else {
                self.cut(&mut change, now);
            }
            self.flags |= FIN_FROM_POD;
            change.gone = self.flags & FIN_TO_POD != 0;
        }
        change
    }

    /// New bytes of the engine: `length` of them, and the first `head` are an answer's head.
    #[inline(always)]
    fn fresh<P: Payload>(
        &mut self,
        change: &mut Change,
        length: u32,
        head: u32,
        payload: &P,
        now: impl Now,
    ) {
        if self.phase == IDLE && !self.wake(change) {
            return;
        }
        if self.phase == WAITING {
            self.phase = HEAD;
        }
        let body = length.wrapping_sub(head);
        if self.phase == HEAD && !self.frame(change, body, now) {
            return;
        }
        if body > 0 {
            self.advance(change, length, payload, now);
        }
    }

    /// The engine speaks though no request is outstanding. False if that is nothing to follow.
    #[inline(always)]
    fn wake(&mut self, change: &mut Change) -> bool {
        if self.asked != self.due {
            // The request's first segment was missed; its answer still counts.
            change.started = true;
            self.flags = (self.flags & !PER_REQUEST) | SEEN | UNTIMED;
            self.phase = WAITING;
            self.wait_for(change, self.asked.wrapping_sub(self.due));
            return true;
        }
        if self.flags & SEEN == 0 {
            self.flags |= OPAQUE;
            return false;
        }
        change.reopened = true;
        change.stream_started = self.flags & CHUNKED != 0;
        if self.flags & CHUNKED == 0 {
            self.flags |= ENDLESS;
        }
        self.flags = (self.flags & !SIZED) | BEGUN;
        self.phase = BODY;
        true
    }

    /// Decides from the head how the answer ends; false if there is no body to follow here.
    #[inline(always)]
    fn frame(&mut self, change: &mut Change, body: u32, now: impl Now) -> bool {
        let ended = self.head.found & HeadScan::END != 0;
        if !ended && body == 0 {
            return false;
        }
        if ended && self.head.status >= 100 && self.head.status < 200 {
            self.phase = WAITING;
            if self.head.status == 101 {
                self.finish(change, now);
                self.answer(change);
                self.flags |= OPAQUE;
            }
            return false;
        }
        self.phase = BODY;
        self.tail = HEAD_END;
        self.last_ns = now();
        self.due = self.asked;
        let silent = self.flags & BODILESS != 0
            || self.head.status == 204
            || self.head.status == 304
            || (self.head.found & HeadScan::LENGTH != 0 && self.head.content_length == 0);
        if !ended {
            self.flags |= ENDLESS;
        } else if self.head.found & HeadScan::CHUNKED != 0 && !silent {
            self.flags |= CHUNKED;
        } else if silent {
            self.finish(change, now);
            return false;
        } else if self.head.found & HeadScan::LENGTH != 0 && self.head.content_length < LONGEST {
            self.flags |= SIZED;
            self.answer_end =
                self.answered.wrapping_sub(body).wrapping_add(self.head.content_length as u32);
        } else {
            self.flags |= ENDLESS;
        }
        true
    }

    /// New bytes of the body; `length` of them with what is left of the head.
    #[inline(always)]
    fn advance<P: Payload>(
        &mut self,
        change: &mut Change,
        length: u32,
        payload: &P,
        now: impl Now,
    ) {
        let chunked = self.flags & CHUNKED != 0;
        let begins = self.flags & BEGUN == 0;
        if begins || self.flags & SIZED == 0 {
            let time = now();
            if chunked && !begins {
                change.itl_ns = time.wrapping_sub(self.last_ns);
            }
            if begins && self.flags & UNTIMED == 0 {
                change.ttft_ns = time.wrapping_sub(self.started_ns);
            }
            self.last_ns = time;
        }
        if begins {
            self.flags |= BEGUN;
            self.answer(change);
            change.stream_started = chunked;
        }
        if chunked {
            if length >= 8 {
                self.tail = payload.last(8);
            } else {
                self.tail = (self.tail << (8 * length)) | payload.last(length);
            }
            if self.tail & SEVEN_BYTES == LAST_CHUNK {
                self.finish(change, now);
            }
        } else if self.flags & SIZED != 0 && !after(self.answer_end, self.answered) {
            self.finish(change, now);
        }
    }

    /// The connection ends with whatever is outstanding.
    #[inline(always)]
    fn cut(&mut self, change: &mut Change, now: impl Now) {
        if self.phase != IDLE {
            change.aborted = true;
            if self.phase != BODY {
                self.answer(change);
            }
            self.finish(change, now);
        }
    }

    #[inline(always)]
    fn finish(&mut self, change: &mut Change, now: impl Now) {
        change.finished = true;
        if self.phase == BODY && self.flags & BEGUN == 0 {
            self.answer(change);
        }
        if self.phase == BODY && self.flags & CHUNKED != 0 && self.flags & BEGUN != 0 {
            change.stream_ended = true;
        }
        if self.flags & UNTIMED == 0 && !change.aborted {
            change.duration_ns = now().wrapping_sub(self.started_ns);
        }
        self.phase = IDLE;
        self.due = self.asked;
    }
}

#[cfg(test)]
mod tests;
