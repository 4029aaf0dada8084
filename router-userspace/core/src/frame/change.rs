//! Deltas between two reports.

use std::cmp::Ordering;

use super::{Delta, DeviceRecord, LatencyRecord, LoadReport, PairId, PairRecord, PodRecord};
use crate::provenance::Measured;

/// Rates in bytes per second and times in microseconds below this are treated as equal.
const NOISE_FLOOR: f32 = 64.0;

/// How much values must differ to count as changed. Measured values always differ a little.
#[derive(Clone, Copy)]
struct Tolerance {
    /// Relative difference of rates and times.
    share: f32,
    /// Absolute difference of scores and utilisations, which are from 0 to 1.
    part: f32,
}

/// For deltas that repeat active records, and for the deltas in between.
const FINE: Tolerance = Tolerance { share: 0.05, part: 0.01 };
const COARSE: Tolerance = Tolerance { share: 0.3, part: 0.1 };

impl LoadReport {
    /// Sorts the records, as [`LoadReport::delta_to`] requires.
    pub fn sort(&mut self) {
        self.pods.sort_by_key(|pod| pod.pod);
        self.pairs.sort_by(|a, b| a.key.cmp(&b.key));
        self.devices.sort_by(|a, b| a.name.cmp(&b.name));
    }

    /// The delta that turns `self` into `newer`; both must be sorted. Rates and times count as changed
    /// if they differ by 30 %. With `repeats` 5 % is enough, and records of active transfers and
    /// streams are included even if they did not change.
    pub fn delta_to(&self, newer: &LoadReport, repeats: bool) -> Delta {
        let mut delta = Delta::default();
        let tolerance = if repeats { FINE } else { COARSE };
        merge(
            &self.pods,
            &newer.pods,
            |a, b| a.pod.cmp(&b.pod),
            |old, new| match new {
                Some(new)
                    if old.is_none_or(|old| {
                        repeats && is_active(new) || tolerance.differs_pod(old, new)
                    }) =>
                {
                    delta.pods.push(new.clone());
                }
                Some(_) => {}
                None => delta.gone_pods.extend(old.map(|old| old.pod)),
            },
        );
        merge(
            &self.pairs,
            &newer.pairs,
            |a, b| a.key.cmp(&b.key),
            |old, new| match new {
                Some(new)
                    if old.is_none_or(|old| {
                        repeats && new.transfer_us > 0 || tolerance.differs_pair(old, new)
                    }) =>
                {
                    delta.pairs.push(new.clone());
                }
                Some(_) => {}
                None => delta.gone_pairs.extend(old.map(|old| old.key.clone())),
            },
        );
        merge(
            &self.devices,
            &newer.devices,
            |a, b| a.name.cmp(&b.name),
            |old, new| {
                if let Some(new) = new
                    && old.is_none_or(|old| tolerance.differs_device(old, new))
                {
                    delta.devices.push(new.clone());
                }
            },
        );
        delta
    }

    /// Applies a delta from [`LoadReport::delta_to`]; the report stays sorted.
    pub fn apply(&mut self, delta: &Delta) {
        upsert(&mut self.pods, &delta.pods, |pod| &pod.pod);
        self.pods.retain(|pod| delta.gone_pods.binary_search(&pod.pod).is_err());
        upsert(&mut self.pairs, &delta.pairs, |pair| &pair.key);
        self.pairs.retain(|pair| delta.gone_pairs.binary_search(&pair.key).is_err());
        upsert(&mut self.devices, &delta.devices, |device| &device.name);
    }

    /// The report with all ages increased by `later_us`.
    #[must_use]
    pub fn aged(mut self, later_us: u32) -> LoadReport {
        let ages = self.pods.iter_mut().map(|pod| &mut pod.age_us);
        let ages = ages.chain(self.pairs.iter_mut().map(|pair| &mut pair.age_us));
        let ages = ages.chain(self.devices.iter_mut().map(|device| &mut device.age_us));
        ages.for_each(|age| *age = age.saturating_add(later_us));
        self
    }
}

impl Delta {
    pub fn is_empty(&self) -> bool {
        self.pods.is_empty()
            && self.pairs.is_empty()
            && self.devices.is_empty()
            && self.gone_pods.is_empty()
            && self.gone_pairs.is_empty()
            && self.rooms.is_empty()
    }
}

impl PartialOrd for PairId {
    fn partial_cmp(&self, other: &PairId) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for PairId {
    fn cmp(&self, other: &PairId) -> Ordering {
        (self.pod, self.peer, self.class).cmp(&(other.pod, other.peer, other.class))
    }
}

/// Inserts records into a sorted list, or replaces those with the same key.
fn upsert<T: Clone, K: Ord>(list: &mut Vec<T>, records: &[T], key: impl Fn(&T) -> &K) {
    for record in records {
        match list.binary_search_by(|known| key(known).cmp(key(record))) {
            Ok(at) => list[at] = record.clone(),
            Err(at) => list.insert(at, record.clone()),
        }
    }
}

/// Walks two sorted lists in parallel and calls `each` with every record and its counterpart.
fn merge<T>(
    older: &[T],
    newer: &[T],
    order: impl Fn(&T, &T) -> Ordering,
    mut each: impl FnMut(Option<&T>, Option<&T>),
) {
    let (mut older, mut newer) = (older.iter().peekable(), newer.iter().peekable());
    loop {
        let turn = match (older.peek(), newer.peek()) {
            (None, None) => return,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(old), Some(new)) => order(old, new),
        };
        let old = if turn.is_le() { older.next() } else { None };
        let new = if turn.is_ge() { newer.next() } else { None };
        each(old, new);
    }
}

