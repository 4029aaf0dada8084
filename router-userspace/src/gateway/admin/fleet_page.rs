//! The `/fleet` page, and the gauges of the workers.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use router_core::fleet::{Fleet, Member, Phase, Pool, Role};
use router_core::frame::{PodRecord, pod_id};
use router_core::pair::Leg;
use serde_json::json;

use super::flows::flows;
use crate::gateway::shared::Gateway;
use crate::gateway::upstream::fault::{FaultReason, SHORTAGES};
use crate::metrics::{LegLabels, PoolLabels, WorkerLabels};

/// Whether a worker is an engine of this pod. Of a pod with several target ports, the workers' names
/// end with the port.
fn is_of_pod(worker: &str, pod: &str) -> bool {
    let port = worker.strip_prefix(pod).map(|rest| rest.strip_prefix(':').unwrap_or(rest));
    port.is_some_and(|port| port.is_empty() || port.parse::<u16>().is_ok())
}

/// Milliseconds since 1970.
pub(super) fn unix_ms() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX)
}

impl Gateway {
    /// The current snapshot, the streams of the agents and the load of every worker, as JSON.
    pub(crate) fn describe(&self) -> String {
        let fleet = self.fleet.snapshot();
        let page = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "now_ms": unix_ms(),
            "policy": self.settings.policy,
            "queued": self.admission.waiting(),
            "last_choice": self.admission.last_choice(),
            "fleet": &*fleet,
            "agents": self.feedback.describe(),
            "loads": self.loads(&fleet),
            "flows": flows(&fleet, self.feedback.kv_pairs()),
        });
        page.to_string()
    }

    /// The loads of the workers of this pod (`namespace/name`), one per port, as in
    /// [`Gateway::describe`]. `None` if there is no such worker.
    pub(crate) fn describe_loads(&self, worker: &str) -> Option<String> {
        let fleet = self.fleet.snapshot();
        let named = fleet.members().filter(|(_, member)| is_of_pod(&member.worker.name, worker));
        let loads: Vec<serde_json::Value> = named
            .map(|(pool, member)| {
                let reported = self.feedback.pod(pod_id(&member.worker.key.uid));
                self.load(pool, member, reported.as_ref())
            })
            .collect();
        (!loads.is_empty()).then(|| json!(loads).to_string())
    }

    /// The load of every worker.
    fn loads(&self, fleet: &Fleet) -> Vec<serde_json::Value> {
        let pods = self.feedback.pods();
        let reported = |member: &Member| pods.get(&pod_id(&member.worker.key.uid));
        fleet.members().map(|(pool, member)| self.load(pool, member, reported(member))).collect()
    }

    /// The state of a worker: its health, its load as its agent and its engine reported it, and the learned
    /// rates.
    pub(super) fn load(
        &self,
        pool: &Pool,
        member: &Member,
        reported: Option<&(Arc<str>, PodRecord)>,
    ) -> serde_json::Value {
        let (worker, clock) = (&member.worker, self.dispatch.clock);
        let engine = worker.engine.get(clock.now_ms());
        json!({
            "worker": worker.name,
            "port": worker.address().port(),
            "pool": pool.name,
            "health": self.dispatch.health.report(worker),
            "agent": reported.map(|(agent, _)| agent),
            "kernel": reported.map(|(_, record)| record),
            "load": worker.load.get(clock.now_us()),
            "engine_age_ms": engine.map(|(age_ms, _)| age_ms),
            "engine": engine.map(|(_, load)| load),
            "learned": worker.rate_estimators,
            "rates": worker.rate_estimators.rates(&self.admission.rates(pool), clock.now_ms()),
        })
    }

    /// Removes the counters of workers that `next` no longer has: otherwise they would add up over
    /// months.
    pub(crate) fn remove_counters_of_departed(&self, next: &Fleet) {
        let stays: HashSet<&str> = next.workers().map(|worker| &*worker.name).collect();
        let now = self.fleet.snapshot();
        let gone = now.workers().map(|worker| &*worker.name).filter(|name| !stays.contains(name));
        for worker in gone.collect::<HashSet<_>>() {
            for leg in [Some(Leg::Prefill), Some(Leg::Decode), None] {
                let outcomes = FaultReason::ALL.map(|reason| reason.name(leg));
                let leg = leg.map_or("unified", Leg::as_str);
                for outcome in outcomes.into_iter().chain(SHORTAGES).chain(["ok"]) {
                    let worker = worker.to_owned();
                    self.metrics.legs.remove(&LegLabels { leg, worker, outcome });
                }
            }
        }
    }

    /// Updates the gauges; called before metrics are encoded.
    pub(crate) fn update_gauges(&self) {
        let count = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        self.metrics.queued.set(count(self.admission.waiting() as u64));
        // Removed workers must not stay in the metrics.
        self.metrics.worker_up.clear();
        self.metrics.worker_requests.clear();
        self.metrics.worker_load_age.clear();
        self.metrics.worker_load_score.clear();
        self.metrics.pool_can_serve.clear();
        let (known, connected) = self.feedback.counts();
        self.metrics.agents.set(count(known as u64));
        self.metrics.agents_connected.set(count(connected as u64));
        let (pods, now_us) = (self.feedback.pods(), self.dispatch.clock.now_us());
        let fleet = self.fleet.snapshot();
        for pool in &fleet.pools {
            let labels = PoolLabels { pool: pool.name.to_string() };
            self.metrics.pool_can_serve.get_or_create(&labels).set(i64::from(pool.can_serve()));
        }
        for (pool, member) in fleet.members() {
            let labels = WorkerLabels {
                pool: pool.name.to_string(),
                worker: member.worker.name.to_string(),
                role: match member.role {
                    Role::Prefill => "prefill",
                    Role::Decode => "decode",
                    Role::Unified => "unified",
                },
            };
            let up = member.phase == Phase::Ready && member.worker.health.verdict().serves();
            self.metrics.worker_up.get_or_create(&labels).set(i64::from(up));
            let requests = count(member.worker.usage().requests);
            self.metrics.worker_requests.get_or_create(&labels).set(requests);
            // A load that was never reported has an infinite age and no score, so that it cannot be
            // mistaken for a good one.
            let load = member.worker.load.get(now_us);
            let age = load.map_or(f64::INFINITY, |load| f64::from(load.age_ms) / 1000.0);
            self.metrics.worker_load_age.get_or_create(&labels).set(age);
            let reported = pods.get(&pod_id(&member.worker.key.uid));
            let score = reported.and_then(|(_, record)| record.score.value());
            let score = score.map_or(f64::NAN, f64::from);
            self.metrics.worker_load_score.get_or_create(&labels).set(score);
        }
    }
}
