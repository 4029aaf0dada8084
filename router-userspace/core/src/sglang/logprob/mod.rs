//! Logprobs of the prompt, which only prefill computes.

mod echo;
mod generate;

pub use echo::EchoLogprobs;
pub use generate::InputLogprobs;

use bytes::Bytes;

use super::Endpoint;
use super::merge::Malformed;

/// The prompt's logprobs of prefill's answer, in the format of the request's endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PromptLogprobs {
    /// `/generate` with `return_logprob`.
    Generate(InputLogprobs),
    /// `/v1/completions` with `echo` and `logprobs`.
    Completions(EchoLogprobs),
}

impl PromptLogprobs {
    /// Reads prefill's answer, which is never streamed, and shares its allocation.
    pub fn from_prefill(endpoint: Endpoint, body: &Bytes) -> Result<PromptLogprobs, Malformed> {
        match endpoint {
            Endpoint::Completions => {
                EchoLogprobs::from_prefill(body).map(PromptLogprobs::Completions)
            }
            _ => InputLogprobs::from_prefill(body).map(PromptLogprobs::Generate),
        }
    }

    /// Decode's complete answer with the prompt's logprobs inserted.
    pub fn merge_json(&self, decode: &[u8]) -> Result<Bytes, Malformed> {
        match self {
            PromptLogprobs::Generate(input) => input.merge_json(decode),
            PromptLogprobs::Completions(echo) => echo.merge_json(decode),
        }
    }

    /// One event of decode's stream with the prompt's logprobs inserted, where an ordinary server
    /// has them: in every event of `/generate`, in the first event of each choice of
    /// `/v1/completions`.
    pub fn merge_event(&mut self, event: Bytes) -> Bytes {
        match self {
            PromptLogprobs::Generate(input) => input.merge_event(event),
            PromptLogprobs::Completions(echo) => echo.merge_event(event),
        }
    }
}
