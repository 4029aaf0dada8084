//! `/fleet?watch` and the page that reads it, and the bundle of a failed request.

use std::time::Duration;

use http::Method;
use router_tests::client::End;
use router_tests::{Fleet, Gateway, Stream, eventually};
use serde_json::Value;
use sglang_sim::{Action, Config};

use crate::{CHAT, chat, streamed};

/// Two events are a second apart; this machine may be slow.
const SOON: Duration = Duration::from_secs(10);
const MAX_WATCHERS: usize = 16;

async fn watch(gateway: &Gateway) -> Stream {
    gateway.admin.send(gateway.admin.request(Method::GET, "/fleet?watch", "")).await
}

async fn snapshot(stream: &mut Stream) -> Value {
    stream.next().await.expect("an event").json()
}

#[tokio::test]
async fn a_watcher_sees_changes_and_a_drain_ends_its_stream() {
    let inter_token = Duration::from_millis(10);
    let fleet = Fleet::start_with(1, 1, |config| Config { inter_token, ..config }).await;
    let mut gateway = fleet.gateway().await;
    let mut watcher = watch(&gateway).await;
    assert_eq!(watcher.status, 200);
    assert_eq!(watcher.headers["content-type"], "text/event-stream");
    let first = snapshot(&mut watcher).await;
    assert_eq!(first["fleet"]["pools"][0]["members"].as_array().map(Vec::len), Some(2));
    let second = snapshot(&mut watcher).await;
    let at = |fleet: &Value| fleet["now_ms"].as_u64().expect("a time");
    assert!(at(&second) >= at(&first) + 900, "{} {}", at(&first), at(&second));
    let mut body = streamed("hi");
    (body["max_tokens"], body["ignore_eos"]) = (300.into(), true.into());
    let mut stream = gateway.client.open(CHAT, &body).await;
    stream.next().await.expect("a first event");
    gateway.terminate();
    let (events, end) = watcher.events().await;
    assert_eq!((end, events.last().map(|event| &*event.data)), (End::Clean, Some("{}")));
    // While it drains, no client begins to watch.
    assert_eq!(watch(&gateway).await.status, 503);
    stream.events().await;
    assert_eq!(gateway.ended(SOON).await.code(), Some(0));
}

#[tokio::test]
async fn a_drain_without_requests_is_announced_before_the_gateway_ends() {
    let fleet = Fleet::start(1, 1).await;
    for _ in 0..3 {
        let mut gateway = fleet.gateway().await;
        let mut watcher = watch(&gateway).await;
        snapshot(&mut watcher).await;
        gateway.terminate();
        let (events, end) = watcher.events().await;
        assert_eq!((end, events.last().map(|event| &*event.data)), (End::Clean, Some("{}")));
        assert_eq!(gateway.ended(SOON).await.code(), Some(0));
    }
}

#[tokio::test]
async fn the_number_of_watchers_is_limited_and_a_slot_becomes_free() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway().await;
    let mut watchers = Vec::new();
    for _ in 0..MAX_WATCHERS {
        watchers.push(watch(&gateway).await);
        assert_eq!(watchers.last().map(|watcher| watcher.status.as_u16()), Some(200));
    }
    let refused = watch(&gateway).await.answer().await.expect_status(503);
    assert!(refused.text().contains("16 clients watch"), "{}", refused.text());
    for watcher in &mut watchers {
        snapshot(watcher).await;
    }
    watchers.pop();
    eventually("a slot is free", SOON, async || {
        (watch(&gateway).await.status == 200).then_some(())
    })
    .await;
    // A page of another site cannot take one.
    let mut request = gateway.admin.request(Method::GET, "/fleet?watch", "");
    request.headers_mut().insert("sec-fetch-site", "cross-site".parse().expect("a header"));
    assert_eq!(gateway.admin.send(request).await.status, 403);
}

