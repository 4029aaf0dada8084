//! [`AgentState`]: applies the frames of one agent to the workers that they describe.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use router_core::fleet::Role;
use router_core::frame::{Body, Class, Frame, MAX_PODS, PairRecord, PodRecord};

use super::kv_pairs::{KvPair, KvPairs};
use super::pod_state::{FrameContext, PodState, transfer_totals};
use super::pod_workers::PodWorkers;
use crate::scheduler_view::SchedulerView;

/// Minimum interval between two refreshes of the workers' load timestamps: a sixth of the time
/// after which a load is stale.
const REFRESH_INTERVAL_US: u64 = 50_000;

/// Why a frame does not continue the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SequenceError {
    #[error("the stream does not begin with a full frame")]
    NoFullFrame,
    #[error("sequence gap: frame {found} follows {last}")]
    Gap { last: u64, found: u64 },
    #[error("the agent's instance changed within the stream")]
    Instance,
    #[error("the agent reports more than {MAX_PODS} pods")]
    TooManyPods,
}

/// Records of a frame that no worker took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SkippedRecords {
    /// Records of pods that belong to no pool.
    pub(super) unknown_pod: u64,
    /// Records of pods on another node than the agent's.
    pub(super) other_node: u64,
}

/// What one agent has reported. Bounded by [`MAX_PODS`].
#[derive(Debug, Default)]
pub(super) struct AgentState {
    /// The agent's node according to the configuration source.
    node: Option<Arc<str>>,
    /// The node's name according to the agent.
    pub(super) reported_node: String,
    pub(super) instance: u64,
    sequence: Option<u64>,
    generation: u64,
    pods: HashMap<u64, PodState>,
    kv_pairs: KvPairs,
    /// Timestamp of the last refresh propagated to the workers.
    refreshed_us: u64,
}

impl AgentState {
    pub(super) fn new(node: Option<Arc<str>>) -> AgentState {
        AgentState { node, ..AgentState::default() }
    }

    /// Applies a frame that arrived at `now_us`.
    ///
    /// # Errors
    /// The frame does not follow the last one: the gateway must reconnect.
    pub(super) fn apply_frame(
        &mut self,
        frame: Frame,
        workers: &PodWorkers,
        view: &SchedulerView,
        now_us: u64,
    ) -> Result<SkippedRecords, SequenceError> {
        let Frame { instance, sequence, read_age_us, body, .. } = frame;
        self.check_sequence(instance, sequence, &body)?;
        let valid_us = now_us.saturating_sub(u64::from(read_age_us));
        self.kv_pairs.apply(&body, valid_us);
        let mut skipped = SkippedRecords::default();
        let (changed, pairs) = match body {
            Body::Heartbeat => (Vec::new(), Vec::new()),
            Body::Delta(delta) => {
                delta.gone_pods.into_iter().for_each(|pod| self.remove(pod));
                (delta.pods, delta.pairs)
            }
            Body::Full(report) => {
                let stays = |pod: &u64| report.pods.iter().any(|record| record.pod == *pod);
                let gone: Vec<u64> = self.pods.keys().copied().filter(|pod| !stays(pod)).collect();
                gone.into_iter().for_each(|pod| self.remove(pod));
                self.reported_node = report.node;
                (report.pods, report.pairs)
            }
        };
        let context = FrameContext { now_us, valid_us, view };
        // Re-resolve the workers first: the records below refer to the new snapshot.
        if self.generation != workers.generation {
            self.generation = workers.generation;
            self.resolve_workers(workers, &context);
        }
        for record in changed {
            self.update_pod(record, workers, &context, &mut skipped)?;
        }
        if valid_us >= self.refreshed_us + REFRESH_INTERVAL_US {
            self.refreshed_us = valid_us;
            self.pods.values().for_each(|pod| pod.refresh(valid_us));
        }
        self.update_links(&pairs, workers, view, now_us);
        Ok(skipped)
    }

    /// Ends the stream: the loads age from now on, and the next stream must begin with a full
    /// frame.
    pub(super) fn end_stream(&mut self) {
        self.sequence = None;
    }

    fn check_sequence(
        &mut self,
        instance: u64,
        sequence: u64,
        body: &Body,
    ) -> Result<(), SequenceError> {
        let is_full = matches!(body, Body::Full(_));
        match self.sequence {
            None if !is_full => return Err(SequenceError::NoFullFrame),
            Some(_) if instance != self.instance => return Err(SequenceError::Instance),
            Some(last) if !is_full && Some(sequence) != last.checked_add(1) => {
                return Err(SequenceError::Gap { last, found: sequence });
            }
            _ => {}
        }
        (self.instance, self.sequence) = (instance, Some(sequence));
        Ok(())
    }

