//! Decodes compressed request bodies, within their limits of size, memory and processors.

use std::io::{self, Read};
use std::sync::Arc;
use std::thread::available_parallelism;

use bytes::Bytes;
use http::header::CONTENT_ENCODING;
use http::{HeaderMap, HeaderName};
use tokio::sync::Semaphore;

use super::reject::Reject;
use crate::http_client::collector::{BodyMemory, Collector};

/// The codings that are decoded, as `Accept-Encoding` lists them.
pub(crate) const ACCEPTED: &str = "gzip, deflate, zstd";
/// Names the coding of a body for SGLang from 0.5.23 on (`http_request_decompression.py`).
const BODY_COMPRESSED: HeaderName = HeaderName::from_static("x-body-compressed");
/// Size of the pieces that are decoded at once, in bytes.
const PIECE: usize = 64 << 10;
/// Maximum window of zstd, as a power of two: 8 MiB, the most that a sender may use over HTTP (RFC 9659).
const MAX_WINDOW_LOG: u32 = 23;

/// The coding of a request's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ContentCoding {
    Gzip,
    /// The format of zlib (RFC 9110, section 8.4.1.2).
    Deflate,
    Zstd,
}

impl ContentCoding {
    /// The coding of a body; `None` if it is sent as it is.
    ///
    /// Names are case-insensitive, and `identity` and empty elements of the list are no coding (RFC 9110,
    /// section 8.4.1).
    ///
    /// # Errors
    /// There are several codings, or one that is not decoded.
    pub(crate) fn of(headers: &HeaderMap) -> Result<Option<ContentCoding>, Reject> {
        let mut found = None;
        let fields = headers.get_all(CONTENT_ENCODING).into_iter();
        for field in fields.chain(headers.get_all(BODY_COMPRESSED)) {
            for name in field.as_bytes().split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
                let coding = match name.to_ascii_lowercase().as_slice() {
                    b"" | b"identity" => continue,
                    b"gzip" | b"x-gzip" => ContentCoding::Gzip,
                    b"deflate" => ContentCoding::Deflate,
                    b"zstd" => ContentCoding::Zstd,
                    _ => return Err(Reject::EncodedBody(String::from_utf8_lossy(name).into())),
                };
                if found.replace(coding).is_some() {
                    return Err(Reject::EncodedBody("with several codings".to_owned()));
                }
            }
        }
        Ok(found)
    }
}

/// Removes the fields that name the coding of a body, which is decoded now.
pub(super) fn remove_fields(headers: &mut HeaderMap) {
    headers.remove(CONTENT_ENCODING);
    headers.remove(BODY_COMPRESSED);
}

/// Decodes bodies, as many at once as there are processors.
#[derive(Clone, Debug)]
pub(crate) struct BodyDecoder {
    permits: Arc<Semaphore>,
}

impl BodyDecoder {
    pub(crate) fn new() -> BodyDecoder {
        let count = available_parallelism().map_or(1, usize::from);
        BodyDecoder { permits: Arc::new(Semaphore::new(count)) }
    }

    /// Decodes a body on a thread for blocking work. The result is charged to `memory`.
    ///
    /// # Errors
    /// The body is not of this coding, or the result is over `limit` bytes or exceeds `memory`.
    pub(crate) async fn decode(
        &self,
        coding: ContentCoding,
        body: Bytes,
        limit: usize,
        memory: &BodyMemory,
    ) -> Result<Bytes, Reject> {
        let broken = |why: String| Reject::BodyBroken(format!("it is no {coding:?}: {why}"));
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        let permit = permit.map_err(|error| broken(error.to_string()))?;
        let memory = memory.clone();
        let decoded = tokio::task::spawn_blocking(move || {
            // Kept until the end of the work, which a client that leaves does not stop.
            let _permit = permit;
            decode_now(coding, &body, limit, memory)
        });
        match decoded.await {
            Ok(decoded) => decoded.map_err(|error| broken(error.to_string()))?,
            // The thread panicked, or the runtime shuts down.
            Err(error) => Err(broken(error.to_string())),
        }
    }
}

/// Decodes a body on this thread. The error is of the coding, the refusal inside of a limit.
pub(super) fn decode_now(
    coding: ContentCoding,
    body: &[u8],
    limit: usize,
    memory: BodyMemory,
) -> io::Result<Result<Bytes, Reject>> {
    let mut collector = Collector::new(limit, None, Some(memory));
    let over_limit = match coding {
        ContentCoding::Gzip => collect(flate2::read::MultiGzDecoder::new(body), &mut collector),
        ContentCoding::Deflate => collect(flate2::read::ZlibDecoder::new(body), &mut collector),
        ContentCoding::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(body)?;
            decoder.window_log_max(MAX_WINDOW_LOG)?;
            collect(decoder, &mut collector)
        }
    }?;
    Ok(over_limit.map(|()| collector.finish()))
}

