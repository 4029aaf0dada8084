//! One streamed chat completion and its times, and short questions to admin ports and engines.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE};
use hyper::{Request, Response, StatusCode};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::Deserialize;
use serde_json::{Value, json};

/// How much of an unexpected response an error shows, in characters.
const SHOWN: usize = 160;

/// An HTTP/1.1 client; connections are kept and reused.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    http: hyper_util::client::legacy::Client<HttpConnector, Full<Bytes>>,
    /// The value of `Authorization`.
    credentials: Option<String>,
}

/// What came back of a streamed request. Times count from its sending.
#[derive(Debug, Default)]
pub(crate) struct Timing {
    pub(crate) first: Option<Duration>,
    pub(crate) last: Option<Duration>,
    pub(crate) longest_gap: Option<Duration>,
    /// What the engine says it generated, else the number of events with a token.
    pub(crate) tokens: u32,
    pub(crate) prefill: Option<String>,
    pub(crate) decode: Option<String>,
    pub(crate) predicted_ttft_ms: Option<f64>,
}

impl Client {
    pub(crate) fn new(api_key: Option<&str>) -> Client {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
            // Below the keep-alive timeout of uvicorn, which is 5 s.
            .pool_idle_timeout(Duration::from_secs(4))
            .pool_timer(TokioTimer::new())
            .build(connector);
        Client { http, credentials: api_key.map(|key| format!("Bearer {key}")) }
    }

    /// Sends a streamed chat completion and reads it to its end. The timing has what came before an
    /// error.
    pub(crate) async fn stream(
        &self,
        url: &str,
        body: Bytes,
        limit: Duration,
    ) -> (Timing, Result<()>) {
        let mut timing = Timing::default();
        let start = Instant::now();
        let read = self.read_stream(url, body, start, &mut timing);
        let result = match tokio::time::timeout(limit, read).await {
            Ok(result) => result,
            Err(_) => Err(anyhow::anyhow!("no end within {} s", limit.as_secs())),
        };
        (timing, result)
    }

    async fn read_stream(
        &self,
        url: &str,
        body: Bytes,
        start: Instant,
        timing: &mut Timing,
    ) -> Result<()> {
        let url = format!("{url}/v1/chat/completions");
        let mut response = self.send(hyper::Method::POST, &url, body).await?;
        let status = response.status();
        if status != StatusCode::OK {
            let text = response.into_body().collect().await?.to_bytes();
            bail!("status {}: {}", status.as_u16(), shown(&String::from_utf8_lossy(&text)));
        }
        timing.explain(&response);
        let mut events = Events::default();
        while let Some(frame) = response.frame().await {
            let frame = frame.context("the stream broke off")?;
            if let Ok(data) = frame.into_data() {
                events.feed(&data, start.elapsed(), timing)?;
            }
        }
        if !events.is_done {
            bail!("the stream has no [DONE]");
        }
        Ok(())
    }

    async fn send(
        &self,
        method: hyper::Method,
        url: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>> {
        let mut request = Request::builder().method(method).uri(url);
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        if let Some(credentials) = &self.credentials {
            request = request.header(AUTHORIZATION, credentials);
        }
        let request = request.body(Full::new(body)).with_context(|| format!("`{url}`"))?;
        // The client's own message is "client error (Connect)": the cause says more.
        self.http.request(request).await.map_err(|error| {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            anyhow::anyhow!("{url}: {error}{}", cause.map(|c| format!(": {c}")).unwrap_or_default())
        })
    }

    /// The body of a 200.
    ///
    /// # Errors
    /// No connection, no answer within `limit`, or another status.
    pub(crate) async fn text(
        &self,
        method: hyper::Method,
        url: &str,
        body: Bytes,
        limit: Duration,
    ) -> Result<String> {
        let ask = async {
            let response = self.send(method, url, body).await?;
            let status = response.status();
            let bytes = response.into_body().collect().await.context("reading a response")?;
            let text = String::from_utf8_lossy(&bytes.to_bytes()).into_owned();
            if status != StatusCode::OK {
                bail!("{url}: status {}: {}", status.as_u16(), shown(&text));
            }
            Ok(text)
        };
        let asked = tokio::time::timeout(limit, ask).await;
        asked.with_context(|| format!("{url}: no answer within {limit:?}"))?
    }

    pub(crate) async fn get(&self, url: &str, limit: Duration) -> Result<String> {
        self.text(hyper::Method::GET, url, Bytes::new(), limit).await
    }

    pub(crate) async fn post(&self, url: &str, body: Bytes, limit: Duration) -> Result<String> {
        self.text(hyper::Method::POST, url, body, limit).await
    }

    /// The first model that an OpenAI endpoint lists.
    ///
    /// # Errors
    /// It does not answer, or lists none.
    pub(crate) async fn model(&self, url: &str, limit: Duration) -> Result<String> {
        let text = self.get(&format!("{url}/v1/models"), limit).await?;
        let models: Value = serde_json::from_str(&text).context("/v1/models is not JSON")?;
        let id = models["data"][0]["id"].as_str().map(str::to_owned);
        id.with_context(|| format!("{url}/v1/models lists no model: give --model"))
    }

    /// The number of tokens that an endpoint counts in a prompt.
    ///
    /// # Errors
    /// It does not answer, or reports no `usage`.
    pub(crate) async fn prompt_tokens(
        &self,
        url: &str,
        model: &str,
        prompt: &str,
        limit: Duration,
    ) -> Result<u64> {
        let body = json!({"model": model, "max_tokens": 1, "stream": false,
                          "messages": [{"role": "user", "content": prompt}]});
        let url = format!("{url}/v1/chat/completions");
        let text = self.post(&url, body.to_string().into(), limit).await?;
        let answer: Value = serde_json::from_str(&text).context("a completion is not JSON")?;
        let tokens = answer["usage"]["prompt_tokens"].as_u64();
        tokens.with_context(|| format!("{url} reports no usage.prompt_tokens"))
    }
}

/// The body of a streamed request that generates exactly `tokens` tokens.
pub(crate) fn chat(model: &str, prompt: &str, tokens: u32) -> Bytes {
    let body = json!({
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": true,
        "stream": true,
        "stream_options": {"include_usage": true},
    });
    body.to_string().into()
}

impl Timing {
    /// Reads the headers that pd-router adds with --explain-headers.
    fn explain(&mut self, response: &Response<Incoming>) {
        let text = |name: &str| response.headers().get(name)?.to_str().ok().map(str::to_owned);
        self.prefill = text("x-pd-router-prefill");
        self.decode = text("x-pd-router-decode");
        self.predicted_ttft_ms = text("x-pd-router-choice").and_then(|choice| {
            choice.split(' ').find_map(|word| word.strip_prefix("ttft=")?.parse().ok())
        });
    }

