//! Who holds a device's queue pairs, and whose what the device moved therefore is.

use std::collections::BTreeMap;

use serde::Serialize;

use router_core::provenance::{Measured, Provenance};

use super::owner::{Owner, Owners};
use super::parse::QueuePair;

/// Owners that are told apart on one device; what the others moved is nobody's.
const OWNERS: usize = 1_024;
/// `enum ib_qp_type`: the management queue pairs that every port has.
const MANAGEMENT: [u8; 2] = [0, 1];
/// `enum ib_qp_state`.
const READY_TO_RECEIVE: u8 = 2;
const READY_TO_SEND: u8 = 3;

/// Queue pairs by state (`enum ib_qp_state`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(in crate::agent) struct States {
    pub(super) reset: u32,
    pub(super) init: u32,
    pub(super) ready_to_receive: u32,
    pub(super) ready_to_send: u32,
    /// Send queue drained, or in error.
    pub(super) send_stopped: u32,
    pub(super) error: u32,
}

impl States {
    fn add(&mut self, state: u8) {
        let slot = match state {
            0 => &mut self.reset,
            1 => &mut self.init,
            READY_TO_RECEIVE => &mut self.ready_to_receive,
            READY_TO_SEND => &mut self.ready_to_send,
            4 | 5 => &mut self.send_stopped,
            _ => &mut self.error,
        };
        *slot += 1;
    }

    /// Those that can move anything: ready to send, or at least to receive.
    pub(super) fn active(&self) -> u32 {
        self.ready_to_send + self.ready_to_receive
    }
}

/// A device's queue pairs by owner, the management ones left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Holders(BTreeMap<Owner, States>);

impl Holders {
    pub(super) fn count(pairs: &[QueuePair], owners: &mut Owners<'_>) -> Holders {
        let mut holders = BTreeMap::<Owner, States>::new();
        for pair in pairs.iter().filter(|pair| !MANAGEMENT.contains(&pair.kind)) {
            let owner = owner_of(pair, owners);
            if let Some(states) = holders.get_mut(owner) {
                states.add(pair.state);
            } else if holders.len() < OWNERS {
                holders.entry(owner.clone()).or_default().add(pair.state);
            }
        }
        Holders(holders)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Owner, &States)> {
        self.0.iter()
    }

    /// Queue pairs that can move anything.
    pub(super) fn active(&self) -> u32 {
        self.0.values().map(States::active).sum()
    }

    /// How much of the device's traffic is this owner's: all of it where nobody else has an active
    /// queue pair, else as many parts as it has of those.
    pub(super) fn share(&self, owner: &Owner) -> Measured<f64> {
        let own = self.0.get(owner).map_or(0, States::active);
        match self.active() {
            0 => Measured::exact(0.0),
            all if own == all => Measured::exact(1.0),
            _ if own == 0 => Measured::exact(0.0),
            all => Measured::estimated(f64::from(own) / f64::from(all)),
        }
    }

    pub(super) fn has(&self, owner: &Owner) -> bool {
        self.0.contains_key(owner)
    }

    /// Both, each owner with the more queue pairs of the two.
    fn with(&self, other: &Holders) -> Holders {
        let mut both = self.0.clone();
        for (owner, states) in &other.0 {
            let known = both.entry(owner.clone()).or_default();
            if states.active() > known.active() {
                *known = *states;
            }
        }
        Holders(both)
    }
}

fn owner_of<'a>(pair: &QueuePair, owners: &'a mut Owners<'_>) -> &'a Owner {
    match pair.pid {
        Some(pid) => owners.of(pid),
        None if pair.is_kernel => &Owner::Kernel,
        None => &Owner::Unseen,
    }
}

/// Bytes that an owner moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Moved {
    pub(super) tx: u64,
    pub(super) rx: u64,
    /// A part of it was split by queue pairs.
    pub(super) is_estimated: bool,
}

impl Moved {
    fn add(&mut self, tx: u64, rx: u64, provenance: Provenance) {
        self.tx = self.tx.wrapping_add(tx);
        self.rx = self.rx.wrapping_add(rx);
        self.is_estimated |= provenance != Provenance::Exact && tx + rx > 0;
    }
}

/// What was moved by whom, since the agent sees the device.
#[derive(Clone, Debug, Default)]
pub(super) struct Ledger {
    entries: BTreeMap<Owner, Moved>,
    /// While nobody had a queue pair that could.
    pub(super) nobodys: Moved,
}

