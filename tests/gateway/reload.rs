//! Changes of the manifests: within a second, without losing a request.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use router_tests::gateway::pair;
use router_tests::manifests::{POOL, gateway, pool, route};
use router_tests::{Client, Fleet, Gateway, client::End, eventually};
use sglang_sim::{Config, Role};

use crate::{CHAT, chat, streamed};

/// A second for the gateway, and one for this machine.
const EFFECT: Duration = Duration::from_secs(2);

/// Clients that send one request after the other until they are stopped.
struct Load {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    clients: Vec<tokio::task::JoinHandle<Vec<String>>>,
}

impl Load {
    fn start(client: Client, clients: usize) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let served = Arc::new(AtomicUsize::new(0));
        let clients = (0..clients).map(|_| {
            let (stop, served) = (Arc::clone(&stop), Arc::clone(&served));
            tokio::spawn(async move {
                let mut failures = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let answer = client.post(CHAT, &chat("hi")).await;
                    if answer.status != 200 {
                        failures.push(format!("{} {}", answer.status, answer.text()));
                    }
                    served.fetch_add(1, Ordering::Relaxed);
                }
                failures
            })
        });
        Load { clients: clients.collect(), stop, served }
    }

    async fn wait_for_more(&self, requests: usize) {
        let wanted = self.served.load(Ordering::Relaxed) + requests;
        eventually("requests are still answered", Duration::from_secs(20), async || {
            (self.served.load(Ordering::Relaxed) >= wanted).then_some(())
        })
        .await;
    }

    async fn failures(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        let mut failures = Vec::new();
        for client in self.clients {
            failures.extend(client.await.expect("no panic"));
        }
        failures
    }
}

