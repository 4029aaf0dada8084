//! The routers of the benchmark, each a process before the engines of a fleet.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use router_tests::loopback::Loopback;
use router_tests::manifests::{BOOTSTRAP_PORT, ENGINE_PORT};
use router_tests::reliability::{is_served, request};
use router_tests::{Client, Fleet, Gateway};

const PORT: u16 = 8080;
const METRICS_PORT: u16 = 29_555;
const START: Duration = Duration::from_secs(120);

/// A router that is compared.
#[derive(Clone, Copy, Debug)]
pub(super) enum Router {
    PdRouter,
    SglangRouter,
}

/// A router that runs; its drop ends it.
pub(super) struct Running {
    pub(super) client: Client,
    _process: Process,
}

enum Process {
    Gateway(#[expect(dead_code, reason = "its drop ends the process")] Box<Gateway>),
    Peer(Child, #[expect(dead_code, reason = "its drop frees the address")] Loopback),
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Process::Peer(child, _) = self {
            // An error means that it has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Router {
    pub(super) const ALL: [Router; 2] = [Router::PdRouter, Router::SglangRouter];

    pub(super) fn name(self) -> &'static str {
        match self {
            Router::PdRouter => "pd-router",
            Router::SglangRouter => "sglang-router 0.3.2",
        }
    }

    /// Starts it before the engines, and waits until it serves.
    pub(super) async fn start(self, fleet: &Fleet) -> Running {
        match self {
            Router::PdRouter => {
                let gateway = fleet.gateway().await;
                let client = gateway.client;
                Running { client, _process: Process::Gateway(Box::new(gateway)) }
            }
            Router::SglangRouter => start_peer(fleet).await,
        }
    }
}

async fn start_peer(fleet: &Fleet) -> Running {
    let python = std::env::var_os("SGLANG_ROUTER_PYTHON").expect("SGLANG_ROUTER_PYTHON is set");
    let address = Loopback::claim();
    let mut command = Command::new(python);
    command.args(["-m", "sglang_router.launch_router", "--policy", "round_robin"]);
    command.args(["--pd-disaggregation", "--log-level", "error"]);
    command.args(["--host", &address.ip().to_string(), "--port", &PORT.to_string()]);
    command.args(["--prometheus-port", &METRICS_PORT.to_string()]);
    command.args(["--worker-startup-check-interval", "1"]);
    let url = |engine: &router_tests::fleet::Engine| {
        format!("http://{}:{ENGINE_PORT}", engine.address.ip())
    };
    for prefill in &fleet.prefill {
        command.args(["--prefill", &url(prefill), &BOOTSTRAP_PORT.to_string()]);
    }
    for decode in &fleet.decode {
        command.args(["--decode", &url(decode)]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().expect("sglang-router starts");
    let client = Client::new(address.port(PORT));
    let running = Running { client, _process: Process::Peer(child, address) };
    let until = Instant::now() + START;
    while !is_served(client, &request(2, 1)).await {
        assert!(Instant::now() < until, "sglang-router does not serve");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    running
}
