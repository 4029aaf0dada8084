//! A leg: one sequence on one engine, from its admission to its last token.

mod decode;
mod generate;
mod job;
mod prefill;
mod unified;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::config::Role;
use crate::count::Presence;
use crate::kv::data::Computed;
use crate::life::Life;
use crate::rank::Rank;
use crate::words;

pub(crate) use job::{Finish, Job, Output, Room, Token};

/// A running leg and what it needs at every step.
struct Leg<'a> {
    life: &'a Arc<Life>,
    job: &'a Job,
    rank: Arc<Rank>,
    aborted: &'a CancellationToken,
    out: &'a mpsc::Sender<Output>,
    begun: Instant,
}

/// Runs a sequence to its end and says everything to `out`; returns the end.
pub(crate) async fn run(
    life: &Arc<Life>,
    job: &Job,
    aborted: &CancellationToken,
    out: &mpsc::Sender<Output>,
) -> Finish {
    let result = match rank_of(life, job) {
        Ok(rank) => {
            let leg = Leg { life, job, rank, aborted, out, begun: Instant::now() };
            life.turn().await;
            match life.config.role {
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
            life.meters.failed(&failure);
            let output = Output { index: job.index, token: None, finish: Some(failure.clone()) };
            // The client may be gone, which changes nothing for the engine.
            let _ = out.send(output).await;
            failure
        }
    }
}

fn rank_of(life: &Arc<Life>, job: &Job) -> Result<Arc<Rank>, Finish> {
    let size = life.ranks.len() as u64;
    let by_room = job.number().map(|room| room % size);
    let rank = match (job.routed_rank, by_room) {
        (Some(wanted), _) if wanted >= size => {
            let message = format!("routed_dp_rank={wanted} out of range [0, {size})");
            return Err(Finish::abort(400, message));
        }
        (Some(wanted), _) => wanted,
        (None, Some(rank)) if life.config.role == Role::Prefill || life.is_old() => rank,
        _ => life.any_rank() as u64,
    };
    Ok(Arc::clone(&life.ranks[rank as usize]))
}

impl Leg<'_> {
    fn missing_room(&self) -> Finish {
        // The old engine's message has the typo, and no status.
        let (word, status) =
            if self.life.is_old() { ("boostrap", None) } else { ("bootstrap", Some(400)) };
        let message = format!(
            "Invalid request: Disaggregated request received without {word} room id. \
             req.rid='{}'",
            self.job.rid
        );
        Finish::Abort { message, status }
    }

    /// Whether no transfer takes place.
    fn alone(&self) -> bool {
        self.job.is_fake() || !self.life.config.rendezvous
    }

    fn scaled(&self, time: Duration) -> Duration {
        time.mul_f64(self.job.slow)
    }

    /// Waits for a running slot, in a queue that may be full.
    async fn slot(&self) -> Result<(tokio::sync::OwnedSemaphorePermit, Presence), Finish> {
        let counts = &self.rank.counts;
        if self.life.config.max_queued_requests.is_some_and(|most| {
            self.rank.running.available_permits() == 0 && counts.queued.now() >= most
        }) {
            return Err(Finish::abort(503, "The request queue is full."));
        }
        let queued = counts.queued.enter();
        let _pending = counts.pending_tokens.enter_with(self.job.prompt.len());
        let permit = tokio::select! {
            permit = Arc::clone(&self.rank.running).acquire_owned() => permit,
            () = self.aborted.cancelled() => {
                let message =
                    if self.life.is_old() { "Abort before prefill" } else { "Abort in waiting queue" };
                return Err(Finish::Abort { message: message.into(), status: None });
            }
        };
        drop(queued);
        let permit = permit.expect("the running slots are never closed");
        Ok((permit, counts.running.enter()))
    }

    /// The forward pass over the prompt.
    async fn forward(&self) -> Computed {
        let _pass = self.rank.forward.lock().await;
        self.life.turn().await;
        let speed = self.life.config.prefill_tokens_per_second;
        if speed > 0 {
            let time = Duration::from_secs_f64(self.job.prompt.len() as f64 / speed as f64);
            tokio::time::sleep(self.scaled(time)).await;
        }
        self.computed()
    }

    fn computed(&self) -> Computed {
        let thought = words::thought(&self.job.prompt);
        Computed { thought, first: words::token(thought, self.job.sample, 0) }
    }

    async fn say(&self, token: Option<Token>, finish: Option<Finish>) {
        self.life.meters.said();
        let output = Output { index: self.job.index, token, finish };
        // The client may be gone, which changes nothing for the engine.
        let _ = self.out.send(output).await;
    }
}
