//! The report as text.

use std::fmt::{Display, Write as _};

use super::report::{DurationStats, FailureReport, PoolReport, TopReport, WorkerReport};

/// A page of lines, each of them with its newline.
pub(super) fn page(report: &TopReport) -> String {
    let mut page = format!("policy {}   waiting for capacity {}\n", report.policy, report.queued);
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
            "{:width$}  {:7}  {:8}  {:9}  {:>8}  {:>7}  {:>5}  {:>8}",
            "WORKER", "ROLE", "PHASE", "HEALTH", "REQUESTS", "OTHERS", "SCORE", "AGE"
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
    let WorkerReport { name, role, phase, health, requests, .. } = worker;
    let others = or_dash(worker.others_requests, |count| format!("{count:.0}"));
    let score = or_dash(worker.score, |score| format!("{score:.2}"));
    let age = or_dash(worker.load_age_ms, |ms| format!("{ms:.0} ms"));
    line(
        page,
        format_args!(
            "{name:width$}  {role:7}  {phase:8}  {health:9}  {requests:>8}  {others:>7}  {score:>5}  {age:>8}"
        ),
    );
}

fn add_stats(page: &mut String, name: &str, stats: &DurationStats) {
    let ms = |value| or_dash(value, |ms| format!("{ms:.1} ms"));
    let (mean, p50, p99) = (ms(stats.mean_ms), ms(stats.p50_ms), ms(stats.p99_ms));
    line(page, format_args!("{name:10}  {:>8}  {mean:>10}  {p50:>10}  {p99:>10}", stats.known));
}

fn add_failures(page: &mut String, failures: &[FailureReport]) {
    if failures.is_empty() {
        return;
    }
    heading(page, "LAST FAILURES");
    for failure in failures {
        let FailureReport { id, reason, detail, ended_in, .. } = failure;
        let worker = |name: &Option<String>| name.clone().unwrap_or_else(|| "-".to_owned());
        let (prefill, decode) = (worker(&failure.prefill), worker(&failure.worker));
        line(page, format_args!("{id}  {reason} in {ended_in}  {prefill} {decode}  {detail}"));
    }
}

fn or_dash(value: Option<f64>, text: impl FnOnce(f64) -> String) -> String {
    value.map_or_else(|| "-".to_owned(), text)
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::example;
    use super::*;

    #[test]
    fn the_page_shows_what_is_unknown_as_a_dash() {
        let want = "\
policy predicted   waiting for capacity 2

POOL default/pool
WORKER      ROLE     PHASE     HEALTH     REQUESTS   OTHERS  SCORE       AGE
default/p0  prefill  ready     up                3        4   0.25     12 ms
default/d0  decode   ready     down              0        -      -         -
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
        assert_eq!(page(&example()), want);
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
        let report = TopReport { kept: None, ..example() };
        assert!(page(&report).contains("--requests-kept 0"));
    }
}
