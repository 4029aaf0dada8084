//! [`Change`]: what one segment of a connection changes in its pod's counters.

/// What one segment adds to a pod's counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    pub started: bool,
    pub answered: bool,
    pub finished: bool,
    pub aborted: bool,
    pub reopened: bool,
    pub stream_started: bool,
    pub stream_ended: bool,
    /// The connection is over: forget it.
    pub gone: bool,
    /// Bytes of a request that came before its answer began, and those whose answer began now.
    pub asked_bytes: u32,
    pub answered_bytes: u32,
    /// Times that end here, 0 where none does.
    pub ttft_ns: u64,
    pub itl_ns: u64,
    pub duration_ns: u64,
}
