//! The law of load frames.

use bytes::{Bytes, BytesMut};

use crate::frame::{self, MAX_FRAME_BYTES};

/// Load frames: the result does not depend on how the stream is cut, and an accepted frame is within
/// its bounds and equals the result of decoding its own encoding.
pub fn frame(bytes: &[u8]) {
    let whole = frames([bytes]);
    for cut in [bytes.len() / 2, bytes.len().min(3), bytes.len().saturating_sub(1)] {
        let (head, tail) = bytes.split_at(cut);
        assert_eq!(frames([head, tail]), whole, "cut at {cut}");
    }
    // The input as the content of one frame, too: a random length is hardly ever right.
    for content in whole.iter().map(|frame| &frame[..]).chain([bytes]) {
        if let Ok(frame) = frame::decode(content) {
            let mut again = BytesMut::new();
            frame.encode(&mut again);
            assert!(again.len() <= MAX_FRAME_BYTES + 4);
            let taken = frame::split_frame(&mut again).expect("within the limit").expect("whole");
            assert_eq!(frame::decode(&taken), Ok(frame));
        }
    }
}

/// Returns the frames of a stream in these pieces, up to the first malformed one.
fn frames<const N: usize>(pieces: [&[u8]; N]) -> Vec<Bytes> {
    let (mut stream, mut frames) = (BytesMut::new(), Vec::new());
    for piece in pieces {
        stream.extend_from_slice(piece);
        while let Ok(Some(frame)) = frame::split_frame(&mut stream) {
            frames.push(frame);
        }
    }
    frames
}

#[cfg(test)]
mod tests {
    use super::super::inputs;

    #[test]
    fn the_corpus_of_frames_begins_with_frames_of_every_kind() {
        let corpus = inputs::corpus("frame");
        let frames = corpus.iter().filter_map(|bytes| crate::frame::decode(bytes).ok());
        let mut kinds: Vec<_> = frames.map(|frame| std::mem::discriminant(&frame.body)).collect();
        kinds.dedup();
        assert_eq!(kinds.len(), 3, "a heartbeat, all, what changed");
    }

    #[test]
    fn bytes_near_frames_keep_the_law() {
        inputs::try_law("frame", super::frame, 20_000);
    }
}
