//! [`Report`]: tables of many simulations, from which docs/understand/benchmarks.md is written.

use std::fmt::Write as _;
use std::ops::Range;
use std::str::FromStr;

use router_core::schedule::Tuning;

use crate::contender::Contender;
use crate::perturbation::Perturbation;
use crate::summary::Summary;
use crate::trace::Trace;
use crate::{FleetSetup, run};

/// A table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// `predicted` beside the simple rule and the published rules: healthy fleets of 1 to 8
    /// gateways, lasting trouble, perturbations.
    Comparison,
    /// `predicted` with each of its constants at nothing, halved and doubled.
    Sensitivity,
}

/// Load of healthy and perturbed fleets, and of fleets in trouble.
const LOAD: f64 = 0.9;
const LOAD_IN_TROUBLE: f64 = 0.6;
const GATEWAYS: [usize; 4] = [1, 2, 4, 8];
/// Lasting trouble of a fleet of 8 prefills and 8 decodes.
const TROUBLE: [&str; 4] = ["slow:0:3", "busy:0:0.9", "path:0:8:0.05", "slow:8:3"];
/// The policies that a perturbed fleet is compared with.
const BASELINES: [&str; 5] = ["least_load", "llm_d", "dynamo_kv", "lmetric", "kv"];

impl FromStr for Report {
    type Err = String;

    fn from_str(text: &str) -> Result<Report, String> {
        match text {
            "comparison" => Ok(Report::Comparison),
            "sensitivity" => Ok(Report::Sensitivity),
            _ => Err(format!("unknown report `{text}`; the reports are comparison, sensitivity")),
        }
    }
}

impl Report {
    /// Returns the table in Markdown. `setup` gives the fleet; gateways, faults and perturbations are
    /// the report's own, whatever `setup` has.
    ///
    /// # Errors
    /// A name of this file is not known: an error of the program.
    pub fn table(
        self,
        setup: &FleetSetup,
        traces: &[(String, Trace)],
        seeds: Range<u64>,
    ) -> Result<String, String> {
        let FleetSetup { gateways, faults, perturbation, .. } = FleetSetup::default();
        let setup = FleetSetup { gateways, faults, perturbation, ..setup.clone() };
        match self {
            Report::Comparison => comparison(&setup, traces, seeds),
            Report::Sensitivity => sensitivity(&setup, traces, seeds),
        }
    }
}

/// Mean and p99 of the time to first token.
fn ttft(
    setup: &FleetSetup,
    trace: &Trace,
    policy: &str,
    load: f64,
    seeds: &Range<u64>,
) -> Result<(f64, f64), String> {
    let contender: Contender = policy.parse()?;
    let Summary { ttft_ms, .. } = run(setup, trace, contender, load, seeds.clone());
    Ok((ttft_ms.mean, ttft_ms.p99))
}

fn comparison(
    setup: &FleetSetup,
    traces: &[(String, Trace)],
    seeds: Range<u64>,
) -> Result<String, String> {
    let mut cells = Vec::new();
    for gateways in GATEWAYS {
        let setup = FleetSetup { gateways, ..setup.clone() };
        cells.push((format!("healthy, gateways: {gateways}"), setup, LOAD, &BASELINES[4..]));
    }
    for fault in TROUBLE {
        let setup = FleetSetup { faults: vec![fault.parse()?], ..setup.clone() };
        cells.push((fault.to_owned(), setup, LOAD_IN_TROUBLE, &BASELINES[4..]));
    }
    for text in Perturbation::ALL {
        let setup = FleetSetup { perturbation: text.parse()?, ..setup.clone() };
        cells.push((text.to_owned(), setup, LOAD, &BASELINES[..]));
    }
    let mut table = "| fleet | trace | best baseline: mean | p99 | `predicted`: mean | p99 | \
                     ratio of means | of p99 |\n|---|---|---|---|---|---|---|---|\n"
        .to_owned();
    for (name, setup, load, baselines) in &cells {
        for (trace_name, trace) in traces {
            let (mean, p99) = ttft(setup, trace, "predicted", *load, &seeds)?;
            let (mut best_mean, mut best_p99) = ((f64::INFINITY, ""), (f64::INFINITY, ""));
            for baseline in *baselines {
                let (mean, p99) = ttft(setup, trace, baseline, *load, &seeds)?;
                best_mean = if mean < best_mean.0 { (mean, *baseline) } else { best_mean };
                best_p99 = if p99 < best_p99.0 { (p99, *baseline) } else { best_p99 };
            }
            // Writing to a String cannot fail.
            let _ = writeln!(
                table,
                "| {name} | {trace_name} | {} {:.0} | {} {:.0} | {mean:.0} | {p99:.0} | {:.3} | {:.3} |",
                best_mean.1,
                best_mean.0,
                best_p99.1,
                best_p99.0,
                mean / best_mean.0,
                p99 / best_p99.0,
            );
        }
    }
    Ok(table)
}

