//! The fleet follows the pods, quickly, and goes on while the API server is away.

use std::time::{Duration, Instant};

use router_tests::Fleet;
use router_tests::manifests::LISTENER_PORT;
use sglang_sim::{Config, Role};

use crate::{CHAT, Scene, chat, phase};

/// How often readiness is changed to see how long the fleet takes.
const CHANGES: usize = 40;
/// What operators are promised of an idle machine; the slowest of a busy one is told, not judged.
const PROMISED: Duration = Duration::from_millis(100);

// kubectl and curl block a thread; the engines need another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_reach_the_fleet_at_once_and_outlive_an_api_server_that_is_away() {
    let mut scene = Scene::with_documents().await;
    let mut fleet = Fleet::start(2, 2).await;
    let gateway = scene.replica().await;
    scene.serve(&gateway, &fleet).await;
    let entrance = scene.entrance("inference-gateway", LISTENER_PORT).await;
    let client = scene.client.clone();
    let cluster = &mut scene.cluster;

    let pod = fleet.decode[1].pod.clone();
    let mut took = Vec::new();
    for change in 0..CHANGES {
        let ready = change % 2 == 1;
        cluster.patch_pod(&client, &pod, ready).await;
        let start = Instant::now();
        phase(&gateway, &pod.name, Some(if ready { "ready" } else { "notready" })).await;
        took.push(start.elapsed());
    }
    took.sort();
    println!("event to fleet: median {:?}, slowest {:?}", took[CHANGES / 2], took[CHANGES - 1]);
    assert!(took[CHANGES / 2] < PROMISED, "{took:?}");

    cluster.delete_pod(&client, &pod.name).await;
    phase(&gateway, &pod.name, Some("draining")).await;
    cluster.finish_pod(&client, &pod.name).await;
    phase(&gateway, &pod.name, None).await;

    cluster.stop_api_server();
    for message in ["one", "two", "three"] {
        entrance.post(CHAT, &chat(message)).await.expect_status(200);
    }
    cluster.start_api_server().await;
    // What happens after the outage is seen again.
    fleet.add(Role::Decode, Config::instant).await;
    let added = &fleet.decode[2].pod;
    cluster.put_pod(&cluster.client().await, added).await;
    phase(&gateway, &added.name, Some("ready")).await;
    entrance.post(CHAT, &chat("four")).await.expect_status(200);
}
