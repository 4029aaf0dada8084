//! [`TopReport`]: what `top` shows, read from the pages of an admin port.

use std::collections::BTreeMap;

use router_core::timeline::TimelinePart;
use serde::Serialize;
use serde_json::Value;

/// Pools, workers, parts of the time to first token, failures and problems.
#[derive(Debug, Serialize)]
pub(super) struct TopReport {
    pub policy: String,
    /// Requests that wait for capacity.
    pub queued: u64,
    /// Requests in the gateway's memory; `None` if it keeps none. The parts are of the streams among the
    /// last of them.
    pub kept: Option<u64>,
    pub pools: Vec<PoolReport>,
    pub failures: Vec<FailureReport>,
    pub problems: Vec<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct PoolReport {
    pub name: String,
    pub workers: Vec<WorkerReport>,
    /// The time to first token of the kept streams.
    pub ttft: DurationStats,
    /// Its parts, in order.
    pub parts: Vec<PartReport>,
}

#[derive(Debug, Serialize)]
pub(super) struct WorkerReport {
    pub name: String,
    pub role: String,
    pub phase: String,
    pub health: String,
    /// Requests of this gateway.
    pub requests: u64,
    /// Requests of other gateways; `None` if no agent reports them.
    pub others_requests: Option<f64>,
    /// From 0 (idle) to 1 (saturated); `None` if no agent reports it.
    pub score: Option<f64>,
    /// Age of what the agent reported.
    pub load_age_ms: Option<f64>,
}

#[derive(Debug, Serialize)]
pub(super) struct PartReport {
    pub part: &'static str,
    #[serde(flatten)]
    pub stats: DurationStats,
}

/// Milliseconds of those requests of which they are known.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct DurationStats {
    pub known: usize,
    pub mean_ms: Option<f64>,
    pub p50_ms: Option<f64>,
    pub p99_ms: Option<f64>,
}

#[derive(Debug, Serialize)]
pub(super) struct FailureReport {
    pub started_ms: u64,
    pub id: String,
    pub pool: String,
    pub reason: String,
    pub detail: String,
    pub ended_in: String,
    pub prefill: Option<String>,
    pub worker: Option<String>,
}

impl TopReport {
    /// Reads `/fleet`, and two pages of `/requests`: the last requests and the last failed ones.
    pub(super) fn of(
        fleet: &Value,
        requests: Option<&Value>,
        failures: Option<&Value>,
    ) -> TopReport {
        let loads: BTreeMap<(&str, &str), &Value> = items(&fleet["loads"])
            .map(|load| ((text(&load["pool"]), text(&load["worker"])), load))
            .collect();
        let streams: Vec<&Value> = requests.map_or(Vec::new(), |page| {
            items(&page["requests"]).filter(|one| one["ttft_ms"]["value"].is_number()).collect()
        });
        let pool = |pool: &Value| {
            let name = text(&pool["name"]);
            let of_pool: Vec<&Value> =
                streams.iter().copied().filter(|one| text(&one["pool"]) == name).collect();
            let worker = |member: &Value| {
                worker(member, loads.get(&(name, text(&member["worker"]["name"]))).copied())
            };
            PoolReport {
                name: name.to_owned(),
                workers: items(&pool["members"]).map(worker).collect(),
                ttft: stats(of_pool.iter().map(|one| &one["ttft_ms"])),
                parts: parts(&of_pool),
            }
        };
        let snapshot = &fleet["fleet"];
        TopReport {
            policy: text(&fleet["policy"]).to_owned(),
            queued: fleet["queued"].as_u64().unwrap_or(0),
            kept: requests.and_then(|page| page["kept"].as_u64()),
            pools: items(&snapshot["pools"]).map(pool).collect(),
            failures: failures
                .map_or(Vec::new(), |page| items(&page["requests"]).map(failure).collect()),
            problems: items(&snapshot["problems"]).map(problem).collect(),
        }
    }
}

fn worker(member: &Value, load: Option<&Value>) -> WorkerReport {
    let worker = &member["worker"];
    WorkerReport {
        name: text(&worker["name"]).to_owned(),
        role: text(&member["role"]).to_owned(),
        phase: text(&member["phase"]).to_owned(),
        health: text(&worker["health"]).to_owned(),
        requests: worker["usage"]["requests"].as_u64().unwrap_or(0),
        others_requests: load.and_then(|load| load["load"]["others_requests"].as_f64()),
        score: load.and_then(|load| load["kernel"]["score"]["value"].as_f64()),
        load_age_ms: load.and_then(|load| load["load"]["age_ms"].as_f64()),
    }
}

