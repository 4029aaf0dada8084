//! [`KvEstimates`]: estimates received KV cache from the pages that decodes request.
//!
//! It is used where no counter shows the transfer. For each request a decode sends every prefill
//! rank one message, over TCP even if KV moves by RDMA: the bootstrap room, its own address, four
//! bytes per page of KV cache, and some numbers (Mooncake's layout in SGLang's
//! disaggregation/mooncake/conn.py). The payload of a decode's KV control connections, less the
//! fixed part of the messages, is therefore four bytes per page.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use router_core::provenance::{Measured, Provenance};

use crate::agent::rdma::counters::{Counter, CounterHistory, DeviceCounters};

/// Bytes of one page index.
const PAGE_INDEX_BYTES: u64 = 4;
/// Approximate bytes of a message without its page indices: a dozen short parts, framed by ZMTP.
/// The error is at most about thirty pages per request.
const ENVELOPE_BYTES: u64 = 128;
/// Maximum number of pods with an estimate.
const MAX_PODS: usize = 1_024;

/// What a decode has requested from its prefills.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KvRequests {
    /// Payload in bytes that it sent to prefills on KV control connections.
    pub control_bytes: u64,
    /// Requests that it received.
    pub requests: u64,
}

/// Estimates of the KV cache that decodes received.
#[derive(Debug, Default)]
pub(in crate::agent) struct KvEstimates {
    /// Size of a page on one rank; without it there are no estimates.
    page_bytes: Option<u64>,
    pods: HashMap<Arc<str>, PodEstimate>,
}

#[derive(Debug, Default)]
struct PodEstimate {
    first: KvRequests,
    history: CounterHistory,
}

impl KvEstimates {
    pub(in crate::agent) fn new(page_bytes: Option<u64>) -> KvEstimates {
        KvEstimates { page_bytes, ..KvEstimates::default() }
    }

    /// Records the requests so far. Pods that are no longer in `requests` are removed.
    pub(in crate::agent) fn record(
        &mut self,
        at: Duration,
        requests: &HashMap<Arc<str>, KvRequests>,
    ) {
        self.pods.retain(|uid, _| requests.contains_key(uid));
        let Some(page_bytes) = self.page_bytes else { return };
        for (uid, requests) in requests {
            if self.pods.len() >= MAX_PODS && !self.pods.contains_key(uid) {
                continue;
            }
            let estimate = self.pods.entry(Arc::clone(uid)).or_default();
            if estimate.history.is_new() {
                estimate.first = *requests;
            }
            let mut counters = DeviceCounters::default();
            counters
                .add(Counter::RxBytes, estimate.first.pages(*requests).saturating_mul(page_bytes));
            estimate.history.push(at, counters, |_| false);
        }
    }

    /// Estimated bytes that each pod received in total and per second, by UID.
    pub(in crate::agent) fn all(&self) -> HashMap<Arc<str>, (Measured<f64>, Measured<f64>)> {
        let estimates = |estimate: &PodEstimate| {
            let total = estimate.history.total(Counter::RxBytes).map(|bytes| bytes as f64);
            let estimated = |value| Measured::new(value, Provenance::Estimated);
            (estimated(total), estimated(estimate.history.rate(Counter::RxBytes)))
        };
        self.pods.iter().map(|(uid, estimate)| (Arc::clone(uid), estimates(estimate))).collect()
    }
}

impl KvRequests {
    /// Pages requested between `self` and `now`.
    fn pages(self, now: KvRequests) -> u64 {
        let requests = now.requests.saturating_sub(self.requests);
        let sent = now.control_bytes.saturating_sub(self.control_bytes);
        sent.saturating_sub(requests.saturating_mul(ENVELOPE_BYTES)) / PAGE_INDEX_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requested(control_bytes: u64, requests: u64) -> HashMap<Arc<str>, KvRequests> {
        [("pod".into(), KvRequests { control_bytes, requests })].into()
    }

    #[test]
    fn pages_are_the_payload_without_envelopes() {
        let mut estimates = KvEstimates::new(Some(1_000));
        estimates.record(Duration::from_secs(1), &requested(5_000, 7));
        assert_eq!(estimates.all()["pod"].1, Measured::unknown(), "one reading has no rate");
        // Two requests of 300 pages each.
        estimates.record(Duration::from_secs(2), &requested(5_000 + 2 * (128 + 1_200), 9));
        let (total, rate) = estimates.all()["pod"];
        assert_eq!(total, Measured::estimated(600_000.0));
        assert_eq!(rate.value(), Some(600_000.0));
        estimates.record(Duration::from_secs(3), &HashMap::new());
        assert!(estimates.all().is_empty(), "the pod is gone");
    }

    #[test]
    fn payload_below_the_envelopes_is_zero_pages_and_no_page_size_gives_no_estimate() {
        let mut estimates = KvEstimates::new(Some(1_000));
        estimates.record(Duration::from_secs(1), &requested(0, 0));
        estimates.record(Duration::from_secs(2), &requested(100, 5));
        assert_eq!(estimates.all()["pod"].0.value(), Some(0.0));
        let mut without = KvEstimates::new(None);
        without.record(Duration::from_secs(1), &requested(9_999, 1));
        assert!(without.all().is_empty());
    }
}
