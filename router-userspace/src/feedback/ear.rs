//! [`Ear`]: takes in what one agent tells, and passes it on to the workers that it tells of.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use router_core::fleet::Role;
use router_core::frame::{Body, Class, Frame, MAX_PODS, PairRecord, PodRecord};

use super::targets::Targets;
use super::told::{Now, Told, evidence};
use crate::scheduler_view::SchedulerView;

/// What was told is said to hold no more often than this, though each frame says so: a sixth of the time after which
/// a load is stale.
const HOLDS_EVERY_US: u64 = 50_000;

/// Why a stream cannot be followed any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Lost {
    #[error("the stream does not begin with a full report")]
    NoReport,
    #[error("frame {found} follows {last}")]
    Gap { last: u64, found: u64 },
    #[error("another instance of the agent speaks")]
    Instance,
    #[error("it tells of more than {MAX_PODS} pods")]
    TooManyPods,
}

/// What became of a frame's records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Heard {
    /// Records of pods of no pool here, and of pods of another node than the agent's.
    pub(super) unknown: u64,
    pub(super) foreign: u64,
}

/// What one agent has told so far. Bounded: it tells of no more than a node's pods.
#[derive(Debug, Default)]
pub(super) struct Ear {
    /// The node that the source of configuration says it is on.
    node: Option<Arc<str>>,
    /// As it calls itself.
    pub(super) told_node: String,
    instance: u64,
    sequence: Option<u64>,
    generation: u64,
    pods: HashMap<u64, Told>,
    /// As of when all workers know that what they were told holds.
    held_us: u64,
}

impl Ear {
    pub(super) fn new(node: Option<Arc<str>>) -> Ear {
        Ear { node, ..Ear::default() }
    }

    /// Takes in a frame that came at `now_us`.
    ///
    /// # Errors
    /// It does not follow the one before: the stream must begin anew.
    pub(super) fn hear(
        &mut self,
        frame: Frame,
        targets: &Targets,
        view: &SchedulerView,
        now_us: u64,
    ) -> Result<Heard, Lost> {
        let Frame { instance, sequence, read_age_us, body, .. } = frame;
        self.follow(instance, sequence, &body)?;
        let mut heard = Heard::default();
        let (changed, pairs) = match body {
            Body::Heartbeat => (Vec::new(), Vec::new()),
            Body::Delta(delta) => {
                delta.gone_pods.into_iter().for_each(|pod| self.forget(pod));
                (delta.pods, delta.pairs)
            }
            Body::Full(report) => {
                let stays = |pod: &u64| report.pods.iter().any(|record| record.pod == *pod);
                let gone: Vec<u64> = self.pods.keys().copied().filter(|pod| !stays(pod)).collect();
                gone.into_iter().for_each(|pod| self.forget(pod));
                self.told_node = report.node;
                (report.pods, report.pairs)
            }
        };
        let holds_us = now_us.saturating_sub(u64::from(read_age_us));
        let now = Now { us: now_us, holds_us, view };
        // First: whom the records concern is of this snapshot.
        if self.generation != targets.generation {
            self.generation = targets.generation;
            self.again(targets, &now);
        }
        for record in changed {
            self.pod(record, targets, &now, &mut heard)?;
        }
        if holds_us >= self.held_us + HOLDS_EVERY_US {
            self.held_us = holds_us;
            self.pods.values().for_each(|told| told.holds(holds_us));
        }
        self.pairs(&pairs, targets, view, now_us);
        Ok(heard)
    }

    /// The stream ended: what was told ages from now on.
    pub(super) fn ended(&mut self) {
        self.sequence = None;
    }

    fn follow(&mut self, instance: u64, sequence: u64, body: &Body) -> Result<(), Lost> {
        let is_full = matches!(body, Body::Full(_));
        match self.sequence {
            None if !is_full => return Err(Lost::NoReport),
            Some(_) if instance != self.instance => return Err(Lost::Instance),
            Some(last) if !is_full && Some(sequence) != last.checked_add(1) => {
                return Err(Lost::Gap { last, found: sequence });
            }
            _ => {}
        }
        (self.instance, self.sequence) = (instance, Some(sequence));
        Ok(())
    }

    fn forget(&mut self, pod: u64) {
        let told = self.pods.remove(&pod);
        let workers = told.iter().flat_map(|told| &told.targets);
        workers.for_each(|target| target.worker.load.clear());
    }

