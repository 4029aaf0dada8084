//! Readiness that Kubernetes takes away from most of a pool at once is not believed.

use router_tests::manifests::LISTENER_PORT;
use router_tests::{Fleet, Gateway, eventually};

use crate::load::Load;
use crate::{SOON, Scene, phase};

const CLIENTS: usize = 4;
const MORE: usize = 50;
const CODE: &str = "ReadinessDistrusted";
const METRIC: &str = "pd_router_readiness_distrusted";

/// Waits until that many engines get requests although their pods are reported as not ready.
async fn distrusts(gateway: &Gateway, engines: usize) {
    eventually("the readiness is distrusted", SOON, async || {
        (gateway.metric(METRIC, &[]).await == engines as f64).then_some(())
    })
    .await;
}

// kubectl blocks a thread; the engines need another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_when_every_pod_is_marked_as_not_ready_at_once() {
    let scene = Scene::with_documents().await;
    let gateway = scene.replica().await;
    let mut fleet = Fleet::start(3, 3).await;
    scene.serve(&gateway, &fleet).await;
    let entrance = scene.entrance("inference-gateway", LISTENER_PORT).await;
    let (cluster, client) = (&scene.cluster, &scene.client);
    let load = Load::start(entrance, CLIENTS);
    load.more(MORE).await;

    // As the node controller does after a restart of the API server.
    for engine in fleet.engines() {
        cluster.patch_pod(client, &engine.pod, false).await;
    }
    distrusts(&gateway, 6).await;
    load.more(MORE).await;
    assert!(gateway.fleet().await["problems"].to_string().contains(CODE));
    assert_eq!(gateway.log().matches(CODE).count(), 1);

    // A pod that is deleted, and an engine that does not answer, leave nevertheless.
    let deleted = fleet.decode[2].pod.name.clone();
    cluster.delete_pod(client, &deleted).await;
    phase(&gateway, &deleted, Some("draining")).await;
    load.more(MORE).await;
    println!("{} requests, none failed", load.end().await);
    let dead = fleet.decode.remove(1).pod.name.clone();
    phase(&gateway, &dead, Some("notready")).await;
    distrusts(&gateway, 4).await;

    for engine in fleet.engines().filter(|engine| engine.pod.name != deleted) {
        cluster.patch_pod(client, &engine.pod, true).await;
    }
    distrusts(&gateway, 0).await;
    assert!(!gateway.fleet().await["problems"].to_string().contains(CODE));
}
