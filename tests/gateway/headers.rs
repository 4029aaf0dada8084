//! Header fields end to end: what passes, what stays on its hop, what the gateway adds.

use http::{HeaderName, HeaderValue};
use router_tests::{Fleet, gateway::pair};

use crate::{CHAT, chat};

#[tokio::test]
async fn end_to_end_fields_reach_both_engines_and_hop_by_hop_fields_neither() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway().await;
    let mut request = gateway.client.json_request(CHAT, chat("hi").to_string());
    for (name, value) in [
        ("authorization", "Bearer key"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("x-custom", "kept"),
        ("x-request-id", "client-7"),
        ("connection", "close, x-hop"),
        ("x-hop", "dropped"),
        ("proxy-authorization", "dropped"),
        ("te", "trailers"),
    ] {
        request
            .headers_mut()
            .insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    let answer = gateway.client.send(request).await.answer().await.expect_status(200);
    assert_eq!(answer.header("x-request-id"), "client-7");
    for engine in fleet.engines() {
        let leg = engine.legs_arrived(1).await.remove(0);
        for kept in ["authorization", "traceparent", "x-custom", "x-request-id"] {
            assert!(leg.headers.contains_key(kept), "{kept} is missing: {:?}", leg.headers);
        }
        for dropped in ["x-hop", "proxy-authorization", "te"] {
            assert!(!leg.headers.contains_key(dropped), "{dropped}: {:?}", leg.headers);
        }
    }
}

#[tokio::test]
async fn a_request_without_an_id_gets_one_that_both_engines_see() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway().await;
    let first = gateway.client.post(CHAT, &chat("hi")).await;
    let second = gateway.client.post(CHAT, &chat("hi")).await;
    let id = first.header("x-request-id");
    assert!(!id.is_empty() && id != second.header("x-request-id"), "{id}");
    for engine in fleet.engines() {
        assert_eq!(engine.legs_arrived(2).await[0].headers["x-request-id"], id);
    }
}

#[tokio::test]
async fn the_chosen_pods_are_named_when_asked_for() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway().await;
    let (prefill, decode) = pair(&gateway.client.post(CHAT, &chat("hi")).await);
    assert!(prefill.ends_with("prefill-0") && decode.ends_with("decode-0"), "{prefill} {decode}");
    let stream = gateway.client.open(CHAT, &crate::streamed("hi")).await;
    assert!(stream.headers.contains_key("x-pd-router-decode"), "{:?}", stream.headers);
}
