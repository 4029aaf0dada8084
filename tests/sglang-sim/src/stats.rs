//! The counters and histograms behind `/metrics`.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;

use crate::leg::Finish;

/// Bucket bounds of the real engine.
pub(crate) const TTFT: &[f64] = &[
    0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 2.0, 4.0, 6.0, 8.0, 10.0, 20.0, 40.0, 60.0, 80.0, 100.0, 200.0,
    400.0,
];
pub(crate) const ITL: &[f64] = &[
    0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.025, 0.03, 0.035, 0.04, 0.06, 0.08, 0.1, 0.2,
    0.4, 0.6, 0.8, 1.0, 2.0, 4.0, 6.0, 8.0,
];
pub(crate) const MILLISECONDS: &[f64] =
    &[1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0];
pub(crate) const SPEED: &[f64] = &[0.1, 0.5, 1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 200.0, 400.0];
pub(crate) const MEGABYTES: &[f64] = &[1.0, 5.0, 10.0, 50.0, 100.0, 500.0, 1000.0, 5000.0, 10000.0];

/// A histogram with fixed bounds.
#[derive(Debug)]
pub(crate) struct Histogram {
    pub(crate) bounds: &'static [f64],
    cells: Mutex<(Vec<u64>, u64, f64)>,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Histogram {
        Histogram { bounds, cells: Mutex::new((vec![0; bounds.len()], 0, 0.0)) }
    }

    fn observe(&self, value: f64) {
        let mut cells = self.cells.lock();
        if let Some(position) = self.bounds.iter().position(|bound| value <= *bound) {
            cells.0[position] += 1;
        }
        cells.1 += 1;
        cells.2 += value;
    }

    /// Counts by bucket (not cumulative), the total count and the sum.
    pub(crate) fn read(&self) -> (Vec<u64>, u64, f64) {
        self.cells.lock().clone()
    }
}

/// Every counter and histogram of one engine process.
#[derive(Debug)]
pub(crate) struct Stats {
    pub(crate) prompt_tokens: AtomicU64,
    pub(crate) cached_tokens: AtomicU64,
    pub(crate) generation_tokens: AtomicU64,
    pub(crate) requests: AtomicU64,
    pub(crate) aborted: AtomicU64,
    pub(crate) bootstrap_failures: AtomicU64,
    pub(crate) transfer_failures: AtomicU64,
    pub(crate) received_bytes: AtomicU64,
    /// Tokens that legs have emitted, for `/health`.
    pub(crate) tokens_emitted: AtomicU64,
    pub(crate) ttft: Histogram,
    pub(crate) itl: Histogram,
    pub(crate) e2e: Histogram,
    pub(crate) transfer_ms: Histogram,
    pub(crate) transfer_gb_s: Histogram,
    pub(crate) transfer_mb: Histogram,
    pub(crate) bootstrap_ms: Histogram,
    pub(crate) alloc_ms: Histogram,
}

impl Default for Stats {
    fn default() -> Self {
        Stats {
            prompt_tokens: AtomicU64::default(),
            cached_tokens: AtomicU64::default(),
            generation_tokens: AtomicU64::default(),
            requests: AtomicU64::default(),
            aborted: AtomicU64::default(),
            bootstrap_failures: AtomicU64::default(),
            transfer_failures: AtomicU64::default(),
            received_bytes: AtomicU64::default(),
            tokens_emitted: AtomicU64::default(),
            ttft: Histogram::new(TTFT),
            itl: Histogram::new(ITL),
            e2e: Histogram::new(TTFT),
            transfer_ms: Histogram::new(MILLISECONDS),
            transfer_gb_s: Histogram::new(SPEED),
            transfer_mb: Histogram::new(MEGABYTES),
            bootstrap_ms: Histogram::new(MILLISECONDS),
            alloc_ms: Histogram::new(MILLISECONDS),
        }
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

impl Stats {
    pub(crate) fn first_token(&self, time: Duration) {
        self.ttft.observe(time.as_secs_f64());
    }

    pub(crate) fn inter_token(&self, time: Duration) {
        self.itl.observe(time.as_secs_f64());
    }

    pub(crate) fn token_emitted(&self) {
        self.tokens_emitted.fetch_add(1, Relaxed);
    }

    pub(crate) fn cached(&self, tokens: usize) {
        self.cached_tokens.fetch_add(tokens as u64, Relaxed);
    }

    pub(crate) fn done(&self, prompt: usize, generated: usize, time: Duration) {
        self.prompt_tokens.fetch_add(prompt as u64, Relaxed);
        self.generation_tokens.fetch_add(generated as u64, Relaxed);
        self.requests.fetch_add(1, Relaxed);
        self.e2e.observe(time.as_secs_f64());
    }

    pub(crate) fn failed(&self, finish: &Finish) {
        if matches!(finish, Finish::Abort { status: None, .. }) {
            self.aborted.fetch_add(1, Relaxed);
        }
    }

    pub(crate) fn bootstrapped(&self, time: Duration) {
        self.bootstrap_ms.observe(milliseconds(time));
    }

    pub(crate) fn allocated(&self, time: Duration) {
        self.alloc_ms.observe(milliseconds(time));
    }

    pub(crate) fn bootstrap_failed(&self) {
        self.bootstrap_failures.fetch_add(1, Relaxed);
    }

    pub(crate) fn transfer_failed(&self) {
        self.transfer_failures.fetch_add(1, Relaxed);
    }

    pub(crate) fn received(&self, bytes: u64) {
        self.received_bytes.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn transferred(&self, bytes: u64, time: Duration) {
        self.transfer_ms.observe(milliseconds(time));
        self.transfer_mb.observe(bytes as f64 / f64::from(1 << 20));
        self.transfer_gb_s.observe(bytes as f64 / 1e9 / time.as_secs_f64().max(1e-9));
    }
}
