//! Between tc and the state of an HTTP connection: reads what that needs of a packet, and adds
//! what changed to the pod's counters.

use aya_ebpf::bindings::{__sk_buff, BPF_NOEXIST};
use aya_ebpf::helpers::generated::{bpf_ktime_get_ns, bpf_skb_load_bytes};
use aya_ebpf::programs::TcContext;
use router_common::flow::{FlowKey, Pod};
use router_common::histogram::{BUCKETS, bucket};
use router_common::http::{
    Change, HEAD_WINDOW, HeadScan, Payload, Segment, Stream, TCP_FIN, TCP_RST, TCP_SYN, Window,
    begins_request,
};

use crate::counters::{Loss, add, lost, masked};
use crate::maps::{POD_HTTP, SCRATCH, STREAMS, Scratch};
use crate::packet::{Tcp, forget};

/// The payload of the packet at hand.
struct Carried<'a> {
    ctx: &'a TcContext,
    start: u32,
    length: u32,
    scratch: *mut Scratch,
}

impl<'a> Carried<'a> {
    /// Where the payload is and how long, without what the verifier knows of the many ways
    /// through the headers: it would follow each of them through all that comes.
    #[inline(always)]
    fn new(ctx: &'a TcContext, scratch: *mut Scratch, tcp: &Tcp) -> Carried<'a> {
        let start = forget(scratch, tcp.payload as u64) as u32;
        let length = forget(scratch, tcp.length as u64) as u32;
        Carried { ctx, start, length, scratch }
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

impl Payload for Carried<'_> {
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

/// Has the head in the scratch read on in `count` bytes from `start`; 0 if they are not there.
///
/// A function to the kernel too: global ones are verified once, for all that call them.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn pd_search_head(skb: *mut __sk_buff, start: u32, count: u32) -> u32 {
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return 0 };
    if count == 0 || count > HEAD_WINDOW {
        return 0;
    }
    // One more than nothing and no more than all.
    let count = masked::<{ HEAD_WINDOW as u64 - 1 }>(count as u64 - 1) as u32 + 1;
    // SAFETY: a live map value, with room for `count` bytes; the helper checks the offset.
    unsafe {
        if bpf_skb_load_bytes(skb.cast(), start, (&raw mut (*scratch).bytes).cast(), count) != 0 {
            return 0;
        }
        (*scratch).head.search(&mut Loaded(scratch), count);
    }
    1
}

/// Has the head in the scratch take up what was found in the `count` bytes there.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn pd_settle_head(count: u32) -> u32 {
    if let Some(scratch) = SCRATCH.get_ptr_mut(0) {
        // SAFETY: a live map value.
        unsafe { (*scratch).head.settle(&mut Loaded(scratch), count) };
    }
    0
}

/// Bytes that were copied to the scratch.
struct Loaded(*mut Scratch);

impl Window for Loaded {
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

/// Whether the engine of `pod` speaks HTTP on `port`.
#[inline(always)]
pub fn serves(pod: *mut Pod, port: u16) -> bool {
    // SAFETY: a live map value.
    let ports = unsafe { (*pod).http_ports };
    port != 0 && (ports[0] == port || ports[1] == port || ports[2] == port || ports[3] == port)
}

/// A packet to a local pod's engine.
#[inline(always)]
pub fn to_pod(ctx: &TcContext, scratch: *mut Scratch, pod: *mut Pod, tcp: &Tcp) -> Option<()> {
    // SAFETY: live map values.
    let (flow, id) = unsafe { (&(*scratch).flow, (*pod).id) };
    if tcp.length == 0 && tcp.flags & ENDS == 0 {
        return None;
    }
    let payload = Carried::new(ctx, scratch, tcp);
    let segment = payload.segment(tcp);
    let stream = match STREAMS.get_ptr_mut(flow) {
        Some(stream) => stream,
        None => {
            // SAFETY: as above.
            unsafe {
                (*scratch).stream = if tcp.flags & TCP_SYN != 0 {
                    Stream::opened(id, &segment)
                } else if begins_request(payload.first()) {
                    Stream::resumed(id, &segment)
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
    // SAFETY: a live map value. Packets of one direction of a connection come one after another;
    // where two CPUs do race, the state mends itself at the next answer.
    let change = unsafe { (*stream).asks(&segment, &payload, now) };
    apply(id, flow, &change)
}

/// A packet from a local pod.
#[inline(always)]
pub fn from_pod(ctx: &TcContext, scratch: *mut Scratch, pod: *mut Pod, tcp: &Tcp) -> Option<()> {
    // SAFETY: a live map value.
    let flow = unsafe { &(*scratch).flow };
    if !serves(pod, flow.local_port) || (tcp.length == 0 && tcp.flags & ENDS == 0) {
        return None;
    }
    let stream = STREAMS.get_ptr_mut(flow)?;
    let mut payload = Carried::new(ctx, scratch, tcp);
    let segment = payload.segment(tcp);
    // SAFETY: as above.
    unsafe {
        let head = (*stream).reads_head(&segment, &mut payload);
        let change = (*stream).answers(&segment, head, &payload, now);
        apply((*stream).pod, flow, &change)
    }
}

#[inline(always)]
fn apply(pod: u32, flow: &FlowKey, change: &Change) -> Option<()> {
    if change.gone {
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
        if change.asked_bytes != 0 {
            add(&raw mut (*http).asked_bytes, change.asked_bytes as u64);
        }
        if change.answered_bytes != 0 {
            add(&raw mut (*http).answered_bytes, change.answered_bytes as u64);
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
