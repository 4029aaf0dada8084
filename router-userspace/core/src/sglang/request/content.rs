//! [`ContentHash`]: recognises a request by what its engine computes, however its client spells it, but for
//! the spelling of numbers.
//!
//! White space, the order of members, escapes in strings, and members that change nothing of the
//! computation do not count. The text is walked once, in place and without recursion: the hash of an
//! object is made of a sum over its members, so that nothing is sorted.

use super::super::json::Raw;
use super::super::splice::MarkKind;
use super::Request;

/// A keyed hash of the content of a request, 128 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentHash(pub u128);

/// The key of [`ContentHash`]es. Without it, no client can make two contents with the same hash.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ContentKey(pub [u64; 2]);

impl ContentKey {
    /// A keyed hash of names, which are hashed as one text.
    pub fn hash_of(self, parts: &[&[u8]]) -> u128 {
        let mut hasher = Hasher::new(self, b'T');
        parts.iter().for_each(|part| hasher.write(part));
        hasher.finish()
    }
}

impl std::fmt::Debug for ContentKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ContentKey")
    }
}

/// Top-level members that name or order a request, or shape its answer, and change nothing of what an
/// engine computes before it crashes. A client that tries again may change any of them. Sorted.
const IGNORED: [&str; 19] = [
    "cache_salt",
    "conversation_id",
    "extra_key",
    "metadata",
    "no_logs",
    "priority",
    "prompt_cache_key",
    "prompt_cache_retention",
    "request_id",
    "rid",
    "routing_key",
    "safety_identifier",
    "seed",
    "service_tier",
    "session_id",
    "store",
    "stream",
    "stream_options",
    "user",
];

impl Request {
    /// The hash of the request's content under `key`. `scope` separates requests that are never alike,
    /// such as those to different pools.
    ///
    /// ```
    /// use bytes::Bytes;
    /// use router_core::sglang::{ContentKey, Endpoint, Request};
    ///
    /// let hash = |body: &'static str| {
    ///     let body = Bytes::from_static(body.as_bytes());
    ///     Request::parse(Endpoint::Completions, body).unwrap().content_hash(ContentKey([1, 2]), "")
    /// };
    /// let first = hash(r#"{"model":"m","prompt":"é"}"#);
    /// assert_eq!(hash(r#"{ "prompt": "\u00e9", "user": "u", "model": "m" }"#), first);
    /// assert_ne!(hash(r#"{"model":"m","prompt":"e"}"#), first);
    /// ```
    pub fn content_hash(&self, key: ContentKey, scope: &str) -> ContentHash {
        let mut removed = self
            .marked
            .marks
            .iter()
            .filter(|mark| mark.kind == MarkKind::Control)
            .map(|mark| mark.place.index)
            .peekable();
        let mut members: Vec<(u128, Option<u128>)> = Vec::new();
        let body = Raw::trusted(self.body().trim_ascii());
        for (index, member) in body.members().enumerate() {
            if removed.next_if_eq(&index).is_some() {
                continue;
            }
            let name = member.key.as_str();
            if name.is_some_and(|name| IGNORED.binary_search(&&*name).is_ok()) {
                continue;
            }
            // A null is an absent member, which may follow another value of the same name.
            let value = (!member.value.is_null()).then(|| hash_value(key, member.value.bytes()));
            members.push((hash_value(key, member.key.bytes()), value));
        }
        // The last of two members with one name counts, as in the engine. The sort is stable.
        members.sort_by_key(|(name, _)| *name);
        let mut hash = Hasher::new(key, b'R');
        hash.write(self.endpoint().path().as_bytes());
        hash.write(&(scope.len() as u64).to_le_bytes());
        hash.write(scope.as_bytes());
        for (at, (name, value)) in members.iter().enumerate() {
            let is_last = members.get(at + 1).is_none_or(|(next, _)| next != name);
            if let Some(value) = value.filter(|_| is_last) {
                hash.write(&name.to_le_bytes());
                hash.write(&value.to_le_bytes());
            }
        }
        ContentHash(hash.finish())
    }
}

