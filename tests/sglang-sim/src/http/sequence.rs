//! One sequence of a response: its text so far and its `meta_info`.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use crate::config::Role;
use crate::leg::{Finish, LegSpec, Output};
use crate::model;
use crate::process::Process;
use crate::tokenizer;

use super::parse::LogprobOptions;

/// A sequence as far as it has been generated.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) index: usize,
    pub(crate) rid: String,
    pub(crate) prompt_tokens: usize,
    /// The prompt's text, for `echo`.
    pub(crate) prompt_text: String,
    pub(crate) text: String,
    pub(crate) ids: Vec<u32>,
    pub(crate) finish: Option<Finish>,
    logprobs: Vec<f64>,
    input: Option<Input>,
    started: Instant,
}

/// The log probabilities of the prompt, which only the leg that computed the prompt has.
#[derive(Debug)]
struct Input {
    wanted: LogprobOptions,
    token_logprobs: Value,
    top_logprobs: Value,
    token_ids_logprobs: Value,
}

/// The `nth` candidate at a position, for top log probabilities.
fn candidate(id: u32, position: usize, nth: usize) -> (f64, u32) {
    if nth == 0 {
        return (model::logprob(id, position), id);
    }
    let other =
        model::token(u64::from(id).rotate_left(nth as u32) & !1, nth as u64, position.max(1));
    (model::logprob(id, position) - nth as f64, other)
}

fn entry(logprob: Value, id: u32, text: bool) -> Value {
    let text = if text { json!(tokenizer::decode(&[id])) } else { Value::Null };
    json!([logprob, id, text])
}

fn top_entries(id: u32, position: usize, wanted: &LogprobOptions) -> Value {
    let entries = (0..wanted.top).map(|nth| {
        let (logprob, id) = candidate(id, position, nth);
        entry(json!(logprob), id, wanted.text)
    });
    Value::Array(entries.collect())
}

fn chosen_entries(ids: &[u32], position: usize, wanted: &LogprobOptions) -> Value {
    let entries =
        ids.iter().map(|id| entry(json!(model::logprob(*id, position)), *id, wanted.text));
    Value::Array(entries.collect())
}

impl Input {
    /// The first entry has no probability, because nothing precedes it.
    fn new(prompt: &[u32], wanted: &LogprobOptions, role: Role, old: bool) -> Input {
        let last = prompt.len().saturating_sub(1);
        // Without a start, 0.4 includes the last prompt token and 0.5 none.
        let start = match wanted.start {
            Some(start) => start.min(last),
            None if old => last,
            None => prompt.len(),
        };
        let prompt = if role == Role::Decode { &[] } else { &prompt[start..] };
        let each = |make: &dyn Fn(usize, u32) -> Value, first: &dyn Fn(u32) -> Value| {
            let list = prompt.iter().enumerate();
            let list = list.map(|(p, id)| if p == 0 { first(*id) } else { make(p, *id) });
            Value::Array(list.collect())
        };
        let nothing = |_| Value::Null;
        let token_ids = wanted.token_ids.as_deref().unwrap_or_default();
        Input {
            token_logprobs: each(
                &|p, id| entry(json!(model::logprob(id, p)), id, wanted.text),
                &|id| entry(Value::Null, id, wanted.text),
            ),
            top_logprobs: each(&|p, id| top_entries(id, p, wanted), &nothing),
            token_ids_logprobs: each(&|p, _| chosen_entries(token_ids, p, wanted), &nothing),
            wanted: wanted.clone(),
        }
    }
}

impl Sequence {
    pub(crate) fn new(
        process: &Process,
        spec: &LegSpec,
        logprobs: Option<&LogprobOptions>,
    ) -> Sequence {
        Sequence {
            index: spec.index,
            rid: spec.rid.clone(),
            prompt_tokens: spec.prompt.len(),
            prompt_text: tokenizer::decode(&spec.prompt),
            text: String::new(),
            ids: Vec::new(),
            finish: None,
            logprobs: Vec::new(),
            input: logprobs
                .map(|wanted| Input::new(&spec.prompt, wanted, process.role(), process.is_0_4())),
            started: Instant::now(),
        }
    }

    /// Adds an output of the leg. Returns the new text.
    pub(crate) fn add(&mut self, output: Output) -> String {
        let mut new = String::new();
        if let Some(token) = output.token {
            self.text.push_str(&token.text);
            self.ids.push(token.id);
            self.logprobs.push(token.logprob);
            new = token.text;
        }
        self.finish = output.finish;
        new
    }

    pub(crate) fn finish_json(&self) -> Value {
        self.finish.as_ref().map_or(Value::Null, Finish::json)
    }

    /// `meta_info` of `/generate`.
    pub(crate) fn meta_info(&self, old: bool) -> Value {
        let mut meta = Map::new();
        let mut put = |name: &str, value: Value| meta.insert(name.into(), value);
        put("id", json!(self.rid));
        put("finish_reason", self.finish_json());
        put("prompt_tokens", json!(self.prompt_tokens));
        if !old {
            put("weight_version", json!("default"));
            put("num_retractions", json!(0));
            put("dp_rank", Value::Null);
        }
        if let Some(input) = &self.input {
            self.put_logprobs(input, &mut put);
        }
        if !old {
            put("reasoning_tokens", json!(0));
        }
        put("completion_tokens", json!(self.ids.len()));
        put("cached_tokens", json!(0));
        if self.finish.is_some() {
            put("e2e_latency", json!(self.started.elapsed().as_secs_f64()));
            if !old {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                put("response_sent_to_client_ts", json!(now.as_secs_f64()));
            }
        }
        Value::Object(meta)
    }

