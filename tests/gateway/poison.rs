//! A request that kills engines: it takes two down and not the pool; and what is retried.

use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{HeaderValue, Method};
use router_tests::fleet::Engine;
use router_tests::folder::Folder;
use router_tests::{Answer, Fleet, Gateway, eventually};
use serde_json::{Value, json};
use sglang_sim::{Action, RequestMatch, Script};

use crate::{CHAT, chat, streamed};

const SOON: Duration = Duration::from_secs(30);

/// Every one of these engines dies of a request whose body has the word.
fn poison(engines: &[Engine]) {
    for engine in engines {
        let matching =
            RequestMatch { body_contains: Some("poison".into()), ..RequestMatch::default() };
        engine.script(Script { matching, action: Action::DieBeforeHead, times: 0 });
    }
}

fn dead(engines: &[Engine]) -> usize {
    engines.iter().filter(|engine| !engine.sim.is_alive()).count()
}

fn assert_died(answer: &Answer, leg: &str) {
    assert_eq!(answer.status, 502, "{}", answer.text());
    assert_eq!(answer.header("x-pd-router-reason"), format!("{leg}_died"));
    // OpenAI's client would send it again, and again.
    assert_eq!(answer.header("x-should-retry"), "false");
    assert_eq!(answer.header("retry-after"), "");
}

/// The request is refused by its content: no engine gets it.
fn assert_refused(answer: &Answer) {
    assert_eq!(answer.status, 422, "{}", answer.text());
    assert_eq!(answer.header("x-pd-router-reason"), "crashed_engines");
    assert_eq!(answer.header("x-should-retry"), "false");
    assert_eq!(answer.header("retry-after"), "");
}

#[tokio::test]
async fn a_request_that_kills_prefills_kills_two_and_is_then_refused() {
    let fleet = Fleet::start(4, 3).await;
    let gateway = fleet.gateway().await;
    poison(&fleet.prefill);
    assert_died(&gateway.client.post(CHAT, &chat("poison")).await, "prefill");
    assert_eq!((dead(&fleet.prefill), dead(&fleet.decode)), (2, 0));
    // Each engine that died is named, also the one after which the request was retried.
    eventually("both crashes are logged", Duration::from_secs(5), async || {
        let logged = gateway.log().matches("engine died during a request").count();
        (logged == 2).then_some(())
    })
    .await;
    for _ in 0..3 {
        assert_refused(&gateway.client.post(CHAT, &chat("poison")).await);
    }
    assert_eq!((dead(&fleet.prefill), dead(&fleet.decode)), (2, 0));
    for _ in 0..6 {
        gateway.client.post(CHAT, &chat("hi")).await.expect_status(200);
    }
}

#[tokio::test]
async fn a_stream_that_kills_decodes_before_its_first_event_kills_two() {
    let fleet = Fleet::start(3, 4).await;
    let gateway = fleet.gateway().await;
    poison(&fleet.decode);
    let answer = gateway.client.open(CHAT, &streamed("poison")).await.answer().await;
    assert_died(&answer, "decode");
    let again = gateway.client.open(CHAT, &streamed("poison")).await.answer().await;
    assert_refused(&again);
    assert_eq!((dead(&fleet.prefill), dead(&fleet.decode)), (0, 2));
}

#[tokio::test]
async fn a_stream_that_kills_decodes_after_its_first_event_kills_two() {
    let fleet = Fleet::start(1, 4).await;
    let gateway = fleet.gateway().await;
    for decode in &fleet.decode {
        let matching =
            RequestMatch { body_contains: Some("poison".into()), ..RequestMatch::default() };
        let action = Action::DieMidStream { after: 2 };
        decode.script(Script { matching, action, times: 0 });
    }
    for deaths in 1..=2 {
        gateway.client.open(CHAT, &streamed("poison")).await.answer().await.expect_status(200);
        // The engine is examined after its stream has ended.
        eventually("the crash is logged", Duration::from_secs(5), async || {
            let logged = gateway.log().matches("engine died during a stream").count();
            (logged == deaths).then_some(())
        })
        .await;
    }
    assert_refused(&gateway.client.open(CHAT, &streamed("poison")).await.answer().await);
    assert_eq!(dead(&fleet.decode), 2);
}

