//! sock_ops on the cgroup root: counts connections of local pods, their bytes, round-trip times and
//! retransmits, as the sockets report them.

use aya_ebpf::bindings::{
    BPF_NOEXIST, BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB,
    BPF_SOCK_OPS_RETRANS_CB, BPF_SOCK_OPS_RETRANS_CB_FLAG, BPF_SOCK_OPS_RTT_CB,
    BPF_SOCK_OPS_RTT_CB_FLAG, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG,
    BPF_SOCK_OPS_TCP_CONNECT_CB, bpf_sock_ops,
};
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;
use router_common::flow::{
    FlowKey, OWNER_SOCK_OPS, OWNER_TRACEPOINT, OpenConnection, PairKey, PairStats, mapped,
};

use crate::connection::pair_of;
use crate::counters::{Loss, add, lost, pair};
use crate::fields::{addresses, load32, load64};
use crate::maps::CONNECTIONS;

#[sock_ops]
pub fn pd_sock_ops(ctx: SockOpsContext) -> u32 {
    observe(&ctx).map_or(1, |()| 1)
}

const TCP_ESTABLISHED: u32 = 1;
const TCP_SYN_SENT: u32 = 2;
const TCP_FIN_WAIT1: u32 = 4;
const TCP_FIN_WAIT2: u32 = 5;
const TCP_TIME_WAIT: u32 = 6;
const TCP_CLOSE: u32 = 7;
const TCP_CLOSE_WAIT: u32 = 8;
const TCP_LAST_ACK: u32 = 9;
const TCP_CLOSING: u32 = 11;

const EVENTS: u32 =
    BPF_SOCK_OPS_STATE_CB_FLAG | BPF_SOCK_OPS_RTT_CB_FLAG | BPF_SOCK_OPS_RETRANS_CB_FLAG;

/// Reads a field of the context.
macro_rules! field {
    ($ctx:expr, $($field:tt)+) => {
        crate::fields::field!(bpf_sock_ops, $ctx.ops, $($field)+)
    };
}

#[inline(always)]
fn argument<const INDEX: usize>(ctx: &SockOpsContext) -> u32 {
    // The arguments follow `op`.
    match INDEX {
        0 => load32::<4, _>(ctx.ops),
        _ => load32::<8, _>(ctx.ops),
    }
}

#[inline(always)]
fn bytes_acked(ctx: &SockOpsContext) -> u64 {
    load64::<{ core::mem::offset_of!(bpf_sock_ops, bytes_acked) }, _>(ctx.ops)
}

#[inline(always)]
fn bytes_received(ctx: &SockOpsContext) -> u64 {
    load64::<{ core::mem::offset_of!(bpf_sock_ops, bytes_received) }, _>(ctx.ops)
}

#[inline(always)]
fn observe(ctx: &SockOpsContext) -> Option<()> {
    match field!(ctx, op) {
        BPF_SOCK_OPS_TCP_CONNECT_CB => connecting(ctx),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => connected(ctx),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => accepted(ctx),
        op @ (BPF_SOCK_OPS_RTT_CB | BPF_SOCK_OPS_RETRANS_CB) => {
            let connection = CONNECTIONS.get_ptr_mut(flow(ctx)?)?;
            // SAFETY: live map values.
            let key = unsafe { (*connection).pair };
            let stats = pair(&key)?;
            if let Some(fins) = fins_while(field!(ctx, state)) {
                // SAFETY: live map values.
                unsafe { account(ctx, connection, stats, fins) };
            }
            if op == BPF_SOCK_OPS_RTT_CB {
                sample(ctx, connection, stats);
            }
            Some(())
        }
        BPF_SOCK_OPS_STATE_CB => changed(ctx),
        _ => None,
    }
}

#[inline(always)]
fn flow(ctx: &SockOpsContext) -> Option<FlowKey> {
    let (local, remote) =
        addresses!(bpf_sock_ops, ctx.ops, local_ip4, remote_ip4, local_ip6, remote_ip6);
    Some(FlowKey {
        local,
        remote,
        local_port: field!(ctx, local_port) as u16,
        remote_port: u32::from_be(field!(ctx, remote_port)) as u16,
    })
}

