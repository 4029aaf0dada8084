//! The law of compressed bodies.

use std::io::{Read, Write};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::{GzDecoder, GzEncoder, ZlibDecoder, ZlibEncoder};

use super::super::content_coding::{ContentCoding, decode_now};
use crate::http_client::collector::BodyMemory;

/// Memory for the bodies of one input, in bytes.
const MEMORY: usize = 1 << 20;

/// A body and, as its first byte, how it is used. Decoded as any coding it stays within its limits, gives its
/// memory back, and is what another decoder makes of it. Encoded and decoded it is the same, and
/// a part of an encoded body is none.
pub fn coding(bytes: &[u8]) {
    let Some((first, body)) = bytes.split_first() else { return };
    for coding in [ContentCoding::Gzip, ContentCoding::Deflate, ContentCoding::Zstd] {
        decoded(coding, body);
    }
    let coding = match first % 3 {
        0 => ContentCoding::Gzip,
        1 => ContentCoding::Deflate,
        _ => ContentCoding::Zstd,
    };
    let encoded = encode(coding, body);
    let whole = decode(coding, &encoded, MEMORY).expect("it is of the coding");
    assert_eq!(whole.expect("within the limit"), body);
    let end = usize::from(first / 3) % encoded.len();
    if let Ok(part) = decode(coding, &encoded[..end], MEMORY) {
        // Some decoders take nothing at all as a body without content.
        assert!(end == 0 && part == Ok(Bytes::new()), "{end} of {}", encoded.len());
    }
}

fn decoded(coding: ContentCoding, body: &[u8]) {
    let Ok(whole) = decode(coding, body, MEMORY) else { return };
    let Ok(whole) = whole else {
        return assert_eq!(whole, Err("body_too_large"));
    };
    if let Some(other) = by_another(coding, body) {
        assert_eq!(whole, other);
    }
    assert_eq!(decode(coding, body, whole.len()).ok(), Some(Ok(whole.clone())));
    if let Some(short) = whole.len().checked_sub(1) {
        assert_eq!(decode(coding, body, short).ok(), Some(Err("body_too_large")));
    }
}

/// The result, or the reason of the refusal; an error if the body is not of the coding.
fn decode(
    coding: ContentCoding,
    body: &[u8],
    limit: usize,
) -> std::io::Result<Result<Bytes, &'static str>> {
    let memory = BodyMemory::new(MEMORY);
    let result = decode_now(coding, body, limit, memory.clone());
    let result = result.map(|decoded| {
        let decoded = decoded.map_err(|reject| reject.reason())?;
        assert!(decoded.len() <= limit);
        Ok(Bytes::copy_from_slice(&decoded))
    });
    memory.charge(Bytes::from(vec![0; MEMORY])).expect("all of it is free again");
    result
}

/// What a decoder of another form makes of the body, if it is one stream.
fn by_another(coding: ContentCoding, body: &[u8]) -> Option<Vec<u8>> {
    fn finished<D: Write>(
        mut decoder: D,
        body: &[u8],
        finish: impl FnOnce(D) -> std::io::Result<Vec<u8>>,
    ) -> Option<Vec<u8>> {
        // Whatever follows the stream is not taken.
        let taken = decoder.write(body).ok()?;
        (taken == body.len()).then(|| finish(decoder).ok()).flatten()
    }
    match coding {
        ContentCoding::Gzip => finished(GzDecoder::new(Vec::new()), body, GzDecoder::finish),
        ContentCoding::Deflate => finished(ZlibDecoder::new(Vec::new()), body, ZlibDecoder::finish),
        ContentCoding::Zstd => {
            let mut out = Vec::new();
            let mut decoder = zstd::stream::read::Decoder::with_buffer(body).ok()?.single_frame();
            decoder.read_to_end(&mut out).ok()?;
            decoder.finish().is_empty().then_some(out)
        }
    }
}

fn encode(coding: ContentCoding, body: &[u8]) -> Vec<u8> {
    let encoded = match coding {
        ContentCoding::Gzip => {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(body).and_then(|()| encoder.finish())
        }
        ContentCoding::Deflate => {
            let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(body).and_then(|()| encoder.finish())
        }
        ContentCoding::Zstd => zstd::encode_all(body, 1),
    };
    encoded.expect("writing to memory does not fail")
}

#[cfg(test)]
mod tests {
    #[test]
    fn bytes_near_compressed_bodies_keep_the_law() {
        crate::laws::inputs::try_law("coding", super::coding, 2_000);
    }
}
