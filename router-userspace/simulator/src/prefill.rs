//! [`Prefill`]: one modelled prefill engine: a queue, chunks, a prefix cache.

use std::collections::VecDeque;

use crate::cache::Cache;
use crate::engine::Engine;
use crate::trace::{Arrival, BLOCK_TOKENS};

/// A prompt that is not computed yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Job {
    pub(crate) request: usize,
    /// Decode has kept room for it; until then it cannot begin.
    pub(crate) admitted: bool,
    /// Known when it begins: what the cache held.
    pub(crate) cached: Option<u32>,
    /// Tokens computed or cached.
    pub(crate) done: u32,
    pub(crate) input: u32,
}

/// A piece of a prompt that an iteration computed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    pub(crate) request: usize,
    /// Tokens whose KV cache can be sent now, cached ones included.
    pub(crate) tokens: u32,
    pub(crate) cached: u32,
    pub(crate) last: bool,
}

#[derive(Debug)]
pub(crate) struct Prefill {
    pub(crate) queue: VecDeque<Job>,
    pub(crate) cache: Cache,
    /// The iteration under way, and when it ends.
    pieces: Vec<Piece>,
    pub(crate) ends_ms: Option<f64>,
    pub(crate) busy_ms: f64,
    pub(crate) slowness: f64,
}

impl Prefill {
    pub(crate) fn new(engine: &Engine) -> Prefill {
        Prefill {
            queue: VecDeque::new(),
            cache: Cache::new((engine.prefix_cache_tokens / BLOCK_TOKENS) as usize),
            pieces: Vec::new(),
            ends_ms: None,
            busy_ms: 0.0,
            slowness: 1.0,
        }
    }

    pub(crate) fn push(&mut self, request: usize, input: u32) {
        self.queue.push_back(Job { request, admitted: false, cached: None, done: 0, input });
    }

    pub(crate) fn admit(&mut self, request: usize) {
        if let Some(job) = self.queue.iter_mut().find(|job| job.request == request) {
            job.admitted = true;
        }
    }

    /// Begins an iteration where there is anything to compute; says when it ends.
    pub(crate) fn begin(&mut self, engine: &Engine, arrivals: &[Arrival], now: f64) -> Option<f64> {
        if self.ends_ms.is_some() {
            return None;
        }
        let mut budget = engine.chunk_tokens;
        let mut takes_ms = 0.0;
        for job in self.queue.iter_mut().filter(|job| job.admitted) {
            if budget == 0 {
                break;
            }
            let (mut sent, first) = (0, job.cached.is_none());
            if first {
                let held = self.cache.matched(&arrivals[job.request].blocks) as u32;
                // The last token is always computed: its logits are the first token.
                let cached = (held * BLOCK_TOKENS).min(job.input - 1);
                (job.cached, job.done, sent) = (Some(cached), cached, cached);
            }
            let tokens = (job.input - job.done).min(budget);
            takes_ms += engine.prefill_ms(f64::from(tokens), f64::from(job.done));
            job.done += tokens;
            budget -= tokens;
            self.pieces.push(Piece {
                request: job.request,
                tokens: sent + tokens,
                cached: sent,
                last: job.done == job.input,
            });
        }
        if self.pieces.is_empty() {
            return None;
        }
        let takes_ms = takes_ms.max(engine.prefill_floor_ms) * self.slowness;
        self.busy_ms += takes_ms;
        self.ends_ms = Some(now + takes_ms);
        self.ends_ms
    }

    /// Ends the iteration: what it computed. Whole prompts leave the queue for the cache.
    pub(crate) fn end(&mut self, arrivals: &[Arrival]) -> Vec<Piece> {
        self.ends_ms = None;
        let pieces = std::mem::take(&mut self.pieces);
        for piece in pieces.iter().filter(|piece| piece.last) {
            self.cache.insert(&arrivals[piece.request].blocks);
            self.queue.retain(|job| job.request != piece.request);
        }
        pieces
    }

    /// Takes back everything that it has: it died.
    pub(crate) fn die(&mut self) -> Vec<usize> {
        self.ends_ms = None;
        self.pieces.clear();
        self.cache = Cache::default();
        self.queue.drain(..).map(|job| job.request).collect()
    }

    /// Tokens that wait or are computed, as an engine reports them.
    pub(crate) fn tokens(&self) -> u64 {
        self.queue.iter().map(|job| u64::from(job.input - job.done)).sum()
    }
}