/// Starts to track a socket; returns true if it was not tracked before.
#[inline(always)]
fn track(ctx: &SockOpsContext, flow: &FlowKey, key: PairKey, established: bool) -> bool {
    // The flags are those of the socket, for the programs of others too.
    let _ = ctx.set_cb_flags((field!(ctx, bpf_sock_ops_cb_flags) | EVENTS) as i32);
    let connection = OpenConnection {
        pair: key,
        owner: OWNER_SOCK_OPS,
        established: established as u32,
        state: field!(ctx, state),
        // SAFETY: no arguments.
        since_ns: unsafe { bpf_ktime_get_ns() },
        ..OpenConnection::default()
    };
    if CONNECTIONS.insert(flow, connection, BPF_NOEXIST as u64).is_ok() {
        return true;
    }
    if CONNECTIONS.get_ptr(flow).is_none() {
        lost(Loss::Connection);
        return true;
    }
    false
}

#[inline(always)]
fn connecting(ctx: &SockOpsContext) -> Option<()> {
    let flow = flow(ctx)?;
    let key = pair_of(&flow)?;
    if track(ctx, &flow, key, false) {
        // SAFETY: live map values.
        unsafe { add(&raw mut (*pair(&key)?).opened, 1) };
    }
    Some(())
}

#[inline(always)]
fn connected(ctx: &SockOpsContext) -> Option<()> {
    let flow = flow(ctx)?;
    let key = match CONNECTIONS.get_ptr_mut(flow) {
        // SAFETY: live map values.
        Some(connection) => unsafe {
            (*connection).established = 1;
            (*connection).acked_syn = 1;
            (*connection).pair
        },
        None => pair_of(&flow)?,
    };
    // SAFETY: live map values.
    unsafe { add(&raw mut (*pair(&key)?).established, 1) };
    Some(())
}

#[inline(always)]
fn accepted(ctx: &SockOpsContext) -> Option<()> {
    let flow = flow(ctx)?;
    let key = pair_of(&flow)?;
    if track(ctx, &flow, key, true) {
        let stats = pair(&key)?;
        // SAFETY: live map values.
        unsafe {
            add(&raw mut (*stats).opened, 1);
            add(&raw mut (*stats).established, 1);
        }
    }
    Some(())
}

/// Number of FINs in `bytes_acked` and `bytes_received`: a FIN counts as a byte there.
struct Fins {
    acked: u64,
    received: u64,
}

/// The FINs between two state changes. `None` while an acknowledgement may be that of the FIN: the bytes
/// are then counted at the next state change.
#[inline(always)]
fn fins_while(state: u32) -> Option<Fins> {
    match state {
        TCP_ESTABLISHED => Some(Fins { acked: 0, received: 0 }),
        TCP_CLOSE_WAIT => Some(Fins { acked: 0, received: 1 }),
        TCP_FIN_WAIT2 => Some(Fins { acked: 1, received: 0 }),
        _ => None,
    }
}

/// The FINs at a state change (RFC 9293 3.3.2). The kernel updates its counters before the state.
#[inline(always)]
fn fins_at(ctx: &SockOpsContext, connection_received: u64, old: u32, new: u32) -> Fins {
    let received = match (old, new) {
        (_, TCP_CLOSE_WAIT | TCP_CLOSING) => 1,
        (TCP_CLOSE_WAIT | TCP_LAST_ACK | TCP_CLOSING | TCP_TIME_WAIT, _) => 1,
        // If FIN_WAIT2 ends with more bytes received, the last of them is the FIN.
        (TCP_FIN_WAIT2, TCP_CLOSE | TCP_TIME_WAIT) => {
            (bytes_received(ctx) > connection_received) as u64
        }
        _ => 0,
    };
    let acked = match (old, new) {
        (TCP_FIN_WAIT1, TCP_FIN_WAIT2) | (TCP_FIN_WAIT2 | TCP_TIME_WAIT, _) => 1,
        (TCP_LAST_ACK | TCP_CLOSING, TCP_CLOSE | TCP_TIME_WAIT) => {
            (field!(ctx, snd_una) == field!(ctx, snd_nxt)) as u64
        }
        _ => 0,
    };
    Fins { acked, received }
}

