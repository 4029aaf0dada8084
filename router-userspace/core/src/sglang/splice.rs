//! Removes members from the client's bytes and appends new ones; all other bytes stay unchanged.

use std::ops::Range;

use bytes::Bytes;

/// What a marked range of the body contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MarkKind {
    /// Engine control, which is never forwarded.
    Control,
    /// `stream`, if it is true.
    Stream,
    /// `stream_options`.
    StreamOptions,
    /// A number of samples.
    Samples,
}

/// The engine that a body is written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Recipient {
    Prefill,
    Decode,
    /// An engine that serves without a peer and samples n times itself.
    Single,
}

/// A range of the body that some recipients get modified.
#[derive(Clone, Debug)]
pub(super) struct Mark {
    pub(super) role: MarkKind,
    pub(super) value: Range<usize>,
    /// The position of the member among the others. Unused for a nested value.
    pub(super) place: MemberPosition,
}

#[derive(Clone, Debug, Default)]
pub(super) struct MemberPosition {
    /// Its index among the top-level members.
    pub(super) index: usize,
    /// End of the previous value, or the offset after the opening brace.
    pub(super) before: usize,
    pub(super) key: usize,
    /// Start of the next key.
    pub(super) after: Option<usize>,
}

enum Edit {
    Keep,
    Cut,
    Replace(&'static [u8]),
}

fn action(role: MarkKind, recipient: Recipient, fan_out: bool) -> Edit {
    match (role, recipient) {
        (MarkKind::Control, _) => Edit::Cut,
        (MarkKind::Stream, Recipient::Prefill) => Edit::Replace(b"false"),
        (MarkKind::StreamOptions, Recipient::Prefill) => Edit::Cut,
        (MarkKind::Samples, Recipient::Prefill | Recipient::Decode) if fan_out => {
            Edit::Replace(b"1")
        }
        _ => Edit::Keep,
    }
}

/// The client's body with its marks, in order of position.
#[derive(Clone, Debug)]
pub(super) struct MarkedBody {
    pub(super) body: Bytes,
    pub(super) marks: Vec<Mark>,
    /// Number of top-level members.
    pub(super) members: usize,
    /// The offset at which another member can be inserted.
    pub(super) tail: usize,
    /// Whether more than one sample is requested.
    pub(super) fan_out: bool,
}

impl MarkedBody {
    /// Whether prefill's and decode's bodies differ before anything is appended.
    pub(super) fn legs_differ(&self) -> bool {
        self.marks
            .iter()
            .any(|mark| matches!(mark.role, MarkKind::Stream | MarkKind::StreamOptions))
    }

    /// The body for `recipient`, with `added` (members, without a leading comma) appended.
    pub(super) fn write(&self, recipient: Recipient, added: &[u8]) -> Bytes {
        let body = &self.body[..];
        // A replacement is at most four bytes longer than the value (`1` to `false`).
        let mut out = Vec::with_capacity(body.len() + added.len() + 1 + 4 * self.marks.len());
        let mut at = 0;
        let mut cut = 0;
        for mark in &self.marks {
            match action(mark.role, recipient, self.fan_out) {
                Edit::Keep => {}
                Edit::Replace(with) => {
                    out.extend_from_slice(&body[at..mark.value.start]);
                    out.extend_from_slice(with);
                    at = mark.value.end;
                }
                Edit::Cut => {
                    let place = &mark.place;
                    // A member is removed with the comma before it, or with the one after it at the
                    // front.
                    let (start, end) = if place.index > cut {
                        (place.before, mark.value.end)
                    } else {
                        (place.key, place.after.unwrap_or(mark.value.end))
                    };
                    out.extend_from_slice(&body[at..start]);
                    at = end;
                    cut += 1;
                }
            }
        }
        out.extend_from_slice(&body[at..self.tail]);
        if self.members > cut && !added.is_empty() {
            out.push(b',');
        }
        out.extend_from_slice(added);
        out.extend_from_slice(&body[self.tail..]);
        Bytes::from(out)
    }
}
