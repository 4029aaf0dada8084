//! The control plane goes away, and comes back with older data; the last known state is served.

use std::time::{Duration, Instant};

use router_tests::manifests::LISTENER_PORT;
use router_tests::{Fleet, Gateway, eventually};
use sglang_sim::{Config, Role};

use crate::load::Load;
use crate::{ELECTED, Scene, members, phase};

const CLIENTS: usize = 4;
const MORE: usize = 50;
/// How long the API server is away.
const AWAY: Duration = Duration::from_secs(60);
/// Interval at which served state is checked meanwhile.
const LOOK: Duration = Duration::from_secs(2);

/// Waits until the gateway lists no problem.
async fn every_watch_goes_on(gateway: &Gateway) {
    eventually("every watch is connected again", ELECTED, async || {
        gateway.fleet().await["problems"].as_array().is_some_and(Vec::is_empty).then_some(())
    })
    .await;
}

/// Answers take half a second: a minute of them leaves the machine to other tests.
fn slow(config: Config) -> Config {
    Config { inter_token: Duration::from_millis(60), ..config.instant() }
}

// kubectl blocks a thread; the engines need another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_while_the_api_server_is_away_for_a_minute() {
    let mut scene = Scene::with_documents().await;
    let gateway = scene.replica().await;
    let mut fleet = Fleet::start_with(1, 2, slow).await;
    scene.serve(&gateway, &fleet).await;
    let entrance = scene.entrance("inference-gateway", LISTENER_PORT).await;
    let load = Load::start(entrance, CLIENTS);
    load.more(CLIENTS).await;
    let served = members(&gateway).await;

    scene.cluster.stop_api_server();
    let start = Instant::now();
    while start.elapsed() < AWAY {
        tokio::time::sleep(LOOK).await;
        assert_eq!(members(&gateway).await, served, "after {:?}", start.elapsed());
        load.more(1).await;
    }
    let problems = gateway.fleet().await["problems"].to_string();
    assert!(problems.contains("Unreadable"), "{problems}");

    scene.cluster.start_api_server().await;
    scene.client = scene.cluster.client().await;
    // Before the watches are back: what happened meanwhile comes with their new lists.
    let left = fleet.decode[1].pod.clone();
    fleet.add(Role::Decode, slow).await;
    let added = fleet.decode[2].pod.clone();
    scene.cluster.delete_pod(&scene.client, &left.name).await;
    scene.cluster.finish_pod(&scene.client, &left.name).await;
    scene.cluster.put_pod(&scene.client, &added).await;
    let start = Instant::now();
    phase(&gateway, &left.name, None).await;
    phase(&gateway, &added.name, Some("ready")).await;
    println!("caught up {:?} after the API server", start.elapsed());
    fleet.decode[2].legs_arrived(1).await;
    every_watch_goes_on(&gateway).await;
    println!("{} requests, none failed", load.end().await);
}

// kubectl blocks a thread; the engines need another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_when_etcd_is_restored_from_a_snapshot() {
    let mut scene = Scene::with_documents().await;
    let gateway = scene.replica().await;
    let mut fleet = Fleet::start(1, 2).await;
    scene.serve(&gateway, &fleet).await;
    let entrance = scene.entrance("inference-gateway", LISTENER_PORT).await;
    let load = Load::start(entrance, CLIENTS);
    load.more(MORE).await;

    scene.cluster.snapshot().await;
    load.more(MORE).await;
    // The client's connections ended with the server that was killed.
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
    every_watch_goes_on(&gateway).await;
}
