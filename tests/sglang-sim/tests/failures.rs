//! Failures as they were observed on a real pair, case by case, with short timeouts.

mod pair;

use std::time::{Duration, Instant};

use pair::*;
use serde_json::{Value, json};
use sglang_sim::{Config, Role, Timing, Version};

const TIMEOUT: Duration = Duration::from_millis(500);

/// Asserts that the leg failed with 500 and this text, when its timeout was over and not before.
fn assert_timed_out(answer: &Answer, took: Duration, texts: &[&str]) {
    assert_eq!(answer.status, 500, "{answer:?}");
    for text in texts {
        assert!(answer.text().contains(text), "{text} in {answer:?}");
    }
    assert!(took >= TIMEOUT && took < TIMEOUT * 4, "{took:?}");
}

async fn timed<T>(work: impl Future<Output = T>) -> (T, Duration) {
    let start = Instant::now();
    (work.await, start.elapsed())
}

fn error_of(event: &Value) -> &Value {
    &event["meta_info"]["finish_reason"]
}

#[tokio::test]
async fn rooms_that_differ_time_out_on_both_sides() {
    let pair = pair(Version::V0_5).await;
    let (one, other) = (pair.meet(generate("a", 3), 1), pair.meet(generate("a", 3), 2));
    let ((prefill, after), (decode, later)) = tokio::join!(
        timed(post(&pair.prefill, "/generate", &one)),
        timed(post(&pair.decode, "/generate", &other)),
    );
    let texts = ["Prefill bootstrap failed", "timed out after 0.5s in KVPoll.Bootstrapping"];
    assert_timed_out(&prefill, after, &texts);
    assert_eq!(prefill.json()["object"], "error");
    assert_eq!(prefill.json()["code"], 500);
    assert_eq!(prefill.json()["type"], "500");
    let texts = ["Decode transfer failed", "KVPoll.WaitingForInput", "bootstrap_room=2"];
    assert_timed_out(&decode, later, &texts);
}

#[tokio::test]
async fn without_a_room_both_legs_get_400() {
    let pair = pair(Version::V0_5).await;
    let (prefill, decode) = pair.both("/generate", &generate("a", 3)).await;
    for answer in [prefill, decode] {
        assert_eq!(answer.status, 400);
        let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
        let text = "Invalid request: Disaggregated request received without bootstrap room id.";
        assert!(message.starts_with(text), "{message}");
    }
    let chat = post(&pair.decode, "/v1/chat/completions", &chat("a", 3)).await;
    assert_eq!((chat.status.as_u16(), &chat.json()["type"]), (400, &json!("BadRequestError")));
}

#[tokio::test]
async fn a_leg_without_its_peer_times_out() {
    let pair = pair(Version::V0_5).await;
    let body = pair.meet(generate("a", 3), 1);
    let (prefill, took) = timed(post(&pair.prefill, "/generate", &body)).await;
    assert_timed_out(&prefill, took, &["KVPoll.Bootstrapping"]);
    let (decode, took) = timed(post(&pair.decode, "/generate", &body)).await;
    assert_timed_out(&decode, took, &["KVPoll.WaitingForInput"]);
}

#[tokio::test]
async fn a_dead_decode_shows_as_a_timeout_of_prefill() {
    let pair = pair(Version::V0_5).await;
    pair.decode.kill().await;
    let body = pair.meet(generate("a", 3), 1);
    let refused = send(pair.decode.address(), "/generate", &body).await;
    assert!(refused.unwrap_err().is_connect());
    let (prefill, took) = timed(post(&pair.prefill, "/generate", &body)).await;
    assert_timed_out(&prefill, took, &["Prefill bootstrap failed"]);
}

#[tokio::test]
async fn an_unreachable_registry_fails_the_handshake_of_decode() {
    for version in [Version::V0_4_10, Version::V0_5] {
        let pair = pair(version).await;
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut body = pair.meet(streaming(generate("a", 3)), 1);
        body["bootstrap_port"] = json!(free.port());
        let decode = post(&pair.decode, "/generate", &body).await;
        let events = decode.events();
        let message = error_of(&events[0])["message"].as_str().unwrap();
        assert!(message.starts_with("Decode handshake failed"), "{message}");
        let reason = match version {
            Version::V0_4_10 => "Could not fetch prefill parallel info from bootstrap_addr: 127",
            Version::V0_5 => "Aborted by AbortReq.",
        };
        assert!(message.contains(reason), "{message}");
    }
}