fn sensitivity(
    setup: &FleetSetup,
    traces: &[(String, Trace)],
    seeds: Range<u64>,
) -> Result<String, String> {
    let mut fleets = vec![("healthy".to_owned(), setup.clone(), "predicted", LOAD)];
    fleets.push(("no agents".to_owned(), setup.clone(), "predicted_alone", LOAD));
    for fault in [TROUBLE[0], TROUBLE[2]] {
        let setup = FleetSetup { faults: vec![fault.parse()?], ..setup.clone() };
        fleets.push((fault.to_owned(), setup, "predicted", LOAD_IN_TROUBLE));
    }
    let mut table = "| constant | value | trace |".to_owned();
    let _ = fleets.iter().try_for_each(|fleet| write!(table, " {}: mean, p99 |", fleet.0));
    table.push_str(&format!("\n|---|---|---|{}\n", "---|".repeat(fleets.len())));
    for (trace_name, trace) in traces {
        let mut usual = Vec::new();
        for (_, setup, policy, load) in &fleets {
            usual.push(ttft(setup, trace, policy, *load, &seeds)?);
        }
        for (name, field) in Tuning::FIELDS {
            for factor in [0.0, 0.5, 2.0] {
                let mut tuning = setup.tuning;
                *field(&mut tuning) *= factor;
                let _ = write!(table, "| `{name}` | {} | {trace_name} |", field(&mut tuning));
                for ((_, setup, policy, load), usual) in fleets.iter().zip(&usual) {
                    let setup = FleetSetup { tuning, ..setup.clone() };
                    let (mean, p99) = ttft(&setup, trace, policy, *load, &seeds)?;
                    let percent = |now: f64, usual: f64| (now / usual - 1.0) * 100.0;
                    let (mean, p99) = (percent(mean, usual.0), percent(p99, usual.1));
                    let _ = write!(table, " {mean:+.1} %, {p99:+.1} % |");
                }
                table.push('\n');
            }
        }
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mix::SyntheticMix;

    #[test]
    fn a_report_has_a_row_for_each_cell() {
        let traces = [("short".to_owned(), SyntheticMix::Short.draw(20, 1))];
        let rows = |report: Report| {
            report.table(&FleetSetup::default(), &traces, 1..2).unwrap().lines().count() - 2
        };
        let cells = GATEWAYS.len() + TROUBLE.len() + Perturbation::ALL.len();
        assert_eq!(rows(Report::Comparison), cells);
        assert_eq!(rows(Report::Sensitivity), Tuning::FIELDS.len() * 3);
    }

    #[test]
    fn gateways_faults_and_perturbations_are_the_report_s_own() {
        let traces = [("short".to_owned(), SyntheticMix::Short.draw(40, 1))];
        let others = FleetSetup {
            gateways: 3,
            faults: vec!["slow:0:9".parse().unwrap()],
            perturbation: "fixed:500".parse().unwrap(),
            ..FleetSetup::default()
        };
        for report in [Report::Comparison, Report::Sensitivity] {
            let table = |setup: &FleetSetup| report.table(setup, &traces, 1..2).unwrap();
            assert_eq!(table(&others), table(&FleetSetup::default()), "{report:?}");
        }
    }
}
