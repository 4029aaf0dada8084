//! `pd-router top`: what it prints of a gateway that serves, fails, or is not there.

use std::process::Output;

use router_tests::fleet::SOON;
use router_tests::gateway::program;
use router_tests::{Fleet, Gateway, eventually};
use serde_json::Value;
use sglang_sim::Action;
use tokio::process::Command;

use crate::{CHAT, chat, streamed};

async fn top(gateway: &str, flags: &[&str]) -> Output {
    let mut command = Command::new(program());
    command.args(["top", "--once", "--gateway", gateway]).args(flags).kill_on_drop(true);
    command.output().await.expect("starting pd-router")
}

#[tokio::test]
async fn the_report_has_workers_parts_and_failures() {
    let fleet = Fleet::start(1, 2).await;
    let gateway = fleet.gateway_with(&["--max-attempts", "1"]).await;
    for _ in 0..3 {
        gateway.client.open(CHAT, &streamed("hi")).await.events().await;
    }
    for decode in &fleet.decode {
        decode.always(Action::Status { status: 400, body: r#"{"message":"no"}"#.into() });
    }
    let failed = gateway.client.post(CHAT, &chat("hi")).await.expect_status(400);
    let address = gateway.admin.address.to_string();
    let report = eventually("the failure is reported", SOON, async || {
        let output = top(&address, &["--json"]).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        (report["failures"].as_array().map(Vec::len) == Some(1)).then_some(report)
    })
    .await;
    let pool = &report["pools"][0];
    let workers = pool["workers"].as_array().expect("a list");
    let healthy = workers.iter().filter(|worker| worker["health"] == "up");
    assert_eq!((workers.len(), healthy.count()), (3, 3), "{report:#}");
    assert_eq!(pool["ttft"]["known"], 3, "{report:#}");
    let queued = &pool["parts"][2];
    assert_eq!((&queued["part"], &queued["known"]), (&"queued".into(), &3.into()), "{report:#}");
    assert_eq!(report["failures"][0]["id"], failed.header("x-request-id"));
    let output = top(&address, &[]).await;
    let page = String::from_utf8_lossy(&output.stdout);
    assert!(page.contains("default/prefill-0  prefill  ready     up"), "{page}");
    assert!(page.contains("\nttft               3"), "{page}");
}

#[tokio::test]
async fn an_error_names_the_flag() {
    // The port of discard, where no gateway listens.
    let output = top("127.0.0.1:9", &[]).await;
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains("--gateway 127.0.0.1:9: /fleet"), "{error}");
    let fleet = Fleet::start(1, 1).await;
    let folder = router_tests::folder::Folder::new("top-token");
    let file = folder.path().join("token");
    std::fs::write(&file, "secret\n").expect("written");
    let file = file.to_str().expect("UTF-8");
    let flags = ["--admin-token-file", file];
    let gateway = Gateway::start_with(&fleet.manifests, &flags).await;
    let address = gateway.admin.address.to_string();
    let output = top(&address, &[]).await;
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains("--token-file"), "{error}");
    let output = top(&address, &["--token-file", file]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn gateways_are_shown_together_and_those_that_do_not_answer_are_named() {
    let fleet = Fleet::start(1, 1).await;
    let gateways = [fleet.gateway().await, fleet.gateway().await];
    for gateway in &gateways {
        gateway.client.open(CHAT, &streamed("hi")).await.events().await;
    }
    let [first, second] = [&gateways[0], &gateways[1]].map(|one| one.admin.address.to_string());
    let flags = ["--json", "--gateway", &second, "--gateway", "127.0.0.1:9"];
    let report = eventually("both have kept their request", SOON, async || {
        let output = top(&first, &flags).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        (report["kept"] == 2).then_some(report)
    })
    .await;
    let listed = report["gateways"].as_array().expect("a list");
    assert_eq!(listed.len(), 3, "{report:#}");
    for gateway in listed {
        let is_silent = gateway["address"] == "127.0.0.1:9";
        let error = gateway["error"].as_str();
        assert_eq!(error.is_some_and(|why| why.contains("/fleet")), is_silent, "{gateway:#}");
    }
    let workers = report["pools"][0]["workers"].as_array().expect("a list");
    assert_eq!(workers.len(), 2, "each worker once: {report:#}");
    for worker in workers {
        assert_eq!((&worker["up_at"], &worker["known_at"]), (&2.into(), &2.into()), "{worker:#}");
        assert_eq!(worker["health_reason"], "it answers probes", "{worker:#}");
    }
}
