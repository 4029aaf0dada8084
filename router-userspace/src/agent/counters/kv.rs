//! The KV cache rates of pods and pairs. The sending sockets count it, live and exactly. If the sender is
//! on another node, the rate is that of the packets that arrive on KV ports, and it is divided among
//! the peers by their open connections.

use std::collections::BTreeMap;

use router_common::flow::{CLASS_KV, PairKey};
use router_core::provenance::Measured;

/// The rates of a pair in the last window, as its sockets count them.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::agent) struct PairRates {
    /// Bytes sent since the pair is known.
    pub(in crate::agent) sent: u64,
    /// Bytes sent per second.
    pub(in crate::agent) tx: f64,
    /// Bytes per second that ended connections received; open connections are not counted in it.
    pub(in crate::agent) rx: f64,
    pub(in crate::agent) retransmits: f64,
    pub(in crate::agent) open: u64,
    /// Connections that are older than the programs: their bytes are not counted.
    pub(in crate::agent) preexisting: u64,
}

/// The sums over the pairs of a pod.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::agent) struct PodKv {
    /// Bytes of KV cache sent since the pod is known.
    pub(in crate::agent) sent: u64,
    /// Bytes of KV cache sent per second.
    pub(in crate::agent) tx: f64,
    /// Bytes of KV cache received per second.
    pub(in crate::agent) rx: Measured<f32>,
    /// Retransmits per second of all traffic, not of KV cache alone.
    pub(in crate::agent) retransmits: f64,
}

impl Default for PodKv {
    fn default() -> PodKv {
        PodKv { sent: 0, tx: 0.0, rx: Measured::exact(0.0), retransmits: 0.0 }
    }
}

/// The KV cache rates of every pod and pair.
#[derive(Debug, Default)]
pub(in crate::agent) struct KvRates {
    pods: BTreeMap<u32, PodKv>,
    received: BTreeMap<PairKey, Measured<f32>>,
}

impl KvRates {
    /// `arriving` returns the bytes per second that arrive at a pod on KV ports, or `None` if the node
    /// sees no packets of the pod.
    pub(in crate::agent) fn new(
        pairs: &BTreeMap<PairKey, PairRates>,
        arriving: impl Fn(u32) -> Option<f64>,
    ) -> KvRates {
        let mut kv = KvRates::default();
        let mut receivers: BTreeMap<u32, Vec<(PairKey, &PairRates)>> = BTreeMap::new();
        for (key, rates) in pairs {
            let pod = kv.pods.entry(key.pod).or_default();
            pod.retransmits += rates.retransmits;
            if key.class == CLASS_KV {
                pod.sent += rates.sent;
                pod.tx += rates.tx;
                receivers.entry(key.pod).or_default().push((*key, rates));
            }
        }
        for (id, own) in receivers {
            let rx = kv.receive_rate(pairs, &own, arriving(id));
            kv.pods.entry(id).or_default().rx = rx;
        }
        kv
    }

    /// The rate at which a pod receives; also enters the rate from each peer.
    fn receive_rate(
        &mut self,
        pairs: &BTreeMap<PairKey, PairRates>,
        own: &[(PairKey, &PairRates)],
        arriving: Option<f64>,
    ) -> Measured<f32> {
        let mut reported = 0.0;
        let mut others = Vec::new();
        for (key, rates) in own {
            let sender = PairKey { pod: key.peer, peer: key.pod, class: CLASS_KV };
            match pairs.get(&sender).filter(|sender| sender.sent > 0 && sender.preexisting == 0) {
                Some(sender) => {
                    reported += sender.tx;
                    self.received.insert(*key, Measured::exact(sender.tx as f32));
                }
                None => others.push((*key, *rates)),
            }
        }
        let open: u64 = others.iter().map(|(_, rates)| rates.open).sum();
        let rest = match arriving {
            _ if others.is_empty() => return Measured::exact(reported as f32),
            Some(arriving) => Measured::estimated((arriving - reported).max(0.0) as f32),
            None if open > 0 => Measured::unknown(),
            None => Measured::exact(0.0),
        };
        // Open connections share equally; without any, ended ones share by the bytes they moved.
        let weight = |rates: &PairRates| if open > 0 { rates.open as f64 } else { rates.rx };
        let all: f64 = others.iter().map(|(_, rates)| weight(rates)).sum();
        for (key, rates) in others {
            let share = if all > 0.0 { weight(rates) / all } else { 0.0 };
            let received = rest.map(|rest| (f64::from(rest) * share) as f32);
            self.received.insert(key, received);
        }
        rest.map(|rest| reported as f32 + rest)
    }

