//! [`BodyCopy`]: copies a request's body while it passes, within a limit of memory.

use bytes::Bytes;
use tokio::sync::oneshot;

use super::collector::{BodyMemory, Collector, OverLimit};

/// Why there is no copy of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoCopy {
    /// The copies of all bodies have reached the limit of their memory.
    NoMemory,
    /// The body was not read to its end.
    Incomplete,
}

/// Collects what passes. It never holds up the body that it copies.
pub(crate) struct BodyCopy {
    collector: Collector,
    done: oneshot::Sender<Result<Bytes, OverLimit>>,
    over: Option<OverLimit>,
}

/// The copy of a body that is on its way.
pub(crate) struct PendingCopy(oneshot::Receiver<Result<Bytes, OverLimit>>);

impl BodyCopy {
    /// `announced` is the length in bytes, if it is known. The copy is charged to `memory`.
    pub(crate) fn new(announced: Option<u64>, memory: &BodyMemory) -> (BodyCopy, PendingCopy) {
        let (done, pending) = oneshot::channel();
        let collector = Collector::new(usize::MAX, announced, Some(memory.clone()));
        (BodyCopy { collector, done, over: None }, PendingCopy(pending))
    }

    pub(super) fn push(&mut self, piece: &Bytes) {
        if self.over.is_none()
            && let Err(over) = self.collector.push(piece.clone())
        {
            self.over = Some(over);
            // What was collected is of no use, and its memory is another body's.
            self.collector = Collector::new(0, None, None);
        }
    }

    /// The body has ended.
    pub(super) fn complete(self) {
        // Without a receiver the copy is not needed any more.
        _ = self.done.send(match self.over {
            Some(over) => Err(over),
            None => Ok(self.collector.finish()),
        });
    }
}

impl PendingCopy {
    /// Waits for the end of the body.
    ///
    /// # Errors
    /// There is no copy.
    pub(crate) async fn whole(self) -> Result<Bytes, NoCopy> {
        match self.0.await {
            Ok(copy) => copy.map_err(|_| NoCopy::NoMemory),
            Err(_) => Err(NoCopy::Incomplete),
        }
    }
}
