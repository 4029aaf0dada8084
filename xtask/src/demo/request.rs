//! The documents' request, sent with curl as they print it, and what came back.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::process::Command;

/// One of the documents' requests.
#[derive(Debug)]
pub(super) struct Request {
    language: &'static str,
    message: &'static str,
    stream: bool,
}

const MESSAGES: [(&str, &str); 2] =
    [("English", "Hello, this is a test"), ("Chinese", "你好,这是一个测试")];

/// The whole request; an answer of 50 tokens takes well under a second.
const PATIENCE: Duration = Duration::from_secs(60);

impl Request {
    /// Both languages, without and with streaming.
    pub(super) fn all() -> impl Iterator<Item = Request> {
        MESSAGES.into_iter().flat_map(|(language, message)| {
            [false, true].map(|stream| Request { language, message, stream })
        })
    }

    /// The body as the documents print it; a stream has one line more.
    fn body(&self) -> String {
        let stream = if self.stream { ",\n    \"stream\": true" } else { "" };
        format!(
            "{{
    \"model\": \"/models/Qwen3-32B\",
    \"messages\": [
      {{\"role\": \"user\", \"content\": \"{}\"}}
    ],
    \"max_tokens\": 50{stream}
  }}",
            self.message
        )
    }

    /// Sends the request, prints it and the answer, and checks the answer.
    pub(super) async fn send(&self, gateway: &str) -> Result<()> {
        let url = format!("http://{gateway}/v1/chat/completions");
        let body = self.body();
        let kind = if self.stream { "streamed" } else { "whole" };
        println!("{}, {kind}:", self.language);
        println!("curl {url} \\\n  -H \"Content-Type: application/json\" \\\n  -d '{body}'");
        let output = Command::new("curl")
            .args(["--silent", "--show-error", "--no-buffer", "--include", "--noproxy", "*"])
            .args(["--max-time", &PATIENCE.as_secs().to_string(), &url])
            .args(["-H", "Content-Type: application/json", "-d", &body])
            .kill_on_drop(true)
            .output()
            .await
            .context("starting curl (cargo xtask setup installs it)")?;
        if !output.status.success() {
            bail!("curl failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        self.show(&String::from_utf8_lossy(&output.stdout))
    }

    fn show(&self, answer: &str) -> Result<()> {
        let (head, body) = answer.split_once("\r\n\r\n").context("an answer has a head")?;
        let content =
            self.content(head, body).with_context(|| format!("the answer was\n{answer}"))?;
        println!("{}", shortened(body.trim_end()));
        println!("-> {content}");
        let pod = |leg| header(head, &format!("x-pd-router-{leg}")).unwrap_or("(unknown)");
        println!("   by the pair: prefill {}, decode {}\n", pod("prefill"), pod("decode"));
        Ok(())
    }

    /// The text that the model generated.
    fn content(&self, head: &str, body: &str) -> Result<String> {
        let status = head.lines().next().unwrap_or_default();
        if status.split(' ').nth(1) != Some("200") {
            bail!("not a 200: {status}");
        }
        let content = if self.stream { streamed(body)? } else { whole(body)? };
        if content.is_empty() {
            bail!("an answer without content");
        }
        Ok(content)
    }
}

/// A stream's first events and its last, since fifty look alike.
fn shortened(body: &str) -> String {
    let events: Vec<&str> = body.split("\n\n").collect();
    let [first, second, between @ .., before_last, last] = &events[..] else {
        return body.to_owned();
    };
    if between.is_empty() {
        return body.to_owned();
    }
    let left_out = format!("... {} more events ...", between.len());
    [*first, *second, &left_out, *before_last, *last].join("\n\n")
}

fn whole(body: &str) -> Result<String> {
    let body: Value = serde_json::from_str(body).context("not JSON")?;
    let content = body["choices"][0]["message"]["content"].as_str();
    Ok(content.context("no choices[0].message.content")?.to_owned())
}

fn streamed(body: &str) -> Result<String> {
    let mut content = String::new();
    let mut done = false;
    for data in body.lines().filter_map(|line| line.strip_prefix("data:")).map(str::trim) {
        if data == "[DONE]" {
            done = true;
            continue;
        }
        let event: Value = serde_json::from_str(data).context("an event that is not JSON")?;
        content.push_str(event["choices"][0]["delta"]["content"].as_str().unwrap_or_default());
    }
    if !done {
        bail!("the stream has no [DONE]");
    }
    Ok(content)
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(stream: bool) -> Request {
        Request { language: "English", message: "Hello", stream }
    }

    #[test]
    fn bodies_are_json_with_the_documents_fields() {
        for request in Request::all() {
            let body: Value = serde_json::from_str(&request.body()).unwrap();
            assert_eq!(body["max_tokens"], 50);
            assert_eq!(body["messages"][0]["content"], request.message);
            assert_eq!(body["stream"] == true, request.stream);
        }
    }

    #[test]
    fn an_answer_without_200_or_content_is_an_error() {
        let head = "HTTP/1.1 200 OK\r\nX-Pd-Router-Prefill: p-0";
        assert_eq!(header(head, "x-pd-router-prefill"), Some("p-0"));
        let body = r#"{"choices":[{"message":{"content":"hi"}}]}"#;
        assert_eq!(request(false).content(head, body).unwrap(), "hi");
        assert!(request(false).content("HTTP/1.1 503 x", body).is_err());
        assert!(request(false).content(head, r#"{"choices":[]}"#).is_err());
    }

    #[test]
    fn a_long_stream_is_shown_with_its_middle_left_out() {
        assert_eq!(
            shortened("a\n\nb\n\nc\n\nd\n\ne\n\nf"),
            "a\n\nb\n\n... 2 more events ...\n\ne\n\nf"
        );
        assert_eq!(shortened("{}"), "{}");
        assert_eq!(shortened("a\n\nb\n\nc\n\nd"), "a\n\nb\n\nc\n\nd");
    }

    #[test]
    fn a_stream_without_done_is_an_error() {
        let head = "HTTP/1.1 200 OK";
        let body = "data: {\"choices\":[{\"delta\":{\"content\":\"h\"}}]}\n\n\
                    data: {\"choices\":[{\"delta\":{\"content\":\"i\"}}]}\n\n";
        let done = format!("{body}data: [DONE]\n\n");
        assert_eq!(request(true).content(head, &done).unwrap(), "hi");
        assert!(request(true).content(head, body).is_err());
    }
}
