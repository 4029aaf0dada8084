//! The servers that are compared, each a process in front of the same two engines.

use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::binaries::Binaries;
use crate::{shell, workspace};

const PREFILL: &str = "127.0.5.1";
const DECODE: &str = "127.0.5.2";
const GATEWAY: &str = "127.0.5.3";
const ROUTER: &str = "127.0.5.4";
const UNIFIED: &str = "127.0.5.5";
const NGINX: &str = "127.0.5.6";
const BEFORE: &str = "127.0.5.7";
const ENGINE_PORT: &str = "8000";
const START: Duration = Duration::from_secs(60);

/// A server under load; its drop ends it.
pub(super) struct Peer {
    pub(super) name: &'static str,
    pub(super) address: String,
    /// Whether the client has to name the bootstrap room, since the server does not.
    pub(super) client_names_room: bool,
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
        let mut peer = Peer { name, address, client_names_room: false, child };
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
    gateway("pd-router", &binaries.pd_router, &[], GATEWAY)
}

/// A pd-router whose instructions callgrind counts, into files whose names begin with `out`.
pub(super) fn under_callgrind(pd_router: &Path, out: &Path) -> Result<Peer> {
    let (out, pd_router) = (format!("--callgrind-out-file={}", out.display()), pd_router.display());
    let words = ["--tool=callgrind", &out, &pd_router.to_string()];
    gateway("pd-router under callgrind", Path::new("valgrind"), &words, GATEWAY)
}

/// Another build of pd-router, as of the state before a change.
pub(super) fn other_pd_router(program: &Path) -> Result<Peer> {
    gateway("pd-router before", program, &[], BEFORE)
}

/// `before`: the first arguments of `program`, if it is one that runs pd-router.
fn gateway(name: &'static str, program: &Path, before: &[&str], host: &str) -> Result<Peer> {
    let pair = pair();
    let admin = format!("{host}:9901");
    let words: Vec<&str> = before
        .iter()
        .copied()
        .chain(["--log", "warn", "gateway"])
        .chain(pair.iter().map(String::as_str))
        .chain(["--host", host, "--port", "8080", "--admin-listen", &admin])
        .collect();
    Peer::start(name, format!("{host}:8080"), program, &words)
}

/// nginx, which sends the same body to both engines and relays decode's answer: what two legs cost
/// in C. The client names the bootstrap room, as nginx does not.
pub(super) fn nginx(folder: &Path) -> Result<Peer> {
    // Not installed here: Debian's package starts a server on port 80.
    let program = shell::which("nginx").context("nginx is missing: apt-get install nginx-light")?;
    let config = folder.join("nginx.conf");
    std::fs::write(&config, nginx_config(folder))?;
    let config = config.to_str().context("the temporary folder's name is not UTF-8")?;
    let prefix = folder.to_str().context("the temporary folder's name is not UTF-8")?;
    let words = ["-c", config, "-p", prefix, "-e", "stderr"];
    let mut nginx = Peer::start("nginx mirror", format!("{NGINX}:8080"), &program, &words)?;
    nginx.client_names_room = true;
    Ok(nginx)
}

/// One process, since CPU is read of one. Bodies stay in memory, upstream connections stay open, answers are
/// relayed as they come, and nothing is logged.
fn nginx_config(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "daemon off; master_process off; pid {folder}/pid; error_log /dev/null crit;
events {{ worker_connections 4096; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  client_max_body_size 0; client_body_buffer_size 4m; keepalive_requests 1000000000;
  proxy_http_version 1.1; proxy_set_header Connection ''; proxy_buffering off; proxy_read_timeout 300s;
  upstream prefill {{ server {PREFILL}:{ENGINE_PORT}; keepalive 256; keepalive_requests 1000000000; }}
  upstream decode {{ server {DECODE}:{ENGINE_PORT}; keepalive 256; keepalive_requests 1000000000; }}
  server {{
    listen {NGINX}:8080;
    location / {{ mirror /mirror; proxy_pass http://decode; }}
    location = /mirror {{ internal; proxy_pass http://prefill$request_uri; }}
  }}
}}
"
    )
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
