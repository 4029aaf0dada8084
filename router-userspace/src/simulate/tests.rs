//! Tests of the command on a few requests.

use clap::Parser;

use super::*;
use crate::config::{Cli, Command};

fn flags(line: &str) -> SimulateFlags {
    let arguments = "pd-router simulate ".to_owned() + line;
    let Command::Simulate(flags) = Cli::parse_from(arguments.split_whitespace()).command else {
        panic!("another command")
    };
    *flags
}

#[test]
fn a_comparison_writes_the_requested_files() {
    let stem = std::env::temp_dir().join(format!("pd-router-simulate-{}", std::process::id()));
    let (json, plot) = (stem.with_extension("json"), stem.with_extension("svg"));
    let files = format!("--json {} --plot {}", json.display(), plot.display());
    let line = "--requests 60 --load 0.5 --seeds 1 --policies predicted,oracle ".to_owned();
    simulate(&flags(&(line + &files))).unwrap();
    let text = std::fs::read_to_string(&json).unwrap();
    let runs: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(runs["runs"][0]["policy"], "predicted");
    for field in ["mean", "p50", "p90", "p99"] {
        assert!(runs["runs"][1]["ttft_ms"][field].as_f64().unwrap() > 0.0, "{field}");
    }
    assert!(runs["runs"][1]["goodput_rps"].is_f64());
    assert!(std::fs::read_to_string(&plot).unwrap().contains("<polyline"));
    std::fs::remove_file(json).unwrap();
    std::fs::remove_file(plot).unwrap();
}

#[test]
fn an_error_names_the_invalid_flag() {
    for (line, name) in [
        ("--trace /nowhere", "/nowhere"),
        ("--policies best", "--policies"),
        ("--load 0", "--load"),
        ("--fault dies:99", "--fault"),
        ("--fault path:9:1:0.5", "--fault"),
        ("--seeds 0", "--seeds"),
        ("--requests 5 --trace synthetic,synthetic-short", "--trace"),
    ] {
        let error = format!("{:#}", simulate(&flags(line)).unwrap_err());
        assert!(error.contains(name), "{line}: {error}");
    }
}

#[test]
fn a_report_and_a_file_of_results_exclude_each_other() {
    for file in ["--json", "--plot"] {
        let line = ["pd-router", "simulate", "--report", "comparison", file, "/nowhere/file"];
        let error = Cli::try_parse_from(line).unwrap_err().to_string();
        assert!(error.contains("--report") && error.contains(file), "{error}");
    }
}

#[test]
fn no_value_of_a_flag_of_the_simulator_panics_and_a_wrong_one_is_named() {
    for flag in crate::config::tests::flags_with_values("simulate") {
        for value in crate::config::tests::EXTREME_VALUES {
            let value = format!("{flag}={value}");
            let error = match Cli::try_parse_from(["pd-router", "simulate", &value]) {
                Err(error) => error.to_string(),
                Ok(Cli { command: Command::Simulate(flags), .. }) => match setup(&flags) {
                    Err(error) => format!("{error:#}"),
                    Ok(_) => continue,
                },
                Ok(_) => panic!("another command"),
            };
            assert!(error.contains(&flag), "{value}: {error}");
        }
    }
}
