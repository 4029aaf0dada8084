//! Removes members from the client's bytes and appends new ones; all other bytes stay unchanged.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

/// Bodies up to this many bytes are written into one buffer: copying them is cheaper than sending
/// several pieces.
pub(super) const MAX_COPIED_BYTES: usize = 8 << 10;

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
    pub(super) kind: MarkKind,
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

fn edit_of(kind: MarkKind, recipient: Recipient, fan_out: bool) -> Edit {
    match (kind, recipient) {
        (MarkKind::Control, _) => Edit::Cut,
        (MarkKind::Stream, Recipient::Prefill) => Edit::Replace(b"false"),
        (MarkKind::StreamOptions, Recipient::Prefill) => Edit::Cut,
        (MarkKind::Samples, Recipient::Prefill | Recipient::Decode) if fan_out => {
            Edit::Replace(b"1")
        }
        _ => Edit::Keep,
    }
}

/// A body for an engine: slices of the client's bytes with the gateway's members between them.
///
/// A long body shares the client's buffer with every other leg and sample of its request, so that
/// its memory does not grow with their number.
#[derive(Clone, Debug)]
pub struct SplicedBody(Pieces);

#[derive(Clone, Debug)]
enum Pieces {
    Copied(Bytes),
    Shared { template: Arc<Template>, added: Bytes },
}

/// The bytes that all bodies of one request for one recipient share.
#[derive(Debug)]
struct Template {
    /// The client's bytes before the gateway's members.
    before: Vec<Bytes>,
    /// The rest of the client's bytes.
    after: Bytes,
    /// Whether a member stands before the gateway's.
    follows_member: bool,
}

impl SplicedBody {
    /// Number of bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.0 {
            Pieces::Copied(whole) => whole.len(),
            Pieces::Shared { template, added } => {
                let before: usize = template.before.iter().map(Bytes::len).sum();
                before + added.len() + template.after.len()
            }
        }
    }

    /// Whether the body has no bytes. Bodies for engines always have some.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The piece with index `at`, `None` after the last. No bytes are copied.
    #[must_use]
    pub fn piece(&self, at: usize) -> Option<Bytes> {
        match &self.0 {
            Pieces::Copied(whole) => (at == 0).then(|| whole.clone()),
            Pieces::Shared { template, added } => match at.checked_sub(template.before.len()) {
                None => Some(template.before[at].clone()),
                Some(0) => Some(added.clone()),
                Some(1) => Some(template.after.clone()),
                Some(_) => None,
            },
        }
    }

    /// All bytes in one buffer, which copies a long body.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        match &self.0 {
            Pieces::Copied(whole) => whole.clone(),
            Pieces::Shared { .. } => {
                let mut whole = Vec::with_capacity(self.len());
                (0..).map_while(|at| self.piece(at)).for_each(|piece| whole.extend(&piece));
                whole.into()
            }
        }
    }
}

impl From<Bytes> for SplicedBody {
    fn from(whole: Bytes) -> SplicedBody {
        SplicedBody(Pieces::Copied(whole))
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
    /// Bodies up to this many bytes are copied: [`MAX_COPIED_BYTES`], lower in tests.
    pub(super) max_copied_bytes: usize,
    /// Built on first use, one per recipient.
    pub(super) templates: Templates,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Templates {
    prefill: OnceLock<Arc<Template>>,
    decode: OnceLock<Arc<Template>>,
    single: OnceLock<Arc<Template>>,
}

impl Templates {
    fn of(&self, recipient: Recipient) -> &OnceLock<Arc<Template>> {
        match recipient {
            Recipient::Prefill => &self.prefill,
            Recipient::Decode => &self.decode,
            Recipient::Single => &self.single,
        }
    }
}

impl MarkedBody {
    /// Whether prefill's and decode's bodies differ before anything is appended.
    pub(super) fn legs_differ(&self) -> bool {
        self.marks
            .iter()
            .any(|mark| matches!(mark.kind, MarkKind::Stream | MarkKind::StreamOptions))
    }

    /// The body for `recipient`, with `added` (members, without a leading comma) appended.
    pub(super) fn write(&self, recipient: Recipient, added: &[u8]) -> SplicedBody {
        if self.body.len() > self.max_copied_bytes {
            let template = self.templates.of(recipient).get_or_init(|| self.template(recipient));
            let comma = template.follows_member && !added.is_empty();
            let comma: &[u8] = if comma { b"," } else { b"" };
            let added = Bytes::from([comma, added].concat());
            return SplicedBody(Pieces::Shared { template: Arc::clone(template), added });
        }
        // A replacement is at most four bytes longer than the value (`1` to `false`).
        let longest = self.body.len() + added.len() + 1 + 4 * self.marks.len();
        let mut out = Vec::with_capacity(longest);
        let cut = self.edit(recipient, |piece| match piece {
            BodyPiece::Kept(range) => out.extend_from_slice(&self.body[range]),
            BodyPiece::Replaced(with) => out.extend_from_slice(with),
        });
        if self.members > cut && !added.is_empty() {
            out.push(b',');
        }
        out.extend_from_slice(added);
        out.extend_from_slice(&self.body[self.tail..]);
        SplicedBody(Pieces::Copied(out.into()))
    }

    fn template(&self, recipient: Recipient) -> Arc<Template> {
        let mut before = Vec::new();
        let cut = self.edit(recipient, |piece| match piece {
            BodyPiece::Kept(range) if range.is_empty() => {}
            BodyPiece::Kept(range) => before.push(self.body.slice(range)),
            BodyPiece::Replaced(with) => before.push(Bytes::from_static(with)),
        });
        let follows_member = self.members > cut;
        Arc::new(Template { before, after: self.body.slice(self.tail..), follows_member })
    }

    /// Passes the pieces up to the tail to `push`, and returns how many members were cut.
    fn edit(&self, recipient: Recipient, mut push: impl FnMut(BodyPiece)) -> usize {
        let (mut at, mut cut) = (0, 0);
        for mark in &self.marks {
            match edit_of(mark.kind, recipient, self.fan_out) {
                Edit::Keep => {}
                Edit::Replace(with) => {
                    push(BodyPiece::Kept(at..mark.value.start));
                    push(BodyPiece::Replaced(with));
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
                    push(BodyPiece::Kept(at..start));
                    at = end;
                    cut += 1;
                }
            }
        }
        push(BodyPiece::Kept(at..self.tail));
        cut
    }
}

enum BodyPiece {
    Kept(Range<usize>),
    Replaced(&'static [u8]),
}
