//! Splits a byte stream into whole events, wherever its chunks were cut.

use bytes::{Bytes, BytesMut};

/// Maximum size of one event in bytes. The logprobs of a long prompt fit.
pub const MAX_EVENT: usize = 16 << 20;

/// An event exceeds the splitter's maximum size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a server-sent event is longer than {0} bytes")]
pub struct TooLong(pub usize);

/// Splits a byte stream into events and buffers at most one unfinished event.
///
/// Lines end with `\n`, `\r\n` or `\r`, events with a blank line. An event inside one chunk shares the
/// chunk's allocation.
///
/// ```
/// use bytes::Bytes;
/// use router_core::sglang::sse::Splitter;
///
/// let mut splitter = Splitter::default();
/// splitter.push(Bytes::from_static(b"data: 1\n\ndata: 2\n"));
/// assert_eq!(splitter.next().unwrap().unwrap(), "data: 1\n\n");
/// assert_eq!(splitter.next(), None);
/// splitter.push(Bytes::from_static(b"\n"));
/// assert_eq!(splitter.next().unwrap().unwrap(), "data: 2\n\n");
/// ```
#[derive(Debug)]
pub struct Splitter {
    max_event: usize,
    /// The start of an event, from previous chunks.
    buffered: BytesMut,
    chunk: Bytes,
    /// How much of the chunk has been scanned.
    scanned: usize,
    line: LineState,
    /// The event has a line that is not blank.
    content: bool,
}

/// The position of the next byte in its line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LineState {
    /// At the start, after `\n` or at the start of the stream.
    Start,
    /// Inside a line.
    Inside,
    /// After a `\r` that ended a line with content.
    Return,
    /// After a `\r` in a blank line that began after a `\n`: its `\n` may follow.
    BlankReturn,
}

impl Default for Splitter {
    fn default() -> Splitter {
        Splitter::new(MAX_EVENT)
    }
}

impl Splitter {
    /// `max_event` is the maximum size of one event in bytes.
    pub fn new(max_event: usize) -> Splitter {
        Splitter {
            max_event,
            buffered: BytesMut::new(),
            chunk: Bytes::new(),
            scanned: 0,
            line: LineState::Start,
            content: false,
        }
    }

    /// Adds the next chunk. [`next`](Splitter::next) should have returned `None` before.
    pub fn push(&mut self, chunk: Bytes) {
        if self.chunk.is_empty() {
            self.chunk = chunk;
            return;
        }
        let mut both = BytesMut::from(&self.chunk[..]);
        both.extend_from_slice(&chunk);
        self.chunk = both.freeze();
    }

    /// The next whole event, if it has arrived.
    #[expect(clippy::should_implement_trait, reason = "it goes on after None")]
    pub fn next(&mut self) -> Option<Result<Bytes, TooLong>> {
        let end = self.find();
        let len = self.buffered.len() + end.unwrap_or(self.chunk.len());
        if len > self.max_event {
            return Some(Err(TooLong(self.max_event)));
        }
        let Some(end) = end else {
            self.buffered.extend_from_slice(&self.chunk);
            self.chunk = Bytes::new();
            self.scanned = 0;
            return None;
        };
        let event = self.chunk.split_to(end);
        self.scanned = 0;
        self.content = false;
        self.line = LineState::Start;
        if self.buffered.is_empty() {
            return Some(Ok(event));
        }
        self.buffered.extend_from_slice(&event);
        Some(Ok(self.buffered.split().freeze()))
    }

    /// The unfinished event at the end of the stream, possibly empty.
    pub fn rest(mut self) -> Bytes {
        self.buffered.extend_from_slice(&self.chunk);
        self.buffered.freeze()
    }