    fn remove(&mut self, pod: u64) {
        let removed = self.pods.remove(&pod);
        let workers = removed.iter().flat_map(|pod| &pod.workers);
        workers.for_each(|pod_worker| pod_worker.worker.load.clear());
    }

    fn update_pod(
        &mut self,
        record: PodRecord,
        workers: &PodWorkers,
        context: &FrameContext<'_>,
        skipped: &mut SkippedRecords,
    ) -> Result<(), SequenceError> {
        let is_full = self.pods.len() >= MAX_PODS;
        let pod = match self.pods.entry(record.pod) {
            Entry::Occupied(pod) => pod.into_mut(),
            Entry::Vacant(_) if is_full => return Err(SequenceError::TooManyPods),
            Entry::Vacant(new) => {
                let mut pod = PodState::new(record.pod, self.node.as_ref(), workers);
                pod.counted = transfer_totals(&record);
                new.insert(pod)
            }
        };
        pod.record = record;
        match (pod.workers.is_empty(), pod.is_in_pool) {
            (false, _) => pod.update_workers(context),
            (true, false) => skipped.unknown_pod += 1,
            (true, true) => skipped.other_node += 1,
        }
        Ok(())
    }

    /// Finds the pods' workers in a new snapshot and gives them the last records.
    fn resolve_workers(&mut self, workers: &PodWorkers, context: &FrameContext<'_>) {
        for (id, pod) in &mut self.pods {
            let PodState { workers, is_in_pool, .. } =
                PodState::new(*id, self.node.as_ref(), workers);
            (pod.workers, pod.is_in_pool) = (workers, is_in_pool);
            pod.update_workers(context);
        }
    }

    /// The last record of every pod.
    pub(super) fn records(&self) -> impl ExactSizeIterator<Item = &PodRecord> {
        self.pods.values().map(|pod| &pod.record)
    }

    /// The last record of one pod.
    pub(super) fn record(&self, pod: u64) -> Option<&PodRecord> {
        self.pods.get(&pod).map(|pod| &pod.record)
    }

    /// The last records of the pairs that exchange KV cache.
    pub(super) fn kv_pairs(&self, now_us: u64) -> impl Iterator<Item = KvPair> {
        self.kv_pairs.all(now_us)
    }

