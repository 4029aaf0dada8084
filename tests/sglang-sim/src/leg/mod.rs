//! A leg: one sequence on one engine, from its start to its last token.

mod decode;
mod generate;
mod prefill;
mod spec;
mod unified;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::config::Role;
use crate::gauge::GaugeGuard;
use crate::kv::data::PrefillResult;
use crate::model;
use crate::process::Process;
use crate::rank::Rank;

pub(crate) use spec::{Finish, LegSpec, Output, Room, Token};

/// Tokens of a prompt that an engine computes at once, as many as real ones by default.
const CHUNK_TOKENS: usize = 8192;

/// A running leg and its context.
struct RunningLeg<'a> {
    process: &'a Arc<Process>,
    spec: &'a LegSpec,
    rank: Arc<Rank>,
    aborted: &'a CancellationToken,
    out: &'a mpsc::Sender<Output>,
    started: Instant,
}

/// Runs a sequence, sends its outputs to `out`, and returns how it ended.
pub(crate) async fn run(
    process: &Arc<Process>,
    spec: &LegSpec,
    aborted: &CancellationToken,
    out: &mpsc::Sender<Output>,
) -> Finish {
    let result = match rank_of(process, spec) {
        Ok(rank) => {
            let leg = RunningLeg { process, spec, rank, aborted, out, started: Instant::now() };
            process.wait_for_scheduler().await;
            match process.role() {
                Role::Prefill => leg.prefill().await,
                Role::Decode => leg.decode().await,
                Role::Unified => leg.unified().await,
            }
        }
        Err(failure) => Err(failure),
    };
    match result {
        Ok(finish) => finish,
        Err(failure) => {
            process.stats.failed(&failure);
            let output = Output { index: spec.index, token: None, finish: Some(failure.clone()) };
            // The client may be gone; the engine ignores that here.
            let _ = out.send(output).await;
            failure
        }
    }
}

fn aborted_in_queue() -> Finish {
    Finish::Abort { message: "Abort in waiting queue".into(), status: None }
}

fn rank_of(process: &Arc<Process>, spec: &LegSpec) -> Result<Arc<Rank>, Finish> {
    let size = process.ranks.len() as u64;
    let by_room = spec.number().map(|room| room % size);
    let rank = match (spec.routed_rank, by_room) {
        (Some(wanted), _) if wanted >= size => {
            let message = format!("routed_dp_rank={wanted} out of range [0, {size})");
            return Err(Finish::abort(400, message));
        }
        (Some(wanted), _) => wanted,
        (None, Some(rank)) if process.role() == Role::Prefill || process.is_0_4() => rank,
        _ => process.next_rank() as u64,
    };
    Ok(Arc::clone(&process.ranks[rank as usize]))
}

impl RunningLeg<'_> {
    fn missing_room(&self) -> Finish {
        // The message of 0.4 has this typo, and no status.
        let (word, status) =
            if self.process.is_0_4() { ("boostrap", None) } else { ("bootstrap", Some(400)) };
        let message = format!(
            "Invalid request: Disaggregated request received without {word} room id. \
             req.rid='{}'",
            self.spec.rid
        );
        Finish::Abort { message, status }
    }

    /// Whether the leg runs without a KV transfer.
    fn skips_transfer(&self) -> bool {
        self.spec.is_fake() || !self.process.config.rendezvous
    }

    fn scaled(&self, time: Duration) -> Duration {
        time.mul_f64(self.spec.slow_factor)
    }

    /// Waits for a running slot, unless the queue is full.
    async fn slot(&self) -> Result<(tokio::sync::OwnedSemaphorePermit, GaugeGuard), Finish> {
        let gauges = &self.rank.gauges;
        if self.process.config.max_queued_requests.is_some_and(|max| {
            self.rank.running.available_permits() == 0 && gauges.queued.now() >= max
        }) {
            return Err(Finish::abort(503, "The request queue is full."));
        }
        let queued = gauges.queued.enter();
        let _pending = gauges.pending_tokens.enter_with(self.spec.prompt.len());
        let permit = tokio::select! {
            permit = Arc::clone(&self.rank.running).acquire_owned() => permit,
            () = self.aborted.cancelled() => {
                let message =
                    if self.process.is_0_4() { "Abort before prefill" } else { "Abort in waiting queue" };
                return Err(Finish::Abort { message: message.into(), status: None });
            }
        };
        drop(queued);
        let permit = permit.expect("the running slots are never closed");
        Ok((permit, gauges.running.enter()))
    }

    /// Runs the forward pass over the prompt, chunk by chunk. An abort takes effect before the first chunk
    /// and between two.
    async fn forward(&self) -> Result<PrefillResult, Finish> {
        let _pass = tokio::select! {
            pass = self.rank.forward.lock() => pass,
            () = self.aborted.cancelled() => return Err(aborted_in_queue()),
        };
        self.process.wait_for_scheduler().await;
        let speed = self.process.config.prefill_tokens_per_second;
        let cached = self.rank.prefixes.lock().compute(&self.spec.prompt);
        self.process.stats.cached(cached);
        let mut left = if speed > 0 { self.spec.prompt.len() - cached } else { 0 };
        while left > 0 {
            let chunk = left.min(CHUNK_TOKENS);
            let time = Duration::from_secs_f64(chunk as f64 / speed as f64);
            tokio::time::sleep(self.scaled(time)).await;
            left -= chunk;
            if left > 0 && self.aborted.is_cancelled() {
                return Err(aborted_in_queue());
            }
        }
        Ok(self.prefill_result())
    }

    fn prefill_result(&self) -> PrefillResult {
        let prompt_hash = model::hash_prompt(&self.spec.prompt);
        PrefillResult { prompt_hash, first_token: model::token(prompt_hash, self.spec.sample, 0) }
    }

    async fn emit(&self, token: Option<Token>, finish: Option<Finish>) {
        self.process.stats.token_emitted();
        let output = Output { index: self.spec.index, token, finish };
        // The client may be gone; the engine ignores that here.
        let _ = self.out.send(output).await;
    }
}
