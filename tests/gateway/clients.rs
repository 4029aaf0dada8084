//! Real clients: OpenAI's own Python package, and curl with the documents' request.

use std::path::Path;
use std::process::Output;

use router_tests::{Fleet, Gateway};
use sglang_sim::{Action, Config, Role};
use tokio::process::Command;

/// Runs a script of `tests/clients` with the environment's python.
async fn python(script: &str, words: &[&str]) -> Output {
    let python = std::env::var_os("PD_ROUTER_PYTHON")
        .expect("PD_ROUTER_PYTHON is not set; `cargo xtask test gateway` makes the environment");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(script);
    let mut command = Command::new(python);
    command.arg("-B").arg(script).args(words).kill_on_drop(true);
    for proxy in ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "ALL_PROXY"] {
        command.env_remove(proxy);
    }
    command.output().await.expect("starting python")
}

fn assert_passed(output: &Output) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
}

async fn openai(gateway: &Gateway, part: &str) {
    let url = format!("http://{}/v1", gateway.client.address);
    assert_passed(&python("openai_client.py", &[&url, part]).await);
}

#[tokio::test]
async fn openais_client_chats() {
    let fleet = Fleet::start(1, 1).await;
    openai(&fleet.gateway().await, "chat").await;
}

#[tokio::test]
async fn openais_client_streams() {
    let fleet = Fleet::start(1, 1).await;
    openai(&fleet.gateway().await, "stream").await;
}

#[tokio::test]
async fn openais_client_gets_two_samples() {
    let fleet = Fleet::start(1, 1).await;
    openai(&fleet.gateway().await, "samples").await;
}

#[tokio::test]
async fn openais_client_raises_its_own_errors() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway_with(&["--max-attempts", "1"]).await;
    fleet.prefill[0].once(Action::Status { status: 500, body: r#"{"message":"broken"}"#.into() });
    openai(&gateway, "errors").await;
}

#[tokio::test]
async fn openais_client_picks_among_models() {
    let model = |path: &'static str| {
        move |config: Config| Config { model_path: path.into(), ..config.instant() }
    };
    let mut fleet = Fleet::start_with(1, 1, model("/models/a")).await;
    fleet.add(Role::Prefill, model("/models/b")).await;
    fleet.add(Role::Decode, model("/models/b")).await;
    let gateway = fleet.gateway().await;
    openai(&gateway, "models").await;
}

#[tokio::test]
async fn openais_client_raises_on_a_broken_stream() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway().await;
    fleet.decode[0].once(Action::DieMidStream { after: 3 });
    openai(&gateway, "broken-stream").await;
}

#[tokio::test]
async fn curl_sends_the_documents_request_as_printed() {
    let fleet = Fleet::start(2, 1).await;
    let gateway = fleet.gateway().await;
    for message in ["Hello, this is a test", "你好,这是一个测试"] {
        let url = format!("http://{}/v1/chat/completions", gateway.client.address);
        let body = format!(
            "{{
    \"model\": \"/models/Qwen3-32B\",
    \"messages\": [
      {{\"role\": \"user\", \"content\": \"{message}\"}}
    ],
    \"max_tokens\": 50
  }}"
        );
        let output = Command::new("curl")
            .args(["-sS", "--noproxy", "*", &url, "-H", "Content-Type: application/json"])
            .args(["-d", &body])
            .output()
            .await
            .expect("starting curl");
        assert_passed(&output);
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(answer["object"], "chat.completion");
        assert_eq!(answer["usage"]["completion_tokens"], 50);
    }
}
