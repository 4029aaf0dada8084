//! Compares what the sockets and interfaces of a pod report with what the programs saw of it, and finds
//! pods whose traffic takes a way on which no program counts.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Minimum time between two readings that are compared.
const INTERVAL: Duration = Duration::from_millis(900);
/// Unseen bytes above which a pod is unseen, if they are also more than this share of what it moved: a
/// socket may report one byte too much at an unusual end.
const TOLERANCE: u64 = 200;
const SHARE: u64 = 16;
/// Number of readings in which bytes moved and all were seen, one after another, after which a pod counts as
/// seen again.
const RECOVERY: u32 = 5;
/// Bytes that may have been seen and not reported for longer than an interval: a socket reports nothing while
/// its FIN is under way, and an acknowledgement may wait for one segment. What was seen and is never
/// reported, such as retransmits, must not hide more than this.
const MAX_LATE: u64 = 4 << 20;
/// Time for which a pod must send on its interface without any socket before its requests are counted on
/// the interface.
const DECISION: Duration = Duration::from_secs(1);

/// The payload of a pod in one direction by independent sources, all counted since some time before.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::agent) struct Moved {
    /// What its sockets report (sock_ops).
    pub(in crate::agent) sockets: u64,
    /// What the programs saw at its sockets.
    pub(in crate::agent) seen_at_sockets: u64,
    /// What the programs saw on its interface.
    pub(in crate::agent) seen_on_interface: u64,
}

/// The bytes of a pod.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::agent) struct PodBytes {
    /// Reported when it is acknowledged.
    pub(in crate::agent) sent: Moved,
    /// Reported at the socket's next change of state, or when something is acknowledged.
    pub(in crate::agent) received: Moved,
    /// All IP bytes that it sent on its interface: as the interface counts them, and as the programs do.
    /// `None` without an interface of its own on the node.
    pub(in crate::agent) interface: Option<(u64, u64)>,
    /// Requests are counted on the interface, not at the sockets.
    pub(in crate::agent) by_interface: bool,
}

impl PodBytes {
    /// What the programs that count this pod saw.
    fn seen(&self, moved: &Moved) -> u64 {
        if self.by_interface { moved.seen_on_interface } else { moved.seen_at_sockets }
    }
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
    seen: u64,
    /// Bytes that were seen and may be reported later; `None` before the second reading, when it is not known
    /// what was on its way.
    ahead: Option<u64>,
    /// Bytes that were reported and not seen, and all that were reported meanwhile.
    unseen: u64,
    moved: u64,
    /// Readings since the last unseen byte in which something moved.
    seen_readings: u32,
}

impl Gap {
    fn new(reported: u64, seen: u64, ahead: Option<u64>) -> Gap {
        Gap { reported, seen, ahead, unseen: 0, moved: 0, seen_readings: 0 }
    }

