//! A prefill and a decode, and a client for both.

#![allow(dead_code, unreachable_pub, reason = "each test file uses only a part")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use sglang_sim::{Config, Engine, Role, Timing, Version};

/// Timeout of every wait for something that should happen at once.
pub const DEADLINE: Duration = Duration::from_secs(5);

/// Timeouts that are short enough for a failure to take less than a second.
pub fn short_timeouts() -> Timing {
    Timing {
        bootstrap_timeout: Duration::from_millis(500),
        waiting_timeout: Duration::from_millis(500),
        heartbeat_interval: Duration::from_millis(50),
        route_retry: Duration::from_millis(20),
        peer_timeout: Duration::from_millis(400),
        disconnect_stream: Duration::from_millis(100),
        disconnect_poll: Duration::from_millis(150),
        health_pause: Duration::from_millis(50),
        health_timeout: Duration::from_millis(300),
        ..Timing::default()
    }
}

pub fn config(role: Role, version: Version) -> Config {
    Config { version, timing: short_timeouts(), ..Config::new(role) }
}

pub async fn start(config: Config) -> Engine {
    Engine::start(config).await.unwrap()
}

/// One prefill and one decode.
pub struct Pair {
    pub prefill: Engine,
    pub decode: Engine,
}

pub async fn pair(version: Version) -> Pair {
    Pair {
        prefill: start(config(Role::Prefill, version)).await,
        decode: start(config(Role::Decode, version)).await,
    }
}

/// A complete answer.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// The connection ended before the body was complete.
    pub broken: bool,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.to_vec()).unwrap()
    }

    /// The JSON of every `data:` event but `[DONE]`.
    pub fn events(&self) -> Vec<Value> {
        self.text()
            .split("\n\n")
            .filter_map(|event| event.lines().find_map(|line| line.strip_prefix("data: ")))
            .filter(|data| *data != "[DONE]")
            .map(|data| serde_json::from_str(data).unwrap_or_else(|e| panic!("{e}: {data}")))
            .collect()
    }

    pub fn is_done(&self) -> bool {
        self.text().ends_with("data: [DONE]\n\n")
    }
}

fn client() -> Client<HttpConnector, Full<Bytes>> {
    Client::builder(TokioExecutor::new()).build_http()
}

fn request(to: SocketAddr, method: Method, path: &str, body: Bytes) -> Request<Full<Bytes>> {
    Request::builder()
        .method(method)
        .uri(format!("http://{to}{path}"))
        .header("content-type", "application/json")
        .body(Full::new(body))
        .unwrap()
}

/// Sends a request. `Err` if no response head arrives.
pub async fn send(
    to: SocketAddr,
    path: &str,
    body: &Value,
) -> Result<http::Response<Incoming>, hyper_util::client::legacy::Error> {
    client().request(request(to, Method::POST, path, body.to_string().into())).await
}

pub async fn read(response: http::Response<Incoming>) -> Answer {
    let (parts, mut incoming) = response.into_parts();
    let mut body = Vec::new();
    let mut broken = false;
    while let Some(frame) = incoming.frame().await {
        match frame {
            Ok(frame) => body.extend_from_slice(frame.data_ref().unwrap_or(&Bytes::new())),
            Err(_) => {
                broken = true;
                break;
            }
        }
    }
    Answer { status: parts.status, headers: parts.headers, body: body.into(), broken }
}

pub async fn post(engine: &Engine, path: &str, body: &Value) -> Answer {
    read(send(engine.address(), path, body).await.unwrap()).await
}

pub async fn get_at(address: SocketAddr, path: &str) -> Answer {
    read(client().request(request(address, Method::GET, path, Bytes::new())).await.unwrap()).await
}

pub async fn get(engine: &Engine, path: &str) -> Answer {
    get_at(engine.address(), path).await
}

pub async fn post_with(engine: &Engine, path: &str, body: &Value, header: (&str, &str)) -> Answer {
    let mut request = request(engine.address(), Method::POST, path, Bytes::from(body.to_string()));
    let name: http::HeaderName = header.0.parse().unwrap();
    request.headers_mut().insert(name, header.1.parse().unwrap());
    read(client().request(request).await.unwrap()).await
}

impl Pair {
    /// The body with the bootstrap fields of this pair.
    pub fn meet(&self, mut body: Value, room: u64) -> Value {
        let bootstrap = self.prefill.bootstrap_address().unwrap();
        body["bootstrap_host"] = json!(bootstrap.ip().to_string());
        body["bootstrap_port"] = json!(bootstrap.port());
        body["bootstrap_room"] = json!(room);
        body
    }

    /// Sends one body to both legs.
    pub async fn both(&self, path: &str, body: &Value) -> (Answer, Answer) {
        tokio::join!(post(&self.prefill, path, body), post(&self.decode, path, body))
    }
}

pub fn generate(text: &str, tokens: usize) -> Value {
    json!({"text": text, "sampling_params": {"temperature": 0, "max_new_tokens": tokens}})
}

pub fn chat(text: &str, tokens: usize) -> Value {
    json!({
        "model": "/models/Qwen3-32B", "messages": [{"role": "user", "content": text}],
        "max_tokens": tokens,
    })
}

pub fn streaming(mut body: Value) -> Value {
    body["stream"] = json!(true);
    body
}

/// The text of a `/generate` answer.
pub fn text_of(answer: &Answer) -> String {
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    answer.json()["text"].as_str().unwrap().to_owned()
}

/// The bytes of a raw connection, and whether a reset ended it.
pub async fn raw(engine: &Engine, body: &Value) -> (String, bool) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(engine.address()).await.unwrap();
    let body = body.to_string();
    let head = format!(
        "POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let (mut bytes, mut chunk) = (Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut chunk).await {
            Ok(0) => return (String::from_utf8_lossy(&bytes).into_owned(), false),
            Ok(length) => bytes.extend_from_slice(&chunk[..length]),
            Err(error) => {
                let reset = error.kind() == std::io::ErrorKind::ConnectionReset;
                return (String::from_utf8_lossy(&bytes).into_owned(), reset);
            }
        }
    }
}

/// Sends a body unchanged, over HTTP/2.
pub async fn post_raw(engine: &Engine, body: &str) -> Answer {
    let client: Client<_, Full<Bytes>> =
        Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    let request = Request::post(format!("{}/generate", engine.url()))
        .header("x-test", "yes")
        .body(Full::new(Bytes::from(body.to_owned())))
        .unwrap();
    read(client.request(request).await.unwrap()).await
}