#[tokio::test]
async fn the_page_is_served_with_a_policy_and_without_the_token() {
    let folder = router_tests::folder::Folder::new("page");
    let file = folder.path().join("token");
    std::fs::write(&file, "secret\n").expect("written");
    let fleet = Fleet::start(1, 1).await;
    let flags = ["--admin-token-file", file.to_str().expect("UTF-8")];
    let gateway = Gateway::start_with(&fleet.manifests, &flags).await;
    let page = gateway.admin.get("/").await.expect_status(200);
    assert_eq!(page.header("content-type"), "text/html; charset=utf-8");
    assert!(page.header("content-security-policy").starts_with("default-src 'none'; "));
    for path in ["/fleet?watch", "/requests/an-id/bundle"] {
        gateway.admin.get(path).await.expect_status(401);
    }
    gateway.admin.get("/page/another.js").await.expect_status(404);
    assert_eq!(
        gateway.admin.get("/page/main.js").await.header("x-content-type-options"),
        "nosniff"
    );
}

#[tokio::test]
async fn the_health_of_a_worker_has_its_time_and_its_reason() {
    let fleet = Fleet::start(1, 2).await;
    let gateway = fleet.gateway_with(&["--probe-interval", "100ms"]).await;
    let health = async |worker: &str| {
        let page = gateway.admin.get(&format!("/fleet/loads/default/{worker}")).await;
        page.expect_status(200).json()[0]["health"].clone()
    };
    let up = health("decode-0").await;
    assert_eq!(up["verdict"], "up", "{up}");
    fleet.decode[0].sim.kill().await;
    let down = eventually("it is down", SOON, async || {
        let health = health("decode-0").await;
        (health["verdict"] == "down").then_some(health)
    })
    .await;
    assert!(down["for_ms"].as_u64().is_some_and(|ms| ms < 10_000), "{down}");
    let reason = down["reason"].as_str().expect("a reason");
    assert!(gateway.log().contains(reason), "the log has the same reason: {reason}");
    assert_eq!(health("decode-1").await["verdict"], "up");
}

#[tokio::test]
async fn the_bundle_of_a_failure_has_its_choice_its_workers_and_their_other_failures() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway_with(&["--max-attempts", "1"]).await;
    gateway.client.post(CHAT, &chat("fine")).await.expect_status(200);
    fleet.decode[0].always(Action::Status { status: 400, body: r#"{"message":"no"}"#.into() });
    let mut failed = Vec::new();
    for _ in 0..2 {
        let answer = gateway.client.post(CHAT, &chat("hi")).await.expect_status(400);
        failed.push(answer.header("x-request-id").to_owned());
    }
    let path = format!("/requests/{}/bundle", failed[0]);
    let bundle = eventually("both are kept", SOON, async || {
        let bundle = gateway.admin.get(&path).await;
        let bundle = (bundle.status == 200).then(|| bundle.json())?;
        (bundle["recent_failures"].as_array().map(Vec::len) == Some(1)).then_some(bundle)
    })
    .await;
    assert_eq!(bundle["request"]["id"], *failed[0]);
    assert_eq!(bundle["recent_failures"][0]["id"], *failed[1]);
    let chosen = &bundle["request"]["choice"]["chosen"]["pair"];
    assert_eq!(
        (&chosen["prefill"], &chosen["decode"]),
        (&"default/prefill-0".into(), &"default/decode-0".into())
    );
    assert_eq!(bundle["request"]["choice"]["runner_up"], Value::Null, "there is one pair");
    let workers = bundle["workers"].as_array().expect("a list");
    let legs: Vec<&str> = workers.iter().filter_map(|worker| worker["leg"].as_str()).collect();
    assert_eq!(legs, ["prefill", "decode"]);
    for worker in workers {
        assert_eq!(worker["member"]["worker"]["name"], worker["name"], "{worker:#}");
        assert_eq!(worker["load"]["health"]["verdict"], "up", "{worker:#}");
    }
    assert_eq!(bundle["pair"], Value::Null, "no agent counts it");
    gateway.admin.get("/requests/unknown/bundle").await.expect_status(404);
}
