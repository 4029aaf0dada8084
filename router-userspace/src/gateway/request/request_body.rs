//! Reads the whole body of a request, within its limits of size, time and memory.

use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_ENCODING;
use http_body::Body;
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout_at};

use super::reject::Reject;
use crate::http_client::client_body::ClientBody;
use crate::http_client::collector::{BodyMemory, Collector};
use crate::http_client::pace::Pace;

/// Reads the whole body of a request. It is charged to `memory` until its last part is dropped.
///
/// # Errors
/// The body is encoded, is over `limit` bytes, or exceeds `memory`; the client is slower than [`Pace`]
/// allows with `idle_timeout`, or closes the connection.
pub(crate) async fn read(
    headers: &HeaderMap,
    mut body: ClientBody,
    limit: usize,
    idle_timeout: Duration,
    memory: &BodyMemory,
) -> Result<Bytes, Reject> {
    check_encoding(headers)?;
    let announced = body.size_hint().exact();
    if announced.is_some_and(|length| length > limit as u64) {
        return Err(Reject::BodyTooLarge(limit));
    }
    let mut collector = Collector::new(limit, announced, Some(memory));
    let mut pace = Pace::new(idle_timeout);
    loop {
        let start = Instant::now();
        let frame = timeout_at(pace.deadline(start), body.frame()).await;
        let Some(frame) = frame.map_err(|_| Reject::BodyTimeout(idle_timeout))? else { break };
        let Ok(data) = frame?.into_data() else { continue };
        pace.received(data.len(), start);
        collector.push(data)?;
    }
    Ok(collector.finish())
}

/// Refuses an encoded body. Names are case-insensitive, and `identity` and empty elements of the list
/// are no coding (RFC 9110, section 8.4.1).
fn check_encoding(headers: &HeaderMap) -> Result<(), Reject> {
    let fields = headers.get_all(CONTENT_ENCODING).into_iter();
    let names = fields.flat_map(|field| field.as_bytes().split(|&byte| byte == b','));
    let mut names = names.map(<[u8]>::trim_ascii);
    let encoded = names.find(|name| !name.is_empty() && !name.eq_ignore_ascii_case(b"identity"));
    match encoded {
        Some(name) => Err(Reject::EncodedBody(String::from_utf8_lossy(name).into_owned())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn an_encoding_is_refused_in_any_case_and_identity_is_none() {
        let check = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(CONTENT_ENCODING, HeaderValue::from_static(value));
            }
            check_encoding(&headers).map_err(|reject| reject.reason())
        };
        for none in [&[][..], &[""], &["identity"], &["Identity, ,"], &["identity", ""]] {
            assert_eq!(check(none), Ok(()), "{none:?}");
        }
        for some in [&["GZip"][..], &["identity, br"], &["identity", "zstd"]] {
            assert_eq!(check(some), Err("encoded_body"), "{some:?}");
        }
    }
}
