//! Server-sent events, as engines write them and clients read them.
//!
//! An event is kept as the bytes that arrived, including its final blank line, so forwarding the
//! events of a [`Splitter`] forwards the stream.

mod preamble;
mod splitter;

pub use preamble::is_preamble;
pub use splitter::{MAX_EVENT, Splitter, TooLong};

use std::borrow::Cow;

/// The last event of an OpenAI stream and of a `/generate` stream.
pub const DONE: &[u8] = b"data: [DONE]\n\n";

/// The payload of an event: its `data` lines. `None` if it has none, such as a comment.
///
/// ```
/// use router_core::sglang::sse;
/// assert_eq!(sse::data(b"event: x\ndata: {\"a\":1}\n\n").as_deref(), Some(&b"{\"a\":1}"[..]));
/// assert_eq!(sse::data(b": keep-alive\n\n"), None);
/// ```
pub fn data(event: &[u8]) -> Option<Cow<'_, [u8]>> {
    let mut all: Option<Cow<'_, [u8]>> = None;
    for line in lines(event) {
        let Some(value) = field(line, b"data") else { continue };
        all = Some(match all {
            None => Cow::Borrowed(value),
            Some(before) => {
                let mut joined = before.into_owned();
                joined.push(b'\n');
                joined.extend_from_slice(value);
                Cow::Owned(joined)
            }
        });
    }
    all
}

/// The `event` field.
pub fn name(event: &[u8]) -> Option<&[u8]> {
    lines(event).filter_map(|line| field(line, b"event")).last()
}

/// Whether an event begins with a comment and has no payload: clients skip it.
///
/// ```
/// use router_core::sglang::sse;
/// assert!(sse::is_comment(b": ping - 2026-01-01\r\n\r\n"));
/// assert!(!sse::is_comment(b": ping\ndata: 1\n\n"));
/// ```
pub fn is_comment(event: &[u8]) -> bool {
    event.first() == Some(&b':') && data(event).is_none()
}

/// Whether this is the `[DONE]` that ends a stream.
pub fn is_done(event: &[u8]) -> bool {
    data(event).is_some_and(|data| data.trim_ascii() == b"[DONE]")
}

/// The event with another payload.
pub(super) fn with_data(event: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(event.len() + payload.len());
    for line in lines(event) {
        if !line.is_empty() && field(line, b"data").is_none() {
            out.extend_from_slice(line);
            out.push(b'\n');
        }
    }
    write_data(payload, &mut out);
    out
}

/// Appends a payload, a `data` line for each of its lines, and the blank line that ends the event. JSON
/// may have line breaks between its tokens; those of a payload become `\n`.
pub(super) fn write_data(payload: &[u8], out: &mut Vec<u8>) {
    for line in payload.split(|byte| matches!(byte, b'\n' | b'\r')) {
        out.extend_from_slice(b"data: ");
        out.extend_from_slice(line);
        out.push(b'\n');
    }
    out.push(b'\n');
}

fn lines(event: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = event;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let end = memchr::memchr2(b'\n', b'\r', rest).unwrap_or(rest.len());
        let line = &rest[..end];
        let ending = if rest[end..].starts_with(b"\r\n") { 2 } else { 1 };
        rest = rest.get(end + ending..).unwrap_or_default();
        Some(line)
    })
}

/// The value of `line` if it is field `name`. One space after the colon is not part of it.
fn field<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let value = line.strip_prefix(name)?.strip_prefix(b":")?;
    Some(value.strip_prefix(b" ").unwrap_or(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_with_every_line_ending() {
        for end in ["\n", "\r\n", "\r"] {
            let event = format!(": c{end}event: a{end}data:1{end}id: 4{end}data:  2{end}{end}");
            assert_eq!(name(event.as_bytes()), Some(&b"a"[..]));
            assert_eq!(data(event.as_bytes()).as_deref(), Some(&b"1\n 2"[..]));
        }
        assert!(is_done(b"data: [DONE]\n\n") && is_done(b"data:[DONE]\r\n\r\n"));
        assert!(!is_done(b"data: {\"text\":\"[DONE]\"}\n\n"));
    }

    #[test]
    fn a_new_payload_keeps_the_other_fields() {
        assert_eq!(with_data(b"event: a\r\ndata: 1\r\n\r\n", b"2"), b"event: a\ndata: 2\n\n");
    }

    #[test]
    fn a_payload_of_several_lines_stays_whole() {
        let event = with_data(b"data: 1\n\n", b"{\"a\":\n2\r}");
        assert_eq!(event, b"data: {\"a\":\ndata: 2\ndata: }\n\n");
        assert_eq!(data(&event).as_deref(), Some(&b"{\"a\":\n2\n}"[..]));
    }
}
