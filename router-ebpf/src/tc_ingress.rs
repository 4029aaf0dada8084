//! tc ingress: packets that a pod sends, on the host's end of its veth, and packets that arrive over an
//! uplink.

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;

use crate::TC_NEXT;
use crate::connection::local_entry_at;
use crate::maps::{SCRATCH, UPLINKS};
use crate::packet::{Direction, interface, parse};
use crate::pod_traffic::{count_received, count_sent, count_uplink};
use crate::roce;

#[classifier]
pub fn pd_pod_ingress(ctx: TcContext) -> i32 {
    count_sent(&ctx, true).map_or(TC_NEXT, |()| TC_NEXT)
}

#[classifier]
pub fn pd_link_ingress(ctx: TcContext) -> i32 {
    count_arrived(&ctx).map_or(TC_NEXT, |()| TC_NEXT)
}

/// Counts a packet that arrived from another node.
#[inline(always)]
fn count_arrived(ctx: &TcContext) -> Option<()> {
    let scratch = SCRATCH.get_ptr_mut(0)?;
    // SAFETY: live map values.
    unsafe {
        let packet = parse(ctx, Direction::ToPod, scratch)?.without_bounds(scratch);
        let xdp = UPLINKS.get(interface(ctx)).is_some_and(|uplink| uplink.xdp != 0);
        if !xdp {
            roce::count(ctx, scratch, &packet);
        }
        let entry = local_entry_at((*scratch).flow.local)?;
        if !xdp {
            count_uplink(entry, &packet);
        }
        count_received(ctx, scratch, packet, entry)
    }
}
