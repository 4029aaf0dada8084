//! XDP on an uplink: counts packets to local pods, and RoCEv2, before the network stack sees them.

use aya_ebpf::bindings::xdp_action::XDP_PASS;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;

use crate::connection::local_entry_at;
use crate::maps::SCRATCH;
use crate::packet::{Direction, parse};
use crate::pod_traffic::count_uplink;
use crate::roce;

#[xdp]
pub fn pd_xdp(ctx: XdpContext) -> u32 {
    observe(&ctx).map_or(XDP_PASS, |()| XDP_PASS)
}

#[inline(always)]
fn observe(ctx: &XdpContext) -> Option<()> {
    let scratch = SCRATCH.get_ptr_mut(0)?;
    // SAFETY: a live map value.
    unsafe {
        let packet = parse(ctx, Direction::ToPod, scratch)?;
        if let Some(entry) = local_entry_at((*scratch).flow.local) {
            count_uplink(entry, &packet);
        }
        roce::count(ctx, scratch, &packet)
    }
}
