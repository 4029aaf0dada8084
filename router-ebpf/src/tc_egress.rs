//! tc egress: what a pod receives, on the host's end of its veth; what it sends, on an uplink
//! that carries it.

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use router_common::flow::{Pod, ROLE_DECODE, ROLE_PREFILL};

use crate::connection::{carries_kv, local_entry_at, local_pod_of};
use crate::maps::{POD_TRAFFIC, SCRATCH, Scratch};
use crate::packet::{Packet, Way, interface, parse, tcp};
use crate::stream;
use crate::tc_ingress::{NEXT, carried_by, elsewhere, sent};

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
    unsafe {
        let packet = parse(ctx, Way::ToPod, scratch)?.forgotten(scratch);
        let entry = local_entry_at((*scratch).flow.local)?;
        received(ctx, scratch, packet, entry)
    }
}

/// A packet on its way to a pod of `entry`, if this is the interface that carries the pod.
#[inline(always)]
pub fn received(
    ctx: &TcContext,
    scratch: *mut Scratch,
    packet: Packet,
    entry: *mut Pod,
) -> Option<()> {
    let link = interface(ctx);
    if elsewhere(entry, link) {
        return None;
    }
    // SAFETY: live map values.
    unsafe {
        let flow = &raw mut (*scratch).flow;
        let tcp = tcp(ctx, &packet, Way::ToPod, flow);
        let pod = local_pod_of(entry, (*flow).local, (*flow).local_port)?;
        if !carried_by(pod, link, false) {
            return None;
        }
        let traffic = POD_TRAFFIC.get_ptr_mut((*pod).id)?;
        (*traffic).rx_packets += 1;
        (*traffic).rx_bytes += packet.length;
        (*traffic).rx_payload += tcp.length as u64;
        if stream::serves(pod, (*flow).local_port) {
            return stream::to_pod(ctx, scratch, pod, &tcp);
        }
        let role = (*pod).role;
        if (role == ROLE_PREFILL || role == ROLE_DECODE)
            && (carries_kv((*flow).local_port) || carries_kv((*flow).remote_port))
        {
            (*traffic).rx_kv_payload += tcp.length as u64;
        }
    }
    Some(())
}
