//! RoCEv2: the InfiniBand transport in UDP (IBTA 1.7, annex A17), counted by queue pair.

use aya_ebpf::bindings::BPF_NOEXIST;
use router_common::flow::{QueuePairKey, QueuePairStats};
use router_common::roce::{ReadRequest, Sequences};

use crate::counters::{Loss, add, lost};
use crate::maps::{ProgramScratch, QUEUE_PAIRS, SEQUENCES};
use crate::packet::{FrameBytes, Packet, UDP};

const PORT: u16 = 4791;
const UDP_HEADER: usize = 8;
const BTH: usize = 12;
const RETH: usize = 16;
const AETH: usize = 4;
const IMMEDIATE: usize = 4;
const ICRC: usize = 4;

/// Upper bits of the opcode: reliable connection (0) and unreliable connection (1). Datagrams and
/// congestion notifications are counted as packets alone.
const UNRELIABLE_CONNECTION: u8 = 1;
/// Lower bits of the opcode of a connection.
const SEND_LAST: u8 = 2;
const SEND_LAST_IMMEDIATE: u8 = 3;
const SEND_ONLY: u8 = 4;
const SEND_ONLY_IMMEDIATE: u8 = 5;
const WRITE_FIRST: u8 = 6;
const WRITE_LAST: u8 = 8;
const WRITE_LAST_IMMEDIATE: u8 = 9;
const WRITE_ONLY: u8 = 10;
const WRITE_ONLY_IMMEDIATE: u8 = 11;
const READ_REQUEST: u8 = 12;
const READ_FIRST: u8 = 13;
const READ_LAST: u8 = 15;
const READ_ONLY: u8 = 16;
const ACKNOWLEDGE: u8 = 17;
const ATOMIC_ACKNOWLEDGE: u8 = 18;
const SEND_LAST_INVALIDATE: u8 = 22;
const SEND_ONLY_INVALIDATE: u8 = 23;

/// Counts an arriving packet if it is RoCEv2.
#[inline(always)]
pub fn count<F: FrameBytes>(
    frame: &F,
    scratch: *mut ProgramScratch,
    packet: &Packet,
) -> Option<()> {
    if packet.protocol != UDP {
        return None;
    }
    let udp: [u8; 4] = frame.read(packet.transport)?;
    if u16::from_be_bytes([udp[2], udp[3]]) != PORT {
        return None;
    }
    let at = packet.transport + UDP_HEADER;
    let bth: [u8; BTH] = frame.read(at)?;
    let opcode = bth[0] & 0x1f;
    let padding = ((bth[1] >> 4) & 3) as usize;
    // SAFETY: a live map value.
    let key = unsafe {
        let key = &raw mut (*scratch).queue_pair;
        (*key).source = (*scratch).flow.remote;
        (*key).destination = (*scratch).flow.local;
        (*key).queue_pair = u32::from_be_bytes([0, bth[5], bth[6], bth[7]]);
        &*key
    };
    let stats = stats(key)?;
    // SAFETY: fields of a live map value.
    unsafe { add(&raw mut (*stats).packets, 1) };
    if bth[0] >> 5 > UNRELIABLE_CONNECTION || matches!(opcode, ACKNOWLEDGE | ATOMIC_ACKNOWLEDGE) {
        return None;
    }
    let number = u32::from_be_bytes([0, bth[9], bth[10], bth[11]]);
    let mut request = ReadRequest { address: 0, number, length: 0 };
    if matches!(opcode, WRITE_FIRST | WRITE_ONLY | WRITE_ONLY_IMMEDIATE | READ_REQUEST) {
        // RETH: address, remote key (4), length.
        let [a, b, c, d, e, f, g, h, _, _, _, _, l, m, n, o] = frame.read::<RETH>(at + BTH)?;
        request.address = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
        request.length = u32::from_be_bytes([l, m, n, o]);
    }
    if !is_new(key, opcode, &request) {
        // SAFETY: a field of a live map value.
        unsafe { add(&raw mut (*stats).repeated, 1) };
        return None;
    }
    let headers = BTH + extension(opcode) + padding + ICRC;
    let payload = packet.end.saturating_sub(at + headers);
    // SAFETY: fields of a live map value.
    unsafe {
        if has_payload(opcode) && payload > 0 {
            add(&raw mut (*stats).payload_bytes, payload as u64);
        }
        if ends_message(opcode) {
            add(&raw mut (*stats).messages, 1);
        }
        if opcode == READ_REQUEST {
            add(&raw mut (*stats).reads, 1);
            add(&raw mut (*stats).read_bytes, request.length as u64);
        } else if matches!(opcode, WRITE_FIRST | WRITE_ONLY | WRITE_ONLY_IMMEDIATE) {
            add(&raw mut (*stats).writes, 1);
            add(&raw mut (*stats).write_bytes, request.length as u64);
        }
    }
    Some(())
}