impl Ledger {
    /// Enters what moved between two looks at the queue pairs.
    pub(super) fn settle(
        &mut self,
        before: &Holders,
        after: &Holders,
        (tx, rx): (u64, u64),
        counted: Provenance,
    ) {
        let holders = before.with(after);
        let all = u128::from(holders.active());
        if all == 0 {
            self.nobodys.add(tx, rx, counted);
            return;
        }
        let (mut tx_left, mut rx_left) = (tx, rx);
        for (owner, states) in holders.iter().filter(|(_, states)| states.active() > 0) {
            let part = |whole: u64| {
                let part = u128::from(whole) * u128::from(states.active()) / all;
                u64::try_from(part).unwrap_or(whole)
            };
            let (tx, rx) = (part(tx), part(rx));
            let provenance = holders.share(owner).provenance().and(counted);
            (tx_left, rx_left) = (tx_left - tx, rx_left - rx);
            if self.entries.len() < OWNERS || self.entries.contains_key(owner) {
                self.entries.entry(owner.clone()).or_default().add(tx, rx, provenance);
            } else {
                self.nobodys.add(tx, rx, provenance);
            }
        }
        // What the division left over: less than a byte for each owner.
        if let Some((owner, _)) = holders.iter().find(|(_, states)| states.active() > 0)
            && let Some(moved) = self.entries.get_mut(owner)
        {
            moved.add(tx_left, rx_left, Provenance::Exact);
        }
    }

    pub(super) fn of(&self, owner: &Owner) -> Moved {
        self.entries.get(owner).copied().unwrap_or_default()
    }

    /// Makes room: those that hold nothing go, once there are too many to keep all.
    pub(super) fn make_room(&mut self, holds: impl Fn(&Owner) -> bool) {
        if self.entries.len() >= OWNERS {
            self.entries.retain(|owner, _| holds(owner));
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Owner, &Moved)> {
        self.entries.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str) -> Owner {
        Owner::Pod(name.into())
    }

    fn holders(owners: &[(Owner, u32)]) -> Holders {
        let states = |ready_to_send| States { ready_to_send, ..States::default() };
        Holders(owners.iter().map(|(owner, count)| (owner.clone(), states(*count))).collect())
    }

    #[test]
    fn one_pod_alone_is_exact_and_two_are_split_by_queue_pairs() {
        let alone = holders(&[(pod("a"), 8), (pod("idle"), 0)]);
        assert_eq!(alone.share(&pod("a")), Measured::exact(1.0));
        assert_eq!(alone.share(&pod("idle")), Measured::exact(0.0));
        let both = holders(&[(pod("a"), 6), (pod("b"), 2)]);
        assert_eq!(both.share(&pod("a")), Measured::estimated(0.75));
        assert_eq!(both.share(&pod("b")), Measured::estimated(0.25));
        // The kernel's queue pairs (SMC-R) move bytes too.
        let kernel = holders(&[(pod("a"), 1), (Owner::Kernel, 1)]);
        assert_eq!(kernel.share(&pod("a")).provenance(), Provenance::Estimated);
    }

    #[test]
    fn nothing_is_lost_in_a_split_and_it_stays_an_estimate() {
        let both = holders(&[(pod("a"), 1), (pod("b"), 2)]);
        let mut ledger = Ledger::default();
        ledger.settle(&both, &both, (1_000, 10), Provenance::Exact);
        let (a, b) = (ledger.of(&pod("a")), ledger.of(&pod("b")));
        assert_eq!((a.tx + b.tx, a.rx + b.rx), (1_000, 10));
        assert_eq!(b.tx, 666);
        let alone = holders(&[(pod("a"), 1)]);
        ledger.settle(&alone, &alone, (5, 5), Provenance::Exact);
        assert_eq!(ledger.of(&pod("a")).tx, a.tx + 5);
        assert!(ledger.of(&pod("a")).is_estimated, "a sum with an estimate in it is one");
    }

    #[test]
    fn a_pod_that_came_or_went_between_two_looks_shares_what_moved() {
        let (a, both) = (holders(&[(pod("a"), 4)]), holders(&[(pod("a"), 4), (pod("b"), 4)]));
        let mut ledger = Ledger::default();
        ledger.settle(&a, &both, (100, 0), Provenance::Exact);
        assert!(ledger.of(&pod("a")).is_estimated);
        assert_eq!(ledger.of(&pod("b")).tx, 50);
        let mut ledger = Ledger::default();
        ledger.settle(&a, &Holders::default(), (100, 0), Provenance::Exact);
        assert_eq!(ledger.of(&pod("a")), Moved { tx: 100, rx: 0, is_estimated: false });
        ledger.settle(&Holders::default(), &Holders::default(), (7, 0), Provenance::Exact);
        assert_eq!(ledger.nobodys.tx, 7);
    }

    #[test]
    fn states_are_counted_and_management_is_not() {
        let processes = super::super::owner::Processes::new(std::path::Path::new("/nowhere"));
        let pair = |kind, state| QueuePair { kind, state, is_kernel: true, ..Default::default() };
        let pairs: Vec<QueuePair> =
            [(0, 3), (1, 3), (2, 0), (2, 1), (2, 2), (2, 3), (2, 4), (4, 6)]
                .map(|(kind, state)| pair(kind, state))
                .into();
        let holders = Holders::count(&pairs, &mut Owners::new(&processes));
        let expected = States {
            reset: 1,
            init: 1,
            ready_to_receive: 1,
            ready_to_send: 1,
            send_stopped: 1,
            error: 1,
        };
        assert_eq!(holders.iter().collect::<Vec<_>>(), [(&Owner::Kernel, &expected)]);
        assert_eq!(holders.active(), 2);
    }
}
