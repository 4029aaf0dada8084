//! A client's request: the few fields a gateway reads, and the bytes it keeps.

use bytes::Bytes;

use super::control::is_engine_control;
use super::json::{Kind, Member, Raw, Syntax, scan, unquote};
use super::prompt::{Prompt, PromptFields};
use super::samples::{self, MAX_SEQUENCES};
use super::splice::{Mark, Marked, Place, Reader, Role};
use super::{Attempt, Endpoint, Invalid, Rid};
use crate::pair::Pair;

/// More top-level members than this are refused.
pub const MAX_MEMBERS: usize = 4096;

/// A request parsed as far as the gateway reads it; keeps the client's bytes.
///
/// Where a field is written twice the last one counts, as in the engine's parsers; the fields
/// that are removed are removed every time.
#[derive(Clone, Debug)]
pub struct Request {
    endpoint: Endpoint,
    marked: Marked,
    model: Option<Box<str>>,
    previous_response_id: Option<Box<str>>,
    stream: bool,
    samples: u32,
    prompt: Prompt,
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
        let mut reading = Reading::new(endpoint, &body);
        let tail = match scan(&body, |member| reading.member(member)) {
            Ok(tail) => tail,
            Err(Syntax::Refused) => {
                return Err(Invalid::body(format!(
                    "The request body has more than {MAX_MEMBERS} top-level fields"
                )));
            }
            Err(syntax) => return Err(syntax.into()),
        };
        let Reading { marks, members, fields, .. } = reading;
        let samples = fields.samples(endpoint)?;
        let prompt = Prompt::read(endpoint, &fields.prompt)?;
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
            max_output_tokens: fields.max_output_tokens(),
            return_logprob: fields.return_logprob.is_some_and(any_true),
            include_usage: option("include_usage") == Some(true),
            continuous_usage: option("continuous_usage_stats") == Some(true),
            marked: Marked { body: Bytes::new(), marks, members, tail, fan_out: samples > 1 },
        };
        Ok(request.holding(body))
    }

    /// The fields borrow the body while they are read; it moves in once they are done.
    fn holding(mut self, body: Bytes) -> Request {
        if !self.stream {
            self.marked.marks.retain(|mark| mark.role != Role::Stream);
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

    /// Size of the prompt: bytes of its JSON text, or four times the number of token ids.
    pub fn prompt_bytes(&self) -> usize {
        self.prompt.bytes
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
            let decode = self.marked.write(Reader::Decode, &prefill);
            let prefill = match self.marked.legs_differ() {
                true => self.marked.write(Reader::Prefill, &prefill),
                false => decode.clone(),
            };
            return Pair { prefill, decode };
        }
        let mut decode = prefill.clone();
        attempt.write_ranks(&mut prefill, &mut decode);
        Pair {
            prefill: self.marked.write(Reader::Prefill, &prefill),
            decode: self.marked.write(Reader::Decode, &decode),
        }
    }

    /// The body for one engine that serves without a split: no control but the names.
    ///
    /// `n` stays, since such an engine samples n times itself; after that it no longer knows these
    /// names, so a request with n > 1 is aborted by dropping its connection.
    pub fn plain(&self, rids: &[Rid]) -> Bytes {
        let mut ours = Vec::with_capacity(64);
        Rid::write(rids, self.endpoint, self.prompt.batch.is_some(), &mut ours);
        self.marked.write(Reader::Single, &ours)
    }
}

/// The fields read, each as last written.
#[derive(Default)]
struct Fields<'a> {
    model: Option<Raw<'a>>,
    previous_response_id: Option<Raw<'a>>,
    stream: Option<Raw<'a>>,
    stream_options: Option<Raw<'a>>,
    n: Option<Raw<'a>>,
    best_of: Option<Raw<'a>>,
    sampling_params: Option<Raw<'a>>,
    return_logprob: Option<Raw<'a>>,
    max_tokens: Option<Raw<'a>>,
    max_completion_tokens: Option<Raw<'a>>,
    prompt: PromptFields<'a>,
}

impl Fields<'_> {
    fn samples(&self, endpoint: Endpoint) -> Result<u32, Invalid> {
        if endpoint == Endpoint::Generate {
            return self.sampling_params.map_or(Ok(1), samples::of_sampling_params);
        }
        let n = self.n.map_or(Ok(None), |n| samples::count("n", n))?.unwrap_or(1);
        let best_of = self.best_of.map_or(Ok(None), |b| samples::count("best_of", b))?;
        match best_of {
            Some(best_of) if best_of != n => {
                Err(Invalid::field("best_of", "must equal 'n': samples are not ranked"))
            }
            _ => Ok(n),
        }
    }

    fn stream(&self) -> Result<bool, Invalid> {
        match self.stream {
            None => Ok(false),
            Some(raw) if raw.is_null() => Ok(false),
            Some(raw) => lax_bool(raw).ok_or_else(|| Invalid::field("stream", "must be a boolean")),
        }
    }

    fn max_output_tokens(&self) -> Option<u32> {
        let nested = || {
            self.sampling_params
                .and_then(|params| samples::sets(params).next()?.get("max_new_tokens"))
        };
        let tokens = self
            .max_completion_tokens
            .and_then(Raw::as_u64)
            .or_else(|| self.max_tokens.and_then(Raw::as_u64))
            .or_else(|| nested().and_then(Raw::as_u64))?;
        Some(u32::try_from(tokens).unwrap_or(u32::MAX))
    }

    /// The name of the field that makes the batch.
    fn batch_param(&self, endpoint: Endpoint) -> &'static str {
        match endpoint {
            Endpoint::Generate if self.prompt.main.is_some() => "text",
            Endpoint::Generate => "input_ids",
            _ => "prompt",
        }
    }
}

