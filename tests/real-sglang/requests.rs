//! The table of requests that every router and the reference server answer, with greedy sampling.

use serde_json::{Value, json};

/// One request of the table.
#[derive(Clone, Debug)]
pub(crate) struct RequestCase {
    pub(crate) name: String,
    pub(crate) path: &'static str,
    pub(crate) body: Value,
}

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const GENERATE: &str = "/generate";

/// The served model name of every server.
pub(crate) const MODEL: &str = "small-llama";

/// The whole table: simple prompts, then complex requests, not streamed and streamed.
pub(crate) fn table() -> Vec<RequestCase> {
    let mut cases = plain();
    for case in harder() {
        let mut streamed = case.clone();
        streamed.name += ", streamed";
        streamed.body["stream"] = true.into();
        cases.extend([case, streamed]);
    }
    cases.extend(refused());
    cases.extend(counted());
    cases
}

/// Thirty prompts that share many tokens but no answer.
fn plain() -> Vec<RequestCase> {
    let three = |number: u32| {
        [
            case("generate", GENERATE, generate(&format!("the quick brown fox {number} sees"), 12)),
            case("chat", CHAT, chat(&format!("a router counts {number} of the"), 12)),
            case(
                "completion",
                COMPLETIONS,
                completion(&format!("one engine forgets {number}"), 12),
            ),
        ]
        .map(|case| RequestCase { name: format!("{} {number}", case.name), ..case })
    };
    (0..10).flat_map(three).collect()
}

/// Without `/v1/responses` and `/v1/messages`: this version drops the bootstrap fields of both.
fn harder() -> Vec<RequestCase> {
    let utf8 = "这个网关选择一个令牌,é ñ 🦊";
    let long = long();
    let mut cases = vec![
        case("generate in UTF-8", GENERATE, generate(utf8, 24)),
        case("chat in UTF-8", CHAT, chat(utf8, 24)),
        case("generate, long prompt", GENERATE, generate(&long, 16)),
        case("chat, long prompt", CHAT, chat(&long, 16)),
        case("generate, one token", GENERATE, generate("a router", 1)),
        case("chat, one token", CHAT, chat("a router", 1)),
        case(
            "completion with a stop",
            COMPLETIONS,
            with(completion("a", 40), "stop", json!(["e"])),
        ),
    ];
    cases.extend(several());
    cases.extend(logprobs());
    cases
}

/// Batches, samples, and both.
fn several() -> Vec<RequestCase> {
    let texts = json!(["a router sees", "这个网关", "one engine moves the lazy dog"]);
    let ids = json!([[5, 6, 7, 8], [100, 200, 300]]);
    let params = json!({"temperature": 0, "max_new_tokens": 8});
    let three = json!({"temperature": 0, "max_new_tokens": 8, "n": 3});
    vec![
        case(
            "generate, token ids",
            GENERATE,
            json!({"input_ids": [5, 6, 7], "sampling_params": params}),
        ),
        case("generate, batch", GENERATE, json!({"text": texts, "sampling_params": params})),
        case(
            "generate, batch of ids",
            GENERATE,
            json!({"input_ids": ids, "sampling_params": params}),
        ),
        case("completion, batch", COMPLETIONS, with(completion("", 8), "prompt", texts.clone())),
        case("completion, batch of ids", COMPLETIONS, with(completion("", 8), "prompt", ids)),
        case("generate, n = 3", GENERATE, json!({"text": "a router", "sampling_params": three})),
        case("generate, batch, n = 3", GENERATE, json!({"text": texts, "sampling_params": three})),
        case("chat, n = 3", CHAT, with(chat("a router", 8), "n", json!(3))),
        case("completion, n = 3", COMPLETIONS, with(completion("a router", 8), "n", json!(3))),
        case(
            "completion, batch, n = 2",
            COMPLETIONS,
            with(with(completion("", 8), "prompt", texts), "n", json!(2)),
        ),
    ]
}

/// No top logprobs: the prefill of this version exits on them. No logprobs of given token ids:
/// prefill does not hand those of the first token over to decode.
fn logprobs() -> Vec<RequestCase> {
    let wanted = |more: Value| {
        let mut body = with(generate("a router sees the quick", 6), "return_logprob", json!(true));
        let more = more.as_object().cloned().unwrap_or_default();
        body.as_object_mut().expect("an object").extend(more);
        body
    };
    // Both texts have several tokens, by the model's tokenizer and by the simulator's.
    let two = json!({"text": ["a router sees", "two of them see more"]});
    vec![
        case("logprobs of the answer", GENERATE, wanted(json!({}))),
        case("logprobs of the prompt", GENERATE, wanted(json!({"logprob_start_len": 0}))),
        case(
            "logprobs with texts",
            GENERATE,
            wanted(json!({"logprob_start_len": 0, "return_text_in_logprobs": true})),
        ),
        case(
            "logprobs of a batch",
            GENERATE,
            wanted(json!({"text": two["text"], "logprob_start_len": 0})),
        ),
        case("chat with logprobs", CHAT, with(chat("a router", 6), "logprobs", json!(true))),
        case(
            "completion with echo",
            COMPLETIONS,
            with(completion("a router", 6), "echo", json!(true)),
        ),
    ]
}

/// Requests that an engine rejects. Its own message must reach the client.
fn refused() -> Vec<RequestCase> {
    let params = json!({"temperature": 0, "max_new_tokens": 4, "top_p": 7});
    vec![
        case("a top_p of 7", GENERATE, json!({"text": "a router", "sampling_params": params})),
        case("messages that are a text", CHAT, with(chat("", 4), "messages", json!("x"))),
        case("chat longer than the context", CHAT, chat(&long().repeat(24), 4)),
    ]
}

/// Streams that report their usage at the end.
fn counted() -> Vec<RequestCase> {
    let counted = |body| {
        with(with(body, "stream", json!(true)), "stream_options", json!({"include_usage": true}))
    };
    vec![
        case("chat that counts", CHAT, counted(chat("a router", 8))),
        case("chat that counts, n = 3", CHAT, counted(with(chat("a router", 8), "n", json!(3)))),
        case(
            "batch that counts",
            COMPLETIONS,
            counted(with(completion("", 8), "prompt", json!(["a router", "two"]))),
        ),
    ]
}

/// Engine control that a client might send. The answers must not change.
pub(crate) fn client_engine_control() -> Value {
    json!({
        "bootstrap_host": "198.51.100.9",
        "bootstrap_port": 1,
        "bootstrap_room": 9_223_372_036_854_775_808_u64,
        "rid": "mine",
        "routed_dp_rank": 3,
        "data_parallel_rank": 3,
        "disagg_prefill_dp_rank": 3,
    })
}

fn case(name: &str, path: &'static str, body: Value) -> RequestCase {
    RequestCase { name: name.into(), path, body }
}

fn with(mut body: Value, key: &str, value: Value) -> Value {
    body[key] = value;
    body
}

pub(crate) fn generate(text: &str, tokens: u32) -> Value {
    json!({"text": text, "sampling_params": {"temperature": 0, "max_new_tokens": tokens}})
}

pub(crate) fn chat(text: &str, tokens: u32) -> Value {
    json!({
        "model": MODEL,
        "messages": [{"role": "user", "content": text}],
        "temperature": 0,
        "max_tokens": tokens,
    })
}

fn completion(prompt: &str, tokens: u32) -> Value {
    json!({"model": MODEL, "prompt": prompt, "temperature": 0, "max_tokens": tokens})
}

/// About 2,500 tokens.
fn long() -> String {
    (0..150).map(|number| format!("word {number} the quick brown fox ")).collect()
}
