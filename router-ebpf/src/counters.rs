//! Shared counters: finds them and adds to them.

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_log_ebpf::warn;
use router_common::flow::{PairKey, PairStats};

use crate::maps::{LOSSES, PAIRS};

/// Adds to a counter that other CPUs add to as well.
///
/// Inline assembly, because `AtomicU64::fetch_add` needs BPF_FETCH, which Linux 5.10 lacks.
#[inline(always)]
pub fn add(counter: *mut u64, value: u64) {
    // SAFETY: callers pass a field of a live map value; the verifier checks that they do.
    unsafe {
        core::arch::asm!(
            "lock *(u64 *)({counter} + 0) += {value}",
            counter = in(reg) counter,
            value = in(reg) value,
        );
    }
}

/// `value & MASK` as one instruction that the compiler cannot remove. The verifier needs the bound in
/// the register that is used, even if the compiler has proved it.
#[inline(always)]
pub fn masked<const MASK: u64>(mut value: u64) -> u64 {
    // SAFETY: arithmetic on one register.
    unsafe {
        core::arch::asm!("{0} &= {1}", inout(reg) value, const MASK, options(nomem, nostack));
    };
    value
}

/// `value`, of which the verifier knows nothing any more: otherwise it would verify the rest once for each
/// path that leads to it. `noise` is any number that it does not know.
#[inline(always)]
pub fn forget(mut value: u64, noise: u64) -> u64 {
    // SAFETY: arithmetic on registers.
    unsafe {
        core::arch::asm!(
            "{value} ^= {noise}",
            "{value} ^= {noise}",
            value = inout(reg) value,
            noise = in(reg) noise,
            options(nomem, nostack),
        );
    }
    value
}

/// A detail that is not counted.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum Loss {
    Connection,
    Pair,
    Stream,
    QueuePair,
    Header,
    Control,
}

/// Counts a loss, and logs it each time their number has doubled.
#[inline(always)]
pub fn lost(what: Loss) {
    let Some(losses) = LOSSES.get_ptr_mut(0) else { return };
    // SAFETY: fields of a live map value.
    let (counter, before) = unsafe {
        let counter = match what {
            Loss::Connection => &raw mut (*losses).connections,
            Loss::Pair => &raw mut (*losses).pairs,
            Loss::Stream => &raw mut (*losses).streams,
            Loss::QueuePair => &raw mut (*losses).queue_pairs,
            Loss::Header => &raw mut (*losses).unreadable,
            Loss::Control => &raw mut (*losses).control,
        };
        (counter, counter.read_volatile())
    };
    add(counter, 1);
    if before & before.wrapping_add(1) == 0 {
        pd_log_loss(what as u32, before.wrapping_add(1));
    }
}

/// Logs a loss and the number of losses so far.
///
/// A global function: it is verified once, and its text is not part of each program.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn pd_log_loss(what: u32, times: u64) -> u32 {
    const CONNECTION: u32 = Loss::Connection as u32;
    const PAIR: u32 = Loss::Pair as u32;
    const STREAM: u32 = Loss::Stream as u32;
    const QUEUE_PAIR: u32 = Loss::QueuePair as u32;
    const CONTROL: u32 = Loss::Control as u32;
    match what {
        CONNECTION => {
            warn!((), "CONNECTIONS is full: connections counted only when they close: {}", times)
        }
        PAIR => warn!((), "PAIRS is full: connections counted under peer 0: {}", times),
        STREAM => {
            warn!(
                (),
                "no memory for HTTP connections: their requests or ends are not counted: {}", times
            )
        }
        QUEUE_PAIR => {
            warn!((), "QUEUE_PAIRS is full: packets counted under queue pair 0: {}", times)
        }
        CONTROL => warn!((), "CONTROL is full: segments with control messages not read: {}", times),
        _ => warn!((), "headers cannot be parsed: packets not counted: {}", times),
    }
    0
}

/// Initial counters of a pair. Static, because sock_ops has little stack left.
static ZERO: PairStats = PairStats {
    opened: 0,
    established: 0,
    closed: 0,
    failed: 0,
    tx_bytes: 0,
    rx_bytes: 0,
    retransmits: 0,
    rtt_us_sum: 0,
    rtt_samples: 0,
    rate_bytes: 0,
    rate_us: 0,
};

/// The counters of a pair; those of peer 0 if the map is full.
#[inline(always)]
pub fn pair(key: &PairKey) -> Option<*mut PairStats> {
    if let Some(stats) = PAIRS.get_ptr_mut(key) {
        return Some(stats);
    }
    let zero: &PairStats = &ZERO;
    if PAIRS.insert(key, zero, BPF_NOEXIST as u64).is_err() {
        // Another CPU may have inserted it; else the map is full.
        if let Some(stats) = PAIRS.get_ptr_mut(key) {
            return Some(stats);
        }
        lost(Loss::Pair);
        let any_peer = PairKey { pod: key.pod, peer: 0, class: key.class };
        return PAIRS.get_ptr_mut(any_peer);
    }
    PAIRS.get_ptr_mut(key)
}
