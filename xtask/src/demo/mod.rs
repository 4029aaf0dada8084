//! `cargo xtask demo`: the documents' example, served by a real gateway and simulated engines.

mod kernel;
mod ports;
mod process;
mod request;
mod site;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use crate::binaries::{self, Binaries};
use crate::workspace;
use process::Process;
use request::Request;
use site::Site;

/// How to run the demo.
#[derive(Debug, Args)]
pub(crate) struct Flags {
    /// End after the answers. Without this flag the demo serves until Ctrl-C.
    #[arg(long)]
    pub(crate) once: bool,
}

/// The documents' files, and the pods that their workload would make.
const EXAMPLE: &str = "deploy/examples/qwen3-32b";
const ENGINE_PORT: u16 = 8000;
const BOOTSTRAP_PORT: u16 = 34000;
const GATEWAY: &str = "127.0.0.1:8080";
const ADMIN: &str = "127.0.0.1:9901";
/// Time within which a debug build is ready, on a busy machine too.
const START: Duration = Duration::from_secs(60);

/// Builds, serves, sends the documents' requests, and then serves on or ends.
///
/// # Errors
/// A port is taken, a process ends early, or an answer is not what it should be.
pub(crate) fn run(flags: &Flags) -> Result<()> {
    let programs = binaries::build()?;
    let object = kernel::object();
    // The demo's ports are fixed, so there is one demo at a time.
    let _turn = ports::turn(flags.once)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        // Dropping the future that does not end first drops the processes, which ends them.
        tokio::select! {
            result = serve(&programs, object, flags.once) => result,
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
    let example = workspace::root().join(EXAMPLE);
    if !example.is_dir() {
        bail!("{EXAMPLE} is missing");
    }
    // The agent counts by pod, so it needs pods in namespaces; without it loopback is enough.
    let (site, object) = match object.and_then(|object| Ok((in_namespaces()?, object))) {
        Ok((site, object)) => (site, Ok(object)),
        Err(reason) => (Site::loopback(), Err(reason)),
    };
    let mut counting = count(binaries, object, &site).await;
    let mut processes = start(binaries, &site).await?;
    for request in Request::all() {
        match &mut counting {
            Ok(counting) => tokio::select! {
                sent = request.send(GATEWAY) => sent?,
                watched = counting.watch() => watched?,
            },
            Err(_) => request.send(GATEWAY).await?,
        }
    }
    match &counting {
        Ok(counting) => counting.show().await?,
        Err(reason) => println!("The kernel's counters are left out: {reason}\n"),
    }
    println!("Where to look next:");
    println!("  curl -s http://{ADMIN}/fleet     the snapshot that the gateway serves");
    println!("  curl -s http://{ADMIN}/metrics   per leg and per worker, for Prometheus");
    let manifests = site.manifests.display();
    println!("  {manifests}/    change a file there, and it takes effect within a second");
    if once {
        return Ok(());
    }
    println!("Serving on http://{GATEWAY} until Ctrl-C.");
    process::first_to_end(&mut processes).await
}

fn in_namespaces() -> Result<Site, String> {
    Site::namespaces().map_err(|error| format!("{error:#}"))
}

/// Starts an agent, or returns why there is none.
async fn count(
    binaries: &Binaries,
    object: Result<PathBuf, String>,
    site: &Site,
) -> Result<kernel::Counting, String> {
    let node = site.node().ok_or_else(|| "there is no node".to_owned());
    let (object, node) = (object?, node?);
    let counting = kernel::Counting::start(&binaries.pd_router, &object, site, node).await;
    counting.map_err(|error| format!("{error:#}"))
}

async fn start(binaries: &Binaries, site: &Site) -> Result<Vec<Process>> {
    ports::check(&addresses(site)?)?;
    let mut processes = Vec::new();
    for (number, (role, ip)) in site.engines.iter().enumerate() {
        let mut words = site.command(number, &binaries.sglang_sim);
        words.extend(engine_words(role, ip));
        let name = format!("{role} {ip}");
        processes.push(Process::start(&name, Path::new(&words[0]), &words[1..])?);
    }
    for process in &mut processes {
        process.answers(SocketAddr::new(process.ip()?, ENGINE_PORT), "/v1/models", START).await?;
    }
    let manifests = site.manifests.display().to_string();
    let words = ["gateway", "--manifests", &manifests, "--listen-address", "127.0.0.1"];
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

/// Every address of this machine's that the demo listens on.
fn addresses(site: &Site) -> Result<Vec<SocketAddr>> {
    let mut addresses: Vec<SocketAddr> = vec![GATEWAY.parse()?, ADMIN.parse()?];
    if site.node().is_some() {
        return Ok(addresses);
    }
    for (role, ip) in site.engines {
        let ip = ip.parse().context("an engine's address")?;
        addresses.push(SocketAddr::new(ip, ENGINE_PORT));
        if role == "prefill" {
            addresses.push(SocketAddr::new(ip, BOOTSTRAP_PORT));
        }
    }
    Ok(addresses)
}
