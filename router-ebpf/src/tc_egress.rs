//! tc egress: packets that a pod receives, on the host's end of its veth, and packets that an uplink
//! carries for a pod of its own.

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;

use crate::TC_NEXT;
use crate::connection::local_entry_at;
use crate::maps::SCRATCH;
use crate::packet::{Direction, parse};
use crate::pod_traffic::{count_received, count_sent};

#[classifier]
pub fn pd_pod_egress(ctx: TcContext) -> i32 {
    count_delivered(&ctx).map_or(TC_NEXT, |()| TC_NEXT)
}

#[classifier]
pub fn pd_link_egress(ctx: TcContext) -> i32 {
    count_sent(&ctx, false).map_or(TC_NEXT, |()| TC_NEXT)
}

/// Counts a packet that leaves towards a pod.
#[inline(always)]
fn count_delivered(ctx: &TcContext) -> Option<()> {
    let scratch = SCRATCH.get_ptr_mut(0)?;
    // SAFETY: a live map value.
    unsafe {
        let packet = parse(ctx, Direction::ToPod, scratch)?.without_bounds(scratch);
        let entry = local_entry_at((*scratch).flow.local)?;
        count_received(ctx, scratch, packet, entry)
    }
}
