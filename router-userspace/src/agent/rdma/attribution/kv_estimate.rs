//! KV cache where no counter tells of it: by the pages that decodes ask their prefills for.
//!
//! A decode sends each prefill rank one message a request, over TCP even where KV moves by RDMA:
//! the room, its own address, four bytes for each page of KV cache, and some numbers (Mooncake's
//! layout in SGLang's disaggregation/mooncake/conn.py). So the payload that a decode sends on
//! KV control connections, less what the messages have beside the pages, is four times the pages.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use router_core::provenance::{Measured, Provenance};

use crate::agent::rdma::counters::{Counter, CounterHistory, DeviceCounters};

/// Bytes of a page's index.
const INDEX: u64 = 4;
/// Bytes of a message beside them: a dozen short parts, framed by ZMTP. It is about that: a
/// request is off by some thirty pages at most.
const ENVELOPE: u64 = 128;
/// Pods that are told apart.
const MAX_PODS: usize = 1_024;

/// What a decode has asked for so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KvRequests {
    /// Payload that it sent to prefills on KV control connections.
    pub control_bytes: u64,
    /// Requests that it was sent.
    pub requests: u64,
}

/// KV cache that decodes received, as far as can be guessed.
#[derive(Debug, Default)]
pub(in crate::agent) struct KvEstimates {
    /// Of a page on one rank; nothing is guessed without it.
    page_bytes: Option<u64>,
    pods: HashMap<Arc<str>, PodEstimate>,
}

#[derive(Debug, Default)]
struct PodEstimate {
    first: KvRequests,
    meter: CounterHistory,
}

impl KvEstimates {
    pub(in crate::agent) fn new(page_bytes: Option<u64>) -> KvEstimates {
        KvEstimates { page_bytes, ..KvEstimates::default() }
    }

    /// Takes up what was asked for until now; pods that are gone are forgotten.
    pub(in crate::agent) fn enter(&mut self, at: Duration, asked: &HashMap<Arc<str>, KvRequests>) {
        self.pods.retain(|uid, _| asked.contains_key(uid));
        let Some(page_bytes) = self.page_bytes else { return };
        for (uid, asked) in asked {
            if self.pods.len() >= MAX_PODS && !self.pods.contains_key(uid) {
                continue;
            }
            let guess = self.pods.entry(Arc::clone(uid)).or_default();
            if guess.meter.is_new() {
                guess.first = *asked;
            }
            let mut counters = DeviceCounters::default();
            counters.add(Counter::RxBytes, guess.first.pages(*asked).saturating_mul(page_bytes));
            guess.meter.push(at, counters, |_| false);
        }
    }

    /// Bytes that a pod received since it is seen, and per second.
    pub(in crate::agent) fn all(&self) -> HashMap<Arc<str>, (Measured<f64>, Measured<f64>)> {
        let figures = |guess: &PodEstimate| {
            let total = guess.meter.grown(Counter::RxBytes).map(|bytes| bytes as f64);
            let figure = |value| Measured::new(value, Provenance::Estimated);
            (figure(total), figure(guess.meter.rate(Counter::RxBytes)))
        };
        self.pods.iter().map(|(uid, guess)| (Arc::clone(uid), figures(guess))).collect()
    }
}

impl KvRequests {
    /// Pages that were asked for since.
    fn pages(self, now: KvRequests) -> u64 {
        let requests = now.requests.saturating_sub(self.requests);
        let sent = now.control_bytes.saturating_sub(self.control_bytes);
        sent.saturating_sub(requests.saturating_mul(ENVELOPE)) / INDEX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(control_bytes: u64, requests: u64) -> HashMap<Arc<str>, KvRequests> {
        [("pod".into(), KvRequests { control_bytes, requests })].into()
    }

    #[test]
    fn pages_are_what_the_messages_have_beyond_their_envelopes() {
        let mut estimates = KvEstimates::new(Some(1_000));
        estimates.enter(Duration::from_secs(1), &asked(5_000, 7));
        assert_eq!(estimates.all()["pod"].1, Measured::unknown(), "one look is no rate");
        // Two requests of 300 pages each.
        estimates.enter(Duration::from_secs(2), &asked(5_000 + 2 * (128 + 1_200), 9));
        let (total, rate) = estimates.all()["pod"];
        assert_eq!(total, Measured::estimated(600_000.0));
        assert_eq!(rate.value(), Some(600_000.0));
        estimates.enter(Duration::from_secs(3), &HashMap::new());
        assert!(estimates.all().is_empty(), "the pod is gone");
    }

    #[test]
    fn less_than_the_envelopes_is_nothing_and_without_a_page_nothing_is_guessed() {
        let mut estimates = KvEstimates::new(Some(1_000));
        estimates.enter(Duration::from_secs(1), &asked(0, 0));
        estimates.enter(Duration::from_secs(2), &asked(100, 5));
        assert_eq!(estimates.all()["pod"].0.value(), Some(0.0));
        let mut without = KvEstimates::new(None);
        without.enter(Duration::from_secs(1), &asked(9_999, 1));
        assert!(without.all().is_empty());
    }
}
