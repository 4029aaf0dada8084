//! `fleet-bench`: routers before a prefill/decode fleet of real or simulated engines, compared under
//! open-loop load. `cargo xtask bench fleet` builds what it needs and runs it.

mod agent;
mod client;
mod engines;
mod load;
mod manifests;
mod process;
mod ratio;
mod record;
mod rounds;
mod routers;
mod single;
mod site;
mod table;
mod template;
mod words;
mod workload;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

/// Threads of the load generator.
const THREADS: usize = 4;

/// Compares routers before a prefill/decode fleet, under open-loop load.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Bring up a fleet, or use one that exists, and compare routers in interleaved rounds.
    Run(Box<rounds::Flags>),
    /// Put load on OpenAI endpoints that exist, once, and print the result as a line of JSON.
    Load(Box<single::Flags>),
    /// Print the tables of files that `run` and `load` have written.
    Table {
        /// Files of JSON lines.
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(flags) => rounds::run(*flags),
        Command::Load(flags) => single::run(&flags),
        Command::Table { files } => print_tables(&files),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn print_tables(files: &[PathBuf]) -> Result<()> {
    let runs: Vec<Vec<record::Run>> =
        files.iter().map(|file| record::read(file)).collect::<Result<_>>()?;
    table::print(&runs.concat());
    Ok(())
}

/// A runtime whose threads are in the network of the thread that calls this.
fn runtime() -> Result<Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(THREADS).enable_all().build().context("starting threads")
}

/// Kills what was started, and ends, on SIGINT, SIGTERM and SIGHUP: a terminal that is gone leaves no engine.
fn end_on_signals() -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
        process::kill_all();
        // The namespaces end with this process.
        std::process::exit(130);
    });
    Ok(())
}
