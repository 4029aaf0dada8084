//! [`ReadinessGuard`]: distrusts readiness that Kubernetes takes away from most of a pool at once.
//!
//! While the API server is away, the nodes of a cluster cannot report. When it is back, Kubernetes
//! marks every pod as not ready until its node has reported again, although every engine serves. The
//! guard keeps such engines as candidates, as Envoy's panic threshold does. A pod that is deleted, that
//! restarts or that does not answer is never kept.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Phase, Role};

/// Pods that lose readiness within this time count as one event. Kubernetes marks the pods of a
/// cluster node by node, which takes some seconds.
pub const READINESS_WINDOW_MS: u64 = 30_000;

/// Minimum number of pods of one event. A single pod that is marked as not ready leaves at once.
const MIN_LOST: usize = 2;

/// What is known of one pod of a pool or a Service.
#[derive(Clone, Debug)]
pub struct ReadinessObservation {
    pub uid: Arc<str>,
    pub role: Role,
    /// The phase as Kubernetes reports it.
    pub phase: Phase,
    /// Restarts of its containers. A pod that restarts is believed to be not ready.
    pub restarts: u32,
    /// Whether its containers run and its engines answer probes and requests.
    pub serves: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReportedReadiness {
    Ready,
    Lost { at_ms: u64, distrusted: bool },
}

#[derive(Clone, Copy, Debug)]
struct TrackedPod {
    readiness: ReportedReadiness,
    role: Role,
    restarts: u32,
}

type TrackedPods = BTreeMap<Arc<str>, TrackedPod>;

/// Decides for each pod that Kubernetes reports as not ready whether that is believed.
#[derive(Debug)]
pub struct ReadinessGuard {
    threshold_percent: u8,
    /// By pool or Service.
    groups: BTreeMap<String, TrackedPods>,
    /// The groups of the fleet that is being built.
    next: BTreeMap<String, TrackedPods>,
}

impl ReadinessGuard {
    /// A guard that acts when more than `threshold_percent` of a group's ready pods, or of those of one
    /// role, lose readiness within [`READINESS_WINDOW_MS`]. With 100 it never acts.
    pub fn new(threshold_percent: u8) -> ReadinessGuard {
        ReadinessGuard { threshold_percent, groups: BTreeMap::new(), next: BTreeMap::new() }
    }

    /// A guard that never acts.
    pub fn disabled() -> ReadinessGuard {
        ReadinessGuard::new(100)
    }

    /// Returns for each pod whether it stays a candidate although it is reported as not ready.
    pub fn judge(&mut self, group: &str, now_ms: u64, pods: &[ReadinessObservation]) -> Vec<bool> {
        if self.threshold_percent >= 100 {
            return vec![false; pods.len()];
        }
        let before = self.next.remove(group).or_else(|| self.groups.remove(group));
        let before = before.unwrap_or_default();
        let mut tracked: TrackedPods = pods
            .iter()
            .filter_map(|pod| Some((Arc::clone(&pod.uid), track(pod, &before, now_ms)?)))
            .collect();
        // A pool without prefills serves nothing, so each role counts for itself as well.
        let roles = [None, Some(Role::Prefill), Some(Role::Decode), Some(Role::Unified)];
        for role in roles {
            self.distrust_mass_loss(&mut tracked, |pod| role.is_none_or(|role| pod.role == role));
        }
        let distrusted = |pod: &ReadinessObservation| {
            let readiness = tracked.get(&pod.uid).map(|known| known.readiness);
            matches!(readiness, Some(ReportedReadiness::Lost { distrusted: true, .. }))
        };
        let judged = pods.iter().map(distrusted).collect();
        self.next.insert(group.to_owned(), tracked);
        judged
    }

    /// Forgets the groups that were not judged since the last call.
    pub fn finish(&mut self) {
        self.groups = std::mem::take(&mut self.next);
    }

