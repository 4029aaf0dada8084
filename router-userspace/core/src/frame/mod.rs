//! The load frame: what an agent tells every gateway of its node, many times a second.
//!
//! A stream is a row of frames, each behind its length (`u32`, little-endian, as all numbers).
//! The first is a [`Body::Full`] report; then come [`Body::Delta`]s, with the records that
//! changed, and [`Body::Heartbeat`]s where none did. Sequences go up by one; after a gap the
//! sender begins anew with a full report. Times are the agent's own, and every record says how old
//! its values were when the frame was sent: no two clocks are ever compared.
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
#[cfg(test)]
mod tests;
mod wire;

use bytes::{Buf, Bytes, BytesMut};
use serde::Serialize;

pub use record::{Class, DeviceKind, DeviceRecord, LatencyRecord, PairId, PairRecord, PodRecord};
use wire::{Encode, FrameReader};

/// Raised by every change of what the bytes mean.
pub const VERSION: u8 = 1;
/// The longest frame, its length not counted.
pub const MAX_FRAME_BYTES: usize = 1 << 20;
/// What stands before a frame: its length.
pub const LENGTH_BYTES: usize = 4;
/// Records of one frame, kind by kind.
pub const MAX_PODS: usize = 1024;
pub const MAX_PAIRS: usize = 8192;
pub const MAX_DEVICES: usize = 256;
/// The longest name, in bytes: that of a node in Kubernetes.
pub const MAX_NAME_BYTES: usize = 253;

/// Why bytes are no frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("a frame of {0} bytes is over the limit of {MAX_FRAME_BYTES}")]
    TooLong(usize),
    #[error("the frame ends within {0}")]
    Truncated(&'static str),
    #[error("version {0} of the frame is not known; this is version {VERSION}")]
    Version(u8),
    #[error("{value} is no {field}")]
    Unknown { field: &'static str, value: u8 },
    #[error("{count} {field} are over the limit of {limit}")]
    TooMany { field: &'static str, count: usize, limit: usize },
    #[error("{0} is out of range")]
    OutOfRange(&'static str),
    #[error("{0} bytes follow the end of the frame")]
    Trailing(usize),
}

/// One frame.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Frame {
    /// Drawn when the agent starts: another instance counts from the beginning.
    pub instance: u64,
    pub sequence: u64,
    /// On the agent's clock, from when it started.
    pub sent_us: u64,
    /// How old the last reading of the pods' requests is, and that of the other counters by at most the
    /// 50 ms between two of theirs: what a frame does not repeat was the same then. It grows where an
    /// agent cannot read.
    pub read_age_us: u32,
    pub body: Body,
}

/// What a frame tells.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Body {
    /// Nothing changed.
    #[default]
    Heartbeat,
    Full(LoadReport),
    Delta(Delta),
}

/// Everything that an agent knows.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct LoadReport {
    pub node: String,
    pub pods: Vec<PodRecord>,
    pub pairs: Vec<PairRecord>,
    pub devices: Vec<DeviceRecord>,
}

/// What changed since the frame before.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Delta {
    pub pods: Vec<PodRecord>,
    pub pairs: Vec<PairRecord>,
    pub devices: Vec<DeviceRecord>,
    pub gone_pods: Vec<u64>,
    pub gone_pairs: Vec<PairId>,
}

const HEARTBEAT: u8 = 0;
const FULL: u8 = 1;
const DELTA: u8 = 2;

impl Frame {
    /// Appends the frame to `out`, behind its length. Records beyond the limits are left out: a
    /// frame is never one that [`decode`] refuses.
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
            Body::Delta(Delta { pods, pairs, devices, gone_pods, gone_pairs }) => {
                wire::put_list(pods, MAX_PODS, out);
                wire::put_list(pairs, MAX_PAIRS, out);
                wire::put_list(devices, MAX_DEVICES, out);
                wire::put_list(gone_pods, MAX_PODS, out);
                wire::put_list(gone_pairs, MAX_PAIRS, out);
            }
        }
        let length = u32::try_from(out.len() - start - 4).unwrap_or(u32::MAX);
        out[start..start + 4].copy_from_slice(&length.to_le_bytes());
    }
}

/// Takes the next frame's bytes, its length not among them; `None`: there is no whole one yet.
///
/// # Errors
/// The announced length is over the limit: what follows cannot be trusted either.
pub fn split_frame(stream: &mut BytesMut) -> Result<Option<Bytes>, FrameError> {
    let Some(length) = first_frame(stream)?.map(<[u8]>::len) else { return Ok(None) };
    stream.advance(LENGTH_BYTES);
    Ok(Some(stream.split_to(length).freeze()))
}

/// The same of bytes that stay where they are: its length is in the four bytes before it.
///
/// # Errors
/// As [`split_frame`].
pub fn first_frame(stream: &[u8]) -> Result<Option<&[u8]>, FrameError> {
    let Some((head, rest)) = stream.split_first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
    let length = u32::from_le_bytes(*head) as usize;
    if length > MAX_FRAME_BYTES {
        return Err(FrameError::TooLong(length));
    }
    Ok(rest.get(..length))
}

/// Reads a frame as [`split_frame`] hands it out. Every number is checked for its range.
///
/// # Errors
/// Says which field is wrong and how.
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