/// A parse under way.
struct Reading<'a> {
    endpoint: Endpoint,
    body: &'a [u8],
    fields: Fields<'a>,
    marks: Vec<Mark>,
    members: usize,
    /// End of the last value, or the place after the opening brace.
    end: usize,
}

impl<'a> Reading<'a> {
    fn new(endpoint: Endpoint, body: &'a [u8]) -> Self {
        Reading { endpoint, body, fields: Fields::default(), marks: Vec::new(), members: 0, end: 0 }
    }

    fn member(&mut self, member: Member) -> bool {
        if self.members == MAX_MEMBERS {
            return false;
        }
        let index = self.members;
        self.members += 1;
        if let Some(last) = self.marks.last_mut()
            && last.place.index + 1 == index
        {
            last.place.after = Some(member.key.start);
        }
        let body = self.body;
        // A key that is no Unicode text is none of ours.
        if let Some(key) = unquote(&body[member.key.clone()]) {
            let value = Raw::trusted(&body[member.value.clone()]);
            if let Some(role) = self.read(&key, value, member.children) {
                let place = Place { index, before: self.end, key: member.key.start, after: None };
                self.marks.push(Mark { role, value: member.value.clone(), place });
            }
            if self.endpoint == Endpoint::Generate && key == "sampling_params" {
                self.mark_samples(value, &member);
            }
        }
        self.end = member.value.end;
        true
    }

    /// Keeps a field that is read; says what it is to the splice.
    fn read(&mut self, key: &str, value: Raw<'a>, children: usize) -> Option<Role> {
        use Endpoint::{Chat, Completions, Generate, Messages, Responses};
        let endpoint = self.endpoint;
        let fields = &mut self.fields;
        if is_engine_control(endpoint, key) {
            return Some(Role::Control);
        }
        match (key, endpoint) {
            ("model", _) => fields.model = Some(value),
            ("stream", _) => {
                fields.stream = Some(value);
                return Some(Role::Stream);
            }
            ("stream_options", _) => {
                fields.stream_options = Some(value);
                return Some(Role::StreamOptions);
            }
            ("n", Chat | Completions) => {
                fields.n = Some(value);
                return Some(Role::Samples);
            }
            ("best_of", Completions) => {
                fields.best_of = Some(value);
                return Some(Role::Samples);
            }
            ("messages", Chat | Messages)
            | ("prompt", Completions)
            | ("text", Generate)
            | ("input", Responses) => fields.prompt.main = Some((value, children)),
            ("system", Messages) | ("instructions", Responses) => {
                fields.prompt.preamble = Some((value, children));
            }
            ("input_ids", Chat | Generate) => fields.prompt.input_ids = Some((value, children)),
            ("input_embeds", Generate) => fields.prompt.input_embeds = Some((value, children)),
            ("session_params", Generate) => fields.prompt.session = value.kind() == Kind::Object,
            ("sampling_params", Generate) => fields.sampling_params = Some(value),
            ("return_logprob", Generate) => fields.return_logprob = Some(value),
            ("max_completion_tokens", Chat) | ("max_output_tokens", Responses) => {
                fields.max_completion_tokens = Some(value);
            }
            ("max_tokens", Chat | Completions | Messages) => fields.max_tokens = Some(value),
            ("previous_response_id", Responses) => fields.previous_response_id = Some(value),
            _ => {}
        }
        None
    }

    /// Marks every `n` in `sampling_params`, as far as there can be valid ones.
    fn mark_samples(&mut self, params: Raw<'a>, member: &Member) {
        for set in samples::sets(params).take(MAX_SEQUENCES) {
            for n in set.members().filter(|m| m.is("n")) {
                let at = params.range_of(n.value);
                let value = member.value.start + at.start..member.value.start + at.end;
                self.marks.push(Mark { role: Role::Samples, value, place: Place::default() });
            }
        }
    }
}

/// A boolean as the engine's models read it, which also take `1`, `"true"`, `"yes"` and the like.
fn lax_bool(raw: Raw<'_>) -> Option<bool> {
    if let Some(number) = std::str::from_utf8(raw.bytes()).ok().and_then(|n| n.parse::<f64>().ok())
    {
        return (number == 0.0 || number == 1.0).then_some(number == 1.0);
    }
    match raw.as_str() {
        None => raw.as_bool(),
        Some(word) => match &*word.to_ascii_lowercase() {
            "1" | "on" | "t" | "true" | "y" | "yes" => Some(true),
            "0" | "off" | "f" | "false" | "n" | "no" => Some(false),
            _ => None,
        },
    }
}

/// A boolean, or a list with a true one in it.
fn any_true(raw: Raw<'_>) -> bool {
    lax_bool(raw) == Some(true) || raw.elements().any(|one| lax_bool(one) == Some(true))
}

#[cfg(test)]
mod tests;