    fn distrust_mass_loss(&self, pods: &mut TrackedPods, counts: impl Fn(&TrackedPod) -> bool) {
        let is_ready = |pod: &TrackedPod| pod.readiness == ReportedReadiness::Ready;
        let all = pods.values().filter(|pod| counts(pod)).count();
        let lost = pods.values().filter(|pod| counts(pod) && !is_ready(pod)).count();
        if lost < MIN_LOST || lost * 100 <= usize::from(self.threshold_percent) * all {
            return;
        }
        for pod in pods.values_mut().filter(|pod| counts(pod)) {
            if let ReportedReadiness::Lost { distrusted, .. } = &mut pod.readiness {
                *distrusted = true;
            }
        }
    }
}

/// What is remembered of a pod. `None` if its phase is believed and no longer counts.
fn track(pod: &ReadinessObservation, before: &TrackedPods, now_ms: u64) -> Option<TrackedPod> {
    let ready =
        TrackedPod { readiness: ReportedReadiness::Ready, role: pod.role, restarts: pod.restarts };
    match pod.phase {
        Phase::Ready => return Some(ready),
        Phase::Draining => return None,
        Phase::NotReady => {}
    }
    let known =
        before.get(&pod.uid).filter(|known| known.restarts == pod.restarts && pod.serves)?;
    let readiness = match known.readiness {
        ReportedReadiness::Ready => ReportedReadiness::Lost { at_ms: now_ms, distrusted: false },
        // Believed for so long that it no longer counts.
        ReportedReadiness::Lost { at_ms, distrusted: false }
            if now_ms.saturating_sub(at_ms) > READINESS_WINDOW_MS =>
        {
            return None;
        }
        lost => lost,
    };
    Some(TrackedPod { readiness, ..ready })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pool of pods, all of which are ready and serve.
    struct Case {
        guard: ReadinessGuard,
        pods: Vec<ReadinessObservation>,
    }

    impl Case {
        fn of(count: usize) -> Case {
            Case::with_threshold(count, 50)
        }

        fn with_threshold(count: usize, threshold: u8) -> Case {
            let pod = |at: usize| ReadinessObservation {
                uid: at.to_string().into(),
                role: Role::Unified,
                phase: Phase::Ready,
                restarts: 0,
                serves: true,
            };
            let pods = (0..count).map(pod).collect();
            let mut case = Case { guard: ReadinessGuard::new(threshold), pods };
            assert_eq!(case.candidates(0), count);
            case
        }

        fn lose(&mut self, pods: std::ops::Range<usize>) {
            self.pods[pods].iter_mut().for_each(|pod| pod.phase = Phase::NotReady);
        }

        /// Number of pods that are ready or distrusted to be not ready.
        fn candidates(&mut self, now_ms: u64) -> usize {
            let distrusted = self.guard.judge("pool", now_ms, &self.pods);
            self.guard.finish();
            let pods = self.pods.iter().zip(distrusted);
            pods.filter(|(pod, distrusted)| pod.phase == Phase::Ready || *distrusted).count()
        }
    }

    #[test]
    fn pods_that_all_lose_readiness_at_once_stay_candidates_until_they_are_ready_again() {
        for count in [2, 3, 10, 1_000] {
            let mut case = Case::of(count);
            case.lose(0..count);
            assert_eq!(case.candidates(1_000), count);
            assert_eq!(case.candidates(10 * READINESS_WINDOW_MS), count, "no time ends it");
            case.pods[0].phase = Phase::Ready;
            assert_eq!(case.candidates(10 * READINESS_WINDOW_MS), count, "the rest stays");
        }
    }

    #[test]
    fn a_pod_that_loses_readiness_alone_leaves_at_once() {
        for count in [1, 2, 10] {
            let mut case = Case::of(count);
            case.lose(0..1);
            assert_eq!(case.candidates(1_000), count - 1);
        }
    }

    #[test]
    fn pods_that_are_marked_one_by_one_are_back_when_more_than_half_are_marked() {
        let mut case = Case::of(10);
        for (marked, candidates) in [(1, 9), (4, 6), (5, 5), (6, 10), (10, 10)] {
            case.lose(0..marked);
            assert_eq!(case.candidates(1_000 * marked as u64), candidates, "{marked} of 10");
        }
    }

    #[test]
    fn the_pods_of_one_role_count_for_themselves() {
        let mut case = Case::of(10);
        case.pods[..2].iter_mut().for_each(|pod| pod.role = Role::Prefill);
        case.lose(0..1);
        assert_eq!(case.candidates(1_000), 9);
        case.lose(0..2);
        assert_eq!(case.candidates(2_000), 10, "without prefills nothing is served");
        case.lose(0..3);
        assert_eq!(case.candidates(3_000), 9, "one decode alone leaves");
    }

    #[test]
    fn pods_that_lose_readiness_far_apart_in_time_leave() {
        let mut case = Case::of(10);
        for marked in 1..=10 {
            case.lose(0..marked);
            let now_ms = marked as u64 * (READINESS_WINDOW_MS + 1);
            // The last one is alone in what is left of the pool.
            assert_eq!(case.candidates(now_ms), 10 - marked, "{marked} of 10");
        }
    }

    #[test]
    fn pods_that_do_not_answer_leave_for_good() {
        let mut case = Case::of(4);
        case.lose(0..4);
        case.pods[3].serves = false;
        assert_eq!(case.candidates(1_000), 3);
        case.pods[2].serves = false;
        assert_eq!(case.candidates(2_000), 2);
        case.pods[2].serves = true;
        assert_eq!(case.candidates(3_000), 2, "its readiness is believed from then on");
        case.pods.iter_mut().for_each(|pod| pod.serves = false);
        assert_eq!(case.candidates(4_000), 0);
    }

    #[test]
    fn pods_that_are_deleted_or_restart_leave() {
        let mut case = Case::of(4);
        case.pods.iter_mut().for_each(|pod| pod.phase = Phase::Draining);
        assert_eq!(case.candidates(1_000), 0);
        let mut case = Case::of(4);
        case.lose(0..4);
        case.pods.iter_mut().for_each(|pod| pod.restarts += 1);
        assert_eq!(case.candidates(1_000), 0);
    }

    #[test]
    fn pods_that_were_never_ready_are_no_candidates() {
        let mut case = Case::of(0);
        let pod = ReadinessObservation {
            uid: "new".into(),
            role: Role::Unified,
            phase: Phase::NotReady,
            restarts: 0,
            serves: true,
        };
        case.pods = vec![pod; 3];
        assert_eq!(case.candidates(1_000), 0);
    }

    #[test]
    fn a_threshold_of_100_percent_always_believes() {
        let mut case = Case::with_threshold(4, 100);
        case.lose(0..4);
        assert_eq!(case.candidates(1_000), 0);
    }

    #[test]
    fn a_group_that_is_no_longer_judged_is_forgotten() {
        let mut case = Case::of(4);
        case.guard.finish();
        case.lose(0..4);
        assert_eq!(case.candidates(1_000), 0);
    }
}