#[tokio::test]
async fn a_poison_in_another_spelling_is_refused_too() {
    let fleet = Fleet::start(2, 4).await;
    let gateway = fleet.gateway().await;
    poison(&fleet.decode);
    assert_died(&gateway.client.post(CHAT, &chat("poison")).await, "decode");
    let mut more = chat("poison");
    for (field, value) in [
        ("user", json!("x")),
        ("metadata", json!({"try": 2})),
        ("seed", json!(7)),
        ("stream", json!(true)),
        ("stream_options", json!({"include_usage": true})),
        ("priority", json!(1)),
        ("safety_identifier", json!("s")),
        ("rid", json!("mine")),
    ] {
        more[field] = value;
        assert_refused(&gateway.client.open(CHAT, &more).await.answer().await);
    }
    let spaced = serde_json::to_string_pretty(&chat("poison")).expect("JSON");
    let escaped = chat("poison").to_string().replace("poison", "p\\u006fison");
    for body in [spaced, escaped] {
        assert_refused(&gateway.client.post_bytes(CHAT, body).await);
    }
    assert_eq!(dead(&fleet.decode), 2);
    gateway.client.post(CHAT, &chat("hi")).await.expect_status(200);
}

/// An answer of the admin port to the token of [`replica`], `null` if there is none.
async fn admin(gateway: &Gateway, path: &str) -> Value {
    let mut request = gateway.admin.request(Method::GET, path, "");
    request.headers_mut().insert(AUTHORIZATION, HeaderValue::from_static("Bearer secret"));
    match gateway.admin.try_send(request).await {
        Ok(stream) => serde_json::from_slice(&stream.answer().await.body).unwrap_or_default(),
        Err(_) => Value::Null,
    }
}

/// A gateway that shares a token with others, and whose pod they see; it knows all engines.
async fn replica(fleet: &Fleet, token: &Folder) -> Gateway {
    let file = token.path().join("token");
    std::fs::write(&file, "secret\n").expect("writing the token");
    let flags = ["--admin-token-file", file.to_str().expect("UTF-8")];
    let gateway = Gateway::start_with(&fleet.manifests, &flags).await;
    let ip = gateway.address.ip();
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": format!("gateway-{ip}"),
            "uid": format!("gateway-{ip}"),
            "labels": {"app.kubernetes.io/name": "pd-router-gateway"},
        },
        "status": {
            "phase": "Running",
            "podIP": ip.to_string(),
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    });
    fleet.manifests.put(&format!("gateway-{ip}.yaml"), &pod.to_string());
    let engines = fleet.engines().filter(|engine| engine.sim.is_alive()).count();
    eventually("the gateway knows every engine that lives", SOON, async || {
        let known = admin(&gateway, "/fleet").await.to_string();
        (known.matches("page_size").count() >= engines).then_some(())
    })
    .await;
    gateway
}

