//! What failed and refused requests say about a worker beside its peers: the workers of its role in its
//! pool.
//!
//! A failure is the worker's: a server error, a timeout, a broken connection. A client error may be the
//! request's fault. It counts against the worker only if a peer has then served the same request. A failed
//! KV transfer may be the fault of either worker or of the way between them. It counts at both, and against
//! one whose transfers fail more often than its peers' and with several partners.

use std::sync::Arc;
use std::time::Duration;

use router_core::fleet::{
    DEFAULT_GHOST_MS, OUTCOME_WINDOW_MS, OutcomeCounts, RequestKind, Verdict, Weight, Worker,
};
use router_core::pair::Pair;

use super::health_monitor::HealthMonitor;

/// The other workers of a worker's role in its pool.
#[derive(Clone, Copy, Debug, Default)]
struct PeerSummary {
    workers: usize,
    /// Those that get requests.
    serving: usize,
    outcomes: OutcomeCounts,
    /// The mean of the times that their requests take. `None` if none has served any.
    service_time: Option<Duration>,
}

impl PeerSummary {
    /// Whether the pool can do without the worker: at least half of its role goes on.
    fn are_enough(&self) -> bool {
        self.serving > 0 && 2 * self.serving > self.workers
    }
}

impl HealthMonitor {
    /// Counts a failure of the worker, and ejects it if it fails requests of this kind more often than its
    /// peers, or if this request was to try it.
    pub(crate) fn failed(&self, worker: &Arc<Worker>, kind: RequestKind) {
        let now_ms = self.clock.now_ms();
        worker.outcomes_of(kind).failed(now_ms);
        if worker.health.verdict() == Verdict::HalfOpen {
            let change = worker.health.errored(now_ms);
            self.observed(worker, change, "it failed the request that tried it");
            return;
        }
        let (own, peers) = (worker.outcomes_of(kind).counts(now_ms), self.peers(worker, kind));
        let what = match kind {
            RequestKind::Generation => "requests",
            RequestKind::Forwarded => "forwarded requests",
        };
        self.eject_outlier(worker, own, peers, what);
    }

    /// Counts a failed KV transfer at both workers, and ejects one whose transfers fail more often than its
    /// peers', with whichever partner.
    pub(crate) fn transfer_failed(&self, pair: &Pair<&Arc<Worker>>) {
        let now_ms = self.clock.now_ms();
        let both = [(pair.prefill, pair.decode), (pair.decode, pair.prefill)];
        for (worker, partner) in both {
            worker.outcomes.transfer_failed(now_ms, partner.identity);
        }
        for (worker, partner) in both {
            if worker.health.verdict() == Verdict::HalfOpen {
                let change = worker.health.errored(now_ms);
                self.observed(worker, change, "the transfer of the request that tried it failed");
                continue;
            }
            let peers = self.known_peers(partner, RequestKind::Generation);
            let is_only_partner = peers.is_some_and(|peers| peers.workers == 0);
            if is_only_partner || worker.outcomes.fails_with_several(now_ms) {
                let (own, peers) =
                    (worker.outcomes.counts(now_ms), self.peers(worker, RequestKind::Generation));
                let outcomes = peers.outcomes.with_transfers();
                let peers = PeerSummary { outcomes, ..peers };
                self.eject_outlier(worker, own.with_transfers(), peers, "requests and transfers");
            }
        }
    }

    /// Ejects a worker that fails more often than its peers, if the pool can do without it. `what`: what was
    /// counted.
    fn eject_outlier(
        &self,
        worker: &Arc<Worker>,
        own: OutcomeCounts,
        peers: PeerSummary,
        what: &str,
    ) {
        if !peers.are_enough() || !own.is_outlier(&peers.outcomes) {
            return;
        }
        let change = worker.health.ejected(self.clock.now_ms());
        if change.is_some() {
            worker.outcomes.clear();
            worker.outcomes_of(RequestKind::Forwarded).clear();
            let reason = format!(
                "{} of its {} {what} failed within {} s, and {} of {} of its peers'",
                own.failed,
                own.judged(),
                OUTCOME_WINDOW_MS / 1000,
                peers.outcomes.failed,
                peers.outcomes.judged(),
            );
            self.observed(worker, change, reason);
        }
    }

    /// Counts a client error of the worker, which may be the request's fault.
    pub(crate) fn refused(&self, worker: &Worker) {
        worker.outcomes.refused(self.clock.now_ms());
    }

