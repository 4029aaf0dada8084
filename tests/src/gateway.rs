//! A `pd-router gateway` process: started on manifests, ended by its id when the test ends.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::client::{Answer, Client};
use crate::eventually::eventually;
use crate::loopback::Loopback;
use crate::manifests::{LISTENER_PORT, Manifests};
use crate::process;

const ADMIN_PORT: u16 = 9901;
/// A debug build on a busy machine needs a while to start.
const START: Duration = Duration::from_secs(60);

/// A running gateway. Its manifests are the directory it watches.
#[derive(Debug)]
pub struct Gateway {
    pub client: Client,
    pub admin: Client,
    pub address: Loopback,
    child: Child,
    log: Log,
}

/// What the process has printed so far, both streams.
#[derive(Clone, Debug, Default)]
struct Log(Arc<Mutex<String>>);

/// The program to test.
///
/// # Panics
/// `PD_ROUTER_BIN` is not set: cargo builds no programs of another package for a test.
#[must_use]
pub fn program() -> PathBuf {
    std::env::var_os("PD_ROUTER_BIN")
        .map(PathBuf::from)
        .expect("PD_ROUTER_BIN is not set; run `cargo xtask test gateway`, which builds pd-router")
}

impl Gateway {
    /// Starts on the manifests, with the flags that most tests want.
    pub async fn start(manifests: &Manifests) -> Gateway {
        Gateway::start_with(manifests, &[]).await
    }

    /// Starts a gateway on a directory of manifests, with further flags.
    ///
    /// # Panics
    /// It ends, or is not ready in time; its log is then printed.
    pub async fn start_with(manifests: &Manifests, flags: &[&str]) -> Gateway {
        let source = [OsString::from("--manifests"), manifests.path().into()];
        let gateway = Gateway::spawn(&source, LISTENER_PORT, flags);
        gateway.wait_until_ready().await;
        gateway
    }

    /// Starts on the manifests and writes the log to `stderr` instead of keeping it.
    ///
    /// # Panics
    /// It ends, or is not ready in time.
    pub async fn start_logging_to(manifests: &Manifests, stderr: Stdio) -> Gateway {
        let source = [OsString::from("--manifests"), manifests.path().into()];
        let gateway = Gateway::spawn_with(&source, LISTENER_PORT, &[], &[], stderr);
        gateway.wait_until_ready().await;
        gateway
    }

    /// Starts without waiting: for a fleet that is not ready, or flags instead of manifests.
    ///
    /// # Panics
    /// The program does not start.
    #[must_use]
    pub fn spawn(source: &[OsString], port: u16, flags: &[&str]) -> Gateway {
        Gateway::spawn_with(source, port, flags, &[], Stdio::piped())
    }

    /// Starts on a cluster, without waiting.
    ///
    /// # Panics
    /// The program does not start.
    #[must_use]
    pub fn in_cluster(kubeconfig: &Path, port: u16, flags: &[&str]) -> Gateway {
        let environment = [("KUBECONFIG", kubeconfig)];
        Gateway::spawn_with(&["--kubernetes".into()], port, flags, &environment, Stdio::piped())
    }

