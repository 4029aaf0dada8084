//! What the gateway tells of itself when asked: the fleet as JSON, and gauges of its workers.

use std::collections::HashSet;
use std::sync::Arc;

use router_core::fleet::{Fleet, Member, Phase, Pool, Role, Verdict};
use router_core::frame::{PodRecord, pod_id};
use serde_json::json;

use crate::gateway::shared::Gateway;
use crate::gateway::upstream::fault::REASONS;
use crate::metrics::{LegLabels, WorkerLabels};

impl Gateway {
    /// The snapshot in force, with what is known of every worker now.
    pub(crate) fn describe(&self) -> String {
        let fleet = self.fleet.snapshot();
        let told = json!({
            "policy": self.settings.policy,
            "queued": self.admission.waiting(),
            "last_choice": self.admission.last_choice(),
            "fleet": &*fleet,
            "agents": self.feedback.describe(),
            "loads": self.loads(&fleet),
        });
        told.to_string()
    }

    /// What is known of the loads of the workers of this name, one for each port, as in
    /// [`Gateway::describe`]; nothing where there is none.
    pub(crate) fn describe_loads(&self, worker: &str) -> Option<String> {
        let fleet = self.fleet.snapshot();
        let named = fleet.members().filter(|(_, member)| *member.worker.name == *worker);
        let loads: Vec<serde_json::Value> = named
            .map(|(pool, member)| {
                let told = self.feedback.pod(pod_id(&member.worker.key.uid));
                self.load(pool, member, told.as_ref())
            })
            .collect();
        (!loads.is_empty()).then(|| json!(loads).to_string())
    }

    /// What is known of every worker's load.
    fn loads(&self, fleet: &Fleet) -> Vec<serde_json::Value> {
        let pods = self.feedback.pods();
        let told = |member: &Member| pods.get(&pod_id(&member.worker.key.uid));
        fleet.members().map(|(pool, member)| self.load(pool, member, told(member))).collect()
    }

    /// What is known of a worker's load: by its agent, by its engine, and what was learned.
    fn load(
        &self,
        pool: &Pool,
        member: &Member,
        told: Option<&(Arc<str>, PodRecord)>,
    ) -> serde_json::Value {
        let (worker, clock) = (&member.worker, self.dispatch.clock);
        let engine = worker.engine.get(clock.now_ms());
        json!({
            "worker": worker.name,
            "port": worker.key.port,
            "pool": pool.name,
            "agent": told.map(|(agent, _)| agent),
            "kernel": told.map(|(_, record)| record),
            "load": worker.load.get(clock.now_us()),
            "engine_age_ms": engine.map(|(age_ms, _)| age_ms),
            "engine": engine.map(|(_, load)| load),
            "learned": worker.rate_estimators,
            "rates": worker.rate_estimators.rates(&self.admission.rates(pool), clock.now_ms()),
        })
    }

    /// Drops the counters of workers that `next` no longer has: pods come and go for months.
    pub(crate) fn forget_departed(&self, next: &Fleet) {
        let stays: HashSet<&str> = next.workers().map(|worker| &*worker.name).collect();
        let now = self.fleet.snapshot();
        let gone = now.workers().map(|worker| &*worker.name).filter(|name| !stays.contains(name));
        for worker in gone.collect::<HashSet<_>>() {
            for (role, leg) in ["prefill", "decode", "unified"].into_iter().enumerate() {
                for outcome in REASONS.iter().map(|names| names[role]).chain(["ok"]) {
                    let worker = worker.to_owned();
                    self.metrics.legs.remove(&LegLabels { leg, worker, outcome });
                }
            }
        }
    }

    /// Brings the gauges up to date; called before they are read.
    pub(crate) fn observe(&self) {
        let count = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        self.metrics.queued.set(count(self.admission.waiting() as u64));
        // A worker that has left must not stay in the metrics.
        self.metrics.worker_up.clear();
        self.metrics.worker_requests.clear();
        self.metrics.worker_load_age.clear();
        self.metrics.worker_load_score.clear();
        let (known, connected) = self.feedback.counts();
        self.metrics.agents.set(count(known as u64));
        self.metrics.agents_connected.set(count(connected as u64));
        let (pods, now_us) = (self.feedback.pods(), self.dispatch.clock.now_us());
        for (pool, member) in self.fleet.snapshot().members() {
            let labels = WorkerLabels {
                pool: pool.name.to_string(),
                worker: member.worker.name.to_string(),
                role: match member.role {
                    Role::Prefill => "prefill",
                    Role::Decode => "decode",
                    Role::Unified => "unified",
                },
            };
            let up = member.phase == Phase::Ready && member.worker.health.verdict() == Verdict::Up;
            self.metrics.worker_up.get_or_create(&labels).set(i64::from(up));
            let requests = count(member.worker.usage().requests);
            self.metrics.worker_requests.get_or_create(&labels).set(requests);
            // What nobody told is no age and no score, and never to be taken for a good one.
            let load = member.worker.load.get(now_us);
            let age = load.map_or(f64::INFINITY, |load| f64::from(load.age_ms) / 1000.0);
            self.metrics.worker_load_age.get_or_create(&labels).set(age);
            let told = pods.get(&pod_id(&member.worker.key.uid));
            let score = told.and_then(|(_, record)| record.score.value());
            let score = score.map_or(f64::NAN, f64::from);
            self.metrics.worker_load_score.get_or_create(&labels).set(score);
        }
    }
}