/// An array or object whose end has not been reached.
enum OpenValue {
    Array(Hasher),
    /// The sum of its members, and the name of the member whose value comes next.
    Object {
        sum: u128,
        name: Option<u128>,
    },
}

/// The hash of one checked JSON value, or of a member's name.
fn hash_value(key: ContentKey, text: &[u8]) -> u128 {
    let mut open: Vec<OpenValue> = Vec::new();
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        at += 1;
        let hash = match byte {
            b' ' | b'\n' | b'\r' | b'\t' | b',' | b':' => continue,
            b'[' => {
                open.push(OpenValue::Array(Hasher::new(key, b'A')));
                continue;
            }
            b'{' => {
                open.push(OpenValue::Object { sum: 0, name: None });
                continue;
            }
            b']' | b'}' => match open.pop() {
                Some(OpenValue::Array(hasher)) => hasher.finish(),
                Some(OpenValue::Object { sum, .. }) => {
                    let mut hasher = Hasher::new(key, b'O');
                    hasher.write(&sum.to_le_bytes());
                    hasher.finish()
                }
                // Not in checked text.
                None => return 0,
            },
            b'"' => {
                let mut hasher = Hasher::new(key, b'S');
                at += hash_string(&text[at..], &mut hasher);
                hasher.finish()
            }
            _ => {
                let end =
                    |byte: &u8| matches!(byte, b',' | b']' | b'}' | b' ' | b'\n' | b'\r' | b'\t');
                let length = text[at..].iter().position(end).unwrap_or(text.len() - at);
                let mut hasher = Hasher::new(key, b'N');
                hasher.write(&text[at - 1..at + length]);
                at += length;
                hasher.finish()
            }
        };
        match open.last_mut() {
            None => return hash,
            Some(OpenValue::Array(hasher)) => hasher.write(&hash.to_le_bytes()),
            Some(OpenValue::Object { sum, name }) => match name.take() {
                None => *name = Some(hash),
                Some(name) => {
                    let mut member = Hasher::new(key, b'M');
                    member.write(&name.to_le_bytes());
                    member.write(&hash.to_le_bytes());
                    *sum = sum.wrapping_add(member.finish());
                }
            },
        }
    }
    0
}

/// Hashes a string after its opening quote, unescaped. Returns its length with the closing quote.
fn hash_string(text: &[u8], hasher: &mut Hasher) -> usize {
    let mut at = 0;
    // The first half of a pair of surrogates.
    let mut high: Option<u32> = None;
    while let Some(rest) = text.get(at..) {
        let plain = memchr::memchr2(b'"', b'\\', rest).unwrap_or(rest.len());
        if plain > 0 {
            write_surrogate(hasher, high.take());
            hasher.write(&rest[..plain]);
        }
        match rest[plain..] {
            [b'\\', b'u', a, b, c, d, ..] => {
                let digits = [a, b, c, d].map(|digit| char::from(digit).to_digit(16).unwrap_or(0));
                let unit = digits.iter().fold(0, |all, digit| all << 4 | digit);
                match (high.take(), unit) {
                    (Some(first), 0xdc00..=0xdfff) => {
                        let scalar = 0x1_0000 + ((first - 0xd800) << 10) + (unit - 0xdc00);
                        write_scalar(hasher, scalar);
                    }
                    (first, 0xd800..=0xdbff) => {
                        write_surrogate(hasher, first);
                        high = Some(unit);
                    }
                    (first, _) => {
                        write_surrogate(hasher, first);
                        write_scalar(hasher, unit);
                    }
                }
                at += plain + 6;
            }
            [b'\\', escaped, ..] => {
                write_surrogate(hasher, high.take());
                hasher.write(&[match escaped {
                    b'b' => 8,
                    b'f' => 12,
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    other => other,
                }]);
                at += plain + 2;
            }
            // The closing quote; an end without one is not in checked text.
            _ => {
                write_surrogate(hasher, high.take());
                return (at + plain + 1).min(text.len());
            }
        }
    }
    text.len()
}

