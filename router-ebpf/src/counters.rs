//! Adding to counters that several CPUs share, and finding the ones to add to.

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_log_ebpf::warn;
use router_common::flow::{PairKey, PairStats};

use crate::maps::{LOSSES, PAIRS};

/// Adds to a counter that other CPUs add to as well.
///
/// An instruction of its own because `AtomicU64::fetch_add` needs fetch, which 5.10 lacks.
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

/// `value & MASK` in one instruction that the compiler cannot reason away: the verifier needs the
/// bound in the very register that is used, whatever the compiler proved before.
#[inline(always)]
pub fn masked<const MASK: u64>(mut value: u64) -> u64 {
    // SAFETY: arithmetic on one register.
    unsafe {
        core::arch::asm!("{0} &= {1}", inout(reg) value, const MASK, options(nomem, nostack));
    };
    value
}

/// A detail that cannot be counted.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum Loss {
    Connection,
    Pair,
    Stream,
    QueuePair,
    Header,
}

/// Counts one detail that is lost, and tells the agent's log at every doubling of their number.
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
        };
        (counter, counter.read_volatile())
    };
    add(counter, 1);
    if before & before.wrapping_add(1) == 0 {
        pd_tell(what as u32, before.wrapping_add(1));
    }
}

/// Tells what was lost, and how often by now.
///
/// A function to the kernel too: its text is verified once, and no program carries it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn pd_tell(what: u32, times: u64) -> u32 {
    const CONNECTION: u32 = Loss::Connection as u32;
    const PAIR: u32 = Loss::Pair as u32;
    const STREAM: u32 = Loss::Stream as u32;
    const QUEUE_PAIR: u32 = Loss::QueuePair as u32;
    match what {
        CONNECTION => warn!((), "CONNECTIONS is full: counted at their end alone, {}", times),
        PAIR => warn!((), "PAIRS is full: counted under nobody, {}", times),
        STREAM => warn!((), "STREAMS is full: connections without requests, {}", times),
        QUEUE_PAIR => warn!((), "QUEUE_PAIRS is full: counted under nobody, {}", times),
        _ => warn!((), "headers of no known shape: packets not counted, {}", times),
    }
    0
}

/// What a pair begins with; not on the stack, of which sock_ops has little left.
static NOTHING: PairStats = PairStats {
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

/// The counters of a pair; those of "any peer" when the map has no room for another pair.
#[inline(always)]
pub fn pair(key: &PairKey) -> Option<*mut PairStats> {
    if let Some(stats) = PAIRS.get_ptr_mut(key) {
        return Some(stats);
    }
    let nothing: &PairStats = &NOTHING;
    if PAIRS.insert(key, nothing, BPF_NOEXIST as u64).is_err() {
        // Another CPU may have been faster; else the map is full.
        if let Some(stats) = PAIRS.get_ptr_mut(key) {
            return Some(stats);
        }
        lost(Loss::Pair);
        let anyone = PairKey { pod: key.pod, peer: 0, class: key.class };
        return PAIRS.get_ptr_mut(anyone);
    }
    PAIRS.get_ptr_mut(key)
}
