//! The report as text.

use std::fmt::{Display, Write as _};

use super::report::{
    DurationStats, GatewayReport, PoolReport, RequestReport, TopReport, WindowReport, WorkerReport,
};

/// A page of lines, each of them with its newline.
pub(super) fn page(report: &TopReport) -> String {
    let mut page = String::new();
    line(&mut page, summary(report));
    for gateway in report.gateways.iter().filter(|gateway| gateway.error.is_some()) {
        line(&mut page, gateway_line(gateway));
    }
    line(&mut page, window(report.window.as_ref(), report.kept.is_some()));
    for pool in &report.pools {
        add_pool(&mut page, pool, report.kept.is_some());
    }
    add_failures(&mut page, &report.failures);
    if !report.problems.is_empty() {
        heading(&mut page, "PROBLEMS");
        report.problems.iter().for_each(|problem| line(&mut page, problem));
    }
    page
}

/// The policy, the queue, and how many gateways answered.
pub(super) fn summary(report: &TopReport) -> String {
    let answered = report.gateways.iter().filter(|gateway| gateway.error.is_none()).count();
    let all = report.gateways.len();
    format!(
        "policy {}   waiting for capacity {}   gateways {answered} of {all} answered",
        report.policy, report.queued
    )
}

/// A gateway: its queue, or why it did not answer.
pub(super) fn gateway_line(gateway: &GatewayReport) -> String {
    let GatewayReport { address, error, version, queued, kept } = gateway;
    match error {
        Some(error) => format!("{address}  did not answer: {error}"),
        None => {
            let kept = kept.map_or_else(|| "no".to_owned(), |kept| kept.to_string());
            format!(
                "{address}  version {version}, waiting for capacity {queued}, {kept} requests kept"
            )
        }
    }
}

/// What the statistics are of.
pub(super) fn window(window: Option<&WindowReport>, is_kept: bool) -> String {
    let Some(WindowReport { seconds, requests, failed, per_second }) = window else {
        return match is_kept {
            true => "no request has ended yet".to_owned(),
            false => "requests are not kept (--requests-kept 0)".to_owned(),
        };
    };
    let rate = or_dash(*per_second, |rate| format!("{rate:.1}/s"));
    let share = 100.0 * *failed as f64 / (*requests).max(1) as f64;
    format!(
        "last {seconds:.0} s: {requests} requests ended, {rate}, {failed} failed ({share:.1} %)"
    )
}

fn heading(page: &mut String, text: impl Display) {
    page.push('\n');
    line(page, text);
}

/// Adds a line. Clients choose parts of it, such as a request's id: control characters, which a terminal
/// would obey, are replaced.
fn line(page: &mut String, text: impl Display) {
    let start = page.len();
    // Writing to a String cannot fail.
    let _ = write!(page, "{text}");
    if page[start..].contains(char::is_control) {
        let shown = page[start..].replace(char::is_control, "\u{fffd}");
        page.replace_range(start.., &shown);
    }
    page.push('\n');
}

fn add_pool(page: &mut String, pool: &PoolReport, is_kept: bool) {
    heading(page, format_args!("POOL {}", pool.name));
    let names = pool.workers.iter().map(|worker| worker.name.chars().count());
    let width = names.max().unwrap_or(0).max("WORKER".len());
    line(
        page,
        format_args!(
            "{:width$}  {:7}  {:8}  {:9}  {:>8}  {:>7}  {:>5}  {:>8}  {:>6}  REASON",
            "WORKER", "ROLE", "PHASE", "HEALTH", "REQUESTS", "OTHERS", "SCORE", "AGE", "SINCE"
        ),
    );
    pool.workers.iter().for_each(|worker| add_worker(page, worker, width));
    if !is_kept {
        line(page, "time to first token: not kept (--requests-kept 0)");
        return;
    }
    line(
        page,
        format_args!(
            "{:10}  {:>8}  {:>10}  {:>10}  {:>10}",
            "PART", "REQUESTS", "MEAN", "P50", "P99"
        ),
    );
    for part in &pool.parts {
        add_stats(page, part.part, &part.stats);
    }
    add_stats(page, "ttft", &pool.ttft);
}

