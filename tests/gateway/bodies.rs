//! A client's body reaches both engines bit for bit.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use router_tests::Fleet;
use router_tests::received::without_ours;

use crate::{CHAT, chat, streamed};

/// What re-serialising would change: number spelling, escapes, order, spaces, unknown fields.
const DELICATE: &[&str] = &[
    r#"{"messages":[{"role":"user","content":"hi"}],"temperature":1.10,"top_p":0.30000000000000004}"#,
    r#"{"seed":9007199254740993,"big":184467440737095516150,"messages":[{"role":"user","content":"hi"}]}"#,
    r#"{ "z" : 1 , "a":2,	"messages" : [ {"content":"hi","role":"user"} ] } "#,
    r#"{"messages":[{"role":"user","content":"caf\u00e9 \ud83d\ude42 \/ 你好"}],"unknown":{"b":[1e2,-0.0,1E+2]}}"#,
    r#"{"messages":[{"role":"user","content":"hi"}],"same":1,"same":2}"#,
    r#"{"messages":[{"role":"user","content":"hi","extra":null}],"deep":[[[[[[{"a":[]}]]]]]]}"#,
];

#[tokio::test]
async fn delicate_bodies_reach_both_engines_bit_for_bit() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway().await;
    for (index, body) in DELICATE.iter().enumerate() {
        gateway.client.post_bytes(CHAT, *body).await;
        for engine in fleet.engines() {
            let leg = engine.legs_arrived(index + 1).await.pop().expect("it arrived");
            assert_eq!(String::from_utf8_lossy(&without_ours(&leg)), *body);
        }
    }
}

/// JSON text of any spelling; keys begin with `x`, so that none has a meaning.
fn json_text() -> impl Strategy<Value = String> {
    let number = "-?(0|[1-9][0-9]{0,20})(\\.[0-9]{1,20})?([eE][+-]?[0-9]{1,2})?";
    let text = r#""([ !#-\[\]-~]|\\["\\/bfnrt]|\\u00[0-9a-f]{2}|[é你🙂])*""#;
    let leaf = prop_oneof![number, text, "true|false|null"];
    leaf.prop_recursive(4, 24, 4, |inner| {
        let space = "[ \t\n\r]{0,2}";
        let list = (space, prop::collection::vec(inner.clone(), 0..4), space)
            .prop_map(|(a, items, b)| format!("[{a}{}{b}]", items.join(&format!("{b},{a}"))));
        let member =
            ("\"x[a-z]{0,3}\"", space, inner).prop_map(|(k, s, v)| format!("{k}{s}:{s}{v}"));
        let object = (space, prop::collection::vec(member, 0..4))
            .prop_map(|(s, members)| format!("{{{s}{}{s}}}", members.join(&format!("{s},{s}"))));
        prop_oneof![list, object]
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn arbitrary_json_reaches_both_engines_bit_for_bit() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway().await;
    let runtime = tokio::runtime::Handle::current();
    let result = tokio::task::block_in_place(|| {
        let config = Config { cases: 60, failure_persistence: None, ..Config::default() };
        TestRunner::new(config).run(&(json_text(), "[ \n]{0,2}"), |(value, space)| {
            let message = r#""messages":[{"role":"user","content":"hi"}]"#;
            let body = format!("{{{space}\"xfield\":{value}{space},{message}{space}}}");
            let arrived = fleet.decode[0].legs().len();
            let sent = body.clone();
            runtime.block_on(async {
                gateway.client.post_bytes(CHAT, sent).await;
                for engine in fleet.engines() {
                    let leg = engine.legs_arrived(arrived + 1).await.pop().expect("it arrived");
                    assert_eq!(String::from_utf8_lossy(&without_ours(&leg)), body);
                }
            });
            Ok(())
        })
    });
    result.expect("every body survives");
}

#[tokio::test]
async fn a_streamed_request_streams_from_decode_only() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway().await;
    let mut body = streamed("hi");
    body["stream_options"] = serde_json::json!({"include_usage": true});
    gateway.client.open(CHAT, &body).await.events().await;
    let prefill = fleet.prefill[0].legs_arrived(1).await[0].json();
    let decode = fleet.decode[0].legs_arrived(1).await[0].json();
    assert_eq!(prefill["stream"], false);
    assert_eq!(prefill.get("stream_options"), None);
    assert_eq!(decode["stream"], true);
    assert_eq!(decode["stream_options"]["include_usage"], true);
}

#[tokio::test]
async fn a_body_that_is_no_json_object_reaches_no_engine() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway().await;
    let not_utf8 = &b"{\"messages\":\"\xff\"}"[..];
    for body in [&b""[..], b"hello", b"[]", b"{", b"{\"a\":1}}", b"\xef\xbb\xbf{}", not_utf8] {
        let answer = gateway.client.post_bytes(CHAT, body).await.expect_status(400);
        assert_eq!(answer.json()["error"]["type"], "invalid_request_error", "{}", answer.text());
    }
    gateway.client.post(CHAT, &chat("hi")).await.expect_status(200);
    assert_eq!(fleet.prefill[0].legs().len(), 1);
    assert_eq!(fleet.decode[0].legs().len(), 1);
}
