//! [`Ear`]: takes in what one agent tells, and passes it on to the workers that it tells of.

use std::collections::HashMap;
use std::sync::Arc;

use router_core::fleet::{Load, Role, Usage};
use router_core::frame::{Body, Class, Frame, MAX_PODS, PairRecord, PodRecord};
use router_core::schedule::step_us_of_idle;

use super::targets::{Target, Targets};
use crate::gateway::view::View;

/// What a request's head and the fields that injection adds take beside its body.
const OVERHEAD_BYTES: u64 = 640;
/// Whatever others do, a link has this much left: nothing is known to be impossible.
const LEAST_FREE: f32 = 0.01;

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
    pub(super) pods: HashMap<u64, PodRecord>,
    /// Bytes asked and KV bytes sent that are evidence already.
    counted: HashMap<u64, (u64, u64)>,
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
        view: &View,
        now_us: u64,
    ) -> Result<Heard, Lost> {
        let Frame { instance, sequence, read_age_us, body, .. } = frame;
        self.follow(instance, sequence, &body)?;
        let mut heard = Heard::default();
        let (changed, pairs) = match body {
            Body::Heartbeat => (Vec::new(), Vec::new()),
            Body::Delta(delta) => {
                for gone in delta.gone_pods {
                    self.forget(gone, targets);
                }
                (delta.pods, delta.pairs)
            }
            Body::Full(report) => {
                let stays = |pod: &u64| report.pods.iter().any(|record| record.pod == *pod);
                let gone: Vec<u64> = self.pods.keys().copied().filter(|pod| !stays(pod)).collect();
                gone.into_iter().for_each(|pod| self.forget(pod, targets));
                self.told_node = report.node;
                (report.pods, report.pairs)
            }
        };
        for pod in changed {
            if self.pods.len() >= MAX_PODS && !self.pods.contains_key(&pod.pod) {
                return Err(Lost::TooManyPods);
            }
            self.pod(&pod, targets, view, now_us, &mut heard);
            self.pods.insert(pod.pod, pod);
        }
        if self.generation != targets.generation {
            // Workers that are new here were told of before they were known.
            self.generation = targets.generation;
            let known: Vec<PodRecord> = self.pods.values().cloned().collect();
            known.iter().for_each(|pod| {
                self.pod(pod, targets, view, now_us, &mut Heard::default());
            });
        }
        let holds_us = now_us.saturating_sub(u64::from(read_age_us));
        for pod in self.pods.keys() {
            self.believed(*pod, targets).for_each(|target| target.worker.load.holds(holds_us));
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

    fn forget(&mut self, pod: u64, targets: &Targets) {
        self.believed(pod, targets).for_each(|target| target.worker.load.clear());
        self.pods.remove(&pod);
        self.counted.remove(&pod);
    }

    /// The workers of a pod that this agent may tell of: those of its own node, as far as both
    /// nodes are known.
    fn believed<'t>(&self, pod: u64, targets: &'t Targets) -> impl Iterator<Item = &'t Target> {
        let node = self.node.clone();
        targets.of_pod(pod).iter().filter(move |target| match (&node, &target.node) {
            (Some(agent), Some(worker)) => agent == worker,
            _ => true,
        })
    }

    fn pod(
        &mut self,
        record: &PodRecord,
        targets: &Targets,
        view: &View,
        now_us: u64,
        heard: &mut Heard,
    ) {
        let known = targets.of_pod(record.pod);
        let believed: Vec<&Target> = self.believed(record.pod, targets).collect();
        if believed.is_empty() {
            heard.unknown += u64::from(known.is_empty());
            heard.foreign += u64::from(!known.is_empty());
            return;
        }
        let measured_us = now_us.saturating_sub(u64::from(record.age_us));
        // The kernel counts by pod: of several workers of one, what all of them were sent is ours.
        let own = believed.iter().fold(Usage::default(), |mut own, target| {
            let then = target.worker.own.at(measured_us / 1000);
            own.exchanges += then.exchanges;
            own.wire_bytes += then.wire_bytes;
            own
        });
        let load = load(record, own);
        for target in &believed {
            target.worker.load.set(&load, measured_us);
            learn_step(record, &load, target, view, now_us / 1000);
        }
        self.learn_kv(record, believed[0], now_us / 1000);
    }

    /// How much KV cache a byte of prompt makes, from what went in and what went out.
    fn learn_kv(&mut self, record: &PodRecord, target: &Target, now_ms: u64) {
        let now = (record.asked_bytes, record.kv_tx_bytes);
        let counted = self.counted.entry(record.pod).or_insert(now);
        if now.0 < counted.0 || now.1 < counted.1 {
            *counted = now;
        }
        let (asked, sent) = (now.0 - counted.0, now.1 - counted.1);
        if target.role == Role::Prefill && asked > 0 && sent > 0 {
            target.pool.sent(asked as f32, sent as f32, now_ms);
            *counted = now;
        }
    }

    fn pairs(&self, pairs: &[PairRecord], targets: &Targets, view: &View, now_us: u64) {
        let kv = pairs.iter().filter(|pair| pair.key.class == Class::Kv && pair.key.peer != 0);
        let mut links = None;
        for pair in kv {
            let now_ms = now_us.saturating_sub(u64::from(pair.age_us)) / 1000;
            for own in self.believed(pair.key.pod, targets) {
                for peer in targets.of_pod(pair.key.peer) {
                    let (prefill, decode) = match (own.role, peer.role) {
                        (Role::Prefill, Role::Decode) => (own, peer),
                        (Role::Decode, Role::Prefill) => (peer, own),
                        _ => continue,
                    };
                    let (p, d) = (prefill.worker.identity, decode.worker.identity);
                    let links = links.get_or_insert_with(|| view.links());
                    if let Some(rtt_us) = pair.rtt_us.known() {
                        links.round_trip(p, d, rtt_us, now_ms);
                    }
                    let speed = pair.transfer_bytes_per_s.known();
                    if let Some(speed) = speed.filter(|_| own.role == Role::Prefill) {
                        let ms = pair.transfer_us as f32 / 1000.0;
                        links.transferred(p, d, speed / 1000.0 * ms, ms, now_ms);
                    }
                }
            }
        }
    }
}

