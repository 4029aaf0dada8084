//! The documents keep their word: examples are served, metrics are written down.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use http::header::ACCEPT;
use http::{HeaderValue, Method};
use router_tests::fleet::SOON;
use router_tests::{Fleet, Manifests, eventually};

use crate::{CHAT, chat};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests stand in the workspace").into()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The example's files, without its pods: they stand on the demo's addresses.
fn example() -> Manifests {
    let manifests = Manifests::new();
    let folder = root().join("deploy/examples/qwen3-32b");
    for entry in std::fs::read_dir(&folder).expect("the example") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
        if name.ends_with(".yaml") && name != "pods.yaml" {
            manifests.put(&name, &std::fs::read_to_string(&path).expect("a file"));
        }
    }
    manifests
}

#[tokio::test]
async fn the_documents_manifests_are_served_unchanged() {
    let fleet = Fleet::start(2, 1).await;
    let manifests = example();
    for engine in fleet.engines() {
        manifests.put_pod(&engine.pod);
    }
    let gateway = router_tests::Gateway::start(&manifests).await;
    for message in ["Hello, this is a test", "你好,这是一个测试"] {
        let answer = gateway.client.post(CHAT, &chat(message)).await.expect_status(200).json();
        assert_eq!(answer["object"], "chat.completion");
    }
    let problems = gateway.fleet().await["problems"].clone();
    assert_eq!(problems.as_array().map(Vec::len), Some(0), "{problems}");
}

/// Names of metrics at the start of a table's rows.
fn documented_metrics() -> BTreeSet<String> {
    let names = read("docs/reference/metrics.md");
    let rows = names.lines().filter_map(|line| line.strip_prefix("| `pd_router_"));
    rows.map(|row| format!("pd_router_{}", row.split('`').next().unwrap_or_default())).collect()
}

#[tokio::test]
async fn every_metric_is_documented_and_every_documented_metric_exists() {
    let fleet = Fleet::start(1, 2).await;
    let gateway = fleet.gateway_with(&["--policy", "round_robin", "--agent", "127.0.0.1:9"]).await;
    // One of each: an answer, a stream, a retry, an abort and an agent that is not there, so that
    // every family has a sample.
    let busy = sglang_sim::Action::Status { status: 503, body: "{}".into() };
    fleet.decode[0].once(busy);
    for _ in 0..2 {
        gateway.client.post(CHAT, &chat("hi")).await.expect_status(200);
    }
    gateway.client.open(CHAT, &crate::streamed("hi")).await.events().await;
    eventually("the agent is missed", SOON, async || {
        (gateway.metric("pd_router_feedback_errors_total", &[]).await > 0.0).then_some(())
    })
    .await;
    let mut request = gateway.admin.request(Method::GET, "/metrics", "");
    let open_metrics = HeaderValue::from_static("application/openmetrics-text");
    request.headers_mut().insert(ACCEPT, open_metrics);
    let text = gateway.admin.send(request).await.answer().await.expect_status(200).text();
    let known: BTreeSet<String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .filter(|name| name.starts_with("pd_router_"))
        .map(str::to_owned)
        .collect();
    assert_eq!(documented_metrics(), known, "docs/reference/metrics.md against /metrics");
}