    fn put_logprobs(&self, input: &Input, put: &mut impl FnMut(&str, Value) -> Option<Value>) {
        let wanted = &input.wanted;
        let positions = || self.ids.iter().enumerate();
        let output: Vec<Value> = positions()
            .map(|(position, id)| entry(json!(self.logprobs[position]), *id, wanted.text))
            .collect();
        put("input_token_logprobs", input.token_logprobs.clone());
        put("output_token_logprobs_length", json!(output.len()));
        put("output_token_logprobs", Value::Array(output));
        if wanted.top > 0 {
            let output =
                positions().map(|(position, id)| top_entries(*id, position, wanted)).collect();
            put("input_top_logprobs", input.top_logprobs.clone());
            put("output_top_logprobs", Value::Array(output));
        }
        if let Some(ids) = &wanted.token_ids {
            let output =
                positions().map(|(position, _)| chosen_entries(ids, position, wanted)).collect();
            put("input_token_ids_logprobs", input.token_ids_logprobs.clone());
            put("output_token_ids_logprobs", Value::Array(output));
        }
    }

    /// The complete object of `/generate`.
    pub(crate) fn generate_json(&self, old: bool, index: Option<usize>) -> Value {
        let mut object = Map::new();
        object.insert("text".into(), json!(self.text));
        if !old {
            object.insert("output_ids".into(), json!(self.ids));
        }
        object.insert("meta_info".into(), self.meta_info(old));
        if let Some(index) = index {
            object.insert("index".into(), json!(index));
        }
        Value::Object(object)
    }

    /// `logprobs` of a chat choice for the tokens from `first` on.
    pub(crate) fn chat_logprobs(&self, first: usize) -> Value {
        let Some(input) = &self.input else { return Value::Null };
        let one = |logprob: f64, id: u32| {
            let text = tokenizer::decode(&[id]);
            (text.as_bytes().to_vec(), text, logprob)
        };
        let content: Vec<Value> = (first..self.ids.len())
            .map(|position| {
                let (bytes, text, logprob) = one(self.logprobs[position], self.ids[position]);
                let top: Vec<Value> = (0..input.wanted.top)
                    .map(|nth| {
                        let (logprob, id) = candidate(self.ids[position], position, nth);
                        let (bytes, text, logprob) = one(logprob, id);
                        json!({"token": text, "bytes": bytes, "logprob": logprob})
                    })
                    .collect();
                json!({"token": text, "bytes": bytes, "logprob": logprob, "top_logprobs": top})
            })
            .collect();
        json!({ "content": content })
    }

    /// `logprobs` of a completion choice for the tokens from `first` on; those of the prompt come
    /// before the first of them, if the request wants them.
    pub(crate) fn completion_logprobs(&self, first: usize, echo: bool) -> Value {
        let Some(input) = &self.input else { return Value::Null };
        let prompt = input.token_logprobs.as_array().filter(|_| echo && first == 0);
        let prompt: Vec<Value> = prompt.cloned().unwrap_or_default();
        let prompt_top = input.top_logprobs.as_array().filter(|_| !prompt.is_empty());
        let by_text = |entries: &Value| {
            let list = entries.as_array()?.iter();
            let pairs = list.filter_map(|e| Some((e[2].as_str()?.to_owned(), e[0].clone())));
            Some(Value::Object(pairs.collect()))
        };
        let mut top: Vec<Value> = prompt_top
            .into_iter()
            .flatten()
            .map(|entries| by_text(entries).unwrap_or(Value::Null))
            .collect();
        let positions = || first..self.ids.len();
        top.extend(positions().map(|position| {
            let candidates = (0..input.wanted.top).map(|nth| {
                let (logprob, id) = candidate(self.ids[position], position, nth);
                (tokenizer::decode(&[id]), json!(logprob))
            });
            Value::Object(candidates.collect())
        }));
        if input.wanted.top == 0 {
            top.clear();
        }
        let each = |nth: usize, output: &dyn Fn(usize) -> Value| -> Vec<Value> {
            let prompt = prompt.iter().map(|entry| entry[nth].clone());
            prompt.chain(positions().map(output)).collect()
        };
        let logprobs = each(0, &|position| json!(self.logprobs[position]));
        let tokens = each(2, &|position| json!(tokenizer::decode(&[self.ids[position]])));
        json!({
            "text_offset": tokens.iter().map(|_| -1).collect::<Vec<_>>(),
            "token_logprobs": logprobs, "tokens": tokens, "top_logprobs": top,
        })
    }
}

/// `usage` of the OpenAI shapes. A prompt counts once for all its samples.
pub(crate) fn usage(sequences: &[Sequence], n: usize, old: bool) -> Value {
    let prompt: usize =
        sequences.iter().filter(|s| s.index % n == 0).map(|s| s.prompt_tokens).sum();
    let completion: usize = sequences.iter().map(|s| s.ids.len()).sum();
    usage_of(prompt, completion, old)
}

pub(crate) fn usage_of(prompt: usize, completion: usize, old: bool) -> Value {
    let mut usage = json!({
        "prompt_tokens": prompt, "total_tokens": prompt + completion,
        "completion_tokens": completion, "prompt_tokens_details": null,
    });
    if !old {
        usage["reasoning_tokens"] = json!(0);
    }
    usage
}

/// Seconds since 1970, for `created`.
pub(crate) fn now_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