/// Reads everything into the collector, until one of its limits is exceeded.
fn collect(mut from: impl Read, to: &mut Collector) -> io::Result<Result<(), Reject>> {
    let mut piece = vec![0; PIECE];
    loop {
        let length = from.read(&mut piece)?;
        if length == 0 {
            return Ok(Ok(()));
        }
        // A copy holds no more memory than what it is charged for.
        if let Err(over) = to.push(Bytes::copy_from_slice(&piece[..length])) {
            return Ok(Err(over.into()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::{GzEncoder, ZlibEncoder};
    use http::HeaderValue;

    use super::*;

    fn coding_of(values: &[&'static str]) -> Result<Option<ContentCoding>, &'static str> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(CONTENT_ENCODING, HeaderValue::from_static(value));
        }
        ContentCoding::of(&headers).map_err(|reject| reject.reason())
    }

    #[test]
    fn a_coding_is_named_in_any_case_and_identity_is_none() {
        for none in [&[][..], &[""], &["identity"], &["Identity, ,"], &["identity", ""]] {
            assert_eq!(coding_of(none), Ok(None), "{none:?}");
        }
        assert_eq!(coding_of(&["identity", "GZip"]), Ok(Some(ContentCoding::Gzip)));
        assert_eq!(coding_of(&["zstd"]), Ok(Some(ContentCoding::Zstd)));
        for other in [&["br"][..], &["gzip, zstd"], &["identity", "gzip", "gzip"]] {
            assert_eq!(coding_of(other), Err("encoded_body"), "{other:?}");
        }
    }

    fn encoded(text: &[u8]) -> [(ContentCoding, Bytes); 3] {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
        gzip.write_all(text).unwrap();
        let mut deflate = ZlibEncoder::new(Vec::new(), Compression::best());
        deflate.write_all(text).unwrap();
        [
            (ContentCoding::Gzip, gzip.finish().unwrap().into()),
            (ContentCoding::Deflate, deflate.finish().unwrap().into()),
            (ContentCoding::Zstd, zstd::encode_all(text, 1).unwrap().into()),
        ]
    }

    #[tokio::test]
    async fn a_body_is_decoded_up_to_its_limits() {
        const SIZE: usize = 200_000;
        let decoder = BodyDecoder::new();
        let text: Vec<u8> = (0..SIZE).map(|at| (at / 7 % 251) as u8).collect();
        for (coding, body) in encoded(&text) {
            let memory = BodyMemory::new(300_000);
            let whole = decoder.decode(coding, body.clone(), SIZE, &memory).await.unwrap();
            assert_eq!(whole, text);
            assert!(memory.charge(Bytes::from(vec![0; 100_001])).is_err(), "it is not charged");
            drop(whole);
            let over = decoder.decode(coding, body.clone(), SIZE - 1, &memory).await;
            assert_eq!(over.unwrap_err().reason(), "body_too_large", "{coding:?}");
            let scarce = BodyMemory::new(1000);
            let scarce = decoder.decode(coding, body.clone(), SIZE, &scarce).await;
            assert_eq!(scarce.unwrap_err().reason(), "body_memory", "{coding:?}");
            for broken in [body.slice(..body.len() / 2), Bytes::from_static(b"{\"text\": 1}")] {
                let broken = decoder.decode(coding, broken, SIZE, &memory).await;
                assert_eq!(broken.unwrap_err().reason(), "body_broken", "{coding:?}");
            }
            memory.charge(Bytes::from(vec![0; 300_000])).expect("everything is released");
        }
    }

    #[test]
    fn a_decoded_body_holds_no_more_memory_than_its_size() {
        let text = [b'a'; 200];
        let mut collector = Collector::new(PIECE, None, None);
        collect(&text[..], &mut collector).unwrap().unwrap();
        let body = collector.finish().try_into_mut().expect("nothing else has it");
        assert_eq!((body.len(), body.capacity()), (200, 200));
    }

    #[tokio::test]
    async fn a_window_over_8_mib_is_refused() {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(24).unwrap();
        encoder.write_all(&[b'a'; 100]).unwrap();
        let body = encoder.finish().unwrap().into();
        let (decoder, memory) = (BodyDecoder::new(), BodyMemory::new(100));
        let decoded = decoder.decode(ContentCoding::Zstd, body, 100, &memory).await;
        assert_eq!(decoded.unwrap_err().reason(), "body_broken");
    }
}
