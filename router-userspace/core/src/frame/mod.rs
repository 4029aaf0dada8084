//! The load frame: what an agent sends to every gateway about its node, many times a second.
//!
//! A stream is a sequence of frames, each prefixed with its length (`u32`; all numbers are
//! little-endian). The first frame is [`Body::Full`]. It is followed by [`Body::Delta`] frames with
//! the records that changed, and by [`Body::Heartbeat`] frames if none did. Sequence numbers increase
//! by one; after a gap the stream must restart with a full frame. Every record carries the age of
//! its values at the time of sending, so clocks of two machines are never compared.
//!
//! ```
//! use router_core::frame::{Body, Frame, PodRecord, LoadReport, decode, split_frame};
//!
//! let pod = PodRecord { pod: 7, in_flight: 3, age_us: 150, ..PodRecord::default() };
//! let report = LoadReport { node: "gpu-1".into(), pods: vec![pod], ..LoadReport::default() };
//! let sent = Frame { sequence: 1, body: Body::Full(report), ..Frame::default() };
//! let mut stream = bytes::BytesMut::new();
//! sent.encode(&mut stream);
//! let frame = split_frame(&mut stream).unwrap().expect("a whole frame");
//! assert_eq!(decode(&frame).unwrap(), sent);
//! assert_eq!(split_frame(&mut stream).unwrap(), None);
//! ```

mod change;
mod record;
mod room;
#[cfg(test)]
mod tests;
mod wire;

use bytes::{Buf, Bytes, BytesMut};
use serde::Serialize;

pub use record::{Class, DeviceKind, DeviceRecord, LatencyRecord, PairId, PairRecord, PodRecord};
pub use room::{RoomOutcome, RoomRecord, RoomSide};
use wire::{Encode, FrameReader};

/// Version of the encoding. It changes whenever the meaning of the bytes changes.
pub const VERSION: u8 = 2;
/// Maximum size of a frame without its length prefix.
pub const MAX_FRAME_BYTES: usize = 1 << 20;
/// Size of the length prefix.
pub const LENGTH_BYTES: usize = 4;
/// Maximum number of records of each kind in one frame.
pub const MAX_PODS: usize = 1024;
pub const MAX_PAIRS: usize = 8192;
pub const MAX_DEVICES: usize = 256;
pub const MAX_ROOMS: usize = 512;
/// Maximum size of a name in bytes: that of a Kubernetes node name.
pub const MAX_NAME_BYTES: usize = 253;

/// Why bytes are not a valid frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("the frame has {0} bytes; the maximum is {MAX_FRAME_BYTES}")]
    TooLong(usize),
    #[error("the frame ends within {0}")]
    Truncated(&'static str),
    #[error("frame version {0} is not supported; expected {VERSION}")]
    Version(u8),
    #[error("{field} has the unknown value {value}")]
    Unknown { field: &'static str, value: u8 },
    #[error("the frame has {count} {field}; the maximum is {limit}")]
    TooMany { field: &'static str, count: usize, limit: usize },
    #[error("{0} is out of range")]
    OutOfRange(&'static str),
    #[error("{0} extra bytes follow the frame")]
    Trailing(usize),
}

/// One frame.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Frame {
    /// Random number of the agent process. A restarted agent has another one.
    pub instance: u64,
    pub sequence: u64,
    /// Time of sending on the agent's clock, since it started.
    pub sent_us: u64,
    /// Age of the last reading of the pods' requests. Other counters are read every 50 ms, so they may
    /// be up to 50 ms older. Values that a frame does not repeat were unchanged at that reading. The
    /// age grows while an agent cannot read its counters.
    pub read_age_us: u32,
    pub body: Body,
}

/// The content of a frame.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Body {
    /// Nothing changed.
    #[default]
    Heartbeat,
    Full(LoadReport),
    Delta(Delta),
}

/// The complete state of an agent's node.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct LoadReport {
    pub node: String,
    pub pods: Vec<PodRecord>,
    pub pairs: Vec<PairRecord>,
    pub devices: Vec<DeviceRecord>,
}

/// The changes since the previous frame.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Delta {
    pub pods: Vec<PodRecord>,
    pub pairs: Vec<PairRecord>,
    pub devices: Vec<DeviceRecord>,
    pub gone_pods: Vec<u64>,
    pub gone_pairs: Vec<PairId>,
    /// What happened to KV transfers. These are events: no full frame repeats them.
    pub rooms: Vec<RoomRecord>,
}

const HEARTBEAT: u8 = 0;
const FULL: u8 = 1;
const DELTA: u8 = 2;

impl Frame {
    /// Takes out the records of rooms, which are events and not a part of the state.
    pub fn take_rooms(&mut self) -> Vec<RoomRecord> {
        match &mut self.body {
            Body::Delta(delta) => std::mem::take(&mut delta.rooms),
            Body::Heartbeat | Body::Full(_) => Vec::new(),
        }
    }