fn add_worker(page: &mut String, worker: &WorkerReport, width: usize) {
    let WorkerReport { name, role, phase, requests, .. } = worker;
    let others = or_dash(worker.others_requests, |count| format!("{count:.0}"));
    let score = or_dash(worker.score, |score| format!("{score:.2}"));
    let age = or_dash(worker.load_age_ms, |ms| format!("{ms:.0} ms"));
    let since = or_dash(worker.health_for_ms, lasting);
    let reason = worker.health_reason.as_deref().unwrap_or("-");
    let health = health(worker);
    line(
        page,
        format_args!(
            "{name:width$}  {role:7}  {phase:8}  {health:9}  {requests:>8}  {others:>7}  {score:>5}  {age:>8}  \
             {since:>6}  {reason}"
        ),
    );
}

/// The worst health that a gateway sees, and at how many of them the worker is up where they differ.
pub(super) fn health(worker: &WorkerReport) -> String {
    match worker.up_at {
        0 => worker.health.clone(),
        up if up == worker.known_at => worker.health.clone(),
        up => format!("{} (up at {up} of {})", worker.health, worker.known_at),
    }
}

/// A time in its largest unit.
pub(super) fn lasting(ms: u64) -> String {
    match ms / 1000 {
        seconds @ 0..60 => format!("{seconds} s"),
        seconds @ 60..3600 => format!("{} min", seconds / 60),
        seconds @ 3600..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} d", seconds / 86_400),
    }
}

fn add_stats(page: &mut String, name: &str, stats: &DurationStats) {
    let [mean, p50, p99] = [stats.mean_ms, stats.p50_ms, stats.p99_ms].map(milliseconds);
    line(page, format_args!("{name:10}  {:>8}  {mean:>10}  {p50:>10}  {p99:>10}", stats.known));
}

pub(super) fn milliseconds(value: Option<f64>) -> String {
    or_dash(value, |ms| format!("{ms:.1} ms"))
}

fn add_failures(page: &mut String, failures: &[RequestReport]) {
    if failures.is_empty() {
        return;
    }
    heading(page, "LAST FAILURES");
    for failure in failures {
        let RequestReport { id, reason, detail, ended_in, .. } = failure;
        let worker = |name: &Option<String>| name.clone().unwrap_or_else(|| "-".to_owned());
        let (prefill, decode) = (worker(&failure.prefill), worker(&failure.worker));
        line(page, format_args!("{id}  {reason} in {ended_in}  {prefill} {decode}  {detail}"));
    }
}

pub(super) fn or_dash<T>(value: Option<T>, text: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| "-".to_owned(), text)
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::example;
    use super::*;

    #[test]
    fn the_page_shows_what_is_unknown_as_a_dash() {
        let want = "\
policy predicted   waiting for capacity 2   gateways 1 of 1 answered
last 10 s: 4 requests ended, 0.4/s, 1 failed (25.0 %)

POOL default/pool
WORKER      ROLE     PHASE     HEALTH     REQUESTS   OTHERS  SCORE       AGE   SINCE  REASON
default/p0  prefill  ready     up                3        4   0.25     12 ms    90 s  -
default/d0  decode   ready     down              0        -      -         -       -  -
PART        REQUESTS        MEAN         P50         P99
received           0           -           -           -
retried            0           -           -           -
queued             0           -           -           -
sent               0           -           -           -
prefill            2     20.0 ms     30.0 ms     30.0 ms
first_byte         1      5.0 ms      5.0 ms      5.0 ms
ttft               2     20.0 ms     30.0 ms     30.0 ms

LAST FAILURES
abc  decode_broken in prefill  default/p0 default/d0  reset

PROBLEMS
NotLeading cluster: no lease
";
        assert_eq!(page(&example()), want.replace("   90 s", "  1 min"));
    }

    #[test]
    fn a_client_cannot_write_to_the_terminal() {
        let mut report = example();
        report.failures[0].id = "\u{9b}2J".to_owned();
        report.failures[0].detail = "\u{1b}[2J\nPROBLEMS".to_owned();
        let page = page(&report);
        assert!(!page.contains(|c: char| c.is_control() && c != '\n'), "{page:?}");
        assert!(page.contains("\u{fffd}[2J\u{fffd}PROBLEMS\n"), "{page:?}");
    }

    #[test]
    fn a_gateway_that_keeps_no_requests_is_named_as_such() {
        let report = TopReport { kept: None, window: None, ..example() };
        assert!(page(&report).contains("requests are not kept (--requests-kept 0)"));
    }
}
