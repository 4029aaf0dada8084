//! The oracle: a choice from the true state of all engines and the true lengths.
//!
//! It minimises the true milliseconds of the request's first token and response, and of what the
//! response costs the decode's other streams. The policy `predicted` leaves those out and counts a
//! prompt twice instead, for the prompts behind it.

use crate::decode::DecodeModel;
use crate::engine_model::EngineModel;
use crate::network::Network;
use crate::prefill::PrefillModel;
use crate::trace::{BLOCK_TOKENS, TraceRequest};
use router_core::pair::Pair;

/// The true state of the fleet.
#[derive(Clone, Copy)]
pub(crate) struct TrueState<'a> {
    pub(crate) engine: &'a EngineModel,
    pub(crate) arrivals: &'a [TraceRequest],
    pub(crate) prefills: &'a [PrefillModel],
    pub(crate) decodes: &'a [DecodeModel],
    pub(crate) network: &'a Network,
    pub(crate) dead: &'a [bool],
    /// The decode of each queued request.
    pub(crate) decode_of: &'a [usize],
    pub(crate) now: f64,
}

impl TrueState<'_> {
    /// Returns the best pair of live workers as positions of prefill and decode, each from 0.
    pub(crate) fn choose(&self, arrival: &TraceRequest) -> Option<Pair<usize>> {
        let alive = |worker: &usize| !self.dead[*worker];
        let prefills: Vec<(usize, f64, f64)> = (0..self.prefills.len())
            .filter(alive)
            .map(|at| {
                let (wait, work) = self.prefill_ms(at, arrival);
                (at, wait, work)
            })
            .collect();
        let first = self.prefills.len();
        let decodes: Vec<(usize, f64, f64)> = (0..self.decodes.len())
            .filter(|at| alive(&(first + at)))
            .map(|at| {
                let (admission, cost) = self.decode_ms(at, arrival);
                (at, admission, cost)
            })
            .collect();
        let mut best = (f64::INFINITY, None);
        for &(prefill, wait, work) in &prefills {
            for &(decode, admission, cost) in &decodes {
                let transfer = self.transfer_ms(prefill, decode, arrival, work);
                let total = wait.max(admission) + work + transfer + cost;
                if total < best.0 {
                    best = (total, Some(Pair { prefill, decode }));
                }
            }
        }
        best.1
    }

    /// Returns the time until the prompt starts and the time to compute it.
    fn prefill_ms(&self, at: usize, arrival: &TraceRequest) -> (f64, f64) {
        let prefill = &self.prefills[at];
        let mut wait = prefill.ends_ms.map_or(0.0, |ends| ends - self.now);
        for prompt in &prefill.queue {
            let cached = match prompt.cached {
                Some(_) => 0,
                None => self.cached(prefill, &self.arrivals[prompt.request]),
            };
            let done = prompt.done.max(cached);
            let left = f64::from(prompt.input - done);
            let fixed_ms = if prompt.cached.is_none() { self.engine.prefill_fixed_ms } else { 0.0 };
            let work = fixed_ms + self.engine.prefill_ms(left, f64::from(done));
            wait += work * prefill.slowness;
        }
        // Prompts queued before it will be in the cache by then.
        let queued = prefill.queue.iter().map(|prompt| {
            let other = &self.arrivals[prompt.request].blocks;
            other.iter().zip(&arrival.blocks).take_while(|(a, b)| a == b).count() as u32
        });
        let cached = self.cached(prefill, arrival);
        let shared = queued.max().unwrap_or(0) * BLOCK_TOKENS;
        let cached = cached.max(shared.min(arrival.input_tokens - 1));
        let left = f64::from(arrival.input_tokens - cached);
        let work = self.engine.prefill_fixed_ms + self.engine.prefill_ms(left, f64::from(cached));
        let work = work * prefill.slowness;
        (wait, work.max(self.engine.prefill_floor_ms))
    }

    fn cached(&self, prefill: &PrefillModel, arrival: &TraceRequest) -> u32 {
        let matched = prefill.cache.matched(&arrival.blocks) as u32 * BLOCK_TOKENS;
        matched.min(arrival.input_tokens - 1)
    }

    /// Returns the time until there is capacity, and the cost of the response to itself and others.
    fn decode_ms(&self, at: usize, arrival: &TraceRequest) -> (f64, f64) {
        let (engine, decode) = (self.engine, &self.decodes[at]);
        let coming: u64 = self.upcoming(at).map(|(input, _)| input).sum();
        let streams = decode.running.len() + self.upcoming(at).count();
        let context = decode.context() + coming as f64;
        let more = f64::from(arrival.input_tokens + arrival.output_tokens / 2);
        let now_ms = engine.step_ms(streams, context) * decode.slowness;
        let then_ms = engine.step_ms(streams + 1, context + more) * decode.slowness;
        let outputs = f64::from(arrival.output_tokens);
        // Other streams are delayed until they end.
        let others: f64 = decode.running.iter().map(|s| outputs.min(f64::from(s.left))).sum();
        let upcoming: f64 = self.upcoming(at).map(|(_, output)| outputs.min(output as f64)).sum();
        let batch_cost = (then_ms - now_ms) * (others + upcoming);
        (self.admission_ms(decode, arrival, now_ms), then_ms * outputs + batch_cost)
    }

    /// Input and output tokens of requests that were sent to a decode and do not run there yet.
    fn upcoming(&self, at: usize) -> impl Iterator<Item = (u64, u64)> + '_ {
        let queues = self.prefills.iter().flat_map(|prefill| &prefill.queue);
        queues.filter(move |prompt| self.decode_of[prompt.request] == at).map(|prompt| {
            (u64::from(prompt.input), u64::from(self.arrivals[prompt.request].output_tokens))
        })
    }

    fn admission_ms(&self, decode: &DecodeModel, arrival: &TraceRequest, step_ms: f64) -> f64 {
        let kv_capacity = |input: u32| u64::from(input) + self.engine.reserved_tokens;
        let queued: u64 = decode.queue.iter().map(|waiting| kv_capacity(waiting.input)).sum();
        let wanted = decode.used + queued + kv_capacity(arrival.input_tokens);
        let mut missing = wanted.saturating_sub(self.engine.kv_tokens);
        if missing == 0 || decode.used == 0 {
            return 0.0;
        }
        let mut streams: Vec<(u32, u64)> =
            decode.running.iter().map(|stream| (stream.left, stream.context)).collect();
        streams.sort_unstable();
        for (left, context) in streams {
            missing = missing.saturating_sub(context);
            if missing == 0 {
                return f64::from(left) * step_ms;
            }
        }
        // All running streams must end first, and then some of the queued ones.
        arrival.output_tokens.max(300) as f64 * step_ms * 2.0
    }

    fn transfer_ms(&self, prefill: usize, decode: usize, arrival: &TraceRequest, work: f64) -> f64 {
        let free = |free: f64, used: f64| (free - used).max(free / 3.0);
        let (tx, rx) = (self.network.tx_free[prefill], self.network.rx_free[decode]);
        let path = self.network.slow_pairs.iter().find(|p| (p.0, p.1) == (prefill, decode));
        let rate = free(tx, self.network.tx_rate(prefill))
            .min(free(rx, self.network.rx_rate(decode)))
            .min(path.map_or(f64::INFINITY, |path| path.2));
        let tokens = f64::from(arrival.input_tokens);
        let per_token = self.engine.kv_bytes_per_token / rate;
        let last = tokens.min(f64::from(self.engine.chunk_tokens)) * per_token;
        last.max(tokens * per_token - work)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fixed_time_of_each_prompt_is_part_of_wait_and_work() {
        let blocks = Vec::new();
        let arrival = TraceRequest { at_ms: 0.0, input_tokens: 2048, output_tokens: 1, blocks };
        let arrivals = [arrival.clone(), arrival.clone()];
        let of = |prefill_fixed_ms| {
            let engine = &EngineModel { prefill_fixed_ms, ..EngineModel::QWEN3_32B };
            let mut prefill = PrefillModel::new(engine);
            prefill.slowness = 2.0;
            prefill.push(0, 2048);
            prefill.push(1, 2048);
            let state = TrueState {
                engine,
                arrivals: &arrivals,
                prefills: &[prefill],
                decodes: &[],
                network: &Network::new(1, 0, engine.nic_bytes_per_ms),
                dead: &[false],
                decode_of: &[0, 0],
                now: 0.0,
            };
            state.prefill_ms(0, &arrival)
        };
        let ((wait, work), (more_wait, more_work)) = (of(0.0), of(50.0));
        assert!((more_wait - wait - 200.0).abs() < 1e-6, "two prompts: {wait}, {more_wait}");
        assert!((more_work - work - 100.0).abs() < 1e-6, "{work}, {more_work}");
    }
}
