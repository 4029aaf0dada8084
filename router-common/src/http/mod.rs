//! The state of one HTTP/1.1 connection as its TCP sequence shows it, packet by packet.
//!
//! A request counts only at the sequence number that follows the last request, and only while no
//! response is outstanding. So a retransmitted or late segment, and a body that begins with a method,
//! are not counted. Nothing here waits, allocates or can fail.

mod change;
mod flags;
mod head;
mod request;
mod segment;

pub use change::HttpChange;
pub use flags::{
    BEGUN, BODILESS, BODY, CHUNKED, ENDLESS, FIN_FROM_POD, FIN_TO_POD, HEAD, IDLE, OPAQUE, SEEN,
    SIZED, UNTIMED, WAITING,
};
pub use head::{HEAD_WINDOW, HeadBytes, HeadScan};
pub use segment::{NanosecondClock, Payload, Segment, TCP_FIN, TCP_RST, TCP_SYN, begins_request};

use flags::PER_REQUEST;
use head::{HEAD_END, HEAD_WINDOWS, LAST_CHUNK, MAX_LENGTH, SEVEN_BYTES};

/// One HTTP connection to a local pod's engine.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct HttpStream {
    pub pod: u32,
    pub phase: u32,
    pub flags: u32,
    /// Sequence number of the client's SYN.
    pub syn: u32,
    /// Sequence number at which the next request must begin.
    pub next_request: u32,
    /// Sequence number after the last byte that the client sent.
    pub client_end: u32,
    /// Sequence number after the last byte that the engine sent.
    pub engine_end: u32,
    /// Sequence number after the last byte of a sized response.
    pub answer_end: u32,
    /// Bytes of the request whose response has not begun.
    pub waiting_bytes: u32,
    /// The bytes of a request's beginning that were too few to decide, the first one highest; the lowest
    /// byte is their number, 0 to 3.
    pub lead: u32,
    pub started_ns: u64,
    /// Time of the last new byte of the response, kept if its size does not give its end.
    pub last_ns: u64,
    /// The last eight bytes of the response's body.
    pub tail: u64,
    pub head: HeadScan,
}

const _: () = assert!(size_of::<HttpStream>() == 112);

#[inline(always)]
fn after(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) > 0
}

impl HttpStream {
    /// A connection that begins with `syn`, which the client sent.
    #[inline(always)]
    pub fn from_syn(pod: u32, syn: &Segment) -> HttpStream {
        HttpStream::from_start(pod, syn.sequence.wrapping_add(1), 0)
    }

    /// A connection of which the client's first byte has the sequence number `client`, and the engine's
    /// next byte the number `engine`.
    #[inline(always)]
    pub fn from_start(pod: u32, client: u32, engine: u32) -> HttpStream {
        HttpStream {
            pod,
            syn: client.wrapping_sub(1),
            next_request: client,
            client_end: client,
            engine_end: engine,
            ..HttpStream::default()
        }
    }

    /// A connection older than the programs, first seen at a segment that begins a request.
    #[inline(always)]
    pub fn from_request(pod: u32, request: &Segment) -> HttpStream {
        HttpStream {
            pod,
            // If it is the connection's first.
            syn: request.sequence.wrapping_sub(1),
            next_request: request.sequence,
            client_end: request.sequence,
            engine_end: request.acknowledged,
            ..HttpStream::default()
        }
    }

    /// What the connection counts for so far, if nothing of it has been counted yet: a connection whose
    /// first segment came before its socket existed.
    #[inline(always)]
    pub fn uncounted(&self) -> HttpChange {
        HttpChange {
            started: self.phase == WAITING,
            request_bytes: self.waiting_bytes,
            ..HttpChange::default()
        }
    }

    /// Applies the end of the socket, after which there is no packet.
    #[inline(always)]
    pub fn on_close(&mut self, now: impl NanosecondClock) -> HttpChange {
        let mut change = HttpChange { ended: true, ..HttpChange::default() };
        self.abort(&mut change, now);
        change
    }

    /// Whether the response ends with the connection, or at an unknown place.
    #[inline(always)]
    pub fn has_no_known_end(&self) -> bool {
        self.phase == BODY && self.flags & ENDLESS != 0
    }

