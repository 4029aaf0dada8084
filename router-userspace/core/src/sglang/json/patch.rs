//! Replaces a few parts of a checked JSON value and keeps all other bytes.

use std::borrow::Cow;
use std::ops::Range;

use super::{JsonType, Raw};

/// A value, and the replacements of some of its parts.
pub(crate) struct Patch<'a> {
    whole: Raw<'a>,
    edits: Vec<(Range<usize>, Cow<'a, [u8]>)>,
}

impl<'a> Patch<'a> {
    pub(crate) fn new(whole: Raw<'a>) -> Patch<'a> {
        Patch { whole, edits: Vec::new() }
    }

    /// Replaces `part`, a part of the whole value.
    pub(crate) fn replace(&mut self, part: Raw<'a>, with: impl Into<Cow<'a, [u8]>>) {
        self.edits.push((self.whole.range_of(part), with.into()));
    }

    /// Appends a member to the object `part`.
    pub(crate) fn append(&mut self, part: Raw<'a>, key: &str, value: &[u8]) {
        if part.kind() != JsonType::Object {
            return;
        }
        let end = self.whole.range_of(part).end - 1;
        let first = !self.edits.iter().any(|(range, _)| *range == (end..end));
        let mut member = Vec::with_capacity(key.len() + value.len() + 4);
        if !first || part.members().next().is_some() {
            member.push(b',');
        }
        super::quote(&mut member, key);
        member.push(b':');
        member.extend_from_slice(value);
        self.edits.push((end..end, member.into()));
    }

    /// Writes the value with all edits. If two overlap, the first one applies.
    pub(crate) fn write(mut self, out: &mut Vec<u8>) {
        self.edits.sort_by_key(|(range, _)| range.start);
        let bytes = self.whole.bytes();
        let mut at = 0;
        for (range, with) in &self.edits {
            if range.start < at {
                continue;
            }
            out.extend_from_slice(&bytes[at..range.start]);
            out.extend_from_slice(with);
            at = range.end;
        }
        out.extend_from_slice(&bytes[at..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_replaced_and_members_appended_in_place() {
        let raw = Raw::parse(br#" {"a" : 1.50, "b":{ }, "c":[2]} "#).unwrap();
        let mut patch = Patch::new(raw);
        patch.append(raw.get("b").unwrap(), "x", b"1");
        patch.append(raw.get("b").unwrap(), "y", b"2");
        patch.append(raw, "d", b"null");
        patch.replace(raw.get("a").unwrap(), &b"7"[..]);
        let mut out = Vec::new();
        patch.write(&mut out);
        assert_eq!(out, br#"{"a" : 7, "b":{ "x":1,"y":2}, "c":[2],"d":null}"#);
    }
}
