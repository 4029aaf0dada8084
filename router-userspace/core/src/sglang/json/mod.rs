//! JSON as bytes: checked once against RFC 8259, then walked in place, never built into a tree.
//!
//! The engine must see what the client wrote (big integers, float spelling, escapes, key order), so
//! nothing here re-serialises. [`scan()`] checks a whole text and reports its top-level members;
//! [`Raw`] walks text that has been checked.

mod patch;
mod plain;
mod raw;
mod scan;
mod string;

pub(crate) use patch::Patch;
pub(crate) use raw::{JsonType, Raw, RawMember};
pub(crate) use scan::{SyntaxError, check, scan};
pub(crate) use string::{quote, unquote};

use std::ops::Range;

/// Maximum nesting of arrays and objects. Python's own parser fails near 1000.
pub const MAX_DEPTH: usize = 512;

/// What a scan counts of a value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ValueShape {
    /// Number of elements or members, if it is an array or an object.
    pub(crate) children: usize,
    /// Maximum number of arrays and objects around a part of the value, itself included.
    pub(crate) depth: usize,
}

/// The byte ranges of one member of the top-level object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MemberSpan {
    /// The key, quotes included.
    pub(crate) key: Range<usize>,
    /// The value, without white space around it.
    pub(crate) value: Range<usize>,
    pub(crate) shape: ValueShape,
}
