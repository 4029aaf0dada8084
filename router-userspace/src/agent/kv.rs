//! How fast pods move KV cache. The sockets that send it count it, live and exactly; where those are
//! on another node, the packets that arrive on ports of KV cache tell how much comes, and what is
//! open between which pods tells from whom.

use std::collections::BTreeMap;

use router_common::flow::{CLASS_KV, PairKey};
use router_core::provenance::Measured;

/// What a pair moved in the last moment, as its sockets tell.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Moves {
    /// Sent since the pair is known, and a second.
    pub(super) sent: u64,
    pub(super) tx: f64,
    /// What ended connections received, a second: those that are open tell nothing.
    pub(super) rx: f64,
    pub(super) retransmits: f64,
    pub(super) open: u64,
    /// Connections older than the programs: their bytes are in no count.
    pub(super) seeded: u64,
}

/// What a pod's pairs add up to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct PodKv {
    /// KV cache that it sent since it is known, and what it sends and receives a second.
    pub(super) sent: u64,
    pub(super) tx: f64,
    pub(super) rx: Measured<f32>,
    /// Of anything, not of KV cache alone.
    pub(super) retransmits: f64,
}

impl Default for PodKv {
    fn default() -> PodKv {
        PodKv { sent: 0, tx: 0.0, rx: Measured::exact(0.0), retransmits: 0.0 }
    }
}

/// What every pod and pair moves.
#[derive(Debug, Default)]
pub(super) struct Kv {
    pods: BTreeMap<u32, PodKv>,
    received: BTreeMap<PairKey, Measured<f32>>,
}

impl Kv {
    /// `arriving` is what comes to a pod on ports of KV cache a second; `None` if the node sees no
    /// packet of the pod.
    pub(super) fn of(
        pairs: &BTreeMap<PairKey, Moves>,
        arriving: impl Fn(u32) -> Option<f64>,
    ) -> Kv {
        let mut kv = Kv::default();
        let mut receivers: BTreeMap<u32, Vec<(PairKey, &Moves)>> = BTreeMap::new();
        for (key, moves) in pairs {
            let pod = kv.pods.entry(key.pod).or_default();
            pod.retransmits += moves.retransmits;
            if key.class == CLASS_KV {
                pod.sent += moves.sent;
                pod.tx += moves.tx;
                receivers.entry(key.pod).or_default().push((*key, moves));
            }
        }
        for (id, own) in receivers {
            let rx = kv.receives(pairs, &own, arriving(id));
            kv.pods.entry(id).or_default().rx = rx;
        }
        kv
    }

    /// What a pod receives, and from whom.
    fn receives(
        &mut self,
        pairs: &BTreeMap<PairKey, Moves>,
        own: &[(PairKey, &Moves)],
        arriving: Option<f64>,
    ) -> Measured<f32> {
        let mut told = 0.0;
        let mut others = Vec::new();
        for (key, moves) in own {
            let sender = PairKey { pod: key.peer, peer: key.pod, class: CLASS_KV };
            match pairs.get(&sender).filter(|sender| sender.sent > 0 && sender.seeded == 0) {
                Some(sender) => {
                    told += sender.tx;
                    self.received.insert(*key, Measured::exact(sender.tx as f32));
                }
                None => others.push((*key, *moves)),
            }
        }
        let open: u64 = others.iter().map(|(_, moves)| moves.open).sum();
        let rest = match arriving {
            _ if others.is_empty() => return Measured::exact(told as f32),
            Some(arriving) => Measured::estimated((arriving - told).max(0.0) as f32),
            None if open > 0 => Measured::unknown(),
            None => Measured::exact(0.0),
        };
        // Each connection as much as another; those that just ended as much as they moved.
        let weight = |moves: &Moves| if open > 0 { moves.open as f64 } else { moves.rx };
        let all: f64 = others.iter().map(|(_, moves)| weight(moves)).sum();
        for (key, moves) in others {
            let share = if all > 0.0 { weight(moves) / all } else { 0.0 };
            let received = rest.map(|rest| (f64::from(rest) * share) as f32);
            self.received.insert(key, received);
        }
        rest.map(|rest| told as f32 + rest)
    }

