//! tc egress: what a pod receives, on the host's end of its veth; what it sends, on an uplink
//! that carries it.

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;

use crate::connection::local_pod_at;
use crate::maps::{POD_TRAFFIC, SCRATCH, Scratch};
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
        stream::to_pod(ctx, scratch, pod, &tcp)
    }
}
