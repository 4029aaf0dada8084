//! A log that cannot be written costs log lines and no request.

use std::fs::OpenOptions;
use std::process::{Command, Stdio};
use std::time::Duration;

use router_tests::gateway::program;
use router_tests::loopback::Loopback;
use router_tests::{Fleet, Gateway, eventually};
use sglang_sim::Action;

use crate::{CHAT, chat};

const SOON: Duration = Duration::from_secs(10);

/// Their log lines are more than a pipe holds (64 KiB).
const REQUESTS: usize = 400;

async fn serves(fleet: &Fleet, stderr: Stdio) -> Gateway {
    let gateway = Gateway::start_logging_to(&fleet.manifests, stderr).await;
    for _ in 0..REQUESTS {
        gateway.client.post(CHAT, &chat("hello")).await.expect_status(200);
    }
    for path in ["/livez", "/readyz"] {
        gateway.admin.get(path).await.expect_status(200);
    }
    gateway
}

#[tokio::test]
async fn requests_are_served_while_the_disk_of_the_log_is_full() {
    let fleet = Fleet::start(1, 1).await;
    let full = OpenOptions::new().write(true).open("/dev/full").expect("opening /dev/full");
    let gateway = serves(&fleet, full.into()).await;
    // A thread of its own writes the lines and counts those that it cannot write.
    eventually("a line of each request is counted as lost", SOON, async || {
        let lost = gateway.metric("pd_router_log_lines_lost_total", &[]).await;
        (lost >= REQUESTS as f64).then_some(())
    })
    .await;
}

#[tokio::test]
async fn requests_are_served_while_no_reader_takes_the_log() {
    let fleet = Fleet::start(1, 1).await;
    let (_unread, writer) = std::io::pipe().expect("making a pipe");
    let mut gateway = serves(&fleet, writer.into()).await;
    gateway.terminate();
    let status = gateway.ended(Duration::from_secs(20)).await;
    assert!(status.success(), "{status}");
}

#[test]
fn a_command_that_cannot_print_says_so_and_one_without_a_reader_ends() {
    let print = |out: Stdio| {
        let mut command = Command::new(program());
        command.arg("crds").stdout(out).output().expect("running pd-router")
    };
    let full = OpenOptions::new().write(true).open("/dev/full").expect("opening /dev/full");
    let failed = print(full.into());
    let error = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert_eq!(failed.status.code(), Some(1), "{error}");
    assert!(error.contains("standard output: No space left"), "{error}");
    let (reader, writer) = std::io::pipe().expect("making a pipe");
    drop(reader);
    let ended = print(writer.into());
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    assert_eq!(String::from_utf8_lossy(&ended.stderr), "");
}

#[test]
fn a_gateway_with_flags_only_ends_if_its_port_is_taken() {
    let address = Loopback::claim();
    let taken = std::net::TcpListener::bind(address.port(0)).expect("a free port");
    let port = taken.local_addr().expect("it is bound").port().to_string();
    let (ip, admin) = (address.ip().to_string(), address.port(0).to_string());
    let output = Command::new(program())
        .args(["gateway", "--pd-disaggregation", "--prefill", "http://127.0.0.1:1"])
        .args(["--decode", "http://127.0.0.1:2", "--host", &ip, "--port", &port])
        .args(["--admin-listen", &admin])
        .output()
        .expect("running pd-router");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains(&format!("--host {ip} --port {port}: ")), "{error}");
    assert!(error.contains("Address already in use"), "{error}");
    // The first line names what runs, and a pipe gets no colours.
    let first = error.lines().next().unwrap_or_default();
    for part in ["INFO gateway started", "version=", "source=\"flags\"", "policy=\"predicted\""] {
        assert!(first.contains(part), "{error}");
    }
    assert!(!error.contains('\u{1b}'), "{error}");
    let negative = Command::new(program()).args(["gateway", "--probe-timeout", "-1s"]).output();
    let negative = negative.expect("running pd-router");
    let error = String::from_utf8_lossy(&negative.stderr).into_owned();
    assert_eq!(negative.status.code(), Some(2), "{error}");
    assert!(error.contains("--probe-timeout is -1s: it must not be negative"), "{error}");
}

#[tokio::test]
async fn the_documented_filter_shows_debug_events_of_the_gateway() {
    let fleet = Fleet::start(1, 2).await;
    let flags = ["--policy", "round_robin", "--log", "info,pd_router=debug"];
    let gateway = fleet.gateway_with(&flags).await;
    // A retry is such an event.
    fleet.decode[0].once(Action::DropBeforeHead);
    for _ in 0..4 {
        gateway.client.post(CHAT, &chat("hello")).await.expect_status(200);
    }
    eventually("the retry is logged", SOON, async || {
        let log = gateway.log();
        let mut retries = log.lines().filter(|line| line.contains("\"message\":\"retrying\""));
        retries.any(|line| line.contains("\"level\":\"DEBUG\"")).then_some(())
    })
    .await;
}
