//! A client's request: the few fields a gateway reads, and the bytes it keeps.

mod body_reader;

use std::ops::Range;

use bytes::Bytes;

use super::json::{Raw, SyntaxError, scan};
use super::prompt::PromptShape;
use super::samples::MAX_SEQUENCES;
use super::splice::{MarkKind, MarkedBody, Recipient};
use super::{Attempt, Endpoint, Invalid, Rid};
use crate::pair::Pair;
use body_reader::{BodyReader, any_true, lax_bool};

/// More top-level members than this are refused.
pub const MAX_MEMBERS: usize = 4096;

/// A request parsed as far as the gateway reads it; keeps the client's bytes.
///
/// Where a field is written twice the last one counts, as in the engine's parsers; the fields
/// that are removed are removed every time.
#[derive(Clone, Debug)]
pub struct Request {
    endpoint: Endpoint,
    marked: MarkedBody,
    model: Option<Box<str>>,
    previous_response_id: Option<Box<str>>,
    stream: bool,
    samples: u32,
    prompt: PromptShape,
    /// Where the prompt stands in the body: its preamble, and what follows.
    text: [Range<usize>; 2],
    max_output_tokens: Option<u32>,
    return_logprob: bool,
    include_usage: bool,
    continuous_usage: bool,
}

impl Request {
    /// Checks that `body` is JSON (RFC 8259, UTF-8, no byte order mark), an object, nested at most
    /// [`MAX_DEPTH`](super::MAX_DEPTH) deep, and reads what the gateway must know. Everything else
    /// is left for the engine to judge.
    ///
    /// ```
    /// use bytes::Bytes;
    /// use router_core::sglang::{Endpoint, Request};
    ///
    /// let body = Bytes::from_static(br#"{"model":"m","prompt":["a","b"],"stream":true,"n":2}"#);
    /// let request = Request::parse(Endpoint::Completions, body).unwrap();
    /// assert_eq!(request.model(), Some("m"));
    /// assert_eq!((request.batch(), request.samples(), request.stream()), (Some(2), 2, true));
    ///
    /// let refused = Request::parse(Endpoint::Chat, Bytes::from_static(br#"{"n":0}"#));
    /// assert_eq!(refused.unwrap_err().param, Some("n"));
    /// ```
    pub fn parse(endpoint: Endpoint, body: Bytes) -> Result<Request, Invalid> {
        let mut body_reader = BodyReader::new(endpoint, &body);
        let tail = match scan(&body, |member| body_reader.member(member)) {
            Ok(tail) => tail,
            Err(SyntaxError::Refused) => return Err(body_reader.too_many()),
            Err(syntax) => return Err(syntax.into()),
        };
        let BodyReader { marks, members, fields, .. } = body_reader;
        let samples = fields.samples(endpoint)?;
        let prompt = PromptShape::read(endpoint, &fields.prompt)?;
        if prompt.batch.unwrap_or(1).saturating_mul(samples as usize) > MAX_SEQUENCES {
            let what = format!("times 'n' makes more than {MAX_SEQUENCES} sequences");
            return Err(Invalid::field(fields.batch_param(endpoint), &what));
        }
        let stream = fields.stream()?;
        let option = |name| fields.stream_options.and_then(|o| o.get(name)).and_then(lax_bool);
        let request = Request {
            endpoint,
            model: fields.model.and_then(Raw::as_str).map(Into::into),
            previous_response_id: fields.previous_response_id.and_then(Raw::as_str).map(Into::into),
            stream,
            samples,
            prompt,
            text: fields.prompt.places(&body),
            max_output_tokens: fields.max_output_tokens(),
            return_logprob: fields.return_logprob.is_some_and(any_true),
            include_usage: option("include_usage") == Some(true),
            continuous_usage: option("continuous_usage_stats") == Some(true),
            marked: MarkedBody { body: Bytes::new(), marks, members, tail, fan_out: samples > 1 },
        };
        Ok(request.holding(body))
    }

    /// The fields borrow the body while they are read; it moves in once they are done.
    fn holding(mut self, body: Bytes) -> Request {
        if !self.stream {
            self.marked.marks.retain(|mark| mark.role != MarkKind::Stream);
        }
        self.marked.body = body;
        self
    }

