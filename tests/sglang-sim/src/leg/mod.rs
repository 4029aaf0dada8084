//! A leg: one sequence on one engine, from its admission to its last token.

mod decode;
mod prefill;
mod unified;

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::config::Role;
use crate::count::Presence;
use crate::kv::data::Computed;
use crate::life::Life;
use crate::rank::Rank;
use crate::token::Detokenizer;
use crate::words;

/// The host that means no transfer; SGLang's own probes use it.
pub(crate) const FAKE_HOST: &str = "2.2.2.2";
/// The id that ends an answer.
const END_OF_TEXT: u32 = 151_645;

/// What one sequence is to do.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) rid: String,
    /// Place in the batch.
    pub(crate) index: usize,
    pub(crate) prompt: Arc<[u32]>,
    pub(crate) room: Option<Room>,
    pub(crate) bootstrap_host: Option<String>,
    pub(crate) bootstrap_port: Option<u16>,
    pub(crate) routed_rank: Option<u64>,
    pub(crate) prefill_rank: Option<u64>,
    pub(crate) max_new_tokens: usize,
    pub(crate) ignore_eos: bool,
    pub(crate) stop: Vec<String>,
    /// Which of n samples.
    pub(crate) sample: u64,
    /// Times everything takes longer.
    pub(crate) slow: f64,
    /// The leg runs into its timeout: a script says so, or n > 1 in PD.
    pub(crate) never_meets: bool,
}

/// A bootstrap room as the engine's buffers take it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    Number(u64),
    /// 2^63 and more overflow prefill's metadata buffer.
    Overflow(u128),
}

impl Job {
    fn number(&self) -> Option<u64> {
        match self.room {
            Some(Room::Number(room)) => Some(room),
            _ => None,
        }
    }

    fn room_text(&self) -> String {
        match self.room {
            Some(Room::Number(room)) => room.to_string(),
            Some(Room::Overflow(room)) => room.to_string(),
            None => "None".into(),
        }
    }

    fn is_fake(&self) -> bool {
        self.bootstrap_host.as_deref() == Some(FAKE_HOST)
    }
}

/// Why a sequence ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Finish {
    /// By itself, or at a stop string.
    Stop(Value),
    Length(usize),
    Abort {
        message: String,
        status: Option<u16>,
    },
}

impl Finish {
    pub(crate) fn abort(status: u16, message: impl Into<String>) -> Finish {
        Finish::Abort { message: message.into(), status: Some(status) }
    }

    /// `finish_reason` in `meta_info`.
    pub(crate) fn json(&self) -> Value {
        match self {
            Finish::Stop(matched) => json!({"type": "stop", "matched": matched}),
            Finish::Length(length) => json!({"type": "length", "length": length}),
            Finish::Abort { message, status } => json!({
                "type": "abort", "message": message, "status_code": status, "err_type": null,
            }),
        }
    }

    /// `finish_reason` in the OpenAI shapes.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Finish::Stop(_) => "stop",
            Finish::Length(_) => "length",
            Finish::Abort { .. } => "abort",
        }
    }

    /// `matched_stop` in the OpenAI shapes.
    pub(crate) fn matched(&self) -> Value {
        match self {
            Finish::Stop(matched) => matched.clone(),
            _ => Value::Null,
        }
    }
}

/// What a leg says: a token, its end, or both.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    pub(crate) index: usize,
    pub(crate) token: Option<Token>,
    pub(crate) finish: Option<Finish>,
}

/// One generated token.
#[derive(Clone, Debug)]
pub(crate) struct Token {
    pub(crate) id: u32,
    /// The text that became whole with it.
    pub(crate) text: String,
    pub(crate) logprob: f64,
}

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

    /// Generates from what was computed for the prompt, until an end or an abort.
    async fn generate(&self, computed: Computed) -> Finish {
        let natural = words::length(computed.thought, self.life.config.natural_length);
        let limit = self.job.max_new_tokens;
        let mut writing = Writing::default();
        let mut last = Instant::now();
        let inter_token = self.scaled(self.life.config.inter_token);
        for place in 0.. {
            self.life.turn().await;
            if place > 0 && !inter_token.is_zero() {
                tokio::select! {
                    () = tokio::time::sleep(inter_token) => {}
                    () = self.aborted.cancelled() => {}
                }
                self.life.meters.inter_token(last.elapsed());
                last = Instant::now();
            }
            if self.aborted.is_cancelled() {
                let finish = Finish::Abort { message: "Aborted".into(), status: None };
                self.say(None, Some(finish.clone())).await;
                return finish;
            }
            let ended = place >= natural && !self.job.ignore_eos;
            let id = match place {
                _ if ended => END_OF_TEXT,
                0 => computed.first,
                _ => words::token(computed.thought, self.job.sample, place),
            };
            let (text, matched) =
                if ended { (String::new(), None) } else { writing.add(id, &self.job.stop) };
            let finish = match matched {
                Some(matched) => Some(Finish::Stop(matched.into())),
                None if ended => Some(Finish::Stop(END_OF_TEXT.into())),
                None if place + 1 >= limit => Some(Finish::Length(limit)),
                None => None,
            };
            if place == 0 {
                self.life.meters.first_token(self.begun.elapsed());
            }
            let token = Token { id, text, logprob: words::logprob(id, place) };
            self.say(Some(token), finish.clone()).await;
            if let Some(finish) = finish {
                self.life.meters.done(self.job.prompt.len(), place + 1, self.begun.elapsed());
                return finish;
            }
        }
        unreachable!("the places do not end")
    }
}

/// The text so far, as far as stop strings need it.
#[derive(Default)]
struct Writing {
    text: String,
    detokenizer: Detokenizer,
}

impl Writing {
    /// The new text, cut at a stop string if one has become whole, and that string.
    fn add(&mut self, id: u32, stop: &[String]) -> (String, Option<String>) {
        let new = self.detokenizer.push(id);
        if stop.is_empty() {
            return (new, None);
        }
        let start = self.text.len();
        self.text.push_str(&new);
        let hit = stop
            .iter()
            .filter(|stop| !stop.is_empty())
            .filter_map(|stop| Some((self.text.find(stop.as_str())?, stop)))
            .min_by_key(|(place, _)| *place);
        match hit {
            Some((place, stop)) => {
                let kept = self.text.get(start..place).unwrap_or_default().to_owned();
                (kept, Some(stop.clone()))
            }
            None => (new, None),
        }
    }
}
