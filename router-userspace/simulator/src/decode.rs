//! [`DecodeModel`]: a modelled decode engine with a KV cache and a batch that steps together.

use std::collections::VecDeque;

use crate::engine_model::EngineModel;

/// A response in progress.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DecodeStream {
    pub(crate) request: usize,
    /// KV tokens that a step reads for this stream.
    pub(crate) context: u64,
    pub(crate) left: u32,
    made: u64,
    kv_capacity: u64,
}

/// A request that waits for KV capacity.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WaitingRequest {
    pub(crate) request: usize,
    pub(crate) input: u32,
}

#[derive(Debug, Default)]
pub(crate) struct DecodeModel {
    pub(crate) queue: VecDeque<WaitingRequest>,
    /// KV tokens that are reserved.
    pub(crate) used: u64,
    /// Admitted requests whose KV cache has not arrived.
    pub(crate) coming: usize,
    joining: Vec<DecodeStream>,
    pub(crate) running: Vec<DecodeStream>,
    pub(crate) stepping: bool,
    /// Duration of the last step.
    pub(crate) step_ms: f64,
    pub(crate) busy_ms: f64,
    pub(crate) slowness: f64,
}

/// The result of a step.
#[derive(Debug, Default)]
pub(crate) struct StepResult {
    /// Requests that produced their first token.
    pub(crate) first: Vec<usize>,
    pub(crate) finished: Vec<usize>,
    /// End of the step that starts now.
    pub(crate) ends_ms: Option<f64>,
}

impl DecodeModel {
    pub(crate) fn new() -> DecodeModel {
        DecodeModel { slowness: 1.0, ..DecodeModel::default() }
    }

    /// Reserves capacity for waiting requests in their order. An empty engine admits any request.
    pub(crate) fn admit(&mut self, engine: &EngineModel) -> Vec<usize> {
        let mut admitted = Vec::new();
        while let Some(next) = self.queue.front() {
            let kv_capacity = u64::from(next.input) + engine.reserved_tokens;
            let full = self.used > 0 && self.used + kv_capacity > engine.kv_tokens;
            if full || self.coming + self.joining.len() + self.running.len() >= engine.max_running {
                break;
            }
            self.used += kv_capacity;
            self.coming += 1;
            admitted.push(next.request);
            self.queue.pop_front();
        }
        admitted
    }

    /// Records that the KV cache of an admitted request has arrived.
    pub(crate) fn arrived(
        &mut self,
        engine: &EngineModel,
        request: usize,
        input: u32,
        output: u32,
    ) {
        self.coming -= 1;
        let kv_capacity = u64::from(input) + engine.reserved_tokens;
        let context = u64::from(input) + 1;
        self.joining.push(DecodeStream {
            request,
            context,
            left: output - 1,
            made: 1,
            kv_capacity,
        });
    }

    /// Ends the running step, adds new streams to the batch, and starts the next step.
    pub(crate) fn step(&mut self, engine: &EngineModel, now: f64) -> StepResult {
        let mut stepped = StepResult::default();
        if self.stepping {
            for stream in &mut self.running {
                stream.left -= 1;
                stream.context += 1;
                stream.made += 1;
                if stream.made > engine.reserved_tokens {
                    stream.kv_capacity += 1;
                    self.used += 1;
                }
            }
        }
        stepped.first.extend(self.joining.iter().map(|stream| stream.request));
        self.running.append(&mut self.joining);
        let used = &mut self.used;
        self.running.retain(|stream| {
            if stream.left == 0 {
                *used -= stream.kv_capacity;
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

    /// Returns the KV tokens that a step reads.
    pub(crate) fn context(&self) -> f64 {
        self.running.iter().map(|stream| stream.context).sum::<u64>() as f64
    }

    /// Removes a request whose KV cache will not arrive.
    pub(crate) fn abandon(&mut self, engine: &EngineModel, request: usize, input: u32) {
        let waiting = self.queue.len();
        self.queue.retain(|other| other.request != request);
        if self.queue.len() == waiting {
            self.coming -= 1;
            self.used -= u64::from(input) + engine.reserved_tokens;
        }
    }
}
