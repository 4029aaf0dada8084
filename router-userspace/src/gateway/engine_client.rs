//! [`EngineClient`]: the requests that the gateway sends to engines. It owns the engines' API key,
//! which goes with the gateway's own requests and never with a client's.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use router_core::fleet::Worker;
use router_core::sglang::SplicedBody;

use crate::http_client::received_body::ReceivedBody;
use crate::http_client::response::{ReadLimits, read_body};
use crate::http_client::{HttpClient, OnWritten, Protocol, SendError, reported, whole};

const ABORT_PATH: PathAndQuery = PathAndQuery::from_static("/abort_request");

/// A request to an engine whose body is known.
pub(crate) struct EngineRequest<'a> {
    pub protocol: &'a Protocol,
    pub path: &'a PathAndQuery,
    pub headers: &'a HeaderMap,
    pub body: SplicedBody,
    /// Learns that the body was written, unless that was in vain.
    pub on_written: Option<Arc<dyn OnWritten>>,
}

/// Sends requests to engines; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct EngineClient {
    http: HttpClient,
    api_key: Option<HeaderValue>,
}

impl EngineClient {
    /// `api_key` is the whole value of the `Authorization` header.
    pub(crate) fn new(http: HttpClient, api_key: Option<HeaderValue>) -> EngineClient {
        EngineClient { http, api_key }
    }

    /// Sends a `GET` of the gateway's own and reads up to `limit` bytes of the answer.
    ///
    /// # Errors
    /// No answer came, or it was not whole.
    pub(crate) async fn get(
        &self,
        authority: Authority,
        path: PathAndQuery,
        limit: usize,
    ) -> Result<(StatusCode, Bytes), SendError> {
        let answer = self.get_with(authority, path, self.own_headers(), limit).await?;
        Ok((answer.status(), answer.into_body()))
    }

    /// Sends a `GET` with the headers of a client's request, as [`EngineClient::get`] otherwise.
    ///
    /// # Errors
    /// No answer came, or it was not whole.
    pub(crate) async fn get_with(
        &self,
        authority: Authority,
        path: PathAndQuery,
        headers: HeaderMap,
        limit: usize,
    ) -> Result<Response<Bytes>, SendError> {
        let (method, body) = (Method::GET, whole(Bytes::new()));
        let response =
            self.http.send(Protocol::Http1, authority, method, path, headers, body).await?;
        let (head, body) = response.into_parts();
        let body = read_body(body, &ReadLimits::size(limit)).await;
        let body = body.map_err(|error| SendError::Broken(error.to_string()))?;
        Ok(Response::from_parts(head, body))
    }

    /// Sends a `POST` to a worker and waits for the head of the answer. If the worker had closed a kept
    /// connection before it read the request, it is sent again, once.
    ///
    /// # Errors
    /// No head came.
    pub(crate) async fn post(
        &self,
        worker: &Worker,
        request: EngineRequest<'_>,
    ) -> Result<Response<ReceivedBody>, SendError> {
        let EngineRequest { protocol, path, headers, body, on_written } = request;
        let send = |body| {
            let (to, path) = (worker.authority.clone(), path.clone());
            self.http.send(protocol.clone(), to, Method::POST, path, headers.clone(), body)
        };
        match send(reported(body.clone(), on_written)).await {
            Err(SendError::Unread(_)) => Box::pin(send(whole(body))).await,
            done => done,
        }
    }

    /// Asks a worker to abort the request of this id, and returns the status of its answer.
    ///
    /// # Errors
    /// No head came.
    pub(crate) async fn abort(&self, worker: &Worker, rid: &str) -> Result<StatusCode, SendError> {
        let mut headers = self.own_headers();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        // A request id is made of letters, digits and underscores: nothing to escape.
        let body = Bytes::from(format!(r#"{{"rid":"{rid}"}}"#));
        let request = EngineRequest {
            protocol: &Protocol::Http1,
            path: &ABORT_PATH,
            headers: &headers,
            body: body.into(),
            on_written: None,
        };
        Ok(self.post(worker, request).await?.status())
    }

    fn own_headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if let Some(key) = &self.api_key {
            headers.insert(AUTHORIZATION, key.clone());
        }
        headers
    }
}