fn write_surrogate(hasher: &mut Hasher, unit: Option<u32>) {
    if let Some(unit) = unit {
        write_scalar(hasher, unit);
    }
}

/// Writes a character in UTF-8, and a surrogate without its other half as three bytes that no valid
/// text contains.
fn write_scalar(hasher: &mut Hasher, scalar: u32) {
    match char::from_u32(scalar) {
        Some(c) => hasher.write(c.encode_utf8(&mut [0; 4]).as_bytes()),
        None => hasher.write(&[0xff, (scalar >> 8) as u8, scalar as u8]),
    }
}

/// A keyed hash by folded multiplication in two lanes. How the bytes are cut into writes does not
/// matter.
struct Hasher {
    key: [u64; 2],
    lanes: [u64; 2],
    /// Up to seven bytes, the first one lowest.
    pending: u64,
    length: u64,
}

impl Hasher {
    /// `kind` separates values of different types.
    fn new(ContentKey(key): ContentKey, kind: u8) -> Hasher {
        let mut hasher = Hasher { key, lanes: key, pending: 0, length: 0 };
        hasher.mix(u64::from(kind));
        hasher
    }

    fn mix(&mut self, word: u64) {
        const FACTORS: [u64; 2] = [0x9e37_79b9_7f4a_7c15, 0xd6e8_feb8_6659_fd93];
        for (lane, (key, factor)) in self.lanes.iter_mut().zip(self.key.into_iter().zip(FACTORS)) {
            let wide = u128::from(*lane ^ word) * u128::from((factor ^ key.rotate_left(32)) | 1);
            *lane = (wide as u64) ^ ((wide >> 64) as u64) ^ key;
        }
    }

