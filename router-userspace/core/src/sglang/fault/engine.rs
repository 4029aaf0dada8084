//! Error bodies of engines, in the formats of all versions and endpoints.

use super::super::json::{JsonType, Raw};
use super::{ClientError, strip_addresses};

/// Maximum length of a message that is forwarded to a client, in bytes.
pub const MAX_MESSAGE: usize = 2048;

/// Parses an engine's error body.
///
/// Formats: `{"object":"error","message":..,"type":..,"code":..}` (chat and completions), this object
/// under `error` (`/generate`, `/v1/responses`), `{"type":"error","error":{..}}` (`/v1/messages`),
/// FastAPI's `{"detail":..}`, and plain text. The message is limited and contains no address.
///
/// ```
/// use router_core::sglang::fault::engine_error;
///
/// let error = engine_error(500, br#"{"error":{"message":"no way to http://10.0.0.1:8998/route"}}"#);
/// assert_eq!(error.message, "no way to <engine>");
/// assert_eq!((error.status, &*error.kind), (500, "server_error"));
/// ```
pub fn engine_error(status: u16, body: &[u8]) -> ClientError {
    match Raw::parse(body) {
        Ok(raw) => parse_error(status, raw),
        Err(_) => {
            let text = String::from_utf8_lossy(&body[..body.len().min(2 * MAX_MESSAGE)]);
            ClientError::new(status, sanitize(&text, status))
        }
    }
}

/// The error that a JSON value describes.
pub(super) fn parse_error(status: u16, raw: Raw<'_>) -> ClientError {
    let inner = raw.get("error").filter(|e| !e.is_null()).unwrap_or(raw);
    let text = |key| inner.get(key).and_then(Raw::as_str);
    let message = match inner.kind() {
        JsonType::String => inner.as_str(),
        _ => text("message").or_else(|| text("detail")),
    };
    let message = message.unwrap_or_else(|| match inner.get("detail").unwrap_or(inner) {
        empty if matches!(empty.bytes(), b"{}" | b"null" | b"[]") => "".into(),
        other => String::from_utf8_lossy(other.bytes()),
    });
    let mut error = ClientError::new(status, sanitize(&message, status));
    // Old engines write the status here as a string, which is not a type.
    if let Some(kind) = text("type").filter(|kind| kind.parse::<u16>().is_err() && kind != "error")
    {
        error.kind = sanitize(&kind, status);
    }
    error.param = text("param").map(|param| sanitize(&param, status));
    error.code = text("code").map(|code| sanitize(&code, status));
    error
}

/// The message for a client: limited in length, without addresses, on one line.
pub(super) fn sanitize(message: &str, status: u16) -> String {
    let mut end = message.len().min(MAX_MESSAGE);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    let line: String =
        message[..end].chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let line = strip_addresses(line.trim());
    match line.as_str() {
        "" => format!("the engine answered {status} without a message"),
        _ => line,
    }
}

/// Whether an engine reports that a request has no room. If it was sent with one, the engine drops
/// the field on this endpoint, as 0.5.12 does on `/v1/responses`.
///
/// ```
/// use router_core::sglang::fault::lacks_room;
///
/// let message = "Invalid request: Disaggregated request received without bootstrap room id";
/// assert!(lacks_room(message));
/// assert!(!lacks_room("Prefill bootstrap failed for request rank=0"));
/// ```
pub fn lacks_room(message: &str) -> bool {
    message.contains("without bootstrap room id")
}

/// Whether a failure concerns the rendezvous or the KV transfer. Then either leg may have failed: a
/// dead prefill shows as decode's 500, and the other way round. The words do not say which: of one broken
/// session Mooncake's prefill says that decode could be dead, and decode that prefill might be.
///
/// ```
/// use router_core::sglang::fault::about_transfer;
///
/// assert!(about_transfer("Losing connection with prefill instance (bootstrap_addr: <engine>)"));
/// assert!(!about_transfer("CUDA out of memory"));
/// ```
pub fn about_transfer(message: &str) -> bool {
    const SIGNS: [&str; 17] = [
        "bootstrap",
        "kvtransfer",
        "kvpoll",
        "kv transfer",
        "kv cache transfer",
        "prefill transfer failed",
        "decode transfer failed",
        "transfer thread failed",
        "transfer failed",
        "handshake failed",
        "connection with prefill",
        "prefill info",
        "prefill parallel info",
        "waiting for prefill",
        "decode instance could be dead",
        "failed to send kv",
        "kvcache from prefill",
    ];
    let message = message.to_ascii_lowercase();
    SIGNS.iter().any(|sign| message.contains(sign))
}

