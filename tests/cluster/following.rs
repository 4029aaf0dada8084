//! The fleet follows the pods, quickly.

use std::time::{Duration, Instant};

use router_tests::Fleet;

use crate::{Scene, phase};

/// How often readiness is changed to see how long the fleet takes.
const CHANGES: usize = 40;
/// Bound that operators are promised on an idle machine. A busy one only prints its slowest change.
const PROMISED: Duration = Duration::from_millis(100);

// kubectl blocks a thread; the engines need another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_reach_the_fleet_and_leave_it_at_once() {
    let scene = Scene::with_documents().await;
    let fleet = Fleet::start(2, 2).await;
    let gateway = scene.replica().await;
    scene.serve(&gateway, &fleet).await;
    let (cluster, client) = (&scene.cluster, &scene.client);

    let pod = fleet.decode[1].pod.clone();
    let mut took = Vec::new();
    for change in 0..CHANGES {
        let ready = change % 2 == 1;
        cluster.patch_pod(client, &pod, ready).await;
        let start = Instant::now();
        phase(&gateway, &pod.name, Some(if ready { "ready" } else { "notready" })).await;
        took.push(start.elapsed());
    }
    took.sort();
    println!("event to fleet: median {:?}, slowest {:?}", took[CHANGES / 2], took[CHANGES - 1]);
    assert!(took[CHANGES / 2] < PROMISED, "{took:?}");

    cluster.delete_pod(client, &pod.name).await;
    phase(&gateway, &pod.name, Some("draining")).await;
    cluster.finish_pod(client, &pod.name).await;
    phase(&gateway, &pod.name, None).await;
}
