//! Failures during a request, injected into the real and the simulated pair: both legs end alike.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use router_tests::manifests::BOOTSTRAP_PORT;
use router_tests::{Client, Fleet, eventually};
use serde_json::Value;
use sglang_sim::Config;
use tokio::time::timeout;

use crate::answer::{Answer, read_answer, text};
use crate::requests;
use crate::server::PEER_TIMEOUT;
use crate::shape::words;
use crate::simulator::{EnginePair, assert_no_differences, compared, message, simulated};
use crate::testbed::TestBed;

const PATH: &str = "/v1/chat/completions";
/// A leg that has not answered by then does not answer: every timeout of an engine is over.
const NO_ANSWER_AFTER: Duration = PEER_TIMEOUT.saturating_add(Duration::from_secs(4));
/// Allowed difference between the durations of the two pairs: a heartbeat comes every five seconds.
const MAX_TIME_DIFFERENCE: Duration = Duration::from_secs(6);
/// Time for a killed engine to exit, and for a request to reach an engine.
const EVENT_DEADLINE: Duration = Duration::from_secs(20);
/// Prefill speed at which a kill hits the middle of a prompt.
const TOKENS_PER_SECOND: u64 = 20;

/// How a leg ended, and after what time.
struct LegOutcome {
    result: LegResult,
    took: Duration,
}

enum LegResult {
    Answer(Answer),
    /// The connection broke before the response head.
    Broken,
    Nothing,
}

impl LegOutcome {
    async fn send(to: SocketAddr, body: Value) -> LegOutcome {
        let client = Client::new(to);
        let start = Instant::now();
        let request = client.json_request(PATH, body.to_string());
        let answer = async {
            match client.try_send(request).await {
                Ok(stream) => LegResult::Answer(read_answer(PATH, stream).await),
                Err(_) => LegResult::Broken,
            }
        };
        let result = timeout(NO_ANSWER_AFTER, answer).await.unwrap_or(LegResult::Nothing);
        LegOutcome { result, took: start.elapsed() }
    }

    fn describe(&self) -> String {
        let what = match &self.result {
            LegResult::Answer(answer) => {
                format!("{} {:?}", answer.status.as_u16(), message(answer))
            }
            LegResult::Broken => "a broken connection".to_owned(),
            LegResult::Nothing => "nothing".to_owned(),
        };
        format!("{what} after {:.1} s", self.took.as_secs_f32())
    }
}

/// Both legs of one request.
struct PairOutcome {
    prefill: LegOutcome,
    decode: LegOutcome,
}

impl PairOutcome {
    /// Sends both legs as a gateway does: prefill's not streamed, decode's streamed.
    async fn send(pair: EnginePair, room: u64, prompt: &str) -> PairOutcome {
        let mut body = requests::chat(prompt, 8);
        body["bootstrap_host"] = pair.prefill.ip().to_string().into();
        (body["bootstrap_port"], body["bootstrap_room"]) = (BOOTSTRAP_PORT.into(), room.into());
        let mut streamed = body.clone();
        streamed["stream"] = true.into();
        let (prefill, decode) = tokio::join!(
            LegOutcome::send(pair.prefill, body),
            LegOutcome::send(pair.decode, streamed)
        );
        PairOutcome { prefill, decode }
    }
}

/// Prefill is killed in the middle of a prompt: decode notices it by the heartbeat only.
pub(crate) async fn killed(testbed: &mut TestBed) {
    let pair = testbed.pair();
    let prompt = "word the brown fox ".repeat(600);
    let real = tokio::spawn(async move { PairOutcome::send(pair, 101, &prompt).await });
    testbed.wait_until_prefill_has_a_request().await;
    testbed.prefill.kill();
    let real = real.await.expect("both legs");

    let slow = |config| Config { prefill_tokens_per_second: TOKENS_PER_SECOND, ..config };
    let fleet = warmed_up_fleet(slow).await;
    let sim = &fleet.prefill[0].sim;
    let prompt = "word ".repeat(600);
    let killing = async {
        assert!(
            sim.until(EVENT_DEADLINE, |engine| engine.occupancy().running == 1).await,
            "prefill has the request"
        );
        sim.kill().await;
    };
    let (copy, ()) = tokio::join!(PairOutcome::send(pair_of(&fleet), 101, &prompt), killing);
    compare("prefill killed", &real, &copy);
    testbed.prefill.restart().await;
}

