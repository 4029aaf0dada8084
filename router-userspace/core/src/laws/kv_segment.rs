//! The law of control messages.

use crate::sglang::kv_messages::{KvMessage, SegmentRest, read_open_segment, read_segment};

/// A room is read only where the bytes have its digits, and what is read of a segment fits into it.
///
/// # Panics
/// The law is violated.
pub fn kv_segment(bytes: &[u8], length: u32) {
    let length = length.max(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    names_its_rooms(bytes, |each| read_segment(bytes, length, each));
    names_its_rooms(bytes, |each| read_open_segment(bytes, length, each));
}

fn names_its_rooms(bytes: &[u8], read: impl FnOnce(&mut dyn FnMut(KvMessage)) -> SegmentRest) {
    let mut count = 0;
    let rest = read(&mut |message| {
        count += 1;
        let room = match message {
            KvMessage::Indices { room, .. }
            | KvMessage::Status { room, .. }
            | KvMessage::Abort { room } => room,
            _ => return,
        };
        let digits = room.to_string();
        let is_named = bytes.windows(digits.len()).any(|found| found == digits.as_bytes());
        assert!(is_named, "room {room} is not in {bytes:?}");
    });
    assert!(count <= bytes.len(), "{count} messages in {bytes:?}");
    assert!(rest.continues == 0 || !rest.is_unread, "{rest:?}");
}
