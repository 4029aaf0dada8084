//! Engines come, go and change while requests run: none of them fails.

use std::time::Duration;

use router_tests::fleet::Engine;
use router_tests::manifests::{ENGINE_PORT, LISTENER_PORT, ROLE_LABEL};
use router_tests::{Fleet, Gateway, eventually};
use serde_json::json;
use sglang_sim::{Config, Role};

use crate::load::Load;
use crate::{SOON, Scene, members, patch, phase};

/// How far the decodes are scaled out.
const MANY: usize = 50;
const CLIENTS: usize = 4;
/// Requests between two steps.
const MORE: usize = 20;

/// A fleet whose answers take a while, so that every step meets requests on their way.
fn slow(config: Config) -> Config {
    Config { inter_token: Duration::from_millis(5), ..config.instant() }
}

/// Deletes a pod as the operator and the kubelet do: it terminates, finishes its requests and ends.
async fn retire(scene: &Scene, gateway: &Gateway, engine: Engine) {
    let name = engine.pod.name.clone();
    scene.cluster.delete_pod(&scene.client, &name).await;
    phase(gateway, &name, Some("draining")).await;
    engine.idle().await;
    engine.sim.kill().await;
    scene.cluster.finish_pod(&scene.client, &name).await;
    phase(gateway, &name, None).await;
}

/// Starts one more decode and waits until the gateway gives it requests.
async fn join(scene: &Scene, gateway: &Gateway, fleet: &mut Fleet, name: &str) {
    let engine = Engine::start(name, Role::Decode, slow).await;
    scene.cluster.put_pod(&scene.client, &engine.pod).await;
    fleet.decode.push(engine);
    phase(gateway, name, Some("ready")).await;
}

// kubectl blocks a thread; the engines need another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn engines_are_replaced_scaled_and_relabelled_without_a_failed_request() {
    let scene = Scene::with_documents().await;
    let gateway = scene.replica().await;
    let mut fleet = Fleet::start_with(2, 2, slow).await;
    scene.serve(&gateway, &fleet).await;
    let entrance = scene.entrance("inference-gateway", LISTENER_PORT).await;
    let load = Load::start(entrance, CLIENTS);
    load.more(MORE).await;

    // A rolling restart: one more, then one less.
    for turn in 0..2 {
        join(&scene, &gateway, &mut fleet, &format!("restarted-{turn}")).await;
        load.more(MORE).await;
        let old = fleet.decode.remove(0);
        retire(&scene, &gateway, old).await;
        load.more(MORE).await;
    }
    for engine in &fleet.decode {
        engine.legs_arrived(1).await;
    }

    // 2 -> 50 -> 2.
    for at in fleet.decode.len()..MANY {
        let engine = Engine::start(&format!("scaled-{at}"), Role::Decode, slow).await;
        scene.cluster.put_pod(&scene.client, &engine.pod).await;
        fleet.decode.push(engine);
    }
    let ready = async || {
        let members = members(&gateway).await;
        members.iter().filter(|(_, phase)| phase == "ready").count()
    };
    eventually("all are in the fleet", SOON, async || {
        (ready().await == MANY + fleet.prefill.len()).then_some(())
    })
    .await;
    load.more(5 * MORE).await;
    let leaving = fleet.decode.split_off(2);
    for engine in &leaving {
        scene.cluster.delete_pod(&scene.client, &engine.pod.name).await;
    }
    eventually("two are left that take requests", SOON, async || {
        (ready().await == 2 + fleet.prefill.len()).then_some(())
    })
    .await;
    for engine in leaving {
        engine.idle().await;
        engine.sim.kill().await;
        scene.cluster.finish_pod(&scene.client, &engine.pod.name).await;
    }
    load.more(MORE).await;

    relabel(&scene, &gateway, &mut fleet, &load).await;
    println!("{} requests, none failed", load.end().await);
}

/// A decode loses its label, and comes back as a prefill.
async fn relabel(scene: &Scene, gateway: &Gateway, fleet: &mut Fleet, load: &Load) {
    join(scene, gateway, fleet, "changing").await;
    load.more(MORE).await;
    let pods = scene.api("v1", "Pod", "pods");
    let label = |role: Option<&str>| json!({"metadata": {"labels": {ROLE_LABEL: role}}});
    patch(&pods, "changing", label(None)).await;
    phase(gateway, "changing", None).await;
    let Engine { pod, address, sim } = fleet.decode.pop().expect("the one that has joined");
    let old = Engine { pod: pod.clone(), address, sim };
    load.more(MORE).await;
    old.idle().await;
    let Engine { address, sim, .. } = old;
    sim.kill().await;

    let mut config = slow(Config::new(Role::Prefill));
    (config.host, config.port) = (address.ip(), ENGINE_PORT);
    config.bootstrap_port = router_tests::manifests::BOOTSTRAP_PORT;
    let sim = sglang_sim::Engine::start(config).await.expect("starting an engine");
    let prefill = Engine { pod, address, sim };
    patch(&pods, "changing", label(Some("prefill"))).await;
    phase(gateway, "changing", Some("ready")).await;
    prefill.legs_arrived(1).await;
    load.more(MORE).await;
    patch(&pods, "changing", label(None)).await;
    phase(gateway, "changing", None).await;
    prefill.idle().await;
}
