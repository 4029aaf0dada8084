//! Reads the members of a body in one pass: keeps the needed fields and marks ranges to modify.

use super::super::control::{AllowedFields, BodyType};
use super::super::json::{JsonType, MemberSpan, Raw, ValueShape, unquote};
use super::super::prompt::{PromptField, PromptFields};
use super::super::samples::{self, MAX_SEQUENCES};
use super::super::splice::{Mark, MarkKind, MemberPosition};
use super::super::{Endpoint, Invalid};
use super::MAX_MEMBERS;

/// The needed fields. If a field occurs twice, the last one.
#[derive(Default)]
pub(super) struct Fields<'a> {
    pub(super) model: Option<Raw<'a>>,
    pub(super) previous_response_id: Option<Raw<'a>>,
    pub(super) stream: Option<Raw<'a>>,
    pub(super) stream_options: Option<Raw<'a>>,
    pub(super) n: Option<Raw<'a>>,
    pub(super) best_of: Option<Raw<'a>>,
    pub(super) sampling_params: Option<Raw<'a>>,
    pub(super) return_logprob: Option<Raw<'a>>,
    pub(super) echo: Option<Raw<'a>>,
    pub(super) logprobs: Option<Raw<'a>>,
    pub(super) max_tokens: Option<Raw<'a>>,
    pub(super) max_completion_tokens: Option<Raw<'a>>,
    pub(super) background: Option<Raw<'a>>,
    pub(super) prompt: PromptFields<'a>,
}

impl Fields<'_> {
    pub(super) fn samples(&self, endpoint: Endpoint) -> Result<u32, Invalid> {
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

    pub(super) fn stream(&self) -> Result<bool, Invalid> {
        match self.stream {
            None => Ok(false),
            Some(raw) if raw.is_null() => Ok(false),
            Some(raw) => lax_bool(raw).ok_or_else(|| Invalid::field("stream", "must be a boolean")),
        }
    }

    /// # Errors
    /// The client asks for a response in the background: it would be generated outside of admission, and
    /// no path gets it.
    pub(super) fn check_background(&self) -> Result<(), Invalid> {
        match self.background.and_then(lax_bool) {
            Some(true) => Err(Invalid::field("background", "must be false: no response is kept")),
            _ => Ok(()),
        }
    }

    pub(super) fn max_output_tokens(&self) -> Option<u32> {
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

    /// Whether the client wants logprobs of the prompt. The engine gives none for `logprobs: 0`.
    pub(super) fn wants_prompt_logprobs(&self, endpoint: Endpoint) -> bool {
        match endpoint {
            Endpoint::Generate => self.return_logprob.is_some_and(any_true),
            Endpoint::Completions => {
                let counts = |raw: Raw<'_>| !raw.is_null() && lax_bool(raw) != Some(false);
                self.echo.and_then(lax_bool) == Some(true) && self.logprobs.is_some_and(counts)
            }
            Endpoint::Chat | Endpoint::Responses | Endpoint::Messages => false,
        }
    }

    /// The name of the field that contains the batch.
    pub(super) fn batch_param(&self, endpoint: Endpoint) -> &'static str {
        match endpoint {
            Endpoint::Generate if self.prompt.main.is_some() => "text",
            Endpoint::Generate => "input_ids",
            _ => "prompt",
        }
    }
}

/// The state of a parse.
pub(super) struct BodyReader<'a> {
    pub(super) endpoint: Endpoint,
    allowed: &'a AllowedFields,
    pub(super) body: &'a [u8],
    pub(super) fields: Fields<'a>,
    pub(super) marks: Vec<Mark>,
    pub(super) members: usize,
    /// End of the last value, or the offset after the opening brace.
    pub(super) end: usize,
}

impl<'a> BodyReader<'a> {
    pub(super) fn new(endpoint: Endpoint, body: &'a [u8], allowed: &'a AllowedFields) -> Self {
        BodyReader {
            endpoint,
            allowed,
            body,
            fields: Fields::default(),
            marks: Vec::new(),
            members: 0,
            end: 0,
        }
    }

