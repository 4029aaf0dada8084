//! Encoding and decoding of the values in a frame.

use bytes::{BufMut, BytesMut};

use super::{FrameError, MAX_NAME_BYTES};

/// A value that can be encoded in a frame.
pub(super) trait Encode: Sized {
    fn put(&self, out: &mut BytesMut);

    /// Decodes a value; `field` names it in errors.
    fn get(from: &mut FrameReader<'_>, field: &'static str) -> Result<Self, FrameError>;
}

/// A type with a maximum value.
pub(super) trait Bounded: Encode + PartialOrd + Copy {
    /// False for NaN.
    fn is_at_most(self, max: Self) -> bool {
        self <= max
    }

    /// The nearest value that [`FrameReader::at_most`] accepts.
    fn bounded(self, max: Self) -> Self {
        if self <= max { self } else { max }
    }
}

/// The bytes that are not decoded yet.
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

    /// Decodes a value and rejects it if it is over `max`.
    pub(super) fn at_most<T: Bounded>(
        &mut self,
        field: &'static str,
        max: T,
    ) -> Result<T, FrameError> {
        let value = T::get(self, field)?;
        if value.is_at_most(max) { Ok(value) } else { Err(FrameError::OutOfRange(field)) }
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

    /// Decodes a list with a length prefix, which is checked before memory is allocated.
    pub(super) fn list<T: Encode>(
        &mut self,
        field: &'static str,
        limit: usize,
    ) -> Result<Vec<T>, FrameError> {
        let count = u32::get(self, field)? as usize;
        if count > limit {
            return Err(FrameError::TooMany { field, count, limit });
        }
        // A record has at least one byte, so a count beyond the remaining bytes allocates no more.
        let mut list = Vec::with_capacity(count.min(self.left()));
        for _ in 0..count {
            list.push(T::get(self, field)?);
        }
        Ok(list)
    }
}

/// Encodes a text, truncated at a character boundary to [`MAX_NAME_BYTES`].
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
    fn bounded(self, max: f32) -> f32 {
        // NaN and negative values become 0.
        if self > 0.0 { self.min(max) } else { 0.0 }
    }
}
