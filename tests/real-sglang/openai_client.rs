//! OpenAI's own Python client against the real pair.

use std::path::Path;

use tokio::process::Command;

use crate::requests::MODEL;
use crate::testbed::{TestBed, env_path};

pub(crate) async fn chat_stream_and_samples(testbed: &mut TestBed) {
    let gateway = testbed.gateway(&[]).await;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/openai_client.py");
    for part in ["chat", "stream", "samples"] {
        let mut command = Command::new(env_path("PD_ROUTER_PYTHON"));
        command.arg("-B").arg(&script).arg(format!("http://{}/v1", gateway.client.address));
        command.arg(part).env("MODEL", MODEL).kill_on_drop(true);
        for proxy in ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "ALL_PROXY"] {
            command.env_remove(proxy);
        }
        let output = command.output().await.expect("starting python");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{part}: {error}");
    }
    testbed.wait_until_idle().await;
}
