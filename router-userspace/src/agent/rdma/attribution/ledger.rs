//! [`Ledger`]: the bytes that each owner of queue pairs moved on one device.

use std::collections::BTreeMap;

use router_core::provenance::Provenance;

use super::qp_owners::{Holders, MAX_OWNERS, Owner};

/// Bytes that one owner sent and received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::agent) struct MovedBytes {
    pub(in crate::agent) tx: u64,
    pub(in crate::agent) rx: u64,
    /// Whether a part was split by queue pairs.
    pub(in crate::agent) is_estimated: bool,
}

impl MovedBytes {
    fn add(&mut self, tx: u64, rx: u64, provenance: Provenance) {
        self.tx = self.tx.wrapping_add(tx);
        self.rx = self.rx.wrapping_add(rx);
        self.is_estimated |= provenance != Provenance::Exact && tx + rx > 0;
    }
}

/// Bytes by owner since the agent first saw the device.
#[derive(Clone, Debug, Default)]
pub(in crate::agent) struct Ledger {
    entries: BTreeMap<Owner, MovedBytes>,
}

impl Ledger {
    /// Attributes the bytes counted between two scans of the queue pairs. Not attributed are bytes while no
    /// owner had an active queue pair, and those of owners beyond [`MAX_OWNERS`].
    pub(in crate::agent) fn attribute(
        &mut self,
        before: &Holders,
        after: &Holders,
        (tx, rx): (u64, u64),
        counted: Provenance,
    ) {
        let holders = before.union(after);
        let all = u128::from(holders.active());
        let (mut tx_left, mut rx_left) = (tx, rx);
        for (owner, states) in holders.iter().filter(|(_, states)| states.active() > 0) {
            let part = |whole: u64| {
                let part = u128::from(whole) * u128::from(states.active()) / all;
                u64::try_from(part).unwrap_or(whole)
            };
            let (tx, rx) = (part(tx), part(rx));
            let provenance = holders.share(owner).provenance().and(counted);
            (tx_left, rx_left) = (tx_left - tx, rx_left - rx);
            if self.entries.len() < MAX_OWNERS || self.entries.contains_key(owner) {
                self.entries.entry(owner.clone()).or_default().add(tx, rx, provenance);
            }
        }
        // The remainder of the division: less than a byte per owner.
        if let Some((owner, _)) = holders.iter().find(|(_, states)| states.active() > 0)
            && let Some(moved) = self.entries.get_mut(owner)
        {
            moved.add(tx_left, rx_left, Provenance::Exact);
        }
    }

    pub(in crate::agent) fn of(&self, owner: &Owner) -> MovedBytes {
        self.entries.get(owner).copied().unwrap_or_default()
    }

    /// Removes owners for which `is_current` is false, once there are [`MAX_OWNERS`].
    pub(in crate::agent) fn evict(&mut self, is_current: impl Fn(&Owner) -> bool) {
        if self.entries.len() >= MAX_OWNERS {
            self.entries.retain(|owner, _| is_current(owner));
        }
    }

    pub(in crate::agent) fn iter(&self) -> impl Iterator<Item = (&Owner, &MovedBytes)> {
        self.entries.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::super::qp_owners::tests::{holders, pod};
    use super::*;

    #[test]
    fn a_split_loses_no_byte_and_stays_estimated() {
        let both = holders(&[(pod("a"), 1), (pod("b"), 2)]);
        let mut ledger = Ledger::default();
        ledger.attribute(&both, &both, (1_000, 10), Provenance::Exact);
        let (a, b) = (ledger.of(&pod("a")), ledger.of(&pod("b")));
        assert_eq!((a.tx + b.tx, a.rx + b.rx), (1_000, 10));
        assert_eq!(b.tx, 666);
        let alone = holders(&[(pod("a"), 1)]);
        ledger.attribute(&alone, &alone, (5, 5), Provenance::Exact);
        assert_eq!(ledger.of(&pod("a")).tx, a.tx + 5);
        assert!(ledger.of(&pod("a")).is_estimated, "a sum with an estimated part is estimated");
    }

    #[test]
    fn a_pod_that_started_or_ended_between_two_scans_shares_the_bytes() {
        let (a, both) = (holders(&[(pod("a"), 4)]), holders(&[(pod("a"), 4), (pod("b"), 4)]));
        let mut ledger = Ledger::default();
        ledger.attribute(&a, &both, (100, 0), Provenance::Exact);
        assert!(ledger.of(&pod("a")).is_estimated);
        assert_eq!(ledger.of(&pod("b")).tx, 50);
        let mut ledger = Ledger::default();
        ledger.attribute(&a, &Holders::default(), (100, 0), Provenance::Exact);
        assert_eq!(ledger.of(&pod("a")), MovedBytes { tx: 100, rx: 0, is_estimated: false });
        ledger.attribute(&Holders::default(), &Holders::default(), (7, 0), Provenance::Exact);
        assert_eq!(ledger.of(&pod("a")).tx, 100, "no pod had a queue pair");
    }
}