/// Adds the bytes and retransmits of the socket since the last call.
#[inline(always)]
unsafe fn account(
    ctx: &SockOpsContext,
    connection: *mut OpenConnection,
    stats: *mut PairStats,
    fins: Fins,
) {
    let acked = bytes_acked(ctx).saturating_sub(fins.acked);
    let received = bytes_received(ctx).saturating_sub(fins.received);
    let retransmits = field!(ctx, total_retrans);
    // SAFETY: live map values.
    unsafe {
        if (*connection).owner == OWNER_TRACEPOINT {
            // Met late: its bytes so far are those of another time, or of another pod.
            (*connection).owner = OWNER_SOCK_OPS;
            (*connection).acked = acked;
            (*connection).received = received;
            (*connection).retransmits = retransmits;
            return;
        }
        let acked = acked.saturating_sub((*connection).acked_syn as u64);
        if acked > (*connection).acked {
            add(&raw mut (*stats).tx_bytes, acked - (*connection).acked);
            (*connection).acked = acked;
        }
        if received > (*connection).received {
            add(&raw mut (*stats).rx_bytes, received - (*connection).received);
            (*connection).received = received;
        }
        if retransmits > (*connection).retransmits {
            let more = retransmits - (*connection).retransmits;
            add(&raw mut (*stats).retransmits, more as u64);
            (*connection).retransmits = retransmits;
        }
    }
}

/// Adds a round-trip time and a delivery rate sample.
#[inline(always)]
fn sample(ctx: &SockOpsContext, connection: *mut OpenConnection, stats: *mut PairStats) {
    // The kernel keeps eight times the smoothed round-trip time, and adds each sample minus an eighth of
    // that value (net/ipv4/tcp_input.c). So the sample can be recovered, and shows an improvement
    // before the smoothed value does.
    let now = field!(ctx, srtt_us);
    // SAFETY: live map values.
    unsafe {
        let before = (*connection).srtt_us_by_8;
        (*connection).srtt_us_by_8 = now;
        let measured_us = match before {
            0 => now >> 3,
            _ => (now + (before >> 3)).saturating_sub(before),
        };
        add(&raw mut (*stats).rtt_us_sum, measured_us as u64);
        add(&raw mut (*stats).rtt_samples, 1);
    }
    // Delivered segments and the time they took, as the kernel samples them for congestion control
    // (net/ipv4/tcp_rate.c).
    let (delivered, took_us) = (field!(ctx, rate_delivered), field!(ctx, rate_interval_us));
    if delivered > 0 && took_us > 0 {
        let bytes = delivered as u64 * field!(ctx, mss_cache) as u64;
        // SAFETY: live map values.
        unsafe {
            add(&raw mut (*stats).rate_bytes, bytes);
            add(&raw mut (*stats).rate_us, took_us as u64);
        }
    }
}

#[inline(always)]
fn changed(ctx: &SockOpsContext) -> Option<()> {
    let old = argument::<0>(ctx);
    let new = argument::<1>(ctx);
    let flow = flow(ctx)?;
    let Some(connection) = CONNECTIONS.get_ptr_mut(flow) else {
        return if new == TCP_CLOSE { close_untracked(ctx, &flow, old) } else { None };
    };
    // SAFETY: live map values.
    let key = unsafe { (*connection).pair };
    let stats = pair(&key)?;
    // SAFETY: live map values.
    let fins = fins_at(ctx, unsafe { (*connection).received }, old, new);
    // SAFETY: live map values.
    unsafe { account(ctx, connection, stats, fins) };
    if new == TCP_CLOSE {
        // SAFETY: live map values.
        let ended = unsafe {
            if (*connection).established != 0 {
                &raw mut (*stats).closed
            } else {
                &raw mut (*stats).failed
            }
        };
        // The program that removes the entry counts: this one or that of the tracepoint.
        if CONNECTIONS.remove(flow).is_ok() {
            add(ended, 1);
        }
    } else {
        // SAFETY: live map values.
        unsafe { (*connection).state = new };
    }
    Some(())
}

/// Counts the totals of a connection that did not fit into the map, when it closes.
#[inline(always)]
fn close_untracked(ctx: &SockOpsContext, flow: &FlowKey, old: u32) -> Option<()> {
    let key = pair_of(flow)?;
    let stats = pair(&key)?;
    let fins = fins_at(ctx, 0, old, TCP_CLOSE);
    let acked = bytes_acked(ctx).saturating_sub(fins.acked);
    let received = bytes_received(ctx).saturating_sub(fins.received);
    let retransmits = field!(ctx, total_retrans);
    // SAFETY: live map values.
    unsafe {
        if old == TCP_SYN_SENT {
            add(&raw mut (*stats).failed, 1);
            return Some(());
        }
        add(&raw mut (*stats).closed, 1);
        add(&raw mut (*stats).tx_bytes, acked);
        add(&raw mut (*stats).rx_bytes, received);
        add(&raw mut (*stats).retransmits, retransmits as u64);
    }
    Some(())
}