    pub fn endpoint(&self) -> Endpoint {
        self.endpoint
    }

    /// The client's own bytes.
    pub fn body(&self) -> &Bytes {
        &self.marked.body
    }

    /// `model`, with escapes read; `None` when absent or not a string.
    pub fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    /// Whether the client wants server-sent events.
    pub fn stream(&self) -> bool {
        self.stream
    }

    /// `n`: how many requests to fan out into, at least 1 and at most
    /// [`MAX_SAMPLES`](super::MAX_SAMPLES).
    pub fn samples(&self) -> u32 {
        self.samples
    }

    /// The number of prompts where the body holds a list of them, `Some(1)` for a list of one.
    pub fn batch(&self) -> Option<usize> {
        self.prompt.batch
    }

    /// How many rooms and rids one attempt of one sample needs: one, or one a prompt.
    pub fn rooms(&self) -> usize {
        self.prompt.batch.unwrap_or(1)
    }

    /// Size of the prompt: bytes of its JSON text, or four times the number of token ids. A
    /// picture or sound in a conversation counts 4096, however long its encoding is.
    pub fn prompt_bytes(&self) -> usize {
        self.prompt.bytes
    }

    /// The JSON text of the prompt, for its prefix to be known again: a conversation that goes on
    /// begins with the same bytes. Preamble first, as engines put it.
    pub fn prompt_text(&self) -> impl Iterator<Item = &[u8]> {
        self.text.iter().filter_map(|place| self.marked.body.get(place.clone()))
    }

    /// The bound on output tokens that the client gave, for one sample of one prompt.
    pub fn max_output_tokens(&self) -> Option<u32> {
        self.max_output_tokens
    }

    /// Whether decode's answer lacks what only prefill knows: the prompt's logprobs of `/generate`.
    pub fn wants_logprob_merge(&self) -> bool {
        self.endpoint == Endpoint::Generate && self.return_logprob
    }

    /// `stream_options.include_usage`.
    pub fn include_usage(&self) -> bool {
        self.include_usage
    }

    /// `stream_options.continuous_usage_stats`.
    pub fn continuous_usage(&self) -> bool {
        self.continuous_usage
    }

    /// The earlier response that this one continues.
    pub fn previous_response_id(&self) -> Option<&str> {
        self.previous_response_id.as_deref()
    }

    /// The two bodies of one attempt, for one sample (`n` reads 1 where more were asked for).
    ///
    /// The client's bytes without its engine control, with the attempt's members appended. Prefill
    /// gets `stream: false` and no `stream_options`, so that its failure is a status. Bodies that
    /// do not differ share one allocation.
    ///
    /// All n samples keep the client's seed. The engine gives copies of one seed the same draws, so
    /// a fixed seed makes n equal samples, here as in one engine's own n-fold sampling.
    pub fn inject(&self, attempt: &Attempt<'_>) -> Pair<Bytes> {
        let list = self.prompt.batch.is_some();
        let mut prefill = Vec::with_capacity(256);
        attempt.write(self.endpoint, list, &mut prefill);
        if attempt.dp == Pair::default() {
            let decode = self.marked.write(Recipient::Decode, &prefill);
            let prefill = match self.marked.legs_differ() {
                true => self.marked.write(Recipient::Prefill, &prefill),
                false => decode.clone(),
            };
            return Pair { prefill, decode };
        }
        let mut decode = prefill.clone();
        attempt.write_ranks(&mut prefill, &mut decode);
        Pair {
            prefill: self.marked.write(Recipient::Prefill, &prefill),
            decode: self.marked.write(Recipient::Decode, &decode),
        }
    }

    /// The body for one engine that serves without a split: no control but the names.
    ///
    /// `n` stays, since such an engine samples n times itself; after that it no longer knows these
    /// names, so a request with n > 1 is aborted by dropping its connection.
    pub fn plain(&self, rids: &[Rid]) -> Bytes {
        let mut ours = Vec::with_capacity(64);
        Rid::write(rids, self.endpoint, self.prompt.batch.is_some(), &mut ours);
        self.marked.write(Recipient::Single, &ours)
    }
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
