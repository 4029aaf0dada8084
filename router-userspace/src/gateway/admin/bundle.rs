//! `/requests/ID/bundle`: what is known of one request and of its workers, for a report of a failure.

use http::StatusCode;
use router_core::fleet::{Fleet, Member};
use router_core::frame::pod_id;
use router_core::pair::Leg;
use serde::Serialize;
use serde_json::Value;

use super::fleet_page::unix_ms;
use super::flows::{Flow, flows};
use super::requests_page::{RequestDetail, json, with_id};
use crate::gateway::shared::Gateway;
use crate::gateway::timeline::summary::{AttemptedWorkers, RequestSummary};

/// Maximum number of failures of the same workers in a bundle.
const MAX_FAILURES: usize = 20;

/// One request, and the state of its workers when the bundle was made.
#[derive(Serialize)]
struct Bundle<'b> {
    version: &'static str,
    /// When it was made, in milliseconds since 1970.
    now_ms: u64,
    generation: u64,
    request: RequestDetail<'b>,
    workers: Vec<WorkerState<'b>>,
    /// What the agents count between the two workers now; null where no agent reports the pair.
    pair: Option<Flow>,
    /// The last other failures on one of the workers, the last first.
    recent_failures: Vec<&'b RequestSummary>,
    problems: Value,
}

#[derive(Serialize)]
struct WorkerState<'b> {
    leg: &'static str,
    name: &'b str,
    /// Null if the worker has left the fleet since.
    member: Option<&'b Member>,
    /// As in `loads` of `/fleet`.
    load: Value,
}

impl Gateway {
    /// The bundle of the last kept request with this id, as JSON.
    ///
    /// # Errors
    /// The status and the text of the answer.
    pub(super) fn describe_bundle(&self, id: &str) -> Result<String, (StatusCode, String)> {
        let kept = self.kept_requests()?;
        let request = with_id(&kept, id)?;
        let fleet = self.fleet.snapshot();
        let AttemptedWorkers { prefill, worker } = &request.workers;
        let leg = if prefill.is_some() { Leg::Decode.as_str() } else { "unified" };
        let named = [(Leg::Prefill.as_str(), prefill), (leg, worker)];
        let named = named.into_iter().filter_map(|(leg, name)| Some((leg, name.as_deref()?)));
        let is_other = |other: &&RequestSummary| other.number != request.number;
        let failures = kept.iter().map(|other| &**other).filter(|other| {
            other.is_failed() && is_other(other) && shares_worker(other, &request.workers)
        });
        let pods = [prefill, worker].map(|name| pod_of(&fleet, name.as_deref()?));
        let mut flows = flows(&fleet, self.feedback.kv_pairs()).into_iter();
        let between = flows.find(|flow| pods == flow.pods.map(Some));
        json(&Bundle {
            version: env!("CARGO_PKG_VERSION"),
            now_ms: unix_ms(),
            generation: fleet.generation,
            request: RequestDetail::of(request),
            workers: named.map(|(leg, name)| self.worker_state(&fleet, leg, name)).collect(),
            pair: between,
            recent_failures: failures.take(MAX_FAILURES).collect(),
            problems: serde_json::to_value(&fleet.problems).unwrap_or_default(),
        })
    }

    fn worker_state<'b>(
        &self,
        fleet: &'b Fleet,
        leg: &'static str,
        name: &'b str,
    ) -> WorkerState<'b> {
        let found = fleet.members().find(|(_, member)| *member.worker.name == *name);
        let load = found.map(|(pool, member)| {
            let reported = self.feedback.pod(pod_id(&member.worker.key.uid));
            self.load(pool, member, reported.as_ref())
        });
        let (member, load) = (found.map(|(_, member)| member), load.unwrap_or_default());
        WorkerState { leg, name, member, load }
    }
}

fn pod_of(fleet: &Fleet, worker: &str) -> Option<u64> {
    let (_, member) = fleet.members().find(|(_, member)| *member.worker.name == *worker)?;
    Some(pod_id(&member.worker.key.uid))
}

/// Whether an attempt of the request was on one of the workers.
fn shares_worker(request: &RequestSummary, workers: &AttemptedWorkers) -> bool {
    let retried = request.retries.iter().map(|retry| &retry.workers);
    let mut attempted = retried.chain([&request.workers]);
    let is_same = |a: &Option<_>, b: &Option<_>| a.is_some() && a == b;
    attempted.any(|other| {
        is_same(&other.prefill, &workers.prefill) || is_same(&other.worker, &workers.worker)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_worker_is_not_a_shared_worker() {
        let workers = |prefill: Option<&str>, worker: Option<&str>| AttemptedWorkers {
            prefill: prefill.map(Into::into),
            worker: worker.map(Into::into),
        };
        let of = workers(Some("p0"), Some("d0"));
        let shares = |other: AttemptedWorkers| {
            let mut request = crate::gateway::timeline::summary::tests::summary("a", "x", 1.0);
            request.workers = other;
            shares_worker(&request, &of)
        };
        assert!(shares(workers(Some("p0"), Some("d1"))) && shares(workers(None, Some("d0"))));
        assert!(!shares(workers(Some("p1"), Some("d1"))) && !shares(workers(None, None)));
    }
}