    pub(super) fn of_pod(&self, id: u32) -> PodKv {
        self.pods.get(&id).copied().unwrap_or_default()
    }

    /// What the pod of a pair receives of it.
    pub(super) fn received(&self, key: &PairKey) -> Measured<f32> {
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

    fn open(open: u64) -> Moves {
        Moves { open, ..Moves::default() }
    }

    #[test]
    fn what_comes_from_elsewhere_is_divided_by_connections() {
        let pairs = BTreeMap::from([(from(FAR), open(3)), (from(FARTHER), open(1))]);
        let kv = Kv::of(&pairs, |_| Some(4e9));
        assert_eq!(kv.of_pod(DECODE).rx, Measured::estimated(4e9));
        assert_eq!(kv.received(&from(FAR)), Measured::estimated(3e9));
        assert_eq!(kv.received(&from(FARTHER)), Measured::estimated(1e9));
        assert_eq!(kv.of_pod(FAR), PodKv::default());
    }

    #[test]
    fn a_sender_on_this_node_is_believed_and_the_others_have_the_rest() {
        let near = PairKey { pod: NEAR, peer: DECODE, class: CLASS_KV };
        let mut pairs = BTreeMap::from([
            (from(NEAR), open(1)),
            (near, Moves { sent: 9, tx: 1e9, retransmits: 2.0, ..open(1) }),
        ]);
        let kv = Kv::of(&pairs, |_| Some(1.1e9));
        assert_eq!((kv.of_pod(NEAR).tx, kv.of_pod(NEAR).retransmits), (1e9, 2.0));
        assert_eq!(kv.of_pod(DECODE).rx, Measured::exact(1e9), "what is sent twice counts once");
        pairs.insert(from(FAR), open(1));
        let kv = Kv::of(&pairs, |_| Some(3e9));
        assert_eq!(kv.of_pod(DECODE).rx, Measured::estimated(3e9));
        assert_eq!(kv.received(&from(NEAR)), Measured::exact(1e9));
        assert_eq!(kv.received(&from(FAR)), Measured::estimated(2e9));
        // No packet of the host's own wire shows what stays on the node.
        assert_eq!(Kv::of(&pairs, |_| Some(0.0)).of_pod(DECODE).rx, Measured::estimated(1e9));
        // Older than the programs: its sockets' bytes are in no count.
        pairs.insert(near, Moves { sent: 9, tx: 1e9, seeded: 1, ..open(1) });
        assert_eq!(Kv::of(&pairs, |_| Some(3e9)).received(&from(NEAR)), Measured::estimated(1.5e9));
    }

    #[test]
    fn connections_that_just_ended_are_divided_by_what_they_moved() {
        let ended = |rx| Moves { rx, ..open(0) };
        let pairs = BTreeMap::from([(from(FAR), ended(1e6)), (from(FARTHER), ended(3e6))]);
        let kv = Kv::of(&pairs, |_| Some(8e6));
        assert_eq!(kv.of_pod(DECODE).rx, Measured::estimated(8e6));
        assert_eq!(kv.received(&from(FARTHER)), Measured::estimated(6e6));
    }

    #[test]
    fn what_no_packet_shows_is_unknown_while_something_may_come() {
        let pairs = |moves| BTreeMap::from([(from(FAR), moves)]);
        let kv = Kv::of(&pairs(open(1)), |_| None);
        assert_eq!(
            (kv.of_pod(DECODE).rx, kv.received(&from(FAR))),
            (Measured::unknown(), Measured::unknown())
        );
        assert_eq!(Kv::of(&pairs(open(0)), |_| None).of_pod(DECODE).rx, Measured::exact(0.0));
        let engine = PairKey { class: CLASS_ENGINE, ..from(FAR) };
        let kv = Kv::of(&BTreeMap::from([(engine, open(1))]), |_| None);
        assert_eq!(kv.of_pod(DECODE).rx, Measured::exact(0.0), "no KV cache at all");
    }
}
