//! What the two engines of a pair got: the same body, and our few fields behind it.

use bytes::Bytes;
use serde_json::Value;
use sglang_sim::Received;

/// Fields that the gateway appends to both legs.
pub const OURS: [&str; 4] = ["bootstrap_host", "bootstrap_port", "bootstrap_room", "rid"];

/// The body as the client wrote it: without what the gateway appended before the last brace.
///
/// # Panics
/// What was appended is not exactly our fields.
#[must_use]
pub fn without_ours(leg: &Received) -> Bytes {
    let body = &leg.body;
    let needle = b"\"bootstrap_host\":";
    let at = (0..body.len())
        .rev()
        .find(|at| body[*at..].starts_with(needle))
        .unwrap_or_else(|| panic!("no bootstrap_host in {}", String::from_utf8_lossy(body)));
    let brace = body.iter().rposition(|byte| *byte == b'}').expect("a body is an object");
    // Ours come right behind the client's last value, before the white space that follows it.
    let end = at + body[at..brace].trim_ascii_end().len();
    let ours = [b"{", &body[at..end], b"}"].concat();
    let ours: Value = serde_json::from_slice(&ours).expect("our fields come last");
    let mut names: Vec<&str> =
        ours.as_object().expect("an object").keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, OURS);
    let comma = if body[..at].ends_with(b",") { 1 } else { 0 };
    [&body[..at - comma], &body[end..]].concat().into()
}

/// Checks that two legs are the two halves of one attempt.
///
/// # Panics
/// They are not.
pub fn assert_pair(prefill: &Received, decode: &Received) {
    let (prefill_body, decode_body) = (prefill.json(), decode.json());
    for field in OURS {
        assert!(!prefill_body[field].is_null(), "prefill got no {field}");
        assert_eq!(prefill_body[field], decode_body[field], "{field} differs");
    }
    assert_ne!(prefill_body["stream"], true, "prefill must answer with a status");
}

/// The rooms of a list of legs.
#[must_use]
pub fn rooms(legs: &[Received]) -> Vec<u64> {
    legs.iter().flat_map(|leg| leg.rooms.clone()).collect()
}
