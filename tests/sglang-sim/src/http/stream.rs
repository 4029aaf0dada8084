//! Streams: the events of each API for a token, at the end, and for a failure after the 200.

use std::collections::VecDeque;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::unfold;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::leg::{Finish, Output};
use crate::process::Process;
use crate::script::Action;

use super::generation::{error_object, error_of};
use super::parse::{Api, ParsedRequest};
use super::sequence::{Sequence, now_seconds, usage, usage_of};
use super::{BoxError, Exchange, Reply, anthropic, full, responses};

/// Time for sent events to leave before a script resets the connection.
const FLUSH_TIME: Duration = Duration::from_millis(30);
const DONE: &[u8] = b"data: [DONE]\n\n";

pub(crate) fn event(value: &Value) -> Bytes {
    let mut bytes = b"data: ".to_vec();
    serde_json::to_writer(&mut bytes, value).expect("these values are JSON");
    bytes.extend_from_slice(b"\n\n");
    bytes.into()
}

fn head(body: Reply) -> Response<Reply> {
    let mut response = Response::new(body);
    let kind = HeaderValue::from_static("text/event-stream; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

fn fixed(events: &[Bytes]) -> Response<Reply> {
    let mut bytes = events.concat();
    bytes.extend_from_slice(DONE);
    head(full(bytes))
}

/// `/generate` reports an invalid request inside its stream.
pub(crate) fn value_error(message: &str) -> Response<Reply> {
    fixed(&[event(&json!({"error": {"message": message}}))])
}

/// A stream whose first event is an error, for a script.
pub(crate) fn scripted_error(request: &ParsedRequest, message: &str) -> Response<Reply> {
    if request.api == Api::Generate {
        let finish = Finish::abort(500, message).json();
        let rid = request.specs.first().map(|spec| spec.rid.as_str());
        let meta = json!({"id": rid, "finish_reason": finish, "prompt_tokens": 0});
        return fixed(&[event(&json!({"text": "", "output_ids": [], "meta_info": meta}))]);
    }
    fixed(&[error_event(message, "INTERNAL_SERVER_ERROR", 500)])
}

fn error_event(message: &str, kind: &str, code: u16) -> Bytes {
    event(&json!({"error": error_object(message, kind, code)}))
}

/// The `type` of an error in a stream.
fn code_name(code: u16) -> &'static str {
    match code {
        400 => "BAD_REQUEST",
        503 => "SERVICE_UNAVAILABLE",
        _ => "INTERNAL_SERVER_ERROR",
    }
}

/// A stream under construction.
pub(crate) struct StreamState {
    process: Arc<Process>,
    pub(crate) request: ParsedRequest,
    outputs: mpsc::Receiver<Output>,
    pub(crate) sequences: Vec<Sequence>,
    /// Tokens of each sequence whose log probabilities have been sent.
    logprobs_sent: Vec<usize>,
    /// Sequences whose end is sent after all others, as chat does.
    finished: Vec<usize>,
    queue: VecDeque<Bytes>,
    running: usize,
    ended: bool,
    broken: bool,
    sent: usize,
    action: Option<Action>,
    reset: Arc<std::sync::atomic::AtomicBool>,
    created: u64,
    pub(crate) response_id: String,
    next_number: std::cell::Cell<u64>,
}

/// Starts a streamed response.
pub(crate) async fn answer(
    exchange: &Exchange,
    request: ParsedRequest,
    outputs: mpsc::Receiver<Output>,
) -> Response<Reply> {
    let process = Arc::clone(&exchange.process);
    let logprobs = request.logprobs.as_ref();
    let sequences: Vec<Sequence> =
        request.specs.iter().map(|spec| Sequence::new(&process, spec, logprobs)).collect();
    // 0.4, and `/generate` of both versions, send the head before the first output.
    let eager = request.api == Api::Generate || process.is_0_4();
    let mut state = StreamState {
        logprobs_sent: vec![0; sequences.len()],
        finished: Vec::new(),
        running: sequences.len(),
        response_id: responses::new_id(&request),
        process,
        request,
        outputs,
        sequences,
        queue: VecDeque::new(),
        ended: false,
        broken: false,
        sent: 0,
        action: exchange.action.clone(),
        reset: Arc::clone(&exchange.reset),
        created: now_seconds(),
        next_number: std::cell::Cell::new(0),
    };
    state.push_opening_events();
    if !eager {
        state.fill_queue().await;
    }
    let frames = unfold(state, |mut state| async move {
        let next = state.next().await?;
        Some((next.map(Frame::data), state))
    });
    head(StreamBody::new(frames).boxed_unsync())
}

impl StreamState {
    pub(crate) fn process(&self) -> &Process {
        &self.process
    }

    /// The next sequence number of `/v1/responses`.
    pub(crate) fn number(&self) -> u64 {
        self.next_number.replace(self.next_number.get() + 1)
    }

    fn push_opening_events(&mut self) {
        if self.request.api == Api::Responses {
            let events = responses::opening(self);
            self.queue.extend(events);
        }
    }

    /// Waits until there is an event to send or the stream ends.
    async fn fill_queue(&mut self) {
        while self.queue.is_empty() && !self.ended {
            // A closed channel means that the legs died with the engine.
            let Some(output) = self.outputs.recv().await else { return pending().await };
            self.add_output(output);
        }
    }

    async fn next(&mut self) -> Option<Result<Bytes, BoxError>> {
        self.fill_queue().await;
        let event = self.queue.pop_front();
        match self.action {
            Some(Action::DieMidStream { after }) if self.sent >= after => {
                tokio::time::sleep(FLUSH_TIME).await;
                self.process.kill();
                pending().await
            }
            Some(Action::DieMidEvent { after }) if self.sent > after => {
                tokio::time::sleep(FLUSH_TIME).await;
                self.process.kill();
                pending().await
            }
            Some(Action::DieMidEvent { after }) if self.sent == after => {
                self.sent += 1;
                return event.map(|event| Ok(event.slice(..event.len() / 2)));
            }
            Some(Action::DropMidStream { after }) if self.sent >= after => {
                tokio::time::sleep(FLUSH_TIME).await;
                self.reset.store(true, Relaxed);
                return Some(Err("reset by script".into()));
            }
            _ => {}
        }
        self.sent += 1;
        match event {
            Some(event) => Some(Ok(event)),
            None if self.broken => Some(Err("an exception ended the stream".into())),
            None => None,
        }
    }

    fn finish_with(&mut self, error: Option<Bytes>) {
        self.queue.extend(error);
        self.close();
    }

    fn close(&mut self) {
        self.ended = true;
        match self.request.api {
            Api::Responses => {}
            Api::Messages => {
                let events = anthropic::closing(&self.sequences[0]);
                self.queue.extend(events);
            }
            _ => self.queue.push_back(Bytes::from_static(DONE)),
        }
    }

    fn add_output(&mut self, output: Output) {
        let old = self.process.is_0_4();
        let index = output.index;
        let new = self.sequences[index].add(output);
        if let Some(finish) = self.sequences[index].finish.clone() {
            self.running -= 1;
            if self.failed(&finish, old) {
                return;
            }
        }
        match self.request.api {
            Api::Generate => {
                let position = self.request.batch.then_some(index);
                let value = self.sequences[index].generate_json(old, position);
                self.queue.push_back(event(&value));
            }
            Api::Chat => self.chat(index, &new, old),
            Api::Completion => self.completion(index, &new, old),
            Api::Responses => {
                let events = responses::delta(self, &new);
                self.queue.extend(events);
            }
            Api::Messages => {
                let events = anthropic::delta(&self.request, &self.sequences[0], &new);
                self.queue.extend(events);
            }
        }
        if self.running == 0 {
            self.tail(old);
        }
    }

    /// Whether this end of a sequence ends the stream as a failure.
    fn failed(&mut self, finish: &Finish, old: bool) -> bool {
        let Some((status, kind, message)) = error_of(finish, old) else { return false };
        let code = status.as_u16();
        let error = match self.request.api {
            // An exception other than ValueError breaks the stream of 0.4.
            _ if old && code != 400 => {
                (self.ended, self.broken) = (true, true);
                return true;
            }
            Api::Generate if old => event(&json!({"error": {"message": message}})),
            Api::Generate => return false,
            Api::Messages => anthropic::stream_error(),
            _ if old => error_event(message, &kind, code),
            _ => error_event(message, code_name(code), code),
        };
        self.finish_with(Some(error));
        true
    }

    /// The events after all sequences have ended.
    fn tail(&mut self, old: bool) {
        for index in std::mem::take(&mut self.finished) {
            let Some(finish) = self.sequences[index].finish.clone() else { continue };
            let delta = if old { json!({"role": null, "content": null}) } else { json!({}) };
            let finish = (json!(finish.kind()), finish.matched());
            self.chat_chunk(index, delta, Value::Null, finish, old);
        }
        match self.request.api {
            Api::Chat if self.request.include_usage => {
                let chunk = json!({
                    "id": self.sequences[0].rid, "object": "chat.completion.chunk",
                    "created": now_seconds(), "model": self.request.model, "choices": [],
                    "usage": usage(&self.sequences, self.request.n, old),
                });
                self.queue.push_back(event(&chunk));
            }
            Api::Completion if self.request.include_usage => {
                let mut usage = usage(&self.sequences, self.request.n, old);
                usage.as_object_mut().map(|usage| usage.remove("prompt_tokens_details"));
                let chunk = json!({
                    "id": self.sequences[0].rid, "object": "text_completion",
                    "created": self.created, "model": self.request.model, "choices": [],
                    "usage": usage,
                });
                self.queue.push_back(event(&chunk));
            }
            Api::Responses => {
                let events = responses::closing(self);
                self.queue.extend(events);
            }
            _ => {}
        }
        self.close();
    }

    fn running_usage(&self, index: usize, old: bool) -> Option<Value> {
        let sequence = &self.sequences[index];
        let usage = || usage_of(sequence.prompt_tokens, sequence.ids.len(), old);
        self.request.continuous_usage.then(usage)
    }

    fn chat_chunk(
        &mut self,
        index: usize,
        mut delta: Value,
        logprobs: Value,
        (finish, matched): (Value, Value),
        old: bool,
    ) {
        delta["reasoning_content"] = Value::Null;
        if old {
            delta["tool_calls"] = Value::Null;
        }
        let mut chunk = json!({
            "id": self.sequences[index].rid, "object": "chat.completion.chunk",
            "created": now_seconds(), "model": self.request.model,
            "choices": [{
                "index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish,
                "matched_stop": matched,
            }],
        });
        let content = chunk["choices"][0]["delta"]["content"].as_str();
        let usage = content.filter(|c| !c.is_empty()).and_then(|_| self.running_usage(index, old));
        if let Some(usage) = usage {
            chunk["usage"] = usage;
        } else if old {
            chunk["usage"] = Value::Null;
        }
        self.queue.push_back(event(&chunk));
    }

    fn chat(&mut self, index: usize, new: &str, old: bool) {
        let not_finished = || (Value::Null, Value::Null);
        let sequence = &self.sequences[index];
        let logprobs = if self.request.logprobs.is_some() {
            sequence.chat_logprobs(self.logprobs_sent[index])
        } else {
            Value::Null
        };
        let first = self.logprobs_sent[index] == 0;
        self.logprobs_sent[index] = sequence.ids.len().max(1);
        if sequence.finish.is_some() {
            self.finished.push(index);
        }
        if first {
            let delta = json!({"role": "assistant", "content": ""});
            self.chat_chunk(index, delta, Value::Null, not_finished(), old);
        }
        if !new.is_empty() {
            let delta =
                if old { json!({"role": null, "content": new}) } else { json!({"content": new}) };
            self.chat_chunk(index, delta, logprobs, not_finished(), old);
        }
    }

    fn completion(&mut self, index: usize, new: &str, old: bool) {
        let sequence = &self.sequences[index];
        let logprobs = if self.request.logprobs.is_some() {
            sequence.completion_logprobs(self.logprobs_sent[index], self.request.echo)
        } else {
            Value::Null
        };
        let is_first = self.logprobs_sent[index] == 0;
        let echo = if self.request.echo && is_first { sequence.prompt_text.as_str() } else { "" };
        self.logprobs_sent[index] = sequence.ids.len();
        let finish = sequence.finish.as_ref();
        let chunk = json!({
            "id": sequence.rid, "object": "text_completion", "created": self.created,
            "model": self.request.model,
            "choices": [{
                "index": index, "text": format!("{echo}{new}"), "logprobs": logprobs,
                "finish_reason": finish.map(Finish::kind),
                "matched_stop": finish.map(Finish::matched),
            }],
            "usage": self.running_usage(index, old),
        });
        self.queue.push_back(event(&chunk));
    }
}
