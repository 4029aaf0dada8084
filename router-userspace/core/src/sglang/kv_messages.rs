//! The messages that prefill and decode exchange about KV transfers, as the beginning of a TCP segment shows
//! them: ZMTP 3 without encryption, whose bytes an agent gets from the kernel.
//!
//! Mooncake's backend sends all of them. NIXL's sends the indices, behind a guard; how a transfer went it
//! sends by NIXL itself.

use std::net::{IpAddr, SocketAddr};

/// Flags of a ZMTP frame.
const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;
/// Number of frames of a message that are looked at.
const FRAMES: usize = 6;
/// Maximum length of a frame: KV indices of 16 million pages.
const MAX_FRAME: u64 = 64 << 20;
/// Length of what may follow the indices of a message: less than a message with indices has. If more follows,
/// it may be another message.
pub const MAX_TAIL: u32 = 64;
/// What NIXL's messages begin with.
const GUARD: &[u8] = b"NixlMsgGuard";
/// The first frames of other messages of SGLang.
const OTHERS: [&[u8]; 7] = [
    b"BOOTSTRAP",
    b"CHUNK_READY",
    b"AUX_DATA",
    b"STAGING_REQ",
    b"STAGING_RSP",
    b"WATERMARK",
    b"KV_STATUS",
];

/// A message about KV transfers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvMessage {
    /// A decode rank introduces itself to a prefill rank.
    Registration,
    /// A decode rank has reserved memory for the KV cache of a room, and sends a prefill rank where it goes.
    Indices {
        room: u64,
        /// Where the decode rank takes control messages.
        decode: SocketAddr,
        /// The rank takes part in the transfer: the message has pages.
        has_pages: bool,
    },
    /// A prefill rank reports how its transfer to a decode rank went.
    Status { room: u64, outcome: KvOutcome, rank: u32 },
    /// A decode has given up a room.
    Abort { room: u64 },
    /// A prefill confirms an abort.
    AbortAcknowledged,
    /// A part of a connection's handshake, a heartbeat, or another message of SGLang.
    Other,
}

/// The status of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvOutcome {
    Failed,
    Success,
    /// It has not ended.
    Running,
}

/// What a segment has beside the messages that were read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegmentRest {
    /// Bytes of the following segments that belong to the last frame of this one.
    pub continues: u32,
    /// Behind that frame are others of the same message. ZeroMQ sends them apart from a long one.
    pub is_open: bool,
    /// The segment may have more messages, beyond the bytes that are known.
    pub may_hide: bool,
    /// The segment, or the part of it after the messages that were read, begins with no known message.
    pub is_unread: bool,
}

/// Reads the messages of a segment of `length` bytes that begins with `bytes`, and passes each to `each`.
///
/// Nothing is guessed: a message counts if its frames, the digits of its room and its addresses are as SGLang
/// sends them. A message whose end lies beyond `bytes` counts if its beginning suffices.
///
/// ```
/// use router_core::sglang::kv_messages::{KvMessage, KvOutcome, read_segment};
///
/// let bytes = b"\x01\x0277\x01\x014\x00\x010";
/// let mut read = Vec::new();
/// read_segment(bytes, bytes.len() as u32, |message| read.push(message));
/// assert_eq!(read, [KvMessage::Status { room: 77, outcome: KvOutcome::Success, rank: 0 }]);
/// ```
pub fn read_segment(bytes: &[u8], length: u32, mut each: impl FnMut(KvMessage)) -> SegmentRest {
    if is_greeting(bytes) {
        each(KvMessage::Other);
        return SegmentRest::default();
    }
    read_frames(bytes, length, false, each)
}

/// As [`read_segment`], of a segment that begins with further frames of a message.
pub fn read_open_segment(bytes: &[u8], length: u32, each: impl FnMut(KvMessage)) -> SegmentRest {
    read_frames(bytes, length, true, each)
}