    fn pod(
        &mut self,
        record: PodRecord,
        targets: &Targets,
        now: &Now<'_>,
        heard: &mut Heard,
    ) -> Result<(), Lost> {
        let is_full = self.pods.len() >= MAX_PODS;
        let told = match self.pods.entry(record.pod) {
            Entry::Occupied(told) => told.into_mut(),
            Entry::Vacant(_) if is_full => return Err(Lost::TooManyPods),
            Entry::Vacant(new) => {
                let mut told = Told::of(record.pod, self.node.as_ref(), targets);
                told.counted = evidence(&record);
                new.insert(told)
            }
        };
        told.record = record;
        match (told.targets.is_empty(), told.is_known) {
            (false, _) => told.pass_on(now),
            (true, false) => heard.unknown += 1,
            (true, true) => heard.foreign += 1,
        }
        Ok(())
    }

    /// Tells the workers of another snapshot what was told before they were known.
    fn again(&mut self, targets: &Targets, now: &Now<'_>) {
        for (pod, told) in &mut self.pods {
            let Told { targets, is_known, .. } = Told::of(*pod, self.node.as_ref(), targets);
            (told.targets, told.is_known) = (targets, is_known);
            told.pass_on(now);
        }
    }

    /// What was told last of every pod.
    pub(super) fn records(&self) -> impl ExactSizeIterator<Item = &PodRecord> {
        self.pods.values().map(|told| &told.record)
    }

    /// The same of one pod.
    pub(super) fn record(&self, pod: u64) -> Option<&PodRecord> {
        self.pods.get(&pod).map(|told| &told.record)
    }

