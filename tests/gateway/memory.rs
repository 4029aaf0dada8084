//! What a request costs in memory.

use serde_json::json;

use router_tests::Fleet;

use crate::{CHAT, streamed};

const BODY: usize = 4 << 20;
const SAMPLES: usize = 16;

#[tokio::test]
async fn a_long_body_costs_the_same_memory_for_many_samples() {
    let fleet = Fleet::start(1, 1).await;
    let gateway =
        fleet.gateway_with(&["--max-body", "8388608", "--max-body-memory", "8388608"]).await;
    let mut body = streamed("hello");
    body["padding"] = "x".repeat(BODY).into();
    body["n"] = json!(SAMPLES);
    body["max_tokens"] = json!(1);
    gateway.client.post(CHAT, &streamed("hello")).await.expect_status(200);
    let before = gateway.resident_bytes();
    gateway.client.post(CHAT, &body).await.expect_status(200);
    let grown = gateway.peak_bytes().saturating_sub(before);
    // The body once, what was read of it before it was put together, and the runtime's own buffers.
    assert!(grown < 4 * BODY as u64, "grew by {grown} bytes for a body of {BODY}");
    assert_eq!(fleet.prefill[0].legs().len(), SAMPLES + 1);
}
