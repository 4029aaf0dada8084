//! Batches: every prompt has a room of its own, on old and new engines alike.

use router_tests::Fleet;
use router_tests::received::assert_pair;
use serde_json::{Value, json};
use sglang_sim::{Config, Version};

/// Each batch: path, body, number of prompts.
fn batches() -> [(&'static str, Value, usize); 5] {
    let tokens = json!({"max_new_tokens": 4});
    [
        ("/v1/completions", json!({"model": "m", "prompt": ["a", "b", "c"], "max_tokens": 4}), 3),
        ("/v1/completions", json!({"model": "m", "prompt": [[1, 2], [3, 4]], "max_tokens": 4}), 2),
        ("/v1/completions", json!({"model": "m", "prompt": ["only"], "max_tokens": 4}), 1),
        ("/generate", json!({"text": ["a", "b"], "sampling_params": tokens}), 2),
        ("/generate", json!({"input_ids": [[1, 2, 3], [4, 5, 6]], "sampling_params": tokens}), 2),
    ]
}

async fn every_prompt_has_a_room(version: Version) {
    let fleet = Fleet::start_with(1, 1, |config| Config { version, ..config.instant() }).await;
    let gateway = fleet.gateway().await;
    for (index, (path, mut body, prompts)) in batches().into_iter().enumerate() {
        if path != "/generate" {
            body["model"] = "/models/Qwen3-32B".into();
        }
        let answer = gateway.client.post(path, &body).await.expect_status(200);
        let answer = answer.json();
        let answers = answer["choices"].as_array().or(answer.as_array());
        assert_eq!(answers.map(Vec::len), Some(prompts), "{body}: {answer}");
        let prefill = fleet.prefill[0].legs_arrived(index + 1).await.pop().expect("it arrived");
        let decode = fleet.decode[0].legs_arrived(index + 1).await.pop().expect("it arrived");
        assert_pair(&prefill, &decode);
        let sent = decode.json();
        for field in router_tests::received::OURS {
            assert_eq!(sent[field].as_array().map(Vec::len), Some(prompts), "{field}: {sent}");
        }
        let mut rooms = decode.rooms.clone();
        rooms.sort_unstable();
        rooms.dedup();
        assert_eq!(rooms.len(), prompts, "rooms of one batch repeat");
    }
}

#[tokio::test]
async fn every_prompt_of_a_batch_has_a_room_on_a_new_engine() {
    every_prompt_has_a_room(Version::V0_5).await;
}

#[tokio::test]
async fn every_prompt_of_a_batch_has_a_room_on_an_old_engine() {
    every_prompt_has_a_room(Version::V0_4_10).await;
}

#[tokio::test]
async fn a_list_of_token_ids_is_one_prompt() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway().await;
    let body = json!({"model": "/models/Qwen3-32B", "prompt": [1, 2, 3], "max_tokens": 4});
    let answer = gateway.client.post("/v1/completions", &body).await.expect_status(200).json();
    assert_eq!(answer["choices"].as_array().map(Vec::len), Some(1));
    assert!(fleet.decode[0].legs()[0].json()["bootstrap_room"].is_u64());
}

#[tokio::test]
async fn answers_of_a_batch_stay_with_their_prompts() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway().await;
    let ask = async |prompt: Value| {
        let body = json!({"model": "/models/Qwen3-32B", "prompt": prompt, "max_tokens": 8});
        let answer = gateway.client.post("/v1/completions", &body).await.expect_status(200).json();
        let choices = answer["choices"].as_array().expect("choices").clone();
        choices.iter().map(|choice| choice["text"].clone()).collect::<Vec<_>>()
    };
    let prompts = ["one thing", "another thing", "a third thing"];
    let mut alone = Vec::new();
    for prompt in prompts {
        alone.extend(ask(json!(prompt)).await);
    }
    assert_eq!(ask(json!(prompts)).await, alone);
    assert_ne!(alone[0], alone[1]);
}
