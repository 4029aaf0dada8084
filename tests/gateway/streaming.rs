//! Streams: relayed as they come, whole, and no faster than the client reads.

use std::time::{Duration, Instant};

use router_tests::fleet::SOON;
use router_tests::sse::Event;
use router_tests::{Fleet, client::End, eventually};
use serde_json::json;
use sglang_sim::{Action, Config};

use crate::{CHAT, chat, streamed};

fn content(events: &[Event]) -> String {
    let deltas = events.iter().filter(|event| !event.is_done()).map(Event::json);
    deltas
        .filter_map(|event| event["choices"][0]["delta"]["content"].as_str().map(str::to_owned))
        .collect()
}

#[tokio::test]
async fn events_are_relayed_as_they_come() {
    let inter_token = Duration::from_millis(30);
    let fleet = Fleet::start_with(1, 1, |config| Config { inter_token, ..config.instant() }).await;
    let gateway = fleet.gateway().await;
    let mut body = streamed("hi");
    body["max_tokens"] = 30.into();
    let (events, end) = gateway.client.open(CHAT, &body).await.events().await;
    assert_eq!(end, End::Clean);
    assert!(events.last().is_some_and(Event::is_done));
    let first = events.first().expect("events").at;
    let last = events.last().expect("events").at;
    assert!(last - first > inter_token * 15, "held back: {first:?} to {last:?}");
}

#[tokio::test]
async fn an_answer_does_not_wait_for_prefill() {
    // Engines that need no rendezvous, so that decode can answer while prefill never does.
    let fleet =
        Fleet::start_with(1, 1, |config| Config { rendezvous: false, ..config.instant() }).await;
    let gateway = fleet.gateway().await;
    fleet.prefill[0].always(Action::HangHead);
    let answer = gateway.client.post(CHAT, &chat("hi")).await.expect_status(200);
    assert!(answer.took < SOON, "{:?}", answer.took);
    let (events, end) = gateway.client.open(CHAT, &streamed("hi")).await.events().await;
    assert_eq!(end, End::Clean);
    assert!(events.last().is_some_and(|event| event.is_done() && event.at < SOON), "{events:?}");
}

#[tokio::test]
async fn streamed_text_equals_the_whole_answer_in_both_languages() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway().await;
    for message in ["Hello, this is a test", "你好,这是一个测试"] {
        let mut whole = chat(message);
        let mut stream = streamed(message);
        for body in [&mut whole, &mut stream] {
            body["max_tokens"] = 50.into();
        }
        let answer = gateway.client.post(CHAT, &whole).await.expect_status(200).json();
        let said = answer["choices"][0]["message"]["content"].as_str().expect("content").to_owned();
        let (events, _) = gateway.client.open(CHAT, &stream).await.events().await;
        assert_eq!(content(&events), said);
        assert!(!said.is_empty());
    }
}

#[tokio::test]
async fn many_streams_at_once_stay_apart() {
    let fleet = Fleet::start(2, 2).await;
    let gateway = fleet.gateway().await;
    let alone = async |index: usize| {
        let answer = gateway.client.post(CHAT, &chat(&format!("question {index}"))).await;
        answer.json()["choices"][0]["message"]["content"].as_str().map(str::to_owned)
    };
    let mut expected = Vec::new();
    for index in 0..32 {
        expected.push(alone(index).await.expect("content"));
    }
    let client = gateway.client;
    let streams: Vec<_> = (0..32)
        .map(|index| {
            let body = streamed(&format!("question {index}"));
            tokio::spawn(async move { client.open(CHAT, &body).await.events().await })
        })
        .collect();
    for (stream, expected) in streams.into_iter().zip(expected) {
        let (events, end) = stream.await.expect("no panic");
        assert_eq!((content(&events), end), (expected, End::Clean));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_slows_the_engine_and_not_the_gateways_memory() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway().await;
    // Much more than the sockets on the way hold, in few and large events.
    let body = json!({
        "model": "/models/Qwen3-32B", "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 20_000, "ignore_eos": true, "stream": true,
        "logprobs": true, "top_logprobs": 20,
    });
    let start = Instant::now();
    let mut stream = gateway.client.open(CHAT, &body).await;
    let mut bytes = 0;
    while let Ok(piece) = stream.piece().await {
        bytes += piece.len();
    }
    let fast = start.elapsed();
    assert!(bytes > 30 << 20, "{bytes} bytes are too few to tell");
    fleet.idle().await;

    let before = gateway.resident_bytes();
    let mut stream = gateway.client.open(CHAT, &body).await;
    stream.next().await.expect("a first event");
    let mut peak = before;
    let start = Instant::now();
    while start.elapsed() < 2 * fast {
        // Other clients are served meanwhile.
        gateway.client.post(CHAT, &chat("hi")).await.expect_status(200);
        tokio::time::sleep(Duration::from_millis(20)).await;
        peak = peak.max(gateway.resident_bytes());
    }
    assert!(peak - before < 8 << 20, "{} MiB more", (peak - before) >> 20);
    assert_eq!(fleet.decode[0].held(), 1, "the engine has run ahead of the reader");
    drop(stream);
    fleet.idle().await;
}

#[tokio::test]
async fn logprobs_of_the_prompt_come_from_prefill() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway().await;
    let mut body = json!({
        "text": "the quick brown fox", "sampling_params": {"max_new_tokens": 4},
        "return_logprob": true, "logprob_start_len": 0,
    });
    let count = |answer: &serde_json::Value| {
        answer["meta_info"]["input_token_logprobs"].as_array().map_or(0, Vec::len)
    };
    let answer = gateway.client.post("/generate", &body).await.expect_status(200).json();
    assert!(count(&answer) > 4, "{answer}");
    body["stream"] = true.into();
    let (events, end) = gateway.client.open("/generate", &body).await.events().await;
    assert_eq!(end, End::Clean);
    let counts: Vec<usize> =
        events.iter().filter(|event| !event.is_done()).map(|event| count(&event.json())).collect();
    assert_eq!(counts.iter().max(), Some(&count(&answer)), "{counts:?}");
}

#[tokio::test]
async fn streams_are_counted_while_they_run() {
    let fleet = Fleet::start_with(1, 1, |config| config).await;
    let gateway = fleet.gateway().await;
    let mut body = streamed("hi");
    body["max_tokens"] = 50_000.into();
    body["ignore_eos"] = true.into();
    let mut stream = gateway.client.open(CHAT, &body).await;
    stream.next().await.expect("a first event");
    let running = async |count: f64| {
        eventually(&format!("{count} requests run"), Duration::from_secs(2), async || {
            let decode = ["role=\"decode\""];
            let leases = gateway.metric("pd_router_worker_requests", &decode).await;
            let requests = gateway.metric("pd_router_requests_in_flight", &[]).await;
            (leases == count && requests == count).then_some(())
        })
        .await;
    };
    running(1.0).await;
    drop(stream);
    running(0.0).await;
}
