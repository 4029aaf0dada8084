//! Hands up the beginnings of segments with control messages of KV transfers. Their sockets have few and
//! small segments: an index message and a status for each request.

use aya_ebpf::bindings::{__sk_buff, BPF_RB_NO_WAKEUP};
use aya_ebpf::helpers::generated::bpf_skb_load_bytes;
use aya_ebpf::programs::TcContext;
use router_common::control::{CONTROL_WINDOW, ControlSegment};
use router_common::flow::{
    CLASS_KV_CONTROL, FlowKey, PodSocket, SOCKET_CONTROL, SOCKET_MAY_CONTROL,
};

use crate::connection::pair_of;
use crate::counters::{Loss, lost, masked};
use crate::fields::field;
use crate::maps::CONTROL;
use crate::packet::FrameBytes as _;
use crate::requests::now;
use crate::socket;

/// Offset of the sequence number in a TCP header.
const SEQUENCE: usize = 4;
/// The agent reads the ring at every tick: it is not woken for each segment.
const NO_WAKEUP: u64 = BPF_RB_NO_WAKEUP as u64;

/// Set in what the counting functions return for a segment that may have control messages.
pub const HAS_CONTROL: u32 = 1 << 31;

/// Where the headers of such a segment end: passed from the counting functions in one number, since functions
/// that are verified once take and return no more.
pub struct Headers {
    /// Offset of the TCP header in the packet.
    transport: u32,
    /// Offset of the payload.
    payload: u32,
}

impl Headers {
    /// Maximum offset that can be passed; farther ones belong to no packet that is parsed.
    const MAX: u32 = (1 << 15) - 1;

    /// The number that stands for the headers of a segment that may have control messages.
    #[inline(always)]
    pub fn control(transport: u32, payload: u32) -> u32 {
        HAS_CONTROL | ((transport & Headers::MAX) << 15) | (payload & Headers::MAX)
    }

    #[inline(always)]
    fn of(number: u32) -> Headers {
        Headers { transport: (number >> 15) & Headers::MAX, payload: number & Headers::MAX }
    }
}

/// Hands up a segment, if its socket carries control messages. `headers`: as [`Headers::control`] returns
/// them; `sent`: 1 if the socket sends it.
///
/// A global function, which the programs call once the stack of what counts is free again.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn pd_control(skb: *mut __sk_buff, headers: u32, sent: u32) -> u32 {
    hand_up(skb, &Headers::of(headers), sent).map_or(0, |()| 1)
}

#[inline(always)]
fn hand_up(skb: *mut __sk_buff, headers: &Headers, sent: u32) -> Option<()> {
    let socket = socket::of_packet(skb)?;
    let known = socket::entry(socket)?;
    let flow = socket::flow(socket)?;
    if !is_control(known, &flow) {
        return None;
    }
    let start = headers.payload;
    let length = field!(__sk_buff, skb, len).saturating_sub(start);
    let sequence = TcContext::new(skb).read(headers.transport as usize + SEQUENCE)?;
    let sequence = u32::from_be_bytes(sequence);
    if length == 0 {
        return None;
    }
    let Some(mut entry) = CONTROL.reserve(0) else {
        lost(Loss::Control);
        return None;
    };
    let count = if length > CONTROL_WINDOW as u32 { CONTROL_WINDOW as u32 } else { length };
    // The verifier needs the bounds: at least 1 and at most CONTROL_WINDOW.
    let count = masked::<{ CONTROL_WINDOW as u64 - 1 }>(count as u64 - 1) as u32 + 1;
    let segment: *mut ControlSegment = entry.as_mut_ptr();
    // SAFETY: memory of the ring, which is this program's until it is submitted; the helper checks the
    // offset, and `count` is within the bytes.
    let failed = unsafe {
        (*segment).at_ns = now();
        (*segment).flow = flow;
        (*segment).pod = (*known).pod;
        (*segment).sequence = sequence;
        (*segment).length = length;
        (*segment).sent = sent;
        (*segment).reserved = 0;
        bpf_skb_load_bytes(skb.cast(), start, (&raw mut (*segment).bytes).cast(), count)
    };
    if failed != 0 {
        entry.discard(NO_WAKEUP);
        return None;
    }
    entry.submit(NO_WAKEUP);
    Some(())
}

/// Whether a socket carries control messages; finds out at its first segment with payload.
#[inline(always)]
fn is_control(known: *mut PodSocket, flow: &FlowKey) -> bool {
    // SAFETY: a live map value.
    unsafe {
        if (*known).kind & SOCKET_MAY_CONTROL != 0 {
            let class = pair_of(flow).map_or(0, |pair| pair.class);
            let kind = (*known).kind & !SOCKET_MAY_CONTROL;
            let is_control = class == CLASS_KV_CONTROL;
            (*known).kind = if is_control { kind | SOCKET_CONTROL } else { kind };
        }
        (*known).kind & SOCKET_CONTROL != 0
    }
}