    /// Adds a reading. Bytes may be reported in any later reading if they are at most `max_late`, and in the
    /// next reading in any case.
    fn observe(&mut self, reported: u64, seen: u64, max_late: u64) {
        if reported < self.reported || seen < self.seen {
            // Pairs with a deleted pod are gone.
            *self = Gap::new(reported, seen, self.ahead);
            return;
        }
        let (moved, fresh) = (reported - self.reported, seen - self.seen);
        (self.reported, self.seen) = (reported, seen);
        let Some(ahead) = self.ahead else {
            self.ahead = Some(fresh);
            return;
        };
        let cover = ahead + fresh;
        self.ahead = Some(cover.saturating_sub(moved).min(max_late.max(fresh)));
        let unseen = moved.saturating_sub(cover);
        self.unseen += unseen;
        self.moved += moved;
        if unseen > 0 {
            self.seen_readings = 0;
        } else if moved > 0 {
            self.seen_readings += 1;
        }
        if self.seen_readings >= RECOVERY {
            (self.unseen, self.moved) = (0, 0);
        }
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
    sent: Gap,
    received: Gap,
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
    /// Adds a reading of pod `id`. With `reports_at_end` sockets may report what they sent when they close.
    pub(in crate::agent) fn observe(
        &mut self,
        id: u32,
        bytes: &PodBytes,
        reports_at_end: bool,
        now: Instant,
    ) -> CoverageResult {
        let pod = self.pods.entry(id).or_insert_with(|| PodCoverage::new(bytes, now));
        if pod.by_interface != bytes.by_interface {
            *pod = PodCoverage::new(bytes, now);
        }
        if now.saturating_duration_since(pod.compared) >= INTERVAL {
            pod.compared = now;
            let max_late = if reports_at_end { u64::MAX } else { MAX_LATE };
            pod.sent.observe(bytes.sent.sockets, bytes.seen(&bytes.sent), max_late);
            // A socket that only receives reports when its state changes.
            pod.received.observe(bytes.received.sockets, bytes.seen(&bytes.received), u64::MAX);
            if let (Some(gap), Some((reported, seen))) = (&mut pod.interface, bytes.interface) {
                gap.observe(reported, seen, MAX_LATE);
            }
        }
        let unseen = pod.sent.unseen() + pod.received.unseen();
        let by_link = pod.interface.as_ref().map(Gap::unseen);
        let cause = if !bytes.by_interface {
            UnseenCause::CgroupPrograms
        } else if by_link.is_some_and(|unseen_on_link| unseen_on_link >= unseen) {
            UnseenCause::OtherProgram
        } else {
            UnseenCause::OtherWay
        };
        let Moved { sockets, seen_at_sockets, seen_on_interface } = bytes.sent;
        let is_without = seen_on_interface > 0 && seen_at_sockets == 0 && sockets == 0;
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
    fn new(bytes: &PodBytes, now: Instant) -> PodCoverage {
        // What was received under an earlier agent may be reported at any time.
        let (received, seen) = (bytes.received.sockets, bytes.seen(&bytes.received));
        PodCoverage {
            compared: now,
            sent: Gap::new(bytes.sent.sockets, bytes.seen(&bytes.sent), None),
            received: Gap::new(received, seen, Some(seen.saturating_sub(received))),
            interface: bytes.interface.map(|(reported, seen)| Gap::new(reported, seen, None)),
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
            let found = coverage.observe(1, bytes, false, start + SECOND * second);
            found.unseen.map(|(_, cause)| cause)
        };
        (0..seconds).map(&mut verdict).collect()
    }

    /// The seconds in which a pod was unseen, by the readings of what it sent.
    fn unseen_seconds(seconds: u32, step: impl Fn(&mut Moved, u32)) -> Vec<u32> {
        let mut bytes = PodBytes::default();
        let found = verdicts(&mut bytes, seconds, |bytes, second| step(&mut bytes.sent, second));
        (0..seconds).filter(|second| found[*second as usize].is_some()).collect()
    }

    #[test]
    fn a_pod_whose_sockets_move_more_than_was_seen_is_unseen_until_all_is_seen_again() {
        // What was before the first reading does not count.
        let sockets = 1 << 30;
        let mut bytes =
            PodBytes { sent: Moved { sockets, ..Moved::default() }, ..PodBytes::default() };
        let found = verdicts(&mut bytes, 120, |bytes, second| match second {
            10 => bytes.sent.sockets += 500,
            // Readings in which nothing moves show nothing.
            11..100 => {}
            100.. if second.is_multiple_of(2) => {
                bytes.sent.sockets += 100;
                bytes.sent.seen_at_sockets += 100;
            }
            _ => {}
        });
        let unseen: Vec<_> = (0..120).filter(|second| found[*second as usize].is_some()).collect();
        assert_eq!(unseen, (10..108).collect::<Vec<u32>>());
        assert_eq!(found[50], Some(UnseenCause::CgroupPrograms));
    }

    #[test]
    fn a_pod_of_which_a_part_takes_another_way_is_unseen() {
        for seen in [900, 500, 0] {
            let unseen = unseen_seconds(30, |sent, _| {
                sent.sockets += 1_000;
                sent.seen_at_sockets += seen;
            });
            // What was on its way at the first reading is used up first.
            assert!(unseen.contains(&15), "{seen} of 1,000 seen: {unseen:?}");
            assert_eq!(unseen.last(), Some(&29), "{seen} of 1,000 seen: {unseen:?}");
        }
    }

    #[test]
    fn what_is_sent_and_not_acknowledged_yet_is_no_gap() {
        let mut bytes = PodBytes::default();
        bytes.sent.seen_at_sockets = 1_000_000;
        let found = verdicts(&mut bytes, 20, |bytes, second| {
            bytes.sent.sockets = bytes.sent.seen_at_sockets;
            bytes.sent.seen_at_sockets += if second < 10 { 1_000_000 } else { 0 };
        });
        assert_eq!(found, vec![None; 20]);
        // One byte too much at the end of some connections.
        let found = unseen_seconds(2_000, |sent, _| {
            sent.sockets += 1_001;
            sent.seen_at_sockets += 1_000;
        });
        assert_eq!(found, Vec::<u32>::new());
    }

    #[test]
    fn what_is_acknowledged_readings_later_is_no_gap() {
        // The acknowledgement waits for one segment, or the socket is closing.
        let found = unseen_seconds(60, |sent, second| match second {
            2 => sent.seen_at_sockets += 3_000_000,
            40 => sent.sockets += 3_000_000,
            _ => {}
        });
        assert_eq!(found, Vec::<u32>::new());
        // Much that is under way at the end of a reading.
        let found = unseen_seconds(60, |sent, second| match second {
            2 => sent.seen_at_sockets += 300_000_000,
            3 => sent.sockets += 300_000_000,
            _ => {}
        });
        assert_eq!(found, Vec::<u32>::new());
    }

    #[test]
    fn retransmits_hide_no_gap_for_long() {
        let found = unseen_seconds(60, |sent, second| {
            // For half a minute all is seen twice.
            sent.sockets += 1_000_000;
            sent.seen_at_sockets += if second < 30 { 2_000_000 } else { 0 };
        });
        assert!((31..=35).contains(&found[0]), "{found:?}");
    }

    #[test]
    fn connections_that_are_reported_when_they_close_are_no_gap() {
        let (mut coverage, start) = (Coverage::default(), Instant::now());
        let mut bytes = PodBytes::default();
        for second in 0..60 {
            bytes.sent.seen_at_sockets += if second < 50 { 1_000_000 } else { 0 };
            bytes.sent.sockets += if second == 55 { 49_000_000 } else { 0 };
            let found = coverage.observe(1, &bytes, true, start + SECOND * second);
            assert_eq!(found.unseen, None, "second {second}");
        }
    }

    #[test]
    fn a_pod_whose_received_bytes_are_not_seen_is_unseen() {
        // An earlier agent ran while these arrived.
        let mut bytes = PodBytes::default();
        bytes.received.seen_at_sockets = 10_000_000;
        let found = verdicts(&mut bytes, 100, |bytes, second| {
            // Reported when the connections close.
            bytes.received.seen_at_sockets += if second < 50 { 1_000_000 } else { 0 };
            bytes.received.sockets += if second % 20 == 19 { 20_000_000 } else { 0 };
        });
        let first = found.iter().position(Option::is_some);
        assert_eq!(first, Some(79), "60 million were seen, and 80 million are reported");
        assert_eq!(found[79], Some(UnseenCause::CgroupPrograms));
    }

    #[test]
    fn the_cause_on_an_interface_is_known_from_the_counters_of_the_interface() {
        for (counted, cause) in [(600, UnseenCause::OtherProgram), (50, UnseenCause::OtherWay)] {
            let mut bytes =
                PodBytes { by_interface: true, interface: Some((0, 0)), ..PodBytes::default() };
            let found = verdicts(&mut bytes, 3, |bytes, second| {
                if second == 2 {
                    (bytes.sent.sockets, bytes.interface) = (500, Some((counted, 0)));
                }
            });
            assert_eq!(found, [None, None, Some(cause)]);
        }
    }

    #[test]
    fn a_pod_that_sends_for_a_second_without_a_socket_has_none() {
        let (mut coverage, start) = (Coverage::default(), Instant::now());
        let mut bytes = PodBytes::default();
        bytes.sent.seen_on_interface = 1;
        let mut has_none =
            |bytes: &PodBytes, at| coverage.observe(1, bytes, false, at).has_no_sockets;
        assert!(!has_none(&bytes, start));
        assert!(has_none(&bytes, start + DECISION));
        let mut with = bytes;
        with.sent.seen_at_sockets = 1;
        assert!(!has_none(&with, start + DECISION));
        assert!(!has_none(&bytes, start + DECISION), "it starts again");
    }
}
