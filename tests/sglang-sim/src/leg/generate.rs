//! Token after token, until an end or an abort.

use std::time::Instant;

use crate::kv::data::Computed;
use crate::token::Detokenizer;
use crate::words;

use super::{Finish, Leg, Token};

/// The id that ends an answer.
const END_OF_TEXT: u32 = 151_645;

impl Leg<'_> {
    /// Generates from what was computed for the prompt, until an end or an abort.
    pub(super) async fn generate(&self, computed: Computed) -> Finish {
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
