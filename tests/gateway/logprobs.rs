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

/// `tokens`, `token_logprobs`, `top_logprobs` and `text_offset` of a choice.
fn lists(choice: &Value) -> [Value; 4] {
    ["tokens", "token_logprobs", "top_logprobs", "text_offset"]
        .map(|name| choice["logprobs"][name].clone())
}

#[tokio::test]
async fn an_echoed_prompt_has_the_logprobs_of_an_ordinary_server() {
    let pair = Fleet::start(1, 1).await;
    let single = Fleet::start_single(1).await;
    let (of_pair, of_single) = (pair.gateway().await, single.gateway().await);
    for prompt in [json!([5, 6, 7]), json!("a b"), json!(["a", "b c"]), json!([[5, 6], [7]])] {
        let mut body = json!({
            "model": "m", "prompt": prompt, "max_tokens": 3, "logprobs": 2, "echo": true,
            "temperature": 0, "seed": 1234, "ignore_eos": true,
        });
        let choices = async |gateway: &router_tests::gateway::Gateway, body: &Value| {
            let answer = gateway.client.post("/v1/completions", body).await.expect_status(200);
            let choices = answer.json()["choices"].take();
            choices.as_array().expect("a list").iter().map(lists).collect::<Vec<_>>()
        };
        let want = choices(&of_single, &body).await;
        assert!(want.iter().all(|[tokens, ..]| tokens.as_array().is_some_and(|t| t.len() >= 4)));
        assert_eq!(choices(&of_pair, &body).await, want, "{prompt}");

        body["stream"] = true.into();
        let streamed = of_pair.client.open("/v1/completions", &body).await;
        let (events, _) = streamed.events().await;
        let mut joined = vec![[const { Vec::new() }; 4]; want.len()];
        for event in events.iter().filter(|event| !event.is_done()) {
            for choice in event.json()["choices"].as_array().into_iter().flatten() {
                let index = choice["index"].as_u64().expect("an index") as usize;
                for (list, more) in joined[index].iter_mut().zip(lists(choice)) {
                    list.extend(more.as_array().cloned().unwrap_or_default());
                }
            }
        }
        let joined: Vec<[Value; 4]> =
            joined.into_iter().map(|lists: [Vec<Value>; 4]| lists.map(Value::Array)).collect();
        assert_eq!(joined, want, "streamed {prompt}");
    }
}
