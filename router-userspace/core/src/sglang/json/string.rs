//! Reads and writes JSON strings.

use std::borrow::Cow;

/// The text of a checked string token (including quotes). `None` for a lone surrogate, which a Rust
/// string cannot contain.
pub(crate) fn unquote(token: &[u8]) -> Option<Cow<'_, str>> {
    let inner = token.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    if !inner.contains(&b'\\') {
        return std::str::from_utf8(inner).ok().map(Cow::Borrowed);
    }
    serde_json::from_slice(token).ok().map(Cow::Owned)
}

/// Appends `text` as a JSON string.
pub(crate) fn quote(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("writing a string to memory does not fail");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_decoded_and_lone_surrogates_are_none() {
        assert_eq!(unquote(br#""bootstrap\u005froom""#).as_deref(), Some("bootstrap_room"));
        assert_eq!(unquote(br#""\ud83d\ude00""#).as_deref(), Some("😀"));
        assert_eq!(unquote(br#""\ud800""#), None);
        assert_eq!(unquote(b"12"), None);
    }

    #[test]
    fn quoted_text_is_unquoted_to_itself() {
        let mut out = Vec::new();
        quote(&mut out, "a\"b\\\n\u{1}é");
        assert_eq!(unquote(&out).as_deref(), Some("a\"b\\\n\u{1}é"));
    }
}
