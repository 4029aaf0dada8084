//! A client's request: the few fields that a gateway reads, and the original bytes.

mod body_reader;
mod content;

use std::borrow::Cow;
use std::ops::Range;

use bytes::Bytes;

use super::json::{Raw, SyntaxError, scan, unquote};
use super::prompt::PromptShape;
use super::samples::MAX_SEQUENCES;
use super::splice::{MAX_COPIED_BYTES, MarkKind, MarkedBody, Recipient, SplicedBody, Templates};
use super::{AllowedFields, Attempt, Endpoint, Invalid, Rid};
use crate::pair::Pair;
use body_reader::{BodyReader, lax_bool};
pub use content::{ContentHash, ContentKey};

/// Maximum number of top-level members. A body with more is rejected.
pub const MAX_MEMBERS: usize = 4096;

/// A request, parsed as far as the gateway needs it, with the client's original bytes.
///
/// If a field occurs twice, the last one counts, as in the engine's parsers. Removed fields are
/// removed at every occurrence.
#[derive(Clone, Debug)]
pub struct Request {
    endpoint: Endpoint,
    marked: MarkedBody,
    model: Option<Box<str>>,
    previous_response_id: Option<Box<str>>,
    stream: bool,
    samples: u32,
    prompt: PromptShape,
    /// The byte ranges of the prompt in the body: its preamble, and the rest.
    text: [Range<usize>; 2],
    max_output_tokens: Option<u32>,
    wants_prompt_logprobs: bool,
    include_usage: bool,
    continuous_usage: bool,
}

impl Request {
    /// Checks that `body` is a JSON object (RFC 8259, UTF-8, no byte order mark) that is nested at
    /// most [`MAX_DEPTH`](super::MAX_DEPTH) deep, and reads the fields that the gateway needs. All
    /// other fields are left to the engine.
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
    /// let rejected = Request::parse(Endpoint::Chat, Bytes::from_static(br#"{"n":0}"#));
    /// assert_eq!(rejected.unwrap_err().param, Some("n"));
    /// ```
    pub fn parse(endpoint: Endpoint, body: Bytes) -> Result<Request, Invalid> {
        Request::parse_with(endpoint, body, &AllowedFields::default())
    }

