//! The command `top`: what gateways serve now, and where the time to first token goes.
//!
//! It reads `/fleet` and `/requests` of their admin ports, so that it shows what a script can read there too.

mod draw;
mod pages;
mod report;
mod screen;
mod terminal;
mod text;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use http::uri::Authority;

use self::pages::AdminPages;
use crate::config::duration;

/// Flags of `pd-router top`.
#[derive(Debug, Args)]
#[command(next_help_heading = "What to show")]
pub struct TopFlags {
    /// Admin port of the gateway (its --admin-listen). Every address of a name is asked, as a headless Service
    /// has one for each replica, and the replicas are shown together. May be repeated.
    #[arg(long, default_value = "127.0.0.1:9901", value_name = "HOST:PORT")]
    pub gateway: Vec<Authority>,
    /// File with the bearer token of the admin port (its --admin-token-file).
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Print once and end. Without this flag, a screen is shown that is controlled with keys; `?` lists them.
    #[arg(long)]
    pub once: bool,
    /// Print one JSON object instead of text. Requires --once.
    #[arg(long, requires = "once")]
    pub json: bool,
    /// Interval at which the gateways are asked again.
    #[arg(long, default_value = "2s", value_parser = duration, value_name = "DURATION")]
    pub interval: Duration,
}

/// Prints the report once, or shows it on the terminal until it is left.
///
/// # Errors
/// The token file cannot be read, or standard output is closed or no terminal. With `--once`, also: no
/// gateway answers, or an answer is not understood.
pub async fn run(flags: TopFlags) -> Result<()> {
    let source = AdminPages::new(&flags)?;
    if !flags.once {
        if !std::io::stdout().is_terminal() {
            bail!("standard output is no terminal: use --once");
        }
        return terminal::show(source, flags.interval).await;
    }
    let report = source.report().await?;
    let page = match flags.json {
        true => serde_json::to_string(&report)? + "\n",
        false => text::page(&report),
    };
    crate::stdout::print(&page)
}
