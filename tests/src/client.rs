//! A small HTTP client with one connection for each request: dropping an answer closes its connection.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::sse::{Event, Reader};

/// Deadline of every wait.
const PATIENCE: Duration = Duration::from_secs(30);

/// Sends requests to one address.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    pub address: SocketAddr,
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// From the sending of the request to the answer's end.
    pub took: Duration,
}

/// An answer whose head has arrived. Dropping it closes the connection.
#[derive(Debug)]
pub struct Stream {
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// From the sending of the request to the head.
    pub head_took: Duration,
    start: Instant,
    body: Incoming,
    reader: Reader,
    ready: std::collections::VecDeque<Event>,
    connection: Connection,
}

#[derive(Debug)]
struct Connection(JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// How a body ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By the rules of HTTP: the last chunk has come, or all of the announced length.
    Clean,
    /// The connection broke, or an event was left unfinished.
    Cut,
}

impl Client {
    #[must_use]
    pub fn new(address: SocketAddr) -> Client {
        Client { address }
    }

    /// A request with a JSON body, to be changed and sent by [`Client::send`].
    #[must_use]
    pub fn json_request(&self, path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
        let mut request = self.request(Method::POST, path, body);
        let json = HeaderValue::from_static("application/json");
        request.headers_mut().insert(http::header::CONTENT_TYPE, json);
        request
    }

    /// A request with nothing but a host.
    ///
    /// # Panics
    /// The path is none.
    #[must_use]
    pub fn request(
        &self,
        method: Method,
        path: &str,
        body: impl Into<Bytes>,
    ) -> Request<Full<Bytes>> {
        Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::HOST, self.address.to_string())
            .body(Full::new(body.into()))
            .expect("a path that is a URI")
    }

    /// Sends the request and returns with the answer's head.
    ///
    /// # Errors
    /// No connection, or it ends before the head.
    pub async fn try_send(&self, request: Request<Full<Bytes>>) -> anyhow::Result<Stream> {
        let start = Instant::now();
        let socket = TcpStream::connect(self.address).await?;
        socket.set_nodelay(true)?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(socket)).await?;
        // Its errors are the body's errors too.
        let connection = Connection(tokio::spawn(async move { _ = connection.await }));
        let answer = tokio::time::timeout(PATIENCE, sender.send_request(request)).await??;
        let (head, body) = answer.into_parts();
        Ok(Stream {
            status: head.status,
            headers: head.headers,
            head_took: start.elapsed(),
            start,
            body,
            reader: Reader::default(),
            ready: std::collections::VecDeque::new(),
            connection,
        })
    }

    /// As [`Client::try_send`].
    ///
    /// # Panics
    /// Where that is an error.
    pub async fn send(&self, request: Request<Full<Bytes>>) -> Stream {
        let what = format!("{} {}", request.method(), request.uri());
        self.try_send(request).await.unwrap_or_else(|error| panic!("{what}: {error:#}"))
    }

    /// Posts JSON and returns with the head, for a stream.
    pub async fn open(&self, path: &str, body: &Value) -> Stream {
        self.send(self.json_request(path, body.to_string())).await
    }

    /// Posts JSON and reads the whole answer.
    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_bytes(path, body.to_string()).await
    }

    /// Posts bytes with the content type of JSON and reads the whole answer.
    pub async fn post_bytes(&self, path: &str, body: impl Into<Bytes>) -> Answer {
        self.send(self.json_request(path, body)).await.answer().await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(self.request(Method::GET, path, "")).await.answer().await
    }
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Panics
    /// It is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("no JSON ({error}): {}", self.text()))
    }

    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A header's text; empty where there is none.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// `error.message` of an OpenAI-style error.
    ///
    /// # Panics
    /// The body is no such error.
    #[must_use]
    pub fn error_message(&self) -> String {
        let body = self.json();
        let message = body["error"]["message"].as_str();
        message.unwrap_or_else(|| panic!("no error object: {body}")).to_owned()
    }

    /// Returns itself if it has that status.
    ///
    /// # Panics
    /// It has another.
    pub fn expect_status(self, status: u16) -> Answer {
        assert_eq!(self.status.as_u16(), status, "{}", self.text());
        self
    }
}

impl Stream {
    /// The next event; `Err` is how the body ended.
    ///
    /// # Errors
    /// There is no further event.
    ///
    /// # Panics
    /// Nothing arrives for very long.
    pub async fn next(&mut self) -> Result<Event, End> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            let piece = self.piece().await?;
            self.ready.extend(self.reader.feed(&piece, self.start.elapsed()));
        }
    }

    /// The next piece of the body as it came, for tests that read no events.
    ///
    /// # Errors
    /// There is no further piece.
    ///
    /// # Panics
    /// Nothing arrives for very long.
    pub async fn piece(&mut self) -> Result<Bytes, End> {
        loop {
            let frame = tokio::time::timeout(PATIENCE, self.body.frame());
            match frame.await.expect("the next piece of a body") {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(data);
                    }
                }
                None if self.reader.pending().is_empty() => return Err(End::Clean),
                None | Some(Err(_)) => return Err(End::Cut),
            }
        }
    }

    /// All further events and how the body ended.
    pub async fn events(mut self) -> (Vec<Event>, End) {
        let mut events = Vec::new();
        loop {
            match self.next().await {
                Ok(event) => events.push(event),
                Err(end) => return (events, end),
            }
        }
    }

    /// The rest of the body as one answer.
    ///
    /// # Panics
    /// The body is cut.
    pub async fn answer(mut self) -> Answer {
        let mut body = Vec::new();
        let end = loop {
            match self.piece().await {
                Ok(piece) => body.extend_from_slice(&piece),
                Err(end) => break end,
            }
        };
        assert_eq!(end, End::Clean, "a cut body: {}", String::from_utf8_lossy(&body));
        drop(self.connection);
        Answer {
            status: self.status,
            headers: self.headers,
            body: body.into(),
            took: self.start.elapsed(),
        }
    }
}
