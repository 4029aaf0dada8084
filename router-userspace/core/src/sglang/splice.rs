//! Cutting members out of the client's bytes and appending ours, without touching the rest.

use std::ops::Range;

use bytes::Bytes;

/// What a marked piece of the body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
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
pub(super) enum Reader {
    Prefill,
    Decode,
    /// An engine that does both itself, and samples n times itself.
    Single,
}

/// A piece of the body that some reader gets to see otherwise.
#[derive(Clone, Debug)]
pub(super) struct Mark {
    pub(super) role: Role,
    pub(super) value: Range<usize>,
    /// Where the member around the value stands among the others; unused for a nested value.
    pub(super) place: Place,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Place {
    /// Its number among the top-level members.
    pub(super) index: usize,
    /// End of the value before, or the place after the opening brace.
    pub(super) before: usize,
    pub(super) key: usize,
    /// Start of the next key.
    pub(super) after: Option<usize>,
}

enum Action {
    Keep,
    Cut,
    Replace(&'static [u8]),
}

fn action(role: Role, reader: Reader, fan_out: bool) -> Action {
    match (role, reader) {
        (Role::Control, _) => Action::Cut,
        (Role::Stream, Reader::Prefill) => Action::Replace(b"false"),
        (Role::StreamOptions, Reader::Prefill) => Action::Cut,
        (Role::Samples, Reader::Prefill | Reader::Decode) if fan_out => Action::Replace(b"1"),
        _ => Action::Keep,
    }
}

/// The client's body with its marks, in order of position.
#[derive(Clone, Debug)]
pub(super) struct Marked {
    pub(super) body: Bytes,
    pub(super) marks: Vec<Mark>,
    /// Number of top-level members.
    pub(super) members: usize,
    /// Where another member could be inserted.
    pub(super) tail: usize,
    /// More than one sample is wanted.
    pub(super) fan_out: bool,
}

impl Marked {
    /// Whether prefill's and decode's bodies differ before anything is appended.
    pub(super) fn legs_differ(&self) -> bool {
        self.marks.iter().any(|mark| matches!(mark.role, Role::Stream | Role::StreamOptions))
    }

    /// The body for `reader`, with `ours` (members, without the first comma) appended.
    pub(super) fn write(&self, reader: Reader, ours: &[u8]) -> Bytes {
        let body = &self.body[..];
        // Replacements grow a value by four bytes at most (`1` to `false`).
        let mut out = Vec::with_capacity(body.len() + ours.len() + 1 + 4 * self.marks.len());
        let mut at = 0;
        let mut cut = 0;
        for mark in &self.marks {
            match action(mark.role, reader, self.fan_out) {
                Action::Keep => {}
                Action::Replace(with) => {
                    out.extend_from_slice(&body[at..mark.value.start]);
                    out.extend_from_slice(with);
                    at = mark.value.end;
                }
                Action::Cut => {
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
