//! A segment with control messages of KV transfers, as the programs hand it up.

use crate::flow::FlowKey;

/// Number of bytes of a segment's payload that are handed up: those of a status message, and of the beginning
/// of an index message with IPv6 addresses up to the length of its indices.
pub const CONTROL_WINDOW: usize = 128;

/// A TCP segment with payload on a connection of class
/// [`CLASS_KV_CONTROL`](crate::flow::CLASS_KV_CONTROL).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct ControlSegment {
    /// When the socket sent or received it, on CLOCK_MONOTONIC.
    pub at_ns: u64,
    pub flow: FlowKey,
    /// Id of the local pod.
    pub pod: u32,
    /// TCP sequence number of the first byte.
    pub sequence: u32,
    /// Length of the payload in bytes.
    pub length: u32,
    /// 1 if the pod sends it, 0 if it receives it.
    pub sent: u32,
    pub reserved: u32,
    /// The beginning of the payload; bytes beyond `length` have no meaning.
    pub bytes: [u8; CONTROL_WINDOW],
}

impl ControlSegment {
    /// The bytes that were handed up.
    pub fn head(&self) -> &[u8] {
        &self.bytes[..(self.length as usize).min(CONTROL_WINDOW)]
    }
}

const _: () = assert!(size_of::<ControlSegment>() == 192);
