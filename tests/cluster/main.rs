//! The gateway on a real API server: what kubectl applies is served, and follows the cluster.

mod agents;
mod conditions;
mod documents;
mod edits;
mod following;
mod gateways;
mod load;
mod outage;
mod proxied;
mod readiness;
mod rights;
mod rollout;
mod thousand;
mod tls;

use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use router_tests::cluster::GATEWAY_ACCOUNT;
use router_tests::manifests::LISTENER_PORT;
use router_tests::{Balancer, Client, Cluster, Fleet, Gateway, eventually};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
/// Deadline for what takes milliseconds on an idle machine.
const SOON: Duration = Duration::from_secs(20);
/// Deadline for what needs a leader: an old Lease must expire first.
const ELECTED: Duration = Duration::from_secs(40);
/// Where `deploy/` puts the gateway.
const NAMESPACE: &str = "pd-router-system";

/// A cluster with everything but engines: definitions, pd-router as `deploy/` installs it, and a
/// load balancer in front.
struct Scene {
    cluster: Cluster,
    client: kube::Client,
    balancer: Balancer,
}

impl Scene {
    async fn start() -> Scene {
        let cluster = Cluster::start().await;
        install_definitions(&cluster).await;
        deploy(&cluster).await;
        let client = cluster.client().await;
        let balancer = Balancer::start(client.clone(), NAMESPACE);
        Scene { cluster, client, balancer }
    }

    /// A cluster with pd-router and the documents' manifests.
    async fn with_documents() -> Scene {
        let scene = Scene::start().await;
        apply_documents(&scene.cluster);
        scene
    }

    /// One more replica of the gateway, with no more rights than `deploy/` gives it.
    async fn replica(&self) -> Gateway {
        let gateway = start_gateway(&self.cluster);
        gateway.wait_until_ready().await;
        self.balancer.add(gateway.address.ip());
        gateway
    }

    /// Writes the fleet's pods, and waits until the gateway serves them.
    async fn serve(&self, gateway: &Gateway, fleet: &Fleet) {
        for engine in fleet.engines() {
            self.cluster.put_pod(&self.client, &engine.pod).await;
        }
        serves(gateway, fleet).await;
    }

    /// A client of an HTTP port of the Gateway, at the address in its status, once that answers.
    async fn entrance(&self, gateway: &str, port: u16) -> Client {
        let gateways = self.api("gateway.networking.k8s.io/v1", "Gateway", "gateways");
        eventually("the Gateway has an address that answers", ELECTED, async || {
            let object = gateways.get(gateway).await.ok()?;
            let address = object.data.pointer("/status/addresses/0/value")?.as_str()?;
            let client = Client::new(std::net::SocketAddr::new(address.parse().ok()?, port));
            client.try_send(client.request(http::Method::GET, "/", "")).await.ok()?;
            Some(client)
        })
        .await
    }

    /// Objects of a kind in the namespace `default`.
    fn api(&self, api_version: &str, kind: &str, plural: &str) -> Api<DynamicObject> {
        let resource = resource(api_version, kind, plural);
        Api::default_namespaced_with(self.client.clone(), &resource)
    }

    /// Objects of a kind in all namespaces.
    fn everywhere(&self, api_version: &str, kind: &str, plural: &str) -> Api<DynamicObject> {
        Api::all_with(self.client.clone(), &resource(api_version, kind, plural))
    }

    /// The Services that were made for Gateways.
    async fn services(&self) -> Vec<Service> {
        let services: Api<Service> = Api::namespaced(self.client.clone(), NAMESPACE);
        let made = kube::api::ListParams::default().labels("pd-router.io/gateway-uid");
        services.list(&made).await.expect("listing Services").items
    }
}

fn resource(api_version: &str, kind: &str, plural: &str) -> ApiResource {
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version: api_version.to_owned(),
        kind: kind.to_owned(),
        plural: plural.to_owned(),
    }
}

/// Changes an object by a merge patch.
async fn patch(api: &Api<DynamicObject>, name: &str, change: Value) {
    let patched = api.patch(name, &PatchParams::default(), &Patch::Merge(&change)).await;
    patched.unwrap_or_else(|error| panic!("patching {name}: {error}"));
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests stand in the workspace").into()
}

/// Installs the definitions of others' kinds.
async fn install_definitions(cluster: &Cluster) {
    let others = [
        "gateway-api-v1.6.1-gatewayclasses.yaml",
        "gateway-api-v1.6.1-gateways.yaml",
        "gateway-api-v1.6.1-httproutes.yaml",
        "gateway-api-v1.6.1-referencegrants.yaml",
        "gie-v1.6.0-inferencepools-v1.yaml",
        "rbg-v0.4.0-rolebasedgroups.yaml",
    ];
    let own = root().join("tests/cluster/backendtrafficpolicies.yaml");
    let files: Vec<PathBuf> =
        others.iter().map(|file| root().join("../shared/crds").join(file)).chain([own]).collect();
    // An old API server does not know the rules in expressions of newer definitions.
    let mut words = vec!["create", "--validate=false"];
    for file in &files {
        words.extend(["-f", file.to_str().expect("a path in UTF-8")]);
    }
    cluster.kubectl(&words, "");
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
    let definitions = root().join("deploy/crds");
    let definitions = definitions.to_str().expect("a path in UTF-8");
    cluster.kubectl(&["create", "-k", definitions], "");
    established(cluster).await;
    let again = cluster.try_kubectl(&["create", "-k", definitions], "");
    assert!(again.is_err_and(|error| error.contains("already exists")), "nothing is replaced");
    let difference = cluster.kubectl(&["diff", "-k", overlay], "");
    assert_eq!(difference, "", "what was applied is what is there");
}

/// Applies the manifests of the documents' example, its pods excepted.
fn apply_documents(cluster: &Cluster) {
    let example = root().join("deploy/examples/qwen3-32b");
    let files =
        ["llm-model.yaml", "sglang_pd.yaml", "inference-policy.yaml", "inference-gateway.yaml"];
    let files = files.map(|file| example.join(file));
    let mut words = vec!["create"];
    for file in &files {
        words.extend(["-f", file.to_str().expect("a path in UTF-8")]);
    }
    cluster.kubectl(&words, "");
}

/// A replica of the gateway, with no more rights than `deploy/` gives it.
fn start_gateway(cluster: &Cluster) -> Gateway {
    // Requests of a pool that has lost its workers wait for this time before they get 503.
    let flags = ["--queue-timeout", "1s"];
    Gateway::in_cluster(&cluster.kubeconfig(GATEWAY_ACCOUNT), LISTENER_PORT, &flags)
}

/// Waits until the gateway serves every engine of the fleet.
async fn serves(gateway: &Gateway, fleet: &Fleet) {
    gateway.wait_until_ready().await;
    fleet.until_engines_known(gateway).await;
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