/// Whether a failure about the transfer is an abort that the engine was asked for, which says nothing about
/// either worker.
///
/// ```
/// use router_core::sglang::fault::is_requested_abort;
///
/// let handshake = "Decode handshake failed for request rank=0 with exception KVTransferError";
/// assert!(is_requested_abort(&format!("{handshake}(bootstrap_room=1): Aborted by AbortReq.")));
/// assert!(!is_requested_abort(&format!("{handshake}(bootstrap_room=1): prefill is not alive")));
/// ```
pub fn is_requested_abort(message: &str) -> bool {
    message.contains("Aborted by AbortReq")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_format_of_engines_is_parsed() {
        for (body, message, kind) in [
            (
                r#"{"object":"error","message":"too long","type":"BadRequestError","param":null,"code":400}"#,
                "too long",
                "BadRequestError",
            ),
            (
                r#"{"object":"error","message":"busy","type":"503","code":503}"#,
                "busy",
                "invalid_request_error",
            ),
            (r#"{"error":{"message":"no room"}}"#, "no room", "invalid_request_error"),
            (r#"{"error":{"message":"m","type":"Bad Request","code":400}}"#, "m", "Bad Request"),
            (r#"{"error":"bare"}"#, "bare", "invalid_request_error"),
            (r#"{"detail":"gone"}"#, "gone", "invalid_request_error"),
            (
                r#"{"detail":[{"loc":["body"],"msg":"x"}]}"#,
                r#"[{"loc":["body"],"msg":"x"}]"#,
                "invalid_request_error",
            ),
            (
                r#"{"type":"error","error":{"type":"overloaded_error","message":"o"}}"#,
                "o",
                "overloaded_error",
            ),
            ("Internal Server Error", "Internal Server Error", "invalid_request_error"),
            ("", "the engine answered 400 without a message", "invalid_request_error"),
            ("{}", "the engine answered 400 without a message", "invalid_request_error"),
        ] {
            let error = engine_error(400, body.as_bytes());
            assert_eq!((&*error.message, &*error.kind), (message, kind), "{body}");
        }
        let named = engine_error(400, br#"{"error":{"message":"m","param":"n","code":"c"}}"#);
        assert_eq!((named.param.as_deref(), named.code.as_deref()), (Some("n"), Some("c")));
    }

    #[test]
    fn a_long_message_is_cut_at_a_character_boundary() {
        let error = engine_error(500, "漢".repeat(MAX_MESSAGE).as_bytes());
        assert!(error.message.len() <= MAX_MESSAGE && error.message.len() > MAX_MESSAGE - 3);
    }

    #[test]
    fn transfer_failures_are_recognised_by_their_message() {
        for message in [
            "Prefill bootstrap failed for request rank=0 timed out after 8.0s in KVPoll.Bootstrapping",
            "Decode transfer failed for request rank=0 with exception KVTransferError(bootstrap_room=1): x",
            "Request 7 timed out after 8.0s in KVPoll.WaitingForInput",
            "Decode handshake failed for request rank=0: Aborted by AbortReq.",
            "Losing connection with prefill instance (bootstrap_addr: 10.77.0.2:8998)",
            "Lost connection with prefill instance",
            "Could not fetch prefill parallel info from 1.2.3.4 after 3 attempts",
            "Timed out waiting for prefill completion",
            "Decode instance could be dead: KVTransferError(bootstrap_room=1)",
            "Failed to send kv chunk of 7 to 10.77.0.3:40123",
            "Failed to get kvcache from prefill instance, it might be dead",
        ] {
            assert!(about_transfer(message), "{message}");
        }
        assert!(!about_transfer("The request queue is full."));
    }
}