fn parts(streams: &[&Value]) -> Vec<PartReport> {
    let of_ttft = TimelinePart::ALL.into_iter().take(TimelinePart::OF_TTFT);
    let report = |part: TimelinePart| PartReport {
        part: part.as_str(),
        stats: stats(streams.iter().map(|one| &one["parts_ms"][part.as_str()])),
    };
    of_ttft.map(report).collect()
}

fn stats<'v>(measured: impl Iterator<Item = &'v Value>) -> DurationStats {
    let mut known: Vec<f64> = measured.filter_map(|one| one["value"].as_f64()).collect();
    known.sort_unstable_by(f64::total_cmp);
    let at = |share: f64| {
        let last = known.len().checked_sub(1)?;
        known.get((last as f64 * share).round() as usize).copied()
    };
    let mean = known.iter().sum::<f64>() / known.len() as f64;
    DurationStats {
        known: known.len(),
        mean_ms: (!known.is_empty()).then_some(mean),
        p50_ms: at(0.5),
        p99_ms: at(0.99),
    }
}

fn failure(request: &Value) -> FailureReport {
    let name = |key: &str| request[key].as_str().map(str::to_owned);
    FailureReport {
        started_ms: request["started_ms"].as_u64().unwrap_or(0),
        id: text(&request["id"]).to_owned(),
        pool: text(&request["pool"]).to_owned(),
        reason: text(&request["reason"]).to_owned(),
        detail: text(&request["detail"]).to_owned(),
        ended_in: text(&request["ended_in"]).to_owned(),
        prefill: name("prefill"),
        worker: name("worker"),
    }
}

fn problem(problem: &Value) -> String {
    let place = problem["object"].as_str().or(problem["source"].as_str()).unwrap_or_default();
    format!("{} {place}: {}", text(&problem["code"]), text(&problem["message"]))
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    fn known(ms: f64) -> Value {
        json!({"value": ms, "provenance": "exact"})
    }

    pub(in crate::top) fn example() -> TopReport {
        let fleet = json!({
            "policy": "predicted",
            "queued": 2,
            "fleet": {
                "pools": [{"name": "default/pool", "members": [
                    {"role": "prefill", "phase": "ready", "worker":
                        {"name": "default/p0", "health": "up", "usage": {"requests": 3}}},
                    {"role": "decode", "phase": "ready", "worker":
                        {"name": "default/d0", "health": "down", "usage": {"requests": 0}}},
                ]}],
                "problems": [{"code": "NotLeading", "source": "cluster", "message": "no lease"}],
            },
            "loads": [{"worker": "default/p0", "pool": "default/pool",
                "load": {"others_requests": 4.0, "age_ms": 12.5},
                "kernel": {"score": known(0.25)}}],
        });
        let unknown = json!({"value": null, "provenance": "unknown"});
        let request = |pool: &str, ms: f64, first_byte: &Value| {
            let parts = json!({"prefill": known(ms), "first_byte": first_byte});
            json!({"pool": pool, "ttft_ms": known(ms), "parts_ms": parts})
        };
        let no_stream = json!({"pool": "default/pool", "ttft_ms": unknown, "parts_ms": {}});
        let requests = json!({"kept": 4, "requests": [
            request("default/pool", 10.0, &unknown),
            request("default/pool", 30.0, &known(5.0)),
            request("default/another", 99.0, &known(99.0)),
            no_stream,
        ]});
        let failures = json!({"requests": [{"id": "abc", "pool": "default/pool",
            "started_ms": 1000, "reason": "decode_broken", "detail": "reset", "ended_in": "prefill",
            "prefill": "default/p0", "worker": "default/d0"}]});
        TopReport::of(&fleet, Some(&requests), Some(&failures))
    }

    #[test]
    fn parts_are_those_of_the_pools_own_streams() {
        let report = example();
        let pool = &report.pools[0];
        assert_eq!((pool.ttft.known, pool.ttft.mean_ms), (2, Some(20.0)));
        let of = |name: &str| &pool.parts.iter().find(|part| part.part == name).unwrap().stats;
        assert_eq!(
            of("first_byte"),
            &DurationStats { known: 1, mean_ms: Some(5.0), p50_ms: Some(5.0), p99_ms: Some(5.0) }
        );
        assert_eq!((of("queued").known, of("queued").mean_ms), (0, None));
    }

    #[test]
    fn what_no_agent_reports_is_none() {
        let workers = &example().pools[0].workers;
        assert_eq!((workers[0].score, workers[0].others_requests), (Some(0.25), Some(4.0)));
        assert_eq!((workers[1].score, workers[1].load_age_ms), (None, None));
    }

    #[test]
    fn a_gateway_that_keeps_no_requests_has_no_parts() {
        let report = TopReport::of(&json!({}), None, None);
        assert_eq!((report.kept, report.pools.len(), report.failures.len()), (None, 0, 0));
    }
}