async fn learned(gateway: &Gateway, crashes: usize) {
    eventually("the crashes are known", SOON, async || {
        let known = admin(gateway, "/crashes").await["crashes"].as_array().map(Vec::len);
        (known == Some(crashes)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_poison_kills_two_engines_by_whichever_gateways_it_comes() {
    let fleet = Fleet::start(2, 6).await;
    let token = Folder::new("token");
    let (one, two) = (replica(&fleet, &token).await, replica(&fleet, &token).await);
    for gateway in [&one, &two] {
        eventually("the gateways know each other", SOON, async || {
            gateway.log().contains("gateway peer connected").then_some(())
        })
        .await;
    }
    poison(&fleet.decode);
    assert_died(&one.client.post(CHAT, &chat("poison")).await, "decode");
    learned(&two, 2).await;
    let mut more = chat("poison");
    more["user"] = json!("x");
    for gateway in [&two, &one] {
        for body in [chat("poison"), more.clone(), streamed("poison")] {
            assert_refused(&gateway.client.open(CHAT, &body).await.answer().await);
        }
        gateway.client.post(CHAT, &chat("hi")).await.expect_status(200);
    }
    // One that starts later, when the gateway that saw the crashes is gone, learns them as well.
    drop(one);
    let three = replica(&fleet, &token).await;
    learned(&three, 2).await;
    assert_refused(&three.client.post(CHAT, &chat("poison")).await);
    assert_eq!(dead(&fleet.decode), 2);
    let shown = admin(&three, "/crashes").await.to_string();
    assert!(!shown.contains("poison") && !shown.contains("decode"), "{shown}");
}

#[tokio::test]
async fn a_request_that_kills_ordinary_servers_kills_two() {
    let fleet = Fleet::start_single(4).await;
    let gateway = fleet.gateway().await;
    poison(&fleet.unified);
    assert_died(&gateway.client.post(CHAT, &chat("poison")).await, "engine");
    assert_refused(&gateway.client.post(CHAT, &chat("poison")).await);
    assert_eq!(dead(&fleet.unified), 2);
}

#[tokio::test]
async fn an_engine_that_dies_by_itself_is_replaced_before_the_first_byte() {
    let fleet = Fleet::start(2, 3).await;
    let gateway = fleet.gateway_with(&["--policy", "round_robin"]).await;
    fleet.decode[0].once(Action::DieBeforeHead);
    fleet.prefill[0].once(Action::DieBeforeHead);
    for n in 0..6 {
        let body = if n % 2 == 0 { chat("hi") } else { streamed("hi") };
        gateway.client.open(CHAT, &body).await.answer().await.expect_status(200);
    }
    assert_eq!((dead(&fleet.prefill), dead(&fleet.decode)), (1, 1));
}

#[tokio::test]
async fn max_engine_crashes_bounds_the_engines_that_one_request_may_kill() {
    for (limit, killed) in [("1", 1), ("3", 3)] {
        let fleet = Fleet::start(4, 2).await;
        let gateway = fleet.gateway_with(&["--max-engine-crashes", limit]).await;
        poison(&fleet.prefill);
        assert_died(&gateway.client.post(CHAT, &chat("poison")).await, "prefill");
        assert_eq!(dead(&fleet.prefill), killed);
        // Whatever the limit of one request, a client that sends it again crashes no third engine.
        if limit == "1" {
            assert_died(&gateway.client.post(CHAT, &chat("poison")).await, "prefill");
        }
        assert_refused(&gateway.client.post(CHAT, &chat("poison")).await);
        assert_eq!(dead(&fleet.prefill), killed.max(2));
    }
}

#[tokio::test]
async fn a_connection_that_breaks_without_a_death_is_retried_once() {
    let fleet = Fleet::start(1, 3).await;
    let gateway = fleet.gateway_with(&["--policy", "round_robin"]).await;
    fleet.decode[0].always(Action::DropBeforeHead);
    for _ in 0..6 {
        gateway.client.post(CHAT, &chat("hi")).await.expect_status(200);
    }
    assert!(!fleet.decode[0].legs().is_empty(), "the one that breaks was never tried");
    for decode in &fleet.decode {
        decode.always(Action::DropBeforeHead);
    }
    let before: usize = fleet.decode.iter().map(|decode| decode.legs().len()).sum();
    let answer = gateway.client.post(CHAT, &chat("hi")).await.expect_status(502);
    assert_eq!(answer.header("x-pd-router-reason"), "decode_broken");
    let after: usize = fleet.decode.iter().map(|decode| decode.legs().len()).sum();
    assert_eq!(after - before, 2, "attempts");
}

/// Waits until the gateway has seen that the pod is terminating.
async fn drains(fleet: &Fleet, gateway: &Gateway, pod: &router_tests::manifests::Pod) {
    fleet.manifests.put_pod(pod);
    eventually("the pod is draining", Duration::from_secs(5), async || {
        gateway.fleet().await.to_string().contains("draining").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_request_on_a_terminating_pod_that_ends_is_retried() {
    let mut fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway().await;
    fleet.decode[0].once(Action::HangHead);
    let client = gateway.client;
    let waiting = tokio::spawn(async move { client.post(CHAT, &chat("hi")).await });
    fleet.decode[0].legs_arrived(1).await;
    let mut going = fleet.decode[0].pod.clone();
    going.deleting = true;
    drains(&fleet, &gateway, &going).await;
    fleet.add(sglang_sim::Role::Decode, sglang_sim::Config::instant).await;
    fleet.until_engines_known(&gateway).await;
    fleet.decode[0].sim.kill().await;
    waiting.await.expect("no panic").expect_status(200);
    assert_eq!(fleet.decode[1].legs().len(), 1);
}