    fn spawn_with(
        source: &[OsString],
        port: u16,
        flags: &[&str],
        environment: &[(&str, &Path)],
        stderr: Stdio,
    ) -> Gateway {
        let address = Loopback::claim();
        let admin = address.port(ADMIN_PORT);
        let mut command = Command::new(program());
        command
            .arg("gateway")
            .args(source)
            .args(["--listen-address", &address.ip().to_string()])
            .args(["--admin-listen", &admin.to_string()])
            .args(["--explain-headers", "--log-format", "json"])
            .args(flags)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr);
        let mut child = command.spawn().expect("starting pd-router");
        let log = Log::default();
        log.follow(child.stdout.take().expect("stdout is a pipe"));
        if let Some(stderr) = child.stderr.take() {
            log.follow(stderr);
        }
        Gateway {
            client: Client::new(address.port(port)),
            admin: Client::new(admin),
            address,
            child,
            log,
        }
    }

    /// Waits until `/readyz` returns 200.
    pub async fn wait_until_ready(&self) {
        eventually("the gateway is ready", START, async || {
            let request = self.admin.request(http::Method::GET, "/readyz", "");
            let answer = self.admin.try_send(request).await.ok()?;
            (answer.status == 200).then_some(())
        })
        .await;
    }

    /// What it has logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.log.text()
    }

    /// The snapshot that it serves, from the admin port.
    pub async fn fleet(&self) -> Value {
        self.admin.get("/fleet").await.expect_status(200).json()["fleet"].take()
    }

    /// A metric's value, summed over the label sets that hold all the given texts.
    pub async fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let text = self.admin.get("/metrics").await.expect_status(200).text();
        metric(&text, name, labels)
    }

    /// Sends SIGTERM, as Kubernetes does.
    ///
    /// # Panics
    /// It has ended already.
    pub fn terminate(&self) {
        kill(self.pid(), Signal::SIGTERM).expect("the gateway runs");
    }

    /// Sends a signal, as some operators and tools do after they have changed a file.
    ///
    /// # Panics
    /// It has ended already.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("the gateway runs");
    }

    /// Waits until it has ended by itself.
    ///
    /// # Panics
    /// It has not within the deadline.
    pub async fn ended(&mut self, deadline: Duration) -> ExitStatus {
        eventually("the gateway ends", deadline, async || {
            self.child.try_wait().expect("waiting for a child process")
        })
        .await
    }

    /// Its resident memory in bytes.
    ///
    /// # Panics
    /// It has ended.
    #[must_use]
    pub fn resident_bytes(&self) -> u64 {
        process::resident_bytes(self.child.id())
    }

    /// The most that its resident memory has been.
    ///
    /// # Panics
    /// It has ended.
    #[must_use]
    pub fn peak_bytes(&self) -> u64 {
        process::peak_bytes(self.child.id())
    }

    /// The CPU time that it has used.
    ///
    /// # Panics
    /// It has ended.
    #[must_use]
    pub fn cpu_time(&self) -> Duration {
        process::cpu_time(self.child.id())
    }

    /// Number of its open files.
    ///
    /// # Panics
    /// It has ended.
    #[must_use]
    pub fn open_files(&self) -> usize {
        let files = std::fs::read_dir(format!("/proc/{}/fd", self.child.id()));
        files.expect("the process runs").count()
    }

    /// Sets its soft limit of open files.
    ///
    /// # Panics
    /// `prlimit` (util-linux) does not run, or refuses.
    pub fn limit_open_files(&self, soft: usize) {
        let mut command = Command::new("prlimit");
        command.arg(format!("--pid={}", self.child.id())).arg(format!("--nofile={soft}:"));
        assert!(command.status().expect("running prlimit").success());
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().expect("an id fits"))
    }
}

/// Sums the samples of a metric in Prometheus' text format, of the label sets that hold all the
/// given texts.
#[must_use]
pub fn metric(text: &str, name: &str, labels: &[&str]) -> f64 {
    let samples = text.lines().filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        let (family, rest) = series.split_once('{').unwrap_or((series, ""));
        let wanted = family == name && labels.iter().all(|label| rest.contains(label));
        wanted.then(|| value.parse::<f64>().ok())?
    });
    samples.sum()
}

impl Log {
    /// The thread ends with the stream, that is with the process.
    fn follow(&self, stream: impl Read + Send + 'static) -> JoinHandle<()> {
        let log = self.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                log.0
                    .lock()
                    .expect("no thread panics while it holds the log")
                    .push_str(&(line + "\n"));
            }
        })
    }

    fn text(&self) -> String {
        self.0.lock().expect("no thread panics while it holds the log").clone()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // Both fail only where it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- log of the gateway\n{}---", self.log());
        }
    }
}

/// Runs the program to its end, for flags that are wrong or print something.
///
/// # Panics
/// It does not start, or does not end in time.
#[must_use]
pub fn run_to_end(words: &[&str]) -> (ExitStatus, String) {
    let mut child = Command::new(program())
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starting pd-router");
    let log = Log::default();
    let readers = [
        log.follow(child.stdout.take().expect("stdout is a pipe")),
        log.follow(child.stderr.take().expect("stderr is a pipe")),
    ];
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("waiting for a child process") {
            for reader in readers {
                reader.join().expect("reading does not panic");
            }
            return (status, log.text());
        }
        if start.elapsed() > START {
            let _ = child.kill();
            let _ = child.wait();
            panic!("`pd-router {}` does not end:\n{}", words.join(" "), log.text());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The answer's pair, from the headers that `--explain-headers` adds.
#[must_use]
pub fn pair(answer: &Answer) -> (String, String) {
    let name = |header| answer.header(header).to_owned();
    (name("x-pd-router-prefill"), name("x-pd-router-decode"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_a_metric_are_summed_by_label() {
        let text = "# TYPE a_total counter\na_total{leg=\"prefill\",w=\"x\"} 2\n\
                    a_total{leg=\"decode\",w=\"x\"} 3\na_totals{leg=\"decode\"} 9\nb 1.5\n";
        assert_eq!(metric(text, "a_total", &[]), 5.0);
        assert_eq!(metric(text, "a_total", &["leg=\"decode\"", "w=\"x\""]), 3.0);
        assert_eq!(metric(text, "b", &[]), 1.5);
        assert_eq!(metric(text, "gone", &[]), 0.0);
    }
}
