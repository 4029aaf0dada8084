//! The servers that are compared, each a process in front of the same two engines.

use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::binaries::Binaries;
use crate::workspace;

const PREFILL: &str = "127.0.5.1";
const DECODE: &str = "127.0.5.2";
const GATEWAY: &str = "127.0.5.3";
const ROUTER: &str = "127.0.5.4";
const UNIFIED: &str = "127.0.5.5";
const ENGINE_PORT: &str = "8000";
const START: Duration = Duration::from_secs(60);

/// A server under load; its drop ends it.
pub(super) struct Peer {
    pub(super) name: &'static str,
    pub(super) address: String,
    child: Child,
}

impl Peer {
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn start(name: &'static str, address: String, program: &Path, words: &[&str]) -> Result<Peer> {
        let child = Command::new(program)
            .args(words)
            .current_dir(workspace::root())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        let mut peer = Peer { name, address, child };
        peer.opens()?;
        Ok(peer)
    }

    /// Waits until its port accepts connections.
    fn opens(&mut self) -> Result<()> {
        let until = Instant::now() + START;
        while TcpStream::connect(&self.address).is_err() {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended: {status}", self.name);
            }
            if Instant::now() > until {
                bail!("{} does not accept connections at {}", self.name, self.address);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A pair of engines, and an ordinary server to ask without a router. They answer at once and do
/// not meet, so that what is measured is the router.
pub(super) fn engines(binaries: &Binaries) -> Result<[Peer; 3]> {
    let engine = |name, role, host: &str| {
        let address = format!("{host}:{ENGINE_PORT}");
        let words = ["--role", role, "--host", host, "--port", ENGINE_PORT, "--instant"];
        let more = ["--no-rendezvous", "--max-running-requests", "100000"];
        let more = [&more[..], &["--max-total-tokens", "4000000000"]].concat();
        let more = [&more[..], &["--context-length", "10000000"]].concat();
        Peer::start(name, address, &binaries.sglang_sim, &[&words[..], &more].concat())
    };
    Ok([
        engine("prefill", "prefill", PREFILL)?,
        engine("decode", "decode", DECODE)?,
        engine("one engine, directly", "unified", UNIFIED)?,
    ])
}

/// Flags that name the pair of engines; both routers take them.
fn pair() -> [String; 6] {
    let url = |host: &str| format!("http://{host}:{ENGINE_PORT}");
    let words =
        ["--pd-disaggregation", "--prefill", &url(PREFILL), "34000", "--decode", &url(DECODE)];
    words.map(str::to_owned)
}

pub(super) fn pd_router(binaries: &Binaries) -> Result<Peer> {
    let pair = pair();
    let admin = format!("{GATEWAY}:9901");
    let words: Vec<&str> = ["--log", "warn", "gateway"]
        .into_iter()
        .chain(pair.iter().map(String::as_str))
        .chain(["--host", GATEWAY, "--port", "8080", "--admin-listen", &admin])
        .collect();
    let name = "pd-router";
    Peer::start(name, format!("{GATEWAY}:8080"), &binaries.pd_router, &words)
}

pub(super) fn sglang_router(python: &Path) -> Result<Peer> {
    let pair = pair();
    let words: Vec<&str> = ["-m", "sglang_router.launch_router", "--policy", "round_robin"]
        .into_iter()
        .chain(pair.iter().map(String::as_str))
        .chain(["--host", ROUTER, "--port", "8080", "--prometheus-port", "29555"])
        .chain(["--log-level", "warn", "--worker-startup-check-interval", "1"])
        .collect();
    Peer::start("sglang-router 0.3.2", format!("{ROUTER}:8080"), python, &words)
}
