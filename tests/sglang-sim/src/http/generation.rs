//! Runs the legs of a request and answers in one piece, or starts the stream.

use std::sync::Arc;
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, Response, StatusCode};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::leg::{self, Finish, LegSpec, Output};
use crate::process::{LegGuard, Process};
use crate::script::{Action, millis};

use super::parse::{self, Api, ParsedRequest, RequestError};
use super::sequence::{Sequence, now_seconds, usage};
use super::stream;
use super::{Exchange, Reply, anthropic, outcome_of, plain, reply_json, responses};

/// Maximum number of outputs per request that wait for a slow client.
const MAX_OUTPUTS: usize = 64;

/// Whether the content type is JSON, as the OpenAI endpoints require.
pub(crate) fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let media = value.split(';').next().unwrap_or("").trim();
    media.eq_ignore_ascii_case("application/json")
}

pub(crate) fn not_json() -> Response<Reply> {
    let message = "[{'loc': ['header', 'content-type'], 'msg': \"Unsupported Media Type: Only \
                   'application/json' is allowed\", 'type': 'value_error'}]";
    reply_json(StatusCode::BAD_REQUEST, &error_object(message, "Bad Request", 400))
}

/// The engine's error object.
pub(crate) fn error_object(message: &str, kind: &str, code: u16) -> Value {
    json!({"object": "error", "message": message, "type": kind, "param": null, "code": code})
}

/// An error response in the shape of the API.
pub(crate) fn error_response(
    api: Api,
    status: StatusCode,
    kind: &str,
    message: &str,
) -> Response<Reply> {
    let code = status.as_u16();
    match api {
        Api::Generate if code == 400 => reply_json(status, &json!({"error": {"message": message}})),
        Api::Messages => anthropic::error(code),
        _ => reply_json(status, &error_object(message, kind, code)),
    }
}

/// The error response for an aborted sequence of a request that is not streamed.
pub(crate) fn error_of(finish: &Finish, old: bool) -> Option<(StatusCode, String, &str)> {
    let Finish::Abort { message, status: Some(code) } = finish else { return None };
    // 0.4 answers a failure with status 500 as an ordinary response.
    if old && *code == 500 {
        return None;
    }
    let status = StatusCode::from_u16(*code).ok()?;
    let kind = if *code == 400 { "BadRequestError".to_owned() } else { code.to_string() };
    Some((status, kind, message))
}

