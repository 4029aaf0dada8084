//! `/v1/models`, `/server_info`, `/health` and `/health_generate` of a pool: answered by several
//! workers, or by the gateway itself.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::header::CONTENT_TYPE;
use http::uri::PathAndQuery;
use http::{HeaderValue, Response};
use router_core::fleet::{Member, Phase, Pool, Role, Worker};
use router_core::sglang::info;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::reject::Reject;
use super::response_body::ResponseBody;
use super::routed::{Reply, RoutedRequest};
use super::shared_answers::AnswerKey;
use crate::gateway::shared::Gateway;
use crate::gateway::upstream::fault::{Fault, FaultKind};
use crate::gateway::upstream::leg::plain_refusal;

/// Maximum number of parts of one merged answer.
const MAX_PARTS: usize = 64;
/// Maximum number of workers that are tried for one part.
const MAX_TRIED: usize = 2;
/// Timeout of one worker's part of a merged answer; a part that times out is left out.
const PART_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout of one worker's generating health check, of which two are tried for each role. A busy engine
/// answers with its next token. A frozen one would take 20 s by itself, longer than load balancers wait.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum size of a part of a merged answer, in bytes.
const MAX_PART_BYTES: usize = 4 << 20;
/// The answer of a pool that serves.
const HEALTHY: &[u8] = b"{\"status\":\"ok\"}";

/// The answer of one worker.
struct Part {
    worker: Arc<Worker>,
    answer: Response<Bytes>,
}

impl Part {
    fn is_success(&self) -> bool {
        self.answer.status().is_success()
    }

    fn refusal(self) -> Reject {
        let (head, body) = self.answer.into_parts();
        let kind = plain_refusal(head.status, &head.headers, &body);
        Fault { leg: None, worker: self.worker, kind }.into()
    }
}

impl Gateway {
    /// `GET /v1/models`: the answers of one worker of each model of the pool, merged.
    pub(crate) async fn models(
        &self,
        pool: &Pool,
        request: RoutedRequest,
    ) -> Result<Reply, Reject> {
        let fetch = async {
            let workers = |set: &router_core::fleet::CompatibleSet| {
                let all = set.prefill.iter().chain(&set.decode).chain(&set.unified);
                up(all.map(|&id| &pool.members[id]))
            };
            let workers = pool.compatible_sets.iter().map(workers);
            let mut answers = successes(pool, self.ask(workers, &request, PART_TIMEOUT).await)?;
            Ok(match answers.len() {
                1 => answers.remove(0),
                _ => merged_models(&answers),
            })
        };
        self.shared(pool, &request, fetch).await
    }

    /// `GET /server_info`: the answers of all workers, merged as SGLang's benchmark tools expect it
    /// from a load balancer; of a pool of unified workers, the answer of one. Only what clients may
    /// see is passed on.
    pub(crate) async fn server_info(
        &self,
        pool: &Pool,
        request: RoutedRequest,
    ) -> Result<Reply, Reject> {
        self.shared(pool, &request, self.fetch_server_info(pool, &request)).await
    }

    async fn fetch_server_info(
        &self,
        pool: &Pool,
        request: &RoutedRequest,
    ) -> Result<Bytes, Reject> {
        let unified = of_role(pool, Role::Unified);
        if !unified.is_empty() {
            let mut parts = self.ask([unified], request, PART_TIMEOUT).await;
            let Some(part) = parts.pop_if(|part| part.is_success()) else {
                return Err(refused(pool, parts));
            };
            return info::public_server_info(part.answer.body()).ok_or_else(|| {
                let kind = FaultKind::Malformed("its information is not a JSON object".to_owned());
                Fault { leg: None, worker: part.worker, kind }.into()
            });
        }
        let each = |role| {
            let up = pool.members.iter().filter(move |m| m.role == role && is_up(m));
            up.map(|member| vec![&member.worker])
        };
        let (prefill, decode) = tokio::join!(
            self.ask(each(Role::Prefill), request, PART_TIMEOUT),
            self.ask(each(Role::Decode), request, PART_TIMEOUT),
        );
        let count = prefill.len();
        let all: Vec<Part> = prefill.into_iter().chain(decode).collect();
        if !all.iter().any(Part::is_success) {
            return Err(refused(pool, all));
        }
        let bodies = |parts: &[Part]| -> Vec<Bytes> {
            let good = parts.iter().filter(|part| part.is_success());
            good.map(|part| part.answer.body().clone()).collect()
        };
        let (prefill, decode) = all.split_at(count);
        Ok(info::server_info(&bodies(prefill), &bodies(decode)))
    }

