//! The shapes of SGLang's answers, streamed and not.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod pair;

use pair::*;
use serde_json::{Value, json};
use sglang_sim::{Config, Engine, Role, Version};

async fn unified(version: Version) -> Engine {
    start(config(Role::Unified, version)).await
}

fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

#[tokio::test]
async fn the_documents_request_gets_the_documents_shape() {
    let engine = unified(Version::V0_4_10).await;
    let body = chat("Hello, this is a test", 50);
    let answer = post(&engine, "/v1/chat/completions", &body).await.json();
    assert_eq!(keys(&answer), ["choices", "created", "id", "model", "object", "usage"]);
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["model"], "/models/Qwen3-32B");
    let choice = &answer["choices"][0];
    let wanted = ["finish_reason", "index", "logprobs", "matched_stop", "message"];
    assert_eq!(keys(choice), wanted);
    let message = ["content", "reasoning_content", "role", "tool_calls"];
    assert_eq!(keys(&choice["message"]), message);
    assert_eq!(choice["finish_reason"], "length");
    assert_eq!(choice["matched_stop"], Value::Null);
    let usage = &answer["usage"];
    let counts = ["completion_tokens", "prompt_tokens", "prompt_tokens_details", "total_tokens"];
    assert_eq!(keys(usage), counts);
    assert_eq!(usage["completion_tokens"], 50);
    let sum = usage["prompt_tokens"].as_u64().unwrap() + 50;
    assert_eq!(usage["total_tokens"], sum);
    assert_eq!(answer["id"].as_str().unwrap().len(), 32);
}

#[tokio::test]
async fn a_0_5_engine_adds_metadata_and_reasoning_tokens() {
    let engine = unified(Version::V0_5).await;
    let answer = post(&engine, "/v1/chat/completions", &chat("a", 3)).await.json();
    assert_eq!(answer["metadata"], json!({"weight_version": "default"}));
    assert_eq!(answer["usage"]["reasoning_tokens"], 0);
}

#[tokio::test]
async fn a_chat_stream_is_role_content_finish_usage_done() {
    for version in [Version::V0_4_10, Version::V0_5] {
        let engine = unified(version).await;
        let whole = post(&engine, "/v1/chat/completions", &chat("a stream", 8)).await.json();
        let mut body = streaming(chat("a stream", 8));
        body["stream_options"] = json!({"include_usage": true});
        let stream = post(&engine, "/v1/chat/completions", &body).await;
        assert_eq!(stream.headers["content-type"], "text/event-stream; charset=utf-8");
        assert!(stream.is_done());
        let events = stream.events();
        assert_eq!(events.len(), 1 + 8 + 1 + 1);
        assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
        assert_eq!(events[0]["choices"][0]["delta"]["content"], "");
        let content: String = events
            .iter()
            .filter_map(|event| event["choices"][0]["delta"]["content"].as_str())
            .collect();
        assert_eq!(whole["choices"][0]["message"]["content"], content);
        assert_eq!(events[9]["choices"][0]["finish_reason"], "length");
        assert_eq!(events[10]["choices"], json!([]));
        assert_eq!(events[10]["usage"], whole["usage"]);
        assert!(events.iter().all(|e| e["object"] == "chat.completion.chunk"));
        let id = &events[0]["id"];
        assert!(events.iter().all(|event| event["id"] == *id));
    }
}

#[tokio::test]
async fn continuous_usage_is_in_every_content_chunk() {
    let engine = unified(Version::V0_5).await;
    let mut body = streaming(chat("a stream", 4));
    body["stream_options"] = json!({"include_usage": true, "continuous_usage_stats": true});
    let events = post(&engine, "/v1/chat/completions", &body).await.events();
    let counts: Vec<u64> =
        events.iter().filter_map(|event| event["usage"]["completion_tokens"].as_u64()).collect();
    assert_eq!(counts, [1, 2, 3, 4, 4]);
}