    /// Whether the worker may be at fault when it refuses or fails a request that a peer could serve.
    /// `was_tried`: it was half-open before the request.
    pub(crate) fn is_suspect(&self, worker: &Arc<Worker>, was_tried: bool) -> bool {
        let peers = self.peers(worker, RequestKind::Generation);
        let own = worker.outcomes.counts(self.clock.now_ms());
        let is_out = was_tried || worker.health.verdict() == Verdict::Failing;
        peers.serving > 0 && (is_out || own.is_suspect(&peers.outcomes))
    }

    /// A peer has served a request that the worker refused: the worker is at fault.
    pub(crate) fn convicted(&self, worker: &Arc<Worker>) {
        let now_ms = self.clock.now_ms();
        worker.outcomes.settle_refusal(now_ms);
        let change = worker.health.errored(now_ms);
        self.observed(worker, change, "it refused a request that another worker served");
        self.failed(worker, RequestKind::Generation);
    }

    /// Two workers have refused the same request: the request is at fault.
    pub(crate) fn exonerated(&self, worker: &Arc<Worker>) {
        worker.outcomes.settle_refusal(self.clock.now_ms());
        if worker.health.verdict() == Verdict::HalfOpen {
            let change = worker.health.answered();
            self.observed(worker, change, "another worker refuses the same request");
        }
    }

    /// Keeps the weight of a request that the worker has not served in choices, for as long as its peers
    /// take for one: a worker that fails at once must not look idle. A worker whose peers fail as many of
    /// their requests gets none.
    pub(crate) fn leave_ghost(&self, worker: &Arc<Worker>, weight: Weight) {
        let now_ms = self.clock.now_ms();
        let (own, peers) =
            (worker.outcomes.counts(now_ms), self.peers(worker, RequestKind::Generation));
        if own.with_transfers().is_matched_by(&peers.outcomes.with_transfers()) {
            return;
        }
        let time = peers.service_time.or_else(|| worker.outcomes.service_time());
        let time_ms = time.map_or(DEFAULT_GHOST_MS, |time| time.as_millis() as u64);
        worker.ghosts.add(weight, now_ms, time_ms);
    }

    fn peers(&self, worker: &Arc<Worker>, kind: RequestKind) -> PeerSummary {
        self.known_peers(worker, kind).unwrap_or_default()
    }

