//! [`Collector`]: a body that is read whole, within its limits of size and memory.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Maximum number of bytes that are allocated for an announced length alone.
const MAX_ANNOUNCED: usize = 1 << 20;

/// Why a body is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OverLimit {
    /// It is over this number of bytes.
    TooLarge(usize),
    /// All bodies together have reached the limit of the memory.
    NoMemory,
}

/// The bytes that bodies which are read whole may hold in memory together; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct BodyMemory(Arc<Semaphore>);

impl BodyMemory {
    pub(crate) fn new(bytes: usize) -> BodyMemory {
        BodyMemory(Arc::new(Semaphore::new(bytes)))
    }

    /// Charges a body that was made of others, until its last part is dropped.
    ///
    /// # Errors
    /// [`OverLimit::NoMemory`]
    pub(crate) fn charge(&self, body: Bytes) -> Result<Bytes, OverLimit> {
        let permits = self.reserve(body.len())?;
        Ok(charged(body, permits))
    }

    fn reserve(&self, bytes: usize) -> Result<OwnedSemaphorePermit, OverLimit> {
        let bytes = u32::try_from(bytes).map_err(|_| OverLimit::NoMemory)?;
        Arc::clone(&self.0).try_acquire_many_owned(bytes).map_err(|_| OverLimit::NoMemory)
    }
}

/// Bytes whose permits are released with their last part.
struct ChargedBytes {
    bytes: Bytes,
    _permits: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for ChargedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

fn charged(bytes: Bytes, permits: OwnedSemaphorePermit) -> Bytes {
    Bytes::from_owner(ChargedBytes { bytes, _permits: permits })
}

/// Collects the pieces of one body. They are charged as they arrive.
pub(crate) struct Collector {
    limit: usize,
    announced: usize,
    memory: Option<BodyMemory>,
    permits: Option<OwnedSemaphorePermit>,
    /// The only piece so far. A small body comes in one piece and is not copied.
    first: Bytes,
    all: BytesMut,
}

impl Collector {
    /// `limit` is the maximum size in bytes. The body is charged to `memory`, if there is one.
    pub(crate) fn new(
        limit: usize,
        announced: Option<u64>,
        memory: Option<BodyMemory>,
    ) -> Collector {
        let announced = announced.map_or(0, |length| usize::try_from(length).unwrap_or(usize::MAX));
        let (first, all) = (Bytes::new(), BytesMut::new());
        Collector { limit, announced, memory, permits: None, first, all }
    }

    /// Appends a piece.
    ///
    /// # Errors
    /// The body exceeds one of its limits.
    pub(crate) fn push(&mut self, piece: Bytes) -> Result<(), OverLimit> {
        if self.first.len() + self.all.len() + piece.len() > self.limit {
            return Err(OverLimit::TooLarge(self.limit));
        }
        if let Some(memory) = &self.memory {
            let more = memory.reserve(piece.len())?;
            match &mut self.permits {
                Some(permits) => permits.merge(more),
                None => self.permits = Some(more),
            }
        }
        if self.first.is_empty() && self.all.is_empty() {
            self.first = piece;
            return Ok(());
        }
        if self.all.is_empty() {
            let announced = self.announced.min(MAX_ANNOUNCED);
            self.all.reserve(announced.max(self.first.len() + piece.len()));
            self.all.extend_from_slice(&std::mem::take(&mut self.first));
        }
        self.all.extend_from_slice(&piece);
        Ok(())
    }

    /// The whole body, charged until its last part is dropped.
    pub(crate) fn finish(self) -> Bytes {
        let body = if self.all.is_empty() { self.first } else { self.all.freeze() };
        match self.permits {
            Some(permits) => charged(body, permits),
            None => body,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_released_with_the_last_part_of_a_body() {
        let memory = BodyMemory::new(10);
        let body = memory.charge(Bytes::from_static(b"0123456789")).expect("it fits");
        let part = body.slice(2..4);
        drop(body);
        assert_eq!(memory.charge(Bytes::from_static(b"x")), Err(OverLimit::NoMemory));
        assert_eq!(part, "23");
        drop(part);
        memory.charge(Bytes::from_static(b"0123456789")).expect("all of it is free again");
    }

    #[test]
    fn pieces_are_joined_charged_and_limited() {
        let memory = BodyMemory::new(6);
        let collect = |limit, pieces: &[&'static str]| {
            let mut collector = Collector::new(limit, Some(4), Some(memory.clone()));
            for piece in pieces {
                collector.push(Bytes::from_static(piece.as_bytes()))?;
            }
            Ok(collector.finish())
        };
        let body = collect(5, &["", "ab", "cd", "e"]).expect("it fits");
        assert_eq!(body, "abcde");
        assert_eq!(collect(5, &["ab"]), Err(OverLimit::NoMemory), "one byte is left");
        drop(body);
        assert_eq!(collect(5, &["abc", "def"]), Err(OverLimit::TooLarge(5)));
        assert_eq!(collect(6, &["abc", "def"]).expect("what failed is released"), "abcdef");
    }
}