#[tokio::test]
async fn samples_are_indexed_and_the_prompt_counts_once() {
    let engine = unified(Version::V0_5).await;
    let mut body = chat("pick", 6);
    let single = post(&engine, "/v1/chat/completions", &body).await.json();
    body["n"] = json!(3);
    let answer = post(&engine, "/v1/chat/completions", &body).await.json();
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.iter().map(|c| c["index"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 2]);
    assert_ne!(choices[0]["message"]["content"], choices[1]["message"]["content"]);
    assert_eq!(answer["usage"]["prompt_tokens"], single["usage"]["prompt_tokens"]);
    assert_eq!(answer["usage"]["completion_tokens"], 18);
    let events = post(&engine, "/v1/chat/completions", &streaming(body)).await.events();
    for (index, choice) in choices.iter().enumerate() {
        let text: String = events
            .iter()
            .filter(|event| event["choices"][0]["index"] == index)
            .filter_map(|event| event["choices"][0]["delta"]["content"].as_str())
            .collect();
        assert_eq!(choice["message"]["content"], text);
    }
}

#[tokio::test]
async fn generate_streams_the_text_so_far_with_an_index_in_batches() {
    let engine = unified(Version::V0_5).await;
    let body = json!({"text": ["one", "two"], "stream": true, "rid": ["r0", "r1"],
        "sampling_params": {"max_new_tokens": 5}});
    let stream = post(&engine, "/generate", &body).await;
    let events = stream.events();
    assert_eq!(events.len(), 10);
    for index in 0..2 {
        let own: Vec<&Value> = events.iter().filter(|e| e["index"] == index).collect();
        assert!(own.windows(2).all(|two| {
            two[1]["text"].as_str().unwrap().starts_with(two[0]["text"].as_str().unwrap())
        }));
        let last = own[4];
        assert_eq!(last["meta_info"]["id"], format!("r{index}"));
        assert_eq!(last["meta_info"]["completion_tokens"], 5);
        assert_eq!(last["meta_info"]["finish_reason"], json!({"type": "length", "length": 5}));
        assert_eq!(last["output_ids"].as_array().unwrap().len(), 5);
        assert_eq!(own[0]["meta_info"]["finish_reason"], Value::Null);
    }
    let single = post(&engine, "/generate", &streaming(generate("one", 2))).await.events();
    assert!(single[0].get("index").is_none());
}

