//! Reliability cases that users of routers have reported, for tests and the benchmark: what a router
//! serves of them, and how long it takes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sglang_sim::{Config, Role};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::client::{Client, End};
use crate::eventually::eventually;
use crate::fleet::Fleet;

const CHAT: &str = "/v1/chat/completions";
/// Longer than any request of the cases takes where nothing is wrong.
const PATIENCE: Duration = Duration::from_secs(25);

/// Number of requests of the case [`crowd`].
pub const CROWD: usize = 64;
/// Number of requests that it sends at once.
pub const AT_ONCE: usize = 32;
/// Number of requests that its decode takes at once.
pub const SLOTS: usize = 4;
const LONG_REQUESTS: usize = 10;
/// 13 chunks, each of 50 ms.
const LONG_PROMPT: usize = 13 * 8192;
const PREFILL_SPEED: u64 = 8192 * 20;
/// Requests that run at once while an engine dies, in all.
const UNDER_LOAD: usize = 48;

/// What became of the requests of a case.
#[derive(Clone, Copy, Debug, Default)]
pub struct Served {
    pub served: usize,
    pub failed: usize,
    pub took: Duration,
}

impl Served {
    fn add(&mut self, is_served: bool) {
        if is_served { self.served += 1 } else { self.failed += 1 }
    }
}

/// A chat request that is not streamed, of `words` words and `tokens` tokens of output.
#[must_use]
pub fn request(words: usize, tokens: usize) -> Value {
    json!({
        "model": "/models/Qwen3-32B",
        "messages": [{"role": "user", "content": "word ".repeat(words)}],
        "max_tokens": tokens,
        "ignore_eos": true,
    })
}

/// Sends a request. Returns whether its whole answer came.
pub async fn is_served(client: Client, body: &Value) -> bool {
    let exchange = async {
        let sent = client.try_send(client.json_request(CHAT, body.to_string())).await;
        let Ok(mut answer) = sent else { return false };
        loop {
            if let Err(end) = answer.piece().await {
                return answer.status == 200 && end == End::Clean;
            }
        }
    };
    tokio::time::timeout(PATIENCE, exchange).await.unwrap_or(false)
}

/// A pair whose decode takes [`SLOTS`] requests at once, each for about 320 ms.
pub async fn small_decode() -> Fleet {
    Fleet::start_with(1, 1, |config| {
        let slots = if config.role == Role::Decode { SLOTS } else { config.max_running_requests };
        Config {
            max_running_requests: slots,
            inter_token: Duration::from_millis(20),
            ..config.instant()
        }
    })
    .await
}

/// Sends [`CROWD`] requests, [`AT_ONCE`] at a time, each of 17 tokens.
pub async fn crowd(client: Client) -> Served {
    let permits = Arc::new(Semaphore::new(AT_ONCE));
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..CROWD {
        let permits = Arc::clone(&permits);
        tasks.spawn(async move {
            let _permit = permits.acquire().await;
            is_served(client, &request(2, 17)).await
        });
    }
    let mut served = Served::default();
    while let Some(done) = tasks.join_next().await {
        served.add(done.unwrap_or(false));
    }
    Served { took: began.elapsed(), ..served }
}

/// A pair whose prefill computes 163,840 tokens a second, one prompt at a time.
pub async fn slow_prefill() -> Fleet {
    Fleet::start_with(1, 1, |config| {
        let max_total_tokens = 4 * LONG_REQUESTS * LONG_PROMPT;
        let instant = Config { max_total_tokens, context_length: 1 << 20, ..config.instant() };
        let is_prefill = instant.role == Role::Prefill;
        let prefill_tokens_per_second = if is_prefill { PREFILL_SPEED } else { 0 };
        Config { prefill_tokens_per_second, ..instant }
    })
    .await
}

/// Sends ten requests with long prompts, cancels them before their first token, and sends a short one.
/// Returns how long the short one took, and `None` if it failed.
pub async fn behind_cancelled(client: Client, fleet: &Fleet) -> Option<Duration> {
    let arrived = fleet.prefill[0].legs().len() + LONG_REQUESTS;
    let long = Arc::new(request(LONG_PROMPT, 4));
    let mut tasks = JoinSet::new();
    for _ in 0..LONG_REQUESTS {
        let long = Arc::clone(&long);
        tasks.spawn(async move { is_served(client, &long).await });
    }
    fleet.prefill[0].legs_arrived(arrived).await;
    eventually("the first one is computed", PATIENCE, async || {
        (fleet.prefill[0].sim.occupancy().running > 0).then_some(())
    })
    .await;
    tasks.abort_all();
    let began = Instant::now();
    is_served(client, &request(2, 4)).await.then(|| began.elapsed())
}

/// Twelve pairs whose requests take about 300 ms.
pub async fn twelve_pairs() -> Fleet {
    Fleet::start_with(12, 12, |config| Config {
        inter_token: Duration::from_millis(20),
        ..config.instant()
    })
    .await
}

/// Keeps 48 requests running for three seconds, and kills a decode after one.
pub async fn death(client: Client, fleet: &Fleet) -> Served {
    let ended = Arc::new(AtomicBool::new(false));
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..UNDER_LOAD {
        let ended = Arc::clone(&ended);
        tasks.spawn(async move {
            let mut served = Served::default();
            while !ended.load(Ordering::Relaxed) {
                served.add(is_served(client, &request(2, 16)).await);
            }
            served
        });
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    fleet.decode[0].sim.kill().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    ended.store(true, Ordering::Relaxed);
    let mut all = Served::default();
    while let Some(done) = tasks.join_next().await {
        let one = done.unwrap_or_default();
        (all.served, all.failed) = (all.served + one.served, all.failed + one.failed);
    }
    Served { took: began.elapsed(), ..all }
}
