//! Compares what the sockets and interfaces of a pod report with what the programs saw of it, and finds
//! pods whose traffic takes a way on which no program counts.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Minimum time between two readings that are compared. What is acknowledged in one interval was sent in
/// it or in the one before.
const INTERVAL: Duration = Duration::from_millis(900);
/// Unseen bytes above which a pod is unseen, if they are also more than this share of what it sent: a
/// socket may report one byte too much at an unusual end.
const TOLERANCE: u64 = 200;
const SHARE: u64 = 16;
/// Time without further unseen bytes, while others are seen, after which a pod counts as seen again.
const RECOVERY: Duration = Duration::from_secs(5);
/// Time for which a pod must send on its interface without any socket before its requests are counted on
/// the interface.
const DECISION: Duration = Duration::from_secs(1);

/// The bytes of a pod by independent sources, all counted since some time before.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::agent) struct PodBytes {
    /// Payload that its sockets report as sent and acknowledged (sock_ops).
    pub(in crate::agent) sockets: u64,
    /// Payload that the programs saw at its sockets.
    pub(in crate::agent) seen_at_sockets: u64,
    /// Payload that the programs saw it send on its interface.
    pub(in crate::agent) seen_on_interface: u64,
    /// All bytes that it sent on its interface: as the interface counts them, and as the programs do.
    /// `None` without an interface of its own on the node.
    pub(in crate::agent) interface: Option<(u64, u64)>,
    /// Requests are counted on the interface, not at the sockets.
    pub(in crate::agent) by_interface: bool,
}

/// Why the programs do not see what a pod sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::agent) enum UnseenCause {
    /// The cgroup programs do not run for its sockets.
    CgroupPrograms,
    /// Another program of its interface ends before ours run.
    OtherProgram,
    /// Its packets do not pass its interface.
    OtherWay,
}

impl UnseenCause {
    pub(in crate::agent) fn describe(self) -> &'static str {
        match self {
            UnseenCause::CgroupPrograms => {
                "the cgroup programs do not run for its sockets (detached, or another cgroup2 root?)"
            }
            UnseenCause::OtherProgram => {
                "its interface counts them: another program there ends before ours run"
            }
            UnseenCause::OtherWay => {
                "they take another way: bpf_redirect_peer, an interface of its own, or loopback"
            }
        }
    }
}

/// What one source reports beyond what was seen.
#[derive(Clone, Copy, Debug)]
struct Gap {
    reported: u64,
    /// What was seen at the last reading, and at the one before it.
    seen: [u64; 2],
    readings: u32,
    /// Bytes that were reported and not seen, and all that were reported meanwhile.
    unseen: u64,
    moved: u64,
    /// When unseen bytes were last found, or nothing moved.
    grown: Instant,
}

impl Gap {
    fn new(reported: u64, seen: u64, now: Instant) -> Gap {
        Gap { reported, seen: [seen; 2], readings: 1, unseen: 0, moved: 0, grown: now }
    }

    /// Adds a reading.
    fn observe(&mut self, reported: u64, seen: u64, now: Instant) {
        let [last, before] = self.seen;
        if reported < self.reported || seen < last {
            *self = Gap::new(reported, seen, now);
            return;
        }
        let moved = reported - self.reported;
        // At the first interval it is not known what was already on its way.
        let unseen = if self.readings > 1 { moved.saturating_sub(seen - before) } else { 0 };
        self.unseen += unseen;
        self.moved += moved;
        if unseen > 0 || moved == 0 {
            self.grown = now;
        }
        if now.saturating_duration_since(self.grown) >= RECOVERY {
            (self.unseen, self.moved) = (0, 0);
        }
        (self.reported, self.seen, self.readings) = (reported, [seen, last], 2);
    }

    /// The unseen bytes; 0 if they are within the tolerance.
    fn unseen(&self) -> u64 {
        if self.unseen > TOLERANCE && self.unseen > self.moved / SHARE { self.unseen } else { 0 }
    }
}

#[derive(Debug)]
struct PodCoverage {
    /// Time of the last reading that was compared.
    compared: Instant,
    sockets: Gap,
    interface: Option<Gap>,
    by_interface: bool,
    /// Since when the pod has sent on its interface and had no socket.
    without_sockets: Option<Instant>,
}

/// What is known of a pod after a reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::agent) struct CoverageResult {
    /// Bytes that no program saw, and why.
    pub(in crate::agent) unseen: Option<(u64, UnseenCause)>,
    /// Whether the pod has no socket on this node: it is a virtual machine.
    pub(in crate::agent) has_no_sockets: bool,
}

/// The comparison for every local pod.
#[derive(Debug, Default)]
pub(in crate::agent) struct Coverage {
    pods: HashMap<u32, PodCoverage>,
}