    fn pairs(&self, pairs: &[PairRecord], targets: &Targets, view: &SchedulerView, now_us: u64) {
        let kv = pairs.iter().filter(|pair| pair.key.class == Class::Kv && pair.key.peer != 0);
        let mut links = None;
        for pair in kv {
            let now_ms = now_us.saturating_sub(u64::from(pair.age_us)) / 1000;
            let own = self.pods.get(&pair.key.pod).map_or(&[][..], |told| &told.targets);
            for own in own {
                for peer in targets.of_pod(pair.key.peer) {
                    let (prefill, decode) = match (own.role, peer.role) {
                        (Role::Prefill, Role::Decode) => (own, peer),
                        (Role::Decode, Role::Prefill) => (peer, own),
                        _ => continue,
                    };
                    let (p, d) = (prefill.worker.identity, decode.worker.identity);
                    let links = links.get_or_insert_with(|| view.links());
                    if let Some(rtt_us) = pair.rtt_us.value() {
                        links.round_trip(p, d, rtt_us, now_ms);
                    }
                    let speed = pair.transfer_bytes_per_s.value();
                    if let Some(speed) = speed.filter(|_| own.role == Role::Prefill) {
                        let ms = pair.transfer_us as f32 / 1000.0;
                        links.transferred(p, d, speed / 1000.0 * ms, ms, now_ms);
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
    use router_core::frame::{Delta, Report, pod_id};
    use router_core::schedule::Policy;

    use super::super::told::OVERHEAD_BYTES;
    use super::*;
    use crate::clock::Clock;

    fn view() -> SchedulerView {
        SchedulerView::new(Policy::Predicted, Clock::start(), Duration::from_secs(1))
    }

    fn member(name: &str, role: Role, node: &str) -> Member {
        let key = WorkerKey { uid: name.into(), port: 8000 };
        let worker = Arc::new(Worker::new(key, name, ([127, 0, 0, 1], 8000).into()));
        let (bootstrap, group, facts) = (None, None, None);
        Member {
            worker,
            role,
            phase: Phase::Ready,
            bootstrap,
            group,
            engine_info: facts,
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
        let body = Body::Full(Report { pods, ..Report::default() });
        Frame { sequence, body, ..Frame::default() }
    }

    #[test]
    fn what_this_gateway_had_there_then_is_not_others() {
        let fleet = fleet(vec![member("p", Role::Prefill, "n")]);
        let (targets, view) = (Targets::of(&fleet), view());
        let worker = fleet.workers().next().unwrap();
        let own = Usage { exchanges: 3, wire_bytes: 1_000, ..Usage::default() };
        worker.lease_history.record(100, own);
        // Since the kernel was read, two of them have ended.
        worker.lease_history.record(190, Usage { exchanges: 1, ..Usage::default() });
        let record = PodRecord { age_us: 50_000, waiting_bytes: 10_000, ..pod("p", 5) };
        let mut ear = Ear::new(None);
        ear.hear(full(1, vec![record]), &targets, &view, 200_000).unwrap();
        let load = worker.load.get(200_000).unwrap();
        assert_eq!(load.others_requests, 2.0);
        assert_eq!(load.others_waiting_bytes, 10_000.0 - 1_000.0 - 3.0 * OVERHEAD_BYTES as f32);
        assert_eq!(load.age_ms, 0.0, "read at once, and as it was");
    }

    #[test]
    fn a_heartbeat_keeps_loads_fresh_and_silence_makes_them_stale() {
        let fleet = fleet(vec![member("p", Role::Prefill, "n")]);
        let (targets, view) = (Targets::of(&fleet), view());
        let worker = fleet.workers().next().unwrap();
        let mut ear = Ear::new(None);
        ear.hear(full(1, vec![pod("p", 1)]), &targets, &view, 1_000_000).unwrap();
        let beat = Frame { sequence: 2, read_age_us: 5_000, ..Frame::default() };
        ear.hear(beat, &targets, &view, 1_200_000).unwrap();
        assert_eq!(worker.load.get(1_210_000).unwrap().age_ms, 15.0);
        assert!(worker.load.get(1_500_000).unwrap().is_stale());
        // Not noted at each frame, and no load is taken for much older than it is.
        for (sequence, now_us, age_ms) in [(3, 1_244_000, 49.0), (4, 1_245_000, 0.0)] {
            let beat = Frame { sequence, ..Frame::default() };
            ear.hear(beat, &targets, &view, now_us).unwrap();
            assert_eq!(worker.load.get(now_us).unwrap().age_ms, age_ms);
        }
    }

    #[test]
    fn a_gap_or_another_instance_is_not_followed() {
        let (targets, view) = (Targets::default(), view());
        let mut ear = Ear::new(None);
        let beat = |sequence| Frame { sequence, ..Frame::default() };
        let hear = |ear: &mut Ear, frame| ear.hear(frame, &targets, &view, 1);
        assert_eq!(hear(&mut ear, beat(1)), Err(Lost::NoReport));
        hear(&mut ear, full(5, Vec::new())).unwrap();
        hear(&mut ear, beat(6)).unwrap();
        assert_eq!(hear(&mut ear, beat(8)), Err(Lost::Gap { last: 6, found: 8 }));
        // A report closes the gap.
        hear(&mut ear, full(9, Vec::new())).unwrap();
        let other = Frame { instance: 1, ..beat(10) };
        assert_eq!(hear(&mut ear, other), Err(Lost::Instance));
    }

    #[test]
    fn an_agent_is_believed_of_its_own_node_and_what_is_unknown_is_counted() {
        let fleet =
            fleet(vec![member("p", Role::Prefill, "here"), member("q", Role::Prefill, "there")]);
        let (targets, view) = (Targets::of(&fleet), view());
        let mut ear = Ear::new(Some("here".into()));
        let told = vec![pod("p", 1), pod("q", 1), pod("stranger", 1)];
        let heard = ear.hear(full(1, told), &targets, &view, 1_000).unwrap();
        assert_eq!(heard, Heard { unknown: 1, foreign: 1 });
        let known: Vec<bool> =
            fleet.workers().map(|worker| worker.load.get(1_000).is_some()).collect();
        assert_eq!(known, [true, false]);
    }

    #[test]
    fn a_worker_that_comes_later_is_told_what_was_told_before() {
        let (targets, view) = (Targets::default(), view());
        let mut ear = Ear::new(None);
        ear.hear(full(1, vec![pod("p", 7)]), &targets, &view, 1_000).unwrap();
        let fleet = fleet(vec![member("p", Role::Prefill, "n")]);
        let beat = Frame { sequence: 2, ..Frame::default() };
        let mut later = Targets::of(&fleet);
        ear.hear(beat, &later, &view, 2_000).unwrap();
        let worker = fleet.workers().next().unwrap();
        assert_eq!(worker.load.get(2_000).unwrap().others_requests, 7.0);
        let delta = Delta { gone_pods: vec![pod_id("p")], ..Delta::default() };
        let gone = Frame { sequence: 3, body: Body::Delta(delta), ..Frame::default() };
        ear.hear(gone, &later, &view, 3_000).unwrap();
        assert_eq!(worker.load.get(3_000), None);
        // A record that comes with the first frame of a snapshot is of that snapshot.
        ear.hear(full(4, vec![pod("q", 1)]), &later, &view, 4_000).unwrap();
        later = Targets::of(&self::fleet(vec![member("q", Role::Prefill, "n")]));
        later.generation += 1;
        let delta = Delta { pods: vec![pod("q", 2)], ..Delta::default() };
        let known = Frame { sequence: 5, body: Body::Delta(delta), ..Frame::default() };
        assert_eq!(ear.hear(known, &later, &view, 5_000), Ok(Heard::default()));
    }
}