#[tokio::test]
async fn a_prefill_killed_during_a_request_is_noticed_by_the_heartbeat() {
    let slow = Config { prefill_tokens_per_second: 10, ..config(Role::Prefill, Version::V0_5) };
    let mut long_wait = config(Role::Decode, Version::V0_5);
    long_wait.timing.waiting_timeout = DEADLINE;
    let pair = Pair { prefill: start(slow).await, decode: start(long_wait).await };
    let body = pair.meet(streaming(generate(&"long ".repeat(100), 3)), 1);
    let killing = async {
        assert!(pair.prefill.until(DEADLINE, |e| e.occupancy().running == 1).await);
        pair.prefill.kill().await;
    };
    let (decode, prefill, ()) = tokio::join!(
        post(&pair.decode, "/generate", &body),
        async { read(send(pair.prefill.address(), "/generate", &body).await.unwrap()).await },
        killing,
    );
    assert!(prefill.broken, "{prefill:?}");
    assert_eq!(decode.status, 200);
    let address = pair.prefill.bootstrap_address().unwrap();
    let text = format!("Losing connection with prefill instance (bootstrap_addr: {address})");
    let events = decode.events();
    let finish = error_of(&events[0]);
    assert!(finish["message"].as_str().unwrap().contains(&text), "{finish}");
    assert_eq!((&finish["type"], &finish["status_code"]), (&json!("abort"), &json!(500)));
    assert!(decode.is_done());
}

#[tokio::test]
async fn a_frozen_prefill_scheduler_is_not_noticed_by_the_heartbeat() {
    let pair = pair(Version::V0_5).await;
    pair.prefill.freeze_scheduler();
    let body = pair.meet(streaming(generate("a", 3)), 1);
    let head = send(pair.prefill.address(), "/generate", &body).await.unwrap();
    assert_eq!(head.status(), 200, "the head of a stream is sent before anything has happened");
    let (decode, took) = timed(post(&pair.decode, "/generate", &body)).await;
    let events = decode.events();
    let message = error_of(&events[0])["message"].as_str().unwrap();
    assert!(message.contains("KVPoll.WaitingForInput"), "{message}");
    assert!(took >= TIMEOUT, "{took:?}");
    let address = pair.prefill.bootstrap_address().unwrap();
    assert_eq!(get_at(address, "/health").await.text(), "OK");
    let (health, took) = timed(get(&pair.prefill, "/health")).await;
    assert_eq!(health.status, 503);
    assert!(took >= short_timeouts().health_timeout, "{took:?}");
    assert_eq!(get(&pair.prefill, "/ready").await.status, 200);
    pair.prefill.thaw_scheduler();
    assert_eq!(get(&pair.prefill, "/health").await.status, 200);
}

#[tokio::test]
async fn the_disconnect_of_a_streaming_client_frees_its_kv_after_a_delay() {
    let slow =
        Config { inter_token: Duration::from_millis(10), ..config(Role::Decode, Version::V0_5) };
    let pair = Pair {
        prefill: start(config(Role::Prefill, Version::V0_5)).await,
        decode: start(slow).await,
    };
    let mut body = pair.meet(streaming(generate("a", 100_000)), 1);
    body["sampling_params"]["ignore_eos"] = json!(true);
    let prefill = post(&pair.prefill, "/generate", &body);
    let leaving = async {
        let head = send(pair.decode.address(), "/generate", &body).await.unwrap();
        assert!(pair.decode.until(DEADLINE, |e| e.occupancy().running == 1).await);
        drop(head);
        Instant::now()
    };
    let (_, left) = tokio::join!(prefill, leaving);
    assert!(pair.decode.until(DEADLINE, |e| e.occupancy().legs == 0).await);
    assert!(left.elapsed() >= short_timeouts().disconnect_stream, "{:?}", left.elapsed());
    assert_eq!(pair.decode.occupancy().tokens, 0);
    assert_eq!(pair.decode.received()[0].outcome, "client gone");
}

#[tokio::test]
async fn two_samples_with_one_room_fail_on_both_sides() {
    let pair = pair(Version::V0_5).await;
    let mut body = pair.meet(chat("a", 3), 1);
    body["n"] = json!(2);
    let ((prefill, decode), took) = timed(pair.both("/v1/chat/completions", &body)).await;
    assert_timed_out(&prefill, took, &["KVPoll.Bootstrapping"]);
    assert_timed_out(&decode, took, &["KVPoll.WaitingForInput"]);
}

