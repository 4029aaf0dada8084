//! n > 1, on which engines hang: the gateway sends n requests and merges their answers.

use std::collections::BTreeSet;
use std::time::Duration;

use router_tests::received::rooms;
use router_tests::{Fleet, client::End};
use serde_json::{Value, json};
use sglang_sim::{Action, Script};

use crate::{CHAT, chat, streamed};

const N: u64 = 4;

fn with_n(mut body: Value) -> Value {
    body["n"] = N.into();
    body
}

async fn assert_fanned_out(fleet: &Fleet) {
    for engine in fleet.engines() {
        let legs = engine.legs_arrived(4).await;
        assert_eq!(legs.len(), 4);
        assert!(legs.iter().all(|leg| leg.json()["n"] != N), "an engine was asked for n");
        let distinct: BTreeSet<u64> = rooms(&legs).into_iter().collect();
        assert_eq!(distinct.len(), 4, "samples share a room");
        let names: BTreeSet<String> = legs.iter().flat_map(|leg| leg.rids.clone()).collect();
        assert_eq!(names.len(), 4, "samples share a name");
    }
}

#[tokio::test]
async fn four_samples_are_one_answer() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway().await;
    let alone = gateway.client.post(CHAT, &chat("hi")).await.expect_status(200).json();
    for engine in fleet.engines() {
        assert_eq!(engine.legs().len(), 1);
    }
    let answer = gateway.client.post(CHAT, &with_n(chat("hi"))).await.expect_status(200).json();
    let choices = answer["choices"].as_array().expect("choices");
    let indices: Vec<u64> = choices.iter().filter_map(|c| c["index"].as_u64()).collect();
    assert_eq!(indices, [0, 1, 2, 3]);
    let usage = |answer: &Value, field: &str| answer["usage"][field].as_u64().expect("usage");
    assert_eq!(usage(&answer, "prompt_tokens"), usage(&alone, "prompt_tokens"));
    assert_eq!(usage(&answer, "completion_tokens"), N * usage(&alone, "completion_tokens"));
    assert_eq!(
        usage(&answer, "total_tokens"),
        usage(&answer, "prompt_tokens") + usage(&answer, "completion_tokens")
    );
}

#[tokio::test]
async fn four_samples_have_rooms_and_names_of_their_own_on_one_pair() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway().await;
    gateway.client.post(CHAT, &with_n(chat("hi"))).await.expect_status(200);
    assert_fanned_out(&fleet).await;
}

#[tokio::test]
async fn four_streamed_samples_are_one_stream() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway().await;
    let mut body = with_n(streamed("hi"));
    body["stream_options"] = json!({"include_usage": true});
    let stream = gateway.client.open(CHAT, &body).await;
    assert_eq!(stream.status, 200);
    let (events, end) = stream.events().await;
    assert_eq!(end, End::Clean);
    assert_eq!(events.iter().filter(|event| event.is_done()).count(), 1);
    assert!(events.last().is_some_and(|event| event.is_done()));
    let chunks: Vec<Value> =
        events.iter().filter(|event| !event.is_done()).map(|event| event.json()).collect();
    let ids: BTreeSet<&str> = chunks.iter().filter_map(|chunk| chunk["id"].as_str()).collect();
    assert_eq!(ids.len(), 1, "{ids:?}");
    for index in 0..N {
        let of_index = |chunk: &&Value| chunk["choices"][0]["index"] == index;
        let finished = |chunk: &&Value| chunk["choices"][0]["finish_reason"].is_string();
        assert_eq!(chunks.iter().filter(of_index).filter(finished).count(), 1, "choice {index}");
    }
    let usage: Vec<&Value> = chunks.iter().filter(|chunk| chunk["usage"].is_object()).collect();
    assert_eq!(usage.len(), 1, "usage comes once");
    assert_eq!(usage[0]["usage"]["completion_tokens"], N * 8);
    assert_fanned_out(&fleet).await;
}

#[tokio::test]
async fn samples_of_generate_come_in_its_own_shape() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway().await;
    let parameters = json!({"max_new_tokens": 4, "n": 2});
    let one = json!({"text": "hi", "sampling_params": parameters});
    let answer = gateway.client.post("/generate", &one).await.expect_status(200).json();
    assert_eq!(answer.as_array().map(Vec::len), Some(2), "{answer}");
    let two = json!({"text": ["hi", "ho"], "sampling_params": parameters});
    let answer = gateway.client.post("/generate", &two).await.expect_status(200).json();
    assert_eq!(answer.as_array().map(Vec::len), Some(4), "{answer}");
}

#[tokio::test]
async fn one_failed_sample_fails_all_and_ends_the_others() {
    let fleet = Fleet::start_with(1, 1, |config| {
        let inter_token = Duration::from_millis(50);
        sglang_sim::Config { inter_token, ..config }
    })
    .await;
    let gateway = fleet.gateway_with(&["--max-attempts", "1"]).await;
    let refusal = Action::Status { status: 500, body: r#"{"message":"broken"}"#.into() };
    fleet.decode[0].script(Script::once(refusal).nth(3));
    let mut body = with_n(chat("hi"));
    body["max_tokens"] = 2000.into();
    let answer = gateway.client.post(CHAT, &body).await.expect_status(500);
    assert!(answer.error_message().contains("decode"), "{}", answer.text());
    assert!(answer.took < router_tests::fleet::SOON, "{:?}", answer.took);
    fleet.idle().await;
}

#[tokio::test]
async fn a_best_of_that_differs_from_n_is_refused() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway().await;
    let body = json!({"model": "/models/Qwen3-32B", "prompt": "hi", "best_of": 3, "max_tokens": 4});
    let answer = gateway.client.post("/v1/completions", &body).await.expect_status(400);
    assert!(answer.error_message().contains("best_of"), "{}", answer.text());
    assert!(fleet.decode[0].legs().is_empty());
}
