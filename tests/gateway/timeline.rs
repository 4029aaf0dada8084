//! Where the time of a request went: each part against a delay that is known, and what `/requests` keeps.

use std::time::{Duration, Instant};

use router_tests::fleet::SOON;
use router_tests::{Fleet, Gateway, eventually};
use serde_json::{Value, json};
use sglang_sim::{Action, Config};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::{CHAT, chat, streamed};

const OF_TTFT: [&str; 6] = ["received", "retried", "queued", "sent", "prefill", "first_byte"];
const PROMPT_TOKENS: u64 = 1000;
const PREFILL: Duration = Duration::from_millis(200);
const FIRST_STEP: Duration = Duration::from_millis(100);

/// A streamed request with a prompt of [`PROMPT_TOKENS`].
fn known_prompt() -> Value {
    json!({
        "input_ids": (0..PROMPT_TOKENS).collect::<Vec<u64>>(),
        "sampling_params": {"max_new_tokens": 4},
        "stream": true,
    })
}

/// Engines with known delays.
fn delayed(config: Config) -> Config {
    Config {
        prefill_tokens_per_second: PROMPT_TOKENS * 1000 / PREFILL.as_millis() as u64,
        decode_first_step: FIRST_STEP,
        inter_token: Duration::from_millis(20),
        ..config
    }
}

/// The kept requests that a query asks for, once there are as many.
async fn kept(gateway: &Gateway, query: &str, count: usize) -> Vec<Value> {
    eventually(&format!("{count} requests are kept"), SOON, async || {
        let page = gateway.admin.get(&format!("/requests?{query}")).await.expect_status(200);
        let requests = page.json()["requests"].as_array().expect("a list").clone();
        (requests.len() == count).then_some(requests)
    })
    .await
}

/// The only kept request.
async fn only(gateway: &Gateway) -> Value {
    kept(gateway, "", 1).await.remove(0)
}

fn value(measured: &Value) -> Option<f64> {
    let unknown = measured["provenance"] == "unknown";
    assert_eq!(measured["value"].is_null(), unknown, "{measured}");
    measured["value"].as_f64()
}

fn part(request: &Value, name: &str) -> Option<f64> {
    value(&request["parts_ms"][name])
}

/// The known parts add up to the time to first token and to the duration.
fn assert_adds_up(request: &Value) {
    let sum = |parts: &[&str]| parts.iter().filter_map(|name| part(request, name)).sum::<f64>();
    if let Some(ttft) = value(&request["ttft_ms"]) {
        assert!((sum(&OF_TTFT) - ttft).abs() < 1.0, "{request:#}");
    }
    let all = sum(&OF_TTFT) + part(request, "done").unwrap_or(0.0);
    let duration = request["duration_ms"].as_f64().expect("a number");
    assert!((all - duration).abs() < 1.0, "{request:#}");
}

/// A delay is measured as such, and with little more than a tenth added.
fn assert_about(what: &str, ms: f64, delay: Duration) {
    let delay = delay.as_secs_f64() * 1e3;
    assert!((delay - 0.5..delay * 1.1 + 15.0).contains(&ms), "{what}: {ms} ms, of {delay} ms");
}

#[tokio::test]
async fn each_part_is_the_delay_that_was_injected() {
    let fleet = Fleet::start_with(1, 1, delayed).await;
    let gateway = fleet.gateway().await;
    let mut first_events = Vec::new();
    for _ in 0..5 {
        let (events, _) = gateway.client.open("/generate", &known_prompt()).await.events().await;
        first_events.push(events[0].at.as_secs_f64() * 1e3);
    }
    let requests = kept(&gateway, "", 5).await;
    // The machine may be busy: the fastest of each part shows the delay.
    let fastest = |name: &str| {
        let ms = requests.iter().map(|one| part(one, name).expect("every part is known"));
        ms.fold(f64::INFINITY, f64::min)
    };
    assert_about("prefill", fastest("prefill"), PREFILL);
    assert_about("first_byte", fastest("first_byte"), FIRST_STEP);
    assert_about("done", fastest("done"), Duration::from_millis(3 * 20));
    for name in ["received", "queued", "sent"] {
        assert_about(name, fastest(name), Duration::ZERO);
    }
    // The last request is the first of the list.
    for (request, at_client) in requests.iter().rev().zip(first_events) {
        assert_adds_up(request);
        assert_eq!(part(request, "retried"), Some(0.0));
        assert!(value(&request["ttft_ms"]).expect("a stream") <= at_client, "{request:#}");
        let exact = |name: &&str| request["parts_ms"][*name]["provenance"] == "exact";
        assert!(OF_TTFT.iter().all(exact), "{request:#}");
        assert_eq!(request["prefill_report"]["prompt_tokens"]["value"], PROMPT_TOKENS);
        assert_eq!(request["prefill"], "default/prefill-0");
        assert_eq!(request["worker"], "default/decode-0");
        for unseen in ["decode_admitted", "transfer", "decode_first_step"] {
            assert_eq!(value(&request["inner_parts_ms"][unseen]), None, "no agent sees it");
        }
    }
    let sum = gateway.metric("pd_router_ttft_part_seconds_sum", &["part=\"prefill\""]).await;
    let listed: f64 = requests.iter().filter_map(|one| part(one, "prefill")).sum();
    assert!((sum * 1e3 - listed).abs() < 1.0, "{sum} s, {listed} ms");
}