    /// Adds round trips and transfer speeds of pairs to the estimates of their links.
    fn update_links(
        &self,
        pairs: &[PairRecord],
        workers: &PodWorkers,
        view: &SchedulerView,
        now_us: u64,
    ) {
        let kv = pairs.iter().filter(|pair| pair.key.class == Class::Kv && pair.key.peer != 0);
        let mut links = None;
        for pair in kv {
            let now_ms = now_us.saturating_sub(u64::from(pair.age_us)) / 1000;
            let own = self.pods.get(&pair.key.pod).map_or(&[][..], |pod| &pod.workers);
            for own in own {
                for peer in workers.of_pod(pair.key.peer) {
                    let (prefill, decode) = match (own.role, peer.role) {
                        (Role::Prefill, Role::Decode) => (own, peer),
                        (Role::Decode, Role::Prefill) => (peer, own),
                        _ => continue,
                    };
                    let (p, d) = (prefill.worker.identity, decode.worker.identity);
                    let links = links.get_or_insert_with(|| view.links());
                    if let Some(rtt_us) = pair.rtt_us.value() {
                        links.on_round_trip(p, d, rtt_us, now_ms);
                    }
                    let speed = pair.transfer_bytes_per_s.value();
                    if let Some(speed) = speed.filter(|_| own.role == Role::Prefill) {
                        let ms = pair.transfer_us as f32 / 1000.0;
                        links.on_transfer(p, d, speed / 1000.0 * ms, ms, now_ms);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use router_core::fleet::{
        Fleet, Member, ObjectName, Phase, Pool, Profile, Usage, Worker, WorkerKey,
    };
    use router_core::frame::{Delta, LoadReport, PairId, pod_id};
    use router_core::provenance::Measured;
    use router_core::schedule::Policy;

    use super::super::pod_state::OVERHEAD_BYTES;
    use super::*;
    use crate::clock::MonotonicClock;

    fn view() -> SchedulerView {
        SchedulerView::new(Policy::Predicted, MonotonicClock::start(), Duration::from_secs(1))
    }

    fn member(name: &str, role: Role, node: &str) -> Member {
        let key = WorkerKey { uid: name.into(), address: ([127, 0, 0, 1], 8000).into() };
        let worker = Arc::new(Worker::new(key, name));
        let (bootstrap, group, engine_info) = (None, None, None);
        Member {
            worker,
            role,
            phase: Phase::Ready,
            bootstrap,
            group,
            engine_info,
            node: Some(node.into()),
        }
    }

    fn fleet(members: Vec<Member>) -> Fleet {
        let name = ObjectName { namespace: "default".into(), name: "pool".into() };
        let pools = vec![Arc::new(Pool::new(name, Profile::Pd, members))];
        Fleet { generation: 1, pools, ..Fleet::default() }
    }

    fn pod(name: &str, in_flight: u32) -> PodRecord {
        PodRecord { pod: pod_id(name), in_flight, ..PodRecord::default() }
    }

    fn full(sequence: u64, pods: Vec<PodRecord>) -> Frame {
        let body = Body::Full(LoadReport { pods, ..LoadReport::default() });
        Frame { sequence, body, ..Frame::default() }
    }

    #[test]
    fn own_requests_at_the_time_of_measurement_are_subtracted() {
        let fleet = fleet(vec![member("p", Role::Prefill, "n")]);
        let (workers, view) = (PodWorkers::of(&fleet), view());
        let worker = fleet.workers().next().unwrap();
        let own = Usage { exchanges: 3, wire_bytes: 1_000, ..Usage::default() };
        worker.lease_history.record(100, own);
        // Two of them ended after the kernel was read.
        worker.lease_history.record(190, Usage { exchanges: 1, ..Usage::default() });
        let record = PodRecord { age_us: 50_000, waiting_bytes: 10_000, ..pod("p", 5) };
        let mut agent = AgentState::new(None);
        agent.apply_frame(full(1, vec![record]), &workers, &view, 200_000).unwrap();
        let load = worker.load.get(200_000).unwrap();
        assert_eq!(load.others_requests, 2.0);
        assert_eq!(load.others_waiting_bytes, 10_000.0 - 1_000.0 - 3.0 * OVERHEAD_BYTES as f32);
        assert_eq!(load.age_ms, 0.0, "the frame confirms the value as of its arrival");
    }

    #[test]
    fn a_heartbeat_refreshes_loads_and_silence_makes_them_stale() {
        let fleet = fleet(vec![member("p", Role::Prefill, "n")]);
        let (workers, view) = (PodWorkers::of(&fleet), view());
        let worker = fleet.workers().next().unwrap();
        let mut agent = AgentState::new(None);
        agent.apply_frame(full(1, vec![pod("p", 1)]), &workers, &view, 1_000_000).unwrap();
        let beat = Frame { sequence: 2, read_age_us: 5_000, ..Frame::default() };
        agent.apply_frame(beat, &workers, &view, 1_200_000).unwrap();
        assert_eq!(worker.load.get(1_210_000).unwrap().age_ms, 15.0);
        assert!(worker.load.get(1_500_000).unwrap().is_stale());
        // Not every frame refreshes the loads; a load appears at most 50 ms too old.
        for (sequence, now_us, age_ms) in [(3, 1_244_000, 49.0), (4, 1_245_000, 0.0)] {
            let beat = Frame { sequence, ..Frame::default() };
            agent.apply_frame(beat, &workers, &view, now_us).unwrap();
            assert_eq!(worker.load.get(now_us).unwrap().age_ms, age_ms);
        }
    }

    #[test]
    fn a_gap_or_another_instance_is_a_sequence_error() {
        let (workers, view) = (PodWorkers::default(), view());
        let mut agent = AgentState::new(None);
        let beat = |sequence| Frame { sequence, ..Frame::default() };
        let apply = |agent: &mut AgentState, frame| agent.apply_frame(frame, &workers, &view, 1);
        assert_eq!(apply(&mut agent, beat(1)), Err(SequenceError::NoFullFrame));
        apply(&mut agent, full(5, Vec::new())).unwrap();
        apply(&mut agent, beat(6)).unwrap();
        assert_eq!(apply(&mut agent, beat(8)), Err(SequenceError::Gap { last: 6, found: 8 }));
        // A full frame closes the gap.
        apply(&mut agent, full(9, Vec::new())).unwrap();
        let other = Frame { instance: 1, ..beat(10) };
        assert_eq!(apply(&mut agent, other), Err(SequenceError::Instance));
    }

    #[test]
    fn records_of_other_nodes_and_unknown_pods_are_skipped_and_counted() {
        let fleet =
            fleet(vec![member("p", Role::Prefill, "here"), member("q", Role::Prefill, "there")]);
        let (workers, view) = (PodWorkers::of(&fleet), view());
        let mut agent = AgentState::new(Some("here".into()));
        let records = vec![pod("p", 1), pod("q", 1), pod("unknown", 1)];
        let skipped = agent.apply_frame(full(1, records), &workers, &view, 1_000).unwrap();
        assert_eq!(skipped, SkippedRecords { unknown_pod: 1, other_node: 1 });
        let known: Vec<bool> =
            fleet.workers().map(|worker| worker.load.get(1_000).is_some()).collect();
        assert_eq!(known, [true, false]);
    }

    #[test]
    fn a_late_worker_gets_the_last_report() {
        let (workers, view) = (PodWorkers::default(), view());
        let mut agent = AgentState::new(None);
        agent.apply_frame(full(1, vec![pod("p", 7)]), &workers, &view, 1_000).unwrap();
        let fleet = fleet(vec![member("p", Role::Prefill, "n")]);
        let beat = Frame { sequence: 2, ..Frame::default() };
        let mut later = PodWorkers::of(&fleet);
        agent.apply_frame(beat, &later, &view, 2_000).unwrap();
        let worker = fleet.workers().next().unwrap();
        assert_eq!(worker.load.get(2_000).unwrap().others_requests, 7.0);
        let delta = Delta { gone_pods: vec![pod_id("p")], ..Delta::default() };
        let gone = Frame { sequence: 3, body: Body::Delta(delta), ..Frame::default() };
        agent.apply_frame(gone, &later, &view, 3_000).unwrap();
        assert_eq!(worker.load.get(3_000), None);
        // A record in the first frame after a new snapshot is matched to that snapshot.
        agent.apply_frame(full(4, vec![pod("q", 1)]), &later, &view, 4_000).unwrap();
        later = PodWorkers::of(&self::fleet(vec![member("q", Role::Prefill, "n")]));
        later.generation += 1;
        let delta = Delta { pods: vec![pod("q", 2)], ..Delta::default() };
        let known = Frame { sequence: 5, body: Body::Delta(delta), ..Frame::default() };
        assert_eq!(agent.apply_frame(known, &later, &view, 5_000), Ok(SkippedRecords::default()));
    }

    #[test]
    fn a_round_trip_between_prefill_and_decode_moves_their_link_whichever_end_reports_it() {
        for (own, peer) in [("p", "d"), ("d", "p")] {
            let fleet =
                fleet(vec![member("p", Role::Prefill, "n"), member("d", Role::Decode, "n")]);
            let (workers, view) = (PodWorkers::of(&fleet), view());
            let [p, d] = [0, 1].map(|at| fleet.workers().nth(at).unwrap().identity);
            let rtt_us = |from, to| view.links().get(from, to, view.assumptions.link, 1_000).rtt_us;
            let before = rtt_us(p, d);
            let key = PairId { pod: pod_id(own), peer: pod_id(peer), class: Class::Kv };
            let pair =
                PairRecord { key, rtt_us: Measured::exact(9_000.0), ..PairRecord::default() };
            let pods = vec![pod("p", 0), pod("d", 0)];
            let body = Body::Full(LoadReport { pods, pairs: vec![pair], ..LoadReport::default() });
            let frame = Frame { sequence: 1, body, ..Frame::default() };
            AgentState::new(None).apply_frame(frame, &workers, &view, 1_000_000).unwrap();
            assert!(rtt_us(p, d) > 10.0 * before, "from {own}");
            assert_eq!(rtt_us(d, p), before, "from {own}: links have a direction");
        }
    }

    #[test]
    fn growth_of_requests_and_kv_bytes_is_the_pools_kv_size_and_totals_are_not() {
        let fleet = fleet(vec![member("p", Role::Prefill, "n")]);
        let (workers, view) = (PodWorkers::of(&fleet), view());
        let pool = Arc::clone(&fleet.pools[0].rate_estimators);
        let prior = view.assumptions.rates;
        let kv_bytes_per_byte = || pool.rates(&prior, 1_000).kv_bytes_per_byte;
        let mut agent = AgentState::new(None);
        let mut apply = |sequence, request_bytes, kv_tx_bytes| {
            let pod = PodRecord { request_bytes, kv_tx_bytes, ..pod("p", 0) };
            agent.apply_frame(full(sequence, vec![pod]), &workers, &view, 1_000_000).unwrap();
        };
        // Totals since the agent started: the gateway saw none of it.
        apply(1, 1 << 20, 1 << 40);
        assert_eq!(kv_bytes_per_byte(), prior.kv_bytes_per_byte);
        apply(2, 1 << 21, (1 << 40) + (1_000 << 20));
        let learned = kv_bytes_per_byte();
        assert!((1_000.0..10_000.0).contains(&learned), "{learned}");
    }
}
