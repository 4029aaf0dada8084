//! Aborting by request id, and what the peer of an aborted leg notices.

mod pair;

use std::time::{Duration, Instant};

use pair::*;
use serde_json::{Value, json};
use sglang_sim::{Config, Engine, Role, Version};

fn named(mut body: Value, rid: &str) -> Value {
    body["rid"] = json!(rid);
    body
}

fn endless(role: Role) -> Config {
    Config {
        inter_token: Duration::from_millis(5),
        natural_length: 1 << 20,
        ..config(role, Version::V0_5)
    }
}

async fn abort(engine: &Engine, rid: &str) -> Answer {
    post(engine, "/abort_request", &json!({"rid": rid})).await
}

#[tokio::test]
async fn an_abort_ends_every_request_whose_id_starts_with_an_existing_id() {
    let engine = start(endless(Role::Unified)).await;
    let runs = ["run-1", "run-10", "other"]
        .map(|rid| named(generate(rid, 100_000), rid))
        .map(|body| (&engine, body))
        .map(|(engine, body)| async move { post(engine, "/generate", &body).await });
    let [first, longer, other] = runs;
    let aborting = async {
        assert!(engine.until(DEADLINE, |e| e.occupancy().running == 3).await);
        assert_eq!(abort(&engine, "run").await.status, 200);
        assert_eq!(engine.occupancy().legs, 3, "an unknown id aborts nothing");
        assert_eq!(abort(&engine, "run-1").await.status, 200);
        assert!(engine.until(DEADLINE, |e| e.occupancy().legs == 1).await);
        post(&engine, "/abort_request", &json!({"abort_all": true})).await;
    };
    let (first, longer, other, ()) = tokio::join!(first, longer, other, aborting);
    for answer in [first, longer, other] {
        let finish = answer.json()["meta_info"]["finish_reason"].clone();
        assert_eq!((answer.status.as_u16(), &finish["type"]), (200, &json!("abort")));
        assert_eq!(finish["status_code"], Value::Null);
    }
    let aborts = engine.aborts();
    assert_eq!(aborts.len(), 3);
    assert_eq!((aborts[0].rid.as_str(), aborts[0].matched.len()), ("run", 0));
    assert_eq!(aborts[1].matched, ["run-1", "run-10"]);
    assert!(aborts[2].abort_all);
    assert_eq!(engine.received_on("/generate")[0].outcome, "aborted");
}

#[tokio::test]
async fn a_batch_with_one_id_numbers_its_sequences() {
    let engine = start(endless(Role::Unified)).await;
    let body = named(json!({"text": ["a", "b"], "sampling_params": {"max_new_tokens": 2}}), "x");
    let answer = post(&engine, "/generate", &body).await.json();
    assert_eq!(answer[0]["meta_info"]["id"], "x_0");
    assert_eq!(answer[1]["meta_info"]["id"], "x_1");
    assert_eq!(engine.received()[0].rids, ["x_0", "x_1"]);
}

#[tokio::test]
async fn an_id_in_use_is_rejected() {
    let engine = start(endless(Role::Unified)).await;
    let body = named(generate("a", 100_000), "twice");
    let second = async {
        assert!(engine.until(DEADLINE, |e| e.occupancy().running == 1).await);
        let second = post(&engine, "/generate", &body).await;
        abort(&engine, "twice").await;
        second
    };
    let (_, second) = tokio::join!(post(&engine, "/generate", &body), second);
    assert_eq!(second.status, 400);
    assert_eq!(second.json()["error"]["message"], "Duplicate request ID detected: twice");
}