#[tokio::test]
async fn a_room_of_2_to_the_63_kills_the_prefill() {
    for room in [json!(1u64 << 63), json!(u64::MAX), json!("9223372036854775808"), json!(1e300)] {
        let pair = pair(Version::V0_5).await;
        let mut body = pair.meet(generate("a", 3), 1);
        body["bootstrap_room"] = room;
        let sent = send(pair.prefill.address(), "/generate", &body).await;
        assert!(sent.is_err(), "a dead engine answered");
        assert!(!pair.prefill.is_alive());
        assert!(pair.decode.is_alive());
    }
}

#[tokio::test]
async fn a_restarted_prefill_or_decode_serves_its_first_request() {
    for version in [Version::V0_4_10, Version::V0_5] {
        let pair = pair(version).await;
        for (room, restarted) in [(1, None), (2, Some(&pair.prefill)), (3, Some(&pair.decode))] {
            if let Some(engine) = restarted {
                engine.restart().await.unwrap();
            }
            let body = pair.meet(generate("again", 3), room);
            let (prefill, decode) = pair.both("/generate", &body).await;
            text_of(&prefill);
            text_of(&decode);
        }
    }
}

#[tokio::test]
async fn stream_errors_are_events_inside_a_200() {
    let pair = pair(Version::V0_5).await;
    let body = pair.meet(streaming(chat("a", 3)), 1);
    let decode = post(&pair.decode, "/v1/chat/completions", &body).await;
    assert_eq!(decode.status, 200);
    let error = &decode.events()[0]["error"];
    assert_eq!(error["object"], "error");
    assert_eq!((&error["code"], &error["param"]), (&json!(500), &Value::Null));
    assert_eq!(error["type"], "INTERNAL_SERVER_ERROR");
    assert!(decode.is_done());
    let completion = pair.meet(json!({"prompt": "a", "max_tokens": 2, "stream": true}), 2);
    let decode = post(&pair.decode, "/v1/completions", &completion).await;
    assert_eq!(decode.events()[0]["error"]["code"], 500);
}

#[tokio::test]
async fn a_0_4_engine_answers_a_failed_leg_with_200_and_abort() {
    let pair = pair(Version::V0_4_10).await;
    let body = pair.meet(generate("a", 3), 1);
    let decode = post(&pair.decode, "/generate", &body).await;
    assert_eq!(decode.status, 200);
    let answer = decode.json();
    assert_eq!(answer["text"], "");
    assert_eq!(error_of(&answer)["status_code"], 500);
    let body = pair.meet(chat("a", 3), 2);
    let prefill = post(&pair.prefill, "/v1/chat/completions", &body).await;
    assert_eq!(prefill.status, 200);
    assert_eq!(prefill.json()["choices"][0]["finish_reason"], "abort");
    let roomless = post(&pair.decode, "/generate", &generate("a", 3)).await;
    assert_eq!(roomless.status, 200);
    let message = error_of(&roomless.json())["message"].as_str().unwrap().to_owned();
    assert!(message.contains("without boostrap room id"), "its own spelling: {message}");
    let body = pair.meet(streaming(chat("a", 3)), 3);
    let stream = post(&pair.decode, "/v1/chat/completions", &body).await;
    let events = stream.events();
    assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(events[1]["choices"][0]["finish_reason"], "abort");
    assert!(stream.is_done());
}

#[tokio::test]
async fn a_0_4_engine_breaks_off_a_stream_that_its_full_queue_rejects() {
    let full = Config {
        max_running_requests: 1,
        max_queued_requests: Some(0),
        inter_token: Duration::from_millis(5),
        ..config(Role::Unified, Version::V0_4_10)
    };
    let engine = start(full).await;
    let body = generate("busy", 40);
    let second = async {
        assert!(engine.until(DEADLINE, |e| e.occupancy().running == 1).await);
        post(&engine, "/v1/chat/completions", &streaming(chat("a", 2))).await
    };
    let (_, refused) = tokio::join!(post(&engine, "/generate", &body), second);
    assert_eq!((refused.status.as_u16(), refused.broken), (200, true), "{refused:?}");
}

