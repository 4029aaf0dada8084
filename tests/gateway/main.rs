//! The gateway from outside: a real process on real sockets, against simulated engines.

mod admin;
mod admission;
mod backend_tls;
mod batches;
mod blame;
mod bodies;
mod bootstrap;
mod clients;
mod commands;
mod compressed;
mod connections;
mod cors;
mod documents;
mod drain;
mod endpoints;
mod engines;
mod failures;
mod fits;
mod forwarding;
mod headers;
mod health;
mod http2;
mod keep_alive;
mod limits;
mod logprobs;
mod logs;
mod memory;
mod mirrors;
mod models;
mod poison;
mod policies;
mod proxying;
mod ranks;
mod reliability;
mod reload;
mod responses;
mod retries;
mod routing;
mod samples;
mod sick;
mod side_answers;
mod smuggling;
mod streaming;
mod timeline;
mod tls;
mod top;
mod traces;
mod upgrades;
mod waits;
mod watch;

use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

/// The documents' request.
fn chat(message: &str) -> Value {
    json!({
        "model": "/models/Qwen3-32B",
        "messages": [{"role": "user", "content": message}],
        "max_tokens": 8,
    })
}

/// A chat request with this message, streamed.
fn streamed(message: &str) -> Value {
    let mut body = chat(message);
    body["stream"] = true.into();
    body
}