    /// Applies a segment from the client.
    #[inline(always)]
    pub fn on_client_segment<P: Payload>(
        &mut self,
        segment: &Segment,
        payload: &P,
        now: impl NanosecondClock,
    ) -> HttpChange {
        let mut change = HttpChange::default();
        if segment.has(TCP_RST) {
            self.abort(&mut change, now);
            change.ended = true;
            return change;
        }
        let mut sequence = segment.sequence;
        if segment.has(TCP_SYN) {
            if self.syn != sequence {
                // The port is used again: the end of the older connection was not seen.
                self.abort(&mut change, now);
                *self = HttpStream::from_syn(self.pod, segment);
            }
            // TCP Fast Open: data follows the SYN's own number.
            sequence = sequence.wrapping_add(1);
        }
        if segment.length > 0 {
            let end = sequence.wrapping_add(segment.length);
            let is_open = self.phase == IDLE || (self.phase == BODY && self.flags & ENDLESS != 0);
            if is_open && self.flags & OPAQUE == 0 {
                self.begin(&mut change, payload, (sequence, segment.length), now);
            }
            if after(end, self.client_end) {
                if !change.started && (self.phase == WAITING || self.phase == HEAD) {
                    self.add_waiting(&mut change, end.wrapping_sub(self.client_end));
                }
                self.client_end = end;
            }
        }
        if segment.has(TCP_FIN) {
            self.flags |= FIN_TO_POD;
            change.ended = self.flags & FIN_FROM_POD != 0;
        }
        change
    }

    /// Adds bytes of the request whose response has not begun.
    #[inline(always)]
    fn add_waiting(&mut self, change: &mut HttpChange, bytes: u32) {
        self.waiting_bytes = self.waiting_bytes.wrapping_add(bytes);
        change.request_bytes = bytes;
    }

    /// Ends the waiting of a request: the body of its response began, or there will be none. The head does
    /// not count: an engine sends that of a stream at once, while the request still waits.
    #[inline(always)]
    fn end_waiting(&mut self, change: &mut HttpChange) {
        change.answered = true;
        change.answered_request_bytes = self.waiting_bytes;
        self.waiting_bytes = 0;
    }

    /// Reads the part of a response's head that a segment holds, and returns its length in bytes. Call it
    /// before [`HttpStream::on_engine_segment`].
    ///
    /// It is a separate function so that the verifier meets its loop on one path only.
    #[inline(always)]
    pub fn read_head<P: Payload>(&mut self, segment: &Segment, payload: &mut P) -> u32 {
        let end = segment.sequence.wrapping_add(segment.length);
        if self.flags & OPAQUE != 0 || self.phase == BODY {
            return 0;
        }
        if segment.length == 0 || !after(end, self.engine_end) {
            return 0;
        }
        let known = payload.forget(self.known_of(segment));
        if self.phase != HEAD {
            let is_due = self.phase == WAITING || self.client_end != self.next_request;
            if !is_due && !begins_response(payload.four(known)) {
                return 0;
            }
            self.head = HeadScan::default();
        }
        let mut read = 0;
        for _ in 0..HEAD_WINDOWS {
            if read >= segment.length.wrapping_sub(known) {
                break;
            }
            let more = payload.scan(known.wrapping_add(read), &mut self.head);
            read = payload.forget(read.wrapping_add(more));
            if more < HEAD_WINDOW || self.head.found & HeadScan::END != 0 {
                break;
            }
        }
        read
    }

    /// The number of bytes of an engine's segment that were seen before.
    #[inline(always)]
    fn known_of(&self, segment: &Segment) -> u32 {
        let known = self.engine_end.wrapping_sub(segment.sequence);
        if known < segment.length { known } else { 0 }
    }

    /// Applies a segment from the engine, of which the first `head` new bytes are the head of a response.
    #[inline(always)]
    pub fn on_engine_segment<P: Payload>(
        &mut self,
        segment: &Segment,
        head: u32,
        payload: &P,
        now: impl NanosecondClock,
    ) -> HttpChange {
        let mut change = HttpChange::default();
        if segment.has(TCP_RST) {
            self.abort(&mut change, now);
            change.ended = true;
            return change;
        }
        if segment.has(TCP_SYN) {
            self.engine_end = segment.sequence.wrapping_add(1);
            return change;
        }
        if segment.length > 0 && self.flags & OPAQUE == 0 {
            let end = segment.sequence.wrapping_add(segment.length);
            if after(end, self.engine_end) {
                let known = payload.forget(self.known_of(segment));
                let length = segment.length.wrapping_sub(known);
                let head = payload.forget(head);
                let may_begin = self.phase == IDLE && self.client_end == self.next_request;
                let begins = may_begin && begins_response(payload.four(known));
                let begins = payload.forget(begins.into()) != 0;
                self.engine_end = end;
                if self.phase != IDLE || self.reopen(&mut change, begins) {
                    self.apply_new_bytes(&mut change, length, head, payload, now);
                }
            }
        }
        if segment.has(TCP_FIN) {
            if self.phase == BODY && self.flags & ENDLESS != 0 {
                self.finish(&mut change, now);
            } else {
                self.abort(&mut change, now);
            }
            self.flags |= FIN_FROM_POD;
            change.ended = self.flags & FIN_TO_POD != 0;
        }
        change
    }

