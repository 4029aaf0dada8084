//! Adds the changes of an HTTP connection to the counters of its pod.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use router_common::histogram::{BUCKETS, bucket};
use router_common::http::{HttpChange, TCP_FIN, TCP_RST, TCP_SYN};

use crate::counters::{add, forget, masked};
use crate::maps::POD_HTTP;

/// Flags of segments that count without payload.
pub const ENDS: u8 = TCP_FIN | TCP_SYN | TCP_RST;

/// The clock of the state machine.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: the helper has no precondition.
    unsafe { bpf_ktime_get_ns() }
}

/// Adds the changes to the counters of pod `pod`.
#[inline(always)]
pub fn apply(pod: u32, change: &HttpChange) -> Option<()> {
    let http = POD_HTTP.get_ptr_mut(pod)?;
    // SAFETY: all of these are fields of a live map value.
    unsafe {
        // What the verifier does not know it verifies once, and not for each kind of change.
        let noise = (&raw const (*http).started).read_volatile();
        let number = |value: u64| forget(value, noise);
        let events = number(events(change));
        for (event, counter) in [
            (STARTED, &raw mut (*http).started),
            (REOPENED, &raw mut (*http).reopened),
            (ANSWERED, &raw mut (*http).answered),
            (STREAM_STARTED, &raw mut (*http).streams_started),
            (STREAM_ENDED, &raw mut (*http).streams_ended),
            (ABORTED, &raw mut (*http).aborted),
            (FINISHED, &raw mut (*http).finished),
        ] {
            if events & event != 0 {
                add(counter, 1);
            }
        }
        let bytes = number(change.request_bytes as u64);
        if bytes != 0 {
            add(&raw mut (*http).request_bytes, bytes);
        }
        let bytes = number(change.answered_request_bytes as u64);
        if bytes != 0 {
            add(&raw mut (*http).answered_request_bytes, bytes);
        }
        let ns = number(change.duration_ns);
        if ns != 0 {
            add(&raw mut (*http).duration_ns_sum, ns);
            add(&raw mut (*http).duration_samples, 1);
        }
        let ns = number(change.ttft_ns);
        if ns != 0 {
            add(&raw mut (*http).ttft_ns_sum, ns);
            add(&raw mut (*http).ttft_samples, 1);
            histogram((&raw mut (*http).ttft_us).cast(), ns);
        }
        let ns = number(change.itl_ns);
        if ns != 0 {
            add(&raw mut (*http).itl_ns_sum, ns);
            add(&raw mut (*http).itl_samples, 1);
            histogram((&raw mut (*http).itl_us).cast(), ns);
        }
    }
    Some(())
}

const STARTED: u64 = 1;
const REOPENED: u64 = 1 << 1;
const ANSWERED: u64 = 1 << 2;
const STREAM_STARTED: u64 = 1 << 3;
const STREAM_ENDED: u64 = 1 << 4;
const ABORTED: u64 = 1 << 5;
const FINISHED: u64 = 1 << 6;

/// The events of a change, as bits.
#[inline(always)]
fn events(change: &HttpChange) -> u64 {
    (change.started as u64 * STARTED)
        | (change.reopened as u64 * REOPENED)
        | (change.answered as u64 * ANSWERED)
        | (change.stream_started as u64 * STREAM_STARTED)
        | (change.stream_ended as u64 * STREAM_ENDED)
        | (change.aborted as u64 * ABORTED)
        | (change.finished as u64 * FINISHED)
}

/// # Safety
///
/// `buckets` points to `BUCKETS` counters of a live map value.
#[inline(always)]
unsafe fn histogram(buckets: *mut u64, ns: u64) {
    let index = masked::<127>(bucket(ns / 1_000) as u64) as usize;
    if index < BUCKETS {
        // SAFETY: the index is within the buckets.
        add(unsafe { buckets.add(index) }, 1);
    }
}
