//! [`Budget`]: how much an agent may send, so that one that floods costs no more than that.

use std::time::{Duration, Instant};

/// Frames and bytes that an agent may send a second: several times what a tick of a millisecond
/// makes, and far from what would hurt.
const MOST_FRAMES: u32 = 2_000;
const MOST_BYTES: usize = 8 << 20;

/// It sent more than that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than {MOST_FRAMES} frames or {MOST_BYTES} bytes a second")]
pub(super) struct Flood;

/// What an agent has sent in the second that runs.
pub(super) struct Budget {
    second: Instant,
    frames: u32,
    bytes: usize,
}

impl Budget {
    pub(super) fn start() -> Budget {
        Budget { second: Instant::now(), frames: 0, bytes: 0 }
    }

    pub(super) fn spend(&mut self, bytes: usize) -> Result<(), Flood> {
        if self.second.elapsed() >= Duration::from_secs(1) {
            *self = Budget::start();
        }
        self.bytes += bytes;
        if self.bytes > MOST_BYTES { Err(Flood) } else { Ok(()) }
    }

    pub(super) fn frame(&mut self) -> Result<(), Flood> {
        self.frames += 1;
        if self.frames > MOST_FRAMES { Err(Flood) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_noticed_by_frames_and_by_bytes() {
        let mut budget = Budget::start();
        assert!((0..MOST_FRAMES).all(|_| budget.frame().is_ok()));
        assert!(matches!(budget.frame(), Err(Flood)));
        let mut budget = Budget::start();
        assert!(budget.spend(MOST_BYTES).is_ok());
        assert!(matches!(budget.spend(1), Err(Flood)));
    }
}