    fn write(&mut self, mut bytes: &[u8]) {
        while !self.length.is_multiple_of(8) {
            let Some((first, rest)) = bytes.split_first() else { return };
            self.push(*first);
            bytes = rest;
        }
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.mix(u64::from_le_bytes(*word));
        }
        self.length += 8 * words.len() as u64;
        rest.iter().for_each(|byte| self.push(*byte));
    }

    fn push(&mut self, byte: u8) {
        self.pending |= u64::from(byte) << (8 * (self.length % 8));
        self.length += 1;
        if self.length.is_multiple_of(8) {
            let word = std::mem::take(&mut self.pending);
            self.mix(word);
        }
    }

    fn finish(mut self) -> u128 {
        self.mix(self.pending);
        self.mix(self.length);
        self.mix(0);
        u128::from(self.lanes[0]) << 64 | u128::from(self.lanes[1])
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::sglang::Endpoint;

    const KEY: ContentKey = ContentKey([7, 11]);

    fn hash(endpoint: Endpoint, body: &str) -> ContentHash {
        let request = Request::parse(endpoint, Bytes::copy_from_slice(body.as_bytes()));
        request.unwrap_or_else(|why| panic!("{body}: {why}")).content_hash(KEY, "ns/pool")
    }

    #[test]
    fn spelling_order_and_fields_that_change_nothing_do_not_count() {
        let of = |body: &str| hash(Endpoint::Chat, body);
        let message = r#"{"role":"user","content":"a\n\"é😀"}"#;
        let first = of(&format!(r#"{{"model":"m","messages":[{message}],"top_p":0.5}}"#));
        for body in [
            format!(" {{ \"model\" : \"m\" ,\n\"messages\":[ {message} ],\t\"top_p\":0.5 }} "),
            format!(r#"{{"top_p":0.5,"messages":[{message}],"model":"m"}}"#),
            r#"{"model":"m","messages":[{"content":"a\u000a\u0022\u00e9\ud83d\ude00","role":"\u0075ser"}],"top_p":0.5}"#.to_owned(),
            format!(r#"{{"m\u006fdel":"m","messages":[{message}],"top_p":0.5,"user":"x","us\u0065r":"y"}}"#),
            format!(r#"{{"rid":"r","seed":7,"stream":true,"stream_options":{{"include_usage":true}},"metadata":{{"a":[1]}},"priority":3,"safety_identifier":"s","bootstrap_room":4,"kv_hints":[1],"model":"m","messages":[{message}],"top_p":0.5}}"#),
            format!(r#"{{"model":"other","messages":[1],"model":"m","messages":[{message}],"top_p":0.5}}"#),
            format!(r#"{{"model":"m","messages":[{message}],"top_p":0.5,"tools":null}}"#),
        ] {
            assert_eq!(of(&body), first, "{body}");
        }
        for body in [
            format!(r#"{{"model":"m","messages":[{message},{message}],"top_p":0.5}}"#),
            format!(r#"{{"model":"m","messages":[[{message}]],"top_p":0.5}}"#),
            format!(r#"{{"model":"m","messages":[{message}],"top_p":0.6}}"#),
            format!(r#"{{"model":"m","messages":[{message}]}}"#),
            format!(r#"{{"model":"m","messages":[{message}],"top_p":"0.5"}}"#),
            format!(r#"{{"model":"m","messages":[{message}],"top_p":0.5,"n":2}}"#),
            r#"{"model":"m","messages":[{"role":"a\n\"é😀","content":"user"}],"top_p":0.5}"#
                .to_owned(),
        ] {
            assert_ne!(of(&body), first, "{body}");
        }
        let request = Request::parse(Endpoint::Chat, Bytes::from_static(b"{}")).unwrap();
        assert_ne!(request.content_hash(KEY, "a"), request.content_hash(KEY, "b"));
        assert_ne!(request.content_hash(KEY, "a"), request.content_hash(ContentKey([7, 12]), "a"));
        assert_ne!(hash(Endpoint::Chat, "{}"), hash(Endpoint::Messages, "{}"));
    }

    #[test]
    fn surrogates_without_their_other_half_differ() {
        let of = |text: &str| hash(Endpoint::Completions, &format!(r#"{{"prompt":"{text}"}}"#));
        let all =
            [r"\ud83d", r"\ude00", r"\ud83d\ude00", r"\ud83dx\ude00", r"\ud83d\ud83d", "\u{fffd}"];
        for (at, one) in all.iter().enumerate() {
            for other in &all[at + 1..] {
                assert_ne!(of(one), of(other), "{one} {other}");
            }
        }
        assert_eq!(of(r"\uD83D\uDE00"), of("😀"));
    }

    #[test]
    fn deep_and_wide_values_are_walked_once() {
        let nested = "[".repeat(500) + &"]".repeat(500);
        assert_ne!(
            hash(Endpoint::Chat, &format!(r#"{{"a":{nested}}}"#)),
            hash(Endpoint::Chat, &format!(r#"{{"a":[{nested}]}}"#))
        );
    }

    proptest! {
        #[test]
        fn how_bytes_are_cut_does_not_matter(bytes in proptest::collection::vec(any::<u8>(), 0..60), cut in 0usize..60) {
            let (head, tail) = bytes.split_at(cut.min(bytes.len()));
            let mut whole = Hasher::new(KEY, b'S');
            whole.write(&bytes);
            let mut parts = Hasher::new(KEY, b'S');
            parts.write(head);
            parts.write(tail);
            prop_assert_eq!(whole.finish(), parts.finish());
        }

        #[test]
        fn serde_s_spelling_has_the_same_hash(text in r#""([ -!#-\[\]-~éß漢😀]|\\["\\/bfnrt]|\\u00[0-7][0-9a-f]|\\ud83d\\ude0[0-9a-f]){0,20}""#) {
            let plain: String = serde_json::from_str(&text).unwrap();
            let again = serde_json::to_string(&plain).unwrap();
            prop_assert_eq!(hash_value(KEY, text.as_bytes()), hash_value(KEY, again.as_bytes()));
        }
    }
}