    /// Applies `length` new bytes from the engine, of which the first `head` are the head of a response.
    #[inline(always)]
    fn apply_new_bytes<P: Payload>(
        &mut self,
        change: &mut HttpChange,
        length: u32,
        head: u32,
        payload: &P,
        now: impl NanosecondClock,
    ) {
        if self.phase == WAITING {
            self.phase = HEAD;
        }
        let body = length.wrapping_sub(head);
        if self.phase == HEAD && !self.apply_head(change, body, now) {
            return;
        }
        if body > 0 {
            self.apply_body(change, length, payload, now);
        }
    }

    /// Handles bytes from the engine while no request is outstanding; `begins` if they begin a response.
    /// Returns false if they are no part of a response.
    #[inline(always)]
    fn reopen(&mut self, change: &mut HttpChange, begins: bool) -> bool {
        if self.client_end != self.next_request || (begins && self.flags & SEEN != 0) {
            // The first segment of the request was missed, or the request was sent before the end of the
            // response to the one before it (pipelining); its response still counts.
            change.started = true;
            self.lead = 0;
            self.flags = (self.flags & !PER_REQUEST) | SEEN | UNTIMED;
            self.phase = WAITING;
            self.add_waiting(change, self.client_end.wrapping_sub(self.next_request));
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

    /// Decides from the head how the response ends. Returns false if no body follows in this segment.
    #[inline(always)]
    fn apply_head(
        &mut self,
        change: &mut HttpChange,
        body: u32,
        now: impl NanosecondClock,
    ) -> bool {
        let ended = self.head.found & HeadScan::END != 0;
        if !ended && body == 0 {
            return false;
        }
        if ended && self.head.status >= 100 && self.head.status < 200 {
            self.phase = WAITING;
            if self.head.status == 101 {
                self.finish(change, now);
                self.end_waiting(change);
                self.flags |= OPAQUE;
            }
            return false;
        }
        self.phase = BODY;
        self.tail = HEAD_END;
        self.last_ns = now();
        self.next_request = self.client_end;
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
        } else if self.head.found & HeadScan::LENGTH != 0 && self.head.content_length < MAX_LENGTH {
            self.flags |= SIZED;
            self.answer_end =
                self.engine_end.wrapping_sub(body).wrapping_add(self.head.content_length as u32);
        } else {
            self.flags |= ENDLESS;
        }
        true
    }

    /// Applies new bytes of the body; `length` includes the head's bytes of this segment.
    #[inline(always)]
    fn apply_body<P: Payload>(
        &mut self,
        change: &mut HttpChange,
        length: u32,
        payload: &P,
        now: impl NanosecondClock,
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
            self.end_waiting(change);
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
        } else if self.flags & SIZED != 0 && !after(self.answer_end, self.engine_end) {
            self.finish(change, now);
        }
    }

    /// Ends an outstanding request, because the connection ends.
    #[inline(always)]
    fn abort(&mut self, change: &mut HttpChange, now: impl NanosecondClock) {
        if self.phase != IDLE {
            change.aborted = true;
            if self.phase != BODY {
                self.end_waiting(change);
            }
            self.finish(change, now);
        }
    }

    #[inline(always)]
    fn finish(&mut self, change: &mut HttpChange, now: impl NanosecondClock) {
        change.finished = true;
        if self.phase == BODY && self.flags & BEGUN == 0 {
            self.end_waiting(change);
        }
        if self.phase == BODY && self.flags & CHUNKED != 0 && self.flags & BEGUN != 0 {
            change.stream_ended = true;
        }
        if self.flags & UNTIMED == 0 && !change.aborted {
            change.duration_ns = now().wrapping_sub(self.started_ns);
        }
        self.phase = IDLE;
        self.next_request = self.client_end;
        self.lead = 0;
    }
}

/// Whether bytes of the engine begin a response (RFC 9112 2.3).
#[inline(always)]
fn begins_response(first: [u8; 4]) -> bool {
    u32::from_be_bytes(first) == u32::from_be_bytes(*b"HTTP")
}

#[cfg(test)]
mod tests;
