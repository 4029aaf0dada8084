//! The ranges of numbers and durations in flags.
//!
//! A value out of range is an error at the start: the libraries that it goes to would panic, some of
//! them only with the first request.

use std::time::Duration;

use anyhow::{Result, bail};
use tokio::sync::Semaphore;

use super::{LimitFlags, TimeoutFlags};

/// Maximum of every duration, a year. An instant that is centuries away overflows the clock.
pub(super) const MAX_DURATION: Duration = Duration::from_secs(365 * 24 * 3600);
/// Maximum of `--send-timeout`, 24 days: the kernel counts it in milliseconds, in 31 bits
/// (TCP_USER_TIMEOUT).
pub(super) const MAX_SEND_TIMEOUT: Duration = Duration::from_secs(24 * 24 * 3600);
/// Minimum of `--max-header-bytes`, that of hyper.
const MIN_HEADER_BYTES: usize = 8 << 10;
/// Maximum of `--max-header-bytes`: every open connection may buffer as much.
const MAX_HEADER_BYTES: usize = 64 << 20;

impl LimitFlags {
    /// # Errors
    /// Names the flag that is out of range, and its range.
    pub(super) fn check(&self) -> Result<()> {
        let counts = [
            ("--max-attempts", u64::from(self.max_attempts)),
            ("--max-engine-crashes", u64::from(self.max_engine_crashes)),
            ("--max-requests-per-worker", u64::from(self.max_requests_per_worker)),
            ("--max-connections", self.max_connections as u64),
        ];
        for (flag, value) in counts {
            if value == 0 || value > Semaphore::MAX_PERMITS as u64 {
                bail!("{flag} is {value}: it must be between 1 and {}", Semaphore::MAX_PERMITS);
            }
        }
        let head = self.max_header_bytes;
        if !(MIN_HEADER_BYTES..=MAX_HEADER_BYTES).contains(&head) {
            bail!(
                "--max-header-bytes is {head}: it must be between {MIN_HEADER_BYTES} and \
                 {MAX_HEADER_BYTES}"
            );
        }
        let most = Semaphore::MAX_PERMITS;
        for (flag, value) in [
            ("--max-mirrors", self.mirrors.max_mirrors),
            ("--max-mirror-memory", self.mirrors.max_mirror_memory),
        ] {
            if value > most {
                bail!("{flag} is {value}: it must be at most {most}");
            }
        }
        for (memory_flag, memory, one_flag, one) in [
            ("--max-body-memory", self.max_body_memory, "--max-body", self.max_body),
            (
                "--max-response-memory",
                self.max_response_memory,
                "--max-response",
                self.max_response,
            ),
        ] {
            if memory > most {
                bail!("{memory_flag} is {memory}: it must be at most {most}");
            }
            if one == 0 {
                bail!("{one_flag} is 0: it must be between 1 and {memory} ({memory_flag})");
            }
            if memory < one {
                bail!("{one_flag} is {one}: it must be at most {memory_flag}, which is {memory}");
            }
        }
        Ok(())
    }
}

impl TimeoutFlags {
    /// # Errors
    /// Names the flag that is out of range, and its range. [`duration`](super::duration) has checked
    /// the range of all.
    pub(super) fn check(&self) -> Result<()> {
        if self.send_timeout > MAX_SEND_TIMEOUT {
            bail!(
                "--send-timeout is {:?}: it must be at most {}h",
                self.send_timeout,
                MAX_SEND_TIMEOUT.as_secs() / 3600
            );
        }
        Ok(())
    }
}