    fn token(&mut self, at: Duration) {
        if let Some(last) = self.last {
            let gap = at.saturating_sub(last);
            self.longest_gap = Some(self.longest_gap.map_or(gap, |longest| longest.max(gap)));
        }
        self.first.get_or_insert(at);
        self.last = Some(at);
    }
}

/// Reads server-sent events from pieces of a body.
#[derive(Debug, Default)]
struct Events {
    pending: Vec<u8>,
    is_done: bool,
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    delta: Delta,
    finish_reason: Option<Value>,
}

#[derive(Default, Deserialize)]
struct Delta {
    content: Option<String>,
    reasoning_content: Option<String>,
    tool_calls: Option<Value>,
}

#[derive(Deserialize)]
struct Usage {
    completion_tokens: Option<u32>,
}

impl Events {
    fn feed(&mut self, piece: &[u8], at: Duration, timing: &mut Timing) -> Result<()> {
        self.pending.extend_from_slice(piece);
        let mut begin = 0;
        while let Some(length) = self.pending[begin..].iter().position(|byte| *byte == b'\n') {
            let line = &self.pending[begin..begin + length];
            begin += length + 1;
            let Some(data) = line.strip_prefix(b"data:") else { continue };
            let data = data.trim_ascii();
            if data == b"[DONE]" {
                self.is_done = true;
            } else {
                event(data, at, timing)?;
            }
        }
        self.pending.drain(..begin);
        Ok(())
    }
}

fn event(data: &[u8], at: Duration, timing: &mut Timing) -> Result<()> {
    let text = || shown(&String::from_utf8_lossy(data)).to_owned();
    let chunk: Chunk = serde_json::from_slice(data)
        .with_context(|| format!("an event is not JSON: {}", text()))?;
    if chunk.error.is_some() {
        bail!("an error in the stream: {}", text());
    }
    let is_text = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    let has_token = chunk.choices.iter().any(|choice| {
        is_text(&choice.delta.content)
            || is_text(&choice.delta.reasoning_content)
            || choice.delta.tool_calls.as_ref().is_some_and(|calls| !calls.is_null())
    });
    if has_token {
        timing.tokens += 1;
    }
    // The last token may have no text of its own.
    if has_token || chunk.choices.iter().any(|choice| choice.finish_reason.is_some()) {
        timing.token(at);
    }
    if let Some(tokens) = chunk.usage.and_then(|usage| usage.completion_tokens) {
        timing.tokens = tokens;
    }
    Ok(())
}

fn shown(text: &str) -> &str {
    let end = text.char_indices().nth(SHOWN).map_or(text.len(), |(at, _)| at);
    text[..end].trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn read(pieces: &[&str]) -> (Timing, bool, Result<()>) {
        let (mut events, mut timing) = (Events::default(), Timing::default());
        let mut result = Ok(());
        for (at, piece) in (1..).zip(pieces) {
            result = result.and_then(|()| events.feed(piece.as_bytes(), MS * 10 * at, &mut timing));
        }
        (timing, events.is_done, result)
    }

    #[test]
    fn the_first_token_counts_and_the_role_before_it_does_not() {
        let (timing, is_done, result) = read(&[
            "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n",
            "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\ndata: {\"cho",
            "ices\":[{\"delta\":{\"content\":\"b\"}}]}\n\n: comment\n\n",
            "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"length\"}]}\n\n",
            "data: {\"choices\":[],\"usage\":{\"completion_tokens\":9}}\n\ndata: [DONE]\n\n",
        ]);
        result.unwrap();
        assert!(is_done);
        assert_eq!((timing.first, timing.last), (Some(20 * MS), Some(40 * MS)));
        assert_eq!((timing.tokens, timing.longest_gap), (9, Some(10 * MS)));
    }

    #[test]
    fn an_error_within_a_stream_is_an_error() {
        let (_, is_done, result) = read(&["data: {\"error\":{\"message\":\"x\"}}\n\n"]);
        assert!(!is_done && result.unwrap_err().to_string().contains("error in the stream"));
        assert!(read(&["data: {\"choices\"\n\n"]).2.is_err());
    }
}