async fn serves(gateway: &Gateway, decode: &str) {
    let start = Instant::now();
    eventually(&format!("{decode} serves"), Duration::from_secs(10), async || {
        let answer = gateway.client.post(CHAT, &chat("hi")).await.expect_status(200);
        pair(&answer).1.ends_with(decode).then_some(())
    })
    .await;
    assert!(start.elapsed() < EFFECT, "{decode} serves only after {:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changing_pods_under_load_loses_no_request() {
    let mut fleet = Fleet::start(2, 2).await;
    let gateway = fleet.gateway_with(&["--policy", "round_robin"]).await;
    let load = Load::start(gateway.client, 4);
    load.wait_for_more(20).await;
    for round in 0..3 {
        fleet.add(Role::Decode, Config::instant).await;
        load.wait_for_more(10).await;
        let mut leaving = fleet.decode[round].pod.clone();
        leaving.deleting = true;
        fleet.manifests.put_pod(&leaving);
        load.wait_for_more(10).await;
        fleet.manifests.remove_pod(&leaving.name);
        fleet.manifests.put("route.yaml", &route("/v1", POOL));
        load.wait_for_more(10).await;
        fleet.manifests.put("route.yaml", &route("/", POOL));
        load.wait_for_more(10).await;
    }
    assert_eq!(load.failures().await, [] as [String; 0]);
}

#[tokio::test]
async fn a_new_pod_serves_within_a_second_and_a_leaving_one_no_more() {
    let mut fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway_with(&["--policy", "round_robin"]).await;
    serves(&gateway, "decode-0").await;
    fleet.add(Role::Decode, Config::instant).await;
    serves(&gateway, "decode-1").await;
    fleet.manifests.remove_pod("decode-0");
    eventually("decode-0 serves no more", EFFECT, async || {
        let before = fleet.decode[0].legs().len();
        for _ in 0..4 {
            gateway.client.post(CHAT, &chat("hi")).await.expect_status(200);
        }
        (fleet.decode[0].legs().len() == before).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_request_finishes_on_the_worker_that_it_holds() {
    let inter_token = Duration::from_millis(10);
    let mut fleet = Fleet::start_with(1, 1, |config| Config { inter_token, ..config }).await;
    let gateway = fleet.gateway().await;
    let mut body = streamed("hi");
    (body["max_tokens"], body["ignore_eos"]) = (300.into(), true.into());
    let mut stream = gateway.client.open(CHAT, &body).await;
    stream.next().await.expect("a first event");
    fleet.add(Role::Decode, Config::instant).await;
    fleet.manifests.remove_pod("decode-0");
    eventually("decode-0 is gone", EFFECT, async || {
        (!gateway.fleet().await.to_string().contains("decode-0")).then_some(())
    })
    .await;
    let (events, end) = stream.events().await;
    assert_eq!(end, End::Clean);
    assert!(events.len() >= 299 && events.last().is_some_and(|event| event.is_done()));
}

#[tokio::test]
async fn a_document_that_does_not_parse_keeps_its_last_good_version() {
    let fleet = Fleet::start(1, 1).await;
    let gateway_process = fleet.gateway().await;
    let good = route("/", POOL);
    for bad in [
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: [\n",
        &good.replace("PathPrefix", "PathGuess"),
        &good.replace("rules:", "rules: 7\n  other:"),
        &good.replace("name: to-qwen-inference-pool", "nam: x"),
        "\u{0}\u{1}\u{2}",
    ] {
        fleet.manifests.put("route.yaml", bad);
        let problems = problems_about(&gateway_process, "route.yaml").await;
        gateway_process.client.post(CHAT, &chat("hi")).await.expect_status(200);
        assert!(!problems.is_empty());
        fleet.manifests.put("route.yaml", &good);
        eventually("the problem is gone", EFFECT, async || {
            (!gateway_process.fleet().await["problems"].to_string().contains("route.yaml"))
                .then_some(())
        })
        .await;
    }
}

/// The problems about a file that `/fleet` lists.
async fn problems_about(gateway: &Gateway, file: &str) -> String {
    eventually(&format!("a problem with {file}"), EFFECT, async || {
        let problems = gateway.fleet().await["problems"].to_string();
        problems.contains(file).then_some(problems)
    })
    .await
}

#[tokio::test]
async fn a_bad_document_takes_no_other_down() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway().await;
    fleet.manifests.put("broken.yaml", "kind: {{{\n");
    problems_about(&gateway, "broken.yaml").await;
    let unknown = "apiVersion: example.com/v1\nkind: Widget\nmetadata: {name: w}\n";
    fleet.manifests.put("unknown.yaml", unknown);
    gateway.client.post(CHAT, &chat("hi")).await.expect_status(200);
    let metric = gateway.admin.get("/metrics").await.text();
    assert!(metric.contains("problems"), "{metric}");
}

#[tokio::test]
async fn a_route_to_an_unknown_pool_is_a_500_and_an_empty_pool_a_503() {
    let fleet = Fleet::start(1, 1).await;
    let gateway_process = fleet.gateway().await;
    fleet.manifests.put("lost.yaml", &route("/lost", "no-such-pool"));
    fleet.manifests.put("empty.yaml", &pool("empty-pool", "app: none"));
    fleet.manifests.put("empty-route.yaml", &route("/empty", "empty-pool"));
    problems_about(&gateway_process, "lost.yaml").await;
    let lost = gateway_process.client.post("/lost/v1/chat/completions", &chat("hi")).await;
    assert_eq!(lost.status, 500, "{}", lost.text());
    let empty = gateway_process.client.post("/empty/generate", &chat("hi")).await;
    assert!(empty.status == 503 || empty.status == 404, "{}", empty.text());
    gateway_process.client.post(CHAT, &chat("hi")).await.expect_status(200);
}

#[tokio::test]
async fn a_gateway_started_on_an_empty_directory_serves_files_that_appear() {
    let fleet = Fleet::start(1, 1).await;
    let empty = router_tests::Manifests::new();
    let source = ["--manifests".into(), empty.path().into()];
    let process = Gateway::spawn(&source, router_tests::manifests::LISTENER_PORT, &[]);
    eventually("the admin port answers", Duration::from_secs(10), async || {
        let request = process.admin.request(http::Method::GET, "/livez", "");
        process.admin.try_send(request).await.ok().map(drop)
    })
    .await;
    for engine in fleet.engines() {
        empty.put_pod(&engine.pod);
    }
    empty.put("pool.yaml", &pool(POOL, "alibabacloud.com/inference_backend: sglang"));
    empty.put("gateway.yaml", &gateway());
    empty.put("route.yaml", &route("/", POOL));
    eventually("the first answer", EFFECT, async || {
        let request = process.client.json_request(CHAT, chat("hi").to_string());
        let answer = process.client.try_send(request).await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_pod_that_leaves_takes_its_counters_with_it() {
    let fleet = Fleet::start(1, 2).await;
    let gateway = fleet.gateway_with(&["--policy", "round_robin"]).await;
    for _ in 0..4 {
        gateway.client.post(CHAT, &chat("hi")).await.expect_status(200);
    }
    let [leaves, stays] =
        [0, 1].map(|i| format!("worker=\"default/{}\"", fleet.decode[i].pod.name));
    let counted =
        async |worker: &str| gateway.metric("pd_router_leg_requests_total", &[worker]).await;
    assert_eq!((counted(&leaves).await, counted(&stays).await), (2.0, 2.0));
    fleet.manifests.remove_pod(&fleet.decode[0].pod.name);
    eventually("its counters are gone", EFFECT, async || {
        (counted(&leaves).await == 0.0).then_some(())
    })
    .await;
    assert_eq!(counted(&stays).await, 2.0);
}
