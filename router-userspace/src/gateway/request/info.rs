//! Questions about a pool that several workers, or the gateway itself, answer.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::header::CONTENT_TYPE;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use router_core::fleet::{Member, Phase, Pool, Role, Verdict, Worker};
use router_core::sglang::info;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::body::Answer;
use super::handle::{Call, Reply};
use super::reject::Reject;
use crate::gateway::shared::Gateway;
use crate::http_client::{read_body, whole};

/// Workers that are asked for one merged answer.
const MAX_ASKED: usize = 64;
/// Workers that are tried for one part of it.
const MAX_TRIED: usize = 2;
/// For one worker's part of a merged answer; a part that is late is left out.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// An engine's generating health check waits up to 20 s itself.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(25);
/// Largest part of a merged answer.
const MAX_PART: usize = 4 << 20;

impl Gateway {
    /// `GET /v1/models`: what one worker of each model of the pool says.
    pub(crate) async fn models(&self, pool: &Pool, call: Call) -> Result<Reply, Reject> {
        let seats = |fit: &router_core::fleet::CompatibleSet| {
            let all = fit.prefill.iter().chain(&fit.decode).chain(&fit.unified);
            up(all.map(|&seat| &pool.members[seat]))
        };
        let parts = self.ask(pool.compatible_sets.iter().map(seats), &call, ASK_TIMEOUT).await;
        let mut answers = parts.into_iter().filter(|(status, _)| status.is_success());
        let Some((_, first)) = answers.next() else {
            return Err(Reject::NobodyReady(pool.name.clone()));
        };
        let rest: Vec<Bytes> = answers.map(|(_, body)| body).collect();
        if rest.is_empty() {
            return Ok(json_reply(StatusCode::OK, first));
        }
        Ok(json_reply(StatusCode::OK, merged_models(&first, &rest)))
    }

    /// `GET /server_info`: every worker's, merged as SGLang's benchmark tools expect it of a
    /// load balancer; of a pool without a split, one worker's.
    pub(crate) async fn server_info(&self, pool: &Pool, call: Call) -> Result<Reply, Reject> {
        let unified = of_role(pool, Role::Unified);
        if !unified.is_empty() {
            let mut parts = self.ask([unified], &call, ASK_TIMEOUT).await;
            let (status, body) =
                parts.pop().ok_or_else(|| Reject::NobodyReady(pool.name.clone()))?;
            return Ok(json_reply(status, body));
        }
        let each = |role| {
            let up = pool.members.iter().filter(move |m| m.role == role && is_up(m));
            up.map(|member| vec![&member.worker])
        };
        let good = |parts: Vec<(StatusCode, Bytes)>| -> Vec<Bytes> {
            parts.into_iter().filter(|(status, _)| status.is_success()).map(|part| part.1).collect()
        };
        let (prefill, decode) = tokio::join!(
            self.ask(each(Role::Prefill), &call, ASK_TIMEOUT),
            self.ask(each(Role::Decode), &call, ASK_TIMEOUT),
        );
        Ok(json_reply(StatusCode::OK, info::server_info(&good(prefill), &good(decode))))
    }

    /// `GET /health`: whether somebody could serve a request now.
    pub(crate) fn health(&self, pool: &Pool) -> Result<Reply, Reject> {
        if serves(pool) {
            return Ok(json_reply(StatusCode::OK, Bytes::from_static(b"{\"status\":\"ok\"}")));
        }
        Err(Reject::NobodyReady(pool.name.clone()))
    }

    /// `GET /health_generate`: whether a worker of each role generates a token.
    pub(crate) async fn health_generate(&self, pool: &Pool, call: Call) -> Result<Reply, Reject> {
        let roles = [Role::Prefill, Role::Decode, Role::Unified].map(|role| of_role(pool, role));
        let asked: Vec<_> = roles.into_iter().filter(|workers| !workers.is_empty()).collect();
        let wanted = asked.len();
        let parts = self.ask(asked, &call, HEALTH_TIMEOUT).await;
        let good = parts.iter().filter(|(status, _)| status.is_success()).count();
        if wanted > 0 && good == wanted {
            return Ok(json_reply(StatusCode::OK, Bytes::from_static(b"{\"status\":\"ok\"}")));
        }
        Err(Reject::NobodyReady(pool.name.clone()))
    }

    /// The call's `GET` at several workers at once, each given with those who could stand in for
    /// it. Where none of them answers, the part is left out.
    async fn ask<'a>(
        &self,
        workers: impl IntoIterator<Item = Vec<&'a Arc<Worker>>>,
        call: &Call,
        limit: Duration,
    ) -> Vec<(StatusCode, Bytes)> {
        let one = |workers: Vec<&'a Arc<Worker>>| async move {
            for worker in workers {
                let got = self.get(worker, call.path.clone(), call.headers.clone());
                if let Some(answer) = timeout(limit, got).await.ok().flatten() {
                    return Some(answer);
                }
            }
            None
        };
        let asked = workers.into_iter().take(MAX_ASKED).map(one);
        join_all(asked).await.into_iter().flatten().collect()
    }

    async fn get(
        &self,
        worker: &Arc<Worker>,
        path: PathAndQuery,
        headers: HeaderMap,
    ) -> Option<(StatusCode, Bytes)> {
        let none = whole(Bytes::new());
        let upstream = &self.dispatch.upstream;
        let response = upstream.send(worker, Method::GET, path, headers, none).await.ok()?;
        let status = response.status();
        Some((status, read_body(response.into_body(), MAX_PART).await.ok()?))
    }
}

/// Whether somebody of every role that a request needs is up.
pub(crate) fn serves(pool: &Pool) -> bool {
    let up = |seats: &[usize]| seats.iter().any(|&seat| is_up(&pool.members[seat]));
    pool.compatible_sets.iter().any(|fit| up(&fit.unified) || (up(&fit.prefill) && up(&fit.decode)))
}

/// The first workers that are up.
fn up<'p>(members: impl Iterator<Item = &'p Member>) -> Vec<&'p Arc<Worker>> {
    let up = members.filter(|member| is_up(member));
    up.take(MAX_TRIED).map(|member| &member.worker).collect()
}

fn of_role(pool: &Pool, role: Role) -> Vec<&Arc<Worker>> {
    up(pool.members.iter().filter(|member| member.role == role))
}

fn is_up(member: &Member) -> bool {
    member.phase == Phase::Ready && member.worker.health.verdict() == Verdict::Up
}

/// Several `/v1/models` lists as one. Read and written anew: no client relies on its bytes.
fn merged_models(first: &Bytes, rest: &[Bytes]) -> Bytes {
    let data = |body: &Bytes| match serde_json::from_slice::<Value>(body) {
        Ok(Value::Object(mut list)) => list.remove("data").and_then(|data| match data {
            Value::Array(models) => Some(models),
            _ => None,
        }),
        _ => None,
    };
    let mut models: Vec<Value> = Vec::new();
    for model in std::iter::once(first).chain(rest).filter_map(data).flatten() {
        if !models.iter().any(|known| known["id"] == model["id"]) {
            models.push(model);
        }
    }
    Bytes::from(json!({ "object": "list", "data": models }).to_string())
}

fn json_reply(status: StatusCode, body: Bytes) -> Reply {
    let mut response = Response::new(Answer::whole(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Reply::Whole(response)
}