#[tokio::test]
async fn a_full_queue_answers_503() {
    let narrow = Config {
        max_running_requests: 1,
        max_queued_requests: Some(1),
        inter_token: Duration::from_millis(5),
        ..config(Role::Unified, Version::V0_5)
    };
    let engine = start(narrow).await;
    let body = generate("busy", 40);
    let third = async {
        assert!(engine.until(DEADLINE, |e| e.occupancy().queued == 1).await);
        let refused = post(&engine, "/generate", &body).await;
        let streamed = post(&engine, "/v1/chat/completions", &streaming(chat("a", 2))).await;
        (refused, streamed)
    };
    let (first, second, (refused, streamed)) =
        tokio::join!(post(&engine, "/generate", &body), post(&engine, "/generate", &body), third);
    text_of(&first);
    text_of(&second);
    assert_eq!(refused.status, 503);
    assert_eq!(refused.json()["message"], "The request queue is full.");
    assert_eq!(streamed.status, 200);
    assert_eq!(streamed.events()[0]["error"]["type"], "SERVICE_UNAVAILABLE");
}

#[tokio::test]
async fn a_decode_without_free_kv_queues_the_next_request() {
    let small = Config {
        max_total_tokens: 40,
        inter_token: Duration::from_millis(5),
        ..config(Role::Decode, Version::V0_5)
    };
    let pair = Pair {
        prefill: start(config(Role::Prefill, Version::V0_5)).await,
        decode: start(small).await,
    };
    let (one, two) = (pair.meet(generate("first", 30), 1), pair.meet(generate("second", 30), 2));
    let ((p1, d1), (p2, d2)) =
        tokio::join!(pair.both("/generate", &one), pair.both("/generate", &two));
    for answer in [p1, d1, p2, d2] {
        text_of(&answer);
    }
    assert_eq!(pair.decode.occupancy().running_peak, 1);
    let too_big = pair.meet(generate(&"word ".repeat(50), 3), 3);
    let decode = post(&pair.decode, "/generate", &too_big).await;
    assert_eq!(decode.status, 400);
    assert!(decode.text().contains("exceeds the maximum number of tokens"), "{decode:?}");
}

#[tokio::test]
async fn different_page_sizes_crash_a_0_5_decode() {
    let pair = Pair {
        prefill: start(Config { page_size: 64, ..config(Role::Prefill, Version::V0_5) }).await,
        decode: start(config(Role::Decode, Version::V0_5)).await,
    };
    let body = pair.meet(generate("a", 3), 1);
    assert!(send(pair.decode.address(), "/generate", &body).await.is_err());
    assert!(!pair.decode.is_alive());
}

#[tokio::test]
async fn a_frozen_engine_keeps_its_ports_open_and_answers_when_thawed() {
    let engine = start(config(Role::Unified, Version::V0_5)).await;
    engine.freeze();
    let connected = tokio::net::TcpStream::connect(engine.address()).await;
    assert!(connected.is_ok(), "the kernel accepts");
    let body = generate("cold", 3);
    let mut asking = Box::pin(post(&engine, "/generate", &body));
    let early = tokio::time::timeout(Duration::from_millis(100), &mut asking).await;
    assert!(early.is_err(), "{early:?}");
    engine.thaw();
    text_of(&asking.await);
}

#[tokio::test]
async fn a_starting_engine_answers_503() {
    let delay = Duration::from_millis(300);
    let slow = Config {
        start_delay: delay,
        timing: Timing { health_pause: Duration::from_millis(10), ..short_timeouts() },
        ..config(Role::Prefill, Version::V0_5)
    };
    let (prefill, started) = (start(slow).await, Instant::now());
    let bootstrap = prefill.bootstrap_address().unwrap();
    let path = "/route?prefill_dp_rank=-1&prefill_cp_rank=-1&target_tp_rank=-1&target_pp_rank=-1";
    assert_eq!(get(&prefill, "/health").await.status, 503);
    assert_eq!(get(&prefill, "/ready").await.status, 503);
    assert_eq!(get_at(bootstrap, path).await.status, 503);
    tokio::time::sleep_until((started + delay).into()).await;
    assert_eq!(get(&prefill, "/ready").await.status, 200);
    assert_eq!(get(&prefill, "/health").await.status, 200);
    assert_eq!(get_at(bootstrap, path).await.status, 200);
}