    /// Appends the length prefix and the frame to `out`. Records beyond the limits are dropped, so
    /// [`decode`] accepts every encoded frame.
    pub fn encode(&self, out: &mut BytesMut) {
        let start = out.len();
        0u32.put(out);
        VERSION.put(out);
        let kind = match &self.body {
            Body::Heartbeat => HEARTBEAT,
            Body::Full(_) => FULL,
            Body::Delta(_) => DELTA,
        };
        kind.put(out);
        self.instance.put(out);
        self.sequence.put(out);
        self.sent_us.put(out);
        self.read_age_us.min(record::MAX_AGE_US).put(out);
        match &self.body {
            Body::Heartbeat => {}
            Body::Full(LoadReport { node, pods, pairs, devices }) => {
                wire::put_text(node, out);
                wire::put_list(pods, MAX_PODS, out);
                wire::put_list(pairs, MAX_PAIRS, out);
                wire::put_list(devices, MAX_DEVICES, out);
            }
            Body::Delta(Delta { pods, pairs, devices, gone_pods, gone_pairs, rooms }) => {
                wire::put_list(pods, MAX_PODS, out);
                wire::put_list(pairs, MAX_PAIRS, out);
                wire::put_list(devices, MAX_DEVICES, out);
                wire::put_list(gone_pods, MAX_PODS, out);
                wire::put_list(gone_pairs, MAX_PAIRS, out);
                wire::put_list(rooms, MAX_ROOMS, out);
            }
        }
        let length = u32::try_from(out.len() - start - 4).unwrap_or(u32::MAX);
        out[start..start + 4].copy_from_slice(&length.to_le_bytes());
    }
}

/// Removes the next frame from `stream` and returns it without the length prefix; `None` if it is not
/// complete yet.
///
/// # Errors
/// The length prefix is over the limit. The rest of the stream is unusable.
pub fn split_frame(stream: &mut BytesMut) -> Result<Option<Bytes>, FrameError> {
    let Some(length) = first_frame(stream)?.map(<[u8]>::len) else { return Ok(None) };
    stream.advance(LENGTH_BYTES);
    Ok(Some(stream.split_to(length).freeze()))
}

/// Returns the first frame of `stream` without the length prefix, and leaves `stream` unchanged;
/// `None` if it is not complete yet.
///
/// # Errors
/// The length prefix is over the limit. The rest of the stream is unusable.
pub fn first_frame(stream: &[u8]) -> Result<Option<&[u8]>, FrameError> {
    let Some((head, rest)) = stream.split_first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
    let length = u32::from_le_bytes(*head) as usize;
    if length > MAX_FRAME_BYTES {
        return Err(FrameError::TooLong(length));
    }
    Ok(rest.get(..length))
}

/// Decodes a frame without its length prefix. The range of every number is checked.
///
/// # Errors
/// The field that is wrong, and how.
pub fn decode(bytes: &[u8]) -> Result<Frame, FrameError> {
    if bytes.len() > MAX_FRAME_BYTES {
        return Err(FrameError::TooLong(bytes.len()));
    }
    let mut from = FrameReader::new(bytes);
    let version = u8::get(&mut from, "version")?;
    if version != VERSION {
        return Err(FrameError::Version(version));
    }
    let kind = u8::get(&mut from, "kind")?;
    let mut frame = Frame {
        instance: Encode::get(&mut from, "instance")?,
        sequence: Encode::get(&mut from, "sequence")?,
        sent_us: Encode::get(&mut from, "sent_us")?,
        read_age_us: from.at_most("read_age_us", record::MAX_AGE_US)?,
        body: Body::Heartbeat,
    };
    frame.body = match kind {
        HEARTBEAT => Body::Heartbeat,
        FULL => Body::Full(LoadReport {
            node: from.text("node")?,
            pods: from.list("pods", MAX_PODS)?,
            pairs: from.list("pairs", MAX_PAIRS)?,
            devices: from.list("devices", MAX_DEVICES)?,
        }),
        DELTA => Body::Delta(Delta {
            pods: from.list("pods", MAX_PODS)?,
            pairs: from.list("pairs", MAX_PAIRS)?,
            devices: from.list("devices", MAX_DEVICES)?,
            gone_pods: from.list("gone_pods", MAX_PODS)?,
            gone_pairs: from.list("gone_pairs", MAX_PAIRS)?,
            rooms: from.list("rooms", MAX_ROOMS)?,
        }),
        value => return Err(FrameError::Unknown { field: "kind of frame", value }),
    };
    match from.left() {
        0 => Ok(frame),
        left => Err(FrameError::Trailing(left)),
    }
}

/// Returns the identity of a pod in frames: the FNV-1a hash of its UID, never 0.
///
/// ```
/// assert_ne!(router_core::frame::pod_id("a"), router_core::frame::pod_id("b"));
/// ```
pub fn pod_id(uid: &str) -> u64 {
    crate::fnv::fnv1a_nonzero(uid.bytes())
}
