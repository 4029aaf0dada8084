//! A pair that is struck under way, the real one and the simulated one alike: what each leg comes to.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use router_tests::manifests::BOOTSTRAP_PORT;
use router_tests::{Client, Fleet, eventually};
use serde_json::Value;
use sglang_sim::Config;
use tokio::time::timeout;

use crate::answer::{Said, heard, text};
use crate::requests;
use crate::server::PEER_TIMEOUT;
use crate::shape::words;
use crate::simulated::{Pair, compared, message, simulated, tell};
use crate::world::World;

const PATH: &str = "/v1/chat/completions";
/// A leg without an answer by then has none: every timeout of an engine is over.
const HANGS: Duration = PEER_TIMEOUT.saturating_add(Duration::from_secs(4));
/// How far the times of the two may lie apart: a heartbeat comes every five seconds.
const APART: Duration = Duration::from_secs(6);
/// For a killed engine to be gone, and for a request to be seen in one.
const SOON: Duration = Duration::from_secs(20);
/// So slow that a kill comes in the middle of a prompt.
const TOKENS_PER_SECOND: u64 = 20;

/// What a leg came to, and after how long.
struct Leg {
    came: Came,
    took: Duration,
}

enum Came {
    Answer(Said),
    /// The connection broke before there was a head.
    Broken,
    Nothing,
}

impl Leg {
    async fn sent(to: SocketAddr, body: Value) -> Leg {
        let client = Client::new(to);
        let start = Instant::now();
        let request = client.json_request(PATH, body.to_string());
        let answer = async {
            match client.try_send(request).await {
                Ok(stream) => Came::Answer(heard(PATH, stream).await),
                Err(_) => Came::Broken,
            }
        };
        let came = timeout(HANGS, answer).await.unwrap_or(Came::Nothing);
        Leg { came, took: start.elapsed() }
    }

    fn told(&self) -> String {
        let what = match &self.came {
            Came::Answer(said) => format!("{} {:?}", said.status.as_u16(), message(said)),
            Came::Broken => "a broken connection".to_owned(),
            Came::Nothing => "nothing".to_owned(),
        };
        format!("{what} after {:.1} s", self.took.as_secs_f32())
    }
}

/// Both legs of one request.
struct Legs {
    prefill: Leg,
    decode: Leg,
}

impl Legs {
    /// As a gateway sends them: prefill's whole, decode's as a stream.
    async fn sent(pair: Pair, room: u64, prompt: &str) -> Legs {
        let mut body = requests::chat(prompt, 8);
        body["bootstrap_host"] = pair.prefill.ip().to_string().into();
        (body["bootstrap_port"], body["bootstrap_room"]) = (BOOTSTRAP_PORT.into(), room.into());
        let mut streamed = body.clone();
        streamed["stream"] = true.into();
        let (prefill, decode) =
            tokio::join!(Leg::sent(pair.prefill, body), Leg::sent(pair.decode, streamed));
        Legs { prefill, decode }
    }
}

/// Killed in the middle of a prompt: only the heartbeat tells decode.
pub(crate) async fn killed(world: &mut World) {
    let pair = world.pair();
    let prompt = "word the brown fox ".repeat(600);
    let real = tokio::spawn(async move { Legs::sent(pair, 101, &prompt).await });
    world.prefill_computes().await;
    world.prefill.kill();
    let real = real.await.expect("both legs");

    let slow = |config| Config { prefill_tokens_per_second: TOKENS_PER_SECOND, ..config };
    let fleet = acquainted(slow).await;
    let sim = &fleet.prefill[0].sim;
    let prompt = "word ".repeat(600);
    let killing = async {
        assert!(sim.until(SOON, |engine| engine.occupancy().running == 1).await, "it computes");
        sim.kill().await;
    };
    let (copy, ()) = tokio::join!(Legs::sent(pair_of(&fleet), 101, &prompt), killing);
    compare("prefill killed", &real, &copy);
    world.prefill.restart().await;
}

