//! A checked JSON value in its text.

use std::borrow::Cow;
use std::ops::Range;

use super::plain::plain;
use super::{SyntaxError, check, unquote};

/// The type of a value, by its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JsonType {
    Object,
    Array,
    String,
    Number,
    Bool,
    Null,
}

/// One JSON value in bytes that [`check`] or [`scan`](super::scan()) accepted.
///
/// Unchecked bytes give meaningless values, not a panic.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Raw<'a>(&'a [u8]);

impl<'a> Raw<'a> {
    /// Checks `text` and returns it as one value.
    pub(crate) fn parse(text: &'a [u8]) -> Result<Raw<'a>, SyntaxError> {
        check(text)?;
        Ok(Raw(text.trim_ascii()))
    }

    /// A value in text that has been checked.
    pub(crate) fn trusted(value: &'a [u8]) -> Raw<'a> {
        Raw(value)
    }

    pub(crate) fn bytes(self) -> &'a [u8] {
        self.0
    }

    pub(crate) fn kind(self) -> JsonType {
        match self.0.first() {
            Some(b'{') => JsonType::Object,
            Some(b'[') => JsonType::Array,
            Some(b'"') => JsonType::String,
            Some(b't' | b'f') => JsonType::Bool,
            Some(b'n') | None => JsonType::Null,
            _ => JsonType::Number,
        }
    }

    pub(crate) fn is_null(self) -> bool {
        self.kind() == JsonType::Null
    }

    pub(crate) fn as_bool(self) -> Option<bool> {
        match self.0 {
            b"true" => Some(true),
            b"false" => Some(false),
            _ => None,
        }
    }

    /// The value of a plain non-negative integer that fits.
    pub(crate) fn as_u64(self) -> Option<u64> {
        std::str::from_utf8(self.0).ok()?.parse().ok()
    }

    pub(crate) fn as_str(self) -> Option<Cow<'a, str>> {
        (self.kind() == JsonType::String).then(|| unquote(self.0)).flatten()
    }

    /// The members of an object in order, including duplicates. Empty for any other value.
    pub(crate) fn members(self) -> Members<'a> {
        Members(Walk::inside(self, JsonType::Object))
    }

    /// The elements of an array. Empty for any other value.
    pub(crate) fn elements(self) -> Elements<'a> {
        Elements(Walk::inside(self, JsonType::Array))
    }

    /// The value of the last member named `key`. Python's parsers keep the last one too.
    pub(crate) fn get(self, key: &str) -> Option<Raw<'a>> {
        self.members().filter(|m| m.is(key)).last().map(|m| m.value)
    }

    /// The byte range of `part`, a part of this value.
    pub(crate) fn range_of(self, part: Raw<'a>) -> Range<usize> {
        let start = (part.0.as_ptr() as usize).saturating_sub(self.0.as_ptr() as usize);
        start..start + part.0.len()
    }
}

/// A member of an object.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawMember<'a> {
    /// Quotes included.
    pub(crate) key: Raw<'a>,
    pub(crate) value: Raw<'a>,
}

impl RawMember<'_> {
    /// Whether the unescaped key equals `name`, which must not need escapes.
    pub(crate) fn is(&self, name: &str) -> bool {
        let Some(plain) = self.key.0.strip_prefix(b"\"").and_then(|k| k.strip_suffix(b"\"")) else {
            return false;
        };
        plain == name.as_bytes()
            || plain.contains(&b'\\') && unquote(self.key.0).is_some_and(|key| key == name)
    }
}

pub(crate) struct Members<'a>(Walk<'a>);

impl<'a> Iterator for Members<'a> {
    type Item = RawMember<'a>;

    fn next(&mut self) -> Option<RawMember<'a>> {
        let key = self.0.value()?;
        let value = self.0.value()?;
        Some(RawMember { key, value })
    }
}

pub(crate) struct Elements<'a>(Walk<'a>);

impl<'a> Iterator for Elements<'a> {
    type Item = Raw<'a>;

    fn next(&mut self) -> Option<Raw<'a>> {
        self.0.value()
    }
}

/// Iterates over the values of one level. Commas and colons are skipped.
struct Walk<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Walk<'a> {
    fn inside(raw: Raw<'a>, kind: JsonType) -> Walk<'a> {
        match raw.0 {
            [_, inner @ .., _] if raw.kind() == kind => Walk { text: inner, at: 0 },
            _ => Walk { text: &[], at: 0 },
        }
    }

    fn value(&mut self) -> Option<Raw<'a>> {
        while let b' ' | b'\n' | b'\r' | b'\t' | b',' | b':' = self.text.get(self.at)? {
            self.at += 1;
        }
        let start = self.at;
        let mut depth = 0usize;
        while let Some(&byte) = self.text.get(self.at) {
            self.at += 1;
            match byte {
                b'"' => self.string(),
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth = depth.saturating_sub(1),
                _ if depth == 0 => self.scalar(),
                _ => continue,
            }
            if depth == 0 {
                break;
            }
        }
        Some(Raw(&self.text[start..self.at]))
    }

    /// Skips to the end of a string. Its opening quote has been consumed.
    fn string(&mut self) {
        while let Some(rest) = self.text.get(self.at..) {
            self.at += plain(rest);
            match self.text.get(self.at) {
                Some(b'\\') => self.at += 2,
                None => break,
                Some(&end) => {
                    self.at += 1;
                    if end == b'"' {
                        return;
                    }
                }
            }
        }
        self.at = self.text.len();
    }

    fn scalar(&mut self) {
        while let Some(byte) = self.text.get(self.at) {
            if matches!(byte, b' ' | b'\n' | b'\r' | b'\t' | b',' | b':' | b'}' | b']') {
                return;
            }
            self.at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn walks_members_and_elements_in_place() {
        let text = br#" { "a" : [ 1, "x,]" ,{"b":[]}, null ] , "a":-1.5e3 , "c\u0064":true } "#;
        let raw = Raw::parse(text).unwrap();
        let keys: Vec<_> = raw.members().map(|m| m.key.as_str().unwrap().into_owned()).collect();
        assert_eq!(keys, ["a", "a", "cd"]);
        let array = raw.members().next().unwrap().value;
        let elements: Vec<_> = array.elements().map(Raw::bytes).collect();
        assert_eq!(elements, [&b"1"[..], b"\"x,]\"", b"{\"b\":[]}", b"null"]);
        assert_eq!(raw.get("a").unwrap().bytes(), b"-1.5e3");
        assert_eq!(raw.get("cd").unwrap().as_bool(), Some(true));
        assert_eq!(&raw.bytes()[raw.range_of(array)], array.bytes());
    }

    proptest! {
        #[test]
        fn unchecked_text_does_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let raw = Raw::trusted(&bytes);
            prop_assert!(raw.members().count() <= bytes.len());
            prop_assert!(raw.elements().count() <= bytes.len());
        }
    }
}
