//! What a choice costs at 10, 100 and 1,000 workers of each leg, and what the prefix index costs
//! for a prompt of 128k tokens.
//!
//! Prints, for each: microseconds and allocations. Both are of the operation alone; how a gateway
//! gathers its candidates is not counted.
#![expect(unsafe_code, reason = "counting allocations takes a global allocator")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use router_core::fleet::{Links, Load, Usage};
use router_core::pair::Pair;
use router_core::schedule::prefix::{Capacity, Chain, PrefixIndex};
use router_core::schedule::{Ask, Assumptions, Candidate, Draw, Policy, Question, choose};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system allocator unchanged; counting touches no memory of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are the system allocator's own.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above; the block came from the system allocator.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static GLOBAL: Counting = Counting;

/// Bytes of a prompt of 128k tokens.
const PROMPT: usize = 128 * 1024 * 4;

fn main() {
    println!("{:<44} {:>9} {:>7}", "operation", "us/op", "allocs");
    for workers in [10, 100, 1000] {
        for policy in [Policy::Predicted, Policy::LeastLoad, Policy::CacheAware] {
            choices(policy, workers);
        }
    }
    prompts();
}

fn measure(name: &str, rounds: u32, mut operation: impl FnMut(u64)) {
    (0..rounds / 10).for_each(|round| operation(u64::from(round)));
    let allocated = ALLOCATIONS.load(Ordering::Relaxed);
    // The best of several: other programs only ever make it slower.
    let best = (0..9)
        .map(|_| {
            let started = Instant::now();
            (0..rounds).for_each(|round| operation(u64::from(round)));
            started.elapsed() / rounds
        })
        .min();
    let allocations = (ALLOCATIONS.load(Ordering::Relaxed) - allocated) as f64;
    println!(
        "{name:<44} {:>9.3} {:>7.2}",
        best.unwrap_or_default().as_nanos() as f64 / 1000.0,
        allocations / f64::from(rounds * 9),
    );
}

fn candidates(count: usize, salt: u64) -> Vec<Candidate> {
    let candidate = |id: usize| {
        let noise = (id as u64 + salt).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        Candidate {
            id,
            worker: noise * 7919 + salt + id as u64,
            usage: Usage {
                requests: noise % 30,
                prompt_bytes: noise % 900_000,
                kv_tokens: noise,
                ..Usage::default()
            },
            rates: Assumptions::USUAL.rates,
            load: (!id.is_multiple_of(50)).then_some(Load {
                age_ms: 12.0,
                others_requests: (noise % 9) as f32,
                others_waiting_bytes: (noise % 100_000) as f32,
                tx_free_bytes_per_ms: 12.5e6,
                rx_free_bytes_per_ms: 12.5e6,
                ..Load::default()
            }),
            ..Candidate::default()
        }
    };
    (0..count).map(candidate).collect()
}

fn choices(policy: Policy, workers: usize) {
    let (prefill, decode) = (candidates(workers, 1), candidates(workers, 1 << 40));
    let mut links = Links::new(4096);
    let mut index = PrefixIndex::new(Capacity { blocks: 1 << 16, workers, cache_bytes: 1 << 30 });
    let blocks: Vec<u64> = (1..=64).collect();
    for pair in prefill.iter().zip(&decode).take(500) {
        links.transferred(pair.0.worker, pair.1.worker, 1e6, 1.0, 0);
    }
    prefill.iter().take(3).for_each(|candidate| index.sent(candidate.worker, &blocks));
    let held = index.lookup(&blocks);
    let ask = Ask { prompt_bytes: 150_000, kv_tokens: 40_000, held, prefix_key: 77 };
    let rounds = 2_000_000 / (workers as u32 + 100);
    measure(&format!("choose, {}, {workers} x {workers}", policy.as_str()), rounds, |round| {
        let chance = round.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let question = Question {
            ask,
            candidates: Pair { prefill: &prefill, decode: &decode },
            links: Some(&links),
            now_ms: round,
            ..Question::of(&prefill, &decode, Draw { chance, turn: round })
        };
        black_box(choose(policy, black_box(&question)));
    });
}

fn prompts() {
    let prompt: Vec<u8> = (0..PROMPT).map(|i| ((i * i) >> 7) as u8).collect();
    let mut blocks = Vec::with_capacity(PROMPT);
    measure("prefix: hash 128k tokens", 300, |_| {
        blocks.clear();
        Chain::new(0).write(black_box(&prompt), &mut blocks);
    });
    let size = Capacity { blocks: 1 << 18, workers: 1000, cache_bytes: 1 << 40 };
    let mut index = PrefixIndex::new(size);
    for worker in 0..1000u64 {
        let other: Vec<u64> = (0..200).map(|i: u64| (worker * 1000 + i) << 13 | 0x1fff).collect();
        index.sent(worker + 1, &other);
    }
    for worker in [5, 50, 500] {
        index.sent(worker, &blocks);
    }
    measure("prefix: lookup 128k tokens, held by 3", 3000, |_| {
        black_box(index.lookup(black_box(&blocks)));
    });
    measure("prefix: lookup 128k tokens, unknown", 3000, |round| {
        black_box(index.lookup(black_box(&[round + 1, 2, 3])));
    });
    measure("prefix: remember 128k tokens", 3000, |_| index.sent(5, black_box(&blocks)));
}