/// Its scheduler alone stands still: HTTP and the registry answer, and no heartbeat sees it.
pub(crate) async fn scheduler_frozen(world: &mut World) {
    world.prefill.freeze_scheduler();
    let real = Legs::sent(world.pair(), 102, "a scheduler that stands still").await;
    world.prefill.thaw();

    let fleet = acquainted(|config| config).await;
    fleet.prefill[0].sim.freeze_scheduler();
    let copy = Legs::sent(pair_of(&fleet), 102, "a scheduler that stands still").await;
    compare("prefill's scheduler frozen", &real, &copy);
    world.idle().await;
}

/// A room of 2^63 fits no signed number, and ends the engine that is asked for it.
pub(crate) async fn room_too_large(world: &mut World) {
    let real = Legs::sent(world.pair(), 1 << 63, "a room too large").await;
    eventually("prefill has ended", SOON, async || world.prefill.has_ended().then_some(())).await;

    let fleet = acquainted(|config| config).await;
    let copy = Legs::sent(pair_of(&fleet), 1 << 63, "a room too large").await;
    assert!(!fleet.prefill[0].sim.is_alive(), "the simulated one lives on");
    compare("a room of 2^63", &real, &copy);
    world.prefill.restart().await;
}

/// Two requests in one room: not both get their own answer, and nobody is told of an error.
pub(crate) async fn room_used_twice(world: &mut World) {
    let real = own_answers(world.pair()).await;
    let fleet = acquainted(|config| config).await;
    let copy = own_answers(pair_of(&fleet)).await;
    println!("  one room twice: {real} of 2 with their own answer, simulated {copy}");
    // What is stuck in the engines by now, only a new start frees.
    world.prefill.kill();
    world.decode.kill();
    world.prefill.restart().await;
    world.decode.restart().await;
    assert!(real < 2 && copy < 2, "the room was shared without harm: {real}, simulated {copy}");
}

async fn own_answers(pair: Pair) -> usize {
    let prompts = ["the cache waits for every prompt", "a river runs to the sea"];
    let text_of = |legs: &Legs| match &legs.decode.came {
        Came::Answer(said) if said.status.is_success() => Some(text(said)),
        _ => None,
    };
    let mut own = Vec::new();
    for (room, prompt) in (103..).zip(prompts) {
        let alone = text_of(&Legs::sent(pair, room, prompt).await);
        own.push(alone.expect("an answer in a room of its own"));
    }
    assert_ne!(own[0], own[1], "they could not be told apart");
    let (one, other) =
        tokio::join!(Legs::sent(pair, 105, prompts[0]), Legs::sent(pair, 105, prompts[1]));
    let answers = [text_of(&one), text_of(&other)];
    answers.iter().zip(&own).filter(|(answer, own)| answer.as_ref() == Some(*own)).count()
}

/// The simulated pair after a request, as the real one is: a decode that knows its prefill asks the
/// registry nothing more.
async fn acquainted(change: impl Fn(Config) -> Config) -> Fleet {
    let fleet = simulated(change).await;
    Legs::sent(pair_of(&fleet), 100, "hello").await;
    fleet
}

fn pair_of(fleet: &Fleet) -> Pair {
    Pair { prefill: fleet.prefill[0].sim.address(), decode: fleet.decode[0].sim.address() }
}

fn compare(name: &str, real: &Legs, copy: &Legs) {
    let mut found = Vec::new();
    for (leg, real, copy) in
        [("prefill", &real.prefill, &copy.prefill), ("decode", &real.decode, &copy.decode)]
    {
        let name = format!("{name} ({leg})");
        println!("  {name}: {}, simulated {}", real.told(), copy.told());
        match (&real.came, &copy.came) {
            (Came::Answer(real), Came::Answer(copy)) => {
                found.extend(compared(&name, real, copy));
                if words(&message(real)) != words(&message(copy)) {
                    found.push(format!("{name}: other words"));
                }
            }
            (Came::Broken, Came::Broken) | (Came::Nothing, Came::Nothing) => {}
            _ => found.push(format!("{name}: {}, simulated {}", real.told(), copy.told())),
        }
        if real.took.abs_diff(copy.took) > APART {
            found.push(format!("{name}: other times"));
        }
    }
    tell(&found, 2);
}
