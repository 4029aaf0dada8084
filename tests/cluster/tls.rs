//! Certificates of a cluster: Secrets that a listener may name, replaced while it serves.

use kube::api::{Api, DeleteParams, DynamicObject};
use router_tests::certificate::{Certificate, secret};
use router_tests::{Fleet, eventually};
use serde_json::{Value, json};

use crate::{CHAT, SOON, Scene, chat, patch, resource};

const PORT: u16 = 443;
const HOST: &str = "a.example";

/// A condition of the Gateway's HTTPS listener as `Status/Reason`.
async fn listener_condition(gateways: &Api<DynamicObject>, condition: &str) -> String {
    let gateway = gateways.get("inference-gateway").await.expect("the Gateway");
    let listeners = gateway.data.pointer("/status/listeners").and_then(Value::as_array).cloned();
    let listeners = listeners.unwrap_or_default();
    let of = |listener: &&Value| listener["name"] == "https";
    let conditions = listeners.iter().find(of).map(|one| one["conditions"].clone());
    let conditions = conditions.as_ref().and_then(Value::as_array).cloned().unwrap_or_default();
    let found = conditions.iter().find(|one| one["type"] == condition);
    let text = |at: &str| found.and_then(|one| one[at].as_str()).unwrap_or_default();
    format!("{}/{}", text("status"), text("reason"))
}

async fn becomes(gateways: &Api<DynamicObject>, condition: &str, wanted: &str) {
    eventually(&format!("{condition} is {wanted}"), SOON, async || {
        (listener_condition(gateways, condition).await == wanted).then_some(())
    })
    .await;
}

// kubectl blocks a thread; the engines need another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_served_once_it_is_there_and_permitted_and_rotates() {
    let scene = Scene::with_documents().await;
    let gateway = scene.replica().await;
    let fleet = Fleet::start(1, 1).await;
    scene.serve(&gateway, &fleet).await;
    let gateways = scene.api("gateway.networking.k8s.io/v1", "Gateway", "gateways");
    let https = json!({
        "name": "https", "protocol": "HTTPS", "port": PORT, "hostname": HOST,
        "tls": {"certificateRefs": [{"name": "tls", "namespace": "vault"}]},
    });
    let http = json!({"name": "http-llm", "protocol": "HTTP", "port": 8080});
    patch(&gateways, "inference-gateway", json!({"spec": {"listeners": [http, https]}})).await;
    becomes(&gateways, "ResolvedRefs", "False/RefNotPermitted").await;
    assert_eq!(listener_condition(&gateways, "Programmed").await, "False/Invalid");

    let grant = r#"{"apiVersion": "gateway.networking.k8s.io/v1beta1", "kind": "ReferenceGrant",
        "metadata": {"name": "to-gateways", "namespace": "vault"}, "spec": {
        "from": [{"group": "gateway.networking.k8s.io", "kind": "Gateway", "namespace": "default"}],
        "to": [{"group": "", "kind": "Secret", "name": "tls"}]}}"#;
    let apply = |text: &str| scene.cluster.kubectl(&["apply", "-f", "-"], text);
    scene.cluster.kubectl(&["create", "namespace", "vault"], "");
    apply(grant);
    becomes(&gateways, "ResolvedRefs", "False/InvalidCertificateRef").await;

    let (old, new) = (Certificate::new(HOST), Certificate::new(HOST));
    apply(&old.secret("vault", "tls"));
    becomes(&gateways, "ResolvedRefs", "True/ResolvedRefs").await;
    becomes(&gateways, "Programmed", "True/Programmed").await;
    let entrance = scene.entrance("inference-gateway", 8080).await;
    let address = std::net::SocketAddr::new(entrance.address.ip(), PORT);
    let body = chat("over TLS").to_string();
    let asks = async |certificate: &Certificate| {
        let words = ["--data", body.as_str()];
        certificate.curl(address, HOST, CHAT, &words).await.status
    };
    eventually("the certificate is shown", SOON, async || {
        (asks(&old).await == Some(200)).then_some(())
    })
    .await;

    apply(&new.secret("vault", "tls"));
    eventually("the new certificate is shown", SOON, async || {
        (asks(&new).await == Some(200)).then_some(())
    })
    .await;
    apply(&secret("vault", "tls", &old.certificate, &new.key));
    becomes(&gateways, "ResolvedRefs", "False/InvalidCertificateRef").await;
    assert_eq!(asks(&new).await, Some(200), "the last good one is still served");
    assert_eq!(listener_condition(&gateways, "Programmed").await, "True/Programmed");

    // A Secret that may not be read any more is not served any more.
    let resource =
        resource("gateway.networking.k8s.io/v1beta1", "ReferenceGrant", "referencegrants");
    let grants: Api<DynamicObject> = Api::namespaced_with(scene.client.clone(), "vault", &resource);
    grants.delete("to-gateways", &DeleteParams::default()).await.expect("deleting a grant");
    becomes(&gateways, "ResolvedRefs", "False/RefNotPermitted").await;
    assert_eq!(asks(&new).await, None);
}
