//! `sglang-sim` compared with the real engine: same requests, same failures, same shapes.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use router_tests::manifests::BOOTSTRAP_PORT;
use router_tests::{Client, Fleet};
use serde_json::{Value, json};
use sglang_sim::Config;

use crate::answer::{Answer, send};
use crate::requests::{self, MODEL, RequestCase};
use crate::server::PEER_TIMEOUT;
use crate::shape::{differences, shape, words};
use crate::testbed::TestBed;

/// The context length of the small model.
const CONTEXT: usize = 16_384;
const MAX_TOKENS: usize = 20_000;

/// A simulated pair with the settings of the real servers, modified by `change`.
pub(crate) async fn simulated(change: impl Fn(Config) -> Config) -> Fleet {
    Fleet::start_with(1, 1, |engine: Config| {
        let mut engine = Config {
            served_model_name: Some(MODEL.into()),
            context_length: CONTEXT,
            max_total_tokens: MAX_TOKENS,
            ..engine.instant()
        };
        engine.timing.bootstrap_timeout = PEER_TIMEOUT;
        engine.timing.waiting_timeout = PEER_TIMEOUT;
        change(engine)
    })
    .await
}

/// Sends the table through a gateway in front of each pair.
pub(crate) async fn table(testbed: &mut TestBed) {
    let fleet = simulated(|config| config).await;
    let (real, simulated) = (testbed.gateway(&[]).await, fleet.gateway().await);
    let mut found = Vec::new();
    let table = requests::table();
    for case in &table {
        let expected = send(&real.client, case).await;
        let got = send(&simulated.client, case).await;
        found.extend(compared(&case.name, &expected, &got));
    }
    assert_no_differences(&found, table.len());
}

pub(crate) fn compared(name: &str, real: &Answer, simulated: &Answer) -> Vec<String> {
    if real.status != simulated.status {
        return vec![format!("{name}: {} simulated {}", real.status, simulated.status)];
    }
    let whole = |answer: &Answer| shape(&without_refusing_role(answer.body.clone()));
    let lines = differences(&whole(real), &whole(simulated));
    lines.into_iter().map(|line| format!("{name}: {line}")).collect()
}

/// If both engines reject a request, the client gets the faster one's rejection. Removes the role.
fn without_refusing_role(body: Vec<Value>) -> Value {
    let mut body = Value::from(body);
    if let Some(code) = body.pointer_mut("/0/error/code")
        && matches!(code.as_str(), Some("prefill_refused" | "decode_refused"))
    {
        *code = "refused".into();
    }
    body
}

pub(crate) fn assert_no_differences(found: &[String], of: usize) {
    for line in found {
        println!("  {line}");
    }
    println!("  {of} compared, {} differences", found.len());
    assert!(found.is_empty(), "the simulator differs");
}

/// One failing request: the bodies of the prefill and the decode leg, if sent.
struct Failure {
    name: &'static str,
    path: &'static str,
    prefill: Option<Value>,
    decode: Option<Value>,
}

/// The addresses of a pair.
#[derive(Clone, Copy)]
pub(crate) struct EnginePair {
    pub(crate) prefill: SocketAddr,
    pub(crate) decode: SocketAddr,
}