/// Only the scheduler is frozen: HTTP and the registry answer, so the heartbeat does not notice.
pub(crate) async fn scheduler_frozen(testbed: &mut TestBed) {
    testbed.prefill.freeze_scheduler();
    let real = PairOutcome::send(testbed.pair(), 102, "a scheduler that stands still").await;
    testbed.prefill.thaw();

    let fleet = warmed_up_fleet(|config| config).await;
    fleet.prefill[0].sim.freeze_scheduler();
    let copy = PairOutcome::send(pair_of(&fleet), 102, "a scheduler that stands still").await;
    compare("prefill's scheduler frozen", &real, &copy);
    testbed.wait_until_idle().await;
}

/// A room of 2^63 does not fit a signed integer and ends the prefill.
pub(crate) async fn room_too_large(testbed: &mut TestBed) {
    let real = PairOutcome::send(testbed.pair(), 1 << 63, "a room too large").await;
    eventually("prefill has ended", EVENT_DEADLINE, async || {
        testbed.prefill.has_exited().then_some(())
    })
    .await;

    let fleet = warmed_up_fleet(|config| config).await;
    let copy = PairOutcome::send(pair_of(&fleet), 1 << 63, "a room too large").await;
    assert!(!fleet.prefill[0].sim.is_alive(), "the simulated prefill is still alive");
    compare("a room of 2^63", &real, &copy);
    testbed.prefill.restart().await;
}

/// Two requests in one room: at most one gets its own answer, and neither gets an error.
pub(crate) async fn room_used_twice(testbed: &mut TestBed) {
    let real = own_answers(testbed.pair()).await;
    let fleet = warmed_up_fleet(|config| config).await;
    let copy = own_answers(pair_of(&fleet)).await;
    println!("  one room twice: {real} of 2 with their own answer, simulated {copy}");
    // Only a restart frees what is stuck in the engines.
    testbed.prefill.kill();
    testbed.decode.kill();
    testbed.prefill.restart().await;
    testbed.decode.restart().await;
    assert!(real < 2 && copy < 2, "the room was shared without harm: {real}, simulated {copy}");
}

async fn own_answers(pair: EnginePair) -> usize {
    let prompts = ["the cache waits for every prompt", "a river runs to the sea"];
    let text_of = |legs: &PairOutcome| match &legs.decode.result {
        LegResult::Answer(answer) if answer.status.is_success() => Some(text(answer)),
        _ => None,
    };
    let mut own = Vec::new();
    for (room, prompt) in (103..).zip(prompts) {
        let alone = text_of(&PairOutcome::send(pair, room, prompt).await);
        own.push(alone.expect("an answer in a room of its own"));
    }
    assert_ne!(own[0], own[1], "the two answers are equal");
    let (one, other) = tokio::join!(
        PairOutcome::send(pair, 105, prompts[0]),
        PairOutcome::send(pair, 105, prompts[1])
    );
    let answers = [text_of(&one), text_of(&other)];
    answers.iter().zip(&own).filter(|(answer, own)| answer.as_ref() == Some(*own)).count()
}

/// A simulated pair after one request, as the real pair is: its decode has cached the prefill's
/// registry entry.
async fn warmed_up_fleet(change: impl Fn(Config) -> Config) -> Fleet {
    let fleet = simulated(change).await;
    PairOutcome::send(pair_of(&fleet), 100, "hello").await;
    fleet
}

fn pair_of(fleet: &Fleet) -> EnginePair {
    EnginePair { prefill: fleet.prefill[0].sim.address(), decode: fleet.decode[0].sim.address() }
}

fn compare(name: &str, real: &PairOutcome, copy: &PairOutcome) {
    let mut found = Vec::new();
    for (leg, real, copy) in
        [("prefill", &real.prefill, &copy.prefill), ("decode", &real.decode, &copy.decode)]
    {
        let name = format!("{name} ({leg})");
        println!("  {name}: {}, simulated {}", real.describe(), copy.describe());
        match (&real.result, &copy.result) {
            (LegResult::Answer(real), LegResult::Answer(copy)) => {
                found.extend(compared(&name, real, copy));
                if words(&message(real)) != words(&message(copy)) {
                    found.push(format!("{name}: the error messages differ"));
                }
            }
            (LegResult::Broken, LegResult::Broken) | (LegResult::Nothing, LegResult::Nothing) => {}
            _ => found.push(format!("{name}: {}, simulated {}", real.describe(), copy.describe())),
        }
        if real.took.abs_diff(copy.took) > MAX_TIME_DIFFERENCE {
            found.push(format!("{name}: the durations differ"));
        }
    }
    assert_no_differences(&found, 2);
}
