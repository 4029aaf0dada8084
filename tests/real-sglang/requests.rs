//! The table of requests that every router and the reference server answer: all greedy.

use serde_json::{Value, json};

/// One request of the table.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) name: String,
    pub(crate) path: &'static str,
    pub(crate) body: Value,
}

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const GENERATE: &str = "/generate";

/// The name that every server gives its model.
pub(crate) const MODEL: &str = "small-llama";

/// The whole table: plain prompts, then what is harder, whole and streamed.
pub(crate) fn table() -> Vec<Ask> {
    let mut asks = plain();
    for ask in harder() {
        let mut streamed = ask.clone();
        streamed.name += ", streamed";
        streamed.body["stream"] = true.into();
        asks.extend([ask, streamed]);
    }
    asks.extend(refused());
    asks.extend(counted());
    asks
}

/// Thirty prompts that share many pieces and no answer.
fn plain() -> Vec<Ask> {
    let three = |number: u32| {
        [
            ask("generate", GENERATE, generate(&format!("the quick brown fox {number} sees"), 12)),
            ask("chat", CHAT, chat(&format!("a router counts {number} of the"), 12)),
            ask("completion", COMPLETIONS, completion(&format!("one engine forgets {number}"), 12)),
        ]
        .map(|ask| Ask { name: format!("{} {number}", ask.name), ..ask })
    };
    (0..10).flat_map(three).collect()
}

/// Without `/v1/responses` and `/v1/messages`: this version drops the bootstrap fields of both.
fn harder() -> Vec<Ask> {
    let utf8 = "这个网关选择一个令牌,é ñ 🦊";
    let long = long();
    let mut asks = vec![
        ask("generate in UTF-8", GENERATE, generate(utf8, 24)),
        ask("chat in UTF-8", CHAT, chat(utf8, 24)),
        ask("generate, long prompt", GENERATE, generate(&long, 16)),
        ask("chat, long prompt", CHAT, chat(&long, 16)),
        ask("generate, one token", GENERATE, generate("a router", 1)),
        ask("chat, one token", CHAT, chat("a router", 1)),
        ask("completion with a stop", COMPLETIONS, with(completion("a", 40), "stop", json!(["e"]))),
    ];
    asks.extend(several());
    asks.extend(logprobs());
    asks
}

/// Batches, samples, and both.
fn several() -> Vec<Ask> {
    let texts = json!(["a router sees", "这个网关", "one engine moves the lazy dog"]);
    let ids = json!([[5, 6, 7, 8], [100, 200, 300]]);
    let params = json!({"temperature": 0, "max_new_tokens": 8});
    let three = json!({"temperature": 0, "max_new_tokens": 8, "n": 3});
    vec![
        ask(
            "generate, token ids",
            GENERATE,
            json!({"input_ids": [5, 6, 7], "sampling_params": params}),
        ),
        ask("generate, batch", GENERATE, json!({"text": texts, "sampling_params": params})),
        ask(
            "generate, batch of ids",
            GENERATE,
            json!({"input_ids": ids, "sampling_params": params}),
        ),
        ask("completion, batch", COMPLETIONS, with(completion("", 8), "prompt", texts.clone())),
        ask("completion, batch of ids", COMPLETIONS, with(completion("", 8), "prompt", ids)),
        ask("generate, n = 3", GENERATE, json!({"text": "a router", "sampling_params": three})),
        ask("generate, batch, n = 3", GENERATE, json!({"text": texts, "sampling_params": three})),
        ask("chat, n = 3", CHAT, with(chat("a router", 8), "n", json!(3))),
        ask("completion, n = 3", COMPLETIONS, with(completion("a router", 8), "n", json!(3))),
        ask(
            "completion, batch, n = 2",
            COMPLETIONS,
            with(with(completion("", 8), "prompt", texts), "n", json!(2)),
        ),
    ]
}

/// None asks for the best tokens beside the chosen one: this version's prefill dies of that. Nor
/// for given tokens: it does not hand the first token's over to decode.
fn logprobs() -> Vec<Ask> {
    let wanted = |more: Value| {
        let mut body = with(generate("a router sees the quick", 6), "return_logprob", json!(true));
        let more = more.as_object().cloned().unwrap_or_default();
        body.as_object_mut().expect("an object").extend(more);
        body
    };
    // Each of several tokens, by the model's tokenizer as by the simulator's count of bytes.
    let two = json!({"text": ["a router sees", "two of them see more"]});
    vec![
        ask("logprobs of the answer", GENERATE, wanted(json!({}))),
        ask("logprobs of the prompt", GENERATE, wanted(json!({"logprob_start_len": 0}))),
        ask(
            "logprobs with texts",
            GENERATE,
            wanted(json!({"logprob_start_len": 0, "return_text_in_logprobs": true})),
        ),
        ask(
            "logprobs of a batch",
            GENERATE,
            wanted(json!({"text": two["text"], "logprob_start_len": 0})),
        ),
        ask("chat with logprobs", CHAT, with(chat("a router", 6), "logprobs", json!(true))),
        ask(
            "completion with echo",
            COMPLETIONS,
            with(completion("a router", 6), "echo", json!(true)),
        ),
    ]
}

/// What an engine refuses by itself; its own words must arrive.
fn refused() -> Vec<Ask> {
    let params = json!({"temperature": 0, "max_new_tokens": 4, "top_p": 7});
    vec![
        ask("a top_p of 7", GENERATE, json!({"text": "a router", "sampling_params": params})),
        ask("messages that are a text", CHAT, with(chat("", 4), "messages", json!("x"))),
        ask("chat longer than the context", CHAT, chat(&long().repeat(24), 4)),
    ]
}

/// Streams that count their tokens at the end.
fn counted() -> Vec<Ask> {
    let counted = |body| {
        with(with(body, "stream", json!(true)), "stream_options", json!({"include_usage": true}))
    };
    vec![
        ask("chat that counts", CHAT, counted(chat("a router", 8))),
        ask("chat that counts, n = 3", CHAT, counted(with(chat("a router", 8), "n", json!(3)))),
        ask(
            "batch that counts",
            COMPLETIONS,
            counted(with(completion("", 8), "prompt", json!(["a router", "two"]))),
        ),
    ]
}

/// What a client smuggles to steer the engines; the answers must not change by it.
pub(crate) fn smuggled() -> Value {
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

fn ask(name: &str, path: &'static str, body: Value) -> Ask {
    Ask { name: name.into(), path, body }
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
