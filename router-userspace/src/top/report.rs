//! [`TopReport`]: what `top` shows, read from the pages of the gateways' admin ports.

use std::collections::{BTreeMap, HashSet};

use router_core::timeline::TimelinePart;
use serde::Serialize;
use serde_json::Value;

use super::pages::GatewayPages;

/// Maximum number of failures in a report.
const MAX_FAILURES: usize = 20;
/// Maximum number of requests in a report: the failed ones and the slowest.
const MAX_REQUESTS: usize = 200;

/// Gateways, pools, workers, parts of the time to first token, failures and problems.
#[derive(Debug, Serialize)]
pub(super) struct TopReport {
    pub gateways: Vec<GatewayReport>,
    /// The policy of the first gateway that answered.
    pub policy: String,
    /// Requests that wait for capacity, at all gateways.
    pub queued: u64,
    /// Requests in the gateways' memory; `None` if none keeps any.
    pub kept: Option<u64>,
    /// What the statistics are of.
    pub window: Option<WindowReport>,
    pub pools: Vec<PoolReport>,
    pub failures: Vec<RequestReport>,
    /// Those of the window, and the last failed ones that are kept for longer: the failed ones first, then
    /// those whose client waited longest.
    #[serde(skip)]
    pub requests: Vec<RequestReport>,
    pub problems: Vec<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct GatewayReport {
    pub address: String,
    /// Why it did not answer.
    pub error: Option<String>,
    pub version: String,
    pub queued: u64,
    pub kept: Option<u64>,
}

/// The time in which every request that ended is known, of all gateways. Older ones, of which gateways keep the
/// slow and the failed ones alone, count for no statistics.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct WindowReport {
    pub seconds: f64,
    pub requests: usize,
    pub failed: usize,
    pub per_second: Option<f64>,
}

#[derive(Debug, Serialize)]
pub(super) struct PoolReport {
    pub name: String,
    pub workers: Vec<WorkerReport>,
    /// The time to first token of the streams of the window.
    pub ttft: DurationStats,
    /// Its parts, in order.
    pub parts: Vec<PartReport>,
}

#[derive(Debug, Serialize)]
pub(super) struct WorkerReport {
    pub name: String,
    pub role: String,
    pub phase: String,
    /// The worst that a gateway sees.
    pub health: String,
    /// For how long that gateway sees it, and why.
    pub health_for_ms: Option<u64>,
    pub health_reason: Option<String>,
    /// Gateways that see it up, and those that have it.
    pub up_at: usize,
    pub known_at: usize,
    /// Requests of the gateways that answered.
    pub requests: u64,
    /// Requests of others; `None` if no agent reports them.
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

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct RequestReport {
    /// The gateway that served it.
    pub gateway: String,
    pub started_ms: u64,
    pub id: String,
    pub pool: String,
    pub reason: String,
    pub detail: String,
    pub ended_in: String,
    pub prefill: Option<String>,
    pub worker: Option<String>,
    /// Time to first token; the duration without one.
    pub waited_ms: f64,
    pub ended_ms: f64,
}

/// A gateway that answered.
struct Answered<'p> {
    address: &'p str,
    fleet: &'p Value,
    requests: Option<&'p Value>,
    failures: Option<&'p Value>,
}

impl TopReport {
    /// Puts the pages of all gateways together.
    pub(super) fn of(pages: &[GatewayPages]) -> TopReport {
        let answered: Vec<Answered<'_>> = pages.iter().filter_map(Answered::of).collect();
        let window = Window::of(&answered);
        let gateways: Vec<GatewayReport> = pages.iter().map(gateway).collect();
        let mut failures: Vec<RequestReport> = answered
            .iter()
            .flat_map(|one| items_of(one.failures).map(|failed| request(one.address, failed)))
            .collect();
        failures.sort_by_key(|failure| std::cmp::Reverse(failure.started_ms));
        failures.truncate(MAX_FAILURES);
        let mut problems: Vec<String> = answered
            .iter()
            .flat_map(|one| items(&one.fleet["fleet"]["problems"]))
            .map(problem)
            .collect();
        problems.sort_unstable();
        problems.dedup();
        TopReport {
            policy: answered.first().map_or("", |one| text(&one.fleet["policy"])).to_owned(),
            queued: gateways.iter().map(|gateway| gateway.queued).sum(),
            kept: gateways.iter().filter_map(|gateway| gateway.kept).reduce(|a, b| a + b),
            pools: pools(&answered, &window.requests),
            requests: worst_first(&window.requests, &answered),
            window: window.report(),
            gateways,
            failures,
            problems,
        }
    }
}

