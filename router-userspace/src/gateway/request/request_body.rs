//! Reads the whole body of a request, within its limits of size, time and memory.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http::header::CONTENT_ENCODING;
use http_body::Body;
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::reject::Reject;
use crate::http_client::client_body::ClientBody;
use crate::http_client::pace::Pace;

/// Reads the whole body of a request. The permits are the body's bytes in `memory`, to be kept as long
/// as the body.
///
/// # Errors
/// The body is encoded, is over `limit` bytes, or exceeds the permits of `memory`; the client is slower
/// than [`Pace`] allows with `idle_timeout`, or closes the connection.
pub(crate) async fn read(
    headers: &HeaderMap,
    body: ClientBody,
    limit: usize,
    idle_timeout: Duration,
    memory: &Arc<Semaphore>,
) -> Result<(Bytes, OwnedSemaphorePermit), Reject> {
    check_encoding(headers)?;
    let announced =
        body.size_hint().exact().map(|length| usize::try_from(length).unwrap_or(usize::MAX));
    if announced.is_some_and(|length| length > limit) {
        return Err(Reject::BodyTooLarge(limit));
    }
    collect(body, announced, limit, idle_timeout, memory).await
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

async fn collect(
    mut body: ClientBody,
    announced: Option<usize>,
    limit: usize,
    idle_timeout: Duration,
    memory: &Arc<Semaphore>,
) -> Result<(Bytes, OwnedSemaphorePermit), Reject> {
    let mut permits = reserve(memory, 0)?;
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    let mut pace = Pace::new(idle_timeout);
    loop {
        let start = Instant::now();
        let frame = timeout_at(pace.deadline(start), body.frame()).await;
        let Some(frame) = frame.map_err(|_| Reject::BodyTimeout(idle_timeout))? else { break };
        let frame = frame?;
        let Ok(data) = frame.into_data() else { continue };
        pace.received(data.len(), start);
        if first.len() + all.len() + data.len() > limit {
            return Err(Reject::BodyTooLarge(limit));
        }
        permits.merge(reserve(memory, data.len())?);
        if first.is_empty() && all.is_empty() {
            // A small body comes in one piece and is not copied.
            first = data;
            continue;
        }
        if all.is_empty() {
            // The announced length, but not more than 1 MiB at once: memory is not allocated for an
            // announcement alone.
            all.reserve(announced.unwrap_or(0).min(1 << 20).max(first.len() + data.len()));
            all.extend_from_slice(&std::mem::take(&mut first));
        }
        all.extend_from_slice(&data);
    }
    Ok((if all.is_empty() { first } else { all.freeze() }, permits))
}

fn reserve(memory: &Arc<Semaphore>, bytes: usize) -> Result<OwnedSemaphorePermit, Reject> {
    let bytes = u32::try_from(bytes).map_err(|_| Reject::NoMemory)?;
    Arc::clone(memory).try_acquire_many_owned(bytes).map_err(|_| Reject::NoMemory)
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
