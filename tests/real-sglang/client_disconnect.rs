//! A client that disconnects: both engines are idle soon after and serve the next request.

use std::time::Duration;

use serde_json::json;

use crate::answer::send;
use crate::comparison::matches;
use crate::requests::{self, RequestCase};
use crate::testbed::TestBed;

/// More tokens than the client reads.
const MANY: u32 = 4_000;

pub(crate) async fn frees_both_engines(testbed: &mut TestBed) {
    let gateway = testbed.gateway(&[]).await;
    let mut body = requests::chat("a stream without an end", MANY);
    body["stream"] = true.into();
    body["ignore_eos"] = json!(true);
    let mut stream = gateway.client.open("/v1/chat/completions", &body).await;
    for _ in 0..5 {
        stream.next().await.expect("an event");
    }
    let before = testbed.decode.load().await;
    assert_eq!(before["num_running_reqs"], 1, "{before}");
    drop(stream);
    let left = std::time::Instant::now();
    testbed.wait_until_idle().await;
    println!("  both engines are free {:.1} s after the client left", left.elapsed().as_secs_f32());
    assert!(left.elapsed() < Duration::from_secs(5), "freed after {:?}", left.elapsed());
    let case = RequestCase {
        name: "the next request".into(),
        path: "/generate",
        body: requests::generate("one engine orders the lazy dog", 12),
    };
    let expected = send(&testbed.reference(), &case).await;
    assert!(matches(&send(&gateway.client, &case).await, &expected), "the next request is served");
}
