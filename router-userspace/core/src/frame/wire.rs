//! How values become bytes and bytes values again, one function each way and type.

use bytes::{BufMut, BytesMut};

use super::{FrameError, MAX_NAME_BYTES};

/// A value of the frame.
pub(super) trait Encode: Sized {
    fn put(&self, out: &mut BytesMut);

    /// Reads one; `field` names it where it is wrong.
    fn get(from: &mut FrameReader<'_>, field: &'static str) -> Result<Self, FrameError>;
}

/// A type whose values have an upper bound.
pub(super) trait Bounded: Encode + PartialOrd + Copy {
    /// NaN is of no order, and so not at most anything.
    fn is_at_most(self, most: Self) -> bool {
        self <= most
    }

    /// The nearest value that [`FrameReader::at_most`] takes.
    fn bounded(self, most: Self) -> Self {
        if self <= most { self } else { most }
    }
}

/// What is left to read.
pub(super) struct FrameReader<'a>(&'a [u8]);

impl<'a> FrameReader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> FrameReader<'a> {
        FrameReader(bytes)
    }

    pub(super) fn left(&self) -> usize {
        self.0.len()
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], FrameError> {
        let (head, rest) = self.0.split_first_chunk().ok_or(FrameError::Truncated(field))?;
        self.0 = rest;
        Ok(*head)
    }

    /// A value that is refused beyond `most`.
    pub(super) fn at_most<T: Bounded>(
        &mut self,
        field: &'static str,
        most: T,
    ) -> Result<T, FrameError> {
        let value = T::get(self, field)?;
        if value.is_at_most(most) { Ok(value) } else { Err(FrameError::OutOfRange(field)) }
    }

    pub(super) fn text(&mut self, field: &'static str) -> Result<String, FrameError> {
        let length = usize::from(u8::get(self, field)?);
        if length > MAX_NAME_BYTES {
            return Err(FrameError::OutOfRange(field));
        }
        let (text, rest) = self.0.split_at_checked(length).ok_or(FrameError::Truncated(field))?;
        self.0 = rest;
        String::from_utf8(text.to_vec()).map_err(|_| FrameError::OutOfRange(field))
    }

    /// A list behind its length, which is checked before anything is set aside for it.
    pub(super) fn list<T: Encode>(
        &mut self,
        field: &'static str,
        limit: usize,
    ) -> Result<Vec<T>, FrameError> {
        let count = u32::get(self, field)? as usize;
        if count > limit {
            return Err(FrameError::TooMany { field, count, limit });
        }
        // Every record has bytes: a count that the rest cannot hold reserves nothing for them.
        let mut list = Vec::with_capacity(count.min(self.left()));
        for _ in 0..count {
            list.push(T::get(self, field)?);
        }
        Ok(list)
    }
}

/// As much of a text as fits, cut between characters.
pub(super) fn put_text(text: &str, out: &mut BytesMut) {
    let text = &text[..text.floor_char_boundary(MAX_NAME_BYTES)];
    out.put_u8(u8::try_from(text.len()).unwrap_or_default());
    out.put_slice(text.as_bytes());
}

pub(super) fn put_list<T: Encode>(list: &[T], limit: usize, out: &mut BytesMut) {
    let list = &list[..list.len().min(limit)];
    out.put_u32_le(u32::try_from(list.len()).unwrap_or_default());
    for value in list {
        value.put(out);
    }
}

impl Encode for u8 {
    fn put(&self, out: &mut BytesMut) {
        out.put_u8(*self);
    }

    fn get(from: &mut FrameReader<'_>, field: &'static str) -> Result<u8, FrameError> {
        from.array(field).map(|[byte]| byte)
    }
}

macro_rules! numbers {
    ($($kind:ty),+) => {$(
        impl Encode for $kind {
            fn put(&self, out: &mut BytesMut) {
                out.put_slice(&self.to_le_bytes());
            }

            fn get(from: &mut FrameReader<'_>, field: &'static str) -> Result<$kind, FrameError> {
                from.array(field).map(<$kind>::from_le_bytes)
            }
        }

        impl Bounded for $kind {}
    )+};
}

numbers!(u32, u64);

impl Encode for f32 {
    fn put(&self, out: &mut BytesMut) {
        out.put_f32_le(*self);
    }

    fn get(from: &mut FrameReader<'_>, field: &'static str) -> Result<f32, FrameError> {
        let value = from.array(field).map(f32::from_le_bytes)?;
        if value.is_finite() && value >= 0.0 {
            Ok(value)
        } else {
            Err(FrameError::OutOfRange(field))
        }
    }
}

impl Bounded for f32 {
    fn bounded(self, most: f32) -> f32 {
        // What is no number or negative was never measured.
        if self > 0.0 { self.min(most) } else { 0.0 }
    }
}
