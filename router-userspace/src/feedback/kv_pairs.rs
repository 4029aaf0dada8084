//! [`KvPairs`]: the last records of pairs of pods that exchange KV cache, as one agent reported them.

use std::collections::HashMap;

use router_core::frame::{Body, Class, MAX_PAIRS, PairId, PairRecord};

/// The KV traffic of a pod with another one, as the agent of the first one counts it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct KvPair {
    pub(crate) record: PairRecord,
    /// Time since the agent has confirmed the record.
    pub(crate) age_us: u64,
}

/// Bounded by [`MAX_PAIRS`].
#[derive(Debug, Default)]
pub(super) struct KvPairs {
    records: HashMap<PairId, PairRecord>,
    confirmed_us: u64,
}

impl KvPairs {
    /// Applies a frame whose values are those of `valid_us`.
    pub(super) fn apply(&mut self, body: &Body, valid_us: u64) {
        self.confirmed_us = self.confirmed_us.max(valid_us);
        let pairs = match body {
            Body::Heartbeat => return,
            Body::Full(report) => {
                self.records.clear();
                &report.pairs
            }
            Body::Delta(delta) => {
                for gone in &delta.gone_pairs {
                    self.records.remove(gone);
                }
                &delta.pairs
            }
        };
        for pair in pairs.iter().filter(|pair| pair.key.class == Class::Kv && pair.key.peer != 0) {
            if self.records.len() < MAX_PAIRS || self.records.contains_key(&pair.key) {
                self.records.insert(pair.key.clone(), pair.clone());
            }
        }
    }

    pub(super) fn all(&self, now_us: u64) -> impl Iterator<Item = KvPair> {
        let age_us = now_us.saturating_sub(self.confirmed_us);
        self.records.values().map(move |record| KvPair { record: record.clone(), age_us })
    }
}

#[cfg(test)]
mod tests {
    use router_core::frame::{Delta, LoadReport};

    use super::*;

    fn pair(peer: u64, class: Class, tx: f32) -> PairRecord {
        let key = PairId { pod: 1, peer, class };
        PairRecord { key, tx_bytes_per_s: tx, ..PairRecord::default() }
    }

    #[test]
    fn the_last_record_of_each_kv_pair_is_kept_and_ages() {
        let mut pairs = KvPairs::default();
        let full =
            vec![pair(2, Class::Kv, 1.0), pair(3, Class::Kv, 1.0), pair(4, Class::Engine, 1.0)];
        pairs.apply(&Body::Full(LoadReport { pairs: full, ..LoadReport::default() }), 1_000);
        assert_eq!(pairs.all(1_000).count(), 2, "other classes are not kept");
        let delta = Delta {
            pairs: vec![pair(2, Class::Kv, 9.0)],
            gone_pairs: vec![pair(3, Class::Kv, 0.0).key],
            ..Delta::default()
        };
        pairs.apply(&Body::Delta(delta), 2_000);
        pairs.apply(&Body::Heartbeat, 5_000);
        let all: Vec<KvPair> = pairs.all(7_000).collect();
        assert_eq!(all, [KvPair { record: pair(2, Class::Kv, 9.0), age_us: 2_000 }]);
        pairs.apply(&Body::Full(LoadReport::default()), 8_000);
        assert_eq!(pairs.all(8_000).count(), 0);
    }

    #[test]
    fn there_is_a_limit() {
        let mut pairs = KvPairs::default();
        let many = (1..=MAX_PAIRS as u64 + 5).map(|peer| pair(peer, Class::Kv, 1.0));
        let report = LoadReport { pairs: many.collect(), ..LoadReport::default() };
        pairs.apply(&Body::Full(report), 0);
        assert_eq!(pairs.all(0).count(), MAX_PAIRS);
    }
}
