//! Whether a request whose attempt failed is tried on another pair.
//!
//! A request may itself be what kills engines, and must not be carried through the pool: after
//! an engine has died under it, it is told so instead.

use std::sync::Arc;

use router_core::fleet::{Phase, Pool, Verdict, Worker};

use crate::gateway::placement::placer::Seats;
use crate::gateway::shared::Gateway;
use crate::gateway::upstream::fault::{Fault, Kind};

/// Connections that may break under one request, and engines that may fall silent, without an
/// engine's death to explain it.
const MAX_BROKEN: u32 = 1;

/// What has befallen the attempts of one request.
#[derive(Debug, Default)]
pub(crate) struct Setbacks {
    attempts: u32,
    broken: u32,
    deaths: u32,
}

/// The workers of one attempt, as they were before it.
pub(crate) struct Before {
    pub workers: Vec<Arc<Worker>>,
    /// Those that were not known to be down: their death would be news.
    alive: Vec<Arc<Worker>>,
}

impl Before {
    pub(crate) fn of(seats: &Seats) -> Before {
        let workers: Vec<_> = seats.leases().map(|lease| Arc::clone(lease.worker())).collect();
        let alive = |worker: &&Arc<Worker>| worker.health.verdict() != Verdict::Down;
        let alive = workers.iter().filter(alive).cloned().collect();
        Before { workers, alive }
    }
}

impl Gateway {
    /// The fault as the client is told of it, and whether another pair is tried.
    pub(crate) async fn weigh(
        &self,
        pool: &Pool,
        mut fault: Fault,
        before: &Before,
        setbacks: &mut Setbacks,
    ) -> (Fault, bool) {
        let limits = &self.settings.limits;
        setbacks.attempts += 1;
        if fault.broke() && self.died(pool, &fault.worker, before).await {
            setbacks.deaths += 1;
            if setbacks.deaths >= limits.max_deaths {
                fault.kind = Kind::Died;
                tracing::warn!(
                    worker = %fault.worker.name,
                    "an engine died under a request, which is not tried on another"
                );
            }
        } else if fault.broke() || matches!(fault.kind, Kind::Silent) {
            setbacks.broken += 1;
        }
        let again = fault.retryable()
            && setbacks.attempts < limits.max_attempts
            && setbacks.broken <= MAX_BROKEN;
        (fault, again)
    }

    /// Whether the worker died under the request: it lived before, it does not now, and nobody
    /// has told it to go.
    async fn died(&self, pool: &Pool, worker: &Arc<Worker>, before: &Before) -> bool {
        let same = |other: &&Arc<Worker>| Arc::ptr_eq(other, worker);
        if !before.alive.iter().any(|other| same(&other)) {
            return false;
        }
        if self.dispatch.probes.answers(worker).await {
            return false;
        }
        let fleet = self.fleet.snapshot();
        let member = fleet
            .pool(&pool.name)
            .and_then(|pool| pool.members.iter().find(|member| same(&&member.worker)));
        member.is_some_and(|member| member.phase == Phase::Ready)
    }
}
