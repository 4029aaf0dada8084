//! `cargo xtask demo`: the documents' example, served by a real gateway and simulated engines.

mod kernel;
mod ports;
mod process;
mod request;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use crate::workspace::{self, Binaries};
use process::Process;
use request::Request;

/// How to run the demo.
#[derive(Debug, Args)]
pub(crate) struct Flags {
    /// End after the answers, instead of serving until Ctrl-C.
    #[arg(long)]
    pub(crate) once: bool,
}

/// The documents' files, and the pods that their workload would make.
const EXAMPLE: &str = "deploy/examples/qwen3-32b";
const PREFILLS: [&str; 2] = ["127.0.0.11", "127.0.0.12"];
const DECODE: &str = "127.0.0.21";
const ENGINE_PORT: u16 = 8000;
const BOOTSTRAP_PORT: u16 = 34000;
const GATEWAY: &str = "127.0.0.1:8080";
const ADMIN: &str = "127.0.0.1:9901";
/// The first token of a debug build on a busy machine comes well within this.
const START: Duration = Duration::from_secs(30);

/// Builds, serves, asks, and then serves on or ends.
///
/// # Errors
/// A port is taken, a process ends early, or an answer is not what it should be.
pub(crate) fn run(flags: &Flags) -> Result<()> {
    let binaries = workspace::build_binaries()?;
    let object = kernel::object();
    // The demo's ports are fixed, so there is one demo at a time.
    let _turn = ports::turn(flags.once)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        // Whatever ends first, the processes are dropped and thereby ended.
        tokio::select! {
            result = serve(&binaries, object, flags.once) => result,
            _ = interrupt.recv() => stopped(),
            _ = terminate.recv() => stopped(),
        }
    })
}

fn stopped() -> Result<()> {
    println!("\nstopped");
    Ok(())
}

async fn serve(binaries: &Binaries, object: Result<PathBuf, String>, once: bool) -> Result<()> {
    let counting = count(binaries, object).await;
    let mut processes = start(binaries).await?;
    for request in Request::all() {
        request.send(GATEWAY).await?;
    }
    match &counting {
        Ok(counting) => counting.show().await?,
        Err(reason) => println!("The kernel's view is left out: {reason}\n"),
    }
    println!("Where to look next:");
    println!("  curl -s http://{ADMIN}/fleet     the snapshot that the gateway serves");
    println!("  curl -s http://{ADMIN}/metrics   per leg and per worker, for Prometheus");
    println!("  {EXAMPLE}/    change a file there, and it takes effect within a second");
    if once {
        return Ok(());
    }
    println!("Serving on http://{GATEWAY} until Ctrl-C.");
    process::first_to_end(&mut processes).await
}

/// An agent, or why there is none.
async fn count(
    binaries: &Binaries,
    object: Result<PathBuf, String>,
) -> Result<kernel::Counting, String> {
    let counting = kernel::Counting::start(&binaries.pd_router, &object?).await;
    counting.map_err(|error| format!("{error:#}"))
}

async fn start(binaries: &Binaries) -> Result<Vec<Process>> {
    ports::check(&addresses()?)?;
    let mut processes = Vec::new();
    for (role, ip) in PREFILLS.map(|ip| ("prefill", ip)).into_iter().chain([("decode", DECODE)]) {
        let words = engine_words(role, ip);
        processes.push(Process::start(&format!("{role} {ip}"), &binaries.sglang_sim, &words)?);
    }
    for process in &mut processes {
        process.answers(SocketAddr::new(process.ip()?, ENGINE_PORT), "/v1/models", START).await?;
    }
    let example = workspace::root().join(EXAMPLE);
    if !example.is_dir() {
        bail!("{EXAMPLE} is missing");
    }
    let words = ["gateway", "--manifests", EXAMPLE, "--listen-address", "127.0.0.1"];
    let words = [&words[..], &["--admin-listen", ADMIN, "--explain-headers"]].concat();
    let words: Vec<String> = words.into_iter().map(str::to_owned).collect();
    let mut gateway = Process::start("gateway", &binaries.pd_router, &words)?;
    gateway.answers(ADMIN.parse()?, "/readyz", START).await?;
    processes.push(gateway);
    println!("2 prefills, 1 decode and the gateway are up.\n");
    Ok(processes)
}

fn engine_words(role: &str, ip: &str) -> Vec<String> {
    let port = ENGINE_PORT.to_string();
    let bootstrap = BOOTSTRAP_PORT.to_string();
    ["--role", role, "--engine", "0.4.10", "--host", ip, "--port", &port]
        .into_iter()
        .chain(["--bootstrap-port", &bootstrap])
        .map(str::to_owned)
        .collect()
}

/// Every address that the demo listens on.
fn addresses() -> Result<Vec<SocketAddr>> {
    let mut addresses: Vec<SocketAddr> = vec![GATEWAY.parse()?, ADMIN.parse()?];
    for prefill in PREFILLS {
        addresses.push(SocketAddr::new(prefill.parse()?, ENGINE_PORT));
        addresses.push(SocketAddr::new(prefill.parse()?, BOOTSTRAP_PORT));
    }
    addresses.push(SocketAddr::new(DECODE.parse().context("decode's address")?, ENGINE_PORT));
    Ok(addresses)
}
