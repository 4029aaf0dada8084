//! Passes TCP segments to the state of their HTTP connection, and adds the changes to the counters of
//! the pod.

use aya_ebpf::bindings::{__sk_buff, BPF_NOEXIST};
use aya_ebpf::helpers::generated::{bpf_ktime_get_ns, bpf_skb_load_bytes};
use aya_ebpf::programs::TcContext;
use router_common::flow::{FlowKey, Pod};
use router_common::histogram::{BUCKETS, bucket};
use router_common::http::{
    HEAD_WINDOW, HeadBytes, HeadScan, HttpChange, HttpStream, Payload, Segment, TCP_FIN, TCP_RST,
    TCP_SYN, begins_request,
};

use crate::counters::{Loss, add, lost, masked};
use crate::maps::{POD_HTTP, ProgramScratch, SCRATCH, STREAMS};
use crate::packet::{Tcp, unbounded};

/// The payload of the current packet.
struct TcpPayload<'a> {
    ctx: &'a TcContext,
    start: u32,
    length: u32,
    scratch: *mut ProgramScratch,
}

impl<'a> TcpPayload<'a> {
    /// Offset and length of the payload, without bounds that the verifier knows: otherwise it would
    /// verify the rest once for each path through the headers.
    #[inline(always)]
    fn new(ctx: &'a TcContext, scratch: *mut ProgramScratch, tcp: &Tcp) -> TcpPayload<'a> {
        let start = unbounded(scratch, tcp.payload as u64) as u32;
        let length = unbounded(scratch, tcp.length as u64) as u32;
        TcpPayload { ctx, start, length, scratch }
    }

    #[inline(always)]
    fn segment(&self, tcp: &Tcp) -> Segment {
        Segment {
            sequence: tcp.sequence,
            acknowledged: tcp.acknowledged,
            length: self.length,
            flags: tcp.flags,
        }
    }
}

impl Payload for TcpPayload<'_> {
    #[inline(always)]
    fn first(&self) -> [u8; 4] {
        if self.length < 4 {
            return [0; 4];
        }
        self.ctx.load(self.start as usize).unwrap_or([0; 4])
    }

    #[inline(always)]
    fn scan(&mut self, skip: u32, head: &mut HeadScan) -> u32 {
        let start = self.start.wrapping_add(skip);
        let length = self.length.wrapping_sub(skip);
        let count = if length > HEAD_WINDOW { HEAD_WINDOW } else { length };
        // SAFETY: a live map value; the context is valid while the program runs.
        unsafe {
            (*self.scratch).head = *head;
            if pd_search_head(self.ctx.skb.skb, start, count) == 0 {
                return 0;
            }
            pd_settle_head(count);
            *head = (*self.scratch).head;
            (*self.scratch).head.read
        }
    }

    #[inline(always)]
    fn last(&self, count: u32) -> u64 {
        let end = self.start.wrapping_add(self.length);
        if count >= 8 {
            let bytes: [u8; 8] = self.ctx.load(end.wrapping_sub(8) as usize).unwrap_or_default();
            return u64::from_be_bytes(bytes);
        }
        let mut number = 0;
        for index in 0..8 {
            if index >= count {
                break;
            }
            let at = end.wrapping_sub(count).wrapping_add(index);
            let byte: u8 = self.ctx.load(at as usize).unwrap_or_default();
            number = (number << 8) | byte as u64;
        }
        number
    }
}

/// Lets the head in the scratch memory search `count` bytes from `start`; returns 0 if they cannot be
/// loaded.
///
/// A global function: it is verified once for all callers.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn pd_search_head(skb: *mut __sk_buff, start: u32, count: u32) -> u32 {
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return 0 };
    if count == 0 || count > HEAD_WINDOW {
        return 0;
    }
    // The verifier needs the bounds: at least 1 and at most HEAD_WINDOW.
    let count = masked::<{ HEAD_WINDOW as u64 - 1 }>(count as u64 - 1) as u32 + 1;
    // SAFETY: a live map value with at least `count` bytes; the helper checks the offset.
    unsafe {
        if bpf_skb_load_bytes(skb.cast(), start, (&raw mut (*scratch).bytes).cast(), count) != 0 {
            return 0;
        }
        (*scratch).head.search(&mut ScratchBytes(scratch), count);
    }
    1
}

/// Lets the head in the scratch memory apply what it found in its `count` bytes.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn pd_settle_head(count: u32) -> u32 {
    if let Some(scratch) = SCRATCH.get_ptr_mut(0) {
        // SAFETY: a live map value.
        unsafe { (*scratch).head.settle(&mut ScratchBytes(scratch), count) };
    }
    0
}

/// Bytes that were copied to the scratch memory.
struct ScratchBytes(*mut ProgramScratch);

impl HeadBytes for ScratchBytes {
    #[inline(always)]
    fn byte(&self, index: u32) -> u8 {
        let index = masked::<{ HEAD_WINDOW as u64 - 1 }>(index as u64) as usize;
        // SAFETY: the index is within the bytes of a live map value.
        unsafe { (&raw const (*self.0).bytes).cast::<u8>().add(index).read() }
    }
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: the helper has no precondition.
    unsafe { bpf_ktime_get_ns() }
}

