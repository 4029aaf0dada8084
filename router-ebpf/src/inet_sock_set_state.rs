//! The tracepoint sock:inet_sock_set_state: counts connections that sock_ops does not see, because they
//! are older than its attachment, because there is no cgroup2, or because another program took the
//! socket's callbacks.

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::macros::tracepoint;
use aya_ebpf::programs::TracePointContext;
use router_common::flow::{FlowKey, OWNER_TRACEPOINT, OpenConnection};

use crate::connection::pair_of;
use crate::counters::{Loss, add, lost, pair};
use crate::maps::{CONNECTIONS, SETTINGS};

#[tracepoint]
pub fn pd_sock_state(ctx: TracePointContext) -> u32 {
    observe(&ctx).map_or(0, |()| 0)
}

/// Offsets of the event's fields, the same from 5.10 to 7.2.
const NEW_STATE: usize = 20;
const LOCAL_PORT: usize = 24;
const REMOTE_PORT: usize = 26;
const PROTOCOL: usize = 30;
/// IPv6 addresses; an IPv4 address is v4-mapped.
const LOCAL: usize = 40;
const REMOTE: usize = 56;

const IPPROTO_TCP: u16 = 6;
const TCP_ESTABLISHED: u32 = 1;
const TCP_CLOSE: u32 = 7;

#[inline(always)]
fn observe(ctx: &TracePointContext) -> Option<()> {
    // SAFETY: offsets within the event.
    let new: u32 = unsafe { ctx.read_at(NEW_STATE) }.ok()?;
    if new != TCP_ESTABLISHED && new != TCP_CLOSE {
        return None;
    }
    // SAFETY: live map values.
    let flow = unsafe {
        if ctx.read_at::<u16>(PROTOCOL).ok()? != IPPROTO_TCP {
            return None;
        }
        FlowKey {
            local: ctx.read_at(LOCAL).ok()?,
            remote: ctx.read_at(REMOTE).ok()?,
            local_port: ctx.read_at(LOCAL_PORT).ok()?,
            remote_port: ctx.read_at(REMOTE_PORT).ok()?,
        }
    };
    if new == TCP_CLOSE { closed(&flow) } else { established(&flow) }
}

#[inline(always)]
fn established(flow: &FlowKey) -> Option<()> {
    if SETTINGS.get(0)?.sock_ops != 0 {
        return None;
    }
    let key = pair_of(flow)?;
    let connection = OpenConnection {
        pair: key,
        owner: OWNER_TRACEPOINT,
        established: 1,
        state: TCP_ESTABLISHED,
        // SAFETY: no arguments.
        since_ns: unsafe { bpf_ktime_get_ns() },
        ..OpenConnection::default()
    };
    if CONNECTIONS.insert(flow, connection, BPF_NOEXIST as u64).is_err() {
        if CONNECTIONS.get_ptr(flow).is_none() {
            lost(Loss::Connection);
        }
        return None;
    }
    let stats = pair(&key)?;
    // SAFETY: a live map value.
    unsafe {
        add(&raw mut (*stats).opened, 1);
        add(&raw mut (*stats).established, 1);
    }
    Some(())
}

#[inline(always)]
fn closed(flow: &FlowKey) -> Option<()> {
    let connection = CONNECTIONS.get_ptr_mut(flow)?;
    // SAFETY: a live map value.
    let (established, key) = unsafe { ((*connection).established, (*connection).pair) };
    // sock_ops runs before and removes the entry of what it follows, unless another program took the
    // socket's callbacks. The program that removes the entry counts.
    if CONNECTIONS.remove(flow).is_ok() {
        let stats = pair(&key)?;
        // SAFETY: as above.
        unsafe {
            let ended =
                if established != 0 { &raw mut (*stats).closed } else { &raw mut (*stats).failed };
            add(ended, 1);
        }
    }
    Some(())
}
