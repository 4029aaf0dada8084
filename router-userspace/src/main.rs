//! The `pd-router` command: parse, build, run, exit code.

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use router_userspace::config::{Cli, Command, CrdFlags};
use router_userspace::control::objects::crds;
use router_userspace::simulate::simulate;
use router_userspace::{agent, gateway, telemetry};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

fn main() -> ExitCode {
    match start(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // `eprintln!` would panic where stderr is closed.
            _ = writeln!(std::io::stderr(), "pd-router: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(cli: Cli) -> Result<()> {
    let _log = telemetry::start(&cli.telemetry)?;
    match cli.command {
        Command::Gateway(flags) => {
            let settings = flags.settings()?;
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            runtime.block_on(async { gateway::run(settings, on_signal()?).await })
        }
        Command::Simulate(flags) => simulate(&flags),
        Command::Crds(flags) => definitions(&flags),
        Command::Agent(flags) if flags.cleanup => agent::cleanup(&flags),
        Command::Agent(flags) if flags.prepare_node => agent::prepare_node(&flags),
        Command::Agent(flags) => agent::run(*flags, || Ok(on_signal()?.cancelled_owned())),
    }
}

fn definitions(flags: &CrdFlags) -> Result<()> {
    for (name, text) in crds::files().map_err(anyhow::Error::msg)? {
        match &flags.write {
            Some(folder) => {
                let path = folder.join(name);
                std::fs::write(&path, text).with_context(|| path.display().to_string())?;
            }
            None => println!("---\n{text}"),
        }
    }
    Ok(())
}

/// Cancelled at the first SIGTERM or SIGINT; a second one ends the process at once.
fn on_signal() -> Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    let shutdown = CancellationToken::new();
    let told = shutdown.clone();
    // Lives as long as the process: it is what ends it.
    tokio::spawn(async move {
        for status in [None, Some(130)] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            told.cancel();
            if let Some(status) = status {
                std::process::exit(status);
            }
        }
    });
    Ok(shutdown)
}
