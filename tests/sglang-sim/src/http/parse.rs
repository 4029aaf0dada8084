//! Parses a request body into sequences, with the engine's own checks.

use std::sync::Arc;

use http::HeaderMap;
use serde_json::Value;

use crate::leg::LegSpec;
use crate::process::Process;
use crate::tokenizer;

use super::rendezvous::{BatchShape, RendezvousFields};

/// Maximum number of sequences per request. The real engine is limited only by its memory.
const MAX_SEQUENCES: usize = 1 << 16;

/// The generating APIs of the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Api {
    Generate,
    Chat,
    Completion,
    Responses,
    Messages,
}

/// A parsed request.
#[derive(Debug)]
pub(crate) struct ParsedRequest {
    pub(crate) api: Api,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
    pub(crate) continuous_usage: bool,
    pub(crate) model: String,
    pub(crate) specs: Vec<LegSpec>,
    /// Samples for each prompt.
    pub(crate) n: usize,
    /// `/generate` answers a batch with an array.
    pub(crate) batch: bool,
    pub(crate) logprobs: Option<LogprobOptions>,
    /// `/v1/completions`: the answer begins with the prompt.
    pub(crate) echo: bool,
    /// The body, for the fields that responses echo.
    pub(crate) body: Value,
}

/// The requested log probabilities.
#[derive(Clone, Debug)]
pub(crate) struct LogprobOptions {
    pub(crate) top: usize,
    /// First prompt token to include. `None` is the last.
    pub(crate) start: Option<usize>,
    pub(crate) text: bool,
    pub(crate) token_ids: Option<Vec<u32>>,
}

/// Why a request is rejected before it runs.
#[derive(Debug)]
pub(crate) enum RequestError {
    /// A ValueError: 400 in the API's shape.
    Value(String),
    /// The body fails the validation of the web framework: 400.
    Validation(String),
    /// An unhandled exception: 500.
    Crash(String),
    /// `previous_response_id` is unknown.
    NoSuchResponse(String),
}

fn missing(field: &str) -> RequestError {
    RequestError::Validation(format!(
        "1 validation error:\n  {{'type': 'missing', 'loc': ('body', '{field}'), \
         'msg': 'Field required'}}"
    ))
}

pub(super) fn value_error(message: &str) -> RequestError {
    RequestError::Value(message.into())
}

/// The prompts, and whether they came as a list.
struct Prompts {
    list: Vec<Vec<u32>>,
    batch: bool,
}

fn ids(value: &Value) -> Option<Vec<u32>> {
    value.as_array()?.iter().map(|id| u32::try_from(id.as_u64()?).ok()).collect()
}

/// Text, a list of texts, token ids, or lists of token ids.
fn prompts(value: &Value) -> Option<Prompts> {
    if let Some(text) = value.as_str() {
        return Some(Prompts { list: vec![tokenizer::encode(text)], batch: false });
    }
    let list = value.as_array()?;
    match list.first()? {
        Value::String(_) => {
            let list =
                list.iter().map(|t| t.as_str().map(tokenizer::encode)).collect::<Option<_>>();
            Some(Prompts { list: list?, batch: true })
        }
        Value::Array(_) => {
            let list = list.iter().map(ids).collect::<Option<_>>();
            Some(Prompts { list: list?, batch: true })
        }
        _ => Some(Prompts { list: vec![ids(value)?], batch: false }),
    }
}

/// The text of a message's content: a string, or the text parts of a list.
fn content_text(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => {
            parts.iter().filter_map(|part| part["text"].as_str()).collect::<Vec<_>>().join("")
        }
        _ => String::new(),
    }
}

fn turn(role: &str, text: &str) -> String {
    format!("<|im_start|>{role}\n{text}<|im_end|>\n")
}

/// The prompt of a chat's messages.
pub(crate) fn chat_prompt(system: Option<&Value>, messages: &Value) -> Option<Vec<u32>> {
    let mut text = system.map(|s| turn("system", &content_text(s))).unwrap_or_default();
    for message in messages.as_array()? {
        let role = message["role"].as_str()?;
        text.push_str(&turn(role, &content_text(&message["content"])));
    }
    text.push_str("<|im_start|>assistant\n");
    Some(tokenizer::encode(&text))
}

