//! Which worker of a pool or endpoint of a Service gets a forwarded request, and when an endpoint is left for
//! a while.

use std::sync::Arc;

use router_core::fleet::{
    HealthChange, Lease, Member, ObjectName, Phase, Pool, ServiceBackend, Verdict, Weight, Worker,
    WorkerLimits,
};
use router_core::schedule::{Candidate, Draw, Policy};

use super::reject::Reject;
use crate::gateway::upstream::fault::{Fault, FaultKind};
use crate::gateway::workers::health_monitor::HealthMonitor;

/// No probe looks at a Service's endpoint. One that cannot be reached is left for a while at once, one
/// that breaks connections or is late after several in a row.
pub(super) fn blame_endpoint(fault: &Fault, now_ms: u64) -> Option<HealthChange> {
    match fault.kind {
        FaultKind::Unreachable(_) => fault.worker.health.ejected(now_ms),
        // The gateway itself is short of something.
        FaultKind::Shortage(_) => None,
        _ => fault.worker.health.errored(now_ms),
    }
}

/// Ends the time outs that have passed. No probe of a Service's endpoint does it.
fn end_time_outs(endpoints: &[Arc<Worker>], health: &HealthMonitor, now_ms: u64) {
    for worker in endpoints.iter().filter(|worker| worker.health.verdict() == Verdict::Failing) {
        let change = worker.health.probe_passed(now_ms);
        health.observed(worker, change, "its time out has passed");
    }
}

/// Whether an endpoint is to be used while there are others. After its time out, one request tries it.
fn is_usable(worker: &Worker) -> bool {
    match worker.health.verdict() {
        Verdict::Failing => false,
        Verdict::HalfOpen => worker.usage().requests == 0,
        _ => true,
    }
}

/// Leases an endpoint of a Service, without the one to avoid if there is one.
pub(super) fn endpoint_of(
    service: &ServiceBackend,
    avoid: Option<&Arc<Worker>>,
    health: &HealthMonitor,
    now_ms: u64,
) -> Result<Lease, Reject> {
    end_time_outs(&service.endpoints, health, now_ms);
    let candidates = |only_usable: bool| {
        let endpoints = service.endpoints.iter().enumerate();
        let fits = |worker: &Arc<Worker>| !is(worker, avoid) && (!only_usable || is_usable(worker));
        let candidate = |(id, worker): (usize, &Arc<Worker>)| Candidate {
            id,
            usage: worker.usage(),
            ..Candidate::default()
        };
        endpoints.filter(|(_, worker)| fits(worker)).map(candidate).collect::<Vec<_>>()
    };
    let usable = candidates(true);
    // Where all are left alone, one of them is tried rather than none.
    let candidates = if usable.is_empty() { candidates(false) } else { usable };
    let draw = Draw { chance: rand::random(), turn: 0 };
    let chosen =
        Policy::PowerOfTwo.pick(&candidates, draw).ok_or_else(|| none_ready(&service.name))?;
    lease(&service.endpoints[chosen], &service.name)
}

fn is(worker: &Arc<Worker>, avoid: Option<&Arc<Worker>>) -> bool {
    avoid.is_some_and(|avoid| Arc::ptr_eq(avoid, worker))
}

fn none_ready(service: &ObjectName) -> Reject {
    Reject::NoWorkerReady(format!("Service {service} has no ready endpoint"))
}

fn lease(worker: &Arc<Worker>, of: &ObjectName) -> Result<Lease, Reject> {
    let weight = Weight { requests: 1, exchanges: 1, ..Weight::default() };
    // There is no limit here, so there is always capacity.
    worker.try_lease(weight, WorkerLimits::NONE, None).ok_or_else(|| none_ready(of))
}

/// Leases a ready member, one that answers probes if there is one.
pub(super) fn lease_one_of<'p, M: Iterator<Item = &'p Member>>(
    pool: &'p Pool,
    members: impl Fn() -> M,
    avoid: Option<&Arc<Worker>>,
) -> Result<Lease, Reject> {
    let ready = |m: &&Member| m.phase == Phase::Ready && !is(&m.worker, avoid);
    let ready: Vec<&Member> = members().filter(ready).collect();
    let up = |member: &&&Member| member.worker.health.verdict().serves();
    let start = rand::random_range(0..ready.len().max(1));
    let walk = || ready[start.min(ready.len())..].iter().chain(&ready[..start.min(ready.len())]);
    let chosen = walk().find(up).or_else(|| walk().next());
    lease(&chosen.ok_or_else(|| Reject::no_worker_ready(pool))?.worker, &pool.name)
}