const ENDS: u8 = TCP_FIN | TCP_SYN | TCP_RST;

/// Whether `port` is an HTTP port of the engine of `pod`.
#[inline(always)]
pub fn serves(pod: *mut Pod, port: u16) -> bool {
    // SAFETY: a live map value.
    let ports = unsafe { (*pod).http_ports };
    port != 0 && (ports[0] == port || ports[1] == port || ports[2] == port || ports[3] == port)
}

/// Applies a packet to the engine of a local pod.
#[inline(always)]
pub fn to_pod(
    ctx: &TcContext,
    scratch: *mut ProgramScratch,
    pod: *mut Pod,
    tcp: &Tcp,
) -> Option<()> {
    // SAFETY: live map values.
    let (flow, id) = unsafe { (&(*scratch).flow, (*pod).id) };
    if tcp.length == 0 && tcp.flags & ENDS == 0 {
        return None;
    }
    let payload = TcpPayload::new(ctx, scratch, tcp);
    let segment = payload.segment(tcp);
    let stream = match STREAMS.get_ptr_mut(flow) {
        Some(stream) => stream,
        None => {
            // SAFETY: as above.
            unsafe {
                (*scratch).stream = if tcp.flags & TCP_SYN != 0 {
                    HttpStream::from_syn(id, &segment)
                } else if begins_request(payload.first()) {
                    HttpStream::from_request(id, &segment)
                } else {
                    return None;
                };
                if STREAMS.insert(flow, (*scratch).stream, BPF_NOEXIST as u64).is_err() {
                    lost(Loss::Stream);
                    return None;
                }
            }
            STREAMS.get_ptr_mut(flow)?
        }
    };
    // SAFETY: a live map value. Packets of one direction of a connection arrive one after another; if
    // two CPUs race, the state is right again at the next response.
    let change = unsafe { (*stream).on_client_segment(&segment, &payload, now) };
    apply(id, flow, &change)
}

/// Applies a packet from a local pod.
#[inline(always)]
pub fn from_pod(
    ctx: &TcContext,
    scratch: *mut ProgramScratch,
    pod: *mut Pod,
    tcp: &Tcp,
) -> Option<()> {
    // SAFETY: a live map value.
    let flow = unsafe { &(*scratch).flow };
    if !serves(pod, flow.local_port) || (tcp.length == 0 && tcp.flags & ENDS == 0) {
        return None;
    }
    let stream = STREAMS.get_ptr_mut(flow)?;
    let mut payload = TcpPayload::new(ctx, scratch, tcp);
    let segment = payload.segment(tcp);
    // SAFETY: as above.
    unsafe {
        let head = (*stream).read_head(&segment, &mut payload);
        let change = (*stream).on_engine_segment(&segment, head, &payload, now);
        apply((*stream).pod, flow, &change)
    }
}

#[inline(always)]
fn apply(pod: u32, flow: &FlowKey, change: &HttpChange) -> Option<()> {
    if change.ended {
        let _ = STREAMS.remove(flow);
    }
    let http = POD_HTTP.get_ptr_mut(pod)?;
    // SAFETY: all of these are fields of a live map value.
    unsafe {
        count(&raw mut (*http).started, change.started);
        count(&raw mut (*http).reopened, change.reopened);
        count(&raw mut (*http).answered, change.answered);
        count(&raw mut (*http).streams_started, change.stream_started);
        count(&raw mut (*http).streams_ended, change.stream_ended);
        count(&raw mut (*http).aborted, change.aborted);
        count(&raw mut (*http).finished, change.finished);
        if change.request_bytes != 0 {
            add(&raw mut (*http).request_bytes, change.request_bytes as u64);
        }
        if change.answered_request_bytes != 0 {
            add(&raw mut (*http).answered_request_bytes, change.answered_request_bytes as u64);
        }
        if change.duration_ns != 0 {
            add(&raw mut (*http).duration_ns_sum, change.duration_ns);
            add(&raw mut (*http).duration_samples, 1);
        }
        if change.ttft_ns != 0 {
            add(&raw mut (*http).ttft_ns_sum, change.ttft_ns);
            add(&raw mut (*http).ttft_samples, 1);
            histogram((&raw mut (*http).ttft_us).cast(), change.ttft_ns);
        }
        if change.itl_ns != 0 {
            add(&raw mut (*http).itl_ns_sum, change.itl_ns);
            add(&raw mut (*http).itl_samples, 1);
            histogram((&raw mut (*http).itl_us).cast(), change.itl_ns);
        }
    }
    Some(())
}

#[inline(always)]
fn count(counter: *mut u64, happened: bool) {
    if happened {
        add(counter, 1);
    }
}

/// # Safety
///
/// `buckets` points to `BUCKETS` counters of a live map value.
#[inline(always)]
unsafe fn histogram(buckets: *mut u64, ns: u64) {
    let index = masked::<127>(bucket(ns / 1_000) as u64) as usize;
    if index < BUCKETS {
        // SAFETY: the index is within the buckets.
        add(unsafe { buckets.add(index) }, 1);
    }
}
