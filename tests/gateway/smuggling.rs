//! Engine control is the gateway's: what a client writes of it never reaches an engine.

use http::HeaderValue;
use router_tests::{Fleet, received::assert_pair};
use serde_json::Value;

use crate::{CHAT, chat};

const FOREIGN_ROOM: &str = "9223372036854775808";

#[tokio::test]
async fn control_in_the_body_is_removed_however_it_is_written() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway().await;
    let messages = r#""messages":[{"role":"user","content":"hi"}]"#;
    let bodies = [
        format!(r#"{{"bootstrap_room":{FOREIGN_ROOM},{messages}}}"#),
        format!(r#"{{{messages},"bootstrap\u005froom":{FOREIGN_ROOM}}}"#),
        format!(r#"{{"bootstrap_room":1,{messages},"bootstrap_room":{FOREIGN_ROOM}}}"#),
        format!(r#"{{"bootstrap_room":null,"bootstrap_host":"10.9.9.9",{messages}}}"#),
        format!(r#"{{"bootstrap_port":1,{messages},"r\u0069d":"mine","rid":"mine"}}"#),
        format!(r#"{{{messages},"routed_dp_rank":7,"disagg_prefill_dp_rank":7}}"#),
        format!(r#"{{"data_parallel_rank":7,"decode_tp_size":7,{messages}}}"#),
    ];
    for (index, body) in bodies.iter().enumerate() {
        gateway.client.post_bytes(CHAT, body.clone()).await.expect_status(200);
        let prefill = fleet.prefill[0].legs_arrived(index + 1).await.pop().expect("it arrived");
        let decode = fleet.decode[0].legs_arrived(index + 1).await.pop().expect("it arrived");
        assert_pair(&prefill, &decode);
        for leg in [prefill, decode] {
            let text = String::from_utf8_lossy(&leg.body).into_owned();
            for smuggled in
                [FOREIGN_ROOM, "10.9.9.9", "mine", ":7,", ":7}", "u005f", "u0069", ":null"]
            {
                assert!(!text.contains(smuggled), "{smuggled} in {text}");
            }
            assert_eq!(text.matches("bootstrap_room").count(), 1, "{text}");
        }
    }
}

#[tokio::test]
async fn control_in_headers_is_removed() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway().await;
    let mut request = gateway.client.json_request(CHAT, chat("hi").to_string());
    for name in [
        "x-override-rid",
        "x-override-bootstrap-room",
        "X-Override-Anything-New",
        "x-data-parallel-rank",
    ] {
        let name = http::HeaderName::try_from(name).expect("a name");
        request.headers_mut().insert(name, HeaderValue::from_static("7"));
    }
    gateway.client.send(request).await.answer().await.expect_status(200);
    for engine in fleet.engines() {
        let leg = engine.legs_arrived(1).await.remove(0);
        let smuggled =
            |name: &str| name.starts_with("x-override") || name == "x-data-parallel-rank";
        let names: Vec<&str> = leg.headers.keys().map(http::HeaderName::as_str).collect();
        assert!(!names.iter().any(|name| smuggled(name)), "{names:?}");
    }
}

#[tokio::test]
async fn rooms_are_in_range_and_names_have_one_length() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway().await;
    for _ in 0..20 {
        gateway.client.post(CHAT, &chat("hi")).await.expect_status(200);
    }
    let legs = fleet.decode[0].legs_arrived(20).await;
    let mut rooms: Vec<u64> =
        legs.iter().map(|leg| leg.json()["bootstrap_room"].as_u64().expect("a number")).collect();
    rooms.sort_unstable();
    rooms.dedup();
    assert_eq!(rooms.len(), 20, "rooms repeat");
    assert!(rooms.iter().all(|room| *room < 1 << 63));
    // Twenty 63-bit numbers that all fit in 48 bits would be no chance.
    assert!(rooms.last().is_some_and(|room| *room > 1 << 48));
    let mut names: Vec<Value> = legs.iter().map(|leg| leg.json()["rid"].clone()).collect();
    assert!(names.iter().all(|rid| rid.as_str().is_some_and(|rid| rid.len() == 32)), "{names:?}");
    names.dedup();
    assert_eq!(names.len(), 20);
}
