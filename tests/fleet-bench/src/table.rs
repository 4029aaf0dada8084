//! Runs as tables: each router's figures by cell, and its ratios to the reference.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use crate::ratio::{PairedRound, Ratio, Statistic, ratio};
use crate::record::{Run, Sample};

const P50: Statistic = Statistic::Quantile(0.5);
const P90: Statistic = Statistic::Quantile(0.9);
const P99: Statistic = Statistic::Quantile(0.99);

/// The runs of one cell: routers in the order in which they were named, rounds by number.
struct CellRuns<'a> {
    cell: &'a str,
    routers: Vec<(&'a str, BTreeMap<u32, &'a Run>)>,
}

/// Prints [`tables`].
pub(crate) fn print(runs: &[Run]) {
    print!("{}", tables(runs));
}

/// Markdown: for each cell a table of figures and one of ratios. Rounds that some router lacks are left
/// out, so that every router has the same requests.
pub(crate) fn tables(runs: &[Run]) -> String {
    let mut text = String::new();
    for cell in cells(runs) {
        // Writing to a string cannot fail.
        _ = figures(&mut text, &cell).and_then(|()| ratios(&mut text, &cell));
    }
    text
}

/// A run while the others go on.
pub(crate) fn one_line(run: &Run) -> String {
    let (ttft, itl) = (values(&[run], ttft), values(&[run], itl));
    let mut line = format!(
        "round {} {} {}: {} of {} answered, TTFT mean {} p50 {} p99 {}, ITL mean {} p99 {}, cached {}, \
         CPU {} ms a request, {:.1} s, sent at most {:.1} ms late",
        run.round,
        run.cell,
        run.router,
        run.requests.iter().filter(|sample| sample.error.is_none()).count(),
        run.requests.len(),
        figure(Statistic::Mean.of(&ttft), 0),
        figure(P50.of(&ttft), 0),
        figure(P99.of(&ttft), 0),
        figure(Statistic::Mean.of(&itl), 2),
        figure(P99.of(&itl), 1),
        cached(&[run]),
        figure(run.gateway_cpu_ms, 2),
        run.wall_s,
        run.late_ms,
    );
    for (error, count) in run.errors() {
        _ = write!(line, "\n  {count} times: {error}");
    }
    line
}

fn cells(runs: &[Run]) -> Vec<CellRuns<'_>> {
    let mut cells: Vec<CellRuns> = Vec::new();
    let mut sorted: Vec<&Run> = runs.iter().collect();
    // The order of runs rotates from round to round.
    sorted.sort_by_key(|run| run.position);
    for run in sorted {
        let at = cells.iter().position(|cell| cell.cell == run.cell).unwrap_or_else(|| {
            cells.push(CellRuns { cell: &run.cell, routers: Vec::new() });
            cells.len() - 1
        });
        let routers = &mut cells[at].routers;
        match routers.iter_mut().find(|(name, _)| *name == run.router) {
            Some((_, rounds)) => _ = rounds.insert(run.round, run),
            None => routers.push((&run.router, BTreeMap::from([(run.round, run)]))),
        }
    }
    for cell in &mut cells {
        let mut rounds = cell
            .routers
            .iter()
            .map(|(_, rounds)| -> BTreeSet<u32> { rounds.keys().copied().collect() });
        let first = rounds.next().unwrap_or_default();
        let common = rounds.fold(first, |common, rounds| &common & &rounds);
        for (_, rounds) in &mut cell.routers {
            rounds.retain(|round, _| common.contains(round));
        }
    }
    cells
}

fn figures(text: &mut String, cell: &CellRuns) -> std::fmt::Result {
    let rounds: Vec<String> =
        cell.routers.iter().take(1).flat_map(|(_, runs)| runs.keys().map(u32::to_string)).collect();
    writeln!(text, "\n{}, rounds {}; times in milliseconds\n", cell.cell, rounds.join(" "))?;
    writeln!(
        text,
        "| router | answered | TTFT mean | p50 | p90 | p99 | ITL mean | p99 | cached | errors | \
         CPU a request | memory |\n|---|---|---|---|---|---|---|---|---|---|---|---|"
    )?;
    for (router, runs) in &cell.routers {
        let runs: Vec<&Run> = runs.values().copied().collect();
        let (ttft, itl) = (values(&runs, ttft), values(&runs, itl));
        let counted: usize = runs.iter().map(|run| run.counted().count()).sum();
        let errors: usize = runs.iter().map(|run| run.errors().values().sum::<usize>()).sum();
        let cpu: Vec<f64> = runs.iter().filter_map(|run| run.gateway_cpu_ms).collect();
        let memory = runs.iter().filter_map(|run| run.gateway_peak_mib).max();
        writeln!(
            text,
            "| {router} | {} of {counted} | {} | {} | {} | {} | {} | {} | {} | {errors} | {} | {} |",
            ttft.len(),
            figure(Statistic::Mean.of(&ttft), 0),
            figure(P50.of(&ttft), 0),
            figure(P90.of(&ttft), 0),
            figure(P99.of(&ttft), 0),
            figure(Statistic::Mean.of(&itl), 2),
            figure(P99.of(&itl), 1),
            cached(&runs),
            figure(Statistic::Mean.of(&cpu), 2),
            memory.map_or("-".to_owned(), |mib| format!("{mib} MiB")),
        )?;
    }
    Ok(())
}