    /// Why [`member`](BodyReader::member) returned `false`.
    pub(super) fn rejection(&self) -> Invalid {
        if self.members < MAX_MEMBERS {
            return Invalid::field("sampling_params.n", "occurs too often");
        }
        Invalid::body(format!("The request body has more than {MAX_MEMBERS} top-level fields"))
    }

    pub(super) fn member(&mut self, member: MemberSpan) -> bool {
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
        // A key that is not valid Unicode is no known field.
        if let Some(key) = unquote(&body[member.key.clone()]) {
            let value = Raw::trusted(&body[member.value.clone()]);
            if let Some(kind) = self.read(&key, value, member.shape) {
                let place =
                    MemberPosition { index, before: self.end, key: member.key.start, after: None };
                self.marks.push(Mark { kind, value: member.value.clone(), place });
            }
            if self.endpoint == Endpoint::Generate
                && key == "sampling_params"
                && !self.mark_samples(value, &member)
            {
                return false;
            }
        }
        self.end = member.value.end;
        true
    }

    /// Stores a needed field and returns its mark, if it must be modified.
    fn read(&mut self, key: &str, value: Raw<'a>, shape: ValueShape) -> Option<MarkKind> {
        use Endpoint::{Chat, Completions, Generate, Messages, Responses};
        let endpoint = self.endpoint;
        let fields = &mut self.fields;
        let part = Some(PromptField { raw: value, shape });
        match (key, endpoint) {
            ("model", _) => fields.model = Some(value),
            ("stream", _) => {
                fields.stream = Some(value);
                return Some(MarkKind::Stream);
            }
            ("stream_options", _) => {
                fields.stream_options = Some(value);
                return Some(MarkKind::StreamOptions);
            }
            ("n", Chat | Completions) => {
                fields.n = Some(value);
                return Some(MarkKind::Samples);
            }
            ("best_of", Completions) => {
                fields.best_of = Some(value);
                return Some(MarkKind::Samples);
            }
            ("messages", Chat | Messages)
            | ("prompt", Completions)
            | ("text", Generate)
            | ("input", Responses) => fields.prompt.main = part,
            ("system", Messages) | ("instructions", Responses) => {
                fields.prompt.preamble = part;
            }
            ("input_ids", Chat | Generate) => fields.prompt.input_ids = part,
            ("input_embeds", Generate) => fields.prompt.input_embeds = part,
            ("session_params", Generate) => {
                fields.prompt.session = value.kind() == JsonType::Object
            }
            ("sampling_params", Generate) => fields.sampling_params = Some(value),
            ("return_logprob", Generate) => fields.return_logprob = Some(value),
            ("echo", Completions) => fields.echo = Some(value),
            ("logprobs", Completions) => fields.logprobs = Some(value),
            ("max_completion_tokens", Chat) | ("max_output_tokens", Responses) => {
                fields.max_completion_tokens = Some(value);
            }
            ("max_tokens", Chat | Completions | Messages) => fields.max_tokens = Some(value),
            ("previous_response_id", Responses) => fields.previous_response_id = Some(value),
            ("background", Responses) => fields.background = Some(value),
            _ if self.allowed.removes(BodyType::Generating(endpoint), key) => {
                return Some(MarkKind::Control);
            }
            _ => {}
        }
        None
    }

    /// Marks every `n` in `sampling_params`. `false` if there are more than the maximum.
    fn mark_samples(&mut self, params: Raw<'a>, member: &MemberSpan) -> bool {
        for set in samples::sets(params) {
            for n in set.members().filter(|m| m.is("n")) {
                if self.marks.len() == MAX_MEMBERS + MAX_SEQUENCES {
                    return false;
                }
                let at = params.range_of(n.value);
                let value = member.value.start + at.start..member.value.start + at.end;
                self.marks.push(Mark {
                    kind: MarkKind::Samples,
                    value,
                    place: MemberPosition::default(),
                });
            }
        }
        true
    }
}

/// Parses a boolean as the engine does, which also accepts `1`, `"true"`, `"yes"` and others.
pub(super) fn lax_bool(raw: Raw<'_>) -> Option<bool> {
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

/// Whether the value is true, or a list that contains true.
fn any_true(raw: Raw<'_>) -> bool {
    lax_bool(raw) == Some(true) || raw.elements().any(|one| lax_bool(one) == Some(true))
}
