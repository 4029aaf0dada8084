//! Development tasks of pd-router, one subcommand each.

mod apiserver;
mod bench;
mod binaries;
mod browser;
mod ci;
mod cluster;
mod conformance;
mod counts;
mod crds;
mod demo;
mod docs;
mod ebpf;
mod fuzz;
mod golang;
mod helm;
mod images;
mod kernels;
mod nightly;
mod parts;
mod pictures;
mod promtool;
mod python;
mod real_sglang;
mod setup;
mod shell;
mod steps;
mod test;
mod tidy;
mod tools;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::parts::Summary;

/// Development tasks of pd-router. Every task works with and without root, and may run twice at the
/// same time.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Debug, Subcommand)]
enum Chore {
    /// Find or install the tools that building and testing need, and print which are used.
    Setup,
    /// Serve the documents' example: simulated prefill and decode engines behind a real gateway.
    Demo(demo::Flags),
    /// Build the object file of the eBPF programs.
    BuildEbpf,
    /// Run the test suites, or one of them. The last line names those that were left out.
    Test(test::Flags),
    /// Start, use and end a Kubernetes cluster on this machine.
    Cluster(cluster::Flags),
    /// Make the images of deploy/ as archives, without a container engine.
    Images(images::Flags),
    /// Run a conformance suite of others on a cluster, and write its report and its page.
    Conformance(conformance::Flags),
    /// Run a benchmark.
    Bench(bench::Flags),
    /// Run the fuzz targets on inputs of libFuzzer. A violated law, a timeout or too much memory is an
    /// error that names the input.
    Fuzz(fuzz::Flags),
    /// Generate the CustomResourceDefinitions in deploy/crds from the Rust types.
    Crds,
    /// Take the pictures of docs/images that show a live fleet; needs what the suite page needs.
    Pictures,
    /// Check the style: sizes, names, words, module boundaries, links.
    Tidy,
    /// Build the book and the API documentation; a broken link is an error.
    Docs,
    /// Run what a change must pass: format, clippy, tidy, tests, docs. The last line names what was left
    /// out.
    Ci(ci::Flags),
}

fn main() -> ExitCode {
    let result = match Cli::parse().chore {
        Chore::Setup => setup::run(),
        Chore::Demo(flags) => demo::run(&flags),
        Chore::BuildEbpf => ebpf::build().map(|_| ()),
        Chore::Test(flags) => return summed_up(&test::run(&flags)),
        Chore::Cluster(flags) => cluster::run(flags),
        Chore::Images(flags) => images::run(&flags),
        Chore::Conformance(flags) => conformance::run(&flags),
        Chore::Bench(flags) => bench::run(&flags),
        Chore::Fuzz(flags) => fuzz::run(&flags),
        Chore::Crds => crds::run(),
        Chore::Pictures => pictures::run(),
        Chore::Tidy => tidy::run(),
        Chore::Docs => docs::run(),
        Chore::Ci(flags) => return summed_up(&ci::run(&flags)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Prints the summary as the last line, where a CI looks for it.
fn summed_up(summary: &Summary) -> ExitCode {
    println!("{summary}");
    if summary.counts.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
