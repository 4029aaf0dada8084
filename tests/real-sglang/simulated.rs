//! `sglang-sim` beside the real engine: the same requests, the same failures, the same shapes.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use router_tests::manifests::BOOTSTRAP_PORT;
use router_tests::{Client, Fleet};
use serde_json::{Value, json};
use sglang_sim::Config;

use crate::answer::{Said, said};
use crate::requests::{self, Ask, MODEL};
use crate::server::PEER_TIMEOUT;
use crate::shape::{differences, shape, words};
use crate::world::World;

/// The small model's.
const CONTEXT: usize = 16_384;
const MAX_TOKENS: usize = 20_000;

/// A pair that is set up as the real servers are, but for what `change` makes of it.
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

/// The table, through a gateway before each.
pub(crate) async fn table(world: &mut World) {
    let fleet = simulated(|config| config).await;
    let (real, simulated) = (world.gateway(&[]).await, fleet.gateway().await);
    let mut found = Vec::new();
    let table = requests::table();
    for ask in &table {
        let expected = said(&real.client, ask).await;
        let got = said(&simulated.client, ask).await;
        found.extend(compared(&ask.name, &expected, &got));
    }
    tell(&found, table.len());
}

pub(crate) fn compared(name: &str, real: &Said, simulated: &Said) -> Vec<String> {
    if real.status != simulated.status {
        return vec![format!("{name}: {} simulated {}", real.status, simulated.status)];
    }
    let whole = |said: &Said| shape(&whoever_refused(said.body.clone()));
    let lines = differences(&whole(real), &whole(simulated));
    lines.into_iter().map(|line| format!("{name}: {line}")).collect()
}

/// What both engines refuse, the client hears of the one that was first.
fn whoever_refused(body: Vec<Value>) -> Value {
    let mut body = Value::from(body);
    if let Some(code) = body.pointer_mut("/0/error/code")
        && matches!(code.as_str(), Some("prefill_refused" | "decode_refused"))
    {
        *code = "refused".into();
    }
    body
}

pub(crate) fn tell(found: &[String], of: usize) {
    for line in found {
        println!("  {line}");
    }
    println!("  {of} compared, {} differences", found.len());
    assert!(found.is_empty(), "the simulator differs");
}

/// One failure: what prefill is sent, what decode is sent, and whether both.
struct Failure {
    name: &'static str,
    path: &'static str,
    prefill: Option<Value>,
    decode: Option<Value>,
}

/// A pair by its addresses.
#[derive(Clone, Copy)]
pub(crate) struct Pair {
    pub(crate) prefill: SocketAddr,
    pub(crate) decode: SocketAddr,
}

fn failing(pair: Pair) -> Vec<Failure> {
    let met = |body: Value, port: u16, room: u64| {
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
            Some(met(generate(), port, 11)),
            Some(met(generate(), port, 12)),
        ),
        case("prefill alone", gen_path, Some(met(generate(), port, 13)), None),
        case("prefill alone, chat", chat_path, Some(met(chat(), port, 14)), None),
        case("decode alone", gen_path, None, Some(met(generate(), port, 15))),
        case("decode alone, chat", chat_path, None, Some(met(chat(), port, 16))),
        case("decode alone, streamed", gen_path, None, Some(streamed(met(generate(), port, 17)))),
        case(
            "decode alone, chat, streamed",
            chat_path,
            None,
            Some(streamed(met(chat(), port, 18))),
        ),
        case("a wrong bootstrap port", gen_path, None, Some(met(generate(), 1, 19))),
        case(
            "a room as text",
            gen_path,
            Some(text_room(met(generate(), port, 20))),
            Some(text_room(met(generate(), port, 20))),
        ),
        case("no text", gen_path, Some(met(json!({}), port, 21)), Some(met(json!({}), port, 21))),
    ]
}

fn text_room(mut body: Value) -> Value {
    body["bootstrap_room"] = body["bootstrap_room"].to_string().into();
    body
}

/// What one leg said, and after how long.
struct Heard {
    name: String,
    said: Said,
    took: Duration,
}

/// All failures at once: most take as long as an engine waits for its peer.
async fn heard(pair: Pair) -> Vec<Heard> {
    let mut running = Vec::new();
    for failure in failing(pair) {
        let legs = [
            (" (prefill)", pair.prefill, failure.prefill),
            (" (decode)", pair.decode, failure.decode),
        ];
        for (leg, address, body) in legs {
            let Some(body) = body else { continue };
            let ask = Ask { name: format!("{}{leg}", failure.name), path: failure.path, body };
            running.push(tokio::spawn(async move {
                let start = Instant::now();
                let said = said(&Client::new(address), &ask).await;
                Heard { name: ask.name, said, took: start.elapsed() }
            }));
        }
    }
    let mut heard = Vec::new();
    for running in running {
        heard.push(running.await.expect("an answer"));
    }
    heard
}

/// The legs themselves, without a gateway.
pub(crate) async fn failures(world: &mut World) {
    let fleet = simulated(|config| config).await;
    let real = world.pair();
    let copy =
        Pair { prefill: fleet.prefill[0].sim.address(), decode: fleet.decode[0].sim.address() };
    let (real, simulated) = tokio::join!(heard(real), heard(copy));
    let mut found = Vec::new();
    for (real, simulated) in real.iter().zip(&simulated) {
        let name = &real.name;
        println!(
            "  {name}: {} after {:.1} s, simulated {} after {:.1} s",
            real.said.status,
            real.took.as_secs_f32(),
            simulated.said.status,
            simulated.took.as_secs_f32()
        );
        found.extend(compared(name, &real.said, &simulated.said));
        let (told, copied) = (message(&real.said), message(&simulated.said));
        if words(&told) != words(&copied) {
            found.push(format!("{name}: {told:?}, simulated {copied:?}"));
        }
    }
    tell(&found, real.len());
    world.idle().await;
}

/// The first text called `message`, wherever the answer has it.
pub(crate) fn message(said: &Said) -> String {
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
    said.body.iter().find_map(find).unwrap_or_default().to_owned()
}
