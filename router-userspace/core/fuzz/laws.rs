//! Properties that hold for any input bytes, used by the unit tests and the fuzz targets. A violated
//! property panics.

use bytes::{Bytes, BytesMut};
use router_core::frame::{self, MAX_FRAME_BYTES};
use router_core::pair::Pair;
use router_core::sglang::{Attempt, BootstrapAddress, Endpoint, Request, Rid, Room};
use serde::de::IgnoredAny;

/// Load frames: the result does not depend on how the stream is cut, and an accepted frame is within
/// its bounds and equals the result of decoding its own encoding.
pub(crate) fn frame(bytes: &[u8]) {
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

/// Requests, with the endpoint chosen by the first byte: an accepted request yields bodies that are
/// JSON for another parser, and injecting into them again changes nothing.
pub(crate) fn request(bytes: &[u8]) {
    let Some((first, body)) = bytes.split_first() else { return };
    let endpoint = Endpoint::ALL[usize::from(*first) % Endpoint::ALL.len()];
    let Ok(request) = Request::parse(endpoint, Bytes::copy_from_slice(body)) else { return };
    assert!(serde_json::from_slice::<IgnoredAny>(body).is_ok(), "accepted, but not JSON");
    let prompt: usize = request.prompt_text().map(<[u8]>::len).sum();
    assert!(prompt <= body.len());
    let once = inject(&request);
    for (of, streams) in [(prefill as Leg, false), (decode, request.stream())] {
        let leg = of(&once);
        assert!(serde_json::from_slice::<IgnoredAny>(leg).is_ok(), "{leg:?}");
        let again = Request::parse(endpoint, leg.clone()).expect("an injected body is accepted");
        assert_eq!((again.stream(), again.samples()), (streams, 1));
        assert_eq!(again.rooms(), request.rooms());
        assert_eq!(of(&inject(&again)), leg);
    }
}

type Leg = fn(&Pair<Bytes>) -> &Bytes;

fn prefill(legs: &Pair<Bytes>) -> &Bytes {
    &legs.prefill
}

fn decode(legs: &Pair<Bytes>) -> &Bytes {
    &legs.decode
}

fn inject(request: &Request) -> Pair<Bytes> {
    let rooms: Vec<Room> = (0..request.rooms() as u64).map(Room::from_random).collect();
    let rids: Vec<Rid> = (0..rooms.len() as u128).map(Rid::from_random).collect();
    request
        .inject(&Attempt {
            bootstrap: &BootstrapAddress { host: "h".into(), port: 1 },
            rooms: &rooms,
            rids: &rids,
            dp: Pair::default(),
        })
        .map(|body| body.to_bytes())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    /// Number of cases of each property. They are the same in every run.
    const CASES: u64 = 20_000;

    /// The seed corpus of the fuzzers.
    fn corpus(law: &str) -> Vec<Vec<u8>> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(law);
        let files = std::fs::read_dir(folder).expect("the corpus is part of the project");
        let mut paths: Vec<_> = files.map(|file| file.expect("it can be read").path()).collect();
        paths.sort();
        assert!(paths.len() > 2, "{law}: {paths:?}");
        paths.iter().map(|path| std::fs::read(path).expect("it can be read")).collect()
    }

    /// The pseudo-random numbers of splitmix64.
    struct Chance(u64);

    impl Chance {
        fn below(&mut self, n: usize) -> usize {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((u128::from(z ^ (z >> 31)) * n as u128) >> 64) as usize
        }
    }

    /// Mutates an input a few times: inserts a part of another, cuts, duplicates, or changes a byte.
    fn mutated(corpus: &[Vec<u8>], chance: &mut Chance) -> Vec<u8> {
        let mut bytes = corpus[chance.below(corpus.len())].clone();
        for _ in 0..=chance.below(4) {
            let at = chance.below(bytes.len() + 1);
            let other = &corpus[chance.below(corpus.len())];
            let from = chance.below(other.len() + 1);
            let part = &other[from..(from + chance.below(24)).min(other.len())];
            match chance.below(6) {
                0 => drop(bytes.splice(at..at, part.iter().copied())),
                1 => bytes.truncate(at),
                2 => drop(bytes.drain(at..(at + chance.below(12)).min(bytes.len()))),
                3 => bytes.extend_from_within(at..(at + chance.below(24)).min(bytes.len())),
                // Bytes that are significant in JSON or in numbers.
                4 if at < bytes.len() => {
                    bytes[at] =
                        *b"\"\\{}[]:,0-e\x00\xff\x7f\x80 ".get(chance.below(17)).unwrap_or(&0);
                }
                _ if at < bytes.len() => bytes[at] ^= 1 << chance.below(8),
                _ => {}
            }
        }
        bytes
    }

    fn holds(law: fn(&[u8]), name: &str) {
        let corpus = corpus(name);
        corpus.iter().for_each(|bytes| law(bytes));
        let mut chance = Chance(7);
        (0..CASES).for_each(|_| law(&mutated(&corpus, &mut chance)));
    }

    #[test]
    fn the_corpus_of_frames_begins_with_frames_of_every_kind() {
        let corpus = corpus("frame");
        let frames = corpus.iter().filter_map(|b| router_core::frame::decode(b).ok());
        let mut kinds: Vec<_> = frames.map(|f| std::mem::discriminant(&f.body)).collect();
        kinds.dedup();
        assert_eq!(kinds.len(), 3, "a heartbeat, all, what changed");
    }

    #[test]
    fn bytes_near_frames_keep_the_laws_of_frames() {
        holds(super::frame, "frame");
    }

    #[test]
    fn bytes_near_requests_keep_the_laws_of_requests() {
        holds(super::request, "request");
    }
}
