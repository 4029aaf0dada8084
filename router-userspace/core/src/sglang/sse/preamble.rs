//! Events before the first generated token.

use super::super::Endpoint;
use super::super::json::Raw;

/// Whether an event carries no generated content, so that the next event may still be an error.
///
/// Some streams begin with such events: `/v1/responses` with `response.created`, `/v1/messages`
/// with
/// `message_start` (even before an error), chat with the role. A gateway that may still retry on
/// another pair buffers them and checks the next event.
///
/// ```
/// use router_core::sglang::{Endpoint, sse};
/// let role = br#"data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}"#;
/// assert!(sse::is_preamble(Endpoint::Chat, role));
/// ```
pub fn is_preamble(endpoint: Endpoint, event: &[u8]) -> bool {
    let Some(data) = super::data(event) else { return true };
    let named = |names: &[&[u8]]| super::name(event).is_some_and(|name| names.contains(&name));
    match endpoint {
        Endpoint::Responses => named(&[b"response.created", b"response.in_progress"]),
        Endpoint::Messages => named(&[b"message_start", b"ping"]),
        Endpoint::Generate | Endpoint::Completions => false,
        Endpoint::Chat => memchr::memmem::find(&data, b"\"role\"").is_some() && is_role_only(&data),
    }
}

fn is_role_only(data: &[u8]) -> bool {
    let Ok(chunk) = Raw::parse(data) else { return false };
    let Some(choices) = chunk.get("choices") else { return false };
    let nothing = |value: Option<Raw<'_>>| {
        value.is_none_or(|v| v.is_null() || v.bytes() == b"\"\"" || v.bytes() == b"[]")
    };
    choices.elements().next().is_some()
        && choices.elements().all(|choice| {
            nothing(choice.get("finish_reason"))
                && choice.get("delta").is_some_and(|delta| {
                    delta.members().all(|m| m.is("role") || nothing(Some(m.value)))
                })
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_without_content_are_preamble() {
        use Endpoint::{Chat, Completions, Messages, Responses};
        for (endpoint, event, want) in [
            (
                Chat,
                r#"data: {"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#,
                true,
            ),
            (Chat, r#"data: {"choices":[{"delta":{"role":"assistant","content":"a"}}]}"#, false),
            (
                Chat,
                r#"data: {"choices":[{"delta":{"role":"assistant"},"finish_reason":"abort"}]}"#,
                false,
            ),
            (Chat, r#"data: {"choices":[{"delta":{"content":"a \"role\""}}]}"#, false),
            (Chat, r#"data: {"error":{"message":"role"}}"#, false),
            (Chat, ": ping", true),
            (Completions, r#"data: {"choices":[{"text":""}]}"#, false),
            (Responses, "event: response.created\ndata: {}", true),
            (Responses, "event: response.output_text.delta\ndata: {}", false),
            (Messages, "event: message_start\ndata: {}", true),
            (Messages, "event: error\ndata: {}", false),
        ] {
            assert_eq!(is_preamble(endpoint, event.as_bytes()), want, "{event}");
        }
    }
}
