//! The gateway on a real API server: what kubectl applies is served, and follows the cluster.

mod agents;
mod documents;
mod following;

use std::path::{Path, PathBuf};
use std::time::Duration;

use router_tests::cluster::GATEWAY_ACCOUNT;
use router_tests::manifests::LISTENER_PORT;
use router_tests::{Cluster, Fleet, Gateway, eventually};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
/// For what needs no more than some milliseconds on an idle machine.
const SOON: Duration = Duration::from_secs(20);

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests stand in the workspace").into()
}

/// Installs the definitions of others' kinds.
async fn install_definitions(cluster: &Cluster) {
    let others = root().join("../shared/crds");
    // An old API server does not know the rules in expressions of newer definitions.
    let apply = |path: &Path, file: &str| {
        let path = path.join(file);
        let path = path.to_str().expect("a path in UTF-8");
        cluster.kubectl(&["create", "--validate=false", "-f", path], "");
    };
    for file in [
        "gateway-api-v1.6.1-gatewayclasses.yaml",
        "gateway-api-v1.6.1-gateways.yaml",
        "gateway-api-v1.6.1-httproutes.yaml",
        "gateway-api-v1.6.1-referencegrants.yaml",
        "gie-v1.6.0-inferencepools-v1.yaml",
        "rbg-v0.4.0-rolebasedgroups.yaml",
    ] {
        apply(&others, file);
    }
    apply(&root(), "tests/cluster/backendtrafficpolicies.yaml");
    established(cluster).await;
}

/// Waits until the kinds of all definitions are served. One that has just been made has no
/// conditions yet, which `kubectl wait` takes for an error.
async fn established(cluster: &Cluster) {
    eventually("every definition is established", SOON, async || {
        let words = ["wait", "--for=condition=Established", "--timeout=10s", "crd", "--all"];
        cluster.try_kubectl(&words, "").ok()
    })
    .await;
}

/// Installs pd-router as the overlay for the documents has it.
async fn deploy(cluster: &Cluster) {
    // The overlay for the documents, without what the tests' API server is too old for.
    let overlay = root().join("tests/cluster/deploy");
    let overlay = overlay.to_str().expect("a path in UTF-8");
    cluster.kubectl(&["apply", "-k", overlay], "");
    established(cluster).await;
    let difference = cluster.kubectl(&["diff", "-k", overlay], "");
    assert_eq!(difference, "", "what was applied is what is there");
}

/// Applies the manifests of the documents' example, its pods excepted.
fn apply_documents(cluster: &Cluster) {
    let example = root().join("deploy/examples/qwen3-32b");
    for file in
        ["llm-model.yaml", "sglang_pd.yaml", "inference-policy.yaml", "inference-gateway.yaml"]
    {
        let path = example.join(file);
        cluster.kubectl(&["create", "-f", path.to_str().expect("a path in UTF-8")], "");
    }
}

/// A replica of the gateway, with no more rights than `deploy/` gives it.
fn start_gateway(cluster: &Cluster) -> Gateway {
    let service = ["--gateway-service", "pd-router-system/pd-router-gateway"];
    Gateway::in_cluster(&cluster.kubeconfig(GATEWAY_ACCOUNT), LISTENER_PORT, &service)
}

/// Waits until the gateway serves every engine of the fleet.
async fn serves(gateway: &Gateway, fleet: &Fleet) {
    gateway.wait_until_ready().await;
    fleet.told(gateway).await;
}

/// The members of the only pool as `/fleet` shows them: `namespace/pod` and phase.
async fn members(gateway: &Gateway) -> Vec<(String, String)> {
    let fleet = gateway.fleet().await;
    let members = fleet["pools"][0]["members"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    members.iter().map(|member| (text(&member["worker"]["name"]), text(&member["phase"]))).collect()
}

/// Waits until the pod `name` has this phase; none is gone.
async fn phase(gateway: &Gateway, name: &str, wanted: Option<&str>) {
    let name = format!("default/{name}");
    eventually(&format!("{name} is {wanted:?}"), SOON, async || {
        let members = members(gateway).await;
        let found = members.iter().find(|(member, _)| *member == name);
        (found.map(|(_, phase)| phase.as_str()) == wanted).then_some(())
    })
    .await;
}

/// The documents' request.
fn chat(message: &str) -> Value {
    json!({
        "model": "/models/Qwen3-32B",
        "messages": [{"role": "user", "content": message}],
        "max_tokens": 8,
    })
}
