//! Counts packets of local pods on the interface that carries them. The tc and XDP programs share it.

use aya_ebpf::programs::TcContext;
use router_common::flow::{POD_BEHIND_BRIDGE, POD_BY_INTERFACE, POD_SHARES_ADDRESS, Pod};

use crate::connection::{carries_kv, local_entry_at, local_pod_of, serves};
use crate::maps::{POD_TRAFFIC, ProgramScratch, SCRATCH};
use crate::packet::{Direction, Packet, interface, parse, tcp};
use crate::stream;

/// Counts a packet that a pod sent, if this is the interface that carries the pod. With `pod_side` the
/// interface is the host's end of the pod's link.
#[inline(always)]
pub fn count_sent(ctx: &TcContext, pod_side: bool) -> Option<()> {
    let scratch = SCRATCH.get_ptr_mut(0)?;
    // SAFETY: live map values.
    unsafe {
        let flow = &raw mut (*scratch).flow;
        let packet = parse(ctx, Direction::FromPod, scratch)?.without_bounds(scratch);
        let (entry, link) = (local_entry_at((*flow).local)?, interface(ctx));
        if is_carried_elsewhere(entry, link) {
            return None;
        }
        let tcp = tcp(ctx, &packet, Direction::FromPod, flow);
        let pod = local_pod_of(entry, (*flow).local, (*flow).local_port)?;
        if !is_carried_by(pod, link, pod_side) {
            return None;
        }
        let traffic = POD_TRAFFIC.get_ptr_mut((*pod).id)?;
        (*traffic).tx_packets += 1;
        (*traffic).tx_bytes += packet.length;
        (*traffic).tx_payload += tcp.length as u64;
        if (*pod).flags & POD_BY_INTERFACE == 0 {
            return None;
        }
        stream::from_pod(ctx, scratch, pod, &tcp)
    }
}

/// Counts a packet to the pod of `entry`, if this is the interface that carries the pod.
#[inline(always)]
pub fn count_received(
    ctx: &TcContext,
    scratch: *mut ProgramScratch,
    packet: Packet,
    entry: *mut Pod,
) -> Option<()> {
    let link = interface(ctx);
    if is_carried_elsewhere(entry, link) {
        return None;
    }
    // SAFETY: live map values.
    unsafe {
        let flow = &raw mut (*scratch).flow;
        let tcp = tcp(ctx, &packet, Direction::ToPod, flow);
        let pod = local_pod_of(entry, (*flow).local, (*flow).local_port)?;
        if !is_carried_by(pod, link, false) {
            return None;
        }
        let traffic = POD_TRAFFIC.get_ptr_mut((*pod).id)?;
        (*traffic).rx_packets += 1;
        (*traffic).rx_bytes += packet.length;
        (*traffic).rx_payload += tcp.length as u64;
        if (*pod).flags & POD_BY_INTERFACE == 0 {
            return None;
        }
        if serves(pod, (*flow).local_port) {
            return stream::to_pod(ctx, scratch, pod, &tcp);
        }
        if carries_kv(pod, (*flow).local_port, (*flow).remote_port) {
            (*traffic).rx_kv_payload += tcp.length as u64;
        }
    }
    Some(())
}

/// Counts a packet that arrived over an uplink for a local pod. If several pods share the address, it
/// counts under id 0.
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

/// Whether another interface is known to carry the pod. Decided before the ports are parsed.
#[inline(always)]
pub fn is_carried_elsewhere(entry: *const Pod, link: u32) -> bool {
    // SAFETY: a live map value.
    unsafe {
        (*entry).flags & (POD_BEHIND_BRIDGE | POD_SHARES_ADDRESS) == 0 && (*entry).ifindex != link
    }
}

/// Whether `link` is the interface on which packets of the pod count. Behind a bridge it is the port on
/// which its packets arrive, so that flooded frames do not count; with `learn` that port is stored.
#[inline(always)]
pub fn is_carried_by(pod: *mut Pod, link: u32, learn: bool) -> bool {
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
