//! The `pd-router` command: parses the flags, runs the subcommand, sets the exit code.

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::FromArgMatches;
use pd_router::config::{Cli, Command, CompletionFlags, CrdFlags, command, negative_argument};
use pd_router::control::objects::crds;
use pd_router::shutdown::on_signal;
use pd_router::simulate::simulate;
use pd_router::stdout::print;
use pd_router::{agent, check, gateway, metrics, telemetry, top};

fn main() -> ExitCode {
    metrics::process::started();
    if let Some(why) = negative_argument() {
        _ = writeln!(std::io::stderr(), "pd-router: {why}");
        return ExitCode::from(2);
    }
    let cli = Cli::from_arg_matches(&command().get_matches()).unwrap_or_else(|error| error.exit());
    match start(cli) {
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
        Command::Top(flags) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(top::run(*flags))
        }
        Command::Simulate(flags) => simulate(&flags),
        Command::Check(flags) => check::run(&flags),
        Command::Completions(flags) => print_completions(&flags),
        Command::Crds(flags) => print_crds(&flags),
        Command::Agent(flags) if flags.cleanup => agent::cleanup(&flags),
        Command::Agent(flags) if flags.prepare_node => agent::prepare_node(&flags),
        Command::Agent(flags) => agent::run(*flags, || Ok(on_signal()?.cancelled_owned())),
    }
}

fn print_completions(flags: &CompletionFlags) -> Result<()> {
    print(&String::from_utf8(flags.script())?)
}

fn print_crds(flags: &CrdFlags) -> Result<()> {
    let mut printed = String::new();
    for (name, text) in crds::files().map_err(anyhow::Error::msg)? {
        match &flags.write {
            Some(folder) => {
                let path = folder.join(name);
                std::fs::write(&path, text).with_context(|| path.display().to_string())?;
            }
            None => printed.extend(["---\n", &text, "\n"]),
        }
    }
    print(&printed)
}
