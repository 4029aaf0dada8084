//! The documents' YAML, applied with kubectl, is served at the address in the Gateway's status.

use std::process::Command;

use router_tests::cluster::ADMIN;
use router_tests::manifests::LISTENER_PORT;
use router_tests::{Cluster, Fleet, Gateway, eventually};
use serde_json::{Value, json};

use crate::{ELECTED, SOON, Scene, apply_documents, chat, deploy, install_definitions, serves};

/// The object as the API server has it.
fn get(cluster: &Cluster, kind: &str, name: &str) -> Value {
    let text = cluster.kubectl(&["get", kind, name, "-o", "json"], "");
    serde_json::from_str(&text).expect("kubectl prints JSON")
}

/// `Type=Status/Reason` of a list of conditions, sorted.
fn spelled(conditions: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let all = conditions.as_array().into_iter().flatten();
    let mut all: Vec<String> = all
        .map(|c| format!("{}={}/{}", text(&c["type"]), text(&c["status"]), text(&c["reason"])))
        .collect();
    all.sort();
    all
}

// kubectl and curl block a thread; the engines need another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documents_applied_with_kubectl_answer_their_request() {
    let scene = Scene::with_documents().await;
    let replicas = [scene.replica().await, scene.replica().await];
    let fleet = Fleet::start(2, 1).await;
    for engine in fleet.engines() {
        scene.cluster.put_pod(&scene.client, &engine.pod).await;
    }
    let cluster = &scene.cluster;
    for gateway in &replicas {
        serves(gateway, &fleet).await;
        let problems = gateway.fleet().await["problems"].clone();
        assert_eq!(problems, json!([]));
    }
    let path = "jsonpath={.status.addresses[0].value}";
    let address = eventually("the Gateway has an address", ELECTED, async || {
        let words = ["get", "gateway/inference-gateway", "-o", path];
        Some(cluster.kubectl(&words, "")).filter(|address| !address.is_empty())
    })
    .await;
    scene.entrance("inference-gateway", LISTENER_PORT).await;
    let answer = Command::new("curl")
        .args(["--silent", "--show-error", "--max-time", "20"])
        .arg(format!("http://{address}:{LISTENER_PORT}/v1/chat/completions"))
        .args(["-H", "Content-Type: application/json", "-d"])
        .arg(chat("Hello, this is a test").to_string())
        .output()
        .expect("curl runs");
    let answer: Value = serde_json::from_slice(&answer.stdout)
        .unwrap_or_else(|error| panic!("{error}: {answer:?}"));
    assert_eq!(answer["object"], "chat.completion", "{answer}");
    assert_eq!(fleet.decode[0].legs().len(), 1);
    documents_have_their_conditions(cluster).await;
}

async fn documents_have_their_conditions(cluster: &Cluster) {
    let well = ["Accepted=True/Accepted", "ResolvedRefs=True/ResolvedRefs"];
    eventually("every object has its conditions", SOON, async || {
        let pool =
            get(cluster, "inferencepools.inference.networking.x-k8s.io", "qwen-inference-pool");
        (spelled(&pool["status"]["parent"][0]["conditions"]) == well).then_some(())
    })
    .await;
    let class = get(cluster, "gatewayclass", "ack-gateway");
    assert_eq!(spelled(&class["status"]["conditions"]), ["Accepted=True/Accepted"]);
    let gateway = get(cluster, "gateway", "inference-gateway")["status"].take();
    assert_eq!(
        spelled(&gateway["conditions"]),
        ["Accepted=True/Accepted", "Programmed=True/Programmed"]
    );
    assert_eq!(gateway["listeners"][0]["attachedRoutes"], 1);
    let route = get(cluster, "httproute", "inference-route");
    assert_eq!(spelled(&route["status"]["parents"][0]["conditions"]), well);
    let policy = get(cluster, "inferencetrafficpolicy", "inference-policy");
    assert_eq!(
        spelled(&policy["status"]["conditions"]),
        ["Accepted=True/Accepted", "Ready=True/Ready"]
    );
    columns(cluster);
}

/// What `kubectl get` shows of our kinds, its last column apart: the age.
fn columns(cluster: &Cluster) {
    for (kind, wanted) in [
        ("xinfpool", [&["NAME", "PORT", "ACCEPTED"][..], &["qwen-inference-pool", "8000", "True"]]),
        (
            "itp",
            [
                &["NAME", "POOL", "RUNTIME", "BOOTSTRAP", "ACCEPTED", "READY", "REASON"],
                &[
                    "inference-policy",
                    "qwen-inference-pool",
                    "sglang",
                    "34000",
                    "True",
                    "True",
                    "Ready",
                ],
            ],
        ),
    ] {
        let table = cluster.kubectl(&["get", kind], "");
        let mut rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        for wanted in wanted {
            let row = rows.next().unwrap_or_default();
            assert_eq!(row.split_last().map(|(_, row)| row), Some(wanted), "{table}");
        }
    }
}

// kubectl and curl block a thread; the engines need another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_definitions_do_not_stop_the_gateway() {
    let cluster = Cluster::start().await;
    let gateway = Gateway::in_cluster(&cluster.kubeconfig(ADMIN), LISTENER_PORT, &[]);
    gateway.wait_until_ready().await;
    install_definitions(&cluster).await;
    deploy(&cluster).await;
    apply_documents(&cluster);
    let listeners = async || gateway.fleet().await["listeners"].as_array().map(Vec::len);
    eventually("the listener opens", SOON, async || (listeners().await == Some(1)).then_some(()))
        .await;

    // Another controller's class takes the Gateway away, and ours brings it back.
    let class = r#"{"apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass",
        "metadata": {"name": "other"}, "spec": {"controllerName": "example.com/other"}}"#;
    cluster.kubectl(&["apply", "-f", "-"], class);
    for (name, count) in [("other", 0), ("ack-gateway", 1)] {
        let patch = json!({"spec": {"gatewayClassName": name}}).to_string();
        let words = ["patch", "gateway", "inference-gateway", "--type=merge", "-p", &patch];
        cluster.kubectl(&words, "");
        eventually("listeners follow the class", SOON, async || {
            (listeners().await == Some(count)).then_some(())
        })
        .await;
    }
}
