//! tc egress: what a pod receives, on the host's end of its veth; what it sends, on an uplink
//! that carries it.

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use router_common::flow::{FlowKey, ROLE_NONE};

use crate::connection::local_pod_at;
use crate::counters::add;
use crate::maps::{CONNECTIONS, PAIRS, POD_TRAFFIC, SCRATCH, Scratch};
use crate::packet::{Packet, Way, interface, parse, tcp};
use crate::stream;
use crate::tc_ingress::{NEXT, carried_by, sent};

#[classifier]
pub fn pd_pod_egress(ctx: TcContext) -> i32 {
    leaving(&ctx).map_or(NEXT, |()| NEXT)
}

#[classifier]
pub fn pd_link_egress(ctx: TcContext) -> i32 {
    sent(&ctx, false).map_or(NEXT, |()| NEXT)
}

#[inline(always)]
fn leaving(ctx: &TcContext) -> Option<()> {
    let scratch = SCRATCH.get_ptr_mut(0)?;
    // SAFETY: a live map value.
    let packet = parse(ctx, Way::ToPod, unsafe { &raw mut (*scratch).flow })?;
    received(ctx, scratch, packet)
}

/// A packet on its way to a pod, seen on the interface that carries it.
#[inline(always)]
pub fn received(ctx: &TcContext, scratch: *mut Scratch, packet: Packet) -> Option<()> {
    // SAFETY: live map values.
    unsafe {
        let flow = &raw mut (*scratch).flow;
        let tcp = tcp(ctx, &packet, Way::ToPod, flow);
        let pod = local_pod_at((*flow).local, (*flow).local_port)?;
        if !carried_by(pod, interface(ctx), false) {
            return None;
        }
        let traffic = POD_TRAFFIC.get_ptr_mut((*pod).id)?;
        (*traffic).rx_packets += 1;
        (*traffic).rx_bytes += packet.length;
        (*traffic).rx_payload += tcp.length as u64;
        if stream::serves(pod, (*flow).local_port) {
            return stream::to_pod(ctx, scratch, pod, &tcp);
        }
        if tcp.length > 0 && (*pod).role != ROLE_NONE {
            arrived(&*flow, tcp.length);
        }
    }
    Some(())
}

/// Payload to an engine on another port than that of its requests, KV cache above all. The socket
/// that only receives says nothing of it until its state changes.
#[inline(always)]
fn arrived(flow: &FlowKey, length: u32) -> Option<()> {
    // SAFETY: live map values.
    unsafe {
        let connection = CONNECTIONS.get_ptr(flow)?;
        let stats = PAIRS.get_ptr_mut((*connection).pair)?;
        add(&raw mut (*stats).arrived_bytes, length as u64);
    }
    Some(())
}
