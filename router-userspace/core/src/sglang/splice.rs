//! Cutting members out of the client's bytes and appending ours, without touching the rest.

use std::ops::Range;

use bytes::Bytes;

/// What a marked piece of the body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MarkKind {
    /// Engine control: never reaches an engine.
    Control,
    /// `stream`, asked for.
    Stream,
    /// `stream_options`.
    StreamOptions,
    /// A number of samples.
    Samples,
}

/// For whom a body is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Recipient {
    Prefill,
    Decode,
    /// An engine that does both itself, and samples n times itself.
    Single,
}

/// A piece of the body that some reader gets to see otherwise.
#[derive(Clone, Debug)]
pub(super) struct Mark {
    pub(super) role: MarkKind,
    pub(super) value: Range<usize>,
    /// Where the member around the value stands among the others; unused for a nested value.
    pub(super) place: MemberPosition,
}

#[derive(Clone, Debug, Default)]
pub(super) struct MemberPosition {
    /// Its number among the top-level members.
    pub(super) index: usize,
    /// End of the value before, or the place after the opening brace.
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

fn action(role: MarkKind, reader: Recipient, fan_out: bool) -> Edit {
    match (role, reader) {
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
    /// Where another member could be inserted.
    pub(super) tail: usize,
    /// More than one sample is wanted.
    pub(super) fan_out: bool,
}

impl MarkedBody {
    /// Whether prefill's and decode's bodies differ before anything is appended.
    pub(super) fn legs_differ(&self) -> bool {
        self.marks
            .iter()
            .any(|mark| matches!(mark.role, MarkKind::Stream | MarkKind::StreamOptions))
    }

    /// The body for `reader`, with `ours` (members, without the first comma) appended.
    pub(super) fn write(&self, reader: Recipient, ours: &[u8]) -> Bytes {
        let body = &self.body[..];
        // Replacements grow a value by four bytes at most (`1` to `false`).
        let mut out = Vec::with_capacity(body.len() + ours.len() + 1 + 4 * self.marks.len());
        let mut at = 0;
        let mut cut = 0;
        for mark in &self.marks {
            match action(mark.role, reader, self.fan_out) {
                Edit::Keep => {}
                Edit::Replace(with) => {
                    out.extend_from_slice(&body[at..mark.value.start]);
                    out.extend_from_slice(with);
                    at = mark.value.end;
                }
                Edit::Cut => {
                    let place = &mark.place;
                    // A member goes with the comma before it, or, at the front, the one after it.
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
        if self.members > cut && !ours.is_empty() {
            out.push(b',');
        }
        out.extend_from_slice(ours);
        out.extend_from_slice(&body[self.tail..]);
        Bytes::from(out)
    }
}
