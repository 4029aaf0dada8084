//! Runs what a request asks for and answers it whole, or hands it to the stream.

use std::sync::Arc;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, Response, StatusCode};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::leg::{self, Finish, Job, Output};
use crate::life::{Admission, Life};
use crate::script::Action;

use super::ask::{self, Api, Ask, Refusal};
use super::sequence::{Sequence, now_seconds, usage};
use super::stream;
use super::{Exchange, Reply, anthropic, outcome_of, plain, reply_json, responses};

/// Outputs that may wait for a slow client, for each request.
const OUTPUTS: usize = 64;

/// Whether the body is declared as JSON, as the OpenAI endpoints insist.
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

/// An error as the API gives it before or instead of an answer.
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

/// How a sequence's end becomes an exception of a request that is not streamed.
pub(crate) fn raised(finish: &Finish, old: bool) -> Option<(StatusCode, String, &str)> {
    let Finish::Abort { message, status: Some(code) } = finish else { return None };
    // The old engine answers what failed with 500 as if it were an answer.
    if old && *code == 500 {
        return None;
    }
    let status = StatusCode::from_u16(*code).ok()?;
    let kind = if *code == 400 { "BadRequestError".to_owned() } else { code.to_string() };
    Some((status, kind, message))
}

fn refuse(api: Api, refusal: Refusal, stream: bool) -> Response<Reply> {
    match refusal {
        Refusal::Value(message) if api == Api::Generate && stream => stream::value_error(&message),
        Refusal::Value(message) => {
            error_response(api, StatusCode::BAD_REQUEST, "BadRequestError", &message)
        }
        Refusal::Validation(message) => {
            let error = error_object(&message, "Bad Request", 400);
            reply_json(StatusCode::BAD_REQUEST, &error)
        }
        Refusal::Crash(_) if api == Api::Generate => {
            plain(StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error")
        }
        Refusal::Crash(message) => {
            let message = format!("Internal server error: {message}");
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            error_response(api, status, "InternalServerError", &message)
        }
        Refusal::NoSuchResponse(id) => responses::not_found(&id),
    }
}

/// Applies the script actions that change how legs run.
fn twist(ask: &mut Ask, action: Option<&Action>) {
    for job in &mut ask.jobs {
        match action {
            Some(Action::NeverRendezvous) => job.never_meets = true,
            Some(Action::Slow { factor }) => job.slow = *factor,
            _ => {}
        }
    }
}

/// Answers a request that generates.
pub(crate) async fn answer(exchange: &Exchange, api: Api) -> Response<Reply> {
    let life = &exchange.life;
    let asked = ask::read(life, api, exchange.head.headers(), &exchange.body);
    let mut ask = match asked {
        Ok(ask) => ask,
        Err(refusal) => {
            let body: Value = serde_json::from_slice(&exchange.body).unwrap_or_default();
            let response = refuse(api, refusal, body["stream"] == true);
            exchange.entry.outcome(format!("error {}", response.status().as_u16()));
            return response;
        }
    };
    if let Some(Action::FirstEventError { message }) = &exchange.twist {
        return first_event_error(&ask, message);
    }
    twist(&mut ask, exchange.twist.as_ref());
    let numbers = ask.jobs.iter().filter_map(|job| match job.room {
        Some(leg::Room::Number(room)) => Some(room),
        _ => None,
    });
    exchange.entry.legs(ask.jobs.iter().map(|job| job.rid.clone()).collect(), numbers.collect());

    let mut admissions = Vec::with_capacity(ask.jobs.len());
    for job in &ask.jobs {
        let Some(admission) = life.admit(&job.rid) else {
            let message = format!("Duplicate request ID detected: {}", job.rid);
            exchange.entry.outcome("error 400");
            return refuse(api, Refusal::Value(message), ask.stream);
        };
        admissions.push(admission);
    }
    let outputs = begin(exchange, &ask, admissions);
    if ask.stream {
        return stream::answer(exchange, ask, outputs).await;
    }
    let response = collect(life, &ask, outputs).await;
    exchange.entry.outcome(outcome_of(response.status()));
    response
}

/// Starts all legs of a request.
fn begin(exchange: &Exchange, ask: &Ask, admissions: Vec<Admission>) -> mpsc::Receiver<Output> {
    let (out, outputs) = mpsc::channel(OUTPUTS);
    for (job, admission) in ask.jobs.iter().zip(admissions) {
        let leg = Running {
            life: Arc::clone(&exchange.life),
            job: job.clone(),
            admission,
            out: out.clone(),
            entry: exchange.entry.clone(),
            stream: ask.stream,
        };
        exchange.life.spawn(leg.run());
    }
    outputs
}

/// A leg as a task of the engine: it goes on without its client, for a while.
struct Running {
    life: Arc<Life>,
    job: Job,
    admission: Admission,
    out: mpsc::Sender<Output>,
    entry: crate::ledger::Entry,
    stream: bool,
}

impl Running {
    async fn client_gone(&self) {
        self.out.closed().await;
        let timing = &self.life.config.timing;
        let delay = if self.stream { timing.disconnect_stream } else { timing.disconnect_poll };
        tokio::time::sleep(delay).await;
    }

    async fn run(self) {
        let running = leg::run(&self.life, &self.job, &self.admission.aborted, &self.out);
        tokio::pin!(running);
        let finish = tokio::select! {
            finish = &mut running => finish,
            () = self.client_gone() => {
                self.entry.outcome("client gone");
                self.admission.aborted.cancel();
                running.await
            }
        };
        let aborted = self.admission.aborted.is_cancelled();
        match finish {
            Finish::Abort { .. } if aborted => self.entry.outcome("aborted"),
            Finish::Abort { status, .. } => {
                self.entry.outcome(format!("error {}", status.unwrap_or(500)));
            }
            _ if self.out.is_closed() => self.entry.outcome("client gone"),
            _ if self.stream && self.job.index == 0 => self.entry.outcome("ok"),
            _ => {}
        }
    }
}

/// Waits for all sequences and answers them in one piece.
async fn collect(
    life: &Arc<Life>,
    ask: &Ask,
    mut outputs: mpsc::Receiver<Output>,
) -> Response<Reply> {
    let logprobs = ask.logprobs.as_ref();
    let mut sequences: Vec<Sequence> =
        ask.jobs.iter().map(|job| Sequence::new(life, job, logprobs)).collect();
    let mut open = sequences.len();
    while open > 0 {
        // Without its sender a leg has died with the engine.
        let Some(output) = outputs.recv().await else { return std::future::pending().await };
        let sequence = &mut sequences[output.index];
        sequence.add(output);
        if let Some(finish) = &sequence.finish {
            if let Some((status, kind, message)) = raised(finish, life.is_old()) {
                return error_response(ask.api, status, &kind, message);
            }
            open -= 1;
        }
    }
    whole(life, ask, &sequences)
}

fn whole(life: &Arc<Life>, ask: &Ask, sequences: &[Sequence]) -> Response<Reply> {
    let old = life.is_old();
    let value = match ask.api {
        Api::Generate if ask.batch => {
            sequences.iter().map(|sequence| sequence.generate_json(old, None)).collect()
        }
        Api::Generate => sequences[0].generate_json(old, None),
        Api::Chat => openai(ask, sequences, old, "chat.completion", chat_choice),
        Api::Completion => openai(ask, sequences, old, "text_completion", completion_choice),
        Api::Responses => responses::whole(life, ask, &sequences[0]),
        Api::Messages => anthropic::whole(ask, &sequences[0]),
    };
    reply_json(StatusCode::OK, &value)
}

fn finish_kind(sequence: &Sequence) -> Value {
    sequence.finish.as_ref().map_or(Value::Null, |finish| finish.kind().into())
}

fn matched(sequence: &Sequence) -> Value {
    sequence.finish.as_ref().map_or(Value::Null, Finish::matched)
}

fn chat_choice(ask: &Ask, sequence: &Sequence, old: bool) -> Value {
    let content =
        if sequence.text.is_empty() && !old { Value::Null } else { sequence.text.as_str().into() };
    let logprobs = if ask.logprobs.is_some() { sequence.chat_logprobs(0) } else { Value::Null };
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

fn completion_choice(ask: &Ask, sequence: &Sequence, _old: bool) -> Value {
    let logprobs =
        if ask.logprobs.is_some() { sequence.completion_logprobs(0) } else { Value::Null };
    json!({
        "index": sequence.index, "text": sequence.text, "logprobs": logprobs,
        "finish_reason": finish_kind(sequence), "matched_stop": matched(sequence),
    })
}

fn openai(
    ask: &Ask,
    sequences: &[Sequence],
    old: bool,
    object: &str,
    choice: fn(&Ask, &Sequence, bool) -> Value,
) -> Value {
    let choices: Vec<Value> = sequences.iter().map(|s| choice(ask, s, old)).collect();
    let mut value = json!({
        "id": sequences[0].rid, "object": object, "created": now_seconds(), "model": ask.model,
        "choices": choices, "usage": usage(sequences, ask.n, old),
    });
    if !old {
        value["metadata"] = json!({"weight_version": "default"});
    }
    value
}

fn first_event_error(ask: &Ask, message: &str) -> Response<Reply> {
    if ask.stream {
        return stream::scripted_error(ask, message);
    }
    error_response(ask.api, StatusCode::INTERNAL_SERVER_ERROR, "500", message)
}