impl Api {
    fn prompts(self, process: &Process, body: &Value) -> Result<Prompts, RequestError> {
        let given = |name: &str| body.get(name).filter(|value| !value.is_null());
        let single = |prompt: Option<Vec<u32>>, field: &str| {
            prompt.map(|p| Prompts { list: vec![p], batch: false }).ok_or_else(|| missing(field))
        };
        match self {
            Api::Generate => {
                let value = given("text").or_else(|| given("input_ids")).ok_or_else(|| {
                    value_error("Either text, input_ids or input_embeds should be provided.")
                })?;
                prompts(value).ok_or_else(|| missing("text"))
            }
            Api::Completion => {
                let value = given("prompt").ok_or_else(|| missing("prompt"))?;
                let empty =
                    value.as_str() == Some("") || value.as_array().is_some_and(Vec::is_empty);
                if empty {
                    return Err(value_error("Prompt cannot be empty"));
                }
                prompts(value).ok_or_else(|| missing("prompt"))
            }
            Api::Chat => {
                let messages = given("messages").ok_or_else(|| missing("messages"))?;
                if messages.as_array().is_some_and(Vec::is_empty) {
                    return Err(value_error("Messages cannot be empty."));
                }
                single(chat_prompt(None, messages), "messages")
            }
            Api::Messages => {
                let messages = given("messages").ok_or_else(|| missing("messages"))?;
                given("max_tokens").ok_or_else(|| missing("max_tokens"))?;
                single(chat_prompt(given("system"), messages), "messages")
            }
            Api::Responses => super::responses::prompt(process, body).and_then(|p| {
                let prompt = p.ok_or_else(|| missing("input"))?;
                Ok(Prompts { list: vec![prompt], batch: false })
            }),
        }
    }

    /// The sampling parameters of one prompt.
    fn sampling(self, body: &Value, position: usize) -> &Value {
        match (self, &body["sampling_params"]) {
            (Api::Generate, Value::Array(list)) => list.get(position).unwrap_or(&Value::Null),
            (Api::Generate, one) => one,
            _ => body,
        }
    }

    fn max_new_tokens(self, sampling: &Value) -> Option<usize> {
        let number = |name: &str| sampling[name].as_u64().map(|n| n as usize);
        match self {
            Api::Generate => Some(number("max_new_tokens").unwrap_or(128)),
            Api::Completion => Some(number("max_tokens").unwrap_or(16)),
            Api::Chat => number("max_completion_tokens").or_else(|| number("max_tokens")),
            Api::Messages => number("max_tokens"),
            Api::Responses => number("max_output_tokens"),
        }
    }

    fn stop(self, sampling: &Value) -> Vec<String> {
        let name = if self == Api::Messages { "stop_sequences" } else { "stop" };
        match &sampling[name] {
            Value::String(text) => vec![text.clone()],
            Value::Array(list) => {
                list.iter().filter_map(|stop| stop.as_str().map(str::to_owned)).collect()
            }
            _ => Vec::new(),
        }
    }

    fn logprobs(self, body: &Value) -> Option<LogprobOptions> {
        let count = |name: &str| body[name].as_u64().unwrap_or(0) as usize;
        let plain = |top| LogprobOptions { top, start: None, text: true, token_ids: None };
        match self {
            Api::Generate if body["return_logprob"] == true => Some(LogprobOptions {
                top: count("top_logprobs_num"),
                start: body["logprob_start_len"].as_u64().map(|start| start as usize),
                text: body["return_text_in_logprobs"] == true,
                token_ids: ids(&body["token_ids_logprob"]),
            }),
            Api::Completion if body["logprobs"].is_u64() => {
                let top = count("logprobs");
                // Without `echo` the prompt is not scored.
                let start = (body["echo"] == true && top > 0).then_some(0);
                Some(LogprobOptions { start, ..plain(top) })
            }
            Api::Chat if body["logprobs"] == true => Some(plain(count("top_logprobs"))),
            _ => None,
        }
    }
}

