//! The control plane goes away, and comes back with another memory; what was read last is served.
//!
//! The API server is away for as long as it takes to start, some seconds: for the gateway a minute
//! is the same with more retries, which its unit tests bound.

use router_tests::manifests::LISTENER_PORT;
use router_tests::{Fleet, eventually};
use sglang_sim::{Config, Role};

use crate::load::Load;
use crate::{ELECTED, Scene, phase};

const CLIENTS: usize = 4;
const MORE: usize = 50;

// kubectl blocks a thread; the engines need another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_is_restored_from_a_snapshot_ends_in_what_it_knows_and_fails_no_request() {
    let mut scene = Scene::with_documents().await;
    let gateway = scene.replica().await;
    let mut fleet = Fleet::start(1, 2).await;
    scene.serve(&gateway, &fleet).await;
    let entrance = scene.entrance("inference-gateway", LISTENER_PORT).await;
    let load = Load::start(entrance, CLIENTS);
    load.more(MORE).await;

    scene.cluster.snapshot().await;
    load.more(MORE).await;
    // The clients of a server that was killed are made anew.
    scene.client = scene.cluster.client().await;
    fleet.add(Role::Decode, Config::instant).await;
    let (left, added) = (fleet.decode[1].pod.clone(), fleet.decode[2].pod.clone());
    scene.cluster.put_pod(&scene.client, &added).await;
    phase(&gateway, &added.name, Some("ready")).await;
    scene.cluster.delete_pod(&scene.client, &left.name).await;
    phase(&gateway, &left.name, Some("draining")).await;
    scene.cluster.finish_pod(&scene.client, &left.name).await;
    phase(&gateway, &left.name, None).await;
    load.more(MORE).await;

    scene.cluster.restore().await;
    phase(&gateway, &added.name, None).await;
    phase(&gateway, &left.name, Some("ready")).await;
    load.more(MORE).await;
    println!("{} requests, none failed", load.end().await);
    eventually("every watch goes on", ELECTED, async || {
        gateway.fleet().await["problems"].as_array().is_some_and(Vec::is_empty).then_some(())
    })
    .await;
}