fn read_frames(
    bytes: &[u8],
    length: u32,
    mut is_within: bool,
    mut each: impl FnMut(KvMessage),
) -> SegmentRest {
    let unread = SegmentRest { is_unread: true, ..SegmentRest::default() };
    let mut rest = bytes;
    let mut left = length;
    while left > 0 {
        if rest.is_empty() {
            return SegmentRest { may_hide: true, ..SegmentRest::default() };
        }
        let Some(frames) = Frames::read(rest) else { return unread };
        if !std::mem::take(&mut is_within) {
            let Some(message) = frames.message() else { return unread };
            each(message);
        } else if frames.is_command {
            return unread;
        }
        if frames.end >= u64::from(left) {
            let continues = u32::try_from(frames.end - u64::from(left)).unwrap_or(u32::MAX);
            return SegmentRest { continues, is_open: !frames.is_whole, ..SegmentRest::default() };
        }
        left -= frames.end as u32;
        if !frames.is_whole {
            return SegmentRest { may_hide: left > MAX_TAIL, ..SegmentRest::default() };
        }
        rest = rest.get(frames.end as usize..).unwrap_or_default();
    }
    SegmentRest::default()
}

/// Whether a segment is a part of the greeting of a connection, which libzmq sends in pieces.
fn is_greeting(bytes: &[u8]) -> bool {
    let signature = |bytes: &[u8]| bytes.first() == Some(&0xff) && bytes.get(9) == Some(&0x7f);
    // The version, of one or two bytes, and the mechanism.
    let is_mechanism = |bytes: &[u8]| bytes.starts_with(b"NULL\0");
    signature(bytes)
        || bytes == [3]
        || matches!(bytes, [0 | 1, rest @ ..] | [3, 0 | 1, rest @ ..] if is_mechanism(rest))
}