/// Whether the packet is not a retransmit.
#[inline(always)]
fn is_new(key: &QueuePairKey, opcode: u8, request: &ReadRequest) -> bool {
    // If the map is full, every packet counts as new.
    let Some(sequences) = sequences(key) else { return true };
    // SAFETY: a live map value. Packets of one queue pair arrive on one queue, and so on one CPU.
    let sequences = unsafe { &mut *sequences };
    match opcode {
        READ_REQUEST => sequences.admits_read(request),
        READ_FIRST..=READ_ONLY => sequences.answers.admits(request.number),
        _ => sequences.requests.admits(request.number),
    }
}

#[inline(always)]
#[expect(
    clippy::needless_borrows_for_generic_args,
    reason = "by value it would be copied to the stack, of which there are 512 bytes"
)]
fn sequences(key: &QueuePairKey) -> Option<*mut Sequences> {
    static NEW: Sequences = Sequences::NEW;
    if let Some(sequences) = SEQUENCES.get_ptr_mut(key) {
        return Some(sequences);
    }
    let _ = SEQUENCES.insert(key, &NEW, BPF_NOEXIST as u64);
    SEQUENCES.get_ptr_mut(key)
}

/// Bytes between the BTH and the payload.
#[inline(always)]
fn extension(opcode: u8) -> usize {
    match opcode {
        WRITE_FIRST | WRITE_ONLY | READ_REQUEST => RETH,
        WRITE_ONLY_IMMEDIATE => RETH + IMMEDIATE,
        READ_FIRST | READ_LAST | READ_ONLY | ACKNOWLEDGE => AETH,
        SEND_LAST_IMMEDIATE | SEND_ONLY_IMMEDIATE | WRITE_LAST_IMMEDIATE => IMMEDIATE,
        SEND_LAST_INVALIDATE | SEND_ONLY_INVALIDATE => IMMEDIATE,
        _ => 0,
    }
}

/// Whether the packet carries payload: SEND, WRITE or READ response.
#[inline(always)]
fn has_payload(opcode: u8) -> bool {
    opcode < READ_REQUEST
        || (opcode > READ_REQUEST && opcode < ACKNOWLEDGE)
        || opcode == SEND_LAST_INVALIDATE
        || opcode == SEND_ONLY_INVALIDATE
}

#[inline(always)]
fn ends_message(opcode: u8) -> bool {
    matches!(
        opcode,
        SEND_LAST
            | SEND_LAST_IMMEDIATE
            | SEND_ONLY
            | SEND_ONLY_IMMEDIATE
            | WRITE_LAST
            | WRITE_LAST_IMMEDIATE
            | WRITE_ONLY
            | WRITE_ONLY_IMMEDIATE
            | READ_LAST
            | READ_ONLY
            | SEND_LAST_INVALIDATE
            | SEND_ONLY_INVALIDATE
    )
}

#[inline(always)]
fn stats(key: &QueuePairKey) -> Option<*mut QueuePairStats> {
    if let Some(stats) = QUEUE_PAIRS.get_ptr_mut(key) {
        return Some(stats);
    }
    let _ = QUEUE_PAIRS.insert(key, QueuePairStats::default(), BPF_NOEXIST as u64);
    let stats = QUEUE_PAIRS.get_ptr_mut(key);
    if stats.is_some() {
        return stats;
    }
    lost(Loss::QueuePair);
    QUEUE_PAIRS.get_ptr_mut(QueuePairKey { source: [0; 16], destination: [0; 16], queue_pair: 0 })
}
