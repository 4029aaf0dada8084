//! The rendezvous of two legs: rooms, KV bytes, batches, and how the answer depends on all of them.

mod pair;

use pair::*;
use serde_json::json;
use sglang_sim::{Config, Role, Version};

#[tokio::test]
async fn a_pair_answers_what_an_ordinary_server_answers() {
    for version in [Version::V0_4_10, Version::V0_5] {
        let pair = pair(version).await;
        let unified = start(config(Role::Unified, version)).await;
        let mut answers = std::collections::HashSet::new();
        for round in 0..10 {
            let body = generate(&format!("the quick brown fox word number {round}"), 12);
            let alone = text_of(&post(&unified, "/generate", &body).await);
            let (prefill, decode) = pair.both("/generate", &pair.meet(body, 1000 + round)).await;
            assert_eq!(text_of(&decode), alone);
            let first = text_of(&prefill);
            assert!(alone.starts_with(&first) && !first.is_empty(), "{first:?} in {alone:?}");
            assert_eq!(prefill.json()["meta_info"]["completion_tokens"], 1);
            let finish = &prefill.json()["meta_info"]["finish_reason"];
            assert_eq!(*finish, json!({"type": "length", "length": 0}));
            answers.insert(alone);
        }
        assert_eq!(answers.len(), 10);
    }
}

#[tokio::test]
async fn kv_is_transferred_over_pooled_connections() {
    let pair = pair(Version::V0_5).await;
    let mut tokens = 0;
    for room in 0..5 {
        let body = pair.meet(generate(&"some words ".repeat(200 + room), 4), room as u64);
        let (prefill, _) = pair.both("/generate", &body).await;
        tokens += prefill.json()["meta_info"]["prompt_tokens"].as_u64().unwrap();
    }
    let (sent, received) = (pair.prefill.kv_total(), pair.decode.kv_total());
    assert_eq!(sent.sent_bytes, tokens * 1024);
    assert_eq!(received.received_bytes, sent.sent_bytes);
    assert_eq!((received.received_transfers, received.corrupt_transfers), (5, 0));
    assert_eq!(received.connections, 1, "one after the other they share a connection");
    assert_eq!(pair.decode.rooms(), [0, 1, 2, 3, 4]);
    let port = pair.decode.data_address().unwrap().port();
    assert!((15_000..=17_000).contains(&port), "{port}");
}

#[tokio::test]
async fn either_leg_may_arrive_first() {
    let pair = pair(Version::V0_5).await;
    for (room, prefill_first) in [(1, true), (2, false)] {
        let body = pair.meet(generate("late", 3), room);
        let (first, second) = if prefill_first {
            (&pair.prefill, &pair.decode)
        } else {
            (&pair.decode, &pair.prefill)
        };
        let waiting = post(first, "/generate", &body);
        let late = async {
            assert!(first.until(DEADLINE, |e| e.occupancy().legs == 1).await);
            post(second, "/generate", &body).await
        };
        let (one, other) = tokio::join!(waiting, late);
        text_of(&one);
        text_of(&other);
    }
}

#[tokio::test]
async fn a_room_is_a_number_or_its_string_and_may_be_reused() {
    let pair = pair(Version::V0_5).await;
    for room in [json!("1301"), json!(1301), json!((1u64 << 63) - 1), json!(0)] {
        let mut body = pair.meet(generate("room", 3), 0);
        body["bootstrap_room"] = room;
        let (prefill, decode) = pair.both("/generate", &body).await;
        text_of(&prefill);
        text_of(&decode);
    }
}

#[tokio::test]
async fn a_missing_bootstrap_port_is_the_engines_own() {
    let prefill = start(config(Role::Prefill, Version::V0_5)).await;
    let bootstrap_port = prefill.bootstrap_address().unwrap().port();
    let decode = Config { bootstrap_port, ..config(Role::Decode, Version::V0_5) };
    let pair = Pair { prefill, decode: start(decode).await };
    let mut body = pair.meet(generate("port", 3), 5);
    body["bootstrap_port"] = json!(null);
    let (prefill, decode) = pair.both("/generate", &body).await;
    text_of(&prefill);
    text_of(&decode);
}