#[tokio::test]
async fn an_abort_on_decode_ends_the_prefill_leg_on_0_5_only() {
    for (version, notified) in [(Version::V0_5, true), (Version::V0_4_10, false)] {
        let mut slow = Config { prefill_tokens_per_second: 20, ..config(Role::Prefill, version) };
        slow.timing.bootstrap_timeout = DEADLINE;
        let pair =
            Pair { prefill: start(slow).await, decode: start(config(Role::Decode, version)).await };
        let body = pair.meet(named(generate(&"word ".repeat(20), 3), "leg"), 1);
        let started = Instant::now();
        let aborting = async {
            assert!(pair.prefill.until(DEADLINE, |e| e.occupancy().running == 1).await);
            abort(&pair.decode, "leg").await;
        };
        let ((prefill, decode), ()) = tokio::join!(pair.both("/generate", &body), aborting);
        assert!(decode.text().contains("Aborted by AbortReq."), "{decode:?}");
        if notified {
            assert_eq!(prefill.status, 500);
            let text = "Failed due to an unknown reason from another rank";
            assert!(prefill.text().contains(text), "{prefill:?}");
        } else {
            assert_eq!(prefill.status, 200, "it pushes to a decode that does not want it");
        }
        assert!(started.elapsed() < DEADLINE);
    }
}

#[tokio::test]
async fn an_abort_on_prefill_leaves_a_0_4_decode_waiting() {
    for (version, notified) in [(Version::V0_5, true), (Version::V0_4_10, false)] {
        let slow = Config { prefill_tokens_per_second: 40, ..config(Role::Prefill, version) };
        let mut long_wait = config(Role::Decode, version);
        long_wait.timing.waiting_timeout = Duration::from_secs(2);
        let pair = Pair { prefill: start(slow).await, decode: start(long_wait).await };
        let body = pair.meet(named(generate(&"word ".repeat(10), 3), "leg"), 1);
        let started = Instant::now();
        let aborting = async {
            assert!(pair.prefill.until(DEADLINE, |e| e.occupancy().running == 1).await);
            abort(&pair.prefill, "leg").await;
        };
        let ((_, decode), ()) = tokio::join!(pair.both("/generate", &body), aborting);
        let text = if notified { "it might be dead" } else { "KVPoll.WaitingForInput" };
        assert!(decode.text().contains(text), "{decode:?}");
        assert_eq!(started.elapsed() >= Duration::from_secs(2), !notified);
    }
}

#[tokio::test]
async fn the_disconnect_of_a_non_streaming_client_is_noticed_by_polling() {
    let engine = start(endless(Role::Unified)).await;
    let body = generate("a", 100_000);
    let asking = send(engine.address(), "/generate", &body);
    let left = tokio::time::timeout(Duration::from_millis(100), asking).await;
    assert!(left.is_err());
    let gone = Instant::now();
    assert!(engine.until(DEADLINE, |e| e.occupancy().legs == 0).await);
    let least = short_timeouts().disconnect_poll - Duration::from_millis(20);
    assert!(gone.elapsed() >= least, "{:?}", gone.elapsed());
    assert_eq!(engine.received()[0].outcome, "client gone");
}

#[tokio::test]
async fn administration_needs_the_admin_key_and_other_paths_the_api_key() {
    let keys = Config {
        api_key: Some("user".into()),
        admin_api_key: Some("admin".into()),
        ..config(Role::Unified, Version::V0_5)
    };
    let engine = start(keys).await;
    let body = json!({"rid": "x"});
    let (user, admin) = (("authorization", "Bearer user"), ("authorization", "Bearer admin"));
    let refused = post(&engine, "/abort_request", &body).await;
    assert_eq!((refused.status.as_u16(), refused.json()), (401, json!({"error": "Unauthorized"})));
    assert_eq!(post_with(&engine, "/abort_request", &body, user).await.status, 401);
    assert_eq!(post_with(&engine, "/abort_request", &body, admin).await.status, 200);
    assert_eq!(post_with(&engine, "/generate", &generate("a", 2), user).await.status, 200);
    assert_eq!(post(&engine, "/generate", &generate("a", 2)).await.status, 401);
    assert_eq!(get(&engine, "/health").await.status, 200);
    assert_eq!(get(&engine, "/metrics").await.status, 200);
}