    pub(in crate::agent) fn of_pod(&self, id: u32) -> PodKv {
        self.pods.get(&id).copied().unwrap_or_default()
    }

    /// The rate at which the pod of a pair receives from its peer.
    pub(in crate::agent) fn received(&self, key: &PairKey) -> Measured<f32> {
        self.received.get(key).copied().unwrap_or(Measured::exact(0.0))
    }
}

#[cfg(test)]
mod tests {
    use router_common::flow::CLASS_ENGINE;

    use super::*;

    const DECODE: u32 = 1;
    const NEAR: u32 = 2;
    const FAR: u32 = 600;
    const FARTHER: u32 = 601;

    fn from(peer: u32) -> PairKey {
        PairKey { pod: DECODE, peer, class: CLASS_KV }
    }

    fn open(open: u64) -> PairRates {
        PairRates { open, ..PairRates::default() }
    }

    #[test]
    fn traffic_from_other_nodes_is_divided_by_connections() {
        let pairs = BTreeMap::from([(from(FAR), open(3)), (from(FARTHER), open(1))]);
        let kv = KvRates::new(&pairs, |_| Some(4e9));
        assert_eq!(kv.of_pod(DECODE).rx, Measured::estimated(4e9));
        assert_eq!(kv.received(&from(FAR)), Measured::estimated(3e9));
        assert_eq!(kv.received(&from(FARTHER)), Measured::estimated(1e9));
        assert_eq!(kv.of_pod(FAR), PodKv::default());
    }

    #[test]
    fn a_sender_on_this_node_counts_exactly_and_others_share_the_rest() {
        let near = PairKey { pod: NEAR, peer: DECODE, class: CLASS_KV };
        let mut pairs = BTreeMap::from([
            (from(NEAR), open(1)),
            (near, PairRates { sent: 9, tx: 1e9, retransmits: 2.0, ..open(1) }),
        ]);
        let kv = KvRates::new(&pairs, |_| Some(1.1e9));
        assert_eq!((kv.of_pod(NEAR).tx, kv.of_pod(NEAR).retransmits), (1e9, 2.0));
        assert_eq!(kv.of_pod(DECODE).rx, Measured::exact(1e9), "what is sent twice counts once");
        pairs.insert(from(FAR), open(1));
        let kv = KvRates::new(&pairs, |_| Some(3e9));
        assert_eq!(kv.of_pod(DECODE).rx, Measured::estimated(3e9));
        assert_eq!(kv.received(&from(NEAR)), Measured::exact(1e9));
        assert_eq!(kv.received(&from(FAR)), Measured::estimated(2e9));
        // Traffic that stays on the node passes no interface of the host.
        assert_eq!(KvRates::new(&pairs, |_| Some(0.0)).of_pod(DECODE).rx, Measured::estimated(1e9));
        // Older than the programs: the bytes of its sockets are not counted.
        pairs.insert(near, PairRates { sent: 9, tx: 1e9, preexisting: 1, ..open(1) });
        assert_eq!(
            KvRates::new(&pairs, |_| Some(3e9)).received(&from(NEAR)),
            Measured::estimated(1.5e9)
        );
    }

    #[test]
    fn ended_connections_share_by_the_bytes_they_moved() {
        let ended = |rx| PairRates { rx, ..open(0) };
        let pairs = BTreeMap::from([(from(FAR), ended(1e6)), (from(FARTHER), ended(3e6))]);
        let kv = KvRates::new(&pairs, |_| Some(8e6));
        assert_eq!(kv.of_pod(DECODE).rx, Measured::estimated(8e6));
        assert_eq!(kv.received(&from(FARTHER)), Measured::estimated(6e6));
    }

    #[test]
    fn the_rate_is_unknown_if_packets_are_not_seen_and_a_connection_is_open() {
        let pairs = |rates| BTreeMap::from([(from(FAR), rates)]);
        let kv = KvRates::new(&pairs(open(1)), |_| None);
        assert_eq!(
            (kv.of_pod(DECODE).rx, kv.received(&from(FAR))),
            (Measured::unknown(), Measured::unknown())
        );
        assert_eq!(KvRates::new(&pairs(open(0)), |_| None).of_pod(DECODE).rx, Measured::exact(0.0));
        let engine = PairKey { class: CLASS_ENGINE, ..from(FAR) };
        let kv = KvRates::new(&BTreeMap::from([(engine, open(1))]), |_| None);
        assert_eq!(kv.of_pod(DECODE).rx, Measured::exact(0.0), "no KV cache at all");
    }
}