#[tokio::test]
async fn prefill_returns_the_logprobs_of_the_prompt_and_decode_those_of_the_answer() {
    let pair = pair(Version::V0_5).await;
    let mut body = generate("what is the probability of this", 4);
    body["return_logprob"] = json!(true);
    body["logprob_start_len"] = json!(0);
    body["top_logprobs_num"] = json!(2);
    body["token_ids_logprob"] = json!([7, 9]);
    let unified = unified(Version::V0_5).await;
    let alone = post(&unified, "/generate", &body).await.json()["meta_info"].clone();
    let (prefill, decode) = pair.both("/generate", &pair.meet(body, 1)).await;
    let (prefill, decode) = (prefill.json(), decode.json());
    let (prefill, decode) = (&prefill["meta_info"], &decode["meta_info"]);
    let length = |meta: &Value, name: &str| meta[name].as_array().unwrap().len() as u64;
    for name in ["input_token_logprobs", "input_top_logprobs", "input_token_ids_logprobs"] {
        assert_eq!(prefill[name], alone[name], "{name}");
        assert_eq!(length(prefill, name), prefill["prompt_tokens"].as_u64().unwrap());
        assert_eq!(decode[name], json!([]), "{name}");
    }
    for name in ["output_token_logprobs", "output_top_logprobs", "output_token_ids_logprobs"] {
        assert_eq!(decode[name], alone[name], "{name}");
        assert_eq!(length(decode, name), 4);
        assert_eq!(prefill[name][0], alone[name][0]);
    }
    assert_eq!(prefill["input_token_logprobs"][0][0], Value::Null);
    assert_eq!(decode["output_token_logprobs"][0].as_array().unwrap().len(), 3);
    assert_eq!(decode["output_top_logprobs"][0].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn without_a_start_the_prompt_has_no_logprobs() {
    let mut body = generate("a b c", 4);
    body["return_logprob"] = json!(true);
    for (version, entries) in [(Version::V0_5, 0), (Version::V0_4_10, 1)] {
        let engine = unified(version).await;
        let meta = post(&engine, "/generate", &body).await.json()["meta_info"].take();
        assert_eq!(meta["input_token_logprobs"].as_array().unwrap().len(), entries, "{version:?}");
    }
}

#[tokio::test]
async fn invalid_sampling_parameters_get_the_engines_message() {
    let engine = unified(Version::V0_5).await;
    let mut body = generate("a", 4);
    body["sampling_params"]["top_p"] = json!(7);
    let answer = post(&engine, "/generate", &body).await;
    assert_eq!(answer.status, 400);
    assert_eq!(answer.json()["error"]["message"], "top_p must be in (0, 1], got 7.");
    let mut body = chat("a", 4);
    body["temperature"] = json!(-1);
    assert_eq!(post(&engine, "/v1/chat/completions", &body).await.status, 400);
}

#[tokio::test]
async fn openai_logprobs_cover_the_answer() {
    let engine = unified(Version::V0_5).await;
    let mut body = chat("a", 3);
    body["logprobs"] = json!(true);
    body["top_logprobs"] = json!(2);
    let answer = post(&engine, "/v1/chat/completions", &body).await.json();
    let content = answer["choices"][0]["logprobs"]["content"].clone();
    assert_eq!(content.as_array().unwrap().len(), 3);
    assert_eq!(keys(&content[0]), ["bytes", "logprob", "token", "top_logprobs"]);
    assert_eq!(content[0]["top_logprobs"].as_array().unwrap().len(), 2);
    let streamed = post(&engine, "/v1/chat/completions", &streaming(body)).await.events();
    let parts: Vec<Value> = streamed
        .iter()
        .filter_map(|e| e["choices"][0]["logprobs"]["content"].as_array().cloned())
        .flatten()
        .collect();
    assert_eq!(Value::Array(parts), content);
    let body = json!({"prompt": "a", "max_tokens": 3, "logprobs": 2});
    let answer = post(&engine, "/v1/completions", &body).await.json();
    let logprobs = &answer["choices"][0]["logprobs"];
    assert_eq!(keys(logprobs), ["text_offset", "token_logprobs", "tokens", "top_logprobs"]);
    assert_eq!(logprobs["tokens"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn a_stop_string_ends_the_answer_before_it() {
    let engine = unified(Version::V0_5).await;
    let whole = text_of(&post(&engine, "/generate", &generate("stop me", 20)).await);
    let word = whole.split(' ').nth(6).unwrap();
    let mut body = generate("stop me", 20);
    body["sampling_params"]["stop"] = json!([format!(" {word}")]);
    let answer = post(&engine, "/generate", &body).await.json();
    let finish = &answer["meta_info"]["finish_reason"];
    assert_eq!(*finish, json!({"type": "stop", "matched": format!(" {word}")}));
    let text = answer["text"].as_str().unwrap();
    assert!(whole.starts_with(text) && !text.contains(&format!(" {word}")), "{text}");
}

#[tokio::test]
async fn an_answer_ends_by_itself_unless_eos_is_ignored() {
    let short = Config { natural_length: 4, ..config(Role::Unified, Version::V0_5) };
    let engine = start(short).await;
    let mut body = generate("end", 50);
    let answer = post(&engine, "/generate", &body).await.json();
    let finish = json!({"type": "stop", "matched": 151_645});
    assert_eq!(answer["meta_info"]["finish_reason"], finish);
    assert!(answer["meta_info"]["completion_tokens"].as_u64().unwrap() < 12);
    body["sampling_params"]["ignore_eos"] = json!(true);
    let answer = post(&engine, "/generate", &body).await.json();
    assert_eq!(answer["meta_info"]["completion_tokens"], 50);
}

#[tokio::test]
async fn characters_are_never_cut_in_a_stream() {
    let pair = pair(Version::V0_5).await;
    let mut held_back = false;
    for room in 0..6 {
        let body = pair.meet(streaming(generate(&format!("你好，请写第{room}首诗"), 40)), room);
        let (_, stream) = pair.both("/generate", &body).await;
        let events = stream.events();
        assert_eq!(events.len(), 40);
        let mut before = String::new();
        for event in events {
            let text = event["text"].as_str().unwrap();
            assert!(!text.contains('\u{FFFD}'), "{text}");
            held_back |= !before.is_empty() && text == before;
            before = text.into();
        }
        let body = pair.meet(streaming(chat("用中文回答", 40)), 100 + room);
        let (_, stream) = pair.both("/v1/chat/completions", &body).await;
        assert!(!stream.text().contains('\u{FFFD}'));
    }
    assert!(held_back, "some token was half a character");
}

#[tokio::test]
async fn responses_are_continued_by_the_engine_that_gave_them() {
    let engine = unified(Version::V0_5).await;
    let body = json!({"model": "m", "input": "tell me", "max_output_tokens": 5});
    let answer = post(&engine, "/v1/responses", &body).await.json();
    assert_eq!((&answer["object"], &answer["status"]), (&json!("response"), &json!("completed")));
    let content = &answer["output"][0]["content"][0];
    assert_eq!(content["type"], "output_text");
    let mut next = body.clone();
    next["previous_response_id"] = answer["id"].clone();
    let more = post(&engine, "/v1/responses", &next).await;
    assert_eq!(more.status, 200);
    assert_ne!(more.json()["output"][0]["content"][0]["text"], content["text"]);
    next["previous_response_id"] = json!("resp_unknown");
    assert_eq!(post(&engine, "/v1/responses", &next).await.status, 404);

    let stream = post(&engine, "/v1/responses", &streaming(body)).await;
    let events = stream.events();
    let kinds: Vec<&str> = events.iter().map(|e| e["type"].as_str().unwrap()).collect();
    assert_eq!(kinds[0], "response.created");
    assert_eq!(kinds.iter().filter(|k| **k == "response.output_text.delta").count(), 5);
    assert_eq!(*kinds.last().unwrap(), "response.completed");
    let numbers: Vec<u64> = events.iter().map(|e| e["sequence_number"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (0..numbers.len() as u64).collect::<Vec<_>>());
    let text = &events.last().unwrap()["response"]["output"][0]["content"][0]["text"];
    assert_eq!(*text, content["text"]);
}

#[tokio::test]
async fn messages_come_in_anthropics_shape_over_a_pair() {
    let pair = pair(Version::V0_5).await;
    let body = json!({"model": "m", "max_tokens": 5,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]});
    let (_, answer) = pair.both("/v1/messages", &pair.meet(body.clone(), 1)).await;
    let answer = answer.json();
    assert_eq!(
        (&answer["type"], &answer["stop_reason"]),
        (&json!("message"), &json!("max_tokens"))
    );
    let (_, stream) = pair.both("/v1/messages", &streaming(pair.meet(body, 2))).await;
    let events = stream.events();
    let text: String = events.iter().filter_map(|e| e["delta"]["text"].as_str()).collect();
    assert_eq!(answer["content"][0]["text"], text);
    assert!(stream.text().starts_with("event: message_start\n"));
    assert_eq!(events.last().unwrap()["type"], "message_stop");
    let alone = json!({"model": "m", "max_tokens": 5, "messages": []});
    assert_eq!(post(&pair.decode, "/v1/messages", &alone).await.status, 500);
}

#[tokio::test]
async fn invalid_requests_get_the_engines_status() {
    let engine = unified(Version::V0_5).await;
    let cases = [
        ("/v1/chat/completions", json!({"model": "m"}), 400),
        ("/v1/chat/completions", json!({"model": "m", "messages": []}), 400),
        ("/v1/completions", json!({"prompt": ""}), 400),
        ("/generate", json!({"sampling_params": {}}), 400),
        ("/generate", json!({"text": ["a", "b"], "rid": ["x"]}), 400),
        ("/generate", json!({"text": "a", "sampling_params": {"n": 1_000_000_000}}), 400),
        ("/generate", json!({"text": "a", "bootstrap_room": -1}), 400),
        ("/nowhere", json!({}), 404),
    ];
    for (path, body, status) in cases {
        let answer = post(&engine, path, &body).await;
        assert_eq!(answer.status.as_u16(), status, "{path} {body}: {answer:?}");
    }
    assert_eq!(post(&engine, "/nowhere", &json!({})).await.json(), json!({"detail": "Not Found"}));
    let text = ("content-type", "text/plain");
    let answer = post_with(&engine, "/v1/chat/completions", &chat("a", 1), text).await;
    assert_eq!(answer.status, 400, "{answer:?}");
}

#[tokio::test]
async fn an_ordinary_server_answers_embeddings() {
    let engine = unified(Version::V0_5).await;
    let body = json!({"model": "m", "input": ["one", "two"]});
    let answer = post(&engine, "/v1/embeddings", &body).await.json();
    assert_eq!(answer["object"], "list");
    assert_eq!(answer["data"][1]["index"], 1);
    assert_ne!(answer["data"][0]["embedding"], answer["data"][1]["embedding"]);
    assert_eq!(answer["usage"]["completion_tokens"], 0);
}
