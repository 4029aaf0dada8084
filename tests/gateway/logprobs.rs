//! The prompt's logprobs: decode's answer waits for prefill's, and no longer than it may.

use router_tests::Fleet;
use router_tests::fleet::SOON;
use serde_json::{Value, json};
use sglang_sim::{Action, Config};

use crate::{CHAT, chat};

fn scored(stream: bool) -> Value {
    let sampling = json!({"max_new_tokens": 4});
    json!({"text": "a b c", "return_logprob": true, "stream": stream, "sampling_params": sampling})
}

#[tokio::test]
async fn waiting_for_prefill_s_logprobs_ends_at_the_request_s_deadline() {
    // Legs that do not wait for each other, so that decode's answer is there first.
    let apart = |engine: Config| Config { rendezvous: false, ..engine.instant() };
    let fleet = Fleet::start_with(1, 1, apart).await;
    let gateway = fleet.gateway_with(&["--request-timeout", "300ms"]).await;
    for stream in [false, true] {
        fleet.prefill[0].once(Action::HangHead);
        let body = scored(stream);
        let answer = tokio::time::timeout(SOON, gateway.client.post("/generate", &body));
        let answer = answer.await.expect("an answer in time").expect_status(504);
        assert_eq!(answer.header("x-pd-router-reason"), "request_timeout");
    }
    fleet.idle().await;
    gateway.client.post(CHAT, &chat("hi")).await.expect_status(200);
}
