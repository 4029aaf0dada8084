//! Reliability cases that users of routers have reported, at pd-router and at sglang-router, before the
//! same simulated engines; or a soak of pd-router alone.
//!
//! Needs `PD_ROUTER_BIN`, and `SGLANG_ROUTER_PYTHON` for the peer: run `cargo xtask bench reliability`, or
//! `cargo xtask bench reliability -- --requests 1000000`.

mod router;
mod soak;

use std::time::{Duration, Instant};

use clap::Parser;
use router_tests::reliability::{
    CROWD, SLOTS, Served, behind_cancelled, crowd, death, is_served, request, slow_prefill,
    small_decode, twelve_pairs,
};
use router_tests::{Client, Fleet};

use router::Router;

#[derive(Debug, Parser)]
struct Flags {
    /// Number of requests of a soak of pd-router, which runs instead of the cases.
    #[arg(long)]
    requests: Option<usize>,
    /// Number of clients of the soak.
    #[arg(long, default_value_t = 64)]
    clients: usize,
    /// Set by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    // `cargo test --benches` runs this too, without this flag.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let flags = Flags::parse();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    match flags.requests {
        Some(requests) => runtime.block_on(soak::run(requests.max(100), flags.clients.max(1))),
        None => runtime.block_on(cases()),
    }
}

async fn cases() {
    println!("| case | router | figure | aim |\n|---|---|---|---|");
    for router in Router::ALL {
        let fleet = slow_prefill().await;
        let running = router.start(&fleet).await;
        let added = added_time(running.client, &fleet).await;
        println!(
            "| short request behind ten cancelled long ones | {} | {added} | 100 ms added |",
            router.name()
        );
    }
    for router in Router::ALL {
        let fleet = small_decode().await;
        let running = router.start(&fleet).await;
        let served = four_at_a_time(running.client).await;
        println!(
            "| 64 requests, 32 at once, a decode of four | {} | {served} | 64, 1.10 |",
            router.name()
        );
    }
    for router in Router::ALL {
        let fleet = twelve_pairs().await;
        let running = router.start(&fleet).await;
        let Served { served, failed, .. } = death(running.client, &fleet).await;
        println!(
            "| a decode of 12 pairs dies | {} | {failed} failed, {served} served | 0 |",
            router.name()
        );
    }
}

/// The median of five short requests alone, and of three behind cancelled ones.
async fn added_time(client: Client, fleet: &Fleet) -> String {
    let mut alone = Vec::new();
    for _ in 0..5 {
        alone.push(timed(client, 4).await);
    }
    let mut behind = Vec::new();
    for _ in 0..3 {
        let Some(took) = behind_cancelled(client, fleet).await else { return "failed".into() };
        behind.push(took);
        // What an engine still computes of the cancelled ones is not to delay the next round.
        let until = Instant::now() + Duration::from_secs(20);
        while fleet.engines().any(|engine| engine.held() > 0) && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    let added = median(behind).saturating_sub(median(alone));
    format!("{} ms added", added.as_millis())
}

/// How many are served, and the time in units of what the engine needs at least.
async fn four_at_a_time(client: Client) -> String {
    let mut alone = Vec::new();
    for _ in 0..3 {
        alone.push(timed(client, 17).await);
    }
    let ideal = median(alone) * u32::try_from(CROWD / SLOTS).unwrap_or(u32::MAX);
    let Served { served, took, .. } = crowd(client).await;
    format!("{served} of {CROWD}, {:.2} of the engine's own time", took.div_duration_f64(ideal))
}

async fn timed(client: Client, tokens: usize) -> Duration {
    let began = Instant::now();
    assert!(is_served(client, &request(2, tokens)).await, "a request alone is not served");
    began.elapsed()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