fn reject(api: Api, rejection: RequestError, stream: bool) -> Response<Reply> {
    match rejection {
        RequestError::Value(message) if api == Api::Generate && stream => {
            stream::value_error(&message)
        }
        RequestError::Value(message) => {
            error_response(api, StatusCode::BAD_REQUEST, "BadRequestError", &message)
        }
        RequestError::Validation(message) => {
            let error = error_object(&message, "Bad Request", 400);
            reply_json(StatusCode::BAD_REQUEST, &error)
        }
        RequestError::Crash(_) if api == Api::Generate => {
            plain(StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error")
        }
        RequestError::Crash(message) => {
            let message = format!("Internal server error: {message}");
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            error_response(api, status, "InternalServerError", &message)
        }
        RequestError::NoSuchResponse(id) => responses::not_found(&id),
    }
}

/// Applies the script actions that change how legs run.
fn apply_to_legs(request: &mut ParsedRequest, action: Option<&Action>) {
    for spec in &mut request.specs {
        match action {
            Some(Action::NeverRendezvous) => spec.never_rendezvous = true,
            Some(Action::Retract { after }) => spec.retract_after = Some(*after),
            Some(Action::Slow { factor }) => spec.slow_factor = *factor,
            _ => {}
        }
    }
}

/// Answers a request that generates.
pub(crate) async fn answer(exchange: &Exchange, api: Api) -> Response<Reply> {
    let process = &exchange.process;
    let parsed = parse::read(process, api, exchange.head.headers(), &exchange.body);
    let mut request = match parsed {
        Ok(request) => request,
        Err(rejection) => {
            let body: Value = serde_json::from_slice(&exchange.body).unwrap_or_default();
            let response = reject(api, rejection, body["stream"] == true);
            exchange.record.outcome(format!("error {}", response.status().as_u16()));
            return response;
        }
    };
    if let Some(Action::FirstEventError { message }) = &exchange.action {
        return first_event_error(&request, message);
    }
    apply_to_legs(&mut request, exchange.action.as_ref());
    let numbers = request.specs.iter().filter_map(|spec| match spec.room {
        Some(leg::Room::Number(room)) => Some(room),
        _ => None,
    });
    exchange
        .record
        .legs(request.specs.iter().map(|spec| spec.rid.clone()).collect(), numbers.collect());

    let started = match exchange.action {
        Some(Action::Late { ms }) => Ok(start_late(exchange, &request, millis(ms))),
        _ => start_legs(exchange, &request),
    };
    let outputs = match started {
        Ok(outputs) => outputs,
        Err(duplicate) => {
            exchange.record.outcome("error 400");
            return reject(api, RequestError::Value(duplicate), request.stream);
        }
    };
    if request.stream {
        return stream::answer(exchange, request, outputs).await;
    }
    let response = collect(process, &request, outputs).await;
    exchange.record.outcome(outcome_of(response.status()));
    response
}

/// Starts all legs of a request. An error names a request id that is in use.
fn start_legs(
    exchange: &Exchange,
    request: &ParsedRequest,
) -> Result<mpsc::Receiver<Output>, String> {
    let (legs, outputs) = legs_of(exchange, request);
    let register = |leg: LegTask| match leg.register() {
        Some(guard) => Ok((leg, guard)),
        None => Err(leg.duplicate()),
    };
    let registered: Vec<_> = legs.into_iter().map(register).collect::<Result<_, String>>()?;
    for (leg, guard) in registered {
        exchange.process.spawn(leg.run(guard));
    }
    Ok(outputs)
}

/// Starts all legs of a request after `delay`, as an engine that is slow to read it.
fn start_late(
    exchange: &Exchange,
    request: &ParsedRequest,
    delay: Duration,
) -> mpsc::Receiver<Output> {
    let (legs, outputs) = legs_of(exchange, request);
    for leg in legs {
        exchange.process.spawn(async move {
            tokio::time::sleep(delay).await;
            match leg.register() {
                Some(guard) => leg.run(guard).await,
                None => leg.refuse().await,
            }
        });
    }
    outputs
}

fn legs_of(exchange: &Exchange, request: &ParsedRequest) -> (Vec<LegTask>, mpsc::Receiver<Output>) {
    let (out, outputs) = mpsc::channel(MAX_OUTPUTS);
    let leg = |spec: &LegSpec| LegTask {
        process: Arc::clone(&exchange.process),
        spec: spec.clone(),
        out: out.clone(),
        record: exchange.record.clone(),
        stream: request.stream,
    };
    (request.specs.iter().map(leg).collect(), outputs)
}

/// A leg as a task of the engine. It runs on for a while when its client disconnects.
struct LegTask {
    process: Arc<Process>,
    spec: LegSpec,
    out: mpsc::Sender<Output>,
    record: crate::recorder::RequestRecord,
    stream: bool,
}

impl LegTask {
    /// `None` if the request id is in use.
    fn register(&self) -> Option<LegGuard> {
        self.process.register_leg(&self.spec.rid)
    }

    fn duplicate(&self) -> String {
        format!("Duplicate request ID detected: {}", self.spec.rid)
    }

    async fn refuse(self) {
        let finish = Some(Finish::abort(400, self.duplicate()));
        let output = Output { index: self.spec.index, token: None, finish };
        // The client may be gone; the engine ignores that here.
        let _ = self.out.send(output).await;
    }

    async fn client_gone(&self) {
        self.out.closed().await;
        let timing = &self.process.config.timing;
        let delay = if self.stream { timing.disconnect_stream } else { timing.disconnect_poll };
        tokio::time::sleep(delay).await;
    }

    async fn run(self, guard: LegGuard) {
        let running = leg::run(&self.process, &self.spec, &guard.aborted, &self.out);
        tokio::pin!(running);
        let finish = tokio::select! {
            finish = &mut running => finish,
            () = self.client_gone() => {
                self.record.outcome("client gone");
                guard.aborted.cancel();
                running.await
            }
        };
        let aborted = guard.aborted.is_cancelled();
        match finish {
            Finish::Abort { .. } if aborted => self.record.outcome("aborted"),
            Finish::Abort { status, .. } => {
                self.record.outcome(format!("error {}", status.unwrap_or(500)));
            }
            _ if self.out.is_closed() => self.record.outcome("client gone"),
            _ if self.stream && self.spec.index == 0 => self.record.outcome("ok"),
            _ => {}
        }
    }
}

/// Waits for all sequences and answers in one piece.
async fn collect(
    process: &Arc<Process>,
    request: &ParsedRequest,
    mut outputs: mpsc::Receiver<Output>,
) -> Response<Reply> {
    let logprobs = request.logprobs.as_ref();
    let mut sequences: Vec<Sequence> =
        request.specs.iter().map(|spec| Sequence::new(process, spec, logprobs)).collect();
    let mut running = sequences.len();
    while running > 0 {
        // A closed channel means that the leg died with the engine.
        let Some(output) = outputs.recv().await else { return std::future::pending().await };
        let sequence = &mut sequences[output.index];
        sequence.add(output);
        if let Some(finish) = &sequence.finish {
            if let Some((status, kind, message)) = error_of(finish, process.is_0_4()) {
                return error_response(request.api, status, &kind, message);
            }
            running -= 1;
        }
    }
    whole(process, request, &sequences)
}

fn whole(
    process: &Arc<Process>,
    request: &ParsedRequest,
    sequences: &[Sequence],
) -> Response<Reply> {
    let old = process.is_0_4();
    let value = match request.api {
        Api::Generate if request.batch => {
            sequences.iter().map(|sequence| sequence.generate_json(old, None)).collect()
        }
        Api::Generate => sequences[0].generate_json(old, None),
        Api::Chat => openai(request, sequences, old, "chat.completion", chat_choice),
        Api::Completion => openai(request, sequences, old, "text_completion", completion_choice),
        Api::Responses => responses::whole(process, request, &sequences[0]),
        Api::Messages => anthropic::whole(request, &sequences[0]),
    };
    reply_json(StatusCode::OK, &value)
}

fn finish_kind(sequence: &Sequence) -> Value {
    sequence.finish.as_ref().map_or(Value::Null, |finish| finish.kind().into())
}

fn matched(sequence: &Sequence) -> Value {
    sequence.finish.as_ref().map_or(Value::Null, Finish::matched)
}

fn chat_choice(request: &ParsedRequest, sequence: &Sequence, old: bool) -> Value {
    let content =
        if sequence.text.is_empty() && !old { Value::Null } else { sequence.text.as_str().into() };
    let logprobs = if request.logprobs.is_some() { sequence.chat_logprobs(0) } else { Value::Null };
    json!({
        "index": sequence.index,
        "message": {
            "role": "assistant", "content": content, "reasoning_content": null, "tool_calls": null,
        },
        "logprobs": logprobs,
        "finish_reason": finish_kind(sequence),
        "matched_stop": matched(sequence),
    })
}

fn completion_choice(request: &ParsedRequest, sequence: &Sequence, _old: bool) -> Value {
    let logprobs = if request.logprobs.is_some() {
        sequence.completion_logprobs(0, request.echo)
    } else {
        Value::Null
    };
    let echo = if request.echo { sequence.prompt_text.as_str() } else { "" };
    json!({
        "index": sequence.index, "text": format!("{echo}{}", sequence.text), "logprobs": logprobs,
        "finish_reason": finish_kind(sequence), "matched_stop": matched(sequence),
    })
}

fn openai(
    request: &ParsedRequest,
    sequences: &[Sequence],
    old: bool,
    object: &str,
    choice: fn(&ParsedRequest, &Sequence, bool) -> Value,
) -> Value {
    let choices: Vec<Value> = sequences.iter().map(|s| choice(request, s, old)).collect();
    let mut value = json!({
        "id": sequences[0].rid, "object": object, "created": now_seconds(), "model": request.model,
        "choices": choices, "usage": usage(sequences, request.n, old),
    });
    if !old {
        value["metadata"] = json!({"weight_version": "default"});
    }
    value
}

fn first_event_error(request: &ParsedRequest, message: &str) -> Response<Reply> {
    if request.stream {
        return stream::scripted_error(request, message);
    }
    error_response(request.api, StatusCode::INTERNAL_SERVER_ERROR, "500", message)
}
