//! `previous_response_id` in a pool without a split: it goes to the engine that has the response.

use router_tests::{Fleet, Gateway};
use serde_json::{Value, json};

const RESPONSES: &str = "/v1/responses";

fn ask(input: &str) -> Value {
    json!({"model": "/models/Qwen3-32B", "input": input, "max_output_tokens": 4})
}

fn continued(id: &str) -> Value {
    let mut body = ask("go on");
    body["previous_response_id"] = id.into();
    body
}

/// A new response, whole or streamed: its name, and the pod that gave it.
async fn respond(gateway: &Gateway, stream: bool) -> (String, String) {
    let mut body = ask("hi");
    body["stream"] = stream.into();
    let answer = gateway.client.open(RESPONSES, &body).await;
    assert_eq!(answer.status, 200);
    let pod = answer.headers["x-pd-router-decode"].to_str().expect("a name").to_owned();
    let response = match stream {
        false => answer.answer().await.json(),
        true => answer.events().await.0[0].json()["response"].take(),
    };
    (response["id"].as_str().expect("a response has a name").to_owned(), pod)
}

#[tokio::test]
async fn a_response_is_continued_where_it_was_given() {
    let fleet = Fleet::start_single(4).await;
    let gateway = fleet.gateway_with(&["--policy", "round_robin"]).await;
    for stream in [false, true, false, true, false, true] {
        let (mut id, pod) = respond(&gateway, stream).await;
        for _ in 0..2 {
            // The engines answer 404 for what they do not have.
            let answer = gateway.client.post(RESPONSES, &continued(&id)).await.expect_status(200);
            assert_eq!(answer.header("x-pd-router-decode"), pod);
            id = answer.json()["id"].as_str().expect("a name").to_owned();
        }
    }
    let used = fleet.unified.iter().filter(|engine| !engine.legs().is_empty()).count();
    assert_eq!(used, 4, "new responses go everywhere");
}

#[tokio::test]
async fn continuing_an_unknown_response_is_refused_with_the_reason() {
    let fleet = Fleet::start_single(2).await;
    let gateway = fleet.gateway().await;
    let answer = gateway.client.post(RESPONSES, &continued("resp_x")).await.expect_status(400);
    assert!(answer.error_message().contains("no engine is known to have"), "{}", answer.text());
    assert_eq!(answer.json()["error"]["param"], "previous_response_id");
    assert!(fleet.engines().all(|engine| engine.legs().is_empty()));
}

#[tokio::test]
async fn continuing_a_response_of_a_terminating_pod_is_refused_with_the_reason() {
    let fleet = Fleet::start_single(3).await;
    let gateway = fleet.gateway().await;
    let (id, pod) = respond(&gateway, false).await;
    let engine = fleet.unified.iter().find(|engine| pod.ends_with(&engine.pod.name));
    let mut going = engine.expect("an engine of the fleet").pod.clone();
    going.deleting = true;
    fleet.manifests.put_pod(&going);
    router_tests::eventually("it is refused", router_tests::fleet::SOON, async || {
        let answer = gateway.client.post(RESPONSES, &continued(&id)).await;
        let refused = answer.status == 400 && answer.error_message().contains("any more");
        refused.then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_single_engine_gets_unknown_responses_too() {
    let fleet = Fleet::start_single(1).await;
    let gateway = fleet.gateway().await;
    let (id, _) = respond(&gateway, false).await;
    gateway.client.post(RESPONSES, &continued(&id)).await.expect_status(200);
    gateway.client.post(RESPONSES, &continued("resp_x")).await.expect_status(404);
    assert_eq!(fleet.unified[0].legs().len(), 3);
}
