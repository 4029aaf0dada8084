//! Every failure that a script can inject.

mod pair;

use std::time::{Duration, Instant};

use pair::*;
use serde_json::json;
use sglang_sim::{Action, Config, Engine, Role, Script, Version};

async fn unified() -> Engine {
    start(config(Role::Unified, Version::V0_5)).await
}

async fn over_http(engine: &Engine, script: serde_json::Value) {
    let answer = post(engine, "/sim/script", &script).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[tokio::test]
async fn death_before_the_head_is_a_reset_and_closes_the_port() {
    let engine = unified().await;
    over_http(&engine, json!({"action": "die_before_head"})).await;
    assert_eq!(raw(&engine, &generate("a", 3)).await, (String::new(), true));
    assert!(!engine.is_alive());
    engine.kill().await;
    let refused = tokio::net::TcpStream::connect(engine.address()).await;
    assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    assert_eq!(engine.received_on("/generate")[0].outcome, "die_before_head");
}

#[tokio::test]
async fn death_in_the_middle_cuts_after_whole_events_or_in_one() {
    for (action, whole) in [
        (Action::DieMidStream { after: 2 }, true),
        (Action::DieMidEvent { after: 2 }, false),
        (Action::DropMidStream { after: 2 }, true),
    ] {
        let engine = unified().await;
        let survives = matches!(action, Action::DropMidStream { .. });
        engine.script(Script::once(action.clone()));
        let (text, reset) = raw(&engine, &streaming(generate("a", 30))).await;
        assert!(reset, "{action:?}");
        assert_eq!(text.matches("data: ").count(), if whole { 2 } else { 3 }, "{action:?}: {text}");
        assert_eq!(text.trim_end_matches("\r\n").ends_with("\n\n"), whole, "{action:?}: {text}");
        assert_eq!(engine.is_alive(), survives);
    }
}

#[tokio::test]
async fn a_dropped_connection_leaves_the_engine_alive() {
    let engine = unified().await;
    engine.script(Script::once(Action::DropBeforeHead));
    assert_eq!(raw(&engine, &generate("a", 3)).await, (String::new(), true));
    text_of(&post(&engine, "/generate", &generate("a", 3)).await);
}

#[tokio::test]
async fn a_scripted_status_applies_as_often_as_requested() {
    let engine = unified().await;
    over_http(
        &engine,
        json!([{"match": {"path": "/v1/chat/completions", "nth": 2}, "times": 2,
            "action": {"status": 503, "body": {"error": "busy"}}}]),
    )
    .await;
    let mut statuses = Vec::new();
    for _ in 0..4 {
        text_of(&post(&engine, "/generate", &generate("a", 2)).await);
        let answer = post(&engine, "/v1/chat/completions", &chat("a", 2)).await;
        statuses.push(answer.status.as_u16());
    }
    assert_eq!(statuses, [200, 503, 503, 200]);
    over_http(&engine, json!({"match": {"path": "/ready"}, "action": {"status": 503}})).await;
    assert_eq!(get(&engine, "/ready").await.status, 503);
    assert_eq!(get(&engine, "/ready").await.status, 200);
    assert_eq!(post(&engine, "/sim/script", &json!({"action": "dance"})).await.status, 400);
}

#[tokio::test]
async fn a_scripted_first_event_error_comes_inside_a_200() {
    let engine = unified().await;
    engine.script(Script::always(Action::FirstEventError { message: "no memory".into() }));
    let streamed = post(&engine, "/v1/chat/completions", &streaming(chat("a", 3))).await;
    assert_eq!(streamed.status, 200);
    assert_eq!(streamed.events()[0]["error"]["message"], "no memory");
    assert!(streamed.is_done());
    let generated = post(&engine, "/generate", &streaming(generate("a", 3))).await;
    let finish = generated.events()[0]["meta_info"]["finish_reason"].clone();
    assert_eq!((&finish["type"], &finish["status_code"]), (&json!("abort"), &json!(500)));
    assert_eq!(post(&engine, "/v1/chat/completions", &chat("a", 3)).await.status, 500);
}

#[tokio::test]
async fn a_leg_without_rendezvous_times_out_and_others_are_served() {
    let pair = pair(Version::V0_5).await;
    pair.prefill.script(Script::once(Action::NeverRendezvous));
    let body = pair.meet(generate("a", 3), 1);
    let (prefill, decode) = pair.both("/generate", &body).await;
    assert!(prefill.text().contains("KVPoll.Bootstrapping"), "{prefill:?}");
    assert!(decode.text().contains("KVPoll.WaitingForInput"), "{decode:?}");
    let (_, decode) = pair.both("/generate", &pair.meet(generate("a", 3), 2)).await;
    text_of(&decode);
}

#[tokio::test]
async fn slow_multiplies_the_duration() {
    let steady = Config { inter_token: Duration::from_millis(2), ..Config::new(Role::Unified) };
    let engine = start(steady).await;
    engine.script(Script::once(Action::Slow { factor: 20.0 }));
    let started = Instant::now();
    text_of(&post(&engine, "/generate", &generate("a", 6)).await);
    assert!(started.elapsed() >= Duration::from_millis(200), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_frozen_engine_thaws_after_its_time() {
    let engine = unified().await;
    engine.script(Script::once(Action::Freeze { ms: Some(150) }));
    let started = Instant::now();
    text_of(&post(&engine, "/generate", &generate("a", 2)).await);
    assert!(started.elapsed() >= Duration::from_millis(150));
    engine.script(Script::once(Action::FreezeScheduler { ms: Some(150) }));
    let started = Instant::now();
    let (answer, alive) =
        tokio::join!(async { post(&engine, "/generate", &generate("a", 2)).await }, async {
            get(&engine, "/ready").await
        },);
    text_of(&answer);
    assert_eq!(alive.status, 200);
    assert!(started.elapsed() >= Duration::from_millis(150));
}

#[tokio::test]
async fn a_scripted_hang_never_answers() {
    let engine = unified().await;
    engine.script(Script::once(Action::HangHead));
    let body = generate("a", 2);
    let hanging = tokio::time::timeout(
        Duration::from_millis(200),
        send(engine.address(), "/generate", &body),
    );
    assert!(hanging.await.is_err());
    text_of(&post(&engine, "/generate", &generate("a", 2)).await);
}

#[tokio::test]
async fn a_restart_comes_back_on_the_same_ports_with_an_empty_registry() {
    let prefill = start(config(Role::Prefill, Version::V0_5)).await;
    let decode = start(config(Role::Decode, Version::V0_5)).await;
    let pair = Pair { prefill, decode };
    let warm = pair.both("/generate", &pair.meet(generate("a", 2), 1)).await;
    text_of(&warm.1);
    over_http(
        &pair.prefill,
        json!({"action": {"restart": {"down_ms": 100, "registry_delay_ms": 150}}}),
    )
    .await;
    let body = pair.meet(generate("a", 2), 2);
    assert!(send(pair.prefill.address(), "/generate", &body).await.is_err());
    assert!(!pair.prefill.is_alive());
    assert!(pair.prefill.until(DEADLINE, Engine::is_alive).await);
    let bootstrap = pair.prefill.bootstrap_address().unwrap();
    let path = "/route?prefill_dp_rank=0&prefill_cp_rank=0&target_tp_rank=0&target_pp_rank=0";
    assert_eq!(get_at(bootstrap, path).await.status, 503);
    let (_, decode) = pair.both("/generate", &pair.meet(generate("a", 2), 3)).await;
    text_of(&decode);
    assert_eq!(get_at(bootstrap, path).await.status, 200);
    assert_eq!(pair.prefill.received_on("/generate").len(), 3, "records survive a restart");
}

#[tokio::test]
async fn received_requests_are_listed_byte_for_byte() {
    let engine = unified().await;
    let text = r#"{"text":"a", "sampling_params" : {"max_new_tokens":2},"big":1.00e5}"#;
    let answer = post_raw(&engine, text).await;
    assert_eq!(answer.status, 200);
    let received = get(&engine, "/sim/received").await.json();
    assert_eq!(received[0]["body"], text);
    assert_eq!(received[0]["path"], "/generate");
    assert_eq!(received[0]["headers"]["x-test"], "yes");
    assert_eq!(received[0]["outcome"], "ok");
    assert_eq!(get(&engine, "/sim/kv").await.json()["ranks"][0]["running"], 0);
    post(&engine, "/sim/reset", &json!({})).await;
    assert_eq!(get(&engine, "/sim/received").await.json(), json!([]));
}