/// Whether an unchanged record is still evidence of the pod's speed.
fn is_active(pod: &PodRecord) -> bool {
    pod.itl.samples > 0 || pod.kv_tx_bytes_per_s.value > NOISE_FLOOR
}

impl Tolerance {
    fn differs_pod(self, old: &PodRecord, new: &PodRecord) -> bool {
        let counts =
            |pod: &PodRecord| (pod.in_flight, pod.waiting, pod.streaming, pod.waiting_bytes);
        let values = |pod: &PodRecord| {
            [
                pod.tx_bytes_per_s,
                pod.rx_bytes_per_s,
                pod.retransmits_per_s,
                pod.kv_tx_bytes_per_s,
                pod.kv_rx_bytes_per_s,
                pod.rdma_tx_bytes_per_s,
                pod.rdma_rx_bytes_per_s,
                pod.link_bytes_per_s,
                pod.link_tx_used_bytes_per_s,
                pod.link_rx_used_bytes_per_s,
            ]
        };
        counts(old) != counts(new)
            || self.differs_latency(&old.ttft, &new.ttft)
            || self.differs_latency(&old.itl, &new.itl)
            || values(old).iter().zip(&values(new)).any(|(old, new)| self.differs_value(*old, *new))
            || self.differs_part(old.score, new.score)
    }

    fn differs_pair(self, old: &PairRecord, new: &PairRecord) -> bool {
        old.open != new.open
            || self.differs(old.tx_bytes_per_s, new.tx_bytes_per_s)
            || self.differs(old.rx_bytes_per_s, new.rx_bytes_per_s)
            || self.differs(old.retransmits_per_s, new.retransmits_per_s)
            || self.differs_value(old.rtt_us, new.rtt_us)
            || self.differs_value(old.transfer_bytes_per_s, new.transfer_bytes_per_s)
            || (old.transfer_us > 0) != (new.transfer_us > 0)
    }

    fn differs_device(self, old: &DeviceRecord, new: &DeviceRecord) -> bool {
        old.kind != new.kind
            || self.differs_value(old.speed_bytes_per_s, new.speed_bytes_per_s)
            || self.differs_value(old.tx_bytes_per_s, new.tx_bytes_per_s)
            || self.differs_value(old.rx_bytes_per_s, new.rx_bytes_per_s)
            || self.differs_part(old.utilisation, new.utilisation)
    }

    fn differs_latency(self, old: &LatencyRecord, new: &LatencyRecord) -> bool {
        (old.samples > 0) != (new.samples > 0) || self.differs(old.mean_us, new.mean_us)
    }

    fn differs_value(self, old: Measured<f32>, new: Measured<f32>) -> bool {
        old.provenance != new.provenance || self.differs(old.value, new.value)
    }

    fn differs_part(self, old: Measured<f32>, new: Measured<f32>) -> bool {
        old.provenance != new.provenance || (old.value - new.value).abs() > self.part
    }

    fn differs(self, old: f32, new: f32) -> bool {
        (old - new).abs() > self.share * old.max(new) && old.max(new) > NOISE_FLOOR
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(pod: u64, in_flight: u32) -> PodRecord {
        PodRecord { pod, in_flight, ..PodRecord::default() }
    }

    fn report(pods: Vec<PodRecord>) -> LoadReport {
        let mut report = LoadReport { pods, ..LoadReport::default() };
        report.sort();
        report
    }

    #[test]
    fn a_delta_has_new_changed_and_gone_records_only() {
        let older = report(vec![pod(1, 0), pod(2, 5), pod(3, 1)]);
        let newer = report(vec![pod(4, 0), pod(2, 6), pod(1, 0)]);
        let delta = older.delta_to(&newer, false);
        let sent: Vec<u64> = delta.pods.iter().map(|pod| pod.pod).collect();
        assert_eq!((sent, delta.gone_pods.clone()), (vec![2, 4], vec![3]));
        let mut known = older;
        known.apply(&delta);
        assert_eq!(known, newer);
        assert!(known.delta_to(&newer, false).is_empty());
    }

    #[test]
    fn noise_is_no_change_and_active_records_repeat_on_request() {
        let rate = |value| PairRecord { tx_bytes_per_s: value, ..PairRecord::default() };
        let with = |pair| LoadReport { pairs: vec![pair], ..LoadReport::default() };
        let older = with(rate(1e6));
        assert!(older.delta_to(&with(rate(1.03e6)), true).is_empty());
        assert!(!older.delta_to(&with(rate(1.2e6)), true).is_empty());
        assert!(older.delta_to(&with(rate(1.2e6)), false).is_empty());
        assert!(!older.delta_to(&with(rate(1.6e6)), false).is_empty());
        let moving = with(PairRecord { transfer_us: 9, ..rate(1e6) });
        assert!(moving.delta_to(&moving, false).is_empty());
        assert_eq!(moving.delta_to(&moving, true).pairs.len(), 1);
    }

    proptest::proptest! {
        #[test]
        fn applied_deltas_give_the_same_pods_and_counts(
            steps in proptest::collection::vec(
                proptest::collection::btree_map(0u64..12, 0u32..4, 0..8), 1..10),
        ) {
            let mut known = LoadReport::default();
            for step in steps {
                let newer = report(step.into_iter().map(|(id, count)| pod(id, count)).collect());
                let delta = known.delta_to(&newer, false);
                known.apply(&delta);
                proptest::prop_assert_eq!(&known, &newer);
            }
        }
    }
}