#[tokio::test]
async fn a_prefill_that_answers_late_is_estimated_and_the_rest_is_unknown() {
    // Decode does not wait for prefill.
    let apart = |config| Config { rendezvous: false, ..delayed(config) };
    let fleet = Fleet::start_with(1, 1, apart).await;
    let gateway = fleet.gateway().await;
    gateway.client.open("/generate", &known_prompt()).await.events().await;
    let request = only(&gateway).await;
    assert_adds_up(&request);
    assert_eq!(request["parts_ms"]["prefill"]["provenance"], "estimated", "{request:#}");
    assert_eq!(part(&request, "first_byte"), None, "{request:#}");
}

#[tokio::test]
async fn the_wait_for_capacity_and_the_upload_are_parts_of_their_own() {
    let one_slot = |config| Config { max_running_requests: 1, ..delayed(config) };
    let fleet = Fleet::start_with(1, 1, one_slot).await;
    let gateway = fleet.gateway().await;
    // The gateway learns the engine's limit from the engine.
    gateway.client.post(CHAT, &chat("warm")).await.expect_status(200);
    let mut holder = gateway.client.open(CHAT, &streamed("hold")).await;
    holder.next().await.expect("a first event");
    // A client that sends its body in two pieces.
    let body = streamed("second").to_string();
    let pause = Duration::from_millis(100);
    let mut socket = TcpStream::connect(gateway.client.address).await.expect("a connection");
    let head = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: g\r\nx-request-id: second\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{}",
        body.len(),
        &body[..5]
    );
    let sent = Instant::now();
    socket.write_all(head.as_bytes()).await.expect("written");
    tokio::time::sleep(pause).await;
    socket.write_all(&body.as_bytes()[5..]).await.expect("written");
    eventually("it waits", SOON, async || {
        (gateway.metric("pd_router_requests_queued", &[]).await == 1.0).then_some(())
    })
    .await;
    let seen = Instant::now();
    holder.events().await;
    let (waited, at_most) = (seen.elapsed(), sent.elapsed());
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    kept(&gateway, "", 3).await;
    let request = gateway.admin.get("/requests/second").await.expect_status(200).json();
    assert_adds_up(&request);
    let (received, queued) = (part(&request, "received"), part(&request, "queued"));
    let (received, queued) = (received.expect("known"), queued.expect("known"));
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    assert!(received >= ms(pause) - 1.0, "{request:#}");
    // Decode ends the holder's request a moment before or after its client has the whole answer.
    assert!(queued >= ms(waited) - 20.0, "waited {waited:?}: {request:#}");
    assert!(received + queued <= ms(at_most) + 100.0, "{at_most:?} at most: {request:#}");
}

#[tokio::test]
async fn a_retry_is_kept_with_its_reason_and_its_time() {
    let fleet = Fleet::start(1, 2).await;
    let gateway = fleet.gateway_with(&["--policy", "round_robin"]).await;
    fleet.decode[0].once(Action::DropBeforeHead);
    for _ in 0..2 {
        gateway.client.open(CHAT, &streamed("hi")).await.events().await;
    }
    let requests = kept(&gateway, "", 2).await;
    let retried = requests.iter().find(|one| one["attempts"] == 2).expect("one was retried");
    let before = &retried["retries"][0];
    let reason = format!("reason={}", before["reason"]);
    assert_eq!(gateway.metric("pd_router_retries_total", &[&reason]).await, 1.0, "{retried:#}");
    assert_eq!(before["worker"], "default/decode-0");
    assert_eq!(before["prefill"], "default/prefill-0");
    assert_eq!(retried["worker"], "default/decode-1");
    // The pause before a retry belongs to it.
    let took = before["duration_ms"].as_f64().expect("a number");
    assert!(part(retried, "retried").expect("known") >= took + 20.0, "{retried:#}");
    requests.iter().for_each(assert_adds_up);
}

