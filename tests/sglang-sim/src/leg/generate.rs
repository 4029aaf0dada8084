//! Token generation, until the answer ends or is aborted.

use std::time::Instant;

use crate::kv::data::PrefillResult;
use crate::model;
use crate::tokenizer::Detokenizer;

use super::{Finish, RunningLeg, Token};

/// The end-of-text token.
const END_OF_TEXT: u32 = 151_645;
const RETRACTED: &str = "The request was retracted: the KV pool is full and has no backup of it.";

impl RunningLeg<'_> {
    /// Generates from the result of prefill, until the answer ends or is aborted.
    pub(super) async fn generate(&self, result: PrefillResult) -> Finish {
        let natural = model::length(result.prompt_hash, self.process.config.natural_length);
        let limit = self.spec.max_new_tokens;
        let mut writing = StopScanner::default();
        let mut last = Instant::now();
        let inter_token = self.scaled(self.process.config.inter_token);
        for position in 0.. {
            self.process.wait_for_scheduler().await;
            if position > 0 && !inter_token.is_zero() {
                tokio::select! {
                    () = tokio::time::sleep(inter_token) => {}
                    () = self.aborted.cancelled() => {}
                }
                self.process.stats.inter_token(last.elapsed());
                last = Instant::now();
            }
            if self.aborted.is_cancelled() {
                let finish = Finish::Abort { message: "Aborted".into(), status: None };
                self.emit(None, Some(finish.clone())).await;
                return finish;
            }
            if self.spec.retract_after.is_some_and(|after| position >= after) {
                let finish = Finish::abort(503, RETRACTED);
                self.emit(None, Some(finish.clone())).await;
                return finish;
            }
            let ended = position >= natural && !self.spec.ignore_eos;
            let id = match position {
                _ if ended => END_OF_TEXT,
                0 => result.first_token,
                _ => model::token(result.prompt_hash, self.spec.sample, position),
            };
            let (text, matched) =
                if ended { (String::new(), None) } else { writing.add(id, &self.spec.stop) };
            let finish = match matched {
                Some(matched) => Some(Finish::Stop(matched.into())),
                None if ended => Some(Finish::Stop(END_OF_TEXT.into())),
                None if position + 1 >= limit => Some(Finish::Length(limit)),
                None => None,
            };
            if position == 0 {
                self.process.stats.first_token(self.started.elapsed());
            }
            let token = Token { id, text, logprob: model::logprob(id, position) };
            self.emit(Some(token), finish.clone()).await;
            if let Some(finish) = finish {
                self.process.stats.done(
                    self.spec.prompt.len(),
                    position + 1,
                    self.started.elapsed(),
                );
                return finish;
            }
        }
        unreachable!("the loop has no end")
    }
}

/// Finds stop strings in the generated text.
#[derive(Default)]
struct StopScanner {
    text: String,
    detokenizer: Detokenizer,
}

impl StopScanner {
    /// The new text, cut at a completed stop string, and that stop string.
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
            .min_by_key(|(position, _)| *position);
        match hit {
            Some((position, stop)) => {
                let kept = self.text.get(start..position).unwrap_or_default().to_owned();
                (kept, Some(stop.clone()))
            }
            None => (new, None),
        }
    }
}
