//! The id that an engine gives a response of `/v1/responses`, by which a later request continues
//! it.

use super::json::{JsonType, Raw};
use super::sse;

/// Maximum length of an id. Longer ones are ignored.
pub const MAX_ID: usize = 128;

/// The id in a complete answer.
///
/// ```
/// use router_core::sglang::response;
///
/// assert_eq!(response::id(br#"{"object":"response","id":"resp_1"}"#).as_deref(), Some("resp_1"));
/// assert_eq!(response::id(br#"{"error":{}}"#), None);
/// ```
pub fn id(answer: &[u8]) -> Option<String> {
    named(Raw::parse(answer).ok()?)
}

/// The id in one of the first events of a stream, which contain the response so far.
///
/// ```
/// use router_core::sglang::response;
///
/// let event = b"event: response.created\ndata: {\"response\":{\"id\":\"resp_1\"}}\n\n";
/// assert_eq!(response::event_id(event).as_deref(), Some("resp_1"));
/// ```
pub fn event_id(event: &[u8]) -> Option<String> {
    let data = sse::data(event)?;
    let whole = Raw::parse(&data).ok().filter(|whole| whole.kind() == JsonType::Object)?;
    named(whole.get("response")?)
}

fn named(response: Raw<'_>) -> Option<String> {
    if response.kind() != JsonType::Object {
        return None;
    }
    let id = response.get("id")?.as_str()?;
    (id.len() <= MAX_ID).then(|| id.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_without_a_valid_id_give_none() {
        for answer in [&b""[..], b"[]", b"7", b"{\"id\":7}", b"{\"id\":null}"] {
            assert_eq!(id(answer), None);
        }
        for event in [&b"data: [DONE]\n\n"[..], b"data: {\"id\":\"a\"}\n\n", b": ping\n\n"] {
            assert_eq!(event_id(event), None);
        }
        let long = format!("{{\"id\":\"{}\"}}", "x".repeat(MAX_ID + 1));
        assert_eq!(id(long.as_bytes()), None);
    }
}