    /// The end of the current event in the chunk. Every byte is scanned once. A blank line ends an
    /// event that has content; a blank line before it is skipped.
    fn find(&mut self) -> Option<usize> {
        while let Some(&byte) = self.chunk.get(self.scanned) {
            if self.line == LineState::Inside && byte != b'\n' && byte != b'\r' {
                let rest = &self.chunk[self.scanned..];
                self.scanned += memchr::memchr2(b'\n', b'\r', rest).unwrap_or(rest.len());
                continue;
            }
            if self.line == LineState::BlankReturn && byte != b'\n' {
                // The blank line ended with the return alone; this byte belongs to the next event.
                if self.content {
                    return Some(self.scanned);
                }
                self.line = LineState::Start;
            }
            self.scanned += 1;
            let ended = match (self.line, byte) {
                // A second return right after one that ended a line makes a blank line.
                (LineState::Return, b'\r') => self.content,
                (LineState::Return, b'\n') => {
                    self.line = LineState::Start;
                    false
                }
                (LineState::Start | LineState::BlankReturn, b'\n') => {
                    self.line = LineState::Start;
                    self.content
                }
                (LineState::Start, b'\r') => {
                    self.line = LineState::BlankReturn;
                    false
                }
                (_, b'\n') => {
                    self.line = LineState::Start;
                    false
                }
                (_, b'\r') => {
                    self.line = LineState::Return;
                    false
                }
                _ => {
                    self.line = LineState::Inside;
                    self.content = true;
                    false
                }
            };
            if ended {
                return Some(self.scanned);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn split(chunks: &[&[u8]]) -> (Vec<Vec<u8>>, Vec<u8>) {
        let mut splitter = Splitter::default();
        let mut events = Vec::new();
        for chunk in chunks {
            splitter.push(Bytes::copy_from_slice(chunk));
            while let Some(event) = splitter.next() {
                events.push(event.unwrap().to_vec());
            }
        }
        (events, splitter.rest().to_vec())
    }

    #[test]
    fn events_end_with_a_blank_line_of_any_kind() {
        for end in ["\n", "\r\n", "\r"] {
            let text =
                format!("data: 1{end}{end}: c{end}data: 2{end}data: 3{end}{end}data: 4{end}");
            let (events, rest) = split(&[text.as_bytes()]);
            assert_eq!(events.len(), 2, "{events:?}");
            assert_eq!(events[1], format!(": c{end}data: 2{end}data: 3{end}{end}").as_bytes());
            assert_eq!(rest, format!("data: 4{end}").as_bytes());
        }
    }

    #[test]
    fn line_endings_may_be_mixed() {
        let (events, rest) = split(&[b"data: 1\n\rdata: 2\r\n\ndata: 3\r\r\ndata: 4\n\r", b"\n"]);
        let want: [&[u8]; 4] =
            [b"data: 1\n\r", b"data: 2\r\n\n", b"data: 3\r\r", b"\ndata: 4\n\r\n"];
        assert_eq!(events, want);
        assert!(rest.is_empty());
    }

    #[test]
    fn an_event_inside_a_chunk_shares_its_allocation() {
        let chunk = Bytes::from_static(b"data: 1\n\ndata: 2\n\n");
        let mut splitter = Splitter::default();
        splitter.push(chunk.clone());
        assert_eq!(splitter.next().unwrap().unwrap().as_ptr(), chunk.as_ptr());
        assert_eq!(splitter.next().unwrap().unwrap().as_ptr(), chunk[9..].as_ptr());
    }

    #[test]
    fn an_event_beyond_the_bound_is_an_error_and_is_not_kept() {
        let mut splitter = Splitter::new(16);
        splitter.push(Bytes::from_static(b"data: 0123456789abcdef"));
        assert_eq!(splitter.next(), Some(Err(TooLong(16))));
        let mut splitter = Splitter::new(16);
        splitter.push(Bytes::from_static(b"data: 1\n\ndata: 2\n\n"));
        assert!(splitter.next().unwrap().is_ok() && splitter.next().unwrap().is_ok());
    }

    proptest! {
        #[test]
        fn any_chunking_gives_equal_events(
            text in "(data|event|:|a|\n|\r|\r\n|\n\n|\r\n\r\n|\r\r|é){0,30}",
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let bytes = text.as_bytes();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|w| &bytes[w[0]..w[1]]).collect();
            let whole = split(&[bytes]);
            prop_assert_eq!(&split(&chunks), &whole);
            prop_assert_eq!([whole.0.concat(), whole.1].concat(), bytes);
        }
    }
}