/// The ratios of the reference, which is the first router, to each other.
fn ratios(text: &mut String, cell: &CellRuns) -> std::fmt::Result {
    let [(reference, first), others @ ..] = &cell.routers[..] else { return Ok(()) };
    if others.is_empty() {
        return Ok(());
    }
    writeln!(
        text,
        "\n| {reference} over | TTFT mean | p99 | ITL mean | p99 | TTFT mean by round |\n\
         |---|---|---|---|---|---|"
    )?;
    for (router, runs) in others {
        let paired = |of: fn(&Sample) -> Option<f64>| -> Vec<PairedRound> {
            first.iter().map(|(round, run)| pairs(run, runs[round], of)).collect()
        };
        let (ttft, itl) = (paired(ttft), paired(itl));
        let mean = ratio(&ttft, Statistic::Mean);
        let by_round = mean.iter().flat_map(|mean| &mean.by_round);
        let by_round: Vec<String> = by_round.map(|ratio| format!("{ratio:.2}")).collect();
        writeln!(
            text,
            "| {router} | {} | {} | {} | {} | {} |",
            shown(mean.as_ref()),
            shown(ratio(&ttft, P99).as_ref()),
            shown(ratio(&itl, Statistic::Mean).as_ref()),
            shown(ratio(&itl, P99).as_ref()),
            by_round.join(" "),
        )?;
    }
    Ok(())
}

/// Values of the requests that both answered.
fn pairs(first: &Run, second: &Run, of: fn(&Sample) -> Option<f64>) -> PairedRound {
    let counted = first.counted().filter_map(|(at, sample)| {
        let other = second.requests.get(at)?;
        Some((of(sample)?, of(other)?))
    });
    counted.collect()
}

fn ttft(sample: &Sample) -> Option<f64> {
    sample.ttft_ms
}

fn itl(sample: &Sample) -> Option<f64> {
    sample.itl_ms
}

fn values(runs: &[&Run], of: fn(&Sample) -> Option<f64>) -> Vec<f64> {
    runs.iter().flat_map(|run| run.counted()).filter_map(|(_, sample)| of(sample)).collect()
}

fn cached(runs: &[&Run]) -> String {
    let sum = |of: fn(&Run) -> Option<f64>| runs.iter().map(|run| of(run)).sum::<Option<f64>>();
    let shares = sum(|run| run.cached_tokens).zip(sum(|run| run.prompt_tokens));
    let share = shares.filter(|(_, prompt)| *prompt > 0.0).map(|(cached, prompt)| cached / prompt);
    share.map_or("-".to_owned(), |share| format!("{:.1} %", share * 100.0))
}

fn figure(value: Option<f64>, decimals: usize) -> String {
    value.map_or("-".to_owned(), |value| format!("{value:.decimals$}"))
}

fn shown(ratio: Option<&Ratio>) -> String {
    let Some(Ratio { ratio, interval, .. }) = ratio else { return "-".to_owned() };
    match interval {
        Some((low, high)) => format!("{ratio:.2} [{low:.2}, {high:.2}]"),
        None => format!("{ratio:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(router: &str, round: u32, ttft_ms: f64) -> Run {
        let sample = |at: u32| Sample {
            at_s: f64::from(at),
            ttft_ms: Some(ttft_ms),
            itl_ms: Some(2.0),
            ..Sample::default()
        };
        Run {
            round,
            cell: "docs:9".to_owned(),
            router: router.to_owned(),
            position: usize::from(router != "a"),
            gateways: 1,
            warm_up_s: 5.0,
            wall_s: 10.0,
            late_ms: 0.1,
            gateway_cpu_ms: Some(1.5),
            gateway_peak_mib: Some(20),
            prompt_tokens: Some(100.0),
            cached_tokens: Some(25.0),
            requests: (0..10).map(sample).collect(),
        }
    }

    #[test]
    fn rounds_that_a_router_lacks_are_left_out_and_so_is_the_warm_up() {
        let runs = [run("a", 0, 10.0), run("b", 0, 20.0), run("a", 1, 30.0), run("b", 1, 30.0)];
        let with_more = [&runs[..], &[run("a", 2, 99.0)]].concat();
        let text = tables(&with_more);
        assert_eq!(text, tables(&runs));
        assert!(text.contains("docs:9, rounds 0 1;"), "{text}");
        assert!(
            text.contains("| a | 10 of 10 | 20 | 10 | 30 | 30 | 2.00 | 2.0 | 25.0 % | 0 | 1.50 |")
        );
        let ratio = "| b | 0.80 [0.50, 1.00] | 1.00 [0.50, 1.00] | 1.00 [1.00, 1.00] |";
        assert!(text.contains(ratio), "{text}");
        assert!(text.contains("| 0.50 1.00 |"), "{text}");
    }

    #[test]
    fn errors_are_counted_and_their_requests_have_no_times() {
        let mut first = run("a", 0, 10.0);
        let failed = &mut first.requests[7];
        (failed.ttft_ms, failed.itl_ms) = (None, None);
        failed.error = Some("status 503: full".to_owned());
        let text = tables(&[first.clone(), run("b", 0, 20.0)]);
        assert!(text.contains("| a | 4 of 5 | 10 |"), "{text}");
        assert!(text.contains("| 25.0 % | 1 |"), "{text}");
        assert!(one_line(&first).contains("1 times: status 503: full"));
        // One round has no interval.
        assert!(text.contains("| b | 0.50 | 0.50 |"), "{text}");
    }
}