/// The frames of one message, as far as they are known.
struct Frames<'b> {
    /// The bodies of the first frames, as far as they are known, and their whole lengths.
    bodies: [(&'b [u8], u64); FRAMES],
    /// The number of frames that begin within the known bytes.
    count: usize,
    is_command: bool,
    /// Where the last of those ends, from the beginning of the message.
    end: u64,
    /// That frame is the last of the message.
    is_whole: bool,
}

impl<'b> Frames<'b> {
    /// `None` if the bytes are no frames.
    fn read(bytes: &'b [u8]) -> Option<Frames<'b>> {
        let mut frames = Frames {
            bodies: [(&[], 0); FRAMES],
            count: 0,
            is_command: false,
            end: 0,
            is_whole: false,
        };
        let at = |end: u64| usize::try_from(end).ok().and_then(|end| bytes.get(end..));
        while let Some([flags, head @ ..]) = at(frames.end) {
            let is_command = flags & COMMAND != 0;
            let is_valid = match frames.count {
                0 => flags & !(MORE | LONG | COMMAND) == 0 && !(is_command && flags & MORE != 0),
                _ => flags & !(MORE | LONG) == 0,
            };
            if !is_valid {
                return None;
            }
            let (length, size) = if flags & LONG == 0 {
                let Some(length) = head.first() else { break };
                (u64::from(*length), 1)
            } else {
                let Some(length) = head.first_chunk() else { break };
                (u64::from_be_bytes(*length), 8)
            };
            if length > MAX_FRAME {
                return None;
            }
            let known = head.get(size..).unwrap_or_default();
            let known = &known[..usize::try_from(length).unwrap_or(usize::MAX).min(known.len())];
            if let Some(slot) = frames.bodies.get_mut(frames.count) {
                *slot = (known, length);
            }
            frames.is_command |= is_command;
            frames.count += 1;
            frames.end += 1 + size as u64 + length;
            if flags & MORE == 0 {
                frames.is_whole = true;
                break;
            }
        }
        Some(frames)
    }

    /// The body of a frame that is known to its end.
    fn body(&self, at: usize) -> Option<&'b [u8]> {
        let (body, length) = *self.bodies[..self.count.min(FRAMES)].get(at)?;
        (body.len() as u64 == length).then_some(body)
    }

    fn text(&self, at: usize) -> Option<&'b str> {
        std::str::from_utf8(self.body(at)?).ok()
    }

    /// A decimal number without a sign.
    fn number<T: std::str::FromStr>(&self, at: usize) -> Option<T> {
        let text = self.text(at)?;
        let is_decimal = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        is_decimal.then(|| text.parse().ok()).flatten()
    }

    fn address(&self, at: usize) -> Option<SocketAddr> {
        let address: IpAddr = self.text(at)?.parse().ok()?;
        Some(SocketAddr::new(address, self.number(at + 1)?))
    }

    /// `None` if it is no message that SGLang sends.
    fn message(&self) -> Option<KvMessage> {
        if self.is_command {
            // A name of few letters comes first.
            let name = self.bodies[0].0.get(1..3)?;
            return name.iter().all(u8::is_ascii_uppercase).then_some(KvMessage::Other);
        }
        match self.body(0)? {
            GUARD => self.to_room(1),
            b"ABORT" => Some(KvMessage::Abort { room: self.number(1)? }),
            b"ABORT_ACK" => Some(KvMessage::AbortAcknowledged),
            tag if OTHERS.contains(&tag) => Some(KvMessage::Other),
            _ => self.to_room(0),
        }
    }

    /// A message whose first frame is a room.
    fn to_room(&self, first: usize) -> Option<KvMessage> {
        if self.text(first)? == "None" {
            return self.address(first + 1).map(|_| KvMessage::Registration);
        }
        let room = self.number(first)?;
        // Versions before 0.5 do not name the rank.
        if self.is_whole && (self.count == first + 2 || self.count == first + 3) {
            let outcome = match self.body(first + 1)? {
                b"0" => KvOutcome::Failed,
                b"4" => KvOutcome::Success,
                b"1" | b"2" | b"3" => KvOutcome::Running,
                _ => return None,
            };
            let rank = if self.count == first + 3 { self.number(first + 2)? } else { 0 };
            return Some(KvMessage::Status { room, outcome, rank });
        }
        let decode = self.address(first + 1)?;
        if self.count < first + 4 || (self.is_whole && self.count < first + 6) {
            return None;
        }
        let has_pages = self.count < first + 5 || self.bodies[first + 4].1 > 0;
        Some(KvMessage::Indices { room, decode, has_pages })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A message as libzmq sends it.
    fn message(parts: &[&[u8]]) -> Vec<u8> {
        let mut wire = Vec::new();
        for (at, part) in parts.iter().enumerate() {
            let more = u8::from(at + 1 < parts.len());
            match u8::try_from(part.len()) {
                Ok(length) => wire.extend([more, length]),
                Err(_) => {
                    wire.push(more | LONG);
                    wire.extend((part.len() as u64).to_be_bytes());
                }
            }
            wire.extend(*part);
        }
        wire
    }

    fn indices(room: &str, pages: usize) -> Vec<u8> {
        let pages: Vec<u8> = (0..pages as u32).flat_map(u32::to_le_bytes).collect();
        let room = room.as_bytes();
        let address = b"10.77.0.3:16262";
        message(&[room, b"10.77.0.3", b"44429", address, &pages, b"12", b"", b"1", b"0"])
    }

    /// What is read of a segment of which the first 128 bytes are known.
    fn read(segment: &[u8]) -> (Vec<KvMessage>, SegmentRest) {
        let mut messages = Vec::new();
        let known = &segment[..segment.len().min(128)];
        let rest = read_segment(known, segment.len() as u32, |message| messages.push(message));
        (messages, rest)
    }

    const ROOM: u64 = 9_223_372_036_854_775_807;
    const WHOLE: SegmentRest =
        SegmentRest { continues: 0, is_open: false, may_hide: false, is_unread: false };
    const UNREAD: SegmentRest = SegmentRest { is_unread: true, ..WHOLE };

    fn wanted(room: u64, has_pages: bool) -> KvMessage {
        KvMessage::Indices { room, decode: "10.77.0.3:44429".parse().unwrap(), has_pages }
    }

    fn success(room: u64, rank: u32) -> KvMessage {
        KvMessage::Status { room, outcome: KvOutcome::Success, rank }
    }

    #[test]
    fn messages_are_read_by_their_beginnings() {
        let room = ROOM.to_string();
        for pages in [1, 10, 63, 64, 1_000, 16_000] {
            assert_eq!(read(&indices(&room, pages)), (vec![wanted(ROOM, true)], WHOLE), "{pages}");
        }
        assert_eq!(read(&indices("5", 0)), (vec![wanted(5, false)], WHOLE));
        let ended = |status: &[u8]| read(&message(&[room.as_bytes(), status, b"3"]));
        assert_eq!(ended(b"4"), (vec![success(ROOM, 3)], WHOLE));
        let failed = KvMessage::Status { room: ROOM, outcome: KvOutcome::Failed, rank: 3 };
        assert_eq!(ended(b"0"), (vec![failed], WHOLE));
        assert_eq!(read(&message(&[room.as_bytes(), b"4"])), (vec![success(ROOM, 0)], WHOLE));
        let parts: [&[u8]; 6] = [b"None", b"10.77.0.3", b"44429", b"10.77.0.3:1", &[0; 400], b"8"];
        assert_eq!(read(&message(&parts)).0, [KvMessage::Registration]);
        let abort = message(&[b"ABORT", b"7", b"10.77.0.3", b"44429"]);
        assert_eq!(read(&abort), (vec![KvMessage::Abort { room: 7 }], WHOLE));
        let confirmed = message(&[b"ABORT_ACK", b"7"]);
        assert_eq!(read(&confirmed), (vec![KvMessage::AbortAcknowledged], WHOLE));
        let nixl: [&[u8]; 8] =
            [GUARD, b"8", b"10.77.0.3", b"44429", b"a-name", &[1, 0, 0, 0], b"3", b"1"];
        assert_eq!(read(&message(&nixl)), (vec![wanted(8, true)], WHOLE));
    }

    #[test]
    fn several_messages_of_a_segment_are_read_as_far_as_they_are_known() {
        let one = |room: &str| message(&[room.as_bytes(), b"4", b"0"]);
        let two = [one("71"), one("72")].concat();
        assert_eq!(read(&two), (vec![success(71, 0), success(72, 0)], WHOLE));
        let many: Vec<u8> = (100..200).flat_map(|room| one(&room.to_string())).collect();
        let (messages, rest) = read(&many);
        assert_eq!(messages.len(), 128 / one("100").len());
        assert!(rest.may_hide || rest.is_unread, "{rest:?}");
        let with_indices = [one("71"), indices("72", 1_000)].concat();
        assert_eq!(read(&with_indices), (vec![success(71, 0), wanted(72, true)], WHOLE));
        // The second message lies beyond what is known.
        let hidden = [indices("72", 1_000), indices("73", 1_000)].concat();
        let (messages, rest) = read(&hidden);
        assert_eq!((messages, rest.may_hide), (vec![wanted(72, true)], true));
    }

    #[test]
    fn a_frame_that_goes_on_in_the_next_segment_is_known_to_do_so() {
        let whole = indices("72", 1_000);
        let (messages, rest) = read(&whole[..1_448]);
        assert_eq!(messages, [wanted(72, true)]);
        // Behind the indices are four frames of 2, 0, 1 and 1 bytes.
        let end = whole.len() as u32 - 4 * 2 - 4;
        let open = SegmentRest { continues: end - 1_448, is_open: true, ..WHOLE };
        assert_eq!(rest, open);
        assert_eq!(read(&whole[1_448..2_896]), (vec![], UNREAD));
    }

    #[test]
    fn frames_that_are_sent_apart_end_their_message() {
        let whole = indices("72", 1_000);
        let (start, tail) = whole.split_at(whole.len() - 4 * 2 - 4);
        assert_eq!(read(start).1, SegmentRest { is_open: true, ..WHOLE });
        let read_open = |segment: &[u8]| {
            let mut messages = Vec::new();
            let rest =
                read_open_segment(segment, segment.len() as u32, |message| messages.push(message));
            (messages, rest)
        };
        assert_eq!(read_open(tail), (vec![], WHOLE));
        let more = [tail, &message(&[b"71", b"4", b"0"])].concat();
        assert_eq!(read_open(&more), (vec![success(71, 0)], WHOLE));
        assert_eq!(read_open(&tail[..4]).1, SegmentRest { is_open: true, ..WHOLE });
        assert_eq!(read_open(b"\x04\x07\x04PING\0\x1e"), (vec![], UNREAD));
        assert_eq!(read_open(b"POST /generate HTTP/1.1\r\n\r\n"), (vec![], UNREAD));
    }

    #[test]
    fn handshakes_and_heartbeats_are_no_messages_of_rooms() {
        let mut greeting = [0; 64];
        (greeting[0], greeting[8], greeting[9], greeting[10], greeting[11]) = (255, 1, 0x7f, 3, 1);
        greeting[12..16].copy_from_slice(b"NULL");
        for piece in [&greeting[..], &greeting[..10], &greeting[10..11], &greeting[11..]] {
            assert_eq!(read(piece), (vec![KvMessage::Other], WHOLE), "{piece:?}");
        }
        let ready = b"\x04\x1a\x05READY\x0bSocket-Type\0\0\0\x04PUSH";
        let ready = [&ready[..], &message(&[b"72", b"4", b"0"])].concat();
        assert_eq!(read(&ready), (vec![KvMessage::Other, success(72, 0)], WHOLE));
        assert_eq!(read(b"\x04\x07\x04PING\0\x1e").0, [KvMessage::Other]);
    }

    #[test]
    fn what_no_engine_sends_is_unread() {
        let as_segment = |parts: &[&[u8]]| read(&message(parts));
        let unread = (vec![], UNREAD);
        assert_eq!(as_segment(&[b"-7", b"4", b"0"]), unread);
        assert_eq!(as_segment(&[b"7", b"9", b"0"]), unread);
        assert_eq!(as_segment(&[b"7", b"4", b"x"]), unread);
        assert_eq!(as_segment(&[b"7"]), unread);
        assert_eq!(as_segment(&[b"", b"4", b"0"]), unread);
        assert_eq!(as_segment(&[b"99999999999999999999", b"4", b"0"]), unread, "beyond 64 bits");
        assert_eq!(as_segment(&[b"7", b"host", b"1", b"s", b"", b"1", b"1"]), unread);
        assert_eq!(as_segment(&[b"7", b"10.0.0.1", b"70000", b"s", b"", b"1"]), unread);
        assert_eq!(as_segment(&[b"ABORT", b"all"]), unread);
        assert_eq!(read(b"POST /generate HTTP/1.1\r\n\r\n"), unread);
        assert_eq!(read(b"\x02\xff\xff\xff\xff\xff\xff\xff\xff1"), unread);
        assert_eq!(read(&(0..64u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>()), unread);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic_and_to_no_room_that_they_do_not_name(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            more in 0u32..5_000,
            room in any::<u32>(),
            at in any::<prop::sample::Index>(),
            flip in any::<u8>(),
        ) {
            crate::laws::kv_segment(&bytes, bytes.len() as u32 + more);
            let mut real = [indices(&room.to_string(), 3), message(&[b"7", b"4", b"0"])].concat();
            let at = at.index(real.len());
            real[at] ^= flip;
            crate::laws::kv_segment(&real, real.len() as u32 + more);
        }
    }
}
