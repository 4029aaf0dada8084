//! [`HttpChange`]: the changes that one segment makes to the counters of its pod.

/// The changes that one segment makes to the counters of its pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HttpChange {
    pub started: bool,
    pub answered: bool,
    pub finished: bool,
    pub aborted: bool,
    pub reopened: bool,
    pub stream_started: bool,
    pub stream_ended: bool,
    /// The connection has ended: its entry is removed.
    pub ended: bool,
    /// Bytes of a request that arrived before its response began.
    pub request_bytes: u32,
    /// Bytes of the request whose response begins with this segment.
    pub answered_request_bytes: u32,
    /// Times that end with this segment; 0 if none does.
    pub ttft_ns: u64,
    pub itl_ns: u64,
    pub duration_ns: u64,
}
