//! Passes TCP segments on the interface of a pod to the state of their HTTP connection, for pods without
//! sockets on this node, and for all where the cgroup programs cannot be attached.

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::programs::TcContext;
use router_common::flow::{FlowKey, Pod};
use router_common::http::{HttpChange, HttpStream, Payload as _, Segment, begins_request};

use crate::connection::serves;
use crate::counters::{Loss, lost};
use crate::maps::{ProgramScratch, STREAMS};
use crate::packet::{Tcp, unbounded};
use crate::payload::{CpuMemory, TcpPayload};
use crate::requests::{self, ENDS, now};

/// The segment and its payload, without bounds that the verifier knows: otherwise it would verify the rest
/// once for each path through the headers.
#[inline(always)]
fn segment(
    ctx: &TcContext,
    scratch: *mut ProgramScratch,
    tcp: &Tcp,
) -> (Segment, TcpPayload<CpuMemory>) {
    let segment = Segment {
        sequence: tcp.sequence,
        acknowledged: tcp.acknowledged,
        length: unbounded(scratch, tcp.length as u64) as u32,
        flags: tcp.flags,
    };
    let start = unbounded(scratch, tcp.payload as u64) as u32;
    let payload = TcpPayload::new(ctx.skb.skb, start, &segment);
    (segment, payload)
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
    let (segment, payload) = segment(ctx, scratch, tcp);
    let stream = match STREAMS.get_ptr_mut(flow) {
        Some(stream) => stream,
        None => {
            // A connection is entered at its first request: what only connects would fill the map.
            if !begins_request(payload.four(0)) {
                return None;
            }
            // SAFETY: as above.
            unsafe {
                (*scratch).stream = HttpStream::from_request(id, &segment);
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
    let (segment, mut payload) = segment(ctx, scratch, tcp);
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
    requests::apply(pod, change)
}
