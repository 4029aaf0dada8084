//! [`Budget`]: how much one agent may send a second, so that a flooding agent has a bounded cost.

use std::time::{Duration, Instant};

/// Frames and bytes that one agent may send a second. An agent that publishes every millisecond
/// stays below a half of both.
const MAX_FRAMES_PER_S: u32 = 2_000;
const MAX_BYTES_PER_S: usize = 8 << 20;

/// The agent sent more than its budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the agent sent more than {MAX_FRAMES_PER_S} frames or {MAX_BYTES_PER_S} bytes in a second"
)]
pub(super) struct RateExceeded;

/// What one agent has sent in the current second.
pub(super) struct Budget {
    second: Instant,
    frames: u32,
    bytes: usize,
}

impl Budget {
    pub(super) fn start() -> Budget {
        Budget { second: Instant::now(), frames: 0, bytes: 0 }
    }

    pub(super) fn spend(&mut self, bytes: usize) -> Result<(), RateExceeded> {
        if self.second.elapsed() >= Duration::from_secs(1) {
            *self = Budget::start();
        }
        self.bytes += bytes;
        if self.bytes > MAX_BYTES_PER_S { Err(RateExceeded) } else { Ok(()) }
    }

    pub(super) fn frame(&mut self) -> Result<(), RateExceeded> {
        self.frames += 1;
        if self.frames > MAX_FRAMES_PER_S { Err(RateExceeded) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_frames_or_bytes_exceed_the_rate() {
        let mut budget = Budget::start();
        assert!((0..MAX_FRAMES_PER_S).all(|_| budget.frame().is_ok()));
        assert!(matches!(budget.frame(), Err(RateExceeded)));
        let mut budget = Budget::start();
        assert!(budget.spend(MAX_BYTES_PER_S).is_ok());
        assert!(matches!(budget.spend(1), Err(RateExceeded)));
    }
}
