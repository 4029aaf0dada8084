//! A client that leaves: both engines are free soon after, and serve on.

use std::time::Duration;

use serde_json::json;

use crate::answer::said;
use crate::answers::same;
use crate::requests::{self, Ask};
use crate::world::World;

/// More tokens than are ever read.
const MANY: u32 = 4_000;

pub(crate) async fn frees_both(world: &mut World) {
    let gateway = world.gateway(&[]).await;
    let mut body = requests::chat("a stream without an end", MANY);
    body["stream"] = true.into();
    body["ignore_eos"] = json!(true);
    let mut stream = gateway.client.open("/v1/chat/completions", &body).await;
    for _ in 0..5 {
        stream.next().await.expect("an event");
    }
    let before = world.decode.load().await;
    assert_eq!(before["num_running_reqs"], 1, "{before}");
    drop(stream);
    let left = std::time::Instant::now();
    world.idle().await;
    println!("  both engines are free {:.1} s after the client left", left.elapsed().as_secs_f32());
    assert!(left.elapsed() < Duration::from_secs(5), "freed after {:?}", left.elapsed());
    let ask = Ask {
        name: "the next request".into(),
        path: "/generate",
        body: requests::generate("one engine orders the lazy dog", 12),
    };
    let expected = said(&world.reference(), &ask).await;
    assert!(same(&said(&gateway.client, &ask).await, &expected), "the next request is served");
}