/// A record as the scheduler takes it, without what this gateway had there itself.
fn load(record: &PodRecord, own: Usage) -> Load {
    let own_bytes = own.wire_bytes + own.exchanges * OVERHEAD_BYTES;
    let kv = |rate: router_core::frame::Value| rate.known().unwrap_or(0.0);
    let speed = record.link_bytes_per_s.known().unwrap_or(0.0);
    let free = |used: router_core::frame::Value, kv: f32| {
        // What KV cache uses of the link is told apart.
        let others = (used.known().unwrap_or(0.0) - kv).max(0.0);
        (speed - others).max(speed * LEAST_FREE) / 1000.0
    };
    let (tx_kv, rx_kv) = (kv(record.kv_tx_bytes_per_s), kv(record.kv_rx_bytes_per_s));
    Load {
        age_ms: 0.0,
        others_requests: u64::from(record.in_flight).saturating_sub(own.exchanges) as f32,
        others_waiting_bytes: record.waiting_bytes.saturating_sub(own_bytes) as f32,
        itl_us: if record.itl.samples > 0 { record.itl.mean_us } else { 0.0 },
        tx_free_bytes_per_ms: free(record.link_tx_used_bytes_per_s, tx_kv),
        rx_free_bytes_per_ms: free(record.link_rx_used_bytes_per_s, rx_kv),
        tx_kv_bytes_per_ms: tx_kv / 1000.0,
        rx_kv_bytes_per_ms: rx_kv / 1000.0,
    }
}

/// A step that the kernel saw is evidence of the engine's speed.
fn learn_step(record: &PodRecord, load: &Load, target: &Target, view: &View, now_ms: u64) {
    if load.itl_us <= 0.0 || record.streaming == 0 || target.role == Role::Prefill {
        return;
    }
    let worker = &target.worker;
    let pool = target.pool.rates(&view.assumptions.rates, now_ms);
    let batch = worker.usage().kv_tokens as f32 + load.others_requests * pool.request_tokens;
    let step_us = step_us_of_idle(load.itl_us, batch, &view.assumptions);
    target.pool.one_stepped(step_us, now_ms);
    worker.experience.stepped(step_us, now_ms);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use router_core::fleet::{Fleet, Member, ObjectName, Phase, Pool, Profile, Worker, WorkerKey};
    use router_core::frame::{Delta, Report, Value, pod_id};
    use router_core::schedule::Policy;

    use super::*;
    use crate::gateway::clock::Clock;

    fn view() -> View {
        View::new(Policy::Predicted, Clock::start(), Duration::from_secs(1))
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
            facts,
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
        worker.own.note(100, own);
        // Since the kernel was read, two of them have ended.
        worker.own.note(190, Usage { exchanges: 1, ..Usage::default() });
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
        ear.hear(beat, &Targets::of(&fleet), &view, 2_000).unwrap();
        let worker = fleet.workers().next().unwrap();
        assert_eq!(worker.load.get(2_000).unwrap().others_requests, 7.0);
        let delta = Delta { gone_pods: vec![pod_id("p")], ..Delta::default() };
        let gone = Frame { sequence: 3, body: Body::Delta(delta), ..Frame::default() };
        ear.hear(gone, &Targets::of(&fleet), &view, 3_000).unwrap();
        assert_eq!(worker.load.get(3_000), None);
    }

    #[test]
    fn a_full_link_leaves_a_little_and_an_unknown_one_says_nothing() {
        let used = PodRecord {
            link_bytes_per_s: Value::exact(1e9),
            link_tx_used_bytes_per_s: Value::exact(2e9),
            link_rx_used_bytes_per_s: Value::exact(6e8),
            kv_rx_bytes_per_s: Value::exact(4e8),
            ..PodRecord::default()
        };
        let busy = load(&used, Usage::default());
        assert_eq!((busy.tx_free_bytes_per_ms, busy.rx_free_bytes_per_ms), (1e4, 8e5));
        assert_eq!(busy.rx_kv_bytes_per_ms, 4e5);
        let unknown = load(&PodRecord::default(), Usage::default());
        assert_eq!(unknown.tx_free_bytes_per_ms, 0.0);
    }
}
