//! [`FrameSplitter`]: cuts the bytes that an agent sends into frames.

use bytes::{Buf, BytesMut};
use router_core::frame::{LENGTH_BYTES, first_frame};

use super::stream_error::StreamError;

/// Cuts bytes into frames. A piece usually is a whole frame; then nothing is copied.
#[derive(Default)]
pub(super) struct FrameSplitter {
    /// The start of a frame whose end has not arrived.
    partial: BytesMut,
}

impl FrameSplitter {
    /// Calls `each` with the bytes of every complete frame, without the length prefix.
    pub(super) fn push(
        &mut self,
        piece: &[u8],
        mut each: impl FnMut(&[u8]) -> Result<(), StreamError>,
    ) -> Result<(), StreamError> {
        let is_new = self.partial.is_empty();
        if !is_new {
            self.partial.extend_from_slice(piece);
        }
        let all = if is_new { piece } else { &self.partial };
        let mut consumed = 0;
        while let Some(frame) = first_frame(&all[consumed..])? {
            each(frame)?;
            consumed += LENGTH_BYTES + frame.len();
        }
        match is_new {
            true => self.partial.extend_from_slice(&piece[consumed..]),
            false => self.partial.advance(consumed),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use router_core::frame::{Frame, decode};

    use super::*;

    #[test]
    fn frames_are_whole_however_the_stream_is_cut() {
        let mut sent = BytesMut::new();
        for sequence in 1..=5 {
            Frame { sequence, ..Frame::default() }.encode(&mut sent);
        }
        for size in 1..=sent.len() {
            let (mut splitter, mut received) = (FrameSplitter::default(), Vec::new());
            for piece in sent.chunks(size) {
                let each = |bytes: &[u8]| {
                    received.push(decode(bytes)?.sequence);
                    Ok(())
                };
                splitter.push(piece, each).unwrap();
            }
            assert_eq!(received, [1, 2, 3, 4, 5], "in pieces of {size} bytes");
            assert!(splitter.partial.is_empty());
        }
    }

    #[test]
    fn a_length_over_the_limit_is_an_error() {
        let refused = FrameSplitter::default().push(&[0xff; 8], |_| Ok(()));
        assert!(matches!(refused, Err(StreamError::Malformed(_))));
    }
}