    /// `None` for a worker that has left the fleet.
    fn known_peers(&self, worker: &Arc<Worker>, kind: RequestKind) -> Option<PeerSummary> {
        let now_ms = self.clock.now_ms();
        let fleet = self.fleet.load();
        let is_it = |other: &Arc<Worker>| Arc::ptr_eq(other, worker);
        let member_in = |members: &[router_core::fleet::Member]| {
            members.iter().find(|member| is_it(&member.worker)).map(|member| member.role)
        };
        let found = fleet.pools.iter().find_map(|pool| Some((pool, member_in(&pool.members)?)));
        let (pool, role) = found?;
        let mut peers = PeerSummary::default();
        let (mut sum, mut known) = (Duration::ZERO, 0);
        let others = pool.members.iter().filter(|member| member.role == role);
        for member in others.filter(|member| !is_it(&member.worker)) {
            let outcomes = member.worker.outcomes_of(kind);
            peers.workers += 1;
            let serves = member.is_eligible() && member.worker.health.verdict().serves();
            peers.serving += usize::from(serves);
            peers.outcomes = peers.outcomes.plus(outcomes.counts(now_ms));
            if let Some(time) = outcomes.service_time() {
                sum = sum.saturating_add(time);
                known += 1;
            }
        }
        peers.service_time = sum.checked_div(known);
        Some(peers)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use router_core::fleet::{
        Fleet, Member, ObjectName, Phase, Pool, Profile, Role, Usage, WorkerKey,
    };

    use super::*;
    use crate::certificates::Certificates;
    use crate::clock::MonotonicClock;
    use crate::gateway::fleet_handle::FleetHandle;

    /// A monitor of a pool of one prefill and these decodes, all of them up.
    fn monitor(decodes: usize) -> (HealthMonitor, Vec<Arc<Worker>>) {
        let (monitor, _, workers) = monitor_of_pairs(1, decodes);
        (monitor, workers)
    }

    /// A monitor of a pool of these prefills and decodes, all of them up.
    fn monitor_of_pairs(
        prefills: usize,
        decodes: usize,
    ) -> (HealthMonitor, Vec<Arc<Worker>>, Vec<Arc<Worker>>) {
        let member = |at: usize, role| {
            let key = WorkerKey { uid: at.to_string().into(), address: ([127, 0, 0, 1], 1).into() };
            let worker = Arc::new(Worker::new(key, "default/pod"));
            worker.health.probe_passed(0);
            let (group, engine_info, node) = (None, None, None);
            let bootstrap = Some(([127, 0, 0, 1], 2).into());
            Member { worker, role, phase: Phase::Ready, bootstrap, group, engine_info, node }
        };
        let prefill = (0..prefills).map(|at| member(at, Role::Prefill));
        let decode = (prefills..prefills + decodes).map(|at| member(at, Role::Decode));
        let members: Vec<_> = prefill.chain(decode).collect();
        let mut prefill: Vec<_> = members.iter().map(|member| Arc::clone(&member.worker)).collect();
        let decode = prefill.split_off(prefills);
        let name = ObjectName { namespace: "default".into(), name: "pool".into() };
        let pool = Arc::new(Pool::new(name, Profile::Pd, members));
        let fleet = Arc::new(FleetHandle::default());
        fleet.publish(Fleet { pools: vec![pool], ..Fleet::default() }, Certificates::default());
        (HealthMonitor::new(fleet, MonotonicClock::start(), || {}), prefill, decode)
    }

    fn serve(workers: &[Arc<Worker>], requests: usize) {
        for worker in workers {
            (0..requests).for_each(|_| worker.outcomes.succeeded(0));
            worker.outcomes.took(Duration::from_secs(20));
        }
    }

    const ONE: Weight =
        Weight { requests: 1, prompt_bytes: 100, kv_tokens: 40, exchanges: 1, wire_bytes: 120 };

    #[test]
    fn a_worker_that_fails_beside_peers_that_serve_is_ejected() {
        let (monitor, decodes) = monitor(4);
        serve(&decodes[1..], 5);
        for _ in 0..3 {
            assert_eq!(decodes[0].health.verdict(), Verdict::Up);
            monitor.failed(&decodes[0], RequestKind::Generation);
        }
        assert_eq!(decodes[0].health.verdict(), Verdict::Failing);
        assert!(decodes[1..].iter().all(|other| other.health.verdict() == Verdict::Up));
    }

    #[test]
    fn forwarded_successes_do_not_hide_failed_generations() {
        let (monitor, decodes) = monitor(4);
        serve(&decodes[1..], 5);
        let forwarded = decodes[0].outcomes_of(RequestKind::Forwarded);
        (0..100).for_each(|_| forwarded.succeeded(0));
        for _ in 0..3 {
            assert_eq!(decodes[0].health.verdict(), Verdict::Up);
            monitor.failed(&decodes[0], RequestKind::Generation);
        }
        assert_eq!(decodes[0].health.verdict(), Verdict::Failing);
    }

    #[test]
    fn a_worker_that_fails_what_is_forwarded_is_compared_by_that() {
        let (monitor, decodes) = monitor(4);
        serve(&decodes, 50);
        for _ in 0..3 {
            monitor.failed(&decodes[0], RequestKind::Forwarded);
        }
        assert_eq!(decodes[0].health.verdict(), Verdict::Up, "nothing was forwarded to its peers");
        for peer in &decodes[1..] {
            (0..5).for_each(|_| peer.outcomes_of(RequestKind::Forwarded).succeeded(0));
        }
        monitor.failed(&decodes[0], RequestKind::Forwarded);
        assert_eq!(decodes[0].health.verdict(), Verdict::Failing);
    }

    #[test]
    fn a_worker_whose_transfers_fail_with_every_partner_is_ejected() {
        let (monitor, prefills, decodes) = monitor_of_pairs(2, 2);
        serve(&prefills[1..], 10);
        serve(&decodes, 10);
        for request in 0..4 {
            assert_eq!(prefills[0].health.verdict(), Verdict::Up, "after {request} transfers");
            let decode = &decodes[request % 2];
            monitor.transfer_failed(&Pair { prefill: &prefills[0], decode });
            if prefills[0].health.verdict() == Verdict::Failing {
                break;
            }
        }
        assert_eq!(prefills[0].health.verdict(), Verdict::Failing);
        assert!(decodes.iter().all(|decode| decode.health.verdict() == Verdict::Up));
    }

    #[test]
    fn a_pair_whose_transfers_fail_takes_neither_worker_out() {
        let (monitor, prefills, decodes) = monitor_of_pairs(2, 2);
        serve(&prefills[1..], 20);
        serve(&decodes[1..], 20);
        for _ in 0..20 {
            monitor.transfer_failed(&Pair { prefill: &prefills[0], decode: &decodes[0] });
        }
        let all = prefills.iter().chain(&decodes);
        assert!(all.into_iter().all(|worker| worker.health.verdict() == Verdict::Up));
    }

    #[test]
    fn transfers_that_fail_with_the_only_partner_count() {
        let (monitor, prefills, decodes) = monitor_of_pairs(2, 1);
        serve(&prefills[1..], 10);
        serve(&decodes, 10);
        for _ in 0..3 {
            monitor.transfer_failed(&Pair { prefill: &prefills[0], decode: &decodes[0] });
        }
        assert_eq!(prefills[0].health.verdict(), Verdict::Failing);
        assert_eq!(decodes[0].health.verdict(), Verdict::Up, "it has no peers");
    }

    #[test]
    fn a_partner_that_has_left_the_fleet_does_not_count_as_the_only_one() {
        let (fleet, prefills, _) = monitor_of_pairs(2, 2);
        let (_, gone) = monitor(1);
        serve(&prefills[1..], 10);
        for _ in 0..20 {
            fleet.transfer_failed(&Pair { prefill: &prefills[0], decode: &gone[0] });
        }
        assert_eq!(prefills[0].health.verdict(), Verdict::Up);
    }

    #[test]
    fn half_of_a_role_is_never_ejected_by_comparison() {
        let (monitor, decodes) = monitor(4);
        serve(&decodes, 50);
        for worker in &decodes {
            (0..50).for_each(|_| monitor.failed(worker, RequestKind::Generation));
        }
        let out = decodes.iter().filter(|worker| worker.health.verdict() == Verdict::Failing);
        assert!(out.count() <= 2);
    }

    #[test]
    fn a_refusal_counts_once_a_peer_has_served_the_request() {
        let (monitor, decodes) = monitor(2);
        serve(&decodes[1..], 10);
        for _ in 0..20 {
            monitor.refused(&decodes[0]);
            monitor.exonerated(&decodes[0]);
        }
        assert_eq!(decodes[0].outcomes.counts(0), OutcomeCounts::default());
        assert_eq!(decodes[0].health.verdict(), Verdict::Up);
        for _ in 0..3 {
            monitor.refused(&decodes[0]);
            monitor.convicted(&decodes[0]);
        }
        assert_eq!(decodes[0].health.verdict(), Verdict::Failing);
    }

    #[test]
    fn a_trial_that_a_peer_refuses_too_ends_well_and_one_that_it_serves_does_not() {
        let (monitor, decodes) = monitor(2);
        let health = &decodes[0].health;
        let half_open = || {
            health.ejected(0);
            health.probe_passed(60_000);
            assert_eq!(health.verdict(), Verdict::HalfOpen);
        };
        half_open();
        assert!(monitor.is_suspect(&decodes[0], true));
        monitor.refused(&decodes[0]);
        monitor.exonerated(&decodes[0]);
        assert_eq!(health.verdict(), Verdict::Up);
        half_open();
        monitor.refused(&decodes[0]);
        monitor.convicted(&decodes[0]);
        assert_eq!(health.verdict(), Verdict::Failing);
        health.probe_passed(120_000);
        monitor.failed(&decodes[0], RequestKind::Generation);
        assert_eq!(health.verdict(), Verdict::Failing, "a timeout ends the trial as well");
    }

    #[test]
    fn a_ghost_lasts_as_long_as_the_requests_of_the_peers() {
        let (monitor, decodes) = monitor(2);
        monitor.refused(&decodes[0]);
        monitor.leave_ghost(&decodes[0], ONE);
        assert_eq!(decodes[0].ghosts.sum(0), ONE);
        let default = DEFAULT_GHOST_MS + monitor.clock.now_ms();
        assert_eq!(decodes[0].ghosts.sum(default), Usage::default());
        serve(&decodes[1..], 1);
        monitor.leave_ghost(&decodes[0], ONE);
        assert_eq!(decodes[0].ghosts.sum(19_000), ONE);
        assert_eq!(decodes[0].ghosts.sum(20_000 + default), Usage::default());
    }

    #[test]
    fn workers_that_all_refuse_leave_no_ghosts() {
        let (monitor, decodes) = monitor(2);
        for worker in &decodes {
            (0..5).for_each(|_| monitor.refused(worker));
        }
        monitor.leave_ghost(&decodes[0], ONE);
        assert_eq!(decodes[0].ghosts.sum(0), Usage::default());
    }
}
