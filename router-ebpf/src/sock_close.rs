//! sock_ops on the cgroup root: ends the requests of a socket that closes, also if no packet showed its
//! end. A program of its own, because the other has no stack left.

use aya_ebpf::bindings::{BPF_SOCK_OPS_STATE_CB, bpf_sock_ops};
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;

use crate::fields::{field, load32};
use crate::socket;

const TCP_CLOSE: u32 = 7;
/// Offset of the second argument: the new state.
const NEW_STATE: usize = 8;

#[sock_ops]
pub fn pd_sock_close(ctx: SockOpsContext) -> u32 {
    changed(&ctx).map_or(1, |()| 1)
}

#[inline(always)]
fn changed(ctx: &SockOpsContext) -> Option<()> {
    let is_close = field!(bpf_sock_ops, ctx.ops, op) == BPF_SOCK_OPS_STATE_CB
        && load32::<NEW_STATE, _>(ctx.ops) == TCP_CLOSE;
    if !is_close {
        return None;
    }
    // SAFETY: the context is valid while the program runs.
    let socket = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if socket.is_null() {
        return None;
    }
    socket::close(socket)
}
