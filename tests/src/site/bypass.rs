//! Requests that bypass the gateways: both legs, each straight to its engine, as another router
//! sends them.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use serde_json::json;

use crate::manifests::{BOOTSTRAP_PORT, ENGINE_PORT};
use crate::site::crowd::prompt;
use crate::site::{ask, enter, post};

/// The request that is sent again and again.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    pub prompt_bytes: usize,
    pub tokens: u32,
}

/// Sends requests to a pair from the namespace `outside`, one after the other, until `stop` is set.
pub fn around(
    pair: [IpAddr; 2],
    question: Question,
    outside: String,
    stop: Arc<AtomicBool>,
) -> JoinHandle<()> {
    std::thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            let body = json!({
                "text": prompt(question.prompt_bytes),
                "stream": true,
                "sampling_params": {"max_new_tokens": question.tokens, "ignore_eos": true},
                "bootstrap_host": pair[0].to_string(),
                "bootstrap_port": BOOTSTRAP_PORT,
                "bootstrap_room": room(),
            });
            let request = post("/generate", &body.to_string());
            let legs = pair.map(|engine| {
                let (request, outside) = (request.clone(), outside.clone());
                std::thread::spawn(move || {
                    enter(&outside);
                    ask(SocketAddr::new(engine, ENGINE_PORT), &request).map(|(head, _)| head)
                })
            });
            for leg in legs {
                let head = leg.join().expect("a leg").expect("an engine's answer");
                assert!(head.starts_with("HTTP/1.1 200"), "{head}");
            }
        }
    })
}

/// A bootstrap room, different for every call: the hash of a constant by random keys.
fn room() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0) >> 1
}