/// Parses a request body.
///
/// # Errors
/// The engine rejects the request before it runs.
pub(crate) fn read(
    process: &Process,
    api: Api,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<ParsedRequest, RequestError> {
    let body: Value = serde_json::from_slice(body)
        .map_err(|error| RequestError::Validation(format!("1 validation error:\n  {error}")))?;
    if !body.is_object() {
        return Err(RequestError::Validation("1 validation error:\n  not an object".into()));
    }
    let Prompts { list, batch } = api.prompts(process, &body)?;
    let n = api.sampling(&body, 0)["n"].as_u64().unwrap_or(1).max(1) as usize;
    if list.len().saturating_mul(n) > MAX_SEQUENCES {
        return Err(value_error("Too many sequences in one request."));
    }
    let shape = BatchShape { batch: batch || n > 1, prompts: list.len(), n };
    let positions = RendezvousFields::read(process, api, headers, &body, batch, shape)?;
    let specs = specs(process, api, &body, list, n, &positions)?;
    let options = &body["stream_options"];
    Ok(ParsedRequest {
        api,
        stream: body["stream"] == true,
        include_usage: options["include_usage"] == true,
        continuous_usage: options["continuous_usage_stats"] == true && !process.is_0_4(),
        model: body["model"].as_str().unwrap_or("default").to_owned(),
        specs,
        n,
        batch: shape.batch,
        logprobs: api.logprobs(&body),
        echo: api == Api::Completion && body["echo"] == true,
        body,
    })
}

/// A parameter, its check, and the allowed range as the engine words it.
type Bound = (&'static str, fn(f64) -> bool, &'static str);

/// Rejects invalid sampling parameters, with the engine's messages.
fn verify(sampling: &Value) -> Result<(), RequestError> {
    const BOUNDS: [Bound; 5] = [
        ("temperature", |given| given >= 0.0, "non-negative"),
        ("top_p", |given| 0.0 < given && given <= 1.0, "in (0, 1]"),
        ("min_p", |given| (0.0..=1.0).contains(&given), "in [0, 1]"),
        ("frequency_penalty", |given| (-2.0..=2.0).contains(&given), "in [-2, 2]"),
        ("presence_penalty", |given| (-2.0..=2.0).contains(&given), "in [-2, 2]"),
    ];
    for (name, is_valid, range) in BOUNDS {
        let given = &sampling[name];
        if given.as_f64().is_some_and(|number| !is_valid(number)) {
            return Err(value_error(&format!("{name} must be {range}, got {given}.")));
        }
    }
    Ok(())
}

/// One sequence for each sample of each prompt.
fn specs(
    process: &Process,
    api: Api,
    body: &Value,
    prompts: Vec<Vec<u32>>,
    n: usize,
    positions: &RendezvousFields,
) -> Result<Vec<LegSpec>, RequestError> {
    let mut specs = Vec::with_capacity(prompts.len() * n);
    for (position, prompt) in prompts.into_iter().enumerate() {
        let sampling = api.sampling(body, position);
        verify(sampling)?;
        let length = process.config.context_length;
        let room_left = length.saturating_sub(prompt.len());
        if room_left == 0 {
            return Err(RequestError::Value(format!(
                "The input ({} tokens) is longer than the model's context length ({length} \
                 tokens).",
                prompt.len()
            )));
        }
        let prompt: Arc<[u32]> = prompt.into();
        for sample in 0..n {
            let index = position * n + sample;
            specs.push(LegSpec {
                rid: positions.rids[index].clone(),
                index,
                prompt: Arc::clone(&prompt),
                room: positions.rooms[index],
                bootstrap_host: positions.hosts[index].clone(),
                bootstrap_port: positions.ports[index],
                routed_rank: positions.routed_rank,
                prefill_rank: body["disagg_prefill_dp_rank"].as_u64(),
                max_new_tokens: api.max_new_tokens(sampling).unwrap_or(room_left).max(1),
                ignore_eos: sampling["ignore_eos"] == true,
                stop: api.stop(sampling),
                sample: sample as u64,
                slow_factor: 1.0,
                // All samples and a warm-up copy share one room, so none of them gets its KV.
                never_rendezvous: n > 1 && process.config.disaggregated(),
                retract_after: None,
            });
        }
    }
    Ok(specs)
}
