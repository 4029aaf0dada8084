//! A soak: many requests of all kinds, a part of which their clients leave at random times. Fails if memory
//! grows, or if a lease, a descriptor or a request at an engine is left.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use router_tests::{Client, Fleet, Gateway, eventually};
use serde_json::{Value, json};
use tokio::task::JoinSet;

const CHAT: &str = "/v1/chat/completions";
/// Maximum growth of the resident memory between a tenth of the requests and all of them.
const MAX_GROWTH: f64 = 1.25;
/// Idle connections and clocks that come and go.
const SPARE_FILES: usize = 16;
/// The engines' own timeout after a disconnect, several times.
const IDLE: Duration = Duration::from_secs(30);
/// Maximum time after which a client leaves.
const MAX_STAY: Duration = Duration::from_millis(20);

#[derive(Debug, Default)]
struct Counts {
    begun: AtomicUsize,
    served: AtomicUsize,
    left: AtomicUsize,
    failed: AtomicUsize,
}

/// Runs the soak and prints what it has used.
///
/// # Panics
/// Something is left, or memory grows.
pub(super) async fn run(requests: usize, clients: usize) {
    let fleet = Fleet::start_with(2, 2, |config| sglang_sim::Config {
        record_limit: 16,
        ..config.instant()
    })
    .await;
    let gateway = fleet.gateway_with(&["--log", "warn"]).await;
    let counts = Arc::new(Counts::default());
    println!("| requests | served | left by clients | failed | resident MiB | descriptors |");
    println!("|---|---|---|---|---|---|");
    // The first connections and buffers are not a leak.
    part(gateway.client, &counts, requests / 100, clients).await;
    until_idle(&fleet, &gateway).await;
    let files = gateway.open_files();
    let mut resident = Vec::new();
    for share in [10, 50, 100] {
        part(gateway.client, &counts, requests * share / 100, clients).await;
        until_idle(&fleet, &gateway).await;
        resident.push(gateway.resident_bytes());
        row(&gateway, &counts);
    }
    let growth = resident[2] as f64 / resident[0] as f64;
    assert!(growth <= MAX_GROWTH, "memory has grown to {growth:.2} of what it was");
    eventually("descriptors are closed", IDLE, async || {
        (gateway.open_files() <= files + SPARE_FILES).then_some(())
    })
    .await;
    let failed = counts.failed.load(Ordering::Relaxed);
    assert_eq!(failed, 0, "requests failed whose clients had stayed");
    println!("\n{:?} of CPU", gateway.cpu_time());
}

fn row(gateway: &Gateway, counts: &Counts) {
    let count = |count: &AtomicUsize| count.load(Ordering::Relaxed);
    println!(
        "| {} | {} | {} | {} | {} | {} |",
        count(&counts.begun),
        count(&counts.served),
        count(&counts.left),
        count(&counts.failed),
        gateway.resident_bytes() >> 20,
        gateway.open_files(),
    );
}

/// Sends requests until `total` have begun.
async fn part(client: Client, counts: &Arc<Counts>, total: usize, clients: usize) {
    let mut tasks = JoinSet::new();
    for _ in 0..clients {
        let counts = Arc::clone(counts);
        tasks.spawn(async move {
            while counts.begun.fetch_add(1, Ordering::Relaxed) < total {
                one(client, &counts).await;
            }
            counts.begun.fetch_sub(1, Ordering::Relaxed);
        });
    }
    while tasks.join_next().await.is_some() {}
}

/// Sends one request, of whose clients every third leaves at a random time.
async fn one(client: Client, counts: &Counts) {
    let chance: u64 = rand::random();
    let body = body(chance);
    let stay =
        chance.is_multiple_of(3).then(|| MAX_STAY.mul_f64((chance >> 16) as f64 % 1000.0 / 1000.0));
    let exchange = async {
        let sent = client.try_send(client.json_request(CHAT, body.to_string())).await;
        let Ok(mut answer) = sent else { return false };
        let mut has_error = false;
        while let Ok(piece) = answer.piece().await {
            has_error |= piece.windows(9).any(|part| part == b"\"error\":{");
        }
        answer.status == 200 && !has_error
    };
    let limit = stay.unwrap_or(Duration::from_secs(60));
    let count = match tokio::time::timeout(limit, exchange).await {
        Ok(true) => &counts.served,
        Err(_) if stay.is_some() => &counts.left,
        _ => &counts.failed,
    };
    count.fetch_add(1, Ordering::Relaxed);
}

fn body(chance: u64) -> Value {
    let words = 1 + (chance >> 32) % 200;
    let mut body = json!({
        "model": "/models/Qwen3-32B",
        "messages": [{"role": "user", "content": "word ".repeat(words as usize)}],
        "max_tokens": 1 + (chance >> 40) % 32,
        "stream": (chance >> 8).is_multiple_of(2),
    });
    if (chance >> 12).is_multiple_of(16) {
        body["n"] = 2.into();
    }
    body
}

/// Waits until the gateway counts no request at any worker, and no engine has one.
async fn until_idle(fleet: &Fleet, gateway: &Gateway) {
    let began = Instant::now();
    eventually("no lease is left", IDLE, async || {
        let page = gateway.fleet().await;
        let members = page["pools"][0]["members"].as_array()?;
        let requests = |member: &Value| member["worker"]["usage"]["requests"].as_u64();
        let is_idle = members.iter().all(|member| requests(member) == Some(0));
        (is_idle && fleet.engines().all(|engine| engine.held() == 0)).then_some(())
    })
    .await;
    if began.elapsed() > Duration::from_secs(5) {
        println!("idle after {:?}", began.elapsed());
    }
}