    /// Parses a body of which clients may send the `allowed` fields, too.
    ///
    /// # Errors
    /// Those of [`parse`](Request::parse).
    pub fn parse_with(
        endpoint: Endpoint,
        body: Bytes,
        allowed: &AllowedFields,
    ) -> Result<Request, Invalid> {
        let mut body_reader = BodyReader::new(endpoint, &body, allowed);
        let tail = match scan(&body, |member| body_reader.member(member)) {
            Ok(tail) => tail,
            Err(SyntaxError::Refused) => return Err(body_reader.rejection()),
            Err(syntax) => return Err(syntax.into()),
        };
        let BodyReader { marks, members, fields, .. } = body_reader;
        fields.check_background()?;
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
            wants_prompt_logprobs: fields.wants_prompt_logprobs(endpoint),
            include_usage: option("include_usage") == Some(true),
            continuous_usage: option("continuous_usage_stats") == Some(true),
            marked: MarkedBody {
                body: Bytes::new(),
                marks,
                members,
                tail,
                fan_out: samples > 1,
                max_copied_bytes: MAX_COPIED_BYTES,
                templates: Templates::default(),
            },
        };
        Ok(request.with_body(body))
    }

    /// Stores the body, which could not be moved while the fields borrowed it.
    fn with_body(mut self, body: Bytes) -> Request {
        if !self.stream {
            self.marked.marks.retain(|mark| mark.kind != MarkKind::Stream);
        }
        self.marked.body = body;
        self
    }

    pub fn endpoint(&self) -> Endpoint {
        self.endpoint
    }

    /// The client's original bytes.
    pub fn body(&self) -> &Bytes {
        &self.marked.body
    }

    /// `model`, unescaped. `None` if absent or not a string.
    pub fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    /// Whether the client requests server-sent events.
    pub fn stream(&self) -> bool {
        self.stream
    }

    /// `n`, the number of requests to fan out into: at least 1 and at most
    /// [`MAX_SAMPLES`](super::MAX_SAMPLES).
    pub fn samples(&self) -> u32 {
        self.samples
    }

    /// The number of prompts if the body contains a list of them. `Some(1)` for a list of one.
    pub fn batch(&self) -> Option<usize> {
        self.prompt.batch
    }

    /// The number of rooms and request ids per attempt and sample: one per prompt.
    pub fn rooms(&self) -> usize {
        self.prompt.batch.unwrap_or(1)
    }

    /// The size of the prompt: bytes of its JSON text, or four times the number of token ids. An
    /// image, audio or video in a conversation counts 4096, whatever the size of its encoding.
    pub fn prompt_bytes(&self) -> usize {
        self.prompt.bytes
    }

    /// The JSON text of the prompt, to recognise its prefix: a continued conversation starts with
    /// the same bytes. The preamble comes first, as in the engine.
    pub fn prompt_text(&self) -> impl Iterator<Item = &[u8]> {
        self.text.iter().filter_map(|place| self.marked.body.get(place.clone()))
    }

    /// The client's limit of output tokens, for one sample of one prompt.
    pub fn max_output_tokens(&self) -> Option<u32> {
        self.max_output_tokens
    }

    /// Whether decode's answer lacks prompt logprobs that the client wants, which only prefill has:
    /// `/generate` with `return_logprob`, `/v1/completions` with `echo` and `logprobs`.
    pub fn wants_logprob_merge(&self) -> bool {
        self.wants_prompt_logprobs
    }

    /// `stream_options.include_usage`.
    pub fn include_usage(&self) -> bool {
        self.include_usage
    }

    /// `stream_options.continuous_usage_stats`.
    pub fn continuous_usage(&self) -> bool {
        self.continuous_usage
    }

    /// The id of the response that this request continues.
    pub fn previous_response_id(&self) -> Option<&str> {
        self.previous_response_id.as_deref()
    }

    /// The names of the client's fields that no engine gets, unescaped, in the order of the body: those that
    /// the gateway sets itself, inner fields of engines, and on `/generate` all that are not public.
    ///
    /// ```
    /// use bytes::Bytes;
    /// use router_core::sglang::{Endpoint, Request};
    ///
    /// let body = Bytes::from_static(br#"{"text":"a","rid":"mine","made_up":1}"#);
    /// let request = Request::parse(Endpoint::Generate, body).unwrap();
    /// assert_eq!(request.removed_fields().collect::<Vec<_>>(), ["rid", "made_up"]);
    /// ```
    pub fn removed_fields(&self) -> impl Iterator<Item = Cow<'_, str>> {
        let removed = self.marked.marks.iter().filter(|mark| mark.kind == MarkKind::Control);
        removed.filter_map(|mark| {
            // Between the key and the value stand a colon and white space only.
            let member = self.marked.body.get(mark.place.key..mark.value.start)?;
            let end = member.iter().rposition(|byte| *byte == b'"')?;
            unquote(&member[..=end])
        })
    }

    /// The two bodies of one attempt for one sample (`n` becomes 1 if it was larger).
    ///
    /// Each body is the client's bytes without engine control, followed by the attempt's members.
    /// Prefill gets `stream: false` and no `stream_options`, so that it reports a failure by its
    /// status. Long bodies of all
    /// legs, samples and attempts share the client's buffer.
    ///
    /// All n samples keep the client's seed. A fixed seed makes n equal samples, as it does when
    /// one engine samples n times.
    pub fn inject(&self, attempt: &Attempt<'_>) -> Pair<SplicedBody> {
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

    /// The body for an engine that serves without a pair: no engine control except the request ids.
    ///
    /// `n` stays, because such an engine samples n times itself. It then gives the samples ids of
    /// its own, so a request with n > 1 can only be aborted by closing its connection.
    pub fn plain(&self, rids: &[Rid]) -> SplicedBody {
        let mut added = Vec::with_capacity(64);
        Rid::write(rids, self.endpoint, self.prompt.batch.is_some(), &mut added);
        self.marked.write(Recipient::Single, &added)
    }
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
