//! [`EngineClient`]: the requests that the gateway sends to engines. It owns the engines' API key,
//! which goes with the gateway's own requests and never with a client's.

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use router_core::fleet::Worker;

use crate::http_client::received_body::ReceivedBody;

use crate::http_client::{HttpClient, KnownRequest, Protocol, SendError};

const ABORT_PATH: PathAndQuery = PathAndQuery::from_static("/abort_request");

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
        self.http.get(&authority, &path, &headers, limit).await
    }

    /// Sends a request to a worker and waits for the head of the answer.
    ///
    /// # Errors
    /// No head came.
    pub(crate) async fn send(
        &self,
        worker: &Worker,
        request: KnownRequest<'_>,
    ) -> Result<Response<ReceivedBody>, SendError> {
        self.http.send_known(&worker.authority, request).await
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
        let request = KnownRequest {
            protocol: &Protocol::Http1,
            method: Method::POST,
            path: &ABORT_PATH,
            headers: &headers,
            body: body.into(),
            on_written: None,
        };
        Ok(self.send(worker, request).await?.status())
    }

    fn own_headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if let Some(key) = &self.api_key {
            headers.insert(AUTHORIZATION, key.clone());
        }
        headers
    }
}