#[tokio::test]
async fn a_failed_request_ends_in_the_part_that_it_had_reached() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway_with(&["--max-attempts", "1"]).await;
    gateway.client.post(CHAT, &chat("fine")).await.expect_status(200);
    let refusal = Action::Status { status: 400, body: r#"{"message":"no"}"#.into() };
    fleet.decode[0].always(refusal);
    let answer = gateway.client.post(CHAT, &chat("hi")).await.expect_status(400);
    let id = answer.header("x-request-id").to_owned();
    let failed = kept(&gateway, "failed=1", 1).await.remove(0);
    assert_eq!(failed["id"], id.as_str());
    assert_eq!(failed["reason"], answer.header("x-pd-router-reason"));
    assert_eq!(failed["status"], 400);
    assert_adds_up(&failed);
    let ended_in = failed["ended_in"].as_str().expect("a name");
    assert!(["sent", "prefill", "first_byte"].contains(&ended_in), "{failed:#}");
    assert!(part(&failed, ended_in).is_some(), "{failed:#}");
    assert_eq!(part(&failed, "done"), None, "{failed:#}");
    let mut page = gateway.admin.get(&format!("/requests/{id}")).await.expect_status(200).json();
    let choice = page.as_object_mut().expect("an object").remove("choice").expect("its choice");
    assert_eq!(choice["chosen"]["pair"]["decode"], failed["worker"]);
    assert_eq!(page, failed);
}

#[tokio::test]
async fn failed_requests_stay_while_fast_ones_push_each_other_out() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway_with(&["--requests-kept", "8", "--max-attempts", "1"]).await;
    fleet.decode[0].once(Action::Status { status: 400, body: "{}".into() });
    gateway.client.post(CHAT, &chat("fails")).await.expect_status(400);
    for _ in 0..20 {
        gateway.client.post(CHAT, &chat("hi")).await.expect_status(200);
    }
    kept(&gateway, "failed=1", 1).await;
    kept(&gateway, "", 8 + 1).await;
    kept(&gateway, "limit=3", 3).await;
    // The failed one is older than those that are complete.
    let page = gateway.admin.get("/requests").await.json();
    let ended = |one: &Value| one["started_ms"].as_f64().zip(one["duration_ms"].as_f64());
    let ended = |one: &Value| ended(one).map(|(started, took)| started + took).expect("numbers");
    let since = page["complete_since_ms"].as_f64().expect("some were pushed out");
    let requests = page["requests"].as_array().expect("a list");
    let complete = requests.iter().filter(|one| ended(one) >= since).count();
    assert!((7..=8).contains(&complete), "{complete} of {page:#}");
    kept(&gateway, "slow=60000", 0).await;
    let pool = kept(&gateway, "", 9).await[0]["pool"].as_str().expect("a name").to_owned();
    kept(&gateway, &format!("pool={pool}"), 9).await;
    kept(&gateway, "pool=default/another", 0).await;
    for (query, parameter) in [("slow=x", "slow"), ("pages=2", "pages"), ("failed=2", "failed")] {
        let answer = gateway.admin.get(&format!("/requests?{query}")).await.expect_status(400);
        assert!(answer.text().contains(&format!("`{parameter}`")), "{}", answer.text());
    }
    gateway.admin.get("/requests/unknown").await.expect_status(404);
}

#[tokio::test]
async fn no_request_is_kept_where_that_is_off() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway_with(&["--requests-kept", "0"]).await;
    gateway.client.post(CHAT, &chat("hi")).await.expect_status(200);
    let answer = gateway.admin.get("/requests").await.expect_status(404);
    assert!(answer.text().contains("--requests-kept"), "{}", answer.text());
}

#[tokio::test]
async fn the_response_and_the_log_line_have_the_parts() {
    let fleet = Fleet::start_with(1, 1, delayed).await;
    let gateway = fleet.gateway().await;
    let stream = gateway.client.open("/generate", &known_prompt()).await;
    let header = stream.headers["x-pd-router-timeline"].to_str().expect("text").to_owned();
    stream.events().await;
    let request = only(&gateway).await;
    let named: Vec<&str> = header.split(' ').filter_map(|part| part.split('=').next()).collect();
    assert_eq!(named, OF_TTFT, "{header}");
    let prefill = part(&request, "prefill").expect("known");
    assert!(header.contains(&format!(" prefill={prefill:.1} ")), "{header}: {request:#}");
    let line = eventually("the request is logged", SOON, async || {
        let log = gateway.log();
        let line = log.lines().find(|line| line.contains("\"message\":\"request\""))?;
        serde_json::from_str::<Value>(line).ok()
    })
    .await;
    for name in OF_TTFT {
        let logged = line[format!("{name}_ms")].as_f64();
        assert_eq!(logged, part(&request, name), "{name}: {line}");
    }
}