impl<'p> Answered<'p> {
    fn of(pages: &'p GatewayPages) -> Option<Answered<'p>> {
        Some(Answered {
            address: &pages.address,
            fleet: pages.fleet.as_ref().ok()?,
            requests: pages.requests.as_ref(),
            failures: pages.failures.as_ref(),
        })
    }
}

fn gateway(pages: &GatewayPages) -> GatewayReport {
    let fleet = pages.fleet.as_ref();
    GatewayReport {
        address: pages.address.clone(),
        error: fleet.err().cloned(),
        version: fleet.map_or("", |fleet| text(&fleet["version"])).to_owned(),
        queued: fleet.ok().and_then(|fleet| fleet["queued"].as_u64()).unwrap_or(0),
        kept: pages.requests.as_ref().and_then(|page| page["kept"].as_u64()),
    }
}

/// The requests that ended since all gateways know all of theirs.
struct Window<'p> {
    /// Each with the address of its gateway.
    requests: Vec<(&'p str, &'p Value)>,
    ms: Option<f64>,
}

impl<'p> Window<'p> {
    fn of(answered: &[Answered<'p>]) -> Window<'p> {
        let pages = answered.iter().filter_map(|one| Some((one.address, one.requests?)));
        let pages: Vec<(&str, &Value)> = pages.collect();
        let ms = pages.iter().filter_map(|(_, page)| known_for_ms(page)).reduce(f64::min);
        let mut requests = Vec::new();
        for (address, page) in &pages {
            let now = page["now_ms"].as_f64().unwrap_or(f64::INFINITY);
            let is_in = |one: &&Value| ms.is_none_or(|ms| ended_ms(one) >= now - ms);
            requests.extend(items(&page["requests"]).filter(is_in).map(|one| (*address, one)));
        }
        Window { requests, ms }
    }

    fn report(&self) -> Option<WindowReport> {
        let requests = self.requests.len();
        let failed = self.requests.iter().filter(|(_, one)| text(&one["reason"]) != "ok").count();
        let seconds = self.ms? / 1e3;
        let per_second = (seconds > 0.0).then(|| requests as f64 / seconds);
        Some(WindowReport { seconds, requests, failed, per_second })
    }
}

/// For how long a gateway's page has every request that ended. `None` for a page without requests.
fn known_for_ms(page: &Value) -> Option<f64> {
    let now = page["now_ms"].as_f64()?;
    let listed: Vec<&Value> = items(&page["requests"]).collect();
    let oldest = listed.iter().map(|one| ended_ms(one)).reduce(f64::min)?;
    let is_cut = page["kept"].as_u64().is_some_and(|kept| kept > listed.len() as u64);
    let complete = page["complete_since_ms"].as_f64();
    // Without either the list has all since the start, of which the first request is the best bound.
    let since = match (complete, is_cut) {
        (Some(complete), true) => complete.max(oldest),
        (Some(complete), false) => complete,
        (None, _) => oldest,
    };
    Some((now - since).max(0.0))
}

fn ended_ms(request: &Value) -> f64 {
    let number = |key: &str| request[key].as_f64().unwrap_or(0.0);
    number("started_ms") + number("duration_ms")
}

fn pools(answered: &[Answered<'_>], requests: &[(&str, &Value)]) -> Vec<PoolReport> {
    let mut workers: BTreeMap<&str, Vec<Seen<'_>>> = BTreeMap::new();
    for one in answered {
        let loads: BTreeMap<(&str, &str), &Value> = items(&one.fleet["loads"])
            .map(|load| ((text(&load["pool"]), text(&load["worker"])), load))
            .collect();
        for pool in items(&one.fleet["fleet"]["pools"]) {
            let name = text(&pool["name"]);
            let seen = workers.entry(name).or_default();
            seen.extend(items(&pool["members"]).map(|member| {
                let worker = text(&member["worker"]["name"]);
                Seen { worker, member, load: loads.get(&(name, worker)).copied() }
            }));
        }
    }
    let report = |(name, seen): (&str, Vec<Seen<'_>>)| {
        let is_stream = |one: &&Value| one["ttft_ms"]["value"].is_number();
        let own = requests.iter().map(|(_, one)| *one).filter(|one| text(&one["pool"]) == name);
        let streams: Vec<&Value> = own.filter(is_stream).collect();
        PoolReport {
            name: name.to_owned(),
            workers: merged(seen),
            ttft: stats(streams.iter().map(|one| &one["ttft_ms"])),
            parts: parts(&streams),
        }
    };
    workers.into_iter().map(report).collect()
}

/// A worker as one gateway sees it.
struct Seen<'p> {
    worker: &'p str,
    member: &'p Value,
    load: Option<&'p Value>,
}

impl<'p> Seen<'p> {
    fn health(&self) -> &'p str {
        text(&self.member["worker"]["health"])
    }

    fn own(&self) -> u64 {
        self.member["worker"]["usage"]["requests"].as_u64().unwrap_or(0)
    }

    fn number(&self, path: &str) -> Option<f64> {
        self.load.and_then(|load| load.pointer(path)?.as_f64())
    }
}

/// How bad a health is: the order in which workers are listed, and which one of several counts.
pub(super) fn badness(health: &str) -> usize {
    let order = ["up", "unknown", "half-open", "failing", "down"];
    order.iter().position(|known| *known == health).unwrap_or(1)
}

/// One report for each worker, in the order in which they were seen first.
fn merged(seen: Vec<Seen<'_>>) -> Vec<WorkerReport> {
    let mut names: Vec<&str> = Vec::new();
    let mut by_name: BTreeMap<&str, Vec<Seen<'_>>> = BTreeMap::new();
    for one in seen {
        let of = by_name.entry(one.worker).or_default();
        if of.is_empty() {
            names.push(one.worker);
        }
        of.push(one);
    }
    names.iter().filter_map(|name| worker(name, &by_name[name])).collect()
}

fn worker(name: &str, seen: &[Seen<'_>]) -> Option<WorkerReport> {
    let worst = seen.iter().max_by_key(|one| badness(one.health()))?;
    let health = worst.load.map(|load| &load["health"]);
    let own: u64 = seen.iter().map(Seen::own).sum();
    // What the kernel counts at the engine is the same for all gateways; what is not theirs is of others.
    let all =
        seen.iter().filter_map(|one| Some(one.own() as f64 + one.number("/load/others_requests")?));
    let freshest = seen.iter().filter_map(|one| one.number("/load/age_ms")).reduce(f64::min);
    Some(WorkerReport {
        name: name.to_owned(),
        role: text(&worst.member["role"]).to_owned(),
        phase: text(&worst.member["phase"]).to_owned(),
        health: worst.health().to_owned(),
        health_for_ms: health.and_then(|health| health["for_ms"].as_u64()),
        health_reason: health.and_then(|health| health["reason"].as_str()).map(str::to_owned),
        up_at: seen.iter().filter(|one| one.health() == "up").count(),
        known_at: seen.len(),
        requests: own,
        others_requests: all.reduce(f64::max).map(|all| (all - own as f64).max(0.0)),
        score: seen.iter().find_map(|one| one.number("/kernel/score/value")),
        load_age_ms: freshest,
    })
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

fn worst_first<'p>(
    window: &[(&'p str, &'p Value)],
    answered: &[Answered<'p>],
) -> Vec<RequestReport> {
    let in_window: HashSet<_> =
        window.iter().map(|(gateway, one)| identity(gateway, one)).collect();
    let failures = answered
        .iter()
        .flat_map(|one| items_of(one.failures).map(move |failed| (one.address, failed)));
    let older = failures.filter(|(gateway, one)| !in_window.contains(&identity(gateway, one)));
    let listed = window.iter().copied().chain(older);
    let mut all: Vec<RequestReport> = listed.map(|(gateway, one)| request(gateway, one)).collect();
    all.sort_by(|a, b| {
        let by_failure = b.is_failed().cmp(&a.is_failed());
        by_failure.then(b.waited_ms.total_cmp(&a.waited_ms))
    });
    all.truncate(MAX_REQUESTS);
    all
}

/// What distinguishes a request from all others: two may have the same id.
fn identity<'p>(gateway: &'p str, request: &'p Value) -> (&'p str, &'p str, Option<u64>) {
    (gateway, text(&request["id"]), request["started_ms"].as_u64())
}

impl RequestReport {
    pub(super) fn is_failed(&self) -> bool {
        self.reason != "ok"
    }
}

fn request(gateway: &str, request: &Value) -> RequestReport {
    let name = |key: &str| request[key].as_str().map(str::to_owned);
    let duration = request["duration_ms"].as_f64().unwrap_or(0.0);
    RequestReport {
        gateway: gateway.to_owned(),
        started_ms: request["started_ms"].as_u64().unwrap_or(0),
        id: text(&request["id"]).to_owned(),
        pool: text(&request["pool"]).to_owned(),
        reason: text(&request["reason"]).to_owned(),
        detail: text(&request["detail"]).to_owned(),
        ended_in: text(&request["ended_in"]).to_owned(),
        prefill: name("prefill"),
        worker: name("worker"),
        waited_ms: request["ttft_ms"]["value"].as_f64().unwrap_or(duration),
        ended_ms: ended_ms(request),
    }
}

fn problem(problem: &Value) -> String {
    let place = problem["object"].as_str().or(problem["source"].as_str()).unwrap_or_default();
    format!("{} {place}: {}", text(&problem["code"]), text(&problem["reason"]))
}

fn items_of(page: Option<&Value>) -> impl Iterator<Item = &Value> {
    page.into_iter().flat_map(|page| items(&page["requests"]))
}

pub(super) fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

pub(super) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
pub(super) mod tests;
