//! [`PrefillModel`]: a modelled prefill engine with a queue, chunked prefill and a prefix cache.

use std::collections::VecDeque;

use crate::cache::PrefixCache;
use crate::engine_model::EngineModel;
use crate::trace::{BLOCK_TOKENS, TraceRequest};

/// A prompt that is not completely computed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueuedPrompt {
    pub(crate) request: usize,
    /// Whether decode has reserved capacity. Until then the prompt cannot start.
    pub(crate) admitted: bool,
    /// Tokens that the prefix cache held when the prompt started.
    pub(crate) cached: Option<u32>,
    /// Tokens that are computed or cached.
    pub(crate) done: u32,
    pub(crate) input: u32,
}

/// The part of a prompt that one iteration computed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ComputedChunk {
    pub(crate) request: usize,
    /// Tokens whose KV cache can be sent now, including cached ones.
    pub(crate) tokens: u32,
    pub(crate) cached: u32,
    pub(crate) last: bool,
}

#[derive(Debug)]
pub(crate) struct PrefillModel {
    pub(crate) queue: VecDeque<QueuedPrompt>,
    pub(crate) cache: PrefixCache,
    /// Chunks of the running iteration, which ends at `ends_ms`.
    chunks: Vec<ComputedChunk>,
    pub(crate) ends_ms: Option<f64>,
    pub(crate) busy_ms: f64,
    pub(crate) slowness: f64,
}

impl PrefillModel {
    pub(crate) fn new(engine: &EngineModel) -> PrefillModel {
        PrefillModel {
            queue: VecDeque::new(),
            cache: PrefixCache::new((engine.prefix_cache_tokens / BLOCK_TOKENS) as usize),
            chunks: Vec::new(),
            ends_ms: None,
            busy_ms: 0.0,
            slowness: 1.0,
        }
    }

    pub(crate) fn push(&mut self, request: usize, input: u32) {
        self.queue.push_back(QueuedPrompt {
            request,
            admitted: false,
            cached: None,
            done: 0,
            input,
        });
    }

    pub(crate) fn admit(&mut self, request: usize) {
        if let Some(prompt) = self.queue.iter_mut().find(|prompt| prompt.request == request) {
            prompt.admitted = true;
        }
    }

    /// Starts an iteration if there is work. Returns the time of its end.
    pub(crate) fn start(
        &mut self,
        engine: &EngineModel,
        arrivals: &[TraceRequest],
        now: f64,
    ) -> Option<f64> {
        if self.ends_ms.is_some() {
            return None;
        }
        let mut budget = engine.chunk_tokens;
        let mut takes_ms = 0.0;
        for prompt in self.queue.iter_mut().filter(|prompt| prompt.admitted) {
            if budget == 0 {
                break;
            }
            let (mut sent, first) = (0, prompt.cached.is_none());
            if first {
                let cached_blocks = self.cache.matched(&arrivals[prompt.request].blocks) as u32;
                // The last token is always computed: its logits are the first token.
                let cached = (cached_blocks * BLOCK_TOKENS).min(prompt.input - 1);
                (prompt.cached, prompt.done, sent) = (Some(cached), cached, cached);
            }
            let tokens = (prompt.input - prompt.done).min(budget);
            takes_ms += if first { engine.prefill_fixed_ms } else { 0.0 };
            takes_ms += engine.prefill_ms(f64::from(tokens), f64::from(prompt.done));
            prompt.done += tokens;
            budget -= tokens;
            self.chunks.push(ComputedChunk {
                request: prompt.request,
                tokens: sent + tokens,
                cached: sent,
                last: prompt.done == prompt.input,
            });
        }
        if self.chunks.is_empty() {
            return None;
        }
        let takes_ms = takes_ms.max(engine.prefill_floor_ms) * self.slowness;
        self.busy_ms += takes_ms;
        self.ends_ms = Some(now + takes_ms);
        self.ends_ms
    }

    /// Ends the iteration and returns its chunks. Completed prompts move from the queue to the cache.
    pub(crate) fn finish(&mut self, arrivals: &[TraceRequest]) -> Vec<ComputedChunk> {
        self.ends_ms = None;
        let chunks = std::mem::take(&mut self.chunks);
        for chunk in chunks.iter().filter(|chunk| chunk.last) {
            self.cache.insert(&arrivals[chunk.request].blocks);
            self.queue.retain(|prompt| prompt.request != chunk.request);
        }
        chunks
    }

    /// Removes and returns all prompts: the engine died.
    pub(crate) fn die(&mut self) -> Vec<usize> {
        self.ends_ms = None;
        self.chunks.clear();
        self.cache = PrefixCache::default();
        self.queue.drain(..).map(|prompt| prompt.request).collect()
    }

    /// Returns the tokens of queued and running prompts, as an engine reports them.
    pub(crate) fn tokens(&self) -> u64 {
        self.queue.iter().map(|prompt| u64::from(prompt.input - prompt.done)).sum()
    }
}
