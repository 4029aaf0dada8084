//! [`Flow`]: KV cache from a prefill to a decode, as the agents of both ends count it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use router_core::fleet::{Fleet, Member, ObjectName, Pool, Role};
use router_core::frame::pod_id;
use router_core::provenance::{Measured, Provenance};
use serde::Serialize;

use crate::feedback::KvPair;

/// Age from which a count says nothing about now: agents confirm theirs every 100 ms.
const MAX_AGE_US: u64 = 1_000_000;

/// KV cache over TCP between two pods of a pool. What RDMA carries is counted by pod, not by pair.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Flow {
    pool: ObjectName,
    /// The prefill's pod and the decode's.
    #[serde(skip)]
    pub(super) pods: [u64; 2],
    prefill: Arc<str>,
    decode: Arc<str>,
    /// Exact where the receiving end counts. Estimated where only the sending end does, which counts what it
    /// sends twice twice.
    bytes_per_s: Measured<f32>,
    /// Speed while a transfer was going on.
    transfer_bytes_per_s: Measured<f32>,
    rtt_us: Measured<f32>,
    retransmits_per_s: Measured<f32>,
    /// Age of the older of both ends' counts.
    age_ms: f64,
}

#[derive(Default)]
struct Ends {
    prefill: Option<KvPair>,
    decode: Option<KvPair>,
}

/// The flows between the workers of a fleet, by pool and name.
pub(super) fn flows(fleet: &Fleet, pairs: Vec<KvPair>) -> Vec<Flow> {
    // The workers of a pod with several ports share its count: the first one stands for it.
    let mut pods: HashMap<u64, (&Pool, &Member)> = HashMap::new();
    for (pool, member) in fleet.members() {
        pods.entry(pod_id(&member.worker.key.uid)).or_insert((pool, member));
    }
    let mut ends: BTreeMap<[u64; 2], Ends> = BTreeMap::new();
    for pair in pairs {
        let (own, peer) = (pair.record.key.pod, pair.record.key.peer);
        let role = |pod| pods.get(&pod).map(|(_, member): &(&Pool, &Member)| member.role);
        match (role(own), role(peer)) {
            (Some(Role::Prefill), Some(Role::Decode)) => {
                ends.entry([own, peer]).or_default().prefill = Some(pair);
            }
            (Some(Role::Decode), Some(Role::Prefill)) => {
                ends.entry([peer, own]).or_default().decode = Some(pair);
            }
            _ => {}
        }
    }
    let flow = |(ids, ends): ([u64; 2], Ends)| {
        let ((pool, prefill), (_, decode)) = (pods.get(&ids[0])?, pods.get(&ids[1])?);
        Some(ends.flow(ids, &pool.name, [&prefill.worker.name, &decode.worker.name]))
    };
    let mut flows: Vec<Flow> = ends.into_iter().filter_map(flow).collect();
    flows.sort_by(|a, b| (&a.prefill, &a.decode).cmp(&(&b.prefill, &b.decode)));
    flows
}

impl Ends {
    fn flow(&self, pods: [u64; 2], pool: &ObjectName, [prefill, decode]: [&Arc<str>; 2]) -> Flow {
        let is_fresh = |pair: &&KvPair| pair.age_us <= MAX_AGE_US;
        let sent = self.prefill.as_ref().filter(is_fresh).map(|pair| &pair.record);
        let received = self.decode.as_ref().filter(is_fresh).map(|pair| &pair.record);
        let estimated = |value| Measured::new(Some(value), Provenance::Estimated);
        let unknown = Measured::unknown();
        let ages = [&self.prefill, &self.decode].into_iter().flatten();
        let age_us = ages.map(|pair| pair.age_us + u64::from(pair.record.age_us)).max();
        Flow {
            pool: pool.clone(),
            pods,
            prefill: Arc::clone(prefill),
            decode: Arc::clone(decode),
            bytes_per_s: match (received, sent) {
                (Some(received), _) => Measured::exact(received.rx_bytes_per_s),
                (None, Some(sent)) => estimated(sent.tx_bytes_per_s),
                (None, None) => unknown,
            },
            transfer_bytes_per_s: sent.map_or(unknown, |sent| sent.transfer_bytes_per_s),
            rtt_us: sent.or(received).map_or(unknown, |record| record.rtt_us),
            retransmits_per_s: sent.map_or(unknown, |sent| Measured::exact(sent.retransmits_per_s)),
            age_ms: age_us.unwrap_or(0) as f64 / 1e3,
        }
    }

    #[cfg(test)]
    fn of(prefill: Option<KvPair>, decode: Option<KvPair>) -> Ends {
        Ends { prefill, decode }
    }
}

#[cfg(test)]
mod tests {
    use router_core::frame::PairRecord;

    use super::*;

    fn pair(tx: f32, rx: f32, age_us: u64) -> Option<KvPair> {
        let record = PairRecord { tx_bytes_per_s: tx, rx_bytes_per_s: rx, ..PairRecord::default() };
        Some(KvPair { record, age_us })
    }

    fn rate(ends: &Ends) -> Measured<f32> {
        let pool = ObjectName { namespace: "default".into(), name: "pool".into() };
        ends.flow([1, 2], &pool, [&"p".into(), &"d".into()]).bytes_per_s
    }

    #[test]
    fn the_receiving_end_is_exact_the_sending_end_an_estimate_and_an_old_count_unknown() {
        let old = MAX_AGE_US + 1;
        assert_eq!(rate(&Ends::of(pair(9.0, 0.0, 0), pair(0.0, 8.0, 0))), Measured::exact(8.0));
        let estimated = Measured::new(Some(9.0), Provenance::Estimated);
        assert_eq!(rate(&Ends::of(pair(9.0, 0.0, 0), None)), estimated);
        assert_eq!(rate(&Ends::of(pair(9.0, 0.0, 0), pair(0.0, 8.0, old))), estimated);
        assert_eq!(rate(&Ends::of(pair(9.0, 0.0, old), None)), Measured::unknown());
        let idle = Ends::of(None, pair(0.0, 0.0, 0));
        assert_eq!(rate(&idle), Measured::exact(0.0), "nothing flows, and that is known");
    }
}
