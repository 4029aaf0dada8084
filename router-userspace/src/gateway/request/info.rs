//! `/v1/models`, `/server_info`, `/health` and `/health_generate` of a pool: answered by several
//! workers, or by the gateway itself.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response, StatusCode};
use router_core::fleet::{Member, Phase, Pool, Role, Verdict, Worker};
use router_core::sglang::info;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::reject::Reject;
use super::response_body::ResponseBody;
use super::routed::{Reply, RoutedRequest};
use crate::gateway::shared::Gateway;

/// Maximum number of parts of one merged answer.
const MAX_PARTS: usize = 64;
/// Maximum number of workers that are tried for one part.
const MAX_TRIED: usize = 2;
/// Timeout of one worker's part of a merged answer; a part that times out is left out.
const PART_TIMEOUT: Duration = Duration::from_secs(5);
/// An engine's generating health check waits up to 20 s itself.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(25);
/// Maximum size of a part of a merged answer, in bytes.
const MAX_PART_BYTES: usize = 4 << 20;

impl Gateway {
    /// `GET /v1/models`: the answers of one worker of each model of the pool, merged.
    pub(crate) async fn models(
        &self,
        pool: &Pool,
        request: RoutedRequest,
    ) -> Result<Reply, Reject> {
        let workers = |set: &router_core::fleet::CompatibleSet| {
            let all = set.prefill.iter().chain(&set.decode).chain(&set.unified);
            up(all.map(|&id| &pool.members[id]))
        };
        let parts =
            self.ask(pool.compatible_sets.iter().map(workers), &request, PART_TIMEOUT).await;
        let mut answers = parts.into_iter().filter(|(status, _)| status.is_success());
        let Some((_, first)) = answers.next() else {
            return Err(Reject::NoWorkerReady(pool.name.clone()));
        };
        let rest: Vec<Bytes> = answers.map(|(_, body)| body).collect();
        if rest.is_empty() {
            return Ok(json_reply(StatusCode::OK, first));
        }
        Ok(json_reply(StatusCode::OK, merged_models(&first, &rest)))
    }

    /// `GET /server_info`: the answers of all workers, merged as SGLang's benchmark tools expect it
    /// from a load balancer; of a pool of unified workers, the answer of one.
    pub(crate) async fn server_info(
        &self,
        pool: &Pool,
        request: RoutedRequest,
    ) -> Result<Reply, Reject> {
        let unified = of_role(pool, Role::Unified);
        if !unified.is_empty() {
            let mut parts = self.ask([unified], &request, PART_TIMEOUT).await;
            let (status, body) =
                parts.pop().ok_or_else(|| Reject::NoWorkerReady(pool.name.clone()))?;
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
            self.ask(each(Role::Prefill), &request, PART_TIMEOUT),
            self.ask(each(Role::Decode), &request, PART_TIMEOUT),
        );
        Ok(json_reply(StatusCode::OK, info::server_info(&good(prefill), &good(decode))))
    }

    /// `GET /health`: whether the pool could serve a request now.
    pub(crate) fn health(&self, pool: &Pool) -> Result<Reply, Reject> {
        if serves(pool) {
            return Ok(json_reply(StatusCode::OK, Bytes::from_static(b"{\"status\":\"ok\"}")));
        }
        Err(Reject::NoWorkerReady(pool.name.clone()))
    }

    /// `GET /health_generate`: whether a worker of each role generates a token.
    pub(crate) async fn health_generate(
        &self,
        pool: &Pool,
        request: RoutedRequest,
    ) -> Result<Reply, Reject> {
        let roles = [Role::Prefill, Role::Decode, Role::Unified].map(|role| of_role(pool, role));
        let asked: Vec<_> = roles.into_iter().filter(|workers| !workers.is_empty()).collect();
        let wanted = asked.len();
        let parts = self.ask(asked, &request, HEALTH_TIMEOUT).await;
        let good = parts.iter().filter(|(status, _)| status.is_success()).count();
        if wanted > 0 && good == wanted {
            return Ok(json_reply(StatusCode::OK, Bytes::from_static(b"{\"status\":\"ok\"}")));
        }
        Err(Reject::NoWorkerReady(pool.name.clone()))
    }

    /// Sends the request's `GET` for several parts at once, each to the first of its workers that
    /// answers. A part of which no worker answers is left out.
    async fn ask<'a>(
        &self,
        workers: impl IntoIterator<Item = Vec<&'a Arc<Worker>>>,
        request: &RoutedRequest,
        limit: Duration,
    ) -> Vec<(StatusCode, Bytes)> {
        let engines = &self.dispatch.engines;
        let one = |workers: Vec<&'a Arc<Worker>>| async move {
            for worker in workers {
                let (path, headers) = (request.path.clone(), request.headers.clone());
                let authority = worker.authority.clone();
                let answer = engines.get_with(authority, path, headers, MAX_PART_BYTES);
                if let Ok(Ok(answer)) = timeout(limit, answer).await {
                    return Some(answer);
                }
            }
            None
        };
        let parts = workers.into_iter().take(MAX_PARTS).map(one);
        join_all(parts).await.into_iter().flatten().collect()
    }
}

/// Whether a worker of every role that a request needs is up.
pub(crate) fn serves(pool: &Pool) -> bool {
    let up = |ids: &[usize]| ids.iter().any(|&id| is_up(&pool.members[id]));
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

/// Merges several `/v1/models` lists. They are parsed and serialised: no client relies on the bytes.
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
    let mut response = Response::new(ResponseBody::full(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Reply::Whole(response)
}