fn failing(pair: EnginePair) -> Vec<Failure> {
    let with_rendezvous = |body: Value, port: u16, room: u64| {
        let mut body = body;
        body["bootstrap_host"] = pair.prefill.ip().to_string().into();
        (body["bootstrap_port"], body["bootstrap_room"]) = (port.into(), room.into());
        body
    };
    let generate = || requests::generate("a pair that does not meet", 4);
    let streamed = |mut body: Value| {
        body["stream"] = true.into();
        body
    };
    let chat = || requests::chat("a pair that does not meet", 4);
    let case = |name, path, prefill, decode| Failure { name, path, prefill, decode };
    let port = BOOTSTRAP_PORT;
    let (gen_path, chat_path) = ("/generate", "/v1/chat/completions");
    vec![
        case("no room", gen_path, Some(generate()), Some(generate())),
        case("no room, chat", chat_path, Some(chat()), Some(chat())),
        case("no room, streamed", chat_path, Some(streamed(chat())), Some(streamed(chat()))),
        case(
            "rooms differ",
            gen_path,
            Some(with_rendezvous(generate(), port, 11)),
            Some(with_rendezvous(generate(), port, 12)),
        ),
        case("prefill alone", gen_path, Some(with_rendezvous(generate(), port, 13)), None),
        case("prefill alone, chat", chat_path, Some(with_rendezvous(chat(), port, 14)), None),
        case("decode alone", gen_path, None, Some(with_rendezvous(generate(), port, 15))),
        case("decode alone, chat", chat_path, None, Some(with_rendezvous(chat(), port, 16))),
        case(
            "decode alone, streamed",
            gen_path,
            None,
            Some(streamed(with_rendezvous(generate(), port, 17))),
        ),
        case(
            "decode alone, chat, streamed",
            chat_path,
            None,
            Some(streamed(with_rendezvous(chat(), port, 18))),
        ),
        case("a wrong bootstrap port", gen_path, None, Some(with_rendezvous(generate(), 1, 19))),
        case(
            "a room as text",
            gen_path,
            Some(text_room(with_rendezvous(generate(), port, 20))),
            Some(text_room(with_rendezvous(generate(), port, 20))),
        ),
        case(
            "no text",
            gen_path,
            Some(with_rendezvous(json!({}), port, 21)),
            Some(with_rendezvous(json!({}), port, 21)),
        ),
    ]
}

fn text_room(mut body: Value) -> Value {
    body["bootstrap_room"] = body["bootstrap_room"].to_string().into();
    body
}

/// The answer of one leg, and after what time.
struct TimedAnswer {
    name: String,
    answer: Answer,
    took: Duration,
}

/// Sends all failing requests at once: most take as long as an engine waits for its peer.
async fn send_failing_requests(pair: EnginePair) -> Vec<TimedAnswer> {
    let mut running = Vec::new();
    for failure in failing(pair) {
        let legs = [
            (" (prefill)", pair.prefill, failure.prefill),
            (" (decode)", pair.decode, failure.decode),
        ];
        for (leg, address, body) in legs {
            let Some(body) = body else { continue };
            let case =
                RequestCase { name: format!("{}{leg}", failure.name), path: failure.path, body };
            running.push(tokio::spawn(async move {
                let start = Instant::now();
                let answer = send(&Client::new(address), &case).await;
                TimedAnswer { name: case.name, answer, took: start.elapsed() }
            }));
        }
    }
    let mut answers = Vec::new();
    for running in running {
        answers.push(running.await.expect("an answer"));
    }
    answers
}

/// Compares the failures of the legs themselves, without a gateway.
pub(crate) async fn failures(testbed: &mut TestBed) {
    let fleet = simulated(|config| config).await;
    let real = testbed.pair();
    let copy = EnginePair {
        prefill: fleet.prefill[0].sim.address(),
        decode: fleet.decode[0].sim.address(),
    };
    let (real, simulated) = tokio::join!(send_failing_requests(real), send_failing_requests(copy));
    let mut found = Vec::new();
    for (real, simulated) in real.iter().zip(&simulated) {
        let name = &real.name;
        println!(
            "  {name}: {} after {:.1} s, simulated {} after {:.1} s",
            real.answer.status,
            real.took.as_secs_f32(),
            simulated.answer.status,
            simulated.took.as_secs_f32()
        );
        found.extend(compared(name, &real.answer, &simulated.answer));
        let (real_message, sim_message) = (message(&real.answer), message(&simulated.answer));
        if words(&real_message) != words(&sim_message) {
            found.push(format!("{name}: {real_message:?}, simulated {sim_message:?}"));
        }
    }
    assert_no_differences(&found, real.len());
    testbed.wait_until_idle().await;
}

/// The first text called `message` in the answer.
pub(crate) fn message(answer: &Answer) -> String {
    fn find(value: &Value) -> Option<&str> {
        match value {
            Value::Object(fields) => fields
                .get("message")
                .and_then(Value::as_str)
                .or_else(|| fields.values().find_map(find)),
            Value::Array(items) => items.iter().find_map(find),
            _ => None,
        }
    }
    answer.body.iter().find_map(find).unwrap_or_default().to_owned()
}
