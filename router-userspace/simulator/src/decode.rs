//! [`Decode`]: one modelled decode engine: room for KV cache, and a batch that steps together.

use std::collections::VecDeque;

use crate::engine::Engine;

/// An answer under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stream {
    pub(crate) request: usize,
    /// KV tokens that a step reads for it.
    pub(crate) context: u64,
    pub(crate) left: u32,
    made: u64,
    room: u64,
}

/// A request that waits for room.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waiting {
    pub(crate) request: usize,
    pub(crate) input: u32,
}

#[derive(Debug, Default)]
pub(crate) struct Decode {
    pub(crate) queue: VecDeque<Waiting>,
    /// Tokens of room given away.
    pub(crate) used: u64,
    /// Admitted, KV cache not here yet.
    pub(crate) coming: usize,
    joining: Vec<Stream>,
    pub(crate) running: Vec<Stream>,
    pub(crate) stepping: bool,
    /// The last step's time.
    pub(crate) step_ms: f64,
    pub(crate) busy_ms: f64,
    pub(crate) slowness: f64,
}

/// What a step brought.
#[derive(Debug, Default)]
pub(crate) struct Stepped {
    /// Requests whose first token is out.
    pub(crate) first: Vec<usize>,
    pub(crate) finished: Vec<usize>,
    /// When the step that begins now ends.
    pub(crate) ends_ms: Option<f64>,
}

impl Decode {
    pub(crate) fn new() -> Decode {
        Decode { slowness: 1.0, ..Decode::default() }
    }

    /// Gives room to those who wait, in their order. An empty engine takes anything.
    pub(crate) fn admit(&mut self, engine: &Engine) -> Vec<usize> {
        let mut admitted = Vec::new();
        while let Some(next) = self.queue.front() {
            let room = u64::from(next.input) + engine.reserved_tokens;
            let full = self.used > 0 && self.used + room > engine.kv_tokens;
            if full || self.coming + self.joining.len() + self.running.len() >= engine.max_running {
                break;
            }
            self.used += room;
            self.coming += 1;
            admitted.push(next.request);
            self.queue.pop_front();
        }
        admitted
    }

    /// The KV cache of an admitted request is here.
    pub(crate) fn arrived(&mut self, engine: &Engine, request: usize, input: u32, output: u32) {
        self.coming -= 1;
        let room = u64::from(input) + engine.reserved_tokens;
        let context = u64::from(input) + 1;
        self.joining.push(Stream { request, context, left: output - 1, made: 1, room });
    }

    /// Ends the step under way, if any, lets the new ones join, and begins the next.
    pub(crate) fn step(&mut self, engine: &Engine, now: f64) -> Stepped {
        let mut stepped = Stepped::default();
        if self.stepping {
            for stream in &mut self.running {
                stream.left -= 1;
                stream.context += 1;
                stream.made += 1;
                if stream.made > engine.reserved_tokens {
                    stream.room += 1;
                    self.used += 1;
                }
            }
        }
        stepped.first.extend(self.joining.iter().map(|stream| stream.request));
        self.running.append(&mut self.joining);
        let used = &mut self.used;
        self.running.retain(|stream| {
            if stream.left == 0 {
                *used -= stream.room;
                stepped.finished.push(stream.request);
            }
            stream.left > 0
        });
        self.stepping = !self.running.is_empty();
        if self.stepping {
            let step_ms = engine.step_ms(self.running.len(), self.context()) * self.slowness;
            self.step_ms = step_ms;
            self.busy_ms += step_ms;
            stepped.ends_ms = Some(now + step_ms);
        }
        stepped
    }

    /// KV tokens that a step reads.
    pub(crate) fn context(&self) -> f64 {
        self.running.iter().map(|stream| stream.context).sum::<u64>() as f64
    }

    /// Gives up on a request whose KV cache never comes.
    pub(crate) fn abandon(&mut self, engine: &Engine, request: usize, input: u32) {
        let waiting = self.queue.len();
        self.queue.retain(|other| other.request != request);
        if self.queue.len() == waiting {
            self.coming -= 1;
            self.used -= u64::from(input) + engine.reserved_tokens;
        }
    }
}