impl Coverage {
    /// Adds a reading of pod `id`.
    pub(in crate::agent) fn observe(
        &mut self,
        id: u32,
        bytes: &PodBytes,
        now: Instant,
    ) -> CoverageResult {
        let seen = if bytes.by_interface { bytes.seen_on_interface } else { bytes.seen_at_sockets };
        let pod = self.pods.entry(id).or_insert_with(|| PodCoverage::new(bytes, seen, now));
        if pod.by_interface != bytes.by_interface {
            *pod = PodCoverage::new(bytes, seen, now);
        }
        if now.saturating_duration_since(pod.compared) >= INTERVAL {
            pod.compared = now;
            pod.sockets.observe(bytes.sockets, seen, now);
            if let (Some(gap), Some((reported, seen))) = (&mut pod.interface, bytes.interface) {
                gap.observe(reported, seen, now);
            }
        }
        let unseen = pod.sockets.unseen();
        let by_link = pod.interface.as_ref().map(Gap::unseen);
        let cause = if !bytes.by_interface {
            UnseenCause::CgroupPrograms
        } else if by_link.is_some_and(|unseen_on_link| unseen_on_link >= unseen) {
            UnseenCause::OtherProgram
        } else {
            UnseenCause::OtherWay
        };
        let is_without =
            bytes.seen_on_interface > 0 && bytes.seen_at_sockets == 0 && bytes.sockets == 0;
        pod.without_sockets = is_without.then(|| pod.without_sockets.unwrap_or(now));
        let since = pod.without_sockets;
        CoverageResult {
            unseen: (unseen > 0).then_some((unseen, cause)),
            has_no_sockets: since.is_some_and(|since| now.duration_since(since) >= DECISION),
        }
    }

    /// Forgets all pods but `ids`.
    pub(in crate::agent) fn retain(&mut self, ids: &[u32]) {
        self.pods.retain(|id, _| ids.contains(id));
    }
}

impl PodCoverage {
    fn new(bytes: &PodBytes, seen: u64, now: Instant) -> PodCoverage {
        PodCoverage {
            compared: now,
            sockets: Gap::new(bytes.sockets, seen, now),
            interface: bytes.interface.map(|(reported, seen)| Gap::new(reported, seen, now)),
            by_interface: bytes.by_interface,
            without_sockets: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// The verdicts of one reading a second, to which `step` adds.
    fn verdicts(
        bytes: &mut PodBytes,
        seconds: u32,
        step: impl Fn(&mut PodBytes, u32),
    ) -> Vec<Option<UnseenCause>> {
        let (mut coverage, start) = (Coverage::default(), Instant::now());
        let mut verdict = |second| {
            step(bytes, second);
            coverage.observe(1, bytes, start + SECOND * second).unseen.map(|(_, cause)| cause)
        };
        (0..seconds).map(&mut verdict).collect()
    }

    #[test]
    fn a_pod_whose_sockets_move_more_than_was_seen_is_unseen_until_all_is_seen_again() {
        // What was before the first reading does not count.
        let mut bytes = PodBytes { sockets: 1 << 30, ..PodBytes::default() };
        let found = verdicts(&mut bytes, 120, |bytes, second| match second {
            10 => bytes.sockets += 500,
            // Nothing moves: nothing shows that the pod is seen.
            11..100 => {}
            100.. => {
                bytes.sockets += 100;
                bytes.seen_at_sockets += 100;
            }
            _ => {}
        });
        let unseen: Vec<_> = (0..120).filter(|second| found[*second as usize].is_some()).collect();
        assert_eq!(unseen, (10..104).collect::<Vec<u32>>());
        assert_eq!(found[50], Some(UnseenCause::CgroupPrograms));
    }

    #[test]
    fn what_is_sent_and_not_acknowledged_yet_is_no_gap() {
        let mut bytes = PodBytes { seen_at_sockets: 1_000_000, ..PodBytes::default() };
        let found = verdicts(&mut bytes, 20, |bytes, second| {
            bytes.sockets = bytes.seen_at_sockets;
            bytes.seen_at_sockets += if second < 10 { 1_000_000 } else { 0 };
        });
        assert_eq!(found, vec![None; 20]);
        // One byte too much at the end of some connections.
        let mut bytes = PodBytes::default();
        let found = verdicts(&mut bytes, 2_000, |bytes, _| {
            bytes.sockets += 1_001;
            bytes.seen_at_sockets += 1_000;
        });
        assert_eq!(found, vec![None; 2_000]);
    }

    #[test]
    fn the_cause_on_an_interface_is_known_from_the_counters_of_the_interface() {
        for (counted, cause) in [(600, UnseenCause::OtherProgram), (50, UnseenCause::OtherWay)] {
            let mut bytes =
                PodBytes { by_interface: true, interface: Some((0, 0)), ..PodBytes::default() };
            let found = verdicts(&mut bytes, 3, |bytes, second| {
                if second == 2 {
                    (bytes.sockets, bytes.interface) = (500, Some((counted, 0)));
                }
            });
            assert_eq!(found, [None, None, Some(cause)]);
        }
    }

    #[test]
    fn a_pod_that_sends_for_a_second_without_a_socket_has_none() {
        let (mut coverage, start) = (Coverage::default(), Instant::now());
        let bytes = PodBytes { seen_on_interface: 1, ..PodBytes::default() };
        assert!(!coverage.observe(1, &bytes, start).has_no_sockets);
        assert!(coverage.observe(1, &bytes, start + DECISION).has_no_sockets);
        let with = PodBytes { seen_at_sockets: 1, ..bytes };
        assert!(!coverage.observe(1, &with, start + DECISION).has_no_sockets);
        assert!(!coverage.observe(1, &bytes, start + DECISION).has_no_sockets, "it starts again");
    }
}
