//! [`Frames`]: cuts what an agent sends into frames.

use bytes::{Buf, BytesMut};
use router_core::frame::{LENGTH_BYTES, first};

use super::ended::Ended;

/// Cuts what comes into frames. Usually a piece is a frame, and nothing is copied.
#[derive(Default)]
pub(super) struct Frames {
    /// The begin of a frame whose end has not come.
    begun: BytesMut,
}

impl Frames {
    /// Hands every frame that is whole by now to `each`, its length not among its bytes.
    pub(super) fn take(
        &mut self,
        piece: &[u8],
        mut each: impl FnMut(&[u8]) -> Result<(), Ended>,
    ) -> Result<(), Ended> {
        let is_new = self.begun.is_empty();
        if !is_new {
            self.begun.extend_from_slice(piece);
        }
        let all = if is_new { piece } else { &self.begun };
        let mut taken = 0;
        while let Some(frame) = first(&all[taken..])? {
            each(frame)?;
            taken += LENGTH_BYTES + frame.len();
        }
        match is_new {
            true => self.begun.extend_from_slice(&piece[taken..]),
            false => self.begun.advance(taken),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use router_core::frame::{Frame, decode};

    use super::*;

    #[test]
    fn frames_are_whole_however_they_come() {
        let mut sent = BytesMut::new();
        for sequence in 1..=5 {
            Frame { sequence, ..Frame::default() }.encode(&mut sent);
        }
        for size in 1..=sent.len() {
            let (mut frames, mut heard) = (Frames::default(), Vec::new());
            for piece in sent.chunks(size) {
                let each = |bytes: &[u8]| {
                    heard.push(decode(bytes)?.sequence);
                    Ok(())
                };
                frames.take(piece, each).unwrap();
            }
            assert_eq!(heard, [1, 2, 3, 4, 5], "in pieces of {size} bytes");
            assert!(frames.begun.is_empty());
        }
    }

    #[test]
    fn what_cannot_be_a_frame_ends_it() {
        let refused = Frames::default().take(&[0xff; 8], |_| Ok(()));
        assert!(matches!(refused, Err(Ended::Bad(_))));
    }
}
