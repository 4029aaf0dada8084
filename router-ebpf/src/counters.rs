//! Adding to counters that several CPUs share, and finding the ones to add to.

use aya_ebpf::bindings::BPF_NOEXIST;
use router_common::flow::{Losses, PairKey, PairStats};

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

/// Counts one detail that a full map refused.
#[inline(always)]
pub fn lost(which: fn(*mut Losses) -> *mut u64) {
    if let Some(losses) = LOSSES.get_ptr_mut(0) {
        add(which(losses), 1);
    }
}

/// The counters of a pair; those of "any peer" when the map has no room for another pair.
#[inline(always)]
pub fn pair(key: &PairKey) -> Option<*mut PairStats> {
    if let Some(stats) = PAIRS.get_ptr_mut(key) {
        return Some(stats);
    }
    if PAIRS.insert(key, PairStats::default(), BPF_NOEXIST as u64).is_err() {
        // Another CPU may have been faster; else the map is full.
        if let Some(stats) = PAIRS.get_ptr_mut(key) {
            return Some(stats);
        }
        // SAFETY: the pointer is that of a live map value.
        lost(|losses| unsafe { &raw mut (*losses).pairs });
        let anyone = PairKey { pod: key.pod, peer: 0, class: key.class };
        return PAIRS.get_ptr_mut(anyone);
    }
    PAIRS.get_ptr_mut(key)
}