#[tokio::test]
async fn a_batch_takes_lists_or_numbers_its_rooms_upwards() {
    let pair = pair(Version::V0_5).await;
    let texts = json!({"text": ["one", "two words", "three more words"],
        "sampling_params": {"max_new_tokens": 3}});
    let mut lists = pair.meet(texts.clone(), 0);
    let (host, port) = (lists["bootstrap_host"].clone(), lists["bootstrap_port"].clone());
    lists["bootstrap_host"] = json!([host, host, host]);
    lists["bootstrap_port"] = json!([port, port, port]);
    lists["bootstrap_room"] = json!([70, 9, 31]);
    let (_, listed) = pair.both("/generate", &lists).await;
    let (_, counted) = pair.both("/generate", &pair.meet(texts, 40)).await;
    for answer in [listed.json(), counted.json()] {
        assert_eq!(answer.as_array().unwrap().len(), 3);
        assert_eq!(answer[1]["meta_info"]["completion_tokens"], 3);
        assert_ne!(answer[1]["text"], answer[2]["text"]);
    }
    let mut rooms = pair.decode.rooms();
    rooms.sort_unstable();
    assert_eq!(rooms, [9, 31, 40, 41, 42, 70]);
}

#[tokio::test]
async fn a_0_4_engine_fails_on_one_room_for_a_batch() {
    let pair = pair(Version::V0_4_10).await;
    let body = pair.meet(json!({"prompt": ["one", "two"], "max_tokens": 3}), 4);
    let answer = post(&pair.decode, "/v1/completions", &body).await;
    assert_eq!(answer.status, 500);
    let message = answer.json()["message"].as_str().unwrap().to_owned();
    assert_eq!(message, "Internal server error: 'int' object is not subscriptable");
}

#[tokio::test]
async fn prompts_of_numbers_are_one_prompt_and_lists_of_them_a_batch() {
    let pair = pair(Version::V0_5).await;
    let one = pair.meet(json!({"prompt": [10, 11, 12], "max_tokens": 2}), 1);
    let (_, one) = pair.both("/v1/completions", &one).await;
    assert_eq!(one.json()["choices"].as_array().unwrap().len(), 1);
    assert_eq!(one.json()["usage"]["prompt_tokens"], 3);
    let two = pair.meet(json!({"prompt": [[10, 11, 12], [13]], "max_tokens": 2}), 10);
    let (_, two) = pair.both("/v1/completions", &two).await;
    assert_eq!(two.json()["choices"][1]["index"], 1);
    assert_eq!(two.json()["usage"]["prompt_tokens"], 4);
    assert_eq!(two.json()["usage"]["completion_tokens"], 4);
}

#[tokio::test]
async fn a_live_duplicate_room_gives_one_the_others_answer_and_hangs_the_other() {
    let slow = Config { prefill_tokens_per_second: 100, ..config(Role::Prefill, Version::V0_5) };
    let pair = Pair {
        prefill: start(slow).await,
        decode: start(config(Role::Decode, Version::V0_5)).await,
    };
    let unified = start(config(Role::Unified, Version::V0_5)).await;
    let (a, b) = (generate("first prompt of two with this room", 6), generate("second", 6));
    let right = [
        text_of(&post(&unified, "/generate", &a).await),
        text_of(&post(&unified, "/generate", &b).await),
    ];
    let (a, b) = (pair.meet(a, 7), pair.meet(b, 7));
    let second = async {
        assert!(pair.prefill.until(DEADLINE, |e| e.occupancy().running == 1).await);
        pair.both("/generate", &b).await
    };
    let ((_, first), (_, second)) = tokio::join!(pair.both("/generate", &a), second);
    let answered = text_of(&second);
    assert_eq!(answered, right[0], "the second got the first one's answer");
    assert_ne!(right[0], right[1]);
    assert_eq!(first.status, 500);
    assert!(first.text().contains("KVPoll.WaitingForInput"), "{first:?}");
}

#[tokio::test]
async fn the_fake_host_needs_no_peer() {
    let pair = pair(Version::V0_5).await;
    let mut body = generate("probe", 2);
    body["bootstrap_host"] = json!("2.2.2.2");
    body["bootstrap_room"] = json!(0);
    assert_eq!(text_of(&post(&pair.prefill, "/generate", &body).await).split(' ').count(), 2);
    text_of(&post(&pair.decode, "/generate", &body).await);
    assert_eq!(pair.prefill.kv_total().sent_bytes, 0);
}