    /// `GET /health`: whether a request to the pool would be sent to engines that are not down.
    pub(crate) fn health(&self, pool: &Pool) -> Result<Reply, Reject> {
        if pool.can_serve() {
            return Ok(json_reply(Bytes::from_static(HEALTHY)));
        }
        Err(Reject::no_worker_ready(pool))
    }

    /// `GET /health_generate`: whether a worker of each role generates a token.
    pub(crate) async fn health_generate(
        &self,
        pool: &Pool,
        request: RoutedRequest,
    ) -> Result<Reply, Reject> {
        let fetch = async {
            let roles =
                [Role::Prefill, Role::Decode, Role::Unified].map(|role| of_role(pool, role));
            let asked: Vec<_> = roles.into_iter().filter(|workers| !workers.is_empty()).collect();
            let wanted = asked.len();
            let parts = self.ask(asked, &request, HEALTH_TIMEOUT).await;
            let good = parts.iter().filter(|part| part.is_success()).count();
            if wanted > 0 && good == wanted {
                return Ok(Bytes::from_static(HEALTHY));
            }
            // An engine's refusal of the request, such as 401 without its key, says nothing of its health.
            match parts.into_iter().find(|part| part.answer.status().is_client_error()) {
                Some(refusal) => Err(refusal.refusal()),
                None => Err(Reject::no_worker_ready(pool)),
            }
        };
        self.shared(pool, &request, fetch).await
    }

    /// The answer of `fetch`, or the same answer to another caller within a second.
    async fn shared(
        &self,
        pool: &Pool,
        request: &RoutedRequest,
        fetch: impl Future<Output = Result<Bytes, Reject>>,
    ) -> Result<Reply, Reject> {
        let key = AnswerKey::new(&pool.name, request.path.path(), &request.headers);
        self.shared_answers.get_or_fetch(key, fetch).await.map(json_reply)
    }

    /// Sends the request's `GET` for several parts at once, each to the first of its workers that
    /// answers. A part of which no worker answers is left out.
    async fn ask<'a>(
        &self,
        workers: impl IntoIterator<Item = Vec<&'a Arc<Worker>>>,
        request: &RoutedRequest,
        limit: Duration,
    ) -> Vec<Part> {
        let engines = &self.dispatch.engines;
        let one = |workers: Vec<&'a Arc<Worker>>| async move {
            for worker in workers {
                // Without the query, which is no part of the key of a shared answer.
                let path = PathAndQuery::try_from(request.path.path()).ok()?;
                let (headers, authority) = (request.headers.clone(), worker.authority.clone());
                let answer = engines.get_with(authority, path, headers, MAX_PART_BYTES);
                if let Ok(Ok(answer)) = timeout(limit, answer).await {
                    return Some(Part { worker: Arc::clone(worker), answer });
                }
            }
            None
        };
        let parts = workers.into_iter().take(MAX_PARTS).map(one);
        join_all(parts).await.into_iter().flatten().collect()
    }
}

/// The bodies of the successful answers.
///
/// # Errors
/// There is none: the refusal of an engine, such as the 401 for a request without its key.
fn successes(pool: &Pool, parts: Vec<Part>) -> Result<Vec<Bytes>, Reject> {
    let (good, bad): (Vec<Part>, Vec<Part>) = parts.into_iter().partition(Part::is_success);
    match good.is_empty() {
        true => Err(refused(pool, bad)),
        false => Ok(good.into_iter().map(|part| part.answer.into_body()).collect()),
    }
}

/// What the client gets if no engine succeeded: an engine's refusal of the request if there is one.
fn refused(pool: &Pool, mut parts: Vec<Part>) -> Reject {
    let clients = parts.iter().position(|part| part.answer.status().is_client_error());
    match parts.is_empty() {
        true => Reject::no_worker_ready(pool),
        false => parts.swap_remove(clients.unwrap_or(0)).refusal(),
    }
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
    member.phase == Phase::Ready && member.worker.health.verdict().serves()
}

/// Merges several `/v1/models` lists. They are parsed and serialised: no client relies on the bytes.
fn merged_models(answers: &[Bytes]) -> Bytes {
    let data = |body: &Bytes| match serde_json::from_slice::<Value>(body) {
        Ok(Value::Object(mut list)) => list.remove("data").and_then(|data| match data {
            Value::Array(models) => Some(models),
            _ => None,
        }),
        _ => None,
    };
    let mut models: Vec<Value> = Vec::new();
    for model in answers.iter().filter_map(data).flatten() {
        if !models.iter().any(|known| known["id"] == model["id"]) {
            models.push(model);
        }
    }
    Bytes::from(json!({ "object": "list", "data": models }).to_string())
}

fn json_reply(body: Bytes) -> Reply {
    let mut response = Response::new(ResponseBody::full(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Reply::Whole(response)
}
