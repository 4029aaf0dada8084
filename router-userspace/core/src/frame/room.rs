//! The record of a KV transfer, by its bootstrap room.

use bytes::BytesMut;
use serde::Serialize;

use super::FrameError;
use super::record::record;
use super::wire::{Bounded as _, Encode, FrameReader};

/// Maximum time on an agent's clock: about 285 years.
const MAX_CLOCK_US: u64 = 1 << 53;

record! {
    /// What the messages of one side of a KV transfer show of a room. A record replaces the earlier one of its
    /// room and side.
    RoomRecord {
        /// The bootstrap room.
        room: u64,
        /// The pod whose messages these are, by [`pod_id`](super::pod_id).
        pod: u64,
        side: RoomSide,
        outcome: RoomOutcome,
        /// When the first rank of decode sent prefill where the KV cache goes, on the agent's clock as
        /// [`Frame::sent_us`](super::Frame::sent_us); 0 if it was not seen.
        admitted_us: u64 = MAX_CLOCK_US,
        /// When the transfer ended; 0 if it has not.
        ended_us: u64 = MAX_CLOCK_US,
    }
}

/// Which end of the connections the messages were seen at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RoomSide {
    /// Its times are when indices arrive and statuses leave.
    #[default]
    Prefill,
    /// Its times are when indices leave and statuses arrive.
    Decode,
}

/// What became of a transfer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RoomOutcome {
    /// It has not ended.
    #[default]
    Open,
    /// Every rank that takes part has reported success.
    Success,
    /// The ranks that were seen have reported success; messages of others may not have been seen.
    SuccessOfSeen,
    /// A rank has reported failure.
    Failed,
    /// Decode has given it up.
    Aborted,
}

impl Encode for RoomSide {
    fn put(&self, out: &mut BytesMut) {
        (*self as u8).put(out);
    }

    fn get(from: &mut FrameReader<'_>, field: &'static str) -> Result<RoomSide, FrameError> {
        Ok(match u8::get(from, field)? {
            0 => RoomSide::Prefill,
            1 => RoomSide::Decode,
            value => return Err(FrameError::Unknown { field, value }),
        })
    }
}

impl Encode for RoomOutcome {
    fn put(&self, out: &mut BytesMut) {
        (*self as u8).put(out);
    }

    fn get(from: &mut FrameReader<'_>, field: &'static str) -> Result<RoomOutcome, FrameError> {
        Ok(match u8::get(from, field)? {
            0 => RoomOutcome::Open,
            1 => RoomOutcome::Success,
            2 => RoomOutcome::SuccessOfSeen,
            3 => RoomOutcome::Failed,
            4 => RoomOutcome::Aborted,
            value => return Err(FrameError::Unknown { field, value }),
        })
    }
}
