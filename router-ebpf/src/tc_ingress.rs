//! tc ingress: what a pod sends, on the host's end of its veth; what arrives, on an uplink.

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use router_common::flow::{POD_BEHIND_BRIDGE, POD_SHARES_ADDRESS, Pod};

use crate::connection::{local_entry_at, local_pod_of};
use crate::maps::{POD_TRAFFIC, SCRATCH, UPLINKS};
use crate::packet::{Packet, Way, interface, parse, tcp};
use crate::{roce, stream, tc_egress};

/// Goes on with the next program of the hook: TC_ACT_UNSPEC, which is also TCX_NEXT. Any other
/// verdict would keep a CNI's program from running.
pub const NEXT: i32 = -1;

#[classifier]
pub fn pd_pod_ingress(ctx: TcContext) -> i32 {
    sent(&ctx, true).map_or(NEXT, |()| NEXT)
}

#[classifier]
pub fn pd_link_ingress(ctx: TcContext) -> i32 {
    arrived(&ctx).map_or(NEXT, |()| NEXT)
}

/// A packet that a pod sent, seen on the interface that carries it.
#[inline(always)]
pub fn sent(ctx: &TcContext, pod_side: bool) -> Option<()> {
    let scratch = SCRATCH.get_ptr_mut(0)?;
    // SAFETY: live map values.
    unsafe {
        let flow = &raw mut (*scratch).flow;
        let packet = parse(ctx, Way::FromPod, scratch)?.forgotten(scratch);
        let (entry, link) = (local_entry_at((*flow).local)?, interface(ctx));
        if elsewhere(entry, link) {
            return None;
        }
        let tcp = tcp(ctx, &packet, Way::FromPod, flow);
        let pod = local_pod_of(entry, (*flow).local, (*flow).local_port)?;
        if !carried_by(pod, link, pod_side) {
            return None;
        }
        let traffic = POD_TRAFFIC.get_ptr_mut((*pod).id)?;
        (*traffic).tx_packets += 1;
        (*traffic).tx_bytes += packet.length;
        (*traffic).tx_payload += tcp.length as u64;
        stream::from_pod(ctx, scratch, pod, &tcp)
    }
}

/// A packet that came from another node.
#[inline(always)]
fn arrived(ctx: &TcContext) -> Option<()> {
    let scratch = SCRATCH.get_ptr_mut(0)?;
    // SAFETY: live map values.
    unsafe {
        let packet = parse(ctx, Way::ToPod, scratch)?.forgotten(scratch);
        let xdp = UPLINKS.get(interface(ctx)).is_some_and(|uplink| uplink.xdp != 0);
        if !xdp {
            roce::count(ctx, scratch, &packet);
        }
        let entry = local_entry_at((*scratch).flow.local)?;
        if !xdp {
            count_uplink(entry, &packet);
        }
        tc_egress::received(ctx, scratch, packet, entry)
    }
}

/// What came over an uplink for a local pod, or for nobody in particular of those that share an
/// address.
#[inline(always)]
pub fn count_uplink(entry: *const Pod, packet: &Packet) -> Option<()> {
    // SAFETY: live map values.
    unsafe {
        let traffic = POD_TRAFFIC.get_ptr_mut((*entry).id)?;
        (*traffic).uplink_packets += 1;
        (*traffic).uplink_bytes += packet.length;
    }
    Some(())
}

/// Whether the pod is known to be carried by another interface, before its port is looked at.
#[inline(always)]
pub fn elsewhere(entry: *const Pod, link: u32) -> bool {
    // SAFETY: a live map value.
    unsafe {
        (*entry).flags & (POD_BEHIND_BRIDGE | POD_SHARES_ADDRESS) == 0 && (*entry).ifindex != link
    }
}

/// Whether this interface is the one on which the pod's packets count. Behind a bridge it is the
/// port by which they come, which also keeps flooded frames from counting.
#[inline(always)]
pub fn carried_by(pod: *mut Pod, link: u32, learn: bool) -> bool {
    // SAFETY: a live map value.
    unsafe {
        if (*pod).ifindex == link {
            return true;
        }
        if (*pod).flags & POD_BEHIND_BRIDGE == 0 {
            return false;
        }
        if learn {
            (*pod).ifindex = link;
            return true;
        }
        (*pod).ifindex == 0
    }
}
